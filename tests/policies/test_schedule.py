from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.governor import GovernorState, decide
from policies.outlook import Outlook
from policies.policy import Policy, PolicyError, parse_policy
from policies.policy_schedule import MINUTES_A_DAY, SchedulePolicy
from policies.reading import Action, Decision, OperatingPoint, Reading
from policies.schedule import bounds, is_quiet

POINTS = tuple(OperatingPoint(mhz * 1_000_000, 0.8) for mhz in range(600, 1801, 100))
COOL = Reading(0.0, 45.0, 25.0, operating_points=POINTS, charge=0.8, on_mains=True, cooling_max=4)


def minute(text: str) -> int:
    hour, _, rest = text.partition(":")
    return int(hour) * 60 + int(rest)


def clock(value: int) -> str:
    return f"{value // 60:02d}:{value % 60:02d}"


def decided(policy: Policy, minute_of_day: int | None, reading: Reading = COOL) -> Decision:
    return decide(policy, GovernorState(), reading, Outlook(minute_of_day=minute_of_day))[1]


@pytest.mark.parametrize(
    ("quiet", "at", "expected"),
    [
        ("22:00-07:00", "21:59", False),
        ("22:00-07:00", "22:00", True),
        ("22:00-07:00", "23:59", True),
        ("22:00-07:00", "00:00", True),
        ("22:00-07:00", "06:59", True),
        ("22:00-07:00", "07:00", False),
        ("22:00-07:00", "12:00", False),
        ("12:30-13:15", "12:29", False),
        ("12:30-13:15", "12:30", True),
        ("12:30-13:15", "13:14", True),
        ("12:30-13:15", "13:15", False),
        ("00:00-23:59", "23:58", True),
        ("00:00-23:59", "23:59", False),
        ("23:59-00:00", "23:59", True),
        ("23:59-00:00", "00:00", False),
        ("", "03:00", False),
    ],
)
def test_quiet_hours(quiet: str, at: str, expected: bool) -> None:
    assert is_quiet(SchedulePolicy(quiet=quiet), minute(at)) is expected


def test_without_a_trusted_clock_nothing_is_quiet() -> None:
    policy = SchedulePolicy(quiet="00:00-23:59", quiet_action="pause")
    assert list(bounds(policy, Outlook(minute_of_day=None))) == []


def test_quiet_hours_slow_and_name_their_rule() -> None:
    policy = parse_policy('[schedule]\nquiet = "22:00-07:00"')
    decision = decided(policy, minute("23:00"))
    assert (decision.action, decision.rule, decision.frequency_rule) == (Action.SLOW, *["schedule.quiet"] * 2)
    assert (decision.frequency_cap_hz, decision.duty, decision.cooling_level) == (1_000_000_000, 0.5, 0)
    assert decided(policy, minute("12:00")).rule == "run"


def test_quiet_hours_pause_when_the_policy_says_so() -> None:
    policy = parse_policy('[schedule]\nquiet = "22:00-07:00"\nquiet_action = "pause"')
    decision = decided(policy, minute("06:59"))
    assert (decision.action, decision.rule, decision.duty) == (Action.PAUSE, "schedule.quiet", 0.0)
    assert decision.frequency_cap_hz == 600_000_000


def test_heat_binds_over_quiet_hours() -> None:
    policy = parse_policy('[schedule]\nquiet = "22:00-07:00"')
    decision = decided(policy, minute("23:00"), Reading(0.0, 61.0, 25.0, operating_points=POINTS, cooling_max=4))
    assert decision.rule == "thermal.delta-t-pause"
    assert "schedule.quiet" in decision.notes


@pytest.mark.parametrize(
    "text", ["22:00", "22-07", "24:00-07:00", "22:60-07:00", "22:00-22:00", "2:00-7:00", "-1:00-7:0", "²2:00-07:00"]
)
def test_hours_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(PolicyError, match="must look like") as caught:
        parse_policy(f'[schedule]\nquiet = "{text}"')
    assert caught.value.key == "schedule.quiet"


@given(st.integers(0, MINUTES_A_DAY - 1), st.integers(0, MINUTES_A_DAY - 1), st.integers(0, MINUTES_A_DAY - 1))
def test_every_minute_is_in_the_hours_or_in_their_opposite(begin: int, end: int, now: int) -> None:
    if begin == end:
        return
    there = SchedulePolicy(quiet=f"{clock(begin)}-{clock(end)}")
    back = SchedulePolicy(quiet=f"{clock(end)}-{clock(begin)}")
    assert is_quiet(there, now) is not is_quiet(back, now)
    assert sum(is_quiet(there, m) for m in range(MINUTES_A_DAY)) == (end - begin) % MINUTES_A_DAY


@given(
    st.sampled_from(["slow", "pause"]),
    st.floats(-20, 130, allow_subnormal=False),
    st.none() | st.floats(0, 1, allow_subnormal=False),
)
def test_quiet_hours_are_never_faster(action: str, celsius: float, charge: float | None) -> None:
    policy = parse_policy(f'[schedule]\nquiet = "22:00-07:00"\nquiet_action = "{action}"')
    reading = Reading(0.0, celsius, 25.0, operating_points=POINTS, charge=charge, on_mains=False, cooling_max=4)
    quiet, loud = decided(policy, 0, reading), decided(policy, minute("12:00"), reading)
    assert quiet.action >= loud.action
    assert quiet.duty <= loud.duty
    assert (quiet.frequency_cap_hz or 0) <= (loud.frequency_cap_hz or 0)
