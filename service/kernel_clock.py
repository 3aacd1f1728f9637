"""Whether the time of day can be believed: by what the journal saw, and by what a time service told the kernel."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

TIME_ERROR = 5  # timex.h of Linux: the clock is not synchronised
_TIMEX_BYTES = 512  # struct timex has 208; all zeros ask for nothing to be changed

EARLIEST_TIME = 1_790_000_000  # 2026-09-21, before the first release: an earlier clock was never set


def boot_id() -> str:
    """Of the kernel; `unknown` where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def since_boot_s() -> float:
    """Seconds since the kernel started, sleep included: the same for every process of one boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def kernel_synchronised() -> bool:
    """Whether a time service, such as NTP or GPS, has told the kernel that the clock is right."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):  # no such call in this C library
        return False
    return 0 <= int(state) < TIME_ERROR


def believable(now: float, floor: float, synchronised: Callable[[], bool]) -> bool:
    """Whether `now` can be the time of day.

    A clock that stands before what the journal last wrote was reset, unless a time service says that it is right: then
    it was ahead when the journal was written, by years it may be, and must not be waited for.

    Args:
        now: seconds since 1970.
        floor: what the journal last wrote.
        synchronised: see `kernel_synchronised`; asked where it matters.
    """
    return now >= EARLIEST_TIME and (now >= floor or synchronised())
