"""The stress run on boards in memory: what passes, what fails and why, and how well the fitted models foretell."""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.injection import Injection
from agent.board.record import read_record
from agent.board.simulated import SimulatedBoard
from policies.governor import GovernorState, decide
from policies.outlook import DepthCost, Outlook
from policies.policy import Policy
from policies.power_model import switching
from policies.predictive import PredictiveState, with_models
from policies.reading import Action, Decision, Health, OperatingPoint, Reading
from service.qualify import Outcome, conclude, keep, report, rows
from service.qualify_plan import COOLED, HEATING, LOWEST, STAGES, Drill, Place
from service.qualify_view import curve, line, lines, picture, summary

BOARDS = ("raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano", "edge-22w")
AMBIENTS = (10.0, 25.0, 40.0)
POLICY = Policy()
Change = Callable[[Reading], Reading]


def run(board: SimulatedBoard, *, seconds: float = 600.0, change: Change = lambda reading: reading) -> Outcome:
    """A whole run at one reading a second of the board's time; `change` falsifies what the drill sees."""
    drill, state, work = Drill(POLICY, seconds, 0.0), GovernorState(), 0.0
    for second in itertools.count():
        reading = change(board.read(float(second)))
        state, decision = decide(POLICY, state, reading, Outlook())
        board.apply(drill.step(reading, decision, int(work)))
        if drill.ended:
            return conclude(drill, wrong=0, lost=0)
        board.advance(1.0, drill.load)
        work += 4000.0 * drill.load * board.clock_share
    raise AssertionError


def codes(outcome: Outcome) -> list[str]:
    return [reason.code for reason in outcome.verdict.reasons]


# --- what it measures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "ambient"), [*itertools.product(BOARDS, AMBIENTS)])
def test_a_sound_board_passes_and_its_models_foretell_what_was_hidden(name: str, ambient: float) -> None:
    board = SimulatedBoard(name, ambient_celsius=ambient)
    outcome = run(board)
    verdict = outcome.verdict
    assert outcome.drill.ended == "done"
    assert verdict.passed, verdict.reasons
    assert not verdict.untested
    assert verdict.delta_t_kelvin is not None
    assert 5.0 < verdict.delta_t_kelvin < 30.0
    errors = power_errors(board, outcome)
    assert max(errors) < 0.10
    assert statistics.fmean(errors) < 0.02
    assert verdict.steady_kelvin == pytest.approx(steady_truth(board), abs=1.5)


def power_errors(board: SimulatedBoard, outcome: Outcome) -> list[float]:
    """Errors of the fitted power against the board's own constants, over clock, load, heat and fan."""
    parts = board.constants
    grid = itertools.product(parts.points, (0.0, 0.25, 0.5, 0.75, 1.0), (8.0, 20.0), range(parts.fan_levels + 1))
    errors = []
    for point, load, delta, fan in grid:
        celsius = board.ambient_celsius + delta
        truth = parts.power.watts(point, load, celsius) + parts.fan_watts * fan
        moved = switching(parts.points, point.frequency_hz, load)
        told, _ = outcome.fitted.power.watts(moved, fan / parts.fan_levels, celsius)
        errors.append(abs(told - truth) / truth)
    return errors


def steady_truth(board: SimulatedBoard) -> float:
    """Delta-T of this board after hours at full load, top clock, full cooling."""
    board.apply(Decision(cooling_level=board.constants.fan_levels))
    board.advance(7200.0, 1.0)
    return board.truth.die_celsius - board.ambient_celsius


# --- what fails ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOARDS)
def test_a_fan_that_does_not_turn_is_found_out(name: str) -> None:
    board = SimulatedBoard(name)
    board._physics.constants = dataclasses.replace(board.constants, fan_gain=0.0)
    outcome = run(board)
    assert "fan-without-effect" in codes(outcome)


@pytest.mark.parametrize(("name", "minutes"), [*itertools.product(BOARDS, (1, 2, 3, 5, 7))])
def test_a_short_run_fails_no_sound_board_but_says_what_it_could_not_tell(name: str, minutes: int) -> None:
    verdict = run(SimulatedBoard(name), seconds=60.0 * minutes).verdict
    assert verdict.passed, verdict.reasons
    assert verdict.untested or minutes > 1


