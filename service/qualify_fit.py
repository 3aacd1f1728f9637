"""The power and heat models of a board, fitted to the readings of one stress run. Pure."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from policies import power_model, thermal_model
from policies.power_model import PowerModel, fan_share, switching
from policies.predictive import LEAST_WINDOWS, PredictiveState, models_of, with_models
from policies.reading import Reading
from policies.strict import TableError
from policies.thermal_model import ThermalModel

LEAST_READINGS = 30
"""Half a minute's: fewer fix no model and tell no error."""
ROUNDS = 30  # of the fixed point of heat and leakage; each takes its error down by some factor of ten
HOTTEST_CELSIUS = 125.0  # beyond, silicon is out of its rating and leakage runs away


PROBE_WATTS, PROBE_S = 100.0, 60.0
"""A step that no board takes, after a minute: the model's time constant shows in the answer."""


class Heat(NamedTuple):
    """A board at one level of cooling."""

    die_kelvin_per_watt: float
    """Of the die over the board."""
    kelvin_per_watt: float
    """Of the die over the air."""
    offset_kelvin: float
    """Delta-T without power: what sensors and model leave out."""
    seconds: float
    """Time constant of the board."""


@dataclass(frozen=True, slots=True)
class Fit:
    """What a run teaches; `known_*` tell whether it was enough."""

    power: PowerModel = field(default_factory=PowerModel)
    thermal: ThermalModel = field(default_factory=ThermalModel)
    heat_readings: int = 0
    from_baseline: bool = False
    """Delta-T counts from the resting baseline: there is no ambient sensor."""

    @property
    def known_power(self) -> bool:
        """There was a meter, and enough steady time to learn from it."""
        return self.power.estimate.samples >= LEAST_WINDOWS

    @property
    def known_heat(self) -> bool:
        """There were power and delta-T, often enough."""
        return self.heat_readings >= LEAST_READINGS

    def models(self, before: Mapping[str, object]) -> dict[str, object]:
        """What the predictive policy shall begin with, for a board's record; empty where the run taught too little.

        Args:
            before: what the record has; what a stress run does not teach is taken over from it.
        """
        if not (self.known_power and self.known_heat):
            return {}
        state = PredictiveState()
        with contextlib.suppress(TableError):  # an empty table, or one of another version: nothing to take over
            state = with_models(state, before)
        return models_of(
            dataclasses.replace(state, power=self.power, thermal=self.thermal, from_baseline=self.from_baseline)
        )

    def watts(self, reading: Reading) -> float | None:
        """Supply power at the clock, load, temperature and cooling of a reading; `None` where one is not known."""
        if not self.known_power or None in (reading.frequency_hz, reading.utilisation, reading.temperature_celsius):
            return None
        assert reading.frequency_hz is not None
        assert reading.utilisation is not None
        assert reading.temperature_celsius is not None
        moved = switching(reading.operating_points, reading.frequency_hz, reading.utilisation)
        return self.power.watts(moved, fan_share(reading), reading.temperature_celsius)[0]

    def steady_kelvin(self, ambient_celsius: float, reading: Reading) -> float | None:
        """Delta-T in the long run with all cores busy at the top clock and full cooling, leakage included.

        Args:
            ambient_celsius: temperature of the air.
            reading: any, for the clock table.

        Returns:
            Kelvin over ambient, inf where heat and leakage run away; `None` where a model is not known.
        """
        if not (self.known_power and self.known_heat and reading.operating_points):
            return None
        top = max(point.frequency_hz for point in reading.operating_points)
        share = 1.0 if reading.cooling_max > 0 else 0.0
        delta = 0.0
        for _ in range(ROUNDS):
            if not ambient_celsius + delta <= HOTTEST_CELSIUS:
                return math.inf
            celsius = ambient_celsius + delta
            watts, _ = self.power.watts(switching(reading.operating_points, top, 1.0), share, celsius)
            delta = self.thermal.delta_kelvin(watts - self.power.fan_watts(share), share)
        return delta

    def heat(self, share: float) -> Heat | None:
        """What the heat model says of one level of cooling; `None` where it is not known.

        Args:
            share: cooling level over the highest, 0..1.
        """
        if not self.known_heat:
            return None
        model = self.thermal
        steady = model.delta_kelvin(0.0, share)
        per_watt = model.delta_kelvin(1.0, share) - steady
        die = model.delta_kelvin(1.0, share, 0.0) - model.delta_kelvin(0.0, share, 0.0)
        begin, later = (model.delta_kelvin(PROBE_WATTS, share, span) for span in (0.0, PROBE_S))
        end = model.delta_kelvin(PROBE_WATTS, share)
        if not all(map(math.isfinite, (steady, per_watt, die, begin, later, end))):
            return None
        gone = (later - end) / (begin - end) if begin != end else 1.0
        return Heat(die, per_watt, steady, PROBE_S / -math.log(gone)) if 0.0 < gone < 1.0 else None

    def cooling(self, watts: float, share: float) -> tuple[float, float] | None:
        """(kelvin, standard error) by which full cooling keeps the board cooler in the long run.

        Args:
            watts: power at full cooling.
            share: cooling level that is compared, over the highest.

        Returns:
            `None` where the heat model is not known.
        """
        if not self.known_heat:
            return None
        heat = max(watts - self.power.fan_watts(1.0), 0.0)
        effect = self.thermal.delta_kelvin(heat, share) - self.thermal.delta_kelvin(heat, 1.0)
        error = math.hypot(*(self.thermal.error_kelvin(heat, level, 0.0) for level in (share, 1.0)))
        return (effect, error) if math.isfinite(effect) and math.isfinite(error) else None

    def replayed(self, readings: Sequence[Reading]) -> list[tuple[float, float]]:
        """(monotonic time, delta-T) as the heat model alone foretells them from the first reading and the power."""
        heats = {share: self.heat(share) for share in set(map(fan_share, readings))}
        if None in heats.values():
            return []
        told: list[tuple[float, float]] = []
        board: float | None = None
        watts, before_s = 0.0, 0.0
        for now in readings:
            watts, heat = _heating(self.power, now, watts), heats[fan_share(now)]
            assert heat is not None
            if board is not None:
                steady = heat.offset_kelvin + (heat.kelvin_per_watt - heat.die_kelvin_per_watt) * watts
                board = steady + (board - steady) * math.exp((before_s - now.mono_s) / heat.seconds)
                told.append((now.mono_s, board + heat.die_kelvin_per_watt * watts))
            elif now.delta_t_celsius is not None:
                board = now.delta_t_celsius - heat.die_kelvin_per_watt * watts
            before_s = now.mono_s
        return told


