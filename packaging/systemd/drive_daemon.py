"""Boots a root file system with temperd's package in it and tries its units by what they do; exits 1 where one fails.

drive_daemon.py ROOT PACKAGE.deb SCRATCH
"""
# ruff: noqa: INP001 - a program beside its units, in no package

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from machine import UNIT, Machine, holds, say, until
from world import CREDENTIAL, EMULATED, HARDWARE, KEY, LONG_SPEC, PORT, SPEC, lay_down

from service.journal import JobRecord, Journal

HERE = Path(__file__).parent
READY_MOST_S, STARTS = 2.0, 10  # what is promised, and how often it is tried: others may work on this machine
HELPER = "temperd-powerd.service"
EXPOSURE_TENTHS = 15  # as in tests/service/test_units.py, by this Debian's systemd
STATE, DROPINS = "var/lib/temperd", "etc/systemd/system/temperd.service.d"
LIMIT_BYTES = 64 << 10  # of new memory: what a worker asks for within a few steps
FULL_MIB = 2
CAP, FAN = "/sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq", "/sys/class/thermal/cooling_device0/cur_state"
FOUND, HOT_CELSIUS = ("1800000", "0"), 72  # beyond the policy's first stage, where work goes on
USEC = 1e6
WITHOUT = {
    "CapEff": "0" * 16,
    "CapPrm": "0" * 16,
    "CapBnd": "0" * 16,
    "CapAmb": "0" * 16,
    "NoNewPrivs": "1",
    "Seccomp": "2",
}


class Board:
    """The board that was booted."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.root = machine, machine.root

    def dropin(self, name: str, text: str = "") -> None:
        """Give the unit a drop-in; without text take it away."""
        path = self.root / DROPINS / f"{name}.conf"
        path.parent.mkdir(parents=True, exist_ok=True)
        if text:
            path.write_text(text)
        else:
            path.unlink()
        self.machine.run("systemctl", "daemon-reload")

    def emulate(self, *, yes: bool) -> None:
        """Have the daemon emulate a board, or read the one it runs on; it is stopped for that."""
        config = self.root / "etc/temperd/temperd.toml"
        text = config.read_text("utf-8")
        if (EMULATED in text) == yes:
            return
        self.machine.run("systemctl", "stop", UNIT)
        config.write_text(text.replace(*((HARDWARE, EMULATED) if yes else (EMULATED, HARDWARE))), "utf-8")
        self.dropin("emulated", (HERE / "examples/emulated.conf").read_text("utf-8") if yes else "")

    def active(self) -> bool:
        """Whether the daemon is ready."""
        return self.machine.shown("ActiveState") == "active"

    def restarts(self) -> int:
        """How often systemd started it again by itself."""
        return int(self.machine.shown("NRestarts"))

    def start(self) -> float:
        """Start it anew; seconds from the start of its process until it was ready."""
        self.machine.run("systemctl", "restart", UNIT)
        begun, ready = (
            int(self.machine.shown(f"{name}TimestampMonotonic")) for name in ("ExecMainStart", "ActiveEnter")
        )
        return (ready - begun) / USEC

    def works(self) -> None:
        """Have a daemon at work, with an emulated board that heats up and slows down."""
        self.emulate(yes=True)
        if not self.active():
            self.start()

    def send(self, *words: str) -> str:
        """Send a command as alice; its id."""
        told = self.machine.run(
            "/opt/temperd/bin/temperd",
            "fleet",
            "send",
            "board-1",
            *words,
            "--key",
            KEY,
            "--broker",
            "127.0.0.1",
            "--json",
        )
        return str(json.loads(told)["id"])

    def fine_tune(self) -> str:
        """Have it at work on a job of some seconds; the job's id."""
        self.works()
        job = self.send("fine-tune", SPEC)
        until("a job trains", lambda: self.trains(job))
        return job

    def job(self, job_id: str) -> JobRecord | None:
        """A job as the journal has it."""
        journal = Journal.peek(self.root / STATE / "journal.sqlite")
        try:
            return journal.job(job_id)
        finally:
            journal.close()

    def state(self, job_id: str) -> str:
        """Where a job stands."""
        record = self.job(job_id)
        return record.standing.state if record else ""

    def worker(self) -> int:
        """The worker at work, as this machine numbers it; 0 where there is none."""
        return self.machine.find("-m agent.worker")

    def trains(self, job_id: str) -> bool:
        """Whether the job is in training and its worker is there."""
        return self.state(job_id) == "TRAINING" and self.worker() != 0


# --- what is tried, in this order ------------------------------------------------------------------------------------


