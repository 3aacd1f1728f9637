"""The audit trail: its chain, its bounds, its page, and how commands ended."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ArtifactError, BoardError, SpecError
from service.console.audit import FILE_NAME, MAX_DETAILS_BYTES, MAX_WHY, NOBODY, OPEN_S, TRIM_RECORDS, Audit, Wanted
from service.console.audit_outcomes import MAX_ASKED, in_turn, look
from service.console.audit_page import read_wanted
from service.console.room import Room
from service.fleet.store import Batch, Status
from tests.console.conftest import Client, Clock, log_in, visit

JOB = "019c0d2e-7a00-7000-8000-00000000000{}"


@pytest.fixture
def trail(tmp_path: Path, clock: Clock) -> Audit:
    return Audit(tmp_path / "state", clock)


def run(folder: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    """SQL on the file, past the console: what whoever may write it could do."""
    with closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as database:
        return list(database.execute(query, values))


def without_triggers(folder: Path) -> None:
    for name in ("records_stay", "records_go_from_the_oldest"):
        run(folder, f"DROP TRIGGER {name}")


def fill(trail: Audit, count: int = 10) -> None:
    for number in range(count):
        trail.write("alice" if number % 2 else "bob", "scrub", boards=(f"pi-{number}",), why=f"reason {number}")


def test_records_come_back_as_they_were_written(trail: Audit, clock: Clock) -> None:
    details = {"args": {"epochs": 3, "text": "ü\u202e<script>"}, "none": None}
    number = trail.write("alice", "fine-tune", boards=("pi-1",), why="new images", commands=(JOB,), details=details)
    (record,) = trail.page(Wanted())
    assert (record.id, record.who, record.action, record.why) == (number, "alice", "fine-tune", "new images")
    assert (record.boards, record.commands, record.details) == (("pi-1",), (JOB,), details)
    assert record.ts == pytest.approx(clock.now, abs=0.001)
    assert trail.verify() == 1


def test_a_record_survives_whoever_wrote_it(trail: Audit, tmp_path: Path, clock: Clock) -> None:
    trail.write("", "login-refused")
    beside = Audit(tmp_path / "state", clock)
    assert [record.who for record in beside.everything()] == [NOBODY]


def test_the_file_itself_takes_no_changes(trail: Audit, tmp_path: Path) -> None:
    fill(trail)
    for query in ("UPDATE records SET who = 'eve'", "DELETE FROM records", "DELETE FROM records WHERE id = 3"):
        with pytest.raises(sqlite3.IntegrityError, match="only added"):
            run(tmp_path / "state", query)
    assert trail.verify() == 10


@pytest.mark.parametrize(
    "query",
    [
        "UPDATE records SET body = replace(body, 'reason 4', 'reason 5')",
        "UPDATE records SET who = 'eve' WHERE id = 5",
        "UPDATE records SET ts = ts + 1 WHERE id = 5",
        "UPDATE records SET hash = zeroblob(32) WHERE id = 5",
        "DELETE FROM records WHERE id = 5",
        "DELETE FROM records WHERE id = 1",
        "INSERT INTO records SELECT 11, ts, who, action, body, hash FROM records WHERE id = 10",
        "UPDATE records SET id = 100 WHERE id = 10",
    ],
)
def test_whoever_changes_the_past_is_found_out(trail: Audit, tmp_path: Path, query: str) -> None:
    fill(trail)
    without_triggers(tmp_path / "state")
    run(tmp_path / "state", query)
    with pytest.raises(ArtifactError) as told:
        trail.verify()
    assert told.value.code == "audit-broken"


def test_a_cut_off_end_is_found_out_by_who_noted_it(trail: Audit, tmp_path: Path) -> None:
    fill(trail)
    noted = trail.head()
    assert trail.verify(noted) == 10
    without_triggers(tmp_path / "state")
    run(tmp_path / "state", "DELETE FROM records WHERE id > 7")
    assert trail.verify() == 7
    with pytest.raises(ArtifactError, match="record 10"):
        trail.verify(noted)


def test_a_chain_that_was_made_anew_is_found_out_by_who_noted_it(trail: Audit, tmp_path: Path) -> None:
    """The chain has no secret: by itself it holds again."""
    fill(trail)
    noted = trail.head()
    without_triggers(tmp_path / "state")
    run(tmp_path / "state", "UPDATE records SET body = replace(body, 'reason 4', 'reason 5')")
    before = bytes(32)
    for number, body in run(tmp_path / "state", "SELECT id, body FROM records ORDER BY id"):
        before = hashlib.sha256(before + body.encode()).digest()
        run(tmp_path / "state", "UPDATE records SET hash = ? WHERE id = ?", before, number)
    assert trail.verify() == 10
    with pytest.raises(ArtifactError):
        trail.verify(noted)


def test_the_oldest_go_beyond_the_bound_and_the_chain_holds(tmp_path: Path, clock: Clock) -> None:
    trail = Audit(tmp_path / "state", clock, most=1100)
    noted = None
    for number in range(1500):
        trail.write("alice", "scrub", boards=("pi-1",))
        noted = trail.head() if number == 1300 else noted
    kept = [record.id for record in trail.everything()]
    assert kept[-1] == 1500
    assert 1100 - TRIM_RECORDS <= len(kept) <= 1100
    assert kept == list(range(kept[0], 1501))
    assert trail.verify(noted) == len(kept)
    assert run(tmp_path / "state", "SELECT count(*) FROM boards")[0][0] == len(kept)


def test_long_words_are_cut_and_long_details_hashed(trail: Audit) -> None:
    trail.write("a" * 500, "b" * 500, why="w" * 5000, boards=("x" * 500,), details={"text": "t" * MAX_DETAILS_BYTES})
    (record,) = trail.page(Wanted())
    assert (len(record.who), len(record.action), len(record.why)) == (64, 64, MAX_WHY)
    assert set(record.details) == {"bytes", "sha256"}
    assert trail.verify() == 1


@settings(max_examples=25)
@given(st.text(max_size=50), st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.floats() | st.none()))
def test_any_words_can_be_recorded(tmp_path_factory: pytest.TempPathFactory, why: str, details: dict[str, Any]) -> None:
    trail = Audit(tmp_path_factory.mktemp("trail") / "state", lambda: 1.0)
    trail.write(why, why, why=why, boards=(why,), details=details)
    assert trail.verify() == 1
    assert len(list(trail.everything())) == 1
    trail.close()


def test_several_processes_and_threads_write_one_chain(trail: Audit, tmp_path: Path, clock: Clock) -> None:
    trails = [trail, Audit(tmp_path / "state", clock), Audit(tmp_path / "state", clock)]
    threads = [Thread(target=fill, args=(one, 20)) for one in trails for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trail.verify() == 120


def test_what_cannot_be_kept_is_an_error(trail: Audit, tmp_path: Path) -> None:
    run(tmp_path / "state", "DROP TABLE boards")
    with pytest.raises(BoardError):
        trail.write("alice", "scrub", boards=("pi-1",))
    assert trail.verify() == 0, "nothing of it is there"


def test_pages_are_filtered(trail: Audit, clock: Clock) -> None:
    fill(trail)
    clock.pass_(100)
    trail.write("carol", "promote", boards=("pi-1", "pi-2"))
    assert [record.id for record in trail.page(Wanted(board="pi-1"))] == [11, 2]
    assert [record.id for record in trail.page(Wanted(who="bob", before=6))] == [5, 3, 1]
    assert [record.id for record in trail.page(Wanted(action="promote"))] == [11]
    assert [record.id for record in trail.page(Wanted(since=clock.now - 1))] == [11]
    assert len(trail.page(Wanted(until=clock.now - 1))) == 10
    assert len(trail.page(Wanted(rows=3))) == 3
    assert trail.people() == ["alice", "bob", "carol"]
    assert trail.actions() == ["promote", "scrub"]


# --- how commands ended ----------------------------------------------------------------------------------------------


def fold(room: Room, board: str, command: str, body: dict[str, Any]) -> None:
    """As if the board had said it."""
    view = room.hub._boards.boards.setdefault(board, _board(board))
    view.statuses[command] = ("scrub", body)


def _board(name: str):  # type: ignore[no-untyped-def] # noqa: ANN202
    from service.fleet.boards import Board  # noqa: PLC0415 - only here

    return Board(name)


def test_the_end_of_a_command_becomes_a_record_once(room: Room) -> None:
    one, two = JOB.format(1), JOB.format(2)
    number = room.audit.write("alice", "scrub", boards=("pi-1", "pi-2"), commands=(one, two))
    fold(room, "pi-1", one, {"id": one, "status": "running"})
    assert asyncio.run(look(room, stored=True)) == 0
    fold(room, "pi-1", one, {"id": one, "status": "failed", "reason_code": "disk", "reason": "no <space>", "x": 1})
    assert asyncio.run(look(room, stored=False)) == 1
    assert asyncio.run(look(room, stored=False)) == 0
    (record,) = room.audit.page(Wanted(action="outcome"))
    assert (record.boards, record.commands, record.who) == (("pi-1",), (one,), NOBODY)
    assert record.details == {"record": number, "status": "failed", "reason_code": "disk", "reason": "no <space>"}
    assert [waiting.id for waiting in room.audit.open_commands()] == [two]
    room.audit.verify()


def test_what_ended_while_the_console_was_away_is_in_the_store(room: Room, clock: Clock) -> None:
    one = JOB.format(1)
    room.audit.write("alice", "scrub", boards=("pi-1",), commands=(one,))
    body = json.dumps({"id": one, "status": "succeeded", "version": 3})
    status = Status("default", "pi-1", one, "scrub", 3, "succeeded", clock.now, body)
    asyncio.run(room.reads(lambda store: store.write(Batch(statuses=[status]), clock.now)))
    assert asyncio.run(look(room, stored=False)) == 0
    assert asyncio.run(look(room, stored=True)) == 1
    assert room.audit.page(Wanted(action="outcome"))[0].details["status"] == "succeeded"


def test_boards_that_never_answer_do_not_keep_others_from_being_asked(room: Room, clock: Clock) -> None:
    gone = [f"gone-{number}" for number in range(MAX_ASKED)]
    ids = [f"019c0d2e-7a00-7000-8000-{number:012d}" for number in range(MAX_ASKED)]
    room.audit.write("alice", "scrub", boards=gone, commands=ids)
    clock.pass_(1)
    room.audit.write(
        "alice", "scrub", boards=("pi-1",), commands=(last := f"019c0d2e-7a00-7000-8000-{MAX_ASKED:012d}",)
    )
    body = json.dumps({"id": last, "status": "succeeded", "version": 3})
    status = Status("default", "pi-1", last, "scrub", 3, "succeeded", clock.now, body)
    asyncio.run(room.reads(lambda store: store.write(Batch(statuses=[status]), clock.now)))
    assert [asyncio.run(look(room, stored=True, turn=turn)) for turn in (0, 1)] == [0, 1]


def test_each_board_is_asked_in_its_turn() -> None:
    boards = [str(number) for number in range(2 * MAX_ASKED + 1)]
    assert [len(in_turn(boards, turn)) for turn in range(4)] == [MAX_ASKED, MAX_ASKED, 1, MAX_ASKED]
    assert [name for turn in range(3) for name in in_turn(boards, turn)] == boards
    assert list(in_turn([], 5)) == []


def test_a_command_that_never_ends_is_forgotten_after_its_life(trail: Audit, clock: Clock) -> None:
    trail.write("alice", "scrub", boards=("pi-1",), commands=(JOB.format(1),))
    clock.pass_(OPEN_S + 1)
    trail.write("alice", "scrub")
    assert trail.open_commands() == []


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_people_said_as_text(owner: Client, room: Room) -> None:
    room.audit.write(
        "alice", "<script>x", boards=("pi-1",), why="<script>alert(1)</script>", details={"a": "</pre><b>"}
    )
    page = owner.show("/audit")
    assert "<script>alert" not in page
    assert "<script>x" not in page
    assert "</pre><b>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_outcomes_are_written_by_the_console_and_by_nobody_who_forgot_to_log_in(owner: Client, room: Room) -> None:
    room.audit.write("-", "outcome", boards=("pi-1",), details={"status": "succeeded"})
    assert '">the console</td>' in owner.show("/audit?action=outcome")


def test_pages_follow_each_other(owner: Client, room: Room) -> None:
    fill(room.audit, 120)
    seen: list[str] = []
    path = "/audit?action=scrub"
    while path:
        page = owner.show(path)
        rows = [part.partition('"')[0] for part in page.split('<tr id="r')[1:]]
        assert len(rows) <= 50
        seen += rows
        path = page.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    assert len(seen) == len(set(seen)) == 120


@pytest.mark.parametrize("role", ["operator", "owner"])
def test_operators_and_owners_read_it(room: Room, role: str) -> None:
    assert log_in(visit(room), role).get("/audit").status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        *("before=x", "before=0", "before=-1", "before=" + "9" * 30, "board=A%20B", "since=tomorrow"),
        *("until=2026-13-01", "who=" + "a" * 65, "since=0000-00-00", "until=9999-12-31", "before=%C2%B2"),
        *("before=" + "0" * 19 + "1" + "9" * 20, "before=" + "0" * 19 + "1" * 5000),
    ],
)
def test_a_filter_that_does_not_fit_is_said(owner: Client, query: str) -> None:
    assert owner.get(f"/audit?{query}").status_code == 422


@given(st.dictionaries(st.sampled_from(["who", "action", "board", "since", "until", "before"]), st.text(max_size=30)))
def test_any_filter_is_read_or_refused(asked: dict[str, str]) -> None:
    try:
        read_wanted(asked)
    except SpecError as error:
        assert error.where in asked  # noqa: PT017 - either is right


def test_a_day_is_whole() -> None:
    wanted = read_wanted({"since": "2026-12-01", "until": "2026-12-01"})
    assert wanted.since is not None
    assert wanted.until is not None
    assert wanted.until - wanted.since == 86400
