"""What a daemon that idles for weeks need not keep."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Return memory that is free inside this process to the system: what imports, or a job, left behind.

    It takes some tens of milliseconds, so it is called at the start and after a job, never in between. Without glibc
    only garbage is collected: musl gives back by itself.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # malloc_trim(3)
    if trim is not None:
        trim(0)
