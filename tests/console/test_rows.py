from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.command_types import COLLECT_REPORT, FINE_TUNE, SCRUB, new_id
from service.console.rows import BANDS, Row, State, band_of, make_row, row_table, summarise, summary_table
from service.fleet.boards import Board, Boards
from service.fleet.store import DeviceRow

ROOT = "temper/v1/default/"
NOW = 1_796_000_000.0
JOB = new_id(1_796_000_000_000, bytes)
OLDER = new_id(1_795_000_000_000, bytes)


def heard(*messages: tuple[str, dict[str, Any]], name: str = "pi-1") -> Board:
    boards = Boards("default")
    for levels, body in messages:
        boards.take(f"{ROOT}{name}/{levels}", body, now=NOW, retained=False)
    return boards.boards[name]


def here(*messages: tuple[str, dict[str, Any]]) -> Row:
    return make_row(heard(("conn", {"online": True, "session": 1, "connection": 1}), *messages), None)


def board_group(**values: object) -> tuple[str, dict[str, Any]]:
    return "m/board", {"values": values}


def status(word: str, kind: str = FINE_TUNE, **more: object) -> tuple[str, dict[str, Any]]:
    return f"cmd/{kind}/{JOB}/sts", {"id": JOB, "status": word, "version": 3, **more}


def stored(**changed: Any) -> DeviceRow:
    usual: dict[str, Any] = {
        "tenant": "default",
        "name": "pi-1",
        "online": True,
        "since": NOW - 100,
        "agent": "0.1.0",
        "board": "raspberry-pi-4",
        "model": "digits net 3",
        "alarms": 0,
        "telemetry_ts": NOW - 7,
        "temperature_celsius": 48.5,
        "action": "RUN",
    }
    return DeviceRow(**{**usual, **changed})


@pytest.mark.parametrize(
    ("messages", "state"),
    [
        ([], State.IDLE),
        ([status("running")], State.TRAINING),
        ([status("running", SCRUB)], State.IDLE),
        ([status("succeeded")], State.IDLE),
        ([status("paused")], State.PAUSED),
        ([status("deferred")], State.DEFERRED),
        ([status("accepted")], State.IDLE),
        ([status("running"), board_group(action="SLOW", rule="thermal.delta-t-hot")], State.TRAINING),
        ([status("paused"), board_group(action="PAUSE", rule="battery.pause")], State.PAUSED),
        ([status("paused"), board_group(action="PAUSE", rule="thermal.sensor-missing-pause")], State.PAUSED),
        ([status("paused"), board_group(action="PAUSE", rule="thermal.delta-t-pause")], State.HOT),
        ([board_group(action="ABORT", rule="thermal.critical")], State.HOT),
        ([("a/overheated", {"severity": "warning"})], State.HOT),
        ([("a/critical-temperature", {"severity": "critical"})], State.HOT),
        ([("a/disk-full", {"severity": "critical"})], State.IDLE),
    ],
)
def test_a_board_is_in_the_first_state_that_holds(messages: list[tuple[str, dict[str, Any]]], state: State) -> None:
    assert here(*messages).state is state


def test_a_board_that_is_away_is_offline_however_hot_it_was() -> None:
    board = heard(
        ("conn", {"online": True, "session": 1, "connection": 1}),
        ("a/overheated", {"severity": "warning"}),
        ("conn", {"online": False, "session": 1, "connection": 1}),
    )
    assert make_row(board, None).state is State.OFFLINE


def test_a_running_job_is_shown_before_a_newer_command_that_ended() -> None:
    row = here(
        (f"cmd/{FINE_TUNE}/{OLDER}/sts", {"id": OLDER, "status": "running", "version": 1, "progress": 0.4}),
        (f"cmd/{COLLECT_REPORT}/{JOB}/sts", {"id": JOB, "status": "succeeded", "version": 1}),
    )
    assert row.job is not None
    assert (row.job["id"], row.job["progress"], row.job["ended"]) == (OLDER, 0.4, False)
    assert row.state is State.TRAINING


