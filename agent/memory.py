"""Memory of this process and what the machine has left, as the system tells it."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from pathlib import Path

from agent.board.control_group import own_group
from agent.board.files import BoardRoots

RETURN_FROM = 256 << 10  # bytes of an allocation from which it is given back to the system when it is freed


def free_bytes() -> int:
    """Memory that new programs may take without swapping (MemAvailable), and within this control group's limit."""
    found = _kib("/proc/meminfo", "MemAvailable")
    available = math.inf if found is None else found << 10
    group = own_group(BoardRoots())
    if group is not None:
        most, now = _number(group / "memory.max"), _number(group / "memory.current")
        if most is not None and now is not None:
            available = min(available, max(0, most - now + _reclaimable(group / "memory.stat")))
    return int(min(available, 1 << 50))


def resident_bytes() -> int:
    """Resident set of this process now; 0 where the system does not tell."""
    return (_kib("/proc/self/status", "VmRSS") or 0) << 10


def peak_resident_bytes() -> int:
    """Largest resident set of this process so far (VmHWM); 0 where the system does not tell."""
    return (_kib("/proc/self/status", "VmHWM") or 0) << 10


def restart_peak() -> None:
    """Let `peak_resident_bytes` start again from what is resident now.

    Raises:
        OSError: the kernel does not allow it.
    """
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def trim_memory() -> None:
    """Give freed pieces of the heap back to the system now: a compilation leaves some MiB of them."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@cache
def return_memory() -> None:
    """Let large allocations go back to the system when they are freed, whatever was freed before.

    glibc raises its threshold to the largest block ever freed, after which arrays of megabytes stay in the heap.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim, threshold, heaps = -1, -3, -8  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX of malloc.h
        libc.mallopt(heaps, 1)  # threads here compute and rarely allocate: a heap for each is memory unused
        libc.mallopt(threshold, RETURN_FROM)
        libc.mallopt(trim, RETURN_FROM)


def _kib(path: str, key: str) -> int | None:
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)
    except (OSError, ValueError, IndexError):
        return None


def _reclaimable(statistics: Path) -> int:
    """Bytes of files that a control group has read and not looked at lately: they make room when it is needed."""
    try:
        lines = statistics.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max": no limit
        return None
