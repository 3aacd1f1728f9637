"""Kill -9 at every persisted step: a flow runs in a child that dies before its n-th change of a file, for every n.

    cells = kill_matrix(prepared, scratch, flow, check)

For n = 1, 2, ... the folder `prepared` is copied, `flow(copy)` runs in a forked child, the child is killed with SIGKILL
just before its n-th step, and `check(copy)` looks at what is left; the last copy is one where the flow came through.
Steps are the system calls that change files below the copy: writes, syncs, renames, removals, new files and folders,
truncation, modes, times, of libraries and threads too. `fault_matrix` lets the n-th step fail instead.

By hand: python -m tests.simulators.kill_matrix PREPARED MODULE:FUNCTION prints the steps of `FUNCTION(Path)`.
"""

from __future__ import annotations

import errno
import importlib
import os
import shutil
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from agent.errors import TemperdError
from tests.simulators.disk_calls import DiskCall, Listener, trap_own_calls

KILLED = -signal.SIGKILL
CAME_THROUGH, REFUSED, BROKE = 0, 3, 1  # exit codes of the child: done, an error of ours, any other exception
MAX_STEPS = 5000  # of one flow; more would take minutes and means a flow of too large a file

Flow = Callable[[Path], object]
Check = Callable[[Path], object]


class Run(NamedTuple):
    """How a flow ended."""

    code: int
    steps: list[DiskCall]
    """Those that were reached; the last one is where it was killed or failed."""


def kill_matrix(prepared: Path, scratch: Path, flow: Flow, check: Check) -> int:
    """Kill `flow` before each of its steps.

    Args:
        prepared: a folder in the state where the flow begins; is not changed.
        scratch: a folder for the copies; each is gone when its check passed.
        flow: given a copy; from a process without threads that hold locks.
        check: given a copy after the kill; raises when something is wrong.

    Returns:
        The number of steps, each of which was killed before; 0 is an error too: such a flow persists nothing.

    Raises:
        AssertionError: the flow does not come through when nobody kills it, or has no steps.
    """
    number = 0
    while True:
        number += 1
        copy = _copy(prepared, scratch, number)
        run = run_to(copy, flow, number)
        _checked(copy, run, check)
        if run.code != KILLED:
            break
    assert run.code == CAME_THROUGH, f"the flow failed by itself: exit code {run.code}"
    assert number > 1, "the flow persists nothing"
    return number - 1


def fault_matrix(prepared: Path, scratch: Path, flow: Flow, check: Check, error: int, lasting: bool) -> int:
    """Let each step of `flow` fail with errno `error`; `lasting`: and every step after it, as on a disk that is gone.

    A flow may come through (a clean-up that failed), or refuse with an error of ours; any other exception is a fault.

    Returns:
        The number of steps that failed.
    """
    number = 0
    while True:
        number += 1
        copy = _copy(prepared, scratch, number)
        run = run_to(copy, flow, number, error, lasting)
        assert run.code in {CAME_THROUGH, REFUSED}, f"step {number} {run.steps[-1]} with {errno.errorcode[error]}"
        _checked(copy, run, check)
        if len(run.steps) < number:
            break
    assert run.code == CAME_THROUGH, f"the flow failed by itself: exit code {run.code}"
    assert number > 1, "the flow persists nothing"
    return number - 1


def run_to(folder: Path, flow: Flow, number: int, error: int = 0, lasting: bool = False) -> Run:  # noqa: FBT002 - given by name
    """Run `flow(folder)` in a child up to its `number`-th step: kill it there, or let that step fail with `error`."""
    folder = folder.resolve()
    ours, theirs = socket.socketpair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads: the caller's matter
        child = os.fork()
    if child == 0:
        os._exit(_as_child(folder, flow, theirs))
    theirs.close()
    steps: list[DiskCall] = []
    with ours:
        listener = Listener(ours)
    try:
        for call in listener.calls(str(folder)):
            steps.append(call)
            if len(steps) >= number and error:
                if len(steps) == number or lasting:
                    listener.fail(error)
            elif len(steps) == number:
                os.kill(child, signal.SIGKILL)
                break
            assert len(steps) <= MAX_STEPS, f"more than {MAX_STEPS} steps"
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        listener.close()
    return Run(code, steps)


def _as_child(folder: Path, flow: Flow, channel: socket.socket) -> int:
    try:
        trap_own_calls(channel)
        channel.close()
        flow(folder)
    except TemperdError:
        return REFUSED
    except BaseException:  # noqa: BLE001 - told, and the parent asserts on the code
        traceback.print_exc()
        sys.stderr.flush()
        return BROKE
    return CAME_THROUGH


def _copy(prepared: Path, scratch: Path, number: int) -> Path:
    copy = scratch / str(number)
    shutil.copytree(prepared, copy, symlinks=True)
    return copy


def _checked(copy: Path, run: Run, check: Check) -> None:
    try:
        check(copy)
    except BaseException as problem:
        step = run.steps[-1] if run.steps else "the start"
        problem.add_note(f"ended with {run.code} at step {len(run.steps)}: {step}")
        raise
    shutil.rmtree(copy)


if __name__ == "__main__":
    module, _, name = sys.argv[2].partition(":")
    flow = getattr(importlib.import_module(module), name)
    scratch = Path(sys.argv[1] + ".steps")
    run = run_to(_copy(Path(sys.argv[1]), scratch, 0), flow, MAX_STEPS)
    shutil.rmtree(scratch)
    for at, call in enumerate(run.steps, 1):
        sys.stdout.write(f"{at:5} {call.name:12} {call.path}\n")
    sys.exit(run.code)
