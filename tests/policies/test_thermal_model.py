from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.physics import CONSTANTS, Constants
from agent.board.simulated import SimulatedBoard
from policies.outlook import Outlook
from policies.power_model import switching
from policies.predictive import PredictiveState
from policies.predictive import learn as learn_all
from policies.reading import Decision, OperatingPoint
from policies.thermal_model import BASELINE_PRIOR, PRIOR, Filters, ThermalModel, from_another_start, learn

CELLS = [(name, ambient) for name in CONSTANTS for ambient in (10.0, 25.0, 40.0)]


def settled(parts: Constants, point: OperatingPoint, level: int, ambient: float) -> float:
    """True steady delta-T under full load."""
    resistance = parts.die_kelvin_per_watt + parts.air_kelvin_per_watt / (1.0 + parts.fan_gain * level)
    delta = 0.0
    for _ in range(200):
        delta = resistance * parts.power.watts(point, 1.0, ambient + delta)
    return delta


def foreseen(
    state: PredictiveState, parts: Constants, point: OperatingPoint, level: int, celsius: float
) -> tuple[float, float]:
    share = level / parts.fan_levels
    watts, error = state.power.watts(switching(parts.points, point.frequency_hz, 1.0), share, celsius)
    heat = watts - state.power.fan_watts(share)
    return state.thermal.delta_kelvin(heat, share), state.thermal.error_kelvin(heat, share, error)


@pytest.mark.parametrize(("name", "ambient"), CELLS)
def test_learns_a_board_whose_constants_are_hidden_from_it(
    name: str, ambient: float, learnt: Callable[..., PredictiveState]
) -> None:
    state, parts = learnt(name, ambient), CONSTANTS[name]
    for point in parts.points:
        for level in range(1, parts.fan_levels + 1):
            truth = settled(parts, point, level, ambient)
            delta, error = foreseen(state, parts, point, level, ambient + truth)
            assert delta == pytest.approx(truth, abs=1.5)
            assert abs(delta - truth) < 3 * error + 0.2


def test_a_fan_level_never_seen_is_predicted_widely_and_one_seen_is_not(learnt: Callable[..., PredictiveState]) -> None:
    state, parts = learnt("raspberry-pi-4", fan=False), CONSTANTS["raspberry-pi-4"]
    resting, full = (foreseen(state, parts, parts.points[-1], level, 50.0) for level in (1, 4))
    assert resting[1] < 1.5
    assert full[1] > 5.0


def test_from_a_resting_baseline_it_predicts_what_that_baseline_makes_of_delta_t(
    teach: Callable[..., PredictiveState],
) -> None:
    board = SimulatedBoard("raspberry-pi-4", ambient_sensor=False)
    board.advance(1.0, 0.0)
    assert board.read(0.0).delta_t_celsius == 0.0  # the daemon starts on a resting board
    state = teach(board)
    parts, point = board.constants, board.constants.points[-1]
    for level in (4, 1):
        board.apply(Decision(frequency_cap_hz=point.frequency_hz, cooling_level=level))
        for _ in range(900):
            board.advance(1.0, 1.0)
            state = learn_all(state, board.read(board.elapsed_s), Outlook())
    for level in (1, 2, 4):
        board.apply(Decision(frequency_cap_hz=point.frequency_hz, cooling_level=level))
        board.advance(3000.0, 1.0)
        baseline = board.read(board.elapsed_s).ambient_celsius
        assert baseline is not None
        delta, error = foreseen(state, parts, point, level, board.truth.die_celsius)
        assert delta == pytest.approx(board.truth.die_celsius - baseline, abs=3 * error + 0.3)
        assert error < 1.5


