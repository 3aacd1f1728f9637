"""The processor's caches, as the kernel lists them."""

from __future__ import annotations

from pathlib import Path

from agent.board.files import folders, read_text

FOLDER = "devices/system/cpu/cpu0/cache"
UNITS = {"K": 1 << 10, "M": 1 << 20}
MAX_CACHE_BYTES = 1 << 32  # a larger one is no cache of this age; servers have about 1 GB


def last_level_cache_bytes(sys: Path) -> int:
    """Size of the largest cache below the root `sys`, normally /sys; 0 where the kernel does not say."""
    sizes = [_bytes(read_text(entry / "size") or "") for entry in folders(sys / FOLDER, "index")]
    return max(sizes, default=0)


def _bytes(text: str) -> int:
    """`32768K` as bytes; 0 for anything else."""
    number, unit = text[:-1], UNITS.get(text[-1:], 0)
    size = int(number) * unit if number.isascii() and number.isdigit() and len(number) < 10 else 0  # noqa: PLR2004 - digits
    return size if size <= MAX_CACHE_BYTES else 0
