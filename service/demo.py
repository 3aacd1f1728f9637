"""`temperd demo`: the whole story on one machine, with real processes, a real model and real images."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from agent.durable import write_atomic
from agent.errors import BoardError
from agent.keys import load_console_key
from agent.spec import parse_spec, spec_table
from service.broker import LOOPBACK, Broker, cache_folder, find_mosquitto, start_broker
from service.cli import say_json
from service.cli_fleet import ENDED, make_request
from service.commands import FINE_TUNE, sign_command
from service.config import Mqtt
from service.console_link import ConsoleLink, Seen
from service.demo_setup import CONSOLE, DEVICE, Scene, default_epochs, fresh_folder, prepare, serve_folder
from service.demo_story import Story, chart_of, table_of
from service.device_link import Address
from service.live import read_live, runtime_folder
from service.logs import configure

COMMAND_VALID_S = 600
CONNECT_S = 20.0
STOP_S = 10.0
JOB_S = 900.0  # a machine on which the demo takes longer than this cannot show anything
HEAT_AFTER = 0.3  # of the training: then the board is heated on purpose
HEAT = {"heat_watts": 8.0, "seconds": 20.0}


def main(options: argparse.Namespace) -> int:
    """Play the demo; the exit code is the job's outcome."""
    console = Console(stderr=options.json)
    folder = fresh_folder(Path(options.out).absolute())
    log = (folder / "demo.log").open("w", encoding="utf-8")
    configure("warning", "text", stream=log)
    began = time.monotonic()
    program = find_mosquitto(cache_folder(), lambda text: console.print(f"  {text}"))
    broker = start_broker(program, folder)
    web = serve_folder(folder / "repository")
    try:
        console.print(f"broker on {LOOPBACK}:{broker.port}, model repository on {LOOPBACK}:{web.server_port}")
        console.print(f"publishing {options.model}: sealing, signing, granting to {DEVICE}")
        scene = prepare(folder, options.model, options.images, broker.port, web.server_port)
        target = scene.target
        size, digest = f"{target.sealed_length / 1e6:.1f} MB", target.sealed_sha256[:16]
        console.print(f"  {target.name} {target.version}, {size}, sealed sha256 {digest}…")
        with _daemon(scene):
            story = asyncio.run(_play(options, scene, broker, console))
    finally:
        web.shutdown()
        broker.stop()
        log.close()
    return _finish(options, console, scene, story, time.monotonic() - began)


@contextmanager
def _daemon(scene: Scene) -> Iterator[None]:
    """The board's daemon as a process of its own, as a board would run it."""
    here = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))}
    environment.pop("RUNTIME_DIRECTORY", None)
    command = [sys.executable, "-m", "service.cli", "run", "--config", str(scene.config)]
    with (scene.folder / "daemon.log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment)  # noqa: S603 - our own program
    try:
        yield
    finally:
        child.terminate()
        try:
            child.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


async def _play(options: argparse.Namespace, scene: Scene, broker: Broker, console: Console) -> Story:
    """The console's part: send the command, watch, heat the board once."""
    epochs = default_epochs(scene.data, options.epochs)
    job = {"model": scene.target.name, "data": str(scene.data), "epochs": epochs, "engine": options.engine}
    request = make_request(DEVICE, FINE_TUNE, spec_table(parse_spec(job)), time.time(), COMMAND_VALID_S)
    envelope = sign_command(request, load_console_key(scene.console_key))
    story = Story(request.id)
    settings = Mqtt(host=LOOPBACK, port=broker.port)
    async with ConsoleLink(settings, Address("default", DEVICE), f"{CONSOLE}-demo") as link, asyncio.timeout(JOB_S):
        await link.wait_connected(CONNECT_S)
        await link.send(FINE_TUNE, request.id, envelope, expires_s=COMMAND_VALID_S)
        console.print(f"signed command fine-tune {request.id} sent; {epochs} epochs")
        with story.shown_on(console):
            async for seen in link.watch():
                _follow(story, seen)
                if story.share >= HEAT_AFTER and story.heat_at is None:
                    _heat(scene, story)
                if story.status in ENDED:
                    break
    story.peak_daemon_bytes = _daemon_rss(scene)
    return story


def _follow(story: Story, seen: Seen) -> None:
    if seen.kind == "status" and seen.command_id == story.job_id:
        story.hear_status(seen.body)
    elif seen.kind == "metrics":
        story.hear_metrics(seen.name, seen.body)


def _heat(scene: Scene, story: Story) -> None:
    """A heat wave for the emulated board, so that the governor has something to do."""
    write_atomic(runtime_folder(scene.folder / "state", {}) / "board" / "inject.json", json.dumps(HEAT).encode())
    story.heated(HEAT["seconds"])


def _daemon_rss(scene: Scene) -> int | None:
    """Resident size of the daemon right now, in bytes."""
    try:
        view = read_live(runtime_folder(scene.folder / "state", {}), time.monotonic())
        pages = Path(f"/proc/{view['pid']}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (BoardError, OSError, KeyError):
        return None


def _finish(options: argparse.Namespace, console: Console, scene: Scene, story: Story, wall_s: float) -> int:
    picture = scene.folder / "job.svg"
    write_atomic(picture, chart_of(story).encode(), 0o644)
    write_atomic(scene.folder / "result.json", json.dumps(story.status_body, indent=2).encode() + b"\n", 0o644)
    code = ENDED.get(story.status, 1)
    if options.json:
        say_json({**story.status_body, "wall_s": wall_s, "chart": str(picture)})
        return code
    console.print(table_of(story, wall_s))
    if code:
        console.print(f"[red]{story.status}[/]: {story.status_body.get('reason')}; see {scene.folder / 'daemon.log'}")
        return code
    console.print(f"chart: {os.path.relpath(picture)}")
    program = Path(sys.argv[0])
    name = (
        os.path.relpath(program) if program.name == "temperd" else f"{os.path.relpath(sys.executable)} -m service.cli"
    )
    sample = os.path.relpath(scene.sample)
    console.print(
        f"try the tuned model:  {name} predict --config {os.path.relpath(scene.config)} {sample}", soft_wrap=True
    )
    return code