def test_what_was_not_heard_is_as_the_store_had_it() -> None:
    row = make_row(None, stored(rule="run", charge=0.5, power_watts=3.5, power_is_modelled=True), broker_knows=False)
    assert (row.online, row.agent, row.profile, row.model, row.model_version) == (
        True, "0.1.0", "raspberry-pi-4", "digits net", "3",
    )  # fmt: skip
    assert (row.temperature_celsius, row.charge, row.power_watts, row.power_is_modelled) == (48.5, 0.5, 3.5, True)
    assert row.last_seen == NOW - 7


def test_a_job_of_the_store_is_shown_until_the_board_tells_of_one() -> None:
    kept = stored(command_id=JOB, command_type=FINE_TUNE, command_status="deferred", command_ts=NOW)
    assert make_row(None, kept, broker_knows=False).state is State.DEFERRED
    conn = ("conn", {"online": True, "session": 1, "connection": 1})
    assert make_row(heard(conn), kept).state is State.DEFERRED
    assert make_row(heard(conn, status("running")), kept).state is State.TRAINING


def test_of_what_the_broker_does_not_know_nothing_is_online() -> None:
    assert make_row(None, stored(), broker_knows=True).state is State.OFFLINE


def test_a_birth_of_a_form_that_is_not_known_is_no_reason_to_believe_an_old_one() -> None:
    row = make_row(heard(("birth", {"schema": 9, "agent": "9.0"})), stored())
    assert "schema 9" in row.complaint
    assert (row.agent, row.model) == ("", "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=12,
)
LEVELS = st.sampled_from(["conn", "birth", "m/board", "a/overheated", "a/x", f"cmd/{FINE_TUNE}/{JOB}/sts", "cmd/scrub"])
KEYS = st.sampled_from(
    [
        *("online", "session", "schema", "agent", "board", "active_model", "policy", "values", "status", "progress"),
        *("until", "reason", "version", "ts", "eta_s", "severity", "name", "profile"),
    ]
)
VALUES = st.sampled_from(["temperature_celsius", "charge", "action", "rule", "power_watts", "delta_t_celsius"])
BODIES = st.dictionaries(KEYS, JSON | st.dictionaries(VALUES, JSON, max_size=4), max_size=6)


@given(st.lists(st.tuples(LEVELS, BODIES), max_size=8), st.booleans())
def test_whatever_a_board_says_a_row_is_small_and_of_its_types(
    messages: list[tuple[str, dict[str, Any]]],
    known: bool,
) -> None:
    boards = Boards("default")
    for levels, body in messages:
        boards.take(f"{ROOT}pi-1/{levels}", body, now=NOW, retained=True)
    row = make_row(boards.boards.get("pi-1"), stored() if known or not messages else None)
    assert len(json.dumps(row_table(row), allow_nan=False)) < 8000
    for field in ("temperature_celsius", "delta_t_celsius", "charge", "power_watts", "last_seen"):
        value = getattr(row, field)
        assert value is None or math.isfinite(value)
    assert all(
        isinstance(getattr(row, name), str) for name in ("agent", "profile", "policy", "model", "action", "rule")
    )
    assert row.job is None or row.job["progress"] is None or 0 <= row.job["progress"] <= 1
    assert sum(summarise([row]).states.values()) == 1


def test_a_summary_counts_each_board_once() -> None:
    rows = [
        dataclasses.replace(here(), name=f"pi-{place}", state=state, online=state is not State.OFFLINE,
                            temperature_celsius=20.0 + 10 * place, alarms=("x",) if place % 2 else ())
        for place, state in enumerate(State)
    ]  # fmt: skip
    found = summarise(rows)
    assert found.total == len(State)
    assert set(found.states.values()) == {1}
    assert found.alarmed == 3
    assert sum(found.temperatures) == len(State) - 1  # who is offline is not counted
    assert summary_table(found)["states"]["hot"] == 1


@pytest.mark.parametrize(
    ("celsius", "band"),
    [
        (-300.0, 0),
        (29.99, 0),
        (30.0, 1),
        (34.99, 1),
        (35.0, 2),
        (89.9, BANDS - 2),
        (90.0, BANDS - 1),
        (1e300, BANDS - 1),
    ],
)
def test_bands_of_temperature(celsius: float, band: int) -> None:
    assert band_of(celsius) == band
