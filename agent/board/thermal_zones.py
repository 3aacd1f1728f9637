"""The kernel's thermal zones: die and ambient temperature."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from agent.board.devices import Device, DeviceClass
from agent.board.files import read_int
from agent.board.plausible import MISSING, DieSensor, Judged, judge_millidegrees
from agent.board.profile import BoardProfile
from policies.reading import Health

DIE_WORDS = ("cpu", "soc", "core", "pkg", "package")
"""On a board that no profile knows, and that has no zone of a known type: parts of the types that measure a die."""


class ThermalZones:
    """Temperatures of one board, chosen by the zones' types.

    Args:
        sys_root: where /sys is.
        profile: which types are the die and the ambient, and when a die sensor counts as stuck.
    """

    def __init__(self, sys_root: Path, profile: BoardProfile) -> None:
        self._die_types, self._ambient_types = profile.zone_types, profile.ambient_types
        self._guesses = not profile.models
        self._zones = DeviceClass(sys_root / "class/thermal", "thermal_zone", "type", self._wants)
        self._die = DieSensor(profile.frozen_after_s)
        self._die_rank = len(self._die_types)
        self._baseline = profile.highest_resting_celsius
        self._ambient: float | None = None
        self._has_ambient = False

    def read(self, mono_s: float) -> tuple[Judged, Judged | None]:
        """The hottest die zone of the most preferred type, and the ambient; `None` without an ambient sensor."""
        zones = self._zones.devices(mono_s)
        return self._die.judge(self._read_die(zones), mono_s), self._read_ambient(zones)

    @property
    def ambient_is_baseline(self) -> bool:
        """Whether nothing has measured the ambient so far."""
        return self._ambient is None

    def ambient_celsius(self, die_celsius: float | None) -> float:
        """Ambient temperature as last measured, or the resting baseline where nothing measures it."""
        if self._ambient is not None:
            return self._ambient  # air does not jump: the last value serves while its sensor is silent
        if die_celsius is not None:
            self._baseline = min(self._baseline, die_celsius)
        return self._baseline

    def _wants(self, kind: str) -> bool:
        return kind in self._die_types or kind in self._ambient_types or (self._guesses and _sounds_like_die(kind))

    def _read_die(self, zones: tuple[Device, ...]) -> Judged:
        for rank, kind in enumerate(self._die_types[: self._die_rank + 1]):
            found = _hottest(path for of, path in zones if of == kind)
            if found is not None:
                # A less preferred type never takes its place later: a cooler zone would hide a lost sensor.
                self._die_rank = rank
                return found
        if self._guesses and self._die_rank == len(self._die_types):
            return _hottest(path for kind, path in zones if _sounds_like_die(kind)) or MISSING
        return MISSING

    def _read_ambient(self, zones: tuple[Device, ...]) -> Judged | None:
        found = _hottest(path for kind, path in zones if kind in self._ambient_types)
        self._has_ambient = self._has_ambient or found is not None
        if found is None:
            return MISSING if self._has_ambient else None
        if found.value is not None:
            self._ambient = found.value
        return found


def _sounds_like_die(kind: str) -> bool:
    return any(word in kind.lower() for word in DIE_WORDS)


def _hottest(zones: Iterable[Path]) -> Judged | None:
    """The hottest zone, or the first one that cannot be believed; `None` when there is none."""
    found = [judge_millidegrees(read_int(f"{path}/temp")) for path in zones]
    if not found:
        return None
    lost = next((one for one in found if one.value is None), None)
    return lost or Judged(max(one.value for one in found if one.value is not None), Health.OK)