def test_a_board_too_warm_with_its_fan_off_is_tried_with_it_on() -> None:
    outcome = run(SimulatedBoard("raspberry-pi-4", start_fan=0), seconds=3600.0)
    assert HEATING in outcome.drill.cut
    assert outcome.verdict.passed, outcome.verdict.reasons


def test_a_board_that_grows_too_hot_is_stopped_before_the_pause_trip_is_left_behind() -> None:
    board = SimulatedBoard("raspberry-pi-4")
    board.inject(Injection(heat_watts=12.0))
    hottest = 0.0

    def watch(reading: Reading) -> Reading:
        nonlocal hottest
        hottest = max(hottest, reading.delta_t_celsius or 0.0)
        return reading

    outcome = run(board, change=watch)
    assert outcome.drill.ended == "too-hot"
    assert "too-hot" in codes(outcome)
    assert hottest < POLICY.thermal.pause.delta_kelvin + 2.0
    assert not outcome.verdict.passed


def test_above_thirty_kelvin_with_full_cooling_does_not_pass() -> None:
    board = SimulatedBoard("raspberry-pi-4")
    board._physics.constants = dataclasses.replace(board.constants, air_kelvin_per_watt=14.0)
    outcome = run(board)
    assert "delta-t-long-run" in codes(outcome)
    assert outcome.drill.cut, "with cooling in hand a stage is left, not the run failed"


def test_an_overridden_cap_is_not_obeyed() -> None:
    board = SimulatedBoard("raspberry-pi-4")
    board.inject(Injection(overrides_cap=True))
    assert "cap-not-obeyed" in codes(run(board))


def test_a_clock_that_only_says_so_is_found_out_by_the_work() -> None:
    board = SimulatedBoard("raspberry-pi-4")
    board.inject(Injection(overrides_cap=True))

    def lie(reading: Reading) -> Reading:
        return dataclasses.replace(reading, frequency_hz=600_000_000, health=())

    assert "cap-without-effect" in codes(run(board, change=lie))


@pytest.mark.parametrize(("field", "code"), [("undervoltage", "undervoltage"), ("throttled", "throttled")])
def test_trouble_with_the_supply_does_not_pass(field: str, code: str) -> None:
    def ill(reading: Reading) -> Reading:
        now = 100.0 < reading.mono_s < 130.0
        return dataclasses.replace(
            reading, undervoltage=now and field == "undervoltage", throttled=now and field == "throttled"
        )

    assert codes(run(SimulatedBoard("raspberry-pi-5"), change=ill)) == [code]


def test_a_lost_temperature_ends_the_run() -> None:
    board = SimulatedBoard("raspberry-pi-4")

    def lose(reading: Reading) -> Reading:
        if reading.mono_s < 100.0:
            return reading
        return dataclasses.replace(reading, temperature_celsius=None, health=(("temperature", Health.MISSING),))

    outcome = run(board, change=lose)
    assert outcome.drill.ended == "sensor-lost"
    assert outcome.drill.ticks[-1].at_s < 120.0
    assert "sensor-lost" in codes(outcome)


def test_a_low_battery_ends_the_run() -> None:
    outcome = run(SimulatedBoard("raspberry-pi-4", charge=0.05, on_mains=False))
    assert outcome.drill.ended == "battery"
    assert "battery" in codes(outcome)


def test_other_programs_on_the_board_do_not_pass_for_full_load() -> None:
    def idle(reading: Reading) -> Reading:
        return dataclasses.replace(reading, utilisation=reading.utilisation and 0.6 * reading.utilisation)

    assert "load-too-low" in codes(run(SimulatedBoard("raspberry-pi-4"), change=idle))


def test_wrong_results_and_a_lost_load_do_not_pass() -> None:
    outcome = run(SimulatedBoard("raspberry-pi-4"))
    again = conclude(outcome.drill, wrong=1, lost=2)
    assert codes(again) == ["wrong-results", "load-lost"]


# --- what cannot be tested -------------------------------------------------------------------------------------------


