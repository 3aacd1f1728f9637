from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from service.systemd import MAX_STATUS_CHARACTERS, Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_states_arrive(tmp_path: Path, *, abstract: bool) -> None:
    address = f"@temperd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        notifier = Notifier({"NOTIFY_SOCKET": address})
        assert notifier.ready()
        assert notifier.status("training\nREADY=1")
        assert notifier.watchdog()
        assert notifier.stopping()
        got = [manager.recv(1000) for _ in range(4)]
    assert got == [b"READY=1", b"STATUS=training READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_long_status_is_cut(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        Notifier({"NOTIFY_SOCKET": address}).status("x" * 10_000)
        assert len(manager.recv(20_000)) == len("STATUS=") + MAX_STATUS_CHARACTERS


def test_no_manager_is_no_error(tmp_path: Path) -> None:
    assert not Notifier({}).ready()
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "absent")}).ready()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_counts_only_when_it_is_ours(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environ).watchdog_s == seconds
