"""What the board would do at each setting, and the best of those that keep it cool: a search over a small grid.

A setting is an operating point, a fan level, a duty and a freeze depth. Power and temperature of each are found
together, because leakage grows with the heat that it makes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from policies.dvfs import TABLE_TOLERANCE
from policies.outlook import DepthCost
from policies.power_model import PowerModel, leaking, switching
from policies.reading import FULL_DUTY, OperatingPoint
from policies.strict import limits
from policies.thermal_model import ThermalModel

T = TypeVar("T")

MOST_POINTS, MOST_LEVELS = 16, 6
"""Longer tables are thinned, ends kept: neighbours in them differ by less than the models can tell."""
DUTIES = (0.75, 0.5, 0.25)
"""Tried from the first where even the lowest point with all cooling is too warm."""
SIGMAS = 2.0
"""Standard errors added to a prediction before it is held against the limit."""
KNOWN_SHARE = 0.12
"""Largest standard error of a power that is chosen: beyond, samples per joule are a guess."""
RUNAWAY_KELVIN = 100.0
RUNAWAY_GAIN = 0.7
"""A kelvin that makes so many more is as good as a runaway: a small error in the leakage is one."""
MOST_ROUNDS = 20
ROUND_KELVIN = 0.02
LEAST_WATTS = 0.05  # a board draws more; keeps work per joule finite


@dataclass(frozen=True, slots=True)
class Setting:
    """One cell of the grid."""

    frequency_hz: int = field(metadata=limits(0, 10**12))
    level: int = field(metadata=limits(0, 10_000))
    """Fan level."""
    duty: float = field(default=FULL_DUTY, metadata=limits(0.0, 1.0))
    depth: int = field(default=0, metadata=limits(0, 100))


@dataclass(frozen=True, slots=True)
class Prospect:
    """What is predicted for a setting."""

    setting: Setting
    watts: float
    delta_kelvin: float
    """inf: the leakage would run away, or nothing is known."""
    rate: float
    """Samples a second; share of the top clock where no cost is known."""

    @property
    def samples_per_joule(self) -> float:
        """What the search maximizes; 0 in a runaway."""
        return self.rate / max(self.watts, LEAST_WATTS)


@dataclass(frozen=True, slots=True)
class Grid:
    """The board as it is modelled, and the job."""

    power: PowerModel
    thermal: ThermalModel
    points: tuple[OperatingPoint, ...]
    """Slowest first, not empty, the slowest above 0 Hz."""
    levels: int
    """Highest fan level; 0: no fan."""
    busy: float
    """Utilisation of a job at full duty, 0..1."""
    ambient_celsius: float
    cost: DepthCost | None
    """Of the depth that is wanted; `None`: unknown."""
    samples_left: int | None
    horizon_s: float
    """Predict at least so far ahead."""
    held_level: int | None = None
    """Where the fan does not obey: the level it has."""

    def has(self, setting: Setting) -> bool:
        """Whether the board has that operating point and fan level; tables change with boost, and with the board."""
        return setting.level in self.fan_levels() and any(x.frequency_hz == setting.frequency_hz for x in self.points)

    def prospects(self, cap_ratio: float) -> Iterator[Prospect]:
        """Every operating point up to `cap_ratio` of the top clock (the slowest always) with every fan level."""
        most = (cap_ratio + TABLE_TOLERANCE) * self.points[-1].frequency_hz
        points = [point for point in self.points if point.frequency_hz <= most] or [self.points[0]]
        for point in thinned(points, MOST_POINTS):
            for level in thinned(self.fan_levels(), MOST_LEVELS):
                yield self.foresee(Setting(point.frequency_hz, level))

    def fan_levels(self) -> range:
        """Levels that can be had, lowest first."""
        return range(self.levels + 1) if self.held_level is None else range(self.held_level, self.held_level + 1)

    def foresee(self, setting: Setting, cost: DepthCost | None = None) -> Prospect:
        """The prospect of `setting`, at its depth if the depth's `cost` is given."""
        rate = self.rate(setting, cost or self.cost)
        share = self._share(setting)
        after_s = self.after_s(rate)
        switched = switching(self.points, setting.frequency_hz, self.busy * setting.duty)
        fan = self.power.fan_watts(share)
        delta = watts = 0.0
        for _ in range(MOST_ROUNDS):
            watts = self.power.expected_watts(switched, share, leaking(self.ambient_celsius + delta))
            before, delta = delta, self.thermal.delta_kelvin(watts - fan, share, after_s)
            if not delta <= RUNAWAY_KELVIN:  # NaN, too
                break
            if abs(delta - before) <= ROUND_KELVIN:
                return Prospect(setting, watts, delta, rate)
        return Prospect(setting, watts, math.inf, rate)

    def known(self, prospect: Prospect) -> bool:
        """Whether its power is known well enough to be compared."""
        return self._watts_error(prospect) <= KNOWN_SHARE * prospect.watts

    def highest_kelvin(self, prospect: Prospect) -> float:
        """Its delta-T with `SIGMAS` standard errors; inf where it is too near a runaway."""
        if prospect.delta_kelvin == math.inf:
            return math.inf
        setting, share, after_s = prospect.setting, self._share(prospect.setting), self.after_s(prospect.rate)
        celsius = self.ambient_celsius + prospect.delta_kelvin
        switched = switching(self.points, setting.frequency_hz, self.busy * setting.duty)
        heat = prospect.watts - self.power.fan_watts(share)
        error = self.thermal.error_kelvin(heat, share, self._watts_error(prospect), after_s)
        warmer = self.power.expected_watts(switched, share, leaking(celsius + 1.0)) - prospect.watts
        gain = self.thermal.delta_kelvin(heat + warmer, share, after_s) - prospect.delta_kelvin
        return prospect.delta_kelvin + SIGMAS * error / (1.0 - gain) if gain < RUNAWAY_GAIN else math.inf

    def rate(self, setting: Setting, cost: DepthCost | None) -> float:
        """Samples a second at `setting`: what follows the clock takes longer at a lower one."""
        slower = self.points[-1].frequency_hz / setting.frequency_hz
        if cost is None or not cost.sample_s > 0.0:
            return setting.duty / slower
        clocked = min(max(cost.clocked_share, 0.0), 1.0)
        return setting.duty / (cost.sample_s * (1.0 + clocked * (slower - 1.0)))

    def after_s(self, rate: float) -> float:
        """How far ahead it has to stay cool: to the job's end and at least the horizon; inf where no end is known."""
        if self.cost is None or self.samples_left is None or rate <= 0.0:
            return math.inf
        return max(self.samples_left / rate, self.horizon_s)

    def _watts_error(self, prospect: Prospect) -> float:
        setting, celsius = prospect.setting, self.ambient_celsius + prospect.delta_kelvin
        switched = switching(self.points, setting.frequency_hz, self.busy * setting.duty)
        return self.power.watts(switched, self._share(setting), celsius)[1]

    def _share(self, setting: Setting) -> float:
        return setting.level / self.levels if self.levels > 0 else 0.0


