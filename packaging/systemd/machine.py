"""A Debian root file system booted with its own systemd by systemd-nspawn, without a network."""
# ruff: noqa: INP001 - beside the units that it tries, in no package

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 120.0  # for anything to become true: the machine may be a loaded one
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UNIT = "temperd.service"


class Machine:
    """One booted root file system.

    Args:
        root: its folder.
        log: what the console says goes there.
    """

    def __init__(self, root: Path, log: Path) -> None:
        self.root, self._log = root, log
        self._nspawn: subprocess.Popen[bytes] | None = None
        self.init = 0
        """Its first process, as this machine numbers it."""

    def boot(self) -> None:
        """Start it and wait until systemd has done its work; failed units are no hindrance."""
        # Its own view of the mounts: nspawn needs a /run/systemd, and leaves none behind here.
        shell = (
            "mkdir -p /run/systemd && mount -t tmpfs tmpfs /run/systemd && "
            f"exec env SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --directory={self.root} --boot "
            "--register=no --keep-unit --console=pipe --private-network --resolv-conf=off --timezone=off "
            # nspawn takes them from all, to keep its clock; the unit's own filter is to be tried.
            "'--system-call-filter=adjtimex clock_adjtime'"
        )
        with self._log.open("ab") as log:
            self._nspawn = subprocess.Popen(  # noqa: S603 - the words are those of the test
                ["unshare", "--mount", "--propagation", "private", "bash", "-c", shell],  # noqa: S607 - root's own tools
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until("the machine boots", self._booted)

    def stop(self) -> None:
        """End it at once, with all that runs in it."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            if self.init:
                os.kill(self.init, signal.SIGKILL)
            try:
                self._nspawn.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._nspawn.pid, signal.SIGKILL)
                self._nspawn.wait()

    def _booted(self) -> bool:
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise SystemExit(f"nspawn ended:\n{self._log.read_text('utf-8', 'replace')[-2000:]}")
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text(encoding="ascii")
        for pid in children.split():
            if Path(f"/proc/{pid}/comm").read_text(encoding="ascii").strip() == "systemd":
                self.init = int(pid)
                return self.run("systemctl", "is-system-running", check=False).strip() in {"running", "degraded"}
        return False

    # --- in it -------------------------------------------------------------------------------------------------------

    def run(self, *command: str, check: bool = True, told: bool = False) -> str:
        """What a command says, run as its root.

        Args:
            command: the program and its arguments.
            check: whether its failure is one of the test.
            told: whether its standard error belongs to what it says.
        """
        done = subprocess.run(  # noqa: S603 - the words are those of the test
            ["nsenter", "-t", str(self.init), "-a", "--wd=/", "env", "-i", PATH, *command],  # noqa: S607 - root's own tools
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if told else subprocess.PIPE,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise SystemExit(f"NOT: {' '.join(command)}\n{done.stdout}{done.stderr or ''}{self.journal()[-3000:]}")
        return done.stdout

    def shell(self, script: str) -> str:
        """What a shell script says that is run as its root."""
        return self.run("bash", "-ec", script)

    def shown(self, name: str, unit: str = UNIT) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "-p", name, "--value", unit).strip()

    def pid(self, unit: str = UNIT) -> int:
        """Main process of a unit, as the machine in the container numbers it."""
        return int(self.shown("MainPID", unit))

    def signal(self, name: str, unit: str = UNIT) -> None:
        """Send the main process of a unit a signal."""
        self.run("systemctl", "kill", "--kill-who=main", f"--signal={name}", unit)

    def journal(self, unit: str = UNIT, since: str = "") -> str:
        """What a unit said, after a cursor."""
        after = (f"--after-cursor={since}",) if since else ()
        return self.run("journalctl", "--no-pager", "-o", "cat", *after, "-u", unit, check=False)

    def mark(self) -> str:
        """The cursor of what was said last."""
        self.run("journalctl", "--sync", check=False)
        return self.run("journalctl", "-n", "1", "-o", "cat", "--show-cursor").rpartition("cursor: ")[2].strip()

    def find(self, words: str) -> int:
        """The first process in it with these words in its command line, as this machine numbers it; 0: none."""
        ours = Path(f"/proc/{self.init}/ns/pid").readlink()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                if words.encode() in command and (entry / "ns/pid").readlink() == ours:
                    return int(entry.name)
        return 0


def say(text: str) -> None:
    """One line of the report."""
    print(text, flush=True)  # noqa: T201 - the report is the program's output


def until(what: str, true: Callable[[], object], patience_s: float = PATIENCE_S) -> float:
    """Wait until it is true and say how long that took; exit where it never is."""
    begun = time.monotonic()
    while not true():
        if time.monotonic() - begun > patience_s:
            raise SystemExit(f"NOT: {what}")
        time.sleep(0.05)
    took = time.monotonic() - begun
    say(f"{took:6.1f} s  {what}")
    return took


def holds(what: str, *, true: object) -> None:
    """Say that it is so; exit where it is not."""
    if not true:
        raise SystemExit(f"NOT: {what}")
    say(f"     ok   {what}")