def fit(readings: Iterable[Reading]) -> Fit:
    """Fit both models: power first, because the fan's share of it does not heat the die."""
    kept = list(readings)
    power = PowerModel()
    for reading in kept:
        power = power_model.learn(power, reading)
    thermal, heated = ThermalModel(), 0
    for reading in kept:
        watts = None if reading.power_watts is None else _heating(power, reading, 0.0)
        delta = reading.delta_t_celsius
        thermal = thermal_model.learn(
            thermal, reading.mono_s, delta, watts, fan_share(reading), baseline=reading.ambient_is_baseline
        )
        heated += watts is not None and delta is not None
    return Fit(power, thermal, heated, any(reading.ambient_is_baseline for reading in kept))


def power_error(fitted: Fit, readings: Iterable[Reading]) -> float | None:
    """Mean distance of the fitted power from the meter, as a share of the meter's; `None` without both."""
    errors = [
        abs(told - reading.power_watts) / reading.power_watts
        for reading in readings
        if reading.power_source in power_model.SOURCES
        and reading.power_watts
        and (told := fitted.watts(reading)) is not None
    ]
    return statistics.fmean(errors) if len(errors) >= LEAST_READINGS else None


def heat_error_kelvin(fitted: Fit, readings: Sequence[Reading]) -> float | None:
    """Mean distance of the replayed delta-T from the sensors'; `None` without both."""
    told = dict(fitted.replayed(readings))
    errors = [
        abs(told[reading.mono_s] - delta)
        for reading in readings
        if reading.mono_s in told and (delta := reading.delta_t_celsius) is not None
    ]
    return statistics.fmean(errors) if len(errors) >= LEAST_READINGS else None


def _heating(power: PowerModel, reading: Reading, before: float) -> float:
    """Watts that heat the board; the last known where the meter is silent."""
    if reading.power_watts is None:
        return before
    return max(reading.power_watts - power.fan_watts(fan_share(reading)), 0.0)
