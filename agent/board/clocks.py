"""Clocks: cpufreq policies of the processor, and devfreq of the graphics processor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from agent.board.devices import RESCAN_S
from agent.board.files import folders, read_int, read_text
from agent.board.levers import FREQUENCIES

MAX_POINTS = 128  # the longest cpufreq tables have about 60 entries
GRID_KHZ = 100_000
"""Drivers without a table (intel_pstate, amd-pstate, cppc_cpufreq) take any clock: offered are steps of 100 MHz, as the
Raspberry Pi's table has them."""
MAX_KHZ = 20_000_000  # 20 GHz: no processor; a larger number is garbage
GPU_ENDINGS = (".gpu", ".ga10b", ".gv11b", ".gp10b", ".gm20b")
"""Of the devfreq devices that are a Jetson's graphics processor."""


class CpuPolicy(NamedTuple):
    """One group of cores that share a clock."""

    path: Path
    table: tuple[int, ...]
    """Clocks in kHz, slowest first; empty where none are known."""

    def cap_khz(self, cap_hz: int | None) -> int | None:
        """The fastest clock of this policy at or below `cap_hz`, its slowest where none is; `None`: no limit."""
        if cap_hz is None or not self.table or cap_hz >= self.table[-1] * 1000:
            return None
        return max((khz for khz in self.table if khz * 1000 <= cap_hz), default=self.table[0])


class CpuClocks:
    """The cpufreq policies of one board.

    Args:
        sys_root: where /sys is.
    """

    def __init__(self, sys_root: Path) -> None:
        self._folder = sys_root / FREQUENCIES
        self._kept: tuple[CpuPolicy, ...] = ()
        self._scanned_s = 0.0

    def policies(self, mono_s: float) -> tuple[CpuPolicy, ...]:
        """Those there are; listed again after `RESCAN_S`, for tables change with boost and cores come and go."""
        if not self._kept or not 0.0 <= mono_s - self._scanned_s < RESCAN_S:
            self._kept = tuple(CpuPolicy(path, khz_table(path)) for path in folders(self._folder, "policy"))
            self._scanned_s = mono_s
        return self._kept

    def read(self, mono_s: float) -> tuple[int | None, int | None]:
        """(present clock, cap in force) in hertz: of the fastest policy each; `None` where none can be read."""
        policies = self.policies(mono_s)
        current = [khz for one in policies if _sane(khz := read_int(f"{one.path}/scaling_cur_freq"))]
        caps = [khz for one in policies if _sane(khz := read_int(f"{one.path}/scaling_max_freq"))]
        if len(current) < len(policies):
            self._kept = ()  # a policy went or is silent: look again next time
        return _hertz(current), _hertz(caps)

    def table_khz(self, mono_s: float) -> list[int]:
        """Every clock of any policy, slowest first, at most `MAX_POINTS`."""
        return sorted({khz for one in self.policies(mono_s) for khz in one.table})[-MAX_POINTS:]


class GpuClock:
    """The graphics processor's clock, where devfreq shows it."""

    def __init__(self, sys_root: Path) -> None:
        self._folder = sys_root / "class/devfreq"
        self._kept: Path | None = None
        self._scanned_s: float | None = None

    def read(self, mono_s: float) -> int | None:
        """Hertz now; `None` without one. Training does not use it: it tells why a Jetson is warm."""
        if self._scanned_s is None or not 0.0 <= mono_s - self._scanned_s < RESCAN_S:
            found = (path for path in folders(self._folder, "") if path.name.endswith(GPU_ENDINGS))
            self._kept, self._scanned_s = next(found, None), mono_s
        hertz = None if self._kept is None else read_int(f"{self._kept}/cur_freq")
        return hertz if hertz is not None and 0 <= hertz <= MAX_KHZ * 1000 else None


def khz_table(policy: Path) -> tuple[int, ...]:
    """The clocks of a cpufreq policy in kHz, slowest first.

    Where the driver lists none, a grid between its lowest and its highest clock.
    """
    words = (read_text(f"{policy}/scaling_available_frequencies") or "").split()
    listed = {int(word) for word in words if word.isascii() and word.isdigit()}
    table = sorted(khz for khz in listed if _sane(khz))
    return tuple(table[-MAX_POINTS:]) if table else tuple(_grid(policy))


def _grid(policy: Path) -> Iterator[int]:
    low, high = read_int(f"{policy}/cpuinfo_min_freq"), read_int(f"{policy}/cpuinfo_max_freq")
    if low is None or high is None or not 0 < low < high <= MAX_KHZ:
        return
    yield low
    first = (low // GRID_KHZ + 1) * GRID_KHZ
    yield from range(max(first, high - (MAX_POINTS - 2) * GRID_KHZ), high, GRID_KHZ)
    yield high


def _sane(khz: int | None) -> bool:
    return khz is not None and 0 < khz <= MAX_KHZ


def _hertz(values: list[int | None]) -> int | None:
    return max((khz * 1000 for khz in values if khz is not None), default=None)
