from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import job
from service.job import (
    MAX_ATTEMPTS,
    STAGE_EVENTS,
    TABLE,
    TERMINAL,
    WORKING,
    Event,
    Standing,
    State,
    TransitionError,
    advance,
    diagram,
    wire_status,
)

CONTRACT = {
    *("received", "rejected", "accepted", "deferred", "running", "paused"),
    *("succeeded", "failed", "timed_out", "canceled", "rolled_back"),
}


def walk(events: list[Event]) -> list[Standing]:
    seen = [Standing()]
    for event in events:
        try:
            seen.append(advance(seen[-1], event))
        except TransitionError:
            seen.append(seen[-1])
    return seen


@given(st.lists(st.sampled_from(Event), max_size=60))
def test_terminal_states_never_change_and_attempts_never_fall(events: list[Event]) -> None:
    seen = walk(events)
    for before, after in itertools.pairwise(seen):
        if before.state in TERMINAL:
            assert after == before
        assert before.attempt <= after.attempt <= MAX_ATTEMPTS


@given(st.sampled_from(State), st.sampled_from(Event))
def test_what_the_table_lacks_is_refused(state: State, event: Event) -> None:
    standing = Standing(state)
    if (state, event) in TABLE:
        assert advance(standing, event).state == TABLE[state, event]
    else:
        with pytest.raises(TransitionError) as caught:
            advance(standing, event)
        assert caught.value.code == "wrong-state"


def test_the_whole_way() -> None:
    events = [Event.ACCEPT, Event.DEFER, *STAGE_EVENTS.values(), Event.SUCCEED]
    states = [standing.state for standing in walk(events)]
    assert states == [State.RECEIVED, State.ACCEPTED, State.DEFERRED, *STAGE_EVENTS, State.SUCCEEDED]


def test_every_state_is_reachable_and_every_open_state_can_end() -> None:
    reached = {State.RECEIVED}
    while more := {after for (before, _), after in TABLE.items() if before in reached} - reached:
        reached |= more
    assert reached == set(State)
    ending = set(TERMINAL)
    while more := {before for (before, _), after in TABLE.items() if after in ending} - ending:
        ending |= more
    assert ending == set(State)


def test_a_restart_leads_back_to_pulling_until_attempts_are_used_up() -> None:
    assert {*STAGE_EVENTS, State.PAUSED} == WORKING
    for state in WORKING:
        standing = Standing(state)
        for attempt in range(2, MAX_ATTEMPTS + 1):
            standing = advance(standing, Event.RESTART)
            assert standing == Standing(State.PULLING, attempt)
        last = advance(standing, Event.RESTART)
        assert (last.state, last.attempt, last.reason_code) == (State.FAILED, MAX_ATTEMPTS, "too-many-attempts")
        assert last.reason


def test_a_promotion_under_way_is_not_canceled() -> None:
    with pytest.raises(TransitionError):
        advance(Standing(State.PROMOTING), Event.CANCEL)


def test_a_reason_belongs_to_its_state_only_and_is_bounded() -> None:
    deferred = advance(Standing(State.ACCEPTED), Event.DEFER, "thermal", "x" * 10_000)
    assert len(deferred.reason) == job.MAX_REASON_CHARACTERS
    pulled = advance(deferred, Event.PULL)
    assert (pulled.reason_code, pulled.reason) == ("", "")


def test_the_wire_knows_only_the_words_of_the_contract() -> None:
    assert {wire_status(state).status for state in State} == CONTRACT
    assert wire_status(State.COMPILING) == ("running", "compiling")
    assert wire_status(State.PAUSED) == ("paused", "")


def test_the_documents_picture_is_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "jobs.md"
    picture = page.read_text().split("```mermaid\n")[1].split("```")[0]
    assert picture == diagram(), "put the output of `python -m service.job` into docs/jobs.md"


def test_a_pause_leads_back_to_any_stage_but_promotion() -> None:
    for stage, event in STAGE_EVENTS.items():
        if stage is State.PROMOTING:
            assert (stage, Event.PAUSE) not in TABLE
            assert (State.PAUSED, event) not in TABLE, "a promotion is never entered out of a pause"
        else:
            paused = advance(Standing(stage), Event.PAUSE, "held")
            assert advance(paused, event).state is stage
