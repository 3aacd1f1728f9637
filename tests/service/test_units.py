"""The daemon's unit, judged by systemd's own tools and held against what the daemon itself says.

What it does under a real systemd is tried by `make systemd-test`.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.keys_stored import CREDENTIAL
from service import launch
from service.cli import EXIT_CONFIG
from service.config import Device
from service.daemon import TICK_S
from service.endings import STOP_GRACE_S
from service.live import SYSTEM_RUNTIME
from tests.simulators.fleet import World

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "packaging/systemd"
SERVICE, EXAMPLES = UNITS / "temperd.service", sorted((UNITS / "examples").glob("*.conf"))
ALL_UNITS = sorted([*UNITS.glob("*.service"), *UNITS.glob("*.socket")])
SERVICES = sorted(UNITS.glob("*.service"))
EXPOSURE_TENTHS = 15  # of 100; the network, the clock's state and the workers' niceness are what remains
PYTHON = "/opt/temperd/bin/python"
PATIENCE_S = 60.0
analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text("utf-8").splitlines():
        if match := re.match(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def analyzed(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False, timeout=PATIENCE_S)


def laid_out(folder: Path) -> list[str]:
    """The units in a folder, with this interpreter in the place of the installed one, which verify wants to see."""
    for unit in ALL_UNITS:
        (folder / unit.name).write_text(unit.read_text("utf-8").replace(PYTHON, sys.executable), "utf-8")
    return [str(folder / unit.name) for unit in ALL_UNITS]


@analyze
@pytest.mark.parametrize("dropins", [[], EXAMPLES], ids=["alone", "with every drop-in"])
def test_verify_finds_nothing(tmp_path: Path, dropins: list[Path]) -> None:
    units = laid_out(tmp_path)
    place = tmp_path / "temperd.service.d"
    place.mkdir()
    for example in dropins:
        shutil.copy(example, place)
    done = analyzed("verify", *units)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@analyze
def test_verify_finds_what_is_wrong(tmp_path: Path) -> None:
    laid_out(tmp_path)
    unit = tmp_path / SERVICE.name
    unit.write_text(unit.read_text("utf-8").replace("WatchdogSec=", "WatchdogSecs="), "utf-8")
    assert "WatchdogSecs" in analyzed("verify", str(unit)).stderr


@analyze
@pytest.mark.parametrize("unit", SERVICES, ids=lambda path: path.stem)
def test_exposure_is_small(unit: Path) -> None:
    done = analyzed("security", "--offline=true", f"--threshold={EXPOSURE_TENTHS}", str(unit))
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level" in done.stdout


def test_what_the_unit_and_the_daemon_agree_on() -> None:
    unit = settings(SERVICE)
    assert unit["ExecStart"] == [f"{PYTHON} -I -m {launch.__name__} run"]
    assert unit["RestartPreventExitStatus"] == [str(EXIT_CONFIG)]
    assert [f"/var/lib/{name}" for name in unit["StateDirectory"]] == [Device("x").state_dir]
    assert [f"/run/{name}" for name in unit["RuntimeDirectory"]] == [str(SYSTEM_RUNTIME)]
    assert unit["LoadCredential"] == [CREDENTIAL]
    assert unit["StartLimitIntervalSec"] == ["0"]  # never dead for ever
    assert unit["User"] == unit["Group"] == settings(UNITS / "temperd-powerd.socket")["SocketGroup"]
    assert f"u {unit['User'][0]} " in (UNITS / "temperd.sysusers").read_text("utf-8")


def test_times_of_the_unit_leave_the_daemon_its_own() -> None:
    unit = settings(SERVICE)
    assert seconds(unit["WatchdogSec"][0]) > 10 * TICK_S
    assert seconds(unit["WatchdogSec"][0]) > 2 * launch.PAUSE_STEP_S
    assert seconds(unit["TimeoutStopSec"][0]) > 2 * STOP_GRACE_S
    assert unit["KillMode"] == ["mixed"]  # a SIGTERM to the worker would cost it its checkpoint


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """Hears what the daemon tells its service manager."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(PATIENCE_S)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return manager


def test_a_daemon_that_hangs_feeds_no_watchdog_and_comes_back_after_its_kill(
    tmp_path: Path, service: socket.socket
) -> None:
    """As systemd does it: the watchdog's signal, then a new start."""
    with service:
        made = World(tmp_path)
        try:
            made.publish()
            made.start()
            assert service.recv(64) == b"READY=1"
            assert service.recv(64) == b"WATCHDOG=1"
            hang(made, service)
            made.daemon.send_signal(signal.SIGABRT)
            made.daemon.send_signal(signal.SIGCONT)
            assert made.daemon.wait(PATIENCE_S) == -signal.SIGABRT
            until(lambda: not emulated_boards(tmp_path))  # else two would write one tree
            made.start()
            assert service.recv(64) == b"READY=1"
        finally:
            made.close()


def hang(world: World, service: socket.socket) -> None:
    """Stop the daemon where it is; what it said before is read."""
    world.daemon.send_signal(signal.SIGSTOP)
    until(lambda: Path(f"/proc/{world.daemon.pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] == "T")
    service.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while service.recv(64):
            pass
    service.settimeout(1.5 * TICK_S)
    with pytest.raises(TimeoutError):
        service.recv(64)
    service.settimeout(PATIENCE_S)


def emulated_boards(folder: Path) -> list[Path]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            command = (entry / "cmdline").read_bytes()
            found += [entry] if b"agent.board.emulated" in command and str(folder).encode() in command else []
    return found


def until(true: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < PATIENCE_S
        time.sleep(0.01)
