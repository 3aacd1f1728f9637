"""Memory that runs short: smaller at once, larger again only after a calm time."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies import memory
from policies.governor import GovernorState, decide, load_state
from policies.memory import SETTLE_S, SHARES, MemoryState, judge
from policies.outlook import Outlook
from policies.policy import Policy, PolicyError, parse_policy
from policies.policy_memory import MemoryPolicy
from policies.reading import Action, Reading

MARKS = MemoryPolicy()
MIB = 1 << 20
UNTIMED = settings(deadline=None)


def reading(mono_s: float, mib: float | None = 1000.0, waited: float | None = 0.0) -> Reading:
    pressure = () if waited is None else (("cpu", 0.9), ("memory", waited))
    available = None if mib is None else int(mib * MIB)
    return Reading(mono_s, memory_available_bytes=available, pressure=pressure)


def levels(*seen: Reading, marks: MemoryPolicy = MARKS) -> list[int]:
    state, found = MemoryState(), []
    for one in seen:
        state = judge(marks, state, one)
        found.append(state.level)
    return found


SHORT = st.builds(
    reading, st.just(0.0), st.floats(0, 95, allow_subnormal=False), st.floats(0, 1, allow_subnormal=False)
) | st.builds(
    reading,
    st.just(0.0),
    st.none() | st.floats(0, 4000, allow_subnormal=False),
    st.floats(0.11, 1, allow_subnormal=False),
)
BETWEEN = st.builds(
    reading, st.just(0.0), st.floats(97, 159, allow_subnormal=False), st.floats(0, 0.1, allow_subnormal=False)
) | st.builds(
    reading,
    st.just(0.0),
    st.none() | st.floats(97, 4000, allow_subnormal=False),
    st.floats(0.06, 0.1, allow_subnormal=False),
)
PLENTY = st.builds(
    reading, st.just(0.0), st.floats(161, 4000, allow_subnormal=False), st.floats(0, 0.05, allow_subnormal=False)
)
ANY = SHORT | BETWEEN | PLENTY | st.just(reading(0.0, None, None))


def test_at_the_marks() -> None:
    assert levels(reading(0, 96.0)) == [0]
    assert levels(reading(0, 95.9)) == [1]
    assert levels(reading(0, 1000, 0.1)) == [0]
    assert levels(reading(0, 1000, 0.101)) == [1]
    assert levels(reading(0, None, 0.2)) == [1]
    assert levels(reading(0, 50, None)) == [1]
    assert levels(reading(0, None, None)) == [0]


def test_it_goes_down_step_by_step_and_comes_back_step_by_step() -> None:
    down = [reading(t, 50) for t in range(40)]
    up = [reading(40 + t, 200) for t in range(200)]
    found = levels(*down, *up)
    assert [found[t] for t in (0, 9, 10, 19, 20, 39)] == [1, 1, 2, 2, 3, 3]
    assert [found[40 + t] for t in (59, 60, 119, 120, 179, 180)] == [3, 2, 2, 1, 1, 0]


def test_one_short_moment_begins_the_calm_time_anew() -> None:
    seen = [reading(0, 50), *(reading(t, 200) for t in range(1, 60)), reading(60, 130)]
    assert levels(*seen, *(reading(t, 200) for t in range(61, 121)))[-1] == 1
    assert levels(*seen, *(reading(t, 200) for t in range(61, 122)))[-1] == 0


@UNTIMED
@given(st.lists(BETWEEN, max_size=30), st.integers(0, 3))
def test_inside_the_hysteresis_nothing_moves(seen: list[Reading], level: int) -> None:
    state = MemoryState(level)
    for second, one in enumerate(seen):
        state = judge(MARKS, state, replace(one, mono_s=1e3 * second))
        assert state.level == level


@UNTIMED
@given(st.lists(ANY, max_size=60), st.integers(1, 120))
def test_steps_down_settle_and_steps_up_wait(seen: list[Reading], every_s: int) -> None:
    state, before, last, ups = MemoryState(), 0, 0.0, []
    for number, one in enumerate(seen):
        now = float(number * every_s)
        state = judge(MARKS, state, replace(one, mono_s=now))
        assert abs(state.level - before) <= 1
        if state.level > max(before, 1):
            assert now - last >= SETTLE_S
        if state.level != before:
            last = now
        if state.level < before:
            ups.append(now)
        before = state.level
    assert all(later - earlier >= MARKS.calm_s for earlier, later in pairwise(ups))


@UNTIMED
@given(st.lists(st.tuples(ANY, SHORT, st.booleans()), max_size=40), st.integers(1, 30))
def test_less_memory_never_means_a_larger_micro_batch(seen: list[tuple[Reading, Reading, bool]], every_s: int) -> None:
    """Two boards with the same past; what one of them sees now is worse."""
    state = MemoryState()
    for number, (one, worse, takes_worse) in enumerate(seen):
        now = float(number * every_s)
        mild, harsh = (judge(MARKS, state, replace(x, mono_s=now)) for x in (one, worse))
        assert harsh.level >= mild.level
        state = harsh if takes_worse else mild


def test_a_reboot_restarts_the_clock_and_nothing_waits_for_ever() -> None:
    old = MemoryState(2, changed_s=9e5, calm_since_s=9e5)
    assert judge(MARKS, old, reading(5.0, 50)).level == 3
    state = judge(MARKS, old, reading(5.0))
    assert state.level == 2
    assert judge(MARKS, state, reading(65.0)).level == 1


@UNTIMED
@given(st.lists(ANY, max_size=20))
def test_the_decision_names_the_rule_and_work_goes_on(seen: list[Reading]) -> None:
    # Marks of the sensors' absence would slow training; they are not what is looked at here.
    policy = parse_policy("[thermal]\npause_without_sensor = false")
    state = GovernorState()
    for number, one in enumerate(seen):
        state, decision = decide(policy, state, replace(one, mono_s=20.0 * number), Outlook())
        assert decision.micro_batch_share == SHARES[state.memory.level]
        assert decision.batch_rule == ("memory.pressure" if state.memory.level else "plan")
        assert ("memory.pressure" in decision.notes) == (state.memory.level > 0)
        assert decision.action < Action.PAUSE
        assert load_state(asdict(state)) == state
    assert [bound.ratio for bound in memory.bounds(state.memory)] in ([], [1.0])


def test_both_marks_can_be_switched_off() -> None:
    off = parse_policy("[memory]\navailable_mib = 0\npressure_share = 1").memory
    assert levels(reading(0, 0.0, 1.0), marks=off) == [0]


@pytest.mark.parametrize("text", ["available_mib = -1", "hysteresis_mib = 0", "pressure_share = 0", "calm_s = 0"])
def test_impossible_marks_are_refused(text: str) -> None:
    with pytest.raises(PolicyError, match="outside"):
        parse_policy(f"[memory]\n{text}")


def test_the_defaults_leave_room_for_what_the_lever_gives_back() -> None:
    """Else a step back would undercut the mark again: the tensors of a step take up to 48 MiB."""
    assert Policy().memory.hysteresis_mib > 48
