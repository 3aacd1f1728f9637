"""Errors that the board's memory controllers corrected, or could not: the kernel's EDAC counters."""

from __future__ import annotations

from typing import NamedTuple

from agent.board.files import BoardRoots, folders, read_int


class MemoryErrors(NamedTuple):
    """Since the board was started, over all memory controllers."""

    corrected: int
    uncorrected: int


def memory_errors(roots: BoardRoots) -> MemoryErrors | None:
    """The counters; `None` where no controller has any, as on boards without ECC memory."""
    corrected, uncorrected = [], []
    for controller in folders(roots.sys / "devices/system/edac/mc", "mc"):
        corrected.append(read_int(controller / "ce_count"))
        uncorrected.append(read_int(controller / "ue_count"))
    known = [value for value in (*corrected, *uncorrected) if value is not None]
    if not known:
        return None
    return MemoryErrors(sum(value or 0 for value in corrected), sum(value or 0 for value in uncorrected))
