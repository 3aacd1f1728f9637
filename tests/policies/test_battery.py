from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.battery import BatteryState, bounds, is_short, judge, order_jobs
from policies.governor import GovernorState, decide
from policies.outlook import Outlook
from policies.policy import BatteryPolicy, Policy
from policies.reading import Action, Decision, OperatingPoint, Reading

BATTERY = BatteryPolicy()
POINTS = tuple(OperatingPoint(mhz * 1_000_000, 0.8) for mhz in range(600, 1801, 100))
COOL = Reading(0.0, 45.0, 25.0, operating_points=POINTS, charge=0.8, on_mains=True, cooling_max=4)
JOBS = (("a", 25), ("b", 75), ("c", 0), ("d", 75))


def decisions(*readings: Reading, policy: Policy | None = None) -> list[Decision]:
    """The decisions after a row of readings, one a second."""
    state, made = GovernorState(), []
    for second, reading in enumerate(readings):
        state, decision = decide(policy or Policy(), state, replace(reading, mono_s=float(second)), Outlook())
        made.append(decision)
    return made


def supply(charge: float | None, *, mains: bool | None) -> Reading:
    return replace(COOL, charge=charge, on_mains=mains)


def test_mains_that_goes_away_lowers_the_clock_with_the_next_reading_at_any_charge() -> None:
    before, after = decisions(supply(1.0, mains=True), supply(1.0, mains=False))
    assert (before.frequency_cap_hz, before.frequency_rule) == (1_800_000_000, "unlimited")
    assert (after.frequency_cap_hz, after.frequency_rule) == (1_500_000_000, "supply.lost")
    assert (after.action, after.rule, after.duty) == (Action.RUN, "run", 1.0)


def test_mains_that_goes_away_at_a_low_charge_slows_with_the_next_reading() -> None:
    before, after = decisions(supply(0.15, mains=True), supply(0.15, mains=False))
    assert (before.rule, after.rule) == ("run", "battery.low")
    assert decisions(supply(0.05, mains=True), supply(0.05, mains=False))[1].rule == "battery.pause"


def test_mains_that_flickers_does_not_move_the_clock_to_and_fro() -> None:
    row = [supply(0.8, mains=second % 7 == 0) for second in range(120)]
    caps = {decision.frequency_cap_hz for decision in decisions(*row)[1:]}
    assert caps == {1_500_000_000}


def test_mains_that_is_back_counts_after_the_hold() -> None:
    row = decisions(supply(0.8, mains=False), *[supply(0.8, mains=True)] * 30)
    assert [decision.frequency_rule for decision in (row[29], row[30])] == ["supply.lost", "unlimited"]


def test_a_board_that_does_not_know_its_supply_is_not_held_back_at_a_full_charge() -> None:
    assert decisions(supply(0.9, mains=None))[0].frequency_rule == "unlimited"


def test_charging_again_leaves_a_mark_above_its_hysteresis_only() -> None:
    row = [0.09, 0.11, 0.149, 0.15, 0.2, 0.249, 0.25]
    seen = [decision.rule for decision in decisions(*[supply(charge, mains=True) for charge in row])]
    assert seen == ["run"] * len(row), "on mains no mark is undercut"
    seen = [d.rule for d in decisions(supply(0.09, mains=False), *[supply(charge, mains=True) for charge in row])]
    assert seen == ["battery.pause"] * 4 + ["battery.low"] * 3 + ["run"]


@pytest.mark.parametrize(
    ("readings", "short"),
    [
        ([supply(0.5, mains=False)], False),
        ([supply(0.2, mains=False)], False),
        ([supply(0.19, mains=False)], True),
        ([supply(0.19, mains=True)], False),
        ([supply(0.19, mains=None)], True),
        ([supply(None, mains=False)], True),
        ([supply(None, mains=None)], False),
        ([supply(0.05, mains=False)], True),
        ([supply(0.19, mains=False), supply(0.22, mains=True)], True),
        ([supply(0.19, mains=False), supply(0.25, mains=True)], False),
        ([replace(supply(0.19, mains=False), temperature_celsius=59.5)], True),
    ],
)
def test_when_charge_is_short(readings: list[Reading], short: bool) -> None:
    assert is_short(decisions(*readings)[-1]) is short


