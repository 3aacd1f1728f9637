"""`temperd demo`: the whole story on one machine, with real processes, a real model and real images."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from agent.durable import write_atomic
from agent.errors import NetworkError
from agent.keys import load_console_key
from agent.spec import parse_spec, spec_table
from service import demo_console
from service.broker import LOOPBACK, Broker, cache_folder, find_mosquitto, start_broker
from service.cli import say_json
from service.cli_console import need_extra
from service.cli_fleet import make_request
from service.commands import FINE_TUNE, sign_command
from service.config import Mqtt
from service.console_link import ConsoleLink, Seen
from service.demo_setup import (
    CONSOLE,
    DEVICE,
    Scene,
    check_inputs,
    default_epochs,
    fresh_folder,
    prepare,
    serve_folder,
)
from service.demo_story import Story, chart_of, table_of
from service.device_link import Address
from service.fleet.outcome import NOT_ENDED, exit_code, of_status
from service.live import runtime_folder
from service.logs import configure
from service.worker_process import environment

COMMAND_VALID_S = 600
CONNECT_S = 20.0
STOP_S = 30.0  # the daemon lets its worker write a checkpoint first
POLL_S = 0.5
JOB_S = 900.0  # a machine on which the demo takes longer than this cannot show anything
HEAT_AFTER = 0.15  # of the training: then the board is heated on purpose
HEAT = {"heat_watts": 8.0, "seconds": 20.0}


def main(options: argparse.Namespace) -> int:
    """Play the demo; the exit code is the job's outcome."""
    end_as_ctrl_c()
    console = Console(stderr=options.json)
    folder = Path(options.out).absolute()
    check_inputs(folder, options.model, options.images)
    if options.console:
        need_extra()
    with fresh_folder(folder), (folder / "demo.log").open("w", encoding="utf-8") as log:
        configure("warning", "text", stream=log)
        try:
            return _stage(options, console, folder)
        except KeyboardInterrupt:
            console.print("stopped; nothing is left running")
            raise


def end_as_ctrl_c() -> None:
    """SIGTERM, and a terminal that is closed, end the demo in good order: nothing is left running."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def _stage(options: argparse.Namespace, console: Console, folder: Path) -> int:
    """Broker, web server, publisher, board and console, one after the other; all are ended at the end."""
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
        with running_daemon(scene.config, scene.folder / "daemon.log") as daemon:
            story = asyncio.run(_play(options, scene, broker, daemon, console))
            code = _finish(options, console, scene, story, time.monotonic() - began)
            if not code and (options.console or _offer(console)):
                _show(console, scene, broker, story)
            elif options.keep and not code:
                _keep(console, scene, broker)
        return code
    finally:
        web.shutdown()
        broker.stop()


def _keep(console: Console, scene: Scene, broker: Broker) -> None:
    """Leave everything running for whoever wants to send jobs of their own."""
    key = os.path.relpath(scene.console_key)
    console.print("board, broker and repository stay until Ctrl-C. In another terminal, for example:")
    line = (
        f"  {_program()} fleet send {DEVICE} fine-tune JOB.toml --key {key} --broker {LOOPBACK}:{broker.port} --watch"
    )
    console.print(line, soft_wrap=True)
    signal.pause()


def _offer(console: Console) -> bool:
    """Whether whoever sits at the terminal wants the console; without a terminal it is named."""
    if not demo_console.installed():
        return False
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        console.print(f"look at it in a browser:  {_program()} demo --console", soft_wrap=True)
        return False
    return demo_console.wants_to_look()


def _show(console: Console, scene: Scene, broker: Broker, story: Story) -> None:
    """The console on the demo's board, which stays until Ctrl-C, as the broker and the repository do."""
    demo_console.keep(scene.folder, story.heard)
    settings = demo_console.settings_of(scene.folder, broker.port, scene.console_key)

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)  # a link stays one word

    say("Ctrl-C ends all of it")
    asyncio.run(demo_console.serve_console(settings, say))
    end_as_ctrl_c()  # serving took it away
    console.print("stopped; nothing is left running")


