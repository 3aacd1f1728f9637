from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.physics import CONSTANTS
from policies.outlook import DepthCost
from policies.power_model import PowerModel
from policies.predictive import PredictiveState
from policies.reading import OperatingPoint
from policies.search import MOST_LEVELS, MOST_POINTS, Grid, Prospect, Setting, best, coolest, thinned

PARTS = CONSTANTS["raspberry-pi-4"]
TOP = PARTS.points[-1].frequency_hz
COST = DepthCost(50, 0.1, measured=True)
Learnt = Callable[..., PredictiveState]


def grid_of(state: PredictiveState, **changes: object) -> Grid:
    grid = Grid(state.power, state.thermal, PARTS.points, 4, 1.0, 25.0, COST, 1_000_000, 300.0)
    return replace(grid, **changes)  # type: ignore[arg-type]


def leaky(state: PredictiveState, watts: float) -> PowerModel:
    rest, capacitance, _, fan = state.power.estimate.mean
    return PowerModel(replace(state.power.estimate, mean=(rest, capacitance, watts, fan)))


def test_leakage_that_makes_itself_is_a_runaway_and_never_chosen(learnt: Learnt) -> None:
    state = learnt("raspberry-pi-4")
    mild, wild = grid_of(state), grid_of(state, power=leaky(state, 3.0))
    hot = Setting(TOP, 0)
    assert mild.foresee(hot).delta_kelvin < 50.0
    assert wild.foresee(hot).delta_kelvin == math.inf
    assert wild.highest_kelvin(wild.foresee(hot)) == math.inf
    found = best(wild, wild.prospects(1.0), 30.0, lambda prospect: prospect.rate, known=False)
    assert found is None or found.delta_kelvin <= 30.0
    assert grid_of(state, power=leaky(state, 50.0)).foresee(Setting(TOP, 4)).delta_kelvin == math.inf


def test_so_near_a_runaway_that_a_small_error_is_one_counts_as_one(learnt: Learnt) -> None:
    state = learnt("raspberry-pi-4")
    steady = [leak for leak in (n / 100 for n in range(20, 300)) if math.isfinite(_delta(state, leak))]
    certain = [leak for leak in steady if math.isfinite(_highest(state, leak))]
    assert len(certain) < len(steady)
    assert certain == steady[: len(certain)]


def _delta(state: PredictiveState, leak: float) -> float:
    return grid_of(state, power=leaky(state, leak)).foresee(Setting(PARTS.points[0].frequency_hz, 0)).delta_kelvin


def _highest(state: PredictiveState, leak: float) -> float:
    grid = grid_of(state, power=leaky(state, leak))
    return grid.highest_kelvin(grid.foresee(Setting(PARTS.points[0].frequency_hz, 0)))


def test_predicted_power_and_heat_agree_with_each_other(learnt: Learnt) -> None:
    state = learnt("raspberry-pi-4")
    grid = grid_of(state, samples_left=None)
    prospect = grid.foresee(Setting(TOP, 2))
    assert prospect.delta_kelvin == pytest.approx(
        state.thermal.delta_kelvin(prospect.watts - state.power.fan_watts(0.5), 0.5), abs=0.05
    )
    assert grid.highest_kelvin(prospect) > prospect.delta_kelvin


def test_a_short_job_is_foreseen_to_its_horizon_and_a_long_one_to_its_end(learnt: Learnt) -> None:
    grid = grid_of(learnt("raspberry-pi-4"))
    assert replace(grid, samples_left=10).after_s(10.0) == 300.0
    assert replace(grid, samples_left=10_000).after_s(10.0) == 1000.0
    assert replace(grid, samples_left=None).after_s(10.0) == math.inf
    assert replace(grid, cost=None).after_s(10.0) == math.inf
    assert grid.after_s(0.0) == math.inf


@pytest.mark.parametrize(("clocked", "slower"), [(1.0, 2.0), (0.5, 1.5), (0.0, 1.0)])
def test_what_waits_for_memory_does_not_wait_for_the_clock(clocked: float, slower: float, learnt: Learnt) -> None:
    grid = grid_of(learnt("raspberry-pi-4"))
    cost = replace(COST, clocked_share=clocked)
    assert grid.rate(Setting(TOP, 0), cost) == pytest.approx(10.0)
    assert grid.rate(Setting(TOP // 2, 0), cost) == pytest.approx(10.0 / slower)
    assert grid.rate(Setting(TOP, 0, duty=0.5), cost) == pytest.approx(5.0)
    assert grid.rate(Setting(TOP // 2, 0), None) == pytest.approx(0.5)


def test_where_nothing_is_cool_enough_the_coolest_there_is(learnt: Learnt) -> None:
    grid = grid_of(learnt("raspberry-pi-4"))
    lowest = PARTS.points[0].frequency_hz
    assert best(grid, grid.prospects(1.0), 0.0, lambda prospect: prospect.rate) is None
    assert coolest(grid, 0.0).setting == Setting(lowest, 4, 0.25)
    assert coolest(grid, 30.0).setting == Setting(lowest, 4, 1.0)


def test_the_slowest_point_is_tried_under_any_cap(learnt: Learnt) -> None:
    grid = grid_of(learnt("raspberry-pi-4"))
    assert {prospect.setting.frequency_hz for prospect in grid.prospects(0.0)} == {PARTS.points[0].frequency_hz}
    assert {prospect.setting.level for prospect in grid.prospects(0.0)} == {0, 1, 2, 3, 4}
    assert max(prospect.setting.frequency_hz for prospect in grid.prospects(0.72)) == 1_300_000_000


def test_a_long_table_is_thinned(learnt: Learnt) -> None:
    points = tuple(OperatingPoint(mhz * 1_000_000, 0.8) for mhz in range(600, 1801, 10))
    grid = grid_of(learnt("raspberry-pi-4"), points=points, levels=255)
    prospects: list[Prospect] = list(grid.prospects(1.0))
    assert len(prospects) == MOST_POINTS * MOST_LEVELS
    assert {prospect.setting.level for prospect in prospects} >= {0, 255}


@given(st.integers(1, 300), st.integers(2, 20))
def test_thinning_keeps_order_and_ends(rows: int, most: int) -> None:
    kept = thinned(range(rows), most)
    assert len(kept) == min(rows, most)
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0, rows - 1)
