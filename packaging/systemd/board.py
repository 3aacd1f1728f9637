"""The board that was booted: its daemon, its jobs, and what the kernel shows and gives it."""
# ruff: noqa: INP001 - beside the units that it serves, in no package

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from machine import UNIT, Machine, until
from world import EMULATED, HARDWARE, KEY, SPEC

from service.journal import JobRecord, Journal

HERE = Path(__file__).parent
STATE, DROPINS = "var/lib/temperd", "etc/systemd/system/temperd.service.d"
LIMIT_BYTES = 64 << 10  # of new memory: what a worker asks for within a few steps
USEC = 1e6


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
