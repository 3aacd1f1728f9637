"""Where prediction ends: ill sensors, other boards, other meters; and what its rules are called."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from agent.board.physics import CONSTANTS
from agent.board.simulated import SimulatedBoard
from policies.bounds import Bound
from policies.choice import Choice
from policies.governor import GovernorState, decide
from policies.outlook import DepthCost, Outlook
from policies.policy import Policy
from policies.predictive import PredictiveState, choose, learn, models_of, with_models
from policies.reading import Action, Health, Reading
from policies.rls import Prior
from policies.search import Setting
from policies.thermal_model import BASELINE_PRIOR, PRIOR

POLICY = Policy()
EDGE = "edge-22w"
JOB = Outlook(plan_depth_percent=50, costs=(DepthCost(50, 0.1),), samples_left=10_000_000)
LONG_AFTER_S = 10_000.0
Learnt = Callable[..., PredictiveState]


def reading_of(name: str, **changes: object) -> Reading:
    points = CONSTANTS[name].points
    base = Reading(
        mono_s=LONG_AFTER_S,
        temperature_celsius=45.0,
        ambient_celsius=25.0,
        frequency_hz=points[-1].frequency_hz,
        operating_points=points,
        on_mains=True,
        cooling_max=4,
        cooling_level=1,
        power_watts=6.0,
        power_source="hwmon",
        utilisation=1.0,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("health", [Health.MISSING, Health.IMPOSSIBLE])
def test_an_ambient_sensor_that_fell_silent_ends_prediction_and_teaches_nothing(health: Health, learnt: Learnt) -> None:
    state, ill = learnt(EDGE), reading_of(EDGE, health=(("ambient", health),))
    assert choose(POLICY, state, ill, JOB, [])[1] is None
    for second in range(30):
        state = learn(state, replace(ill, mono_s=LONG_AFTER_S + second), JOB)
    assert state.thermal.estimate == learnt(EDGE).thermal.estimate


@pytest.mark.parametrize(("baseline", "prior"), [(True, BASELINE_PRIOR), (False, PRIOR)])
def test_a_resting_baseline_is_believed_less_than_a_sensor(baseline: bool, prior: Prior) -> None:
    state, sink = PredictiveState(), 5
    for second in range(10):  # no health of `ambient` is told, as of a board that has no such sensor
        reading = reading_of(EDGE, mono_s=float(second), ambient_is_baseline=baseline)
        state = learn(state, reading, JOB)
    kept = state.thermal.estimate.covariance[sink][sink] / prior.deviation[sink] ** 2
    assert 0.1 < kept <= 1.0


def test_mains_that_is_lost_leaves_the_clock_to_a_sure_prediction(learnt: Learnt) -> None:
    """A Pi 4 rests at 2 W: the rule's 0.85 of the clock costs more joules a sample than prediction finds."""
    name = "raspberry-pi-4"
    off = reading_of(name, on_mains=False, charge=0.9)
    _, fixed = decide(POLICY, GovernorState(), off, JOB)
    _, mains = decide(POLICY, GovernorState(predictive=learnt(name)), replace(off, on_mains=True), JOB)
    _, free = decide(POLICY, GovernorState(predictive=learnt(name)), off, JOB)
    assert fixed.frequency_rule == "supply.lost"
    assert free.frequency_cap_hz == mains.frequency_cap_hz
    assert (free.frequency_cap_hz or 0) > (fixed.frequency_cap_hz or 0)
    assert "supply.lost" in free.notes


@pytest.mark.parametrize("change", [{"undervoltage": True}, {"charge": 0.15}, {"charge": None}])
def test_weak_supplies_bind_whatever_is_predicted(change: dict[str, object], learnt: Learnt) -> None:
    off = reading_of("raspberry-pi-4", **{"on_mains": False, "charge": 0.9, **change})
    _, decision = decide(POLICY, GovernorState(predictive=learnt("raspberry-pi-4")), off, JOB)
    assert (decision.frequency_cap_hz or 0) <= 0.73 * 1_800_000_000


def test_what_is_left_out_because_it_is_unknown_is_not_called_hot() -> None:
    """This board never saw its fan at rest: at 10 K over the air no heat binds it."""
    board, governor, rules = SimulatedBoard(EDGE), GovernorState(), []
    for _ in range(1200):
        governor, decision = decide(POLICY, governor, board.read(board.elapsed_s), JOB)
        board.apply(decision)
        board.advance(1.0, decision.duty)
        rules.append(decision.frequency_rule)
    assert board.truth.die_celsius - board.ambient_celsius < 15.0
    assert set(rules[600:]) == {"predict.energy"}


