from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.governor import RULES, GovernorState, decide, load_state
from policies.outlook import Outlook
from policies.policy import DEPTH_LADDER, Policy, parse_policy
from policies.reading import Action, Decision, OperatingPoint, Reading
from policies.strict import TableError

POLICY = Policy()
POINTS = tuple(OperatingPoint(mhz * 1_000_000, 0.8) for mhz in range(600, 1801, 100))
COOL = Reading(
    mono_s=0.0,
    temperature_celsius=45.0,
    ambient_celsius=25.0,
    operating_points=POINTS,
    charge=0.8,
    on_mains=True,
    cooling_max=4,
)
STRICT_KEYS = ("action", "least_depth_percent", "cooling_level")


def after(*readings: Reading, policy: Policy = POLICY, depth: int = 50) -> Decision:
    """The decision after a row of readings, one a second."""
    state = GovernorState()
    decision = Decision()
    for second, reading in enumerate(readings):
        state, decision = decide(policy, state, replace(reading, mono_s=float(second)), Outlook(depth))
    return decision


def at(celsius: float | None, **changes: object) -> Reading:
    return replace(COOL, temperature_celsius=celsius, **changes)  # type: ignore[arg-type]


STEADY = replace(POLICY, thermal=replace(POLICY.thermal, rise_lookahead_s=0.0))
"""Without the rule of rise, so that a table can jump between temperatures."""


@pytest.mark.parametrize(
    ("readings", "action", "rule", "mhz", "duty", "depth", "cooling"),
    [
        ([COOL], Action.RUN, "run", 1800, 1.0, 0, 0),
        ([at(55.0)], Action.RUN, "run", 1800, 1.0, 0, 0),  # the trip itself is not above the trip
        ([at(55.1)], Action.SLOW, "thermal.delta-t-slow", 1400, 0.75, 50, 2),
        ([at(58.1)], Action.SLOW, "thermal.delta-t-hot", 1000, 0.5, 75, 3),
        ([at(60.1)], Action.PAUSE, "thermal.delta-t-pause", 600, 0.0, 75, 4),
        ([at(70.1, ambient_celsius=50.0)], Action.SLOW, "thermal.absolute-slow", 1400, 0.75, 50, 2),
        ([at(76.1, ambient_celsius=50.0)], Action.SLOW, "thermal.absolute-hot", 1000, 0.5, 75, 3),
        ([at(80.1, ambient_celsius=50.0)], Action.PAUSE, "thermal.absolute-pause", 600, 0.0, 75, 4),
        ([at(95.1, ambient_celsius=70.0)], Action.ABORT, "thermal.critical", 600, 0.0, 75, 4),
        ([at(71.0, ambient_celsius=None)], Action.SLOW, "thermal.absolute-slow", 1400, 0.75, 50, 2),
        ([at(None)], Action.SLOW, "thermal.sensor-missing", 600, 0.5, 50, 3),
        ([at(None)] * 5, Action.PAUSE, "thermal.sensor-missing-pause", 600, 0.0, 75, 4),
        ([at(None)] * 5 + [COOL], Action.RUN, "run", 1800, 1.0, 0, 0),
        ([at(45.0, charge=0.19, on_mains=False)], Action.SLOW, "battery.low", 1300, 1.0, 50, 0),
        ([at(45.0, charge=0.19, on_mains=True)], Action.RUN, "run", 1800, 1.0, 0, 0),
        ([at(45.0, charge=0.09, on_mains=False)], Action.PAUSE, "battery.pause", 600, 0.0, 50, 0),
        ([at(45.0, charge=0.09, on_mains=None)], Action.PAUSE, "battery.pause", 600, 0.0, 50, 0),
        ([at(45.0, charge=None, on_mains=False)], Action.SLOW, "battery.unknown", 1300, 1.0, 50, 0),
        ([at(45.0, charge=None, on_mains=None)], Action.RUN, "run", 1800, 1.0, 0, 0),  # no battery at all
        ([at(45.0, charge=1.0, undervoltage=True)], Action.SLOW, "supply.undervoltage", 1300, 0.5, 0, 0),
        ([at(45.0, throttled=True)], Action.SLOW, "supply.throttled", 1800, 0.75, 0, 0),
    ],
)
def test_each_rule(
    readings: list[Reading], action: Action, rule: str, mhz: int, duty: float, depth: int, cooling: int
) -> None:
    decision = after(*readings, policy=STEADY)
    assert (decision.action, decision.rule) == (action, rule)
    assert decision.frequency_cap_hz == mhz * 1_000_000
    assert (decision.duty, decision.least_depth_percent, decision.cooling_level) == (duty, depth, cooling)


