from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.strict import TableError, build
from service.fleet.outcome import NOT_ENDED, Outcome, exit_code, of_status
from service.fleet.roll_out_plan import Move, Rules, canaries, next_step

ENDS = [outcome for outcome in Outcome if outcome not in NOT_ENDED]
shares = st.floats(0.01, 1.0, allow_subnormal=False)


@st.composite
def rules(draw: st.DrawFn) -> Rules:
    canary, parallel, least = draw(st.integers(0, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    return Rules(canary, parallel, draw(shares), least)


def bad(outcomes: list[Outcome]) -> int:
    return sum(outcome is not Outcome.SUCCEEDED for outcome in outcomes)


@given(rules(), st.integers(1, 20), st.data())
def test_whatever_boards_do_each_is_sent_to_once_canaries_first_and_never_too_many_at_a_time(
    rules: Rules, boards: int, data: st.DataObject
) -> None:
    rules = Rules(min(rules.canary, boards), rules.parallel, rules.stop_at, rules.least_ended)
    outcomes = [Outcome.WAITING] * boards
    away = {place for place in range(boards) if data.draw(st.booleans())}
    for _ in range(4 * boards + 4):
        before = list(outcomes)
        step = next_step(rules, outcomes, away, 0.0)
        if step.move is Move.SEND:
            assert step.places
            for place in step.places:
                assert outcomes[place] is Outcome.WAITING
                outcomes[place] = Outcome.OPEN
            canary = before[: rules.canary]
            if max(step.places) >= rules.canary and canary:
                assert not set(canary) & NOT_ENDED
                assert bad(canary) < rules.stop_at * len(canary)
            there = [place for place in range(boards) if place not in away]
            assert sum(outcomes[place] is Outcome.OPEN for place in there) <= rules.parallel
            ended = [outcome for outcome in before if outcome not in NOT_ENDED]
            assert len(ended) < rules.least_ended or bad(ended) < rules.stop_at * len(ended)
        elif step.move is Move.WAIT:
            open_ones = [place for place, outcome in enumerate(outcomes) if outcome is Outcome.OPEN]
            assert open_ones  # nobody waits for nothing
            outcomes[data.draw(st.sampled_from(open_ones))] = data.draw(st.sampled_from(ENDS))
        else:
            break
    else:
        pytest.fail("the roll-out never ends")
    if step.move is Move.DONE:
        assert not set(outcomes) & NOT_ENDED
    else:
        assert step.why
        assert Outcome.WAITING in outcomes  # a stop spares somebody
    if not bad([outcome for outcome in outcomes if outcome not in NOT_ENDED]):
        assert step.move is Move.DONE


def test_the_share_is_judged_from_the_least_number_of_ended_boards_on_and_at_the_limit() -> None:
    rules = Rules(parallel=9, stop_at=0.2, least_ended=5)
    four = [Outcome.FAILED, *[Outcome.SUCCEEDED] * 3, *[Outcome.WAITING] * 3]
    assert next_step(rules, four, (), 0.0).move is Move.SEND
    five = [Outcome.FAILED, *[Outcome.SUCCEEDED] * 4, *[Outcome.WAITING] * 2]
    assert next_step(rules, five, (), 0.0).move is Move.STOP
    six = [Outcome.FAILED, *[Outcome.SUCCEEDED] * 5, *[Outcome.WAITING] * 2]
    assert next_step(rules, six, (), 0.0).move is Move.SEND


def test_boards_that_are_away_hold_no_place() -> None:
    rules = Rules(parallel=2)
    outcomes = [Outcome.OPEN, Outcome.OPEN, Outcome.WAITING, Outcome.WAITING]
    assert next_step(rules, outcomes, (0,), 0.0).places == (2,)
    assert next_step(rules, outcomes, (0, 1), 0.0).places == (2, 3)
    assert next_step(rules, outcomes, (), 0.0).move is Move.WAIT


def test_canaries_too_are_no_more_at_a_time_than_allowed() -> None:
    rules = Rules(canary=4, parallel=2)
    waiting = [Outcome.WAITING] * 5
    assert next_step(rules, waiting, (), 0.0).places == (0, 1)
    assert next_step(rules, [Outcome.OPEN, Outcome.SUCCEEDED, *waiting[2:]], (), 0.0).places == (2,)
    assert next_step(rules, [Outcome.OPEN] * 2 + waiting[2:], (), 0.0).move is Move.WAIT


def test_canaries_have_their_time() -> None:
    rules = Rules(canary=1, wait_canary_s=60.0)
    waiting = [Outcome.OPEN, Outcome.WAITING]
    assert next_step(rules, waiting, (), 59.0).move is Move.WAIT
    assert next_step(rules, waiting, (), 60.0).move is Move.STOP
    assert next_step(Rules(canary=1), waiting, (), 1e9).move is Move.WAIT


@pytest.mark.parametrize(
    ("boards", "share", "count", "first"),
    [(3, 0.1, 0, 1), (10, 0.1, 0, 1), (11, 0.1, 0, 2), (5, 0.0, 0, 0), (2, 0.0, 9, 2)],
)
def test_a_share_of_canaries_is_rounded_up(boards: int, share: float, count: int, first: int) -> None:
    assert canaries(boards, share, count) == first


@given(st.lists(st.sampled_from(list(Outcome))))
def test_the_exit_code_is_0_for_success_alone_and_3_where_nothing_is_worse_than_a_refusal(
    outcomes: list[Outcome],
) -> None:
    code = exit_code(outcomes)
    assert (code == 0) == all(outcome is Outcome.SUCCEEDED for outcome in outcomes)
    assert (code == 3) == (code != 0 and set(outcomes) <= {Outcome.SUCCEEDED, Outcome.REFUSED})


def test_unknown_statuses_leave_a_command_open() -> None:
    assert {of_status(status) for status in ("received", "running", "paused", "sleeping", 7, None, [])} == {
        Outcome.OPEN
    }


@pytest.mark.parametrize(
    "wrong", [{"stop_at": 0.0}, {"stop_at": 1.5}, {"parallel": 0}, {"canary": -1}, {"least_ended": 0}]
)
def test_rules_that_cannot_be_followed_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(TableError):
        build(Rules, wrong)
