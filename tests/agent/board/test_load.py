from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.board.load import WorkerLoad, read_task

PROC = Path("/proc")
PATIENCE_S = 20.0  # only a broken program waits so long


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


def state_of(pid: int) -> str:
    task = read_task(PROC, pid)
    return task.state if task else ""


@pytest.fixture
def children() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str, *marks: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-S", "-c", code, *marks]))
        pid = started[-1].pid
        until(lambda: code.encode() in Path(f"/proc/{pid}/cmdline").read_bytes(), "the child's own command line")
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.wait()


SLEEP = "import time; time.sleep(600)"
BUSY = "while True: pass"


def test_only_workers_are_stopped_and_all_go_on(children: Callable[..., subprocess.Popen[bytes]]) -> None:
    worker, other = children(SLEEP, "agent.worker"), children(SLEEP)
    load = WorkerLoad(os.getpid(), cores=1)
    load.look()
    load.stop()
    until(lambda: state_of(worker.pid) == "T", "the worker stops")
    assert state_of(other.pid) != "T"
    load.resume()
    until(lambda: state_of(worker.pid) != "T", "the worker goes on")


def test_grandchildren_are_found(children: Callable[..., subprocess.Popen[bytes]]) -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {SLEEP!r}, 'agent.worker'])"
    parent = children(code)
    load = WorkerLoad(os.getpid(), cores=1)

    def look() -> bool:
        load.look()
        return any(task.parent == parent.pid for task in load._workers)

    until(look, "the grandchild is found")
    grandchild = next(task.pid for task in load._workers if task.parent == parent.pid)
    os.kill(grandchild, signal.SIGKILL)


def test_a_worker_left_stopped_goes_on(children: Callable[..., subprocess.Popen[bytes]]) -> None:
    worker = children(SLEEP, "agent.worker")
    os.kill(worker.pid, signal.SIGSTOP)
    until(lambda: state_of(worker.pid) == "T", "the worker stops")
    load = WorkerLoad(os.getpid(), cores=1)
    load.look()
    load.resume_left_stopped()
    until(lambda: state_of(worker.pid) != "T", "the worker goes on")


def test_cpu_time_of_children_is_the_load(children: Callable[..., subprocess.Popen[bytes]]) -> None:
    child = children(BUSY)
    load = WorkerLoad(os.getpid(), cores=2)
    load.look()
    before = load._ticks[next(key for key in load._ticks if key[0] == child.pid)]
    until(lambda: (task := read_task(PROC, child.pid)) is not None and task.ticks >= before + 20, "20 ticks of work")
    assert load.utilisation(span_s=1.0) >= 0.1
    os.kill(child.pid, signal.SIGSTOP)
    until(lambda: state_of(child.pid) == "T", "the child stops")
    load.utilisation(span_s=1.0)
    assert load.utilisation(span_s=1.0) == 0.0


def test_a_process_that_ended_is_not_alive(children: Callable[..., subprocess.Popen[bytes]]) -> None:
    child = children(SLEEP)
    load = WorkerLoad(child.pid, cores=1)
    assert load.alive()
    child.kill()
    until(lambda: not load.alive(), "the process ends")  # not reaped yet: a dead process is no process
    load.look()
    assert load.utilisation(1.0) == 0.0