def test_clock_cap_follows_the_planned_depth() -> None:
    decision = after(COOL, depth=75)
    assert (decision.action, decision.rule) == (Action.RUN, "run")
    assert (decision.frequency_cap_hz, decision.frequency_rule) == (1_300_000_000, "dvfs.frozen")
    assert decision.notes == ("dvfs.frozen",)


def test_heat_that_deepens_the_freeze_lowers_the_clock_with_it() -> None:
    policy = parse_policy(
        "[thermal.slow]\nfrequency_ratio = 1.0\nleast_depth_percent = 75\n[thermal]\nrise_lookahead_s=0"
    )
    decision = after(at(56.0), policy=policy, depth=0)
    assert (decision.rule, decision.depth_rule) == ("thermal.delta-t-slow", "thermal.delta-t-slow")
    assert (decision.frequency_cap_hz, decision.frequency_rule) == (1_300_000_000, "dvfs.frozen")


def test_strictest_rule_is_named_and_the_others_are_noted() -> None:
    decision = after(at(56.0, charge=0.05, on_mains=False, undervoltage=True), policy=STEADY)
    assert decision.rule == "battery.pause"
    assert set(decision.notes) == {"thermal.delta-t-slow", "battery.low", "supply.undervoltage", "supply.lost"}


def test_board_without_clock_table_has_no_cap() -> None:
    decision = after(at(70.0, operating_points=()), policy=STEADY)
    assert decision.frequency_cap_hz is None
    assert decision.frequency_rule == "unlimited"


def test_heat_stages_are_left_below_their_trips_one_after_the_other() -> None:
    seen = [after(at(61.0), *[at(t) for t in row], policy=STEADY).rule for row in ([57.1], [56.9], [56.9, 54.9])]
    assert seen == ["thermal.delta-t-pause", "thermal.delta-t-hot", "thermal.delta-t-slow"]
    assert after(at(61.0), at(51.9), policy=STEADY).rule == "run"


def test_battery_pause_ends_above_its_hysteresis_even_on_mains() -> None:
    low = at(45.0, charge=0.09, on_mains=False)
    assert after(low, at(45.0, charge=0.14, on_mains=True)).rule == "battery.pause"
    assert after(low, at(45.0, charge=0.15, on_mains=True)).rule == "battery.low"
    assert after(low, at(45.0, charge=0.25, on_mains=True)).rule == "run"


def test_undervoltage_holds_after_its_last_sign() -> None:
    sag = at(45.0, undervoltage=True)
    assert after(sag, *[COOL] * 29).rule == "supply.undervoltage"
    assert after(sag, *[COOL] * 30).rule == "run"


def test_undervoltage_does_not_hold_for_ever_when_the_clock_restarts() -> None:
    state, _ = decide(POLICY, GovernorState(), at(45.0, undervoltage=True, mono_s=1e6), Outlook(50))
    _, decision = decide(POLICY, state, at(45.0, mono_s=1.0), Outlook(50))
    assert decision.rule == "run"


def test_fast_rise_slows_before_the_trip() -> None:
    assert after(*[at(40.0 + 1.5 * n) for n in range(9)]).rule == "thermal.rise-slow"
    assert after(*[at(40.0 + 0.1 * n) for n in range(9)]).rule == "run"


def test_memory_above_the_reverify_trip_is_suspect_until_training_goes_on() -> None:
    state = GovernorState()
    seen = []
    for second, celsius in enumerate([60.0, 86.0, 84.0, 40.0, 40.0]):
        state, decision = decide(STEADY, state, at(celsius, ambient_celsius=30.0, mono_s=float(second)), Outlook(50))
        seen.append((decision.action, decision.reverify))
    assert seen == [
        (Action.RUN, False),
        (Action.PAUSE, True),
        (Action.PAUSE, True),
        (Action.RUN, True),
        (Action.RUN, False),
    ]


def test_lost_ambient_does_not_hold_a_pause_for_ever() -> None:
    assert after(at(61.0), at(61.0, ambient_celsius=None), policy=STEADY).rule == "thermal.delta-t-slow"


def test_machine_without_sensor_stays_slow_when_the_policy_says_so() -> None:
    policy = parse_policy("[thermal]\npause_without_sensor = false")
    assert after(*[at(None)] * 20, policy=policy).rule == "thermal.sensor-missing"


