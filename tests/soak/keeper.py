"""Keeps the daemon as systemd does: starts it, hears sd_notify, starts it again when it ends, ends it when it hangs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

WATCHDOG_S = 30.0
RESTART_S = 1.0
MISCONFIGURED = 78  # exit code that systemd's unit does not restart after
POLL_S = 0.05


@dataclass(slots=True)
class Life:
    """From one READY to the end of it; times of the monotonic clock."""

    began: float
    ready: float | None = None
    last: float = 0.0
    """The last sign of the control loop."""
    ended: float | None = None
    why: str = ""


@dataclass(slots=True)
class Keeper:
    """See the module.

    Args:
        command: the daemon.
        folder: of the notify socket and the log.
        environment: of the daemon.
    """

    command: list[str]
    folder: Path
    environment: dict[str, str]
    lives: list[Life] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    why: str = "started"
    """What the next end is put down to."""
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start and keep."""
        self._thread = threading.Thread(target=self._keep)
        self._thread.start()

    def stop(self) -> int | None:
        """End the daemon as systemd does, and keep it no more; its exit code."""
        self._stopping.set()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self._thread is not None
        self._thread.join(60)
        return self.process.returncode if self.process else None

    def kill(self, why: str) -> None:
        """As a power cut."""
        self.why = why
        if self.process is not None:
            self.process.kill()

    @property
    def ready(self) -> bool:
        """Whether a daemon is there and has said so."""
        return bool(self.lives) and self.lives[-1].ready is not None and self.lives[-1].ended is None

    def _keep(self) -> None:
        address = str(self.folder / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            notified.bind(address)
            notified.settimeout(POLL_S)
            while not self._stopping.is_set():
                self._live(notified, address)
                if self.process is not None and self.process.returncode == MISCONFIGURED:
                    return
                self._stopping.wait(RESTART_S)

    def _live(self, notified: socket.socket, address: str) -> None:
        """One process, from its start to its end; an update is another life of the same process."""
        environment = {**self.environment, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        with (self.folder / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)
        self.lives.append(Life(time.monotonic()))
        while self.process.poll() is None:
            self._hear(notified)
            last = self.lives[-1]
            if last.ready and time.monotonic() - last.last > WATCHDOG_S:
                self.why = "watchdog"
                self.process.send_signal(signal.SIGABRT)
                self.process.wait()
        self._end(self.why if self.process.returncode < 0 else f"exit {self.process.returncode}")
        self.why = "ended by itself"

    def _hear(self, notified: socket.socket) -> None:
        try:
            words = notified.recv(4096).decode(errors="replace").split("\n")
        except TimeoutError:
            return
        now, life = time.monotonic(), self.lives[-1]
        if "WATCHDOG=1" in words:
            life.last = now
        if "READY=1" in words:
            if life.ready is not None:  # the same process, another program: an update in place
                self._end("update")
                life = Life(life.last)
                self.lives.append(life)
            life.ready = life.last = now

    def _end(self, why: str) -> None:
        life = self.lives[-1]
        life.ended, life.why = time.monotonic(), why


def clean_environment() -> dict[str, str]:
    """As a unit has it: nothing says where code lies, or where another daemon runs."""
    gone = ("PYTHON", "RUNTIME_DIRECTORY", "NOTIFY_SOCKET")
    return {name: value for name, value in os.environ.items() if not name.startswith(gone)}


def daemon_command(config: Path) -> list[str]:
    """The daemon as the unit starts it."""
    return [sys.executable, "-I", "-m", "service.launch", "run", "--config", str(config)]
