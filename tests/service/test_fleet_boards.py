from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.fleet import boards as limits_of
from service.fleet.boards import Boards, details, summary
from service.fleet.pace import MOST, TARGET, next_size
from service.fleet.plain import plain
from service.fleet.tables import HEADS, aligned, board_cells, detail_lines

ROOT = "temper/v1/default/pi/"
ID = "0192f0c1-0000-7000-8000-00000000000{}"
NOW = 1_790_000_000.0
OF_MESSAGES = ("agent", "board", "policy", "online", "boot_id", "reason", "severity", "until", "status", "step")


def say(boards: Boards, topic: str, *, retained: bool = True, **body: object) -> str:
    return boards.take(ROOT + topic, body, now=NOW, retained=retained)


def test_messages_become_a_summary() -> None:
    boards = Boards("default")
    say(boards, "conn", online=True, session=1, connection=2, ts=NOW - 9)
    model = {"name": "colours", "version": "1.0", "model_sha256": "ab"}
    say(
        boards,
        "birth",
        schema=1,
        agent="0.1.0",
        board={"profile": "raspberry-pi-4"},
        active_model=model,
        metrics={"a": {}},
    )
    say(boards, f"cmd/fine-tune/{ID.format(1)}/sts", status="succeeded", version=9)
    say(
        boards,
        f"cmd/fine-tune/{ID.format(2)}/sts",
        status="running",
        step="TRAINING",
        version=3,
        progress=0.5,
        eta_s=90,
    )
    say(boards, f"cmd/scrub/{ID.format(3)}/sts", status="accepted", version=1)
    say(boards, "a/overheated", severity="warning", reason="hot")
    say(boards, "m/board", retained=False, seq=1, values={"temperature_celsius": 61.25})
    view = summary(boards.boards["pi"])
    assert board_cells(view, NOW) == (
        *("pi", "online", "0.1.0", "raspberry-pi-4", "colours 1.0"),
        *("fine-tune running TRAINING 50% 1 min left", "61.2 °C", "overheated"),
    )
    assert "metrics" not in boards.boards["pi"].birth
    assert boards.take(ROOT + "a/overheated", None, now=NOW, retained=False) == "pi"
    assert summary(boards.boards["pi"])["alarms"] == []


def test_a_will_that_comes_late_and_an_old_status_change_nothing() -> None:
    boards = Boards("default")
    say(boards, "conn", online=True, session=2, connection=1, ts=NOW)
    assert say(boards, "conn", online=False, session=1, connection=7, ts=NOW) == ""
    assert boards.boards["pi"].online
    topic = f"cmd/fine-tune/{ID.format(1)}/sts"
    say(boards, topic, status="running", version=5)
    assert say(boards, topic, status="accepted", version=4) == ""
    say(boards, topic, status="failed", version=6)
    assert say(boards, topic, status="running", version=7) == ""
    assert say(boards, topic, status="succeeded", version=8) == ""  # a final status never changes


def test_a_birth_of_a_newer_form_is_not_read_but_told() -> None:
    boards = Boards("default")
    say(boards, "birth", schema=2, agent={"major": 3})
    view = summary(boards.boards["pi"])
    assert view["agent"] is None
    assert "schema 2" in board_cells(view, NOW)[5]
    say(boards, "birth", schema=1, agent="1")
    assert summary(boards.boards["pi"])["complaint"] == ""


def test_strangers_do_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_of, "MAX_BOARDS", 3)
    boards = Boards("default")
    for name in ("a", "b", "c", "d", "A", "x" * 64, "", "ä"):
        boards.take(f"temper/v1/default/{name}/conn", {"online": True}, now=NOW, retained=True)
    assert (sorted(boards.boards), boards.left_out) == (["a", "b", "c"], 5)
    boards.take("temper/v1/other/a/conn", {"online": False}, now=NOW, retained=True)
    assert boards.boards["a"].online
    topic = "temper/v1/default/a/"
    for number in range(200):
        boards.take(
            f"{topic}cmd/scrub/{number:08x}-0000-7000-8000-000000000000/sts",
            {"status": "running"},
            now=NOW,
            retained=True,
        )
        for kind in ("a", "m", "cmd"):
            boards.take(f"{topic}{kind}/n{number}", {"values": {}}, now=NOW, retained=True)
    board = boards.boards["a"]
    assert len(board.statuses) == limits_of.MAX_STATUSES
    assert min(board.statuses).startswith("000000b4")  # the newest are kept
    assert (len(board.alarms), len(board.metrics), len(board.capabilities)) == (64, 16, 32)
    huge = {"agent": "x" * 100_000, "schema": 1, "board": {str(i): {"deep": ["x" * 9999] * 99} for i in range(99)}}
    boards.take(f"{topic}birth", huge, now=NOW, retained=True)
    assert len(json.dumps(board.birth)) < 2000


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    [
        *("online", "session", "connection", "ts", "schema", "agent", "board", "active_model", "values", "status"),
        *("version", "progress", "eta_s", "reason_code", "reason", "severity", "temperature_celsius", "policy", "step"),
        "name",
    ]
)
topics = st.sampled_from(
    ["conn", "birth", "m/board", "a/x", "cmd/scrub", f"cmd/scrub/{ID.format(1)}/sts", "cmd", "", "m/a/b"]
)


