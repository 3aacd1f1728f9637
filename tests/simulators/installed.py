"""A board on which temperd is installed: the launcher under a service manager, releases in slots, all else as `World`.

The service manager is a thread that starts the launcher again when it has ended, as `Restart=always` does, and a real
notification socket.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.agent_slots import FileFacts, fill_slot, read_standing, stage_folder, write_standing
from policies.trial import Standing, emptied, staged
from policies.trial_standing import Trial
from tests.simulators.fleet import READY_S, ROOT, World

PACKAGES = ("agent", "policies", "service")
EXIT_CONFIG = 78


class ServiceManager:
    """Keeps one program running.

    Args:
        program: its words.
        environment: its environment.
        folder: for the socket and the log.
    """

    def __init__(self, program: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self._program, self._folder = program, folder
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.settimeout(0.2)
        self._environment = {**environment, "NOTIFY_SOCKET": str(folder / "notify")}
        self.codes: list[int] = []
        """Of all programs that ended."""
        self.told: list[str] = []
        """What they notified of."""
        self._stopping = threading.Event()
        self.child: subprocess.Popen[bytes] | None = None
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._keep, self._listen)]

    def start(self) -> None:
        """Start it, for good."""
        for thread in self._threads:
            thread.start()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it for good."""
        self._stopping.set()
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)
            try:
                self.child.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.child.kill()
        for thread in self._threads:
            thread.join(timeout=30)
        self._socket.close()

    @property
    def starts(self) -> int:
        """How often it became ready."""
        return self.told.count("READY=1")

    def _keep(self) -> None:
        with (self._folder / "daemon.log").open("ab") as log:
            while not self._stopping.is_set():
                self.child = subprocess.Popen(self._program, stdout=log, stderr=log, env=dict(self._environment))
                self.codes.append(self.child.wait())
                if self.codes[-1] == EXIT_CONFIG:
                    return

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                self.told += self._socket.recv(4096).decode().splitlines()
            except TimeoutError:
                continue


def stage_release(state: Path, version: str, changes: Mapping[str, str] | None = None) -> str:
    """temperd from this tree as `version`, with some files changed, below `stage`; its digest."""
    stage = stage_folder(state)
    shutil.rmtree(stage, ignore_errors=True)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, stage / "site" / package, ignore=shutil.ignore_patterns("__pycache__"))
    about = {"agent/__init__.py": f'"""temperd."""\n\n__version__ = "{version}"\n', **(changes or {})}
    for name, text in about.items():
        (stage / "site" / name).write_text(text)
    return list_files(stage, version)


def list_files(stage: Path, version: str, python: str = "") -> str:
    """Write `release.json` of what lies below `stage`; its digest."""
    paths = sorted(path for path in (stage / "site").rglob("*") if path.is_file())
    files = {path.relative_to(stage).as_posix(): _facts(path) for path in paths}
    total = sum(one.length for one in files.values())
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    table = {"kind": "agent", "version": version, "arch": "any", "python": python or here, "unpacked_length": total}
    text = json.dumps({**table, "files": {name: asdict(one) for name, one in files.items()}}).encode()
    (stage / "release.json").write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def _facts(path: Path) -> FileFacts:
    data = path.read_bytes()
    return FileFacts(len(data), hashlib.sha256(data).hexdigest())


def put(state: Path, version: str, digest: str, **trial: Any) -> None:
    """Fill the free slot with what is staged, and ask for its trial."""
    ask_trial(state, Trial(fill_free(state, digest), version, digest, **trial))


def fill_free(state: Path, digest: str) -> str:
    """Fill the free slot with what is staged, which takes seconds; which one it is."""
    standing = read_standing(state)[0]
    slot = standing.free_slot
    write_standing(state, emptied(standing, slot))
    fill_slot(state, slot, digest)
    return slot


def ask_trial(state: Path, trial: Trial) -> None:
    """Let a slot that is filled be tried: the daemon leaves within a second."""
    write_standing(state, staged(read_standing(state)[0], trial))


class Installed(World):
    """A world whose daemon is started by the launcher."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self.manager = self._manager()

    def _manager(self) -> ServiceManager:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment.pop("RUNTIME_DIRECTORY", None)
        program = [sys.executable, "-I", "-m", "service.launch", "run", "--config", str(self.config)]
        return ServiceManager(program, environment, self.folder)

    def start(self, program: tuple[str, ...] = ()) -> None:
        """Start it and wait until it is ready."""
        assert not program
        self.listen()
        ready = self.manager.starts
        self.manager.start()
        self.wait(lambda: self.manager.starts > ready, READY_S)

    def close(self) -> None:
        """End everything."""
        self.manager.stop()
        super().close()

    def standing(self) -> Standing:
        """As it lies on the disk."""
        return read_standing(self.state)[0]

    def update(self, version: str, changes: Mapping[str, str] | None = None, **trial: Any) -> None:
        """Put a release into the free slot and let the daemon begin its trial."""
        put(self.state, version, stage_release(self.state, version, changes), **trial)

    def until(self, true: Callable[[Standing], Any], seconds: float = 120.0) -> Standing:
        """The standing for which `true` holds."""
        return self.wait(lambda: true(now := self.standing()) and now, seconds)

    def versions(self) -> list[str]:
        """Of all daemons that became ready, in order."""
        lines = self.log().decode(errors="replace").splitlines()
        return [line.split("version=")[1].split()[0] for line in lines if " ready " in line and "version=" in line]


@contextmanager
def installed(folder: Path, **settings: Any) -> Iterator[Installed]:
    """A board with broker, on which temperd runs as installed."""
    made = Installed(folder, **settings)
    try:
        made.broker.start()
        made.start()
        yield made
    finally:
        made.close()


if __name__ == "__main__":  # by hand: python -m tests.simulators.installed FOLDER
    with installed(Path(sys.argv[1])) as board:
        sys.stdout.write(f"{board.folder}: {board.standing()}\n")
        time.sleep(3600)
