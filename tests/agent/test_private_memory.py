from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABORT = "import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2); "
PRIVATE = "from agent.private_memory import keep_memory_private; keep_memory_private(); "


def dumps_core(folder: Path, program: str) -> bool:
    """Whether the kernel says that a program which aborts left a dump."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", 'cd "$0" && exec "$1" -c "$2"', str(folder), sys.executable, program],
        environ,
    )
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the program did not abort"
    return os.WCOREDUMP(status)


def test_a_private_process_leaves_no_core_dump(tmp_path: Path) -> None:
    if not dumps_core(tmp_path, f"{ABORT} os.abort()"):
        pytest.skip("this machine dumps no process")
    assert not dumps_core(tmp_path, f"{ABORT} {PRIVATE} os.abort()")


def test_both_the_limit_and_the_flag_are_set() -> None:
    """A kernel that pipes dumps to a program ignores the limit; the flag alone keeps the user's other processes out."""
    flag = "import ctypes, resource; print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3))"
    for program, dumpable in ((PRIVATE, 0), ("import resource; resource.setrlimit(4, (0, 0)); ", 1)):
        done = subprocess.run(
            [sys.executable, "-c", program + flag], capture_output=True, text=True, check=True, cwd=ROOT
        )
        assert done.stdout == f"(0, 0) {dumpable}\n"
