"""Energy counters of x86 processors (RAPL), as the powercap class shows them."""

from __future__ import annotations

import re
from pathlib import Path

from agent.board.devices import DeviceClass
from agent.board.files import read_int

_DOMAIN = re.compile(r"intel-rapl:[0-9]{1,3}")
"""A package or the platform; longer names are parts of one, and intel-rapl-mmio shows the same packages again."""
PLATFORM = "psys"


class EnergyCounters:
    """Watts from counters that wrap.

    Args:
        sys_root: where /sys is.
    """

    def __init__(self, sys_root: Path) -> None:
        self._zones = DeviceClass(sys_root / "class/powercap", "intel-rapl:", "name", lambda _: True)
        self._before: tuple[float, dict[Path, int]] | None = None

    def read(self, mono_s: float) -> tuple[bool, float | None]:
        """Whether a counter should tell now, and the mean watts since the reading before.

        Those of the platform, else of all packages. `None` where a counter cannot be read (most kernels let root alone
        read it), and at the first reading, which no counter can tell.
        """
        zones = [zone for zone in self._zones.devices(mono_s) if _DOMAIN.fullmatch(zone.path.name)]
        zones = [zone for zone in zones if zone.kind == PLATFORM] or zones
        if not zones:
            self._before = None
            return False, None
        now = {path: read_int(f"{path}/energy_uj") for _, path in zones}
        known = {path: value for path, value in now.items() if value is not None}
        if len(known) < len(now):
            self._before = None
            return True, None
        before, self._before = self._before, (mono_s, known)
        if before is None or mono_s <= before[0] or before[1].keys() != known.keys():
            return False, None
        spent = [_spent_microjoules(path, before[1][path], known[path]) for path in known]
        if any(one is None for one in spent):
            return True, None
        return True, sum(one for one in spent if one is not None) / 1e6 / (mono_s - before[0])


def _spent_microjoules(zone: Path, before: int, now: int) -> int | None:
    """Growth of a counter that wraps at `max_energy_range_uj`; `None` when it fell and its range is not known."""
    grown = now - before
    if grown >= 0:
        return grown
    grown += read_int(f"{zone}/max_energy_range_uj") or 0
    return grown if grown >= 0 else None
