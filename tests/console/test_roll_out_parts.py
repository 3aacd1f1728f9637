"""The pure parts of roll-outs' pages: names, drafts, waves, bars, reasons, tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as some

from agent.errors import SpecError
from agent.keys_consoles import Role
from service.commands import SUPPORTED
from service.config import NAME
from service.console.page import Viewer
from service.console.roll_out_boards import check_arguments, kinds_for
from service.console.roll_out_draft import LIFE_S, MAX_DRAFTS, MAX_OF_ONE, Drafts, ordered, read_names
from service.console.roll_out_page import outcomes_of, permitted_actions
from service.console.roll_out_view import COLUMNS, as_csv, together, wave, why_words
from service.console.roll_out_waves import USUAL, read_resumed, read_waves
from service.console.texts import LANGUAGES, translator
from service.fleet.outcome import Outcome
from service.fleet.roll_out_plan import MAX_BOARDS, Move, Rules, next_step, resumed_rules
from service.fleet.state import RollOut, Sent


@given(some.text(max_size=200))
def test_names_are_names_each_once_or_refused(text: str) -> None:
    try:
        found = read_names(text)
    except SpecError:
        return
    assert len(set(found)) == len(found)
    assert all(NAME.fullmatch(name) for name in found)


@given(
    some.lists(some.from_regex(NAME, fullmatch=True), max_size=20), some.sampled_from([",", " ", "\n", " ;\r\n", "\t"])
)
def test_names_are_read_back(names: list[str], between: str) -> None:
    assert read_names(between.join(names)) == tuple(dict.fromkeys(names))


def test_as_many_names_as_boards_and_no_more() -> None:
    names = [f"b{number}" for number in range(MAX_BOARDS + 1)]
    assert len(read_names(" ".join(names[:-1]))) == MAX_BOARDS
    with pytest.raises(SpecError, match="at most 20000"):
        read_names(" ".join(names))


def test_boards_that_are_there_go_first() -> None:
    assert ordered(("a", "b", "c", "d"), {"b": True, "d": True, "a": False}) == ["b", "d", "a", "c"]


def test_drafts_are_few_and_do_not_stay() -> None:
    now = [0.0]
    drafts = Drafts(lambda: now[0])
    first = drafts.new("alice")
    for _ in range(MAX_OF_ONE):
        drafts.new("alice")
    assert drafts.find(first.id, "alice") is None
    kept = drafts.new("bob")
    assert drafts.find(kept.id, "alice") is None
    assert drafts.find("../../etc", "bob") is None
    for number in range(MAX_DRAFTS - 1):
        drafts.new(f"user-{number}")
    assert drafts.find(kept.id, "bob") is kept  # looked at: it is the newest now
    drafts.new("carol")
    assert drafts.find(kept.id, "bob") is kept
    now[0] = LIFE_S + 1
    assert drafts.find(kept.id, "bob") is None


@given(
    some.dictionaries(
        some.sampled_from(
            [*USUAL, "expect.active_model", "expect_on.active_model", "expect.state_version", "expect_on.state_version"]
        ),
        some.one_of(
            some.text(max_size=12),
            some.sampled_from(["share", "count", "none", "0", "1", "1e9", "٣", "nan", "100%", "86400"]),
        ),
    ),
    some.integers(1, MAX_BOARDS),
)
def test_any_form_of_waves_gives_rules_or_faults_that_have_words(typed: Mapping[str, str], boards: int) -> None:
    waves, faults = read_waves(typed, boards)
    assert (waves is None) == bool(faults)
    for language in LANGUAGES:
        for fault in faults.values():
            assert translator(language)(f"roll_out.fault.{fault.key}", **fault.values)
    if waves is not None:
        assert 0 <= waves.rules.canary <= boards
        assert 0 < waves.rules.stop_at <= 1
        order = [Outcome.WAITING] * min(boards, 50)
        assert next_step(waves.rules, order, frozenset(), 0.0).move is Move.SEND


def test_what_the_form_has_at_first_is_what_the_command_line_does_with_canaries() -> None:
    waves, faults = read_waves({}, 35)
    assert not faults
    assert waves is not None
    assert waves.rules == Rules(canary=4)
    assert (waves.expect, waves.valid_s) == ({}, 86400)


@pytest.mark.parametrize(
    ("typed", "wrong"),
    [
        ({"canary": "count", "canary_count": "36"}, "canary_count"),
        ({"canary": "count", "canary_count": "0"}, "canary_count"),
        ({"canary": "some"}, "canary"),
        ({"canary_share": "101"}, "canary_share"),
        ({"stop_at": "0"}, "stop_at"),
        ({"stop_at": "100,1"}, "stop_at"),
        ({"stop_at": "-5"}, "stop_at"),
        ({"parallel": "20001"}, "parallel"),
        ({"least_ended": "٣"}, "least_ended"),
        ({"wait_canary_min": str(31 * 24 * 60 + 1)}, "wait_canary_min"),
        ({"valid_s": "86401"}, "valid_s"),
        ({"expect_on.active_model": "1", "expect.active_model": "abc"}, "expect"),
        ({"expect_on.state_version": "1", "expect.state_version": "-1"}, "expect"),
    ],
)
def test_what_is_outside_its_bounds_is_named(typed: Mapping[str, str], wrong: str) -> None:
    waves, faults = read_waves(typed, 35)
    assert waves is None
    assert set(faults) == {wrong}


def test_a_condition_counts_where_it_is_ticked() -> None:
    digest = "AB" * 32
    typed = {"expect.active_model": digest, "expect.policy": digest, "expect_on.active_model": "1"}
    waves, _ = read_waves(typed, 2)
    assert waves is not None
    assert waves.expect == {"active_model": digest.lower()}
    empty, _ = read_waves({"expect_on.active_model": "1"}, 2)
    assert empty is not None
    assert empty.expect == {"active_model": ""}


def test_rules_that_change_on_the_way() -> None:
    assert read_resumed({"stop_at": "", "parallel": " ", "why": "x"}) == ({}, {})
    found, faults = read_resumed({"stop_at": "50%", "parallel": "7"})
    assert (found, faults) == ({"stop_at": 0.5, "parallel": 7}, {})
    rules = Rules(canary=5, parallel=2)
    assert resumed_rules(rules, {"parallel": 7})["canary"] == 5
    assert resumed_rules(rules, found)["canary"] == 0
    assert set(read_resumed({"stop_at": "x", "least_ended": "0"})[1]) == {"stop_at", "least_ended"}


@given(some.dictionaries(some.sampled_from([*map(str, Outcome), "of-a-later-version"]), some.integers(0, MAX_BOARDS)))
def test_a_bar_is_full_and_its_numbers_add_up(counts: Mapping[str, int]) -> None:
    made = wave(counts)
    assert made.total == sum(counts.values()) == sum(part.count for part in made.parts)
    assert made.ended == made.good + made.bad
    assert made.total == made.ended + counts.get("open", 0) + counts.get("waiting", 0)
    if made.total:
        assert sum(part.width for part in made.parts) == pytest.approx(100, abs=0.01)
        assert made.parts[0].x == 0


def test_waves_are_put_together() -> None:
    assert together({"open": 1, "failed": 2}, {"open": 3}, {}) == {"open": 4, "failed": 2}


@pytest.mark.parametrize("language", LANGUAGES)
def test_reasons_have_words(language: str) -> None:
    words = translator(language)
    outcomes = [Outcome.FAILED, Outcome.SUCCEEDED, *[Outcome.WAITING] * 3]
    canaries = next_step(Rules(canary=2), outcomes, frozenset(), 0.0).why
    others = next_step(Rules(least_ended=2), outcomes, frozenset(), 0.0).why
    slow = next_step(Rules(canary=3, wait_canary_s=5.0), outcomes, frozenset(), 9.0).why
    ended = ("aborted by an operator", "it could not begin", "stopped by alice", "stopped by alice: too hot {0}")
    for why in (canaries, others, slow, *ended):
        assert why
        assert why_words(why, words) != why or language == "en"
    assert "{0}" in why_words("stopped by alice: too hot {0}", words)
    assert why_words("something {else}", words) == "something {else}"


@given(some.text(), some.one_of(some.none(), some.floats(), some.integers(), some.text()))
def test_a_table_of_outcomes_is_read_back_and_runs_nowhere(reason: str, ts: object) -> None:
    status: dict[str, object] = {"status": "failed", "reason_code": "=1+1", "reason": reason, "ts": ts}
    command = Sent(0, "pi-1", "id", b"", 0, sent=True, outcome="failed", status=status)
    rows = list(csv.reader(io.StringIO(as_csv([command, Sent(1, "pi-2")]), newline="")))
    assert rows[0] == list(COLUMNS)
    assert len(rows) == 3
    assert rows[1][6] == "'=1+1"
    assert rows[1][7].removeprefix("'") == reason.removeprefix("'")
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row)


def test_times_are_those_that_there_are() -> None:
    def at(ts: object) -> str:
        command = Sent(0, "pi-1", "id", b"", 0, sent=True, outcome="failed", status={"ts": ts})
        return as_csv([command]).splitlines()[1].rpartition(",")[2]

    assert at(0) == "1970-01-01T00:00:00Z"
    assert [at(ts) for ts in (True, -1, 1e300, float("nan"), float("inf"), 10**400, "x", None)] == [""] * 8


def test_filters_of_outcomes() -> None:
    assert outcomes_of("") == outcomes_of("x") == ()
    assert outcomes_of("expired") == ("expired",)
    assert set(outcomes_of("bad")) == set(Outcome) - {"waiting", "open", "succeeded"}


def test_what_each_role_may_do() -> None:
    def may(
        role: Role,
        state: str,
        kind: str = "scrub",
        *,
        here: bool = False,
        elsewhere: bool = False,
        is_open: bool = True,
    ) -> tuple[str, ...]:
        roll_out = RollOut("", "default", kind, {}, 0.0, state, "")
        return permitted_actions(Viewer("x", role), roll_out, here=here, elsewhere=elsewhere, is_open=is_open)

    assert may(Role.VIEWER, "running", here=True) == ()
    assert may(Role.OPERATOR, "running", here=True) == ("stop", "abort")
    assert may(Role.OPERATOR, "running") == ("resume", "abort")
    assert may(Role.OPERATOR, "stopped", "rollback", here=True) == ("abort",)
    assert may(Role.OWNER, "stopped", "rollback") == ("resume", "abort")
    assert may(Role.OWNER, "running", elsewhere=True) == ()
    assert may(Role.OWNER, "aborted") == ("abort",)
    assert may(Role.OWNER, "aborted", is_open=False) == ()
    assert may(Role.OWNER, "stopped", is_open=False) == ("resume", "abort")
    assert may(Role.OWNER, "done") == ()


def test_types_for_many_boards_are_those_that_name_no_job() -> None:
    assert kinds_for(Viewer("x", Role.VIEWER)) == ()
    owner = kinds_for(Viewer("x", Role.OWNER))
    assert set(SUPPORTED) - set(owner) == {"cancel", "pause", "resume", "promote"}
    assert set(kinds_for(Viewer("x", Role.OPERATOR))) < set(owner)


def test_arguments_are_judged_as_boards_of_this_version_do() -> None:
    check_arguments("scrub", {})
    check_arguments("set-policy", {"reset": True})
    for kind, args in (
        ("scrub", {"x": 1}),
        ("rollback", {"to": "nowhere"}),
        ("fine-tune", {"model": "m"}),
        ("set-policy", {"text": "[thermal"}),
        ("set-policy", {"text": "name = 'x'", "reset": True}),
    ):
        with pytest.raises(SpecError):
            check_arguments(kind, args)
