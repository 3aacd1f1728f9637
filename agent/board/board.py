"""The face of a board: read it, limit it, put the limits back."""

from __future__ import annotations

from typing import Protocol

from policies.reading import Decision, Reading


class Board(Protocol):
    """A board that can be steered: the kernel's files (`sysfs.SysfsBoard`), or physics in memory (a simulation)."""

    def read(self, mono_s: float) -> Reading:
        """Look at the board once; never raises."""
        ...

    def apply(self, decision: Decision) -> tuple[str, ...]:
        """Set the limits of `decision`; complaints that are new since the last call."""
        ...

    def restore(self) -> tuple[str, ...]:
        """Put back every limit that was changed; complaints."""
        ...