def test_rules_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/policy.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([a-z]+\.[a-z0-9-]+)` \|", text, re.MULTILINE))
    freezing = {f"freezing.similarity-{x}" for x in (75, 50, 25, 0, "unknown")}
    assert documented == set(RULES) | freezing


def test_a_state_from_before_the_prediction_loads() -> None:
    state = run_states([COOL])
    table = dataclasses.asdict(state)
    del table["predictive"]
    assert load_state(table) == replace(state, predictive=GovernorState().predictive)


def test_a_state_whose_models_are_none_is_refused() -> None:
    table = json.loads(json.dumps(dataclasses.asdict(GovernorState())))
    table["predictive"]["power"]["estimate"]["mean"] = [1.0]
    with pytest.raises(TableError, match="power"):
        load_state(table)


def celsius() -> st.SearchStrategy[float | None]:
    return st.none() | st.floats(-20, 130, allow_subnormal=False)


READINGS = st.builds(
    Reading,
    mono_s=st.floats(0, 1e6, allow_subnormal=False),
    temperature_celsius=celsius(),
    ambient_celsius=celsius(),
    operating_points=st.sampled_from([POINTS, POINTS[:1], ()]),
    charge=st.none() | st.floats(0, 1, allow_subnormal=False),
    on_mains=st.sampled_from([None, True, False]),
    undervoltage=st.booleans(),
    throttled=st.booleans(),
    cooling_max=st.integers(0, 10),
)


def run_states(readings: list[Reading]) -> GovernorState:
    state = GovernorState()
    for reading in readings:
        state, _ = decide(POLICY, state, reading, Outlook(50))
    return state


@given(st.lists(READINGS, max_size=6), READINGS, st.sampled_from(DEPTH_LADDER))
def test_a_decision_keeps_every_bound(before: list[Reading], reading: Reading, depth: int) -> None:
    state, decision = decide(POLICY, run_states(before), reading, Outlook(depth))
    known = set(RULES)
    assert decision.rule in known | {"run"}
    assert decision.frequency_rule in known | {"unlimited"}
    assert decision.depth_rule in known | {"plan"}
    assert set(decision.notes) <= known
    assert (decision.rule == "run") == (decision.action is Action.RUN)
    assert 0.0 <= decision.duty <= 1.0
    assert (decision.duty == 0.0) == (decision.action >= Action.PAUSE)
    assert decision.least_depth_percent in DEPTH_LADDER
    assert 0 <= decision.cooling_level <= reading.cooling_max
    frequencies = [point.frequency_hz for point in reading.operating_points]
    if frequencies:
        assert decision.frequency_cap_hz in frequencies
        if max(depth, decision.least_depth_percent) > 50:
            bound = 0.73 * frequencies[-1]
            assert decision.frequency_cap_hz <= bound or decision.frequency_cap_hz == frequencies[0]
    else:
        assert decision.frequency_cap_hz is None
    assert load_state(json.loads(json.dumps(dataclasses.asdict(state)))) == state


@given(
    st.lists(READINGS, max_size=6),
    READINGS,
    st.floats(-20, 130, allow_subnormal=False),
    st.floats(-20, 130, allow_subnormal=False),
)
def test_hotter_is_never_faster(before: list[Reading], reading: Reading, one: float, other: float) -> None:
    state = run_states(before)
    low, high = sorted((one, other))
    _, cool = decide(POLICY, state, replace(reading, temperature_celsius=low), Outlook(0))
    _, hot = decide(POLICY, state, replace(reading, temperature_celsius=high), Outlook(0))
    assert hot.duty <= cool.duty
    assert (hot.frequency_cap_hz or 0) <= (cool.frequency_cap_hz or 0)
    assert all(getattr(hot, key) >= getattr(cool, key) for key in STRICT_KEYS)
    assert hot.reverify or not cool.reverify


@settings(max_examples=50)
@given(
    st.sampled_from([30.0, 33.0, 35.0]),
    st.booleans(),
    st.lists(st.floats(0.001, 1.0, allow_subnormal=False), min_size=1, max_size=30),
)
def test_no_chatter_inside_the_hysteresis(trip: float, entered: bool, shares: list[float]) -> None:
    # Between the trip and the nearest lower border nothing may change, from above or from below. The bands of
    # neighbouring trips overlap, so only the part above the next trip down belongs to this trip alone.
    band = min(2.0 if trip == 35.0 else 3.0, POLICY.thermal.hysteresis_kelvin)
    start = trip + 0.5 if entered else trip - band + 0.001
    row = [at(25.0 + start), *(at(25.0 + trip - band + band * share * 0.999) for share in shares)]
    rules = set()
    state = GovernorState()
    for second, reading in enumerate(row):
        state, decision = decide(STEADY, state, replace(reading, mono_s=float(second)), Outlook(50))
        rules.add((decision.action, decision.frequency_cap_hz, decision.least_depth_percent))
    assert len(rules) == 1
