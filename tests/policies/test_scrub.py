from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.policy import PolicyError, ScrubPolicy, parse_policy
from policies.reading import Action, Decision
from policies.scrub import FRESH_S, SETTLE_S, ScrubClock, allowed, due, due_before_job, duty

POLICY = ScrubPolicy()
DAY_S = 86_400.0
TWELVE_H = 12 * 3600.0


def clock(running_s: float = SETTLE_S, elapsed_s: float | None = 0.0, *, scrubbed: bool = False) -> ScrubClock:
    return ScrubClock(running_s, scrubbed, elapsed_s)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (clock(SETTLE_S - 1, None), False),
        (clock(SETTLE_S, None), True),  # never scrubbed, or no believable time
        (clock(elapsed_s=TWELVE_H - 1), False),
        (clock(elapsed_s=TWELVE_H), True),
        (clock(elapsed_s=-1.0), True),  # the clock was set back: once, see below
        (clock(elapsed_s=10 * 365 * DAY_S), True),  # or ten years ahead
        (clock(elapsed_s=-1.0, scrubbed=True), False),
        (clock(elapsed_s=10 * 365 * DAY_S, scrubbed=True), False),
        (clock(TWELVE_H - 1, scrubbed=True), False),
        (clock(TWELVE_H, scrubbed=True), True),
        (clock(TWELVE_H, 0.0), True),  # a clock that stands still puts nothing off
    ],
)
def test_due(when: ScrubClock, *, expected: bool) -> None:
    assert due(POLICY, when) is expected


@given(st.lists(st.floats(-1e10, 1e10, allow_subnormal=False), min_size=1, max_size=200))
def test_no_wall_clock_starts_scrubs_without_end_or_puts_them_off_for_ever(wall: list[float]) -> None:
    """The daemon's own bookkeeping, an hour a step: the wall clock says anything."""
    scrubs, running_s, scrubbed, last = 0, 0.0, False, wall[0]
    for now in wall:
        running_s += 3600.0
        if due(POLICY, ScrubClock(running_s, scrubbed, now - last)):
            scrubs, running_s, scrubbed, last = scrubs + 1, 0.0, True, now
    assert len(wall) // 12 <= scrubs <= 1 + len(wall) // 12


def test_a_job_waits_for_a_scrub_unless_one_has_just_been() -> None:
    assert due_before_job(clock(0.0))
    assert not due_before_job(clock(FRESH_S - 1, scrubbed=True))
    assert due_before_job(clock(FRESH_S, scrubbed=True))


def test_not_in_the_heat_and_not_when_charge_is_short() -> None:
    assert allowed(Decision())
    assert allowed(Decision(action=Action.SLOW, rule="thermal.delta-t-slow"))
    assert not allowed(Decision(action=Action.PAUSE, rule="thermal.delta-t-pause"))
    assert not allowed(Decision(action=Action.ABORT, rule="thermal.critical"))
    assert not allowed(Decision(action=Action.SLOW, rule="battery.low"))
    assert not allowed(Decision(action=Action.SLOW, rule="thermal.delta-t-slow", notes=("battery.low",)))


def test_duty_is_the_policys_share_of_the_governors() -> None:
    decision = Decision(action=Action.SLOW, duty=0.5)
    assert duty(POLICY, decision, awaited=False) == 0.125
    assert duty(POLICY, decision, awaited=True) == 0.5


@pytest.mark.parametrize("line", ["every_hours = 0", "every_hours = 721", "duty = 0.0", "duty = 1.1", "hours = 12"])
def test_the_policy_is_strict(line: str) -> None:
    with pytest.raises(PolicyError, match="scrub"):
        parse_policy(f"[scrub]\n{line}\n")