@pytest.mark.parametrize(
    ("short", "order", "expected"),
    [
        (False, "most-frozen-first", "abcd"),
        (False, "least-frozen-first", "abcd"),
        (True, "most-frozen-first", "bdac"),
        (True, "least-frozen-first", "cabd"),
    ],
)
def test_order_of_jobs(short: bool, order: str, expected: str) -> None:
    policy = dataclasses.replace(BATTERY, order=order)
    assert "".join(order_jobs(policy, JOBS, short=short)) == expected


@given(st.lists(st.sampled_from([0, 25, 50, 75, 100]), max_size=12), st.booleans())
def test_the_two_orders_lose_no_job_and_run_opposite_ways(depths: list[int], short: bool) -> None:
    jobs = [(str(number), depth) for number, depth in enumerate(depths)]
    deep = dict(jobs)
    for order, sign in (("most-frozen-first", -1), ("least-frozen-first", 1)):
        names = order_jobs(dataclasses.replace(BATTERY, order=order), jobs, short=short)
        assert sorted(names) == sorted(deep)
        keys = [(sign * deep[name] if short else 0, int(name)) for name in names]
        assert keys == sorted(keys)


CHARGES = st.floats(0, 1, allow_subnormal=False)
READINGS = st.builds(
    Reading,
    mono_s=st.floats(0, 1e4, allow_subnormal=False),
    charge=st.none() | CHARGES,
    on_mains=st.sampled_from([None, True, False]),
    undervoltage=st.booleans(),
    throttled=st.booleans(),
)


def after(readings: list[Reading]) -> BatteryState:
    state = BatteryState()
    for reading in readings:
        state = judge(BATTERY, state, reading)
    return state


@given(st.lists(READINGS, max_size=6), READINGS, CHARGES, CHARGES)
def test_a_lower_charge_is_never_faster(before: list[Reading], reading: Reading, one: float, other: float) -> None:
    low, high = sorted((one, other))
    state = after(before)
    empty = list(bounds(BATTERY, judge(BATTERY, state, replace(reading, charge=low))))
    full = list(bounds(BATTERY, judge(BATTERY, state, replace(reading, charge=high))))
    assert {bound.rule for bound in full} <= {bound.rule for bound in empty}


@given(
    st.lists(READINGS, max_size=6),
    st.sampled_from([0.10, 0.20]),
    st.lists(st.floats(0, 0.999, allow_subnormal=False), max_size=20),
)
def test_a_charge_that_moves_inside_the_hysteresis_changes_nothing(
    before: list[Reading], mark: float, shares: list[float]
) -> None:
    state = after([*before, Reading(1e4, charge=mark + 0.02, on_mains=True)])
    for number, share in enumerate(shares):
        charge = mark + BATTERY.hysteresis_charge * share
        state_now = judge(BATTERY, state, Reading(1e4 + number, charge=charge, on_mains=number % 2 == 0))
        marks = ("paused",) if mark == BATTERY.pause_charge else ("low",)
        assert [getattr(state_now, name) for name in marks] == [getattr(state, name) for name in marks]
        state = state_now


@given(st.lists(READINGS, max_size=6))
def test_without_mains_a_charge_below_the_mark_always_pauses(before: list[Reading]) -> None:
    state = judge(BATTERY, after(before), Reading(1e4, charge=0.0999, on_mains=False))
    assert state.paused
    assert state.lost_until_s is not None


def test_a_charge_that_is_no_number_is_unknown() -> None:
    row = decisions(supply(0.05, mains=False), supply(math.nan, mains=False))
    assert [decision.rule for decision in row] == ["battery.pause", "battery.pause"]
    assert decisions(supply(math.nan, mains=False))[0].rule == "battery.unknown"
