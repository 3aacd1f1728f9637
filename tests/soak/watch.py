"""What is watched over a day, and the slope of what should not grow."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

MOST_POINTS = 400  # pairs of points grow with the square


class Look(NamedTuple):
    """One look at the daemon."""

    at_s: float
    pid: int
    resident_kib: int
    anonymous_kib: int
    descriptors: int
    threads: int
    state_kib: int


def look(at_s: float, pid: int, state: Path) -> Look | None:
    """How the process is; `None` where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return Look(
            *(at_s, pid, _kib(fields["VmRSS"]), _kib(fields["RssAnon"]), descriptors, int(fields["Threads"])),
            _size_kib(state),
        )
    except (OSError, KeyError, ValueError):
        return None


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float, float] | None:
    """Theil-Sen estimate of y over x: the median of the slopes of all pairs, and their quartiles.

    One jump does not move it, as it does a fit by least squares (Sen 1968). `None` with fewer than three points.
    """
    thinned = points[:: max(1, -(-len(points) // MOST_POINTS))]
    pairs = itertools.combinations(thinned, 2)
    slopes = sorted((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if b[0] > a[0])
    if len(slopes) < 3:
        return None
    low, middle, high = statistics.quantiles(slopes, n=4)
    return middle, low, high


def _kib(text: str) -> int:
    return int(text.split(maxsplit=1)[0])


def _size_kib(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except OSError:
            continue
    return total >> 10