@contextmanager
def running_daemon(config: Path, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A board's daemon as a process of its own, as a board would run it; ended with the block."""
    variables = environment()
    variables.pop("RUNTIME_DIRECTORY", None)
    command = [sys.executable, "-m", "service", "run", "--config", str(config)]
    with log_path.open("wb") as log:
        # A session of its own: Ctrl-C is for the demo, which ends the daemon in good order.
        child = subprocess.Popen(command, stdout=log, stderr=log, env=variables, start_new_session=True)  # noqa: S603 - our own program
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


async def _play(
    options: argparse.Namespace, scene: Scene, broker: Broker, daemon: subprocess.Popen[bytes], console: Console
) -> Story:
    """The console's part: send the command, watch, heat the board once.

    Raises:
        NetworkError: broker or daemon ended, or the job takes too long.
    """
    epochs = default_epochs(scene.data, options.epochs)
    job = {"model": scene.target.name, "data": str(scene.data), "epochs": epochs, "engine": options.engine}
    spec = spec_table(parse_spec(job))
    request = make_request(DEVICE, FINE_TUNE, spec, time.time(), COMMAND_VALID_S)
    if demo_console.installed():
        demo_console.record(scene.folder, FINE_TUNE, DEVICE, request.id, spec)
    envelope = sign_command(request, load_console_key(scene.console_key))
    story = Story(request.id)
    settings = Mqtt(host=LOOPBACK, port=broker.port)
    async with ConsoleLink(settings, Address("default", DEVICE), f"{CONSOLE}-demo") as link:
        await link.wait_connected(CONNECT_S)
        await link.send(FINE_TUNE, request.id, envelope, expires_s=COMMAND_VALID_S)
        console.print(f"signed command fine-tune {request.id} sent; {epochs} epochs")
        with story.shown_on(console):
            watching = asyncio.ensure_future(_watch(story, link, scene))
            end = time.monotonic() + JOB_S
            while not (await asyncio.wait([watching], timeout=POLL_S))[0]:
                lost = _lost(scene, broker, daemon, end)
                if lost is not None:
                    watching.cancel()
                    raise lost
            watching.result()
    story.daemon_bytes = _daemon_rss(daemon.pid)
    return story


async def _watch(story: Story, link: ConsoleLink, scene: Scene) -> None:
    """Follow the job to its end."""
    async for seen in link.watch():
        _follow(story, seen)
        if (heard := demo_console.heard_of(DEVICE, seen)) and len(story.heard) < demo_console.MAX_HEARD:
            story.heard.append(heard)
        if story.share >= HEAT_AFTER and story.heat_at is None:
            _heat(scene, story)
        if of_status(story.status) not in NOT_ENDED:
            return


def _lost(scene: Scene, broker: Broker, daemon: subprocess.Popen[bytes], end: float) -> NetworkError | None:
    """Why there is nothing left to wait for."""
    if daemon.poll() is not None:
        return NetworkError("the board's daemon ended", where=str(scene.folder / "daemon.log"))
    if not broker.running:
        return NetworkError("the broker ended", where=str(scene.folder / "mosquitto.log"))
    if time.monotonic() > end:
        return NetworkError(f"the job did not end within {JOB_S:g} s", where=str(scene.folder / "daemon.log"))
    return None


def _follow(story: Story, seen: Seen) -> None:
    if seen.kind == "status" and seen.command_id == story.job_id:
        story.hear_status(seen.body)
    elif seen.kind == "metrics":
        story.hear_metrics(seen.name, seen.body)


def _heat(scene: Scene, story: Story) -> None:
    """A heat wave for the emulated board, so that the governor has something to do."""
    write_atomic(runtime_folder(scene.folder / "state", {}) / "board" / "inject.json", json.dumps(HEAT).encode())
    story.heated(HEAT["seconds"])


def _daemon_rss(pid: int) -> int | None:
    """Resident size of the daemon right now, in bytes."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _finish(options: argparse.Namespace, console: Console, scene: Scene, story: Story, wall_s: float) -> int:
    picture = scene.folder / "job.svg"
    write_atomic(picture, chart_of(story).encode(), 0o644)
    write_atomic(scene.folder / "result.json", json.dumps(story.status_body, indent=2).encode() + b"\n", 0o644)
    code = exit_code([of_status(story.status)])
    if options.json:
        say_json({**story.status_body, "wall_s": wall_s, "chart": str(picture)})
        return code
    if code:
        reason = story.status_body.get("reason")
        console.print(f"[red]{story.status}[/]: {reason}; see {os.path.relpath(scene.folder / 'daemon.log')}")
        return code
    console.print(table_of(story, wall_s))
    console.print(f"chart: {os.path.relpath(picture)}")
    config, sample = os.path.relpath(scene.config), os.path.relpath(scene.sample)
    console.print(f"try the tuned model:  {_program()} predict --config {config} {sample}", soft_wrap=True)
    return code


def _program() -> str:
    """How this very program was started, as a person would type it."""
    program = Path(sys.argv[0])
    return (
        os.path.relpath(program) if program.name == "temperd" else f"{os.path.relpath(sys.executable)} -m service.cli"
    )
