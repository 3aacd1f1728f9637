"""Devices of one class of sysfs, found by what they say they are and never by their number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from agent.board.files import folders, read_text

RESCAN_S = 10.0
"""A device that is new is seen this late at most. One that went, or became another, is seen at once."""


class Device(NamedTuple):
    """One folder of the class."""

    kind: str
    """What its mark says, e.g. `cpu-thermal`."""
    path: Path


class DeviceClass:
    """The wanted devices below one folder.

    The listing is kept, because it costs more than the values, but the marks of the devices in it are read each time:
    the kernel numbers zones as drivers load, and a number may come to mean another sensor while temperd runs.

    Args:
        folder: of the class, e.g. /sys/class/thermal.
        prefix: of the devices' names.
        mark: the file that says what a device is.
        wanted: whether a device of this kind is of use.
    """

    def __init__(self, folder: Path, prefix: str, mark: str, wanted: Callable[[str], bool]) -> None:
        self._folder, self._prefix, self._mark, self._wanted = folder, prefix, mark, wanted
        self._kept: tuple[Device, ...] = ()
        self._scanned_s = 0.0

    def devices(self, mono_s: float) -> tuple[Device, ...]:
        """Those that are there and wanted at monotonic time `mono_s`, in the order of their names."""
        fresh = 0.0 <= mono_s - self._scanned_s < RESCAN_S
        if not (fresh and self._kept and all(read_text(f"{path}/{self._mark}") == kind for kind, path in self._kept)):
            self._kept, self._scanned_s = tuple(self._scan()), mono_s
        return self._kept

    def _scan(self) -> list[Device]:
        found = []
        for path in folders(self._folder, self._prefix):
            kind = read_text(f"{path}/{self._mark}")
            if kind and self._wanted(kind):
                found.append(Device(kind, path))
        return found
