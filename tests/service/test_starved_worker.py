"""Whether a worker that was killed was killed for want of memory: the kernel counts that for the control group."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.board.control_group import killed_for_memory
from agent.board.files import BoardRoots
from service.worker_process import WorkerProcess

GROUP = "system.slice/temperd.service"
EVENTS = "low 0\nhigh 12\nmax 7\noom 1\noom_kill {}\noom_group_kill 0\n"


@pytest.fixture
def roots(tmp_path: Path) -> BoardRoots:
    """The kernel's files of a daemon in a unit, of whose processes one was killed before."""
    roots = BoardRoots.of_tree(tmp_path)
    (roots.proc / "self").mkdir(parents=True)
    (roots.proc / "self/cgroup").write_text(f"12:freezer:/elsewhere\n0::/{GROUP}\n")
    (roots.sys / "fs/cgroup" / GROUP).mkdir(parents=True)
    count(roots, 1)
    return roots


def count(roots: BoardRoots, killed: int) -> None:
    (roots.sys / "fs/cgroup" / GROUP / "memory.events").write_text(EVENTS.format(killed))


def test_the_kernel_s_count_is_that_of_the_process_s_own_group(roots: BoardRoots) -> None:
    assert killed_for_memory(roots) == 1
    (roots.proc / "self/cgroup").write_text("0::/\n")
    assert killed_for_memory(roots) is None
    (roots.proc / "self/cgroup").write_text("4:memory:/temperd\n")
    (roots.sys / "fs/cgroup/memory.events").write_text(EVENTS.format(5))
    assert killed_for_memory(roots) is None, "version 1 counts elsewhere"


@pytest.mark.parametrize("text", ["", "oom_kill\n", "oom_kill -1\n", "oom_kill 1 1\n", "oom_killer 5\n", "\xff\n"])
def test_what_is_no_count_is_not_taken_for_one(roots: BoardRoots, text: str) -> None:
    (roots.sys / "fs/cgroup" / GROUP / "memory.events").write_text(text, "latin-1")
    assert killed_for_memory(roots) is None


@pytest.mark.parametrize(
    ("how", "counted", "starved"),
    [
        (signal.SIGKILL, 2, True),
        (signal.SIGKILL, 1, False),  # another's kill -9
        (signal.SIGKILL, None, False),  # a kernel that does not tell
        (signal.SIGTERM, 2, False),  # something else of the group was killed
    ],
)
def test_a_worker_is_starved_where_the_kernel_counts_its_kill(
    roots: BoardRoots, how: signal.Signals, counted: int | None, starved: bool
) -> None:
    async def play() -> None:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "print(flush=True); import signal; signal.pause()"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        worker = WorkerProcess(child, lambda _: None, roots)
        assert child.stdout is not None
        await child.stdout.readline()
        if counted is None:
            (roots.proc / "self/cgroup").unlink()
        else:
            count(roots, counted)
        os.kill(child.pid, how)
        assert await worker.end(60) == -how
        assert worker.starved is starved

    asyncio.run(play())


@pytest.mark.parametrize("module", ["worker", "scrub_worker", "release_worker", "system_worker"])
def test_the_kernel_chooses_a_worker_before_the_daemon(module: str) -> None:
    """A daemon is larger than a worker that has only begun, and the kernel takes the largest of equals."""
    command = [sys.executable, "-m", f"agent.{module}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
        chosen, end = Path(f"/proc/{worker.pid}/oom_score_adj"), time.monotonic() + 60
        while chosen.read_text() != "1000\n":
            assert time.monotonic() < end, f"{chosen}: {chosen.read_text()}"
            assert worker.poll() is None
            time.sleep(0.01)
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait(60) != 0, "without an order it ends"