def judged(board: Board) -> None:
    """What the systemd of this Debian thinks of the units."""
    version = board.machine.run("systemctl", "--version").split()[1]
    paths = [board.machine.shown("FragmentPath", unit) for unit in (UNIT, HELPER, "temperd-powerd.socket")]
    said = board.machine.run("systemd-analyze", "verify", *paths, told=True)
    holds(f"systemd {version} finds nothing wrong with the units {said}", true=not said)
    for path in paths[:2]:
        told = board.machine.run(
            "systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_TENTHS}", path
        )
        say(f"         {told.strip().splitlines()[-1].removeprefix('→ ')}")


def missing_key(board: Board) -> None:
    """Fault 45: it says what is missing, ends with 78 and is left in peace until somebody has brought the key."""
    kept = board.root / CREDENTIAL
    kept.rename(kept.with_suffix(".away"))
    mark = board.machine.mark()
    board.machine.run("systemctl", "start", UNIT, check=False)
    told = board.machine.journal(since=mark)
    holds("key missing: exit code 78", true=board.machine.shown("ExecMainStatus") == "78")
    line = next((line for line in told.splitlines() if line.startswith("temperd: ")), "")
    holds(f"key missing, the journal says: {line}", true="no identity yet" in line and "temperd keys init" in line)
    quiet = (board.machine.shown("ActiveState"), board.restarts()) == ("failed", 0)
    holds("key missing: it is not started again", true=quiet)
    kept.with_suffix(".away").rename(kept)


def starts(board: Board) -> None:
    """Readiness, and how long it takes."""
    board.machine.run("systemctl", "reset-failed", UNIT, check=False)
    took: list[float] = []
    while len(took) < STARTS and min(took, default=READY_MOST_S + 1) > READY_MOST_S:
        took.append(board.start())
    holds(f"from start to READY: {', '.join(f'{s:.2f} s' for s in took)}", true=min(took) <= READY_MOST_S)
    holds("READY comes from its main process", true=board.machine.shown("NotifyAccess") == "main" and board.active())


def credentials(board: Board) -> None:
    """The identity comes from systemd, in plain or encrypted, and lies nowhere in the state."""
    plain, locked = f"/{CREDENTIAL}", "/etc/credstore.encrypted/temperd-identity"
    holds("the identity is a credential alone", true=board.active() and not (board.root / STATE / "keys").exists())
    board.machine.shell(
        f"install -d -m 0700 {Path(locked).parent}; "
        f"systemd-creds encrypt --with-key=host --name=temperd-identity {plain} {locked} 2>&1; mv {plain} {plain}.away"
    )
    board.dropin("identity", (HERE / "examples/identity.conf").read_text("utf-8"))
    board.start()
    given = "/run/credentials/temperd.service/temperd-identity"
    same = board.machine.shell(f"cmp {given} {plain}.away && stat -c %a {Path(given).parent}")
    holds(f"encrypted: systemd hands it over in memory, its folder has mode {same.strip()}", true=board.active())
    board.dropin("identity")
    board.machine.shell(
        f"rm {locked}; mv {plain}.away {plain}"
    )  # without the drop-in it would come as it is, encrypted


def sandbox(board: Board) -> None:
    """What the unit's processes may and may not do."""
    board.emulate(yes=False)
    shutil.copy(HERE / "probe.py", board.root / "opt/probe.py")
    board.dropin("probe", "[Service]\nExecStartPre=/bin/sh -c 'python3 -I /opt/probe.py >/run/temperd/probe.json'\n")
    board.start()
    found = json.loads(board.machine.run("cat", "/run/temperd/probe.json"))
    board.dropin("probe")
    went = [name for name, answer in found["refused"].items() if answer is True]
    holds(f"sandbox: {len(found['refused'])} trespasses are refused {went or ''}", true=not went)
    failed = {name: answer for name, answer in found["allowed"].items() if answer is not True}
    holds(f"sandbox: {len(found['allowed'])} things that work needs go {failed or ''}", true=not failed)
    holds(f"sandbox: {found['rights']}", true=found["rights"] == WITHOUT)


