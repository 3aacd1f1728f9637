"""A small world for end-to-end tests: broker, repository, publisher, console key, one board with an emulated Pi.

Everything is real: mosquitto, a web server, the daemon's own process. Only the model is small.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agent import publish as publishing
from agent.engine.ir import serialize
from agent.keys import create_console_key, create_identity, load_console_key
from agent.repository import Publisher, utc_now
from service.cli_fleet import make_request
from service.commands import Request, sign_command
from service.config import Mqtt
from service.console_link import ConsoleLink, Seen
from service.device_link import Address
from service.journal import JobRecord, Journal
from tests.simulators.mosquitto import Mosquitto
from tests.simulators.small_models import SIZE, colour_images, mobile_block_net
from tests.simulators.wiretap import Wiretap

ROOT = Path(__file__).parents[2]
DEVICE = "board-1"
READY_S = 30.0
MAX_FAULTS = 20
ENDED = ("succeeded", "failed", "rejected", "canceled", "timed_out", "rolled_back")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args: object) -> None:
        pass


class World:
    """One fleet of one board below `folder`."""

    def __init__(self, folder: Path, *, speed: float = 20.0, policy: str = "") -> None:
        self.folder = folder
        self.state = folder / "state"
        self.broker = Mosquitto(folder)
        (folder / "repository").mkdir()
        self.web = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Quiet, directory=str(folder / "repository"))
        )
        threading.Thread(target=self.web.serve_forever, daemon=True).start()
        self.identity = create_identity(self.state / "keys", DEVICE)
        public = create_console_key(folder / "console", "alice")
        self.console_key = load_console_key(folder / "console" / "alice.key")
        (folder / "trusted").mkdir()
        (folder / "trusted" / public.name).write_bytes(public.read_bytes())
        self.config = folder / "temperd.toml"
        self.config.write_text(
            f'[device]\nname = "{DEVICE}"\nstate_dir = "state"\n'
            f'[mqtt]\nhost = "127.0.0.1"\nport = {self.broker.port}\nkeepalive_s = 5\n'
            f'[repository]\nurl = "http://127.0.0.1:{self.web.server_port}"\nroot = "root.json"\n'
            f'[board]\nemulated = "raspberry-pi-4"\nemulated_speed = {speed}\n'
            + (f'[policy]\nfile = "{policy}"\n' if policy else "")
            + '[worker]\nthreads = 1\nnice = 0\n[commands]\ntrusted_consoles = "trusted"\n[log]\nformat = "text"\n'
        )
        self.daemon: subprocess.Popen[bytes] | None = None
        self.tap: Wiretap | None = None

    def publish(self, version: str = "1.0", model: bytes | None = None, *, grant: bool = True) -> None:
        """Publish a model of colour images (or the given ONNX bytes) as `colours`."""
        path = self.folder / "colours.onnx"
        path.write_bytes(model or serialize(mobile_block_net(classes=5)))
        make = Publisher.open if (self.folder / "repository" / "metadata").exists() else Publisher.create
        publisher = make(self.folder / "repository", self.folder / "publisher-keys", utc_now)
        about = publishing.Description("colours", version)
        publishing.publish(publisher, str(path), about, [self.identity.public] if grant else [])
        (self.folder / "root.json").write_bytes(publisher.root_path.read_bytes())

    def images(self, name: str = "images", samples: int = 60) -> Path:
        """A folder of PNG files, one folder a class."""
        folder = self.folder / name
        pixels, labels = colour_images(samples, seed=5)
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            place = folder / ("red", "green", "blue")[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i:03}.png")
        return folder

    def job(self, data: Path | str, **changes: object) -> dict[str, object]:
        """Arguments of a fine-tune command that takes a few seconds and learns."""
        base = {"model": "colours", "data": str(data), "image_size": SIZE, "epochs": 40, "learning_rate": 0.02}
        # A job that is run again must not lose by a hair of loss against its own model: the governor's depths vary.
        return {**base, "depth": "0", "batch": 8, "least_gain": -0.02, **changes}

    # --- the daemon --------------------------------------------------------------------------------------------------

    def start(self, program: tuple[str, ...] = ("-m", "service.cli", "run")) -> None:
        """Start the daemon and wait until it is ready."""
        self.listen()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("RUNTIME_DIRECTORY", None)
        with (self.folder / "daemon.log").open("ab") as log:
            mark = log.tell()
            self.daemon = subprocess.Popen(
                [sys.executable, *program, "--config", str(self.config)], stdout=log, stderr=log, env=environment
            )
        self.wait(lambda: self.daemon.poll() is not None or b" ready " in self.log()[mark:], READY_S)

    def wiretap(self) -> Wiretap:
        """What hears all that is said."""
        return Wiretap(self.broker.port)

    def listen(self) -> None:
        """Hear what the daemon says from its first word on, where there is a broker."""
        if self.tap is None:
            self.tap = self.wiretap()
            self.tap.start()
        if self.broker.running:
            assert self.tap.wait(), "the wiretap finds no broker"

    def log(self) -> bytes:
        return (self.folder / "daemon.log").read_bytes()

    def kill(self) -> None:
        """As a power cut."""
        self.daemon.kill()
        self.daemon.wait()

    def stop(self) -> int:
        self.daemon.send_signal(signal.SIGTERM)
        return self.daemon.wait(timeout=20)

    def close(self) -> None:
        """End everything, and hold what was said against docs/asyncapi.yaml."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.kill()
        if self.tap is not None:
            self.tap.stop()
        self.broker.stop()
        self.web.shutdown()
        self.web.server_close()
        faults = self.tap.faults() if self.tap is not None else []
        assert not faults, "\n".join([f"{len(faults)} faults by docs/asyncapi.yaml", *faults[:MAX_FAULTS]])

    def wait(self, true: Callable[[], Any], seconds: float = 60.0) -> Any:
        """Poll until `true()` is truthy."""
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, f"waited {seconds} s in vain\n{self.log()[-4000:].decode()}"
            time.sleep(0.02)
        return found

    def record(self, job_id: str) -> JobRecord | None:
        """The job as the journal has it."""
        journal = Journal.peek(self.state / "journal.sqlite")
        try:
            return journal.job(job_id)
        finally:
            journal.close()

    def ended(self, job_id: str, seconds: float = 90.0) -> JobRecord:
        """The record once the job has ended."""
        states = ("SUCCEEDED", "FAILED", "CANCELED", "ROLLED_BACK", "REJECTED", "TIMED_OUT")
        return self.wait(lambda: (r := self.record(job_id)) and r.standing.state in states and r, seconds)

    def worker_pid(self) -> int | None:
        """The running worker of this daemon."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes()
            except (OSError, IndexError):
                continue
            if parent == self.daemon.pid and b"agent.worker" in command:
                return int(entry.name)
        return None

    # --- the console -------------------------------------------------------------------------------------------------

    def request(self, kind: str, args: dict[str, object], **changes: object) -> Request:
        made = make_request(DEVICE, kind, args, time.time(), 600)
        return Request(**{name: changes.get(name, getattr(made, name)) for name in Request.__dataclass_fields__})

    def send(self, kind: str, args: dict[str, object], *, until: tuple[str, ...] = ENDED) -> dict[str, Any]:
        """Sign, send and follow a command; the status with which it ended."""
        request = self.request(kind, args)
        return self.send_envelope(kind, request.id, sign_command(request, self.console_key), until=until)

    def send_envelope(
        self, kind: str, command_id: str, envelope: bytes, *, until: tuple[str, ...] = ENDED, seconds: float = 90.0
    ) -> dict[str, Any]:
        """Send any bytes as a command; the first fresh status among `until`."""

        async def play() -> dict[str, Any]:
            async with self.console() as link, asyncio.timeout(seconds):
                await link.wait_connected(10)
                await link.send(kind, command_id, envelope, expires_s=600)
                async for seen in link.watch():
                    if seen.kind == "status" and seen.command_id == command_id and seen.body["status"] in until:
                        return seen.body
            raise AssertionError

        return asyncio.run(play())

    def seen(self, seconds: float) -> list[Seen]:
        """Everything a console sees within a time."""

        async def look() -> list[Seen]:
            found: list[Seen] = []
            async with self.console() as link:
                await link.wait_connected(10)
                try:
                    async with asyncio.timeout(seconds):
                        async for seen in link.watch():
                            found += [seen]
                except TimeoutError:
                    pass
            return found

        return asyncio.run(look())

    def device_document(self) -> Path:
        """The board's public document as a file."""
        path = self.folder / f"{DEVICE}.device.json"
        path.write_text(json.dumps(self.identity.public.to_table()))
        return path

    def console(self) -> ConsoleLink:
        settings = Mqtt(host="127.0.0.1", port=self.broker.port)
        return ConsoleLink(settings, Address("default", DEVICE), f"test-{time.monotonic_ns()}")

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `temperd`."""
        return subprocess.run(
            [sys.executable, "-m", "service.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TEMPERD_CONFIG": str(self.config)},
            check=False,
        )


@contextmanager
def world(folder: Path, *, started: bool = True, **settings: Any) -> Iterator[World]:
    """A world with broker, published model and, unless told otherwise, a running daemon."""
    made = World(folder, **settings)
    try:
        made.broker.start()
        made.publish()
        if started:
            made.start()
        yield made
    finally:
        made.close()


def weights_on_disk(folder: Path) -> list[Path]:
    """Files below `folder` that hold a piece of the published model's weights in plain."""
    needle = mobile_block_net(classes=5).initializers["expand.w"].tobytes()[:64]
    return [path for path in folder.rglob("*") if needle in _content(path)]


def _content(path: Path) -> bytes:
    """What a file holds; nothing of what is no file, or no longer there: a scrub may be at work."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return b""


def as_json(text: str) -> Any:
    return json.loads(text)


def one_pixel(path: Path, value: int) -> None:
    """A tiny valid image."""
    Image.fromarray(np.full((SIZE, SIZE, 3), value, np.uint8)).save(path)
