"""Trip points, hysteresis and rate of rise (R7), for any policy that is accepted."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.bounds import LOWEST
from policies.policy import HotStage, PauseStage, SlowStage, ThermalPolicy
from policies.reading import Action, Reading
from policies.thermal import ThermalLevel, ThermalState, bounds, judge

POLICY = ThermalPolicy()
AMBIENT = 25.0


def at(celsius: float | None, second: float = 0.0, ambient: float | None = AMBIENT) -> Reading:
    return Reading(second, celsius, ambient)


def after(policy: ThermalPolicy, *readings: Reading) -> ThermalState:
    state = ThermalState()
    for second, reading in enumerate(readings):
        state = judge(policy, state, replace(reading, mono_s=float(second)))
    return state


def stages(low: float, steps: tuple[float, float, float], band: float, look: float) -> ThermalPolicy:
    slow, hot, pause = low, low + steps[0], low + steps[0] + steps[1]
    return ThermalPolicy(
        hysteresis_kelvin=band,
        rise_lookahead_s=look,
        reverify_celsius=pause + 40 + steps[2],
        abort_celsius=pause + 42 + steps[2],
        slow=SlowStage(delta_kelvin=slow, absolute_celsius=slow + 40),
        hot=HotStage(delta_kelvin=hot, absolute_celsius=hot + 40),
        pause=PauseStage(delta_kelvin=pause, absolute_celsius=pause + 40),
    )


POLICIES = st.builds(
    stages,
    st.floats(21, 35, allow_subnormal=False),
    st.tuples(
        st.floats(0.1, 8, allow_subnormal=False),
        st.floats(0.1, 8, allow_subnormal=False),
        st.floats(0, 8, allow_subnormal=False),
    ),
    st.floats(0.5, 20, allow_subnormal=False),
    st.sampled_from([0.0, 10.0, 120.0]),
)
TEMPERATURES = st.floats(-20, 130, allow_subnormal=False)
READINGS = st.builds(
    Reading,
    st.floats(0, 1e5, allow_subnormal=False),
    st.none() | TEMPERATURES,
    st.none() | st.floats(-20, 60, allow_subnormal=False),
)


@pytest.mark.parametrize(
    ("delta", "action", "cooling", "ratio"),
    [
        (30.0, None, 0.0, 1.0),
        (30.01, Action.SLOW, 0.5, 0.8),
        (35.0, Action.SLOW, 0.75, 0.6),
        (35.01, Action.PAUSE, 1.0, LOWEST),
    ],
)
def test_above_30_kelvin_slower_with_cooling_above_35_paused_with_all_cooling(
    delta: float, action: Action | None, cooling: float, ratio: float
) -> None:
    found = [bound for bound in bounds(POLICY, after(POLICY, at(AMBIENT + delta))) if "delta-t" in bound.rule]
    assert max((bound.action for bound in found), default=None) == action
    assert max((bound.cooling for bound in found), default=0.0) == cooling
    assert min((bound.ratio for bound in found), default=1.0) == ratio


def test_memory_is_suspect_above_85_degrees_and_stays_so_when_it_cools() -> None:
    assert not after(POLICY, at(85.0)).suspect
    assert after(POLICY, at(85.01)).suspect
    assert after(POLICY, at(85.01), at(40.0), at(None)).suspect


def test_a_rise_is_judged_by_its_smoothed_rate() -> None:
    steady = [at(45.0 + second) for second in range(12)]
    assert after(POLICY, *steady).rising
    assert after(POLICY, *steady).rise_kelvin_per_s == pytest.approx(1.0, abs=0.15)
    assert not after(POLICY, *[at(45.0)] * 5, at(47.0)).rising, "one step is no rise"
    assert not after(replace(POLICY, rise_lookahead_s=0.0), *steady).rising


def test_a_clock_that_begins_anew_gives_no_rate() -> None:
    state = judge(POLICY, after(POLICY, at(40.0), at(45.0)), at(60.0, second=0.5))
    state = judge(POLICY, state, at(30.0, second=0.25))
    assert (state.rising, state.rise_kelvin_per_s) == (False, 0.0)


def test_two_readings_of_one_moment_keep_the_rate() -> None:
    state = after(POLICY, at(40.0), at(41.0))
    assert judge(POLICY, state, at(60.0, second=1.0)).rise_kelvin_per_s == state.rise_kelvin_per_s


def test_without_a_temperature_levels_stay_and_the_count_has_an_end() -> None:
    hot = after(POLICY, at(AMBIENT + 36))
    lost = hot
    for _ in range(100):
        lost = judge(POLICY, lost, at(None))
    assert (lost.delta_level, lost.missing) == (ThermalLevel.PAUSE, POLICY.missing_pause_readings)
    assert judge(POLICY, lost, at(40.0)).missing == 0


@given(POLICIES, st.lists(READINGS, max_size=5), READINGS, TEMPERATURES, TEMPERATURES)
def test_hotter_is_never_milder(
    policy: ThermalPolicy, before: list[Reading], reading: Reading, one: float, other: float
) -> None:
    state = after(policy, *before)
    low, high = sorted((one, other))
    cool = judge(policy, state, replace(reading, temperature_celsius=low))
    hot = judge(policy, state, replace(reading, temperature_celsius=high))
    assert hot.delta_level >= cool.delta_level
    assert hot.absolute_level >= cool.absolute_level
    assert hot.rising >= cool.rising
    assert hot.suspect >= cool.suspect


@given(
    POLICIES,
    st.lists(READINGS, max_size=5),
    st.floats(30, 90, allow_subnormal=False),
    st.lists(st.floats(0, 0.999, allow_subnormal=False), max_size=40),
)
def test_a_value_that_moves_less_than_the_hysteresis_crosses_each_trip_once_at_most(
    policy: ThermalPolicy, before: list[Reading], lowest: float, shares: list[float]
) -> None:
    state = after(policy, *before)
    rows = [lowest + share * policy.hysteresis_kelvin * 0.999 for share in shares]
    levels = []
    for second, celsius in enumerate(rows):
        state = judge(policy, state, at(celsius, 1e5 + second))
        levels.append((state.delta_level, state.absolute_level))
    for level in zip(*levels, strict=True):
        changes = sum(one != other for one, other in itertools.pairwise(level))
        assert changes <= ThermalLevel.CRITICAL, level
        ups = sum(one < other for one, other in itertools.pairwise(level))
        assert ups <= max(level) - min(level), level


@given(POLICIES, st.lists(READINGS, min_size=1, max_size=5))
def test_a_temperature_above_a_trip_always_has_its_bound(policy: ThermalPolicy, readings: list[Reading]) -> None:
    state = after(policy, *readings)
    found = {bound.rule for bound in bounds(policy, state)}
    celsius, delta = readings[-1].temperature_celsius, readings[-1].delta_t_celsius
    if celsius is None:
        assert found & {"thermal.sensor-missing", "thermal.sensor-missing-pause"}
        return
    assert ("thermal.critical" in found) >= (celsius > policy.abort_celsius)
    assert ("thermal.delta-t-pause" in found) >= (delta is not None and delta > policy.pause.delta_kelvin)
    past = celsius > policy.pause.absolute_celsius
    assert bool(found & {"thermal.absolute-pause", "thermal.critical"}) >= past


@pytest.mark.parametrize("celsius", [math.nan, math.inf, -math.inf])
def test_a_temperature_that_is_no_number_is_none_at_all(celsius: float) -> None:
    hot = after(POLICY, at(90.0))
    lost = judge(POLICY, hot, at(celsius, 1.0))
    assert (lost.delta_level, lost.absolute_level, lost.missing) == (hot.delta_level, hot.absolute_level, 1)
    warm = judge(POLICY, after(POLICY, at(61.0)), at(61.0, 1.0, ambient=celsius))
    assert warm.delta_level == ThermalLevel.SLOW  # nothing says that it is cool