def training(board: Board) -> None:
    """The runtime, its threads and its niceness under the sandbox, on an emulated board."""
    job = board.fine_tune()
    status = Path(f"/proc/{board.worker()}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    holds("the worker gives way: niceness 10", true=status[16] == "10")
    until("and succeeds under the sandbox", lambda: board.state(job) == "SUCCEEDED")


def worker_dies(board: Board) -> None:
    """Fault 43: what takes a worker away takes nothing with it."""
    job, before = board.fine_tune(), board.machine.pid()
    worker = board.worker()
    with little_memory(worker) as killed:
        until("out of memory: the kernel kills the worker", lambda: killed() or not Path(f"/proc/{worker}").exists())
    until("and another one ends the job", lambda: board.state(job) == "SUCCEEDED")
    record = board.job(job)
    holds("in a second attempt", true=record is not None and record.standing.attempt > 1)
    alone = board.active() and (board.machine.pid(), board.restarts()) == (before, 0)
    holds("the daemon never ended", true=alone and board.machine.shown("OOMPolicy") == "continue")


@contextlib.contextmanager
def little_memory(pid: int) -> Iterator[object]:
    """A memory group of the kernel for one process, too small for it; yields how often the kernel killed in it."""
    old, new = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    parent = old if old.is_dir() else new
    group = parent / f"temperd-test-{os.getpid()}"
    bound, counter = (
        ("memory.limit_in_bytes", "memory.oom_control") if old.is_dir() else ("memory.max", "memory.events")
    )
    group.mkdir()
    try:
        # What it has stays where it was counted; with the next pages that it asks for it is over the limit.
        (group / bound).write_text(str(LIMIT_BYTES))
        (group / "cgroup.procs").write_text(str(pid))
        yield lambda: int((group / counter).read_text().split("oom_kill ")[1].split()[0])
    finally:
        until("its memory group is empty", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def watchdog(board: Board) -> None:
    """Fault 44: a daemon that hangs is ended and started again, and its job goes on."""
    job = board.fine_tune()
    before, mark = board.machine.pid(), board.machine.mark()
    board.machine.signal("STOP")
    until("hung: the watchdog ends it", lambda: board.machine.pid() != before)
    until("and it is ready again", board.active)
    told = board.machine.run("journalctl", "--no-pager", "-o", "cat", f"--after-cursor={mark}", "-u", UNIT)
    holds("by SIGABRT, once", true="Watchdog timeout" in told and "status=6/ABRT" in told and board.restarts() == 1)
    until("and its job ends well", lambda: board.state(job) == "SUCCEEDED")
    holds("no core of it is left", true=not list(board.root.glob("var/lib/systemd/coredump/*")))


def stops(board: Board) -> None:
    """A stop is a clean one in the midst of a job, which goes on afterwards."""
    job = board.fine_tune()
    took = until("stopped in the midst of it", lambda: board.machine.run("systemctl", "stop", UNIT) is not None)
    clean = board.machine.shown("Result") == "success" and board.machine.shown("ExecMainStatus") == "0"
    holds(f"cleanly, within {took:.1f} s, and nothing runs on", true=clean and board.worker() == 0)
    holds("its job waits", true=board.state(job) in {"PAUSED", "DEFERRED", "SUSPENDED", "TRAINING"})
    board.start()
    until("started again: the job ends well", lambda: board.state(job) == "SUCCEEDED")


def reload(board: Board) -> None:
    """`systemctl reload` reads the policy, and the daemon goes on."""
    board.works()
    before, mark = board.machine.pid(), board.machine.mark()
    path = board.root / "etc/temperd/policy.toml"
    path.write_text(path.read_text("utf-8").replace('name = "tried"', 'name = "tried-again"'), "utf-8")
    board.machine.run("systemctl", "reload", UNIT)
    until("reload: the new policy holds", lambda: "tried-again" in board.machine.journal(since=mark))
    holds("in the same process", true=board.machine.pid() == before)


def full_disk(board: Board) -> None:
    """It comes back by itself once there is room."""
    board.machine.run("systemctl", "stop", UNIT)
    owner = board.machine.shell("id -u temperd").strip()
    state = f"/{STATE}"
    board.machine.shell(f"mount -t tmpfs -o size={FULL_MIB}m,mode=0700,uid={owner} tmpfs {state}; chmod 0700 {state}")
    board.machine.shell(f"head -c {FULL_MIB}M /dev/zero >{state}/rubbish || true")
    board.machine.run("systemctl", "start", UNIT, check=False)
    if board.active():
        say("         a full disk does not keep it from starting")
    until("full disk: it is tried again and again", lambda: board.active() or board.restarts() > 1)
    board.machine.shell(f"rm {state}/rubbish")
    until("room again: it is ready by itself", board.active)
    board.machine.run("systemctl", "stop", UNIT)
    board.machine.run("umount", state)


@contextlib.contextmanager
def levers(board: Board) -> Iterator[Callable[[int], None]]:
    """The kernel's files of a board with a clock and a fan, made of plain files; yields what heats it to so many °C."""
    board.machine.shell(
        "for place in devices/system/cpu/cpufreq devices/virtual class/thermal; do"
        " mount -t tmpfs tmpfs /sys/$place; done\n"
        "cap=/sys/devices/system/cpu/cpufreq/policy0 fan=/sys/devices/virtual/thermal/cooling_device0"
        " zone=/sys/devices/virtual/thermal/thermal_zone0\n"
        "mkdir -p $cap $fan $zone\n"
        "echo 600000 1000000 1800000 >$cap/scaling_available_frequencies\n"
        "echo 1800000 | tee $cap/scaling_max_freq $cap/cpuinfo_max_freq $cap/scaling_cur_freq >/dev/null\n"
        "echo 600000 | tee $cap/scaling_min_freq $cap/cpuinfo_min_freq >/dev/null\n"
        "echo 0 1 2 3 >$cap/related_cpus\n"
        "echo 4 >$fan/max_state; echo 0 >$fan/cur_state; echo pwm-fan >$fan/type\n"
        "echo cpu-thermal >$zone/type; echo 45000 >$zone/temp\n"
        "for node in cooling_device0 thermal_zone0; do"
        " ln -s ../../devices/virtual/thermal/$node /sys/class/thermal/$node; done\n"
    )
    over, wanted = threading.Event(), [45]

    def tremble() -> None:
        """As a real sensor does: one that says the same for long is not believed."""
        temperature = Path(f"/proc/{board.machine.init}/root/sys/devices/virtual/thermal/thermal_zone0/temp")
        for more in itertools.cycle((0, 500)):
            temperature.write_text(f"{wanted[0] * 1000 + more}\n")
            if over.wait(0.5):
                return

    keeper = threading.Thread(target=tremble)
    keeper.start()
    try:
        yield lambda celsius: wanted.__setitem__(0, celsius)
    finally:
        over.set()
        keeper.join()


def helper(board: Board) -> None:
    """The daemon has limits held by temperd-powerd, and they come back whatever ends."""

    def values() -> tuple[str, ...]:
        return tuple(board.machine.run("cat", CAP, FAN).split())

    board.emulate(yes=False)
    board.machine.run("systemctl", "stop", UNIT, HELPER)
    with levers(board) as heat:
        holds(
            "helper: it does not run before it is needed", true=board.machine.shown("ActiveState", HELPER) == "inactive"
        )
        board.start()
        job = board.send("fine-tune", LONG_SPEC)
        until("a long job trains", lambda: board.trains(job))
        heat(HOT_CELSIUS)
        until("helper: it is hot, and the daemon has clock and fan limited", lambda: values() != FOUND)
        held = values()
        holds(f"helper: {held} by a process that the socket started", true=board.machine.pid(HELPER))
        board.machine.signal("KILL", HELPER)
        until("helper killed with -9: limits come back", lambda: values() == FOUND)
        until("and hold again", lambda: values() == held)
        board.machine.signal("KILL")
        until("daemon killed with -9: limits come back", lambda: values() == FOUND)
        until("it is started again, and limits hold again", lambda: values() == held)
        board.machine.run("systemctl", "stop", UNIT)
        until("daemon stopped: limits are as found", lambda: values() == FOUND)


TRIED = (
    judged,
    missing_key,
    starts,
    credentials,
    sandbox,
    training,
    worker_dies,
    watchdog,
    stops,
    reload,
    full_disk,
    helper,
)


def install(machine: Machine, package: Path) -> None:
    """The package, as its owner installs it; whatever it started ends."""
    shutil.copy(package, machine.root / "root/temperd.deb")
    machine.run("dpkg", "--install", "/root/temperd.deb", told=True)
    machine.run("systemctl", "stop", UNIT, check=False)
    shutil.rmtree(machine.root / STATE, ignore_errors=True)
    (machine.root / "root/temperd.deb").unlink()


def main(root: Path, package: Path, scratch: Path, *names: str) -> None:
    """Everything, in order, or the trials with these names."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    machine = Machine(root, scratch / "console.log")
    try:
        machine.boot()
        install(machine, package)
        lay_down(root, scratch, 'name = "tried"\n')
        board = Board(machine)
        machine.run("systemctl", "start", "mosquitto")
        machine.run(
            "systemd-run", "--quiet", "python3", "-m", "http.server", "--directory", "/srv/repository", str(PORT)
        )
        for trial in TRIED:
            if not names or trial.__name__ in names:
                trial(board)
    finally:
        machine.stop()


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:4]), *sys.argv[4:])
