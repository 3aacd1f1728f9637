"""Cooling devices: fans that can be switched, and the kernel's own throttling."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from agent.board.devices import DeviceClass
from agent.board.files import read_int

THROTTLE_BEGINNINGS = ("cpufreq", "thermal-cpufreq", "Processor", "devfreq", "thermal-devfreq")
"""Of the types that hold a clock down."""
THROTTLE_ENDINGS = ("-throttle-alert",)
"""Jetson: a zone passed its throttling trip."""


class Fan(NamedTuple):
    """A cooling device that temperd may switch."""

    path: Path
    most: int
    level: int | None
    """Now; `None` while it cannot be read."""


class Cooling:
    """The cooling devices of one board.

    Args:
        sys_root: where /sys is.
        fan_types: the types that are fans or pumps.
    """

    def __init__(self, sys_root: Path, fan_types: tuple[str, ...]) -> None:
        self._fan_types = fan_types
        self._all = DeviceClass(
            sys_root / "class/thermal",
            "cooling_device",
            "type",
            lambda kind: kind in fan_types or is_throttle(kind),
        )

    def read(self, mono_s: float) -> tuple[tuple[Fan, ...], bool]:
        """The fans, strongest first, and whether the kernel holds a clock down."""
        fans: list[Fan] = []
        throttles = False
        for kind, path in self._all.devices(mono_s):
            level = read_int(f"{path}/cur_state")
            if kind not in self._fan_types:
                throttles = throttles or (level or 0) > 0
                continue
            most = read_int(f"{path}/max_state")
            if most is not None and most > 0:
                fans.append(Fan(path, most, level if level is not None and level >= 0 else None))
        fans.sort(key=lambda fan: -fan.most)
        return tuple(fans), throttles


def is_throttle(kind: str) -> bool:
    """Whether a cooling device of this type cools by holding a clock down."""
    return kind.startswith(THROTTLE_BEGINNINGS) or kind.endswith(THROTTLE_ENDINGS)
