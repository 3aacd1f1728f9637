"""Load, memory and pressure: what /proc says of the whole board."""

from __future__ import annotations

from pathlib import Path

from agent.board.files import read_text

PRESSURES = ("cpu", "memory", "io")
_LEAST_FIELDS = 5  # user nice system idle iowait


class CpuTimes:
    """Utilisation from the counters of /proc/stat.

    Args:
        proc_root: where /proc is.
    """

    def __init__(self, proc_root: Path) -> None:
        self._path = proc_root / "stat"
        self._before: tuple[int, int] | None = None

    def utilisation(self) -> float | None:
        """Share of all cores that was busy since the call before, 0..1; `None` at the first."""
        words = (read_text(self._path) or "").partition("\n")[0].split()
        if len(words) <= _LEAST_FIELDS or words[0] != "cpu" or not all(word.isdigit() for word in words[1:]):
            return None
        ticks = [int(word) for word in words[1:9]]  # guest time, after them, is counted in user time already
        now = (sum(ticks), ticks[3] + ticks[4])
        before, self._before = self._before, now
        if before is None or now[0] <= before[0]:
            return None
        return min(max(1.0 - (now[1] - before[1]) / (now[0] - before[0]), 0.0), 1.0)


def available_bytes(proc_root: Path) -> int | None:
    """Memory that can be used without swapping (MemAvailable)."""
    for line in (read_text(f"{proc_root}/meminfo") or "").splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "MemAvailable:" and words[1].isdigit():  # noqa: PLR2004 - key and value
            return int(words[1]) * 1024
    return None


def pressures(proc_root: Path) -> tuple[tuple[str, float], ...]:
    """(resource, share of the last 10 s in which some task waited for it, 0..1), for those the kernel tells (PSI)."""
    found = []
    for resource in PRESSURES:
        share = _some_avg10(read_text(f"{proc_root}/pressure/{resource}") or "")
        if share is not None:
            found.append((resource, share))
    return tuple(found)


def _some_avg10(text: str) -> float | None:
    words = text.partition("\n")[0].split()
    if len(words) < 2 or words[0] != "some" or not words[1].startswith("avg10="):  # noqa: PLR2004 - some, avg10
        return None
    try:
        percent = float(words[1].removeprefix("avg10="))
    except ValueError:
        return None
    return percent / 100.0 if 0.0 <= percent <= 100.0 else None  # noqa: PLR2004 - percent; NaN is outside too