def test_predicts_the_way_there(learnt: Callable[..., PredictiveState]) -> None:
    board = SimulatedBoard("raspberry-pi-4", start_fan=1)
    state, parts, point = learnt("raspberry-pi-4"), board.constants, board.constants.points[-1]
    model = ThermalModel(state.thermal.estimate)
    for _ in range(30):
        board.advance(1.0, 0.0)
        reading = board.read(board.elapsed_s)
        assert reading.power_watts is not None
        model = learn(model, reading.mono_s, reading.delta_t_celsius, reading.power_watts - 0.1, 0.25, baseline=False)
    heat = parts.power.watts(point, 1.0, 45.0)
    for after_s in (30.0, 60.0, 120.0):
        twin = SimulatedBoard("raspberry-pi-4", start_fan=1)
        twin.advance(after_s, 1.0)
        truth = twin.truth.die_celsius - 25.0
        assert model.delta_kelvin(heat, 0.25, after_s) == pytest.approx(truth, abs=1.0)
    assert model.delta_kelvin(heat, 0.25, 1e5) == pytest.approx(model.delta_kelvin(heat, 0.25))
    assert model.error_kelvin(heat, 0.25, 0.1, 1e5) == pytest.approx(model.error_kelvin(heat, 0.25, 0.1), rel=0.01)


def test_more_heat_or_less_fan_is_warmer(learnt: Callable[..., PredictiveState]) -> None:
    model = learnt("jetson-orin-nano").thermal
    for share in (0.0, 0.5, 1.0):
        assert model.delta_kelvin(10.0, share) > model.delta_kelvin(8.0, share)
    assert model.delta_kelvin(10.0, 0.0) > model.delta_kelvin(10.0, 0.5) > model.delta_kelvin(10.0, 1.0)


@pytest.mark.parametrize(
    ("delta", "watts"), [(None, 5.0), (20.0, None), (math.nan, 5.0), (20.0, math.nan), (1e9, 5.0), (20.0, math.inf)]
)
def test_absurd_readings_teach_nothing_and_begin_the_filters_anew(delta: float | None, watts: float | None) -> None:
    model = ThermalModel()
    for second in range(60):
        model = learn(model, float(second), 20.0, 5.0, 0.0, baseline=False)
    lost = learn(model, 60.0, delta, watts, 0.0, baseline=False)
    assert (lost.estimate, lost.filters) == (model.estimate, None)


def test_gaps_and_clocks_that_go_back_begin_the_filters_anew() -> None:
    model = ThermalModel()
    for second in (*range(60), 1000, 5):
        model = learn(model, float(second), 20.0, 5.0, 0.0, baseline=False)
        assert isinstance(model.filters, Filters)
    assert model.filters is not None
    assert (model.filters.began_s, model.learnt_s) == (5.0, 52.0)  # the first 8 s settle


def test_two_readings_at_once_teach_once() -> None:
    model = ThermalModel()
    for second in range(30):
        model = learn(model, float(second), 20.0, 5.0, 0.0, baseline=False)
    assert learn(model, 29.0, 90.0, 50.0, 0.0, baseline=False) == model


ANY = st.none() | st.floats(allow_subnormal=False)


@given(
    st.lists(st.tuples(ANY, ANY, st.floats(0.0, 1.0, allow_subnormal=False)), max_size=40),
    st.booleans(),
    st.floats(0.1, 9.0, allow_subnormal=False),
)
def test_whatever_it_reads_it_stays_sound(
    rows: list[tuple[float | None, float | None, float]], baseline: bool, span_s: float
) -> None:
    model = ThermalModel()
    for i, (delta, watts, share) in enumerate(rows * 3):
        model = learn(model, i * span_s, delta, watts, share, baseline=baseline)
    assert model.estimate.fits(BASELINE_PRIOR)
    assert from_another_start(model.estimate).fits(BASELINE_PRIOR)
    assert not math.isnan(model.delta_kelvin(10.0, 0.5))
    assert model.error_kelvin(10.0, 0.5, 0.1) >= 0.0
    assert model.error_kelvin(10.0, 0.5, 0.1, 100.0) >= 0.0


def test_prior_is_wide() -> None:
    assert ThermalModel().error_kelvin(8.0, 0.5, 0.0) > 10.0
    assert PRIOR.start().fits(PRIOR)
