"""Watts of the board from the best source there is, and where nothing measures them from a model."""

from __future__ import annotations

from typing import NamedTuple

from agent.board.profile import BoardProfile
from policies.reading import Health, OperatingPoint

MAX_WATTS = 1000.0  # no board of this class; a larger value is a broken sensor


class Watts(NamedTuple):
    """Power of the board now."""

    watts: float | None
    source: str
    """`hwmon`, `power_supply`, `powercap`, `model`, or empty."""
    health: Health | None
    """Of the measured source; `None` on boards that have none."""

    @property
    def is_modelled(self) -> bool:
        """Whether no sensor said so."""
        return self.source not in MEASURED


MEASURED = ("hwmon", "power_supply", "powercap")
"""From the whole board's input down to the processor alone."""


class PowerSources:
    """Chooses the best source at each reading.

    Args:
        profile: its model serves where nothing measures.
    """

    def __init__(self, profile: BoardProfile) -> None:
        self._profile = profile
        self._had = False

    def choose(self, measured: tuple[float | None, ...], *, has_meter: bool, modelled: float | None) -> Watts:
        """The first believable one of `measured`, given in the order of `MEASURED`, else the model's.

        Args:
            measured: watts of each source; `None` where it tells nothing now.
            has_meter: whether a meter or a counter is there, even if it is silent.
            modelled: what the model gives; `None` without one.
        """
        self._had = self._had or has_meter
        for source, watts in zip(MEASURED, measured, strict=True):
            if watts is not None and 0.0 <= watts <= MAX_WATTS:
                return Watts(watts, source, Health.OK)
        lies = any(watts is not None for watts in measured)
        health = Health.IMPOSSIBLE if lies else Health.MISSING if self._had else None
        return Watts(modelled, "" if modelled is None else "model", health)

    def model(
        self,
        utilisation: float | None,
        frequency_hz: int | None,
        points: tuple[OperatingPoint, ...],
        celsius: float | None,
    ) -> float | None:
        """Rest + C V^2 f u + leakage at the operating point at or below the present clock; `None`: not known."""
        model = self._profile.power
        point = max((p for p in points if frequency_hz is not None and p.frequency_hz <= frequency_hz), default=None)
        if model is None or point is None or utilisation is None:
            return None
        return model.watts(point, utilisation, self._profile.highest_resting_celsius if celsius is None else celsius)

    def volts(self, hz: int) -> float:
        """Core voltage of the profile's table at `hz`, linear between its points; 0 without a table."""
        points = self._profile.points
        if not points:
            return 0.0
        below = max((p for p in points if p.frequency_hz <= hz), default=points[0])
        above = min((p for p in points if p.frequency_hz >= hz), default=points[-1])
        span = above.frequency_hz - below.frequency_hz
        share = (hz - below.frequency_hz) / span if span > 0 else 0.0
        return below.volts + (above.volts - below.volts) * share