def best(
    grid: Grid,
    prospects: Iterable[Prospect],
    limit_kelvin: float,
    score: Callable[[Prospect], float],
    *,
    known: bool = True,
) -> Prospect | None:
    """Of those that stay at or below `limit_kelvin` the one with the highest `score`, the first of equals.

    With `known` only those whose power is known well; `None`: there is none.
    """
    for prospect in sorted(prospects, key=score, reverse=True):
        if prospect.delta_kelvin > limit_kelvin or (known and not grid.known(prospect)):
            continue
        if grid.highest_kelvin(prospect) <= limit_kelvin:
            return prospect
    return None


def coolest(grid: Grid, limit_kelvin: float) -> Prospect:
    """The slowest point with all cooling, at the highest of `DUTIES` that stays below the limit, else at the lowest."""
    prospect = None
    for duty in (FULL_DUTY, *DUTIES):
        prospect = grid.foresee(Setting(grid.points[0].frequency_hz, grid.fan_levels()[-1], duty))
        if grid.highest_kelvin(prospect) <= limit_kelvin:
            break
    assert prospect is not None
    return prospect


def thinned(rows: Iterable[T], most: int) -> list[T]:
    """At most `most` (two or more) of the rows, evenly spread, first and last kept."""
    table = list(rows)
    if len(table) <= most:
        return table
    return [table[round(i * (len(table) - 1) / (most - 1))] for i in range(most)]
