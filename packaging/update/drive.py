"""Takes an installed temperd through an update that stays and one that must be left; test.sh makes its world."""
# ruff: noqa: INP001, S603, T201 - a program beside what it tries, in no package; it starts our own programs and tells

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from agent.publish_release import publish_release
from agent.repository import Publisher, utc_now
from service.commands import sign_command
from tests.simulators.fleet import World

PROJECT = Path(__file__).resolve().parents[2]
TEMPERD = "/usr/bin/temperd"
CONFIG = "/board/temperd.toml"
ENDS = ("succeeded", "failed", "rolled_back", "rejected")
MOST_S = 300.0  # for one update on a machine that others use too
GOOD, BAD = "9.0.0", "9.0.1"


class Installed:
    """A root file system with temperd's package in it, and a publisher outside."""

    def __init__(self, root: Path, pins: Path) -> None:
        self.root, self.pins = root, pins
        self.starts, self.closing = 0, threading.Event()
        (root / "board").mkdir()
        self.world = World(root / "board")
        folder = self.world.folder
        self.publisher = Publisher.create(folder / "repository", folder / "publisher-keys", utc_now)
        shutil.copy(self.publisher.root_path, folder / "root.json")

    def publish(self, version: str, changes: dict[str, str]) -> None:
        """Build a release of this source with its compiled kernels, as another version, and sign it."""
        source = self.root.parent / version
        for name in ("agent", "policies", "service"):
            shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(PROJECT / name, source / name)
        for name, place in (("pyproject.toml", "version"), ("agent/__init__.py", "__version__")):
            text = (source / name).read_text()
            (source / name).write_text(re.sub(rf'^{place} = ".*"$', f'{place} = "{version}"', text, flags=re.MULTILINE))
        for name, text in changes.items():
            (source / name).write_text(text)
        words = ["release", "build", "--json", "--out", source / "dist", "--source", source, "--against", self.pins]
        python = next((self.root / "opt/temperd/lib").glob("python3.*")).name.removeprefix("python")
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", *words, "--for-python", python], capture_output=True, check=True
        )
        told = json.loads(done.stdout)
        print(f"  {version}: {told['length']} bytes, {told['unpacked_length']} unpacked, kernels: {told['kernels']}")
        publish_release(self.publisher, Path(told["file"]))

    def start(self) -> None:
        """Start it, and from then on again whenever it ends, as the unit does."""
        self.world.broker.start()
        self.world.listen()
        self._begin()
        self.world.wait(lambda: self.world.daemon.poll() is not None or b" ready " in self.world.log())
        threading.Thread(target=self._keep, daemon=True).start()

    def _begin(self) -> None:
        log = (self.world.folder / "daemon.log").open("ab")
        command = ["chroot", str(self.root), TEMPERD, "run", "--config", CONFIG]
        self.world.daemon = subprocess.Popen(command, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})

    def _keep(self) -> None:
        while True:
            self.world.daemon.wait()
            if self.closing.is_set():
                return
            self.starts += 1
            self._begin()

    def close(self) -> None:
        """End everything."""
        self.closing.set()
        self.world.close()

    def update(self, version: str) -> dict[str, Any]:
        """Ask for it as an owner; how it ended."""
        request = self.world.request("update-agent", {"version": version, "window_s": 10.0})
        envelope = sign_command(request, self.world.console_key)
        return self.world.send_envelope("update-agent", request.id, envelope, until=ENDS, seconds=MOST_S)

    def runs(self) -> str:
        """What `temperd status` says first of the release."""
        command = ["chroot", str(self.root), TEMPERD, "status", "--json", "--config", CONFIG]
        view = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return f"{view['agent']['version']} {view['agent']['slot']}"


def main(root: str, pins: str) -> int:
    """The whole way."""
    board = Installed(Path(root), Path(pins))
    try:
        board.publish(GOOD, {})
        board.start()
        good = board.update(GOOD)
        assert good["status"] == "succeeded", good
        assert board.runs() == f"{GOOD} a"
        assert board.starts == 0  # it became the new release in the same process
        print(f"     ok   {GOOD} is taken, tried and stays; downtime {good['result']['downtime_s']:.2f} s")
        board.publish(BAD, {"service/daemon.py": 'raise SystemExit("this release cannot start")\n'})
        bad = board.update(BAD)
        assert (bad["status"], bad["reason_code"]) == ("rolled_back", "start-failed"), bad
        assert board.runs() == f"{GOOD} a"
        again = board.update(BAD)
        assert (again["status"], again["reason_code"]) == ("failed", "release-refused"), again
        print(f"     ok   {BAD} ended {board.starts} times, is left for {GOOD}, and is not tried again")
    except BaseException:
        print(board.world.log().decode(errors="replace")[-6000:])
        raise
    finally:
        board.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