@given(
    st.lists(st.tuples(topics, st.dictionaries(keys, anything) | st.none(), st.booleans()), max_size=12), st.booleans()
)
def test_whatever_boards_say_the_tables_hold_harmless_text(
    messages: list[tuple[str, dict[str, Any] | None, bool]], whole: bool
) -> None:
    boards = Boards("default", whole=whole)
    for topic, body, retained in messages:
        boards.take(ROOT + topic, body, now=NOW, retained=retained)
    for board in boards.boards.values():
        view, known = summary(board), details(board)
        json.dumps([view, known])
        for line in [*aligned(HEADS, [board_cells(view, NOW)]), *detail_lines(known, NOW)]:
            assert line.isprintable(), line


@given(st.integers(1, 200), st.lists(st.integers(0, 150), min_size=1, max_size=200))
def test_portions_of_a_list_settle_where_a_broker_can_send_them_at_once(size: int, left_by_board: list[int]) -> None:
    at = 0
    while at < len(left_by_board):
        portion = left_by_board[at : at + size]
        at += size
        came = sum(portion)
        fresh = next_size(size, came, len(portion))
        assert 1 <= fresh <= min(MOST, 2 * size)
        assert fresh == 1 or fresh * came <= TARGET * len(portion)  # boards alike to these fit into the next one
        size = fresh


def test_no_control_character_and_no_mark_of_direction_reaches_a_terminal() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            assert plain(f"a{character}b") == "a?b"
    assert plain("\x1b]0;title\x07grün") == "?]0;title?grün"
    assert plain("x" * 500, 10) == "x" * 9 + "…"
    assert plain(None) == ""


def test_what_hostile_boards_say_is_kept_up_to_a_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    large = {f"{n}" + "k" * 300: {"inner" * 90: ["v" * 300] * 99} for n in range(99)}
    monkeypatch.setattr(limits_of, "MAX_KEPT_BYTES", 100_000)
    boards = Boards("default")

    def say_all(board: str) -> None:
        root = f"temper/v1/default/{board}/"
        topics = ("conn", "birth", *(f"a/alarm-{n}" for n in range(9)), f"cmd/scrub/{ID.format(1)}/sts")
        for topic in topics:
            body = {"schema": 1, "version": 1, "session": 1, "ts": 10**4000, **dict.fromkeys(OF_MESSAGES, large)}
            boards.take(root + topic, body, now=NOW, retained=True)

    for n in range(40):
        say_all(f"pi-{n}")
    assert boards.left_out > 0
    assert len(repr([details(board) for board in boards.boards.values()])) < 4 * 100_000
    before = boards.left_out
    say(boards, "birth", schema=1, agent="x" * 100_000)
    say(boards, "birth", schema=2)  # what goes makes room, once
    for name in [*boards.boards]:
        for alarm in [*boards.boards[name].alarms]:
            for _ in range(3):
                boards.take(f"temper/v1/default/{name}/a/{alarm}", None, now=NOW, retained=False)
        boards.take(f"temper/v1/default/{name}/birth", {"schema": 2}, now=NOW, retained=False)
        boards.take(f"temper/v1/default/{name}/birth", {"schema": 2}, now=NOW, retained=False)
    assert boards.take(ROOT + "birth", {"schema": 1, "agent": "0.1"}, now=NOW, retained=True) == "pi"
    for n in range(40):
        say_all(f"pi-{n}")
    assert boards.left_out > before