def test_levers_that_may_not_be_written_are_named_and_do_not_fail() -> None:
    def refused(reading: Reading) -> Reading:
        states = (("temperature", Health.OK), ("frequency-cap", Health.REFUSED), ("cooling", Health.REFUSED))
        return dataclasses.replace(reading, health=states)

    board = SimulatedBoard("raspberry-pi-4")
    board.inject(Injection(refuses_cap=True))
    verdict = run(board, change=refused).verdict
    assert {text.partition(":")[0] for text in verdict.untested} == {"frequency-cap", "cooling"}
    assert verdict.passed, verdict.reasons


def test_a_bare_board_is_judged_by_its_temperature_alone() -> None:
    """No clock table, no fan, no meter, no load counter, no ambient sensor."""

    def bare(reading: Reading) -> Reading:
        return Reading(
            reading.mono_s,
            temperature_celsius=reading.temperature_celsius,
            ambient_celsius=reading.ambient_celsius,
            health=(("temperature", Health.OK), ("ambient", Health.MISSING), ("power", Health.MISSING)),
        )

    outcome = run(SimulatedBoard("raspberry-pi-4"), change=bare)
    named = {text.partition(":")[0] for text in outcome.verdict.untested}
    assert named == {"load", "power", "ambient", "frequency-cap", "cooling", "power model", "heat model"}
    assert outcome.verdict.passed
    assert outcome.verdict.delta_t_kelvin is not None
    assert outcome.verdict.steady_kelvin is None
    assert summary(outcome.verdict, rows(outcome.drill))[-1] == "passed"


# --- the plan --------------------------------------------------------------------------------------------------------

POINTS = tuple(OperatingPoint(mhz * 10**6, 0.8) for mhz in (600, 1200, 1800))
SENSORS = ("temperature", "frequency-cap", "cooling")
MAYBE = st.none() | st.floats(-50, 150, allow_subnormal=False)  # the runtime switches subnormals off in its process


