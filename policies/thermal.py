"""Heat: trip points with hysteresis, delta-T and absolute, and the rate of rise (R7)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from policies.bounds import LOWEST, Bound
from policies.policy import SlowStage, ThermalPolicy
from policies.reading import Action, Reading

RISE_SMOOTHING_S = 5.0  # a die follows a load step within ~2 s: slower than that, faster than a heat sink


class ThermalLevel(IntEnum):
    """How hot it is; a larger value is hotter."""

    NORMAL = 0
    SLOW = 1
    HOT = 2
    PAUSE = 3
    CRITICAL = 4


@dataclass(frozen=True, slots=True)
class ThermalState:
    """What must be remembered between two readings."""

    delta_level: int = 0
    absolute_level: int = 0
    rising: bool = False
    suspect: bool = False
    """The re-verify trip was exceeded and training has not gone on since."""
    missing: int = 0
    """Readings in a row without a believable temperature."""
    mono_s: float | None = None
    celsius: float | None = None
    rise_kelvin_per_s: float = 0.0
    """Smoothed rate of rise."""


def judge(policy: ThermalPolicy, state: ThermalState, reading: Reading) -> ThermalState:
    """The thermal state after `reading`.

    Levels go up at once when a trip is exceeded and come down only `hysteresis_kelvin` below it, so a value that moves
    inside the hysteresis changes nothing. Without a temperature all levels stay and `missing` counts up. Without an
    ambient (delta-T unknown) only the absolute trips can raise a level; a delta-T level that was higher falls to SLOW
    and stays there, because nothing says that it is cool.
    """
    if reading.temperature_celsius is None or not math.isfinite(reading.temperature_celsius):
        return _replace_missing(policy, state)
    celsius, delta = reading.temperature_celsius, reading.delta_t_celsius
    if delta is not None and not math.isfinite(delta):
        delta = None
    rate = _rate(state, reading.mono_s, celsius)
    absolute = (policy.slow.absolute_celsius, policy.hot.absolute_celsius, policy.pause.absolute_celsius)
    band = policy.hysteresis_kelvin
    deltas = (policy.slow.delta_kelvin, policy.hot.delta_kelvin, policy.pause.delta_kelvin)
    return ThermalState(
        delta_level=min(state.delta_level, ThermalLevel.SLOW)
        if delta is None
        else _level(delta, state.delta_level, deltas, band),
        absolute_level=_level(celsius, state.absolute_level, (*absolute, policy.abort_celsius), band),
        rising=_rising(policy, state.rising, celsius, delta, rate),
        suspect=state.suspect or celsius > policy.reverify_celsius,
        missing=0,
        mono_s=reading.mono_s,
        celsius=celsius,
        rise_kelvin_per_s=rate,
    )


def bounds(policy: ThermalPolicy, state: ThermalState) -> Iterator[Bound]:
    """What the heat asks for."""
    if state.absolute_level == ThermalLevel.CRITICAL:
        yield Bound("thermal.critical", Action.ABORT, LOWEST, 0.0, policy.hot.least_depth_percent, 1.0)
    if state.missing >= policy.missing_pause_readings and policy.pause_without_sensor:
        yield _stopped(policy, "thermal.sensor-missing-pause")
    elif state.missing:
        yield Bound(
            "thermal.sensor-missing",
            Action.SLOW,
            LOWEST,
            policy.missing_duty,
            policy.slow.least_depth_percent,
            policy.hot.cooling_share,
        )
    for kind, level in (("delta-t", state.delta_level), ("absolute", state.absolute_level)):
        if level == ThermalLevel.PAUSE:
            yield _stopped(policy, f"thermal.{kind}-pause")
        elif level == ThermalLevel.HOT:
            yield _slowed(policy.hot, f"thermal.{kind}-hot")
        elif level == ThermalLevel.SLOW:
            yield _slowed(policy.slow, f"thermal.{kind}-slow")
    if state.rising:
        yield _slowed(policy.slow, "thermal.rise-slow")


def _stopped(policy: ThermalPolicy, rule: str) -> Bound:
    return Bound(rule, Action.PAUSE, LOWEST, 0.0, policy.hot.least_depth_percent, 1.0)


def _slowed(stage: SlowStage, rule: str) -> Bound:
    return Bound(rule, Action.SLOW, stage.frequency_ratio, stage.duty, stage.least_depth_percent, stage.cooling_share)


def _replace_missing(policy: ThermalPolicy, state: ThermalState) -> ThermalState:
    # The count stops at the trip: an unbounded counter says nothing more.
    return ThermalState(
        delta_level=state.delta_level,
        absolute_level=state.absolute_level,
        rising=state.rising,
        suspect=state.suspect,
        missing=min(state.missing + 1, policy.missing_pause_readings),
        mono_s=state.mono_s,
        celsius=state.celsius,
        rise_kelvin_per_s=state.rise_kelvin_per_s,
    )


def _level(value: float, before: int, trips: tuple[float, ...], band: float) -> int:
    entered = sum(value > trip for trip in trips)
    held = sum(value > trip - band for trip in trips)
    return max(entered, min(before, held))


def _rate(state: ThermalState, mono_s: float, celsius: float) -> float:
    if state.mono_s is None or state.celsius is None or mono_s < state.mono_s:
        return 0.0  # first reading, or the monotonic clock began anew with a reboot
    span = mono_s - state.mono_s
    if span == 0.0:
        return state.rise_kelvin_per_s
    weight = 1.0 - math.exp(-span / RISE_SMOOTHING_S)
    return state.rise_kelvin_per_s + weight * ((celsius - state.celsius) / span - state.rise_kelvin_per_s)


def _rising(policy: ThermalPolicy, before: bool, celsius: float, delta: float | None, rate: float) -> bool:  # noqa: FBT001 - state in, state out
    headroom = policy.pause.absolute_celsius - celsius
    if delta is not None:
        headroom = min(headroom, policy.pause.delta_kelvin - delta)
    ahead = rate * policy.rise_lookahead_s
    if ahead <= 0.0:
        return False
    return ahead > headroom or (before and ahead > headroom - policy.hysteresis_kelvin)
