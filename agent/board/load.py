"""The load of an emulated board: CPU time of the daemon's descendants, and a clock that really slows its workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.board.files import read_text

WORKER_MARK = "agent.worker"
"""Only processes with this in their command line are slowed: never the daemon, a shell or a test runner."""
_STATE, _PARENT, _USER_TICKS, _SYSTEM_TICKS, _START = 0, 1, 11, 12, 19  # /proc/PID/stat after the name, proc(5)


@dataclass(frozen=True, slots=True)
class Task:
    """One process as /proc shows it. Number and start time together are never used again."""

    pid: int
    state: str
    parent: int
    ticks: int
    start: int


def read_task(proc: Path, pid: int) -> Task | None:
    """The process `pid`; `None` when it is gone or dead and not yet reaped."""
    _, _, rest = (read_text(proc / str(pid) / "stat") or "").rpartition(")")
    words = rest.split()
    if len(words) <= _START or words[_STATE] in "ZX":
        return None
    ticks = int(words[_USER_TICKS]) + int(words[_SYSTEM_TICKS])
    return Task(pid, words[_STATE], int(words[_PARENT]), ticks, int(words[_START]))


class WorkerLoad:
    """Descendants of one process.

    Args:
        root_pid: the process whose descendants count; it does not count itself.
        cores: cores of this machine, which stand for the cores of the emulated board.
        proc: where /proc is.
    """

    def __init__(self, root_pid: int, cores: int, proc: Path = Path("/proc")) -> None:
        self._proc, self._cores = proc, cores
        self._root = read_task(proc, root_pid)
        self._ticks: dict[tuple[int, int], int] = {}
        self._workers: list[Task] = []
        self._stopped: set[tuple[int, int]] = set()

    def alive(self) -> bool:
        """Whether the process is still there (and not another one with its number)."""
        return self._root is not None and self._same(self._root) is not None

    def look(self) -> None:
        """Find the descendants there are now."""
        tasks = self._descendants()
        self._ticks = {(t.pid, t.start): self._ticks.get((t.pid, t.start), t.ticks) for t in tasks}
        self._workers = [task for task in tasks if self._is_worker(task.pid)]

    def resume_left_stopped(self) -> None:
        """Let workers go on that an emulator left stopped when it was killed."""
        self._stopped |= {(task.pid, task.start) for task in self._workers if task.state == "T"}
        self.resume()

    def utilisation(self, span_s: float) -> float:
        """Share of all cores, 0..1, that the descendants kept busy since the last call, `span_s` seconds ago."""
        used = 0
        for (pid, start), before in tuple(self._ticks.items()):
            task = read_task(self._proc, pid)
            if task is not None and task.start == start:
                used += max(task.ticks - before, 0)
                self._ticks[pid, start] = task.ticks
        seconds = used / os.sysconf("SC_CLK_TCK")
        return min(seconds / (span_s * self._cores), 1.0) if span_s > 0 else 0.0

    def stop(self) -> None:
        """Stop the workers, until `resume`."""
        for task in self._workers:
            if self._same(task) is not None and _signal(task.pid, signal.SIGSTOP):
                self._stopped.add((task.pid, task.start))

    def resume(self) -> None:
        """Let every worker that was stopped go on."""
        for pid, start in self._stopped:
            task = read_task(self._proc, pid)
            if task is not None and task.start == start:
                _signal(pid, signal.SIGCONT)
        self._stopped.clear()

    def _same(self, task: Task) -> Task | None:
        now = read_task(self._proc, task.pid)
        return now if now is not None and now.start == task.start else None

    def _descendants(self) -> list[Task]:
        if self._root is None:
            return []
        children: dict[int, list[Task]] = {}
        for task in self._tasks():
            children.setdefault(task.parent, []).append(task)
        found: list[Task] = []
        front = [self._root.pid]
        while front:
            below = [task for pid in front for task in children.pop(pid, [])]
            below = [task for task in below if task.pid != os.getpid()]
            found += below
            front = [task.pid for task in below]
        return found

    def _tasks(self) -> Iterator[Task]:
        for entry in self._proc.iterdir():
            if entry.name.isdigit() and (task := read_task(self._proc, int(entry.name))) is not None:
                yield task

    def _is_worker(self, pid: int) -> bool:
        return WORKER_MARK in (read_text(self._proc / str(pid) / "cmdline") or "").replace("\0", " ")


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
