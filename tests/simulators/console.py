"""The console as a process of its own, on a free loopback port, with a user of each role."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.simulators.mosquitto import free_port

ROOT = Path(__file__).parents[2]
START_S, STOP_S = 30.0, 20.0
PASSWORD = "a long and quiet river"
ROLES = ("viewer", "operator", "owner")


class ConsoleProcess:
    """`temperd console`; everything it keeps lies below `folder`.

    Args:
        folder: of the console.
        broker: port of the broker on loopback.
        key: file of the console key.
        options: more words for the command line.
    """

    def __init__(self, folder: Path, broker: int, *, key: Path | None = None, options: tuple[str, ...] = ()) -> None:
        self.folder, self.port = folder, free_port()
        self.state, self.store, self.fleet = folder / "state", folder / "store.sqlite", folder / "fleet.sqlite"
        folder.mkdir(exist_ok=True, parents=True)
        self._words = [
            *("--broker", f"127.0.0.1:{broker}", "--state", str(self.state), "--store", str(self.store)),
            *("--fleet-state", str(self.fleet), "--listen", f"127.0.0.1:{self.port}"),
            *(("--key", str(key)) if key else ()),
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the running console."""
        assert self._process is not None
        return self._process.pid

    def add_users(self) -> None:
        """One of each role, named as the role."""
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o600)
        for role in ROLES:
            words = ("user", "add", role, "--role", role, "--password-file", str(secret), "--state", str(self.state))
            subprocess.run(self._command(*words), check=True, env=_environment(), timeout=60, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "console.log").open("ab") as log:
            self._process = subprocess.Popen(self._command(*self._words), stdout=log, stderr=log, env=_environment())
        end = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < end, f"the console does not answer\n{self.log()}"
            time.sleep(0.05)

    def log(self) -> str:
        """What it printed."""
        return (self.folder / "console.log").read_text("utf-8")

    def kill(self) -> None:
        """As a power cut."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """End it in good order; its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=STOP_S)

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "service.cli", "console", *words]

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, urllib.error.URLError):
            return bool(urllib.request.urlopen(f"{self.url}/healthz", timeout=2).status == 200)  # noqa: S310 - our own
        return False


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