@given(
    readings=st.lists(
        st.builds(
            Reading,
            mono_s=st.just(0.0),
            temperature_celsius=MAYBE,
            ambient_celsius=MAYBE,
            operating_points=st.sampled_from(((), POINTS)),
            frequency_hz=st.none() | st.integers(1, 5_000_000_000),
            cooling_max=st.integers(0, 255),
            cooling_level=st.none() | st.integers(0, 255),
            power_watts=st.none() | st.floats(0, 1000, allow_subnormal=False),
            power_source=st.sampled_from(("", "model", "hwmon")),
            utilisation=st.none() | st.floats(0, 1, allow_subnormal=False),
            health=st.lists(st.tuples(st.sampled_from(SENSORS), st.sampled_from(Health)), max_size=3).map(tuple),
            throttled=st.booleans(),
            charge=st.none() | st.floats(0, 1, allow_subnormal=False),
            on_mains=st.none() | st.booleans(),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_whatever_is_read_the_drill_asks_for_nothing_a_board_has_not_and_stops_where_training_would_pause(
    readings: list[Reading],
) -> None:
    drill, state = Drill(POLICY, 30.0, 0.0), GovernorState()
    for second, reading in enumerate(readings):
        now = dataclasses.replace(reading, mono_s=float(second))
        state, decision = decide(POLICY, state, now, Outlook())
        order = drill.step(now, decision, second)
        assert 0.0 <= drill.load <= 1.0
        assert 0.0 <= drill.share <= 1.0
        assert 0 <= order.cooling_level <= now.cooling_max
        assert order.frequency_cap_hz in {None, *(point.frequency_hz for point in now.operating_points)}
        if decision.action >= Action.PAUSE:
            assert drill.ended
        if drill.ended:
            assert drill.load == 0.0
            assert order == decision
    outcome = conclude(drill, wrong=0, lost=0)
    assert outcome.verdict.passed <= (drill.ended == "done"), "no unfinished run passes"
    told = report(outcome, Place(Path(), "x", "generic", emulated=False))
    json.dumps(told, allow_nan=False)
    picture(drill, outcome.fitted, 30.0, "x")
    assert summary(outcome.verdict, rows(drill))
    assert lines(drill)


def test_the_stages_heat_cool_and_move_every_lever() -> None:
    names = [stage.name for stage in STAGES]
    assert len(set(names)) == len(names)
    assert names.index(HEATING) + 1 == names.index(COOLED), "the fan is judged by the step between them"
    assert {LOWEST} <= set(names)
    assert STAGES[0].load == 0.0
    assert len({stage.clock for stage in STAGES}) >= 4
    assert len({stage.cooling for stage in STAGES}) >= 4


# --- the record and what people see ----------------------------------------------------------------------------------


def place(folder: Path) -> Place:
    return Place(folder, "Emulated Raspberry Pi 4", "raspberry-pi-4", emulated=True)


def test_the_record_keeps_how_it_ended_and_an_interrupted_run_leaves_it_alone(tmp_path: Path) -> None:
    outcome = run(SimulatedBoard("raspberry-pi-4"))
    keep(outcome, place(tmp_path), now=1.8e9)
    record = read_record(tmp_path, "Emulated Raspberry Pi 4").record
    assert record is not None
    assert record.qualification is not None
    assert record.qualification.passed
    assert record.qualification.modelled
    assert record.qualification.delta_t_kelvin == outcome.verdict.delta_t_kelvin
    state = with_models(PredictiveState(), record.models)
    assert state.power.estimate == outcome.fitted.power.estimate

    outcome.drill.ended = "stopped"
    keep(conclude(outcome.drill, wrong=1, lost=0), place(tmp_path), now=1.9e9)
    assert read_record(tmp_path, "Emulated Raspberry Pi 4").record == record

    outcome.drill.ended = "too-hot"
    keep(conclude(outcome.drill, wrong=0, lost=0), place(tmp_path), now=1.9e9)
    again = read_record(tmp_path, "Emulated Raspberry Pi 4").record
    assert again is not None
    assert again.qualification is not None
    assert again.qualification.reasons == ("too-hot",)
    assert again.models == record.models, "what was learnt before stays"


def test_the_governor_predicts_from_the_first_reading_of_a_job_after_a_run(tmp_path: Path) -> None:
    board = SimulatedBoard("raspberry-pi-4")
    keep(run(board), place(tmp_path), now=1.8e9)
    record = read_record(tmp_path, "Emulated Raspberry Pi 4").record
    assert record is not None
    board.advance(1.0, 0.0)
    reading = board.read(10_000.0)
    job = Outlook(costs=(DepthCost(0, 0.1, measured=True),), samples_left=10_000)
    _, fresh = decide(POLICY, GovernorState(), reading, job)
    learnt = GovernorState(predictive=with_models(PredictiveState(), record.models))
    _, decision = decide(POLICY, learnt, reading, job)
    assert not {rule for rule in named(fresh) if rule.startswith("predict.")}
    assert {rule for rule in named(decision) if rule.startswith("predict.")}


def named(decision: Decision) -> set[str]:
    return {decision.rule, decision.frequency_rule, decision.depth_rule, *decision.notes}


def test_people_see_a_summary_curves_and_a_picture() -> None:
    outcome = run(SimulatedBoard("raspberry-pi-4"))
    told = "\n".join(summary(outcome.verdict, rows(outcome.drill)))
    assert told.endswith("passed")
    assert COOLED in told
    assert "100%" in line(outcome.drill)
    shown = lines(outcome.drill)
    assert all(len(row) <= 80 for row in shown)
    drawn = picture(outcome.drill, outcome.fitted, 30.0, "a & b")
    assert drawn.startswith("<svg")
    assert "a &amp; b" in drawn
    assert drawn.count("<polyline") == 8
    empty = Drill(POLICY, 60.0, 0.0)
    assert lines(empty)
    assert line(empty)


@given(st.lists(st.none() | st.floats(-1e9, 1e9, allow_subnormal=False), max_size=200), st.integers(1, 80))
def test_a_curve_fits_its_width(values: list[float | None], width: int) -> None:
    assert len(curve(values, width)) <= width


def test_a_curve_spans_lowest_to_highest() -> None:
    assert curve([1.0, None, 3.0, 2.0]) == "▁ █▄"
    assert curve([]) == ""
    assert curve([5.0, 5.0]) == "▁▁"