@pytest.mark.parametrize("setting", [Setting(0, 1), Setting(777, 1), Setting(2_000_000_000, 40)], ids=str)
def test_a_setting_of_another_board_is_not_kept(setting: Setting, learnt: Learnt) -> None:
    old = Choice(setting, "predict.energy", LONG_AFTER_S - 10, LONG_AFTER_S - 10, 1.0, 50)
    state, bound = choose(POLICY, replace(learnt(EDGE), choice=old), reading_of(EDGE), JOB, [])
    assert isinstance(bound, Bound)
    assert bound.action is Action.RUN
    assert state.choice is not None
    assert state.choice.setting.frequency_hz in {point.frequency_hz for point in CONSTANTS[EDGE].points}
    assert state.choice.setting.level <= 4


def test_two_meters_are_not_mixed_in_one_window() -> None:
    """The second is that of the processor alone: three watts less."""
    state = PredictiveState()
    for second, source in zip(range(60), itertools.cycle(["hwmon", "hwmon", "powercap"]), strict=False):
        watts = 6.0 if source == "hwmon" else 3.0
        state = learn(state, reading_of(EDGE, mono_s=float(second), power_source=source, power_watts=watts), JOB)
    assert state.power.estimate.samples == 0
    assert dataclasses.asdict(state)["power"]["window"]["source"] == "powercap"


@pytest.mark.parametrize("health", [Health.REFUSED, Health.OVERRIDDEN])
def test_a_fan_that_does_not_obey_is_not_counted_on(health: Health, learnt: Learnt) -> None:
    """In air of 55 °C a delta-T of 15 K is left: at the top clock only a faster fan keeps that."""
    name = "raspberry-pi-4"
    hot = reading_of(name, ambient_celsius=55.0, temperature_celsius=60.0)
    ill = replace(hot, mono_s=LONG_AFTER_S + 1.0, health=(("cooling", health),))
    state, obeyed = choose(POLICY, learnt(name), hot, JOB, [])
    state, held = choose(POLICY, state, ill, JOB, [])
    assert obeyed is not None
    assert held is not None
    assert state.choice is not None
    assert state.choice.setting.level == 1
    assert held.ratio * held.duty < obeyed.ratio * obeyed.duty
    _, again = choose(POLICY, state, replace(hot, mono_s=LONG_AFTER_S + 90.0), JOB, [])
    assert again is not None
    assert again.ratio * again.duty > held.ratio * held.duty


def trained(board: SimulatedBoard, state: PredictiveState, seconds: int) -> tuple[PredictiveState, list[bool]]:
    """The state after so much training at a heavy load, and in which seconds prediction spoke."""
    governor, spoke = GovernorState(predictive=state), []
    for _ in range(seconds):
        governor, decision = decide(POLICY, governor, board.read(board.elapsed_s), JOB)
        board.apply(decision)
        board.advance(1.0, decision.duty)
        spoke.append(any(x.startswith("predict.") for x in (*decision.notes, decision.frequency_rule)))
    return governor.predictive, spoke


def test_models_of_another_start_wait_for_what_this_baseline_makes_of_delta_t() -> None:
    """A start in the heat takes 50 °C for the board's rest; the next one, in the cool, some 30 °C."""
    hot = SimulatedBoard(EDGE, ambient_celsius=45.0, ambient_sensor=False)
    state, spoke = trained(hot, PredictiveState(), 1200)
    assert spoke[-1]
    kept = json.loads(json.dumps(models_of(state)))
    _, anew = trained(SimulatedBoard(EDGE, ambient_sensor=False), with_models(PredictiveState(), kept), 900)
    assert not anew[0]
    assert anew[-1]


def test_models_under_an_ambient_sensor_serve_at_once_after_a_restart() -> None:
    state, spoke = trained(SimulatedBoard(EDGE), PredictiveState(), 1200)
    assert spoke[-1]
    _, anew = trained(SimulatedBoard(EDGE), with_models(PredictiveState(), models_of(state)), 1)
    assert anew == [True]


@pytest.mark.parametrize("sensor", ["ambient", "power"])
@pytest.mark.parametrize(("seconds", "speaks"), [(1, True), (29, True), (31, False)])
def test_a_sensor_that_is_silent_for_a_moment_does_not_move_the_clock(
    sensor: str, seconds: int, speaks: bool, learnt: Learnt
) -> None:
    governor = GovernorState(predictive=learnt(EDGE))
    governor, before = decide(POLICY, governor, reading_of(EDGE), JOB)
    for second in range(1, seconds + 1):
        silent = {"mono_s": LONG_AFTER_S + second, "health": ((sensor, Health.MISSING),)}
        silent |= {"power_watts": None, "power_source": ""} if sensor == "power" else {}
        governor, after = decide(POLICY, governor, reading_of(EDGE, **silent), JOB)
    assert before.frequency_rule.startswith("predict.")
    assert after.frequency_rule.startswith("predict.") == speaks
    assert (after.frequency_cap_hz == before.frequency_cap_hz) == speaks
