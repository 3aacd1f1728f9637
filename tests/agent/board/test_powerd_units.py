"""The units of temperd-powerd, judged by systemd's own tools where they are installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.board import powerd
from agent.board.powerd_server import MAX_CONNECTIONS
from service.config import Board

ROOT = Path(__file__).parents[3]
UNITS = ROOT / "packaging/systemd"
SERVICE, SOCKET = UNITS / "temperd-powerd.service", UNITS / "temperd-powerd.socket"
EXPOSURE_TENTHS = 15  # of 100; the rest is root itself, its devices and the shared root folder
analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if match := re.match(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


@analyze
def test_units_verify(tmp_path: Path) -> None:
    """With this interpreter in the place of the installed one, which verify wants to see."""
    for unit in (SERVICE, SOCKET):
        text = unit.read_text().replace("/opt/temperd/bin/python", sys.executable)
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / unit.name) for unit in (SERVICE, SOCKET))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@analyze
def test_exposure_is_small() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_TENTHS}", str(SERVICE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level" in done.stdout


def test_the_program_understands_the_units_command_lines() -> None:
    commands = settings(SERVICE)
    for line in (*commands["ExecStart"], *commands["ExecStopPost"]):
        interpreter, isolated, module_option, module, *options = line.split()
        assert (isolated, module_option, module) == ("-I", "-m", "agent.board.powerd")
        assert interpreter == "/opt/temperd/bin/python"
        powerd._parser().parse_args(options)


def test_what_the_units_and_the_programs_agree_on() -> None:
    service, sock = settings(SERVICE), settings(SOCKET)
    assert sock["ListenSequentialPacket"] == [Board().powerd]
    assert [f"/run/{name}" for name in service["RuntimeDirectory"]] == [powerd.RUNTIME_FOLDER]
    assert service["RuntimeDirectoryPreserve"] == ["yes"]  # else systemd removes the undo file of a killed helper
    assert int(service["WatchdogSec"][0]) > 2 * powerd.TURN_S
    assert int(sock["Backlog"][0]) >= MAX_CONNECTIONS
    assert f"--allow-group {sock['SocketGroup'][0]}" in service["ExecStart"][0]
