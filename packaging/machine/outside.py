"""What a board talks to, on this machine: broker, repository, publisher, and an operator with a console key."""
# ruff: noqa: INP001 - beside its script, in no package

from __future__ import annotations

import http.server
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agent.engine.ir import serialize
from tests.simulators.mosquitto import Mosquitto
from tests.simulators.small_models import SIZE, colour_images, mobile_block_net
from tests.simulators.wiretap import Wiretap

MODEL = "colours"
SAMPLES, HELD_OUT = 60, 0.2
SAMPLES_LEARNT = round(SAMPLES * (1 - HELD_OUT))  # of each epoch
DATA = "/srv/colours.npz"  # on the board
FROM_INSIDE = "10.0.2.2"  # this machine, as qemu's user network shows it
ENDED = ("succeeded", "failed", "rejected", "canceled", "timed_out", "rolled_back")
POLL_S = 0.2


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server of files that writes no log."""

    def log_message(self, *_args: object) -> None:
        """Nothing."""


class Outside:
    """All of it below `folder`, on loopback; a Wiretap hears what is said and judges it by docs/asyncapi.yaml."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "repository").mkdir(parents=True)
        self.broker = Mosquitto(folder)
        self.broker.start()
        self.web = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Quiet, directory=str(folder / "repository"))
        )
        threading.Thread(target=self.web.serve_forever, daemon=True).start()
        self.tap = Wiretap(self.broker.port)
        self.tap.start()
        assert self.tap.wait(), "the wiretap finds no broker"
        self.temperd("keys", "console", "alice", "--out", str(folder))
        (folder / "colours.onnx").write_bytes(serialize(mobile_block_net(classes=5)))

    def faults(self) -> list[str]:
        """What the board said so far against docs/asyncapi.yaml."""
        return self.tap.faults()

    def close(self) -> None:
        """End all of it."""
        self.tap.stop()
        self.broker.stop()
        self.web.shutdown()
        self.web.server_close()

    @property
    def console(self) -> str:
        """The operator's public key, to be trusted by the board."""
        return (self._folder / "alice.pub.json").read_text()

    def settings(self) -> str:
        """Where the board finds broker and repository, as part of its configuration."""
        return (
            f'[mqtt]\nhost = "{FROM_INSIDE}"\nport = {self.broker.port}\n'
            f'[repository]\nurl = "http://{FROM_INSIDE}:{self.web.server_port}"\n'
        )

    def publish(self, document: Mapping[str, object]) -> str:
        """Publish the model for the board of this document; the repository's root of trust."""
        name = self._folder / "board.device.json"
        name.write_text(json.dumps(document))
        repository = self._folder / "repository"
        self.temperd(
            "publish", str(self._folder / "colours.onnx"), "--name", MODEL, "--for", str(name),
            "--repo", str(repository), "--keys", str(self._folder / "publisher"),
        )  # fmt: skip
        return (repository / "metadata" / "1.root.json").read_text()

    def send(self, board: str, kind: str, job: str) -> str:
        """Sign and send a command; its id."""
        spec = self._folder / "job.toml"
        spec.write_text(job)
        said = self.temperd(
            "fleet", "send", board, kind, str(spec), "--json", "--key", str(self._folder / "alice.key"),
            "--broker", f"127.0.0.1:{self.broker.port}",
        )  # fmt: skip
        return str(json.loads(said)["id"])

    def temperd(self, *arguments: str) -> str:
        """What a verb of this machine's temperd writes."""
        command = [sys.executable, "-m", "service.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own program
        assert done.returncode == 0, f"temperd {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def statuses(self, command_id: str) -> Iterator[dict[str, Any]]:
        """All that the board said of a command so far."""
        for heard in list(self.tap.heard):
            if heard.topic.endswith(f"/{command_id}/sts") and heard.payload:
                yield json.loads(heard.payload)

    def status(self, command_id: str, true: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        """The first status of a command for which `true` holds."""
        end = time.monotonic() + seconds
        while not (found := [body for body in self.statuses(command_id) if true(body)]):
            said = list(self.statuses(command_id))
            assert time.monotonic() < end, f"waited {seconds:.0f} s in vain; last said: {said[-1:]}"
            assert not said or said[-1]["status"] not in ENDED, f"it ended before: {said[-1]}"
            time.sleep(POLL_S)
        return found[0]

    def ended(self, command_id: str, seconds: float) -> dict[str, Any]:
        """The status with which a command ended."""
        return self.status(command_id, lambda body: body["status"] in ENDED, seconds)


def samples() -> bytes:
    """Noise images in which one colour is brighter, as an `.npz` file."""
    pixels, labels = colour_images(SAMPLES, seed=5)
    packed = io.BytesIO()
    np.savez_compressed(packed, x_train=pixels, y_train=labels, classes=np.array(["red", "green", "blue"]))
    return packed.getvalue()


def green_image() -> bytes:
    """An image that the tuned model must call green, as a PNG file."""
    pixels, labels = colour_images(SAMPLES, seed=6)
    packed = io.BytesIO()
    Image.fromarray(pixels[labels.tolist().index(1)]).save(packed, "png")
    return packed.getvalue()


def job(epochs: int) -> str:
    """A job of the small model that learns; its file."""
    return (
        f'model = "{MODEL}"\ndata = "{DATA}"\nheld_out = {HELD_OUT}\nimage_size = {SIZE}\nepochs = {epochs}\n'
        'learning_rate = 0.02\ndepth = "0"\nbatch = 8\nleast_gain = -0.02\n'
    )
