"""What a board's page tells of hostile, partial and ordinary boards."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.console import device_facts as facts
from service.console.device_report import MAX_LINES, newest_report, report_of
from service.console.rows import finite
from tests.console.device_stage import BIRTH, HOSTILE, JOB, MODEL, NOW, PROMOTED, REPORT, status

OTHER = "7b" * 32
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=80), inner, max_size=5),
    max_leaves=20,
)


def made(kind: str, body: dict[str, Any]) -> facts.Command:
    return facts.command(body["id"], kind, body)


@given(VALUES, VALUES, VALUES)
def test_whatever_a_board_says_is_told_bounded(first: object, second: object, third: object) -> None:
    body = {"status": first, "step": second, "progress": third, "result": first, "until": second, "ts": third}
    one = facts.command(JOB, "fine-tune", body | {"energy_j": first, "attempt": third, "reason": second})
    assert one.progress is None or 0 <= one.progress <= 1
    birth: dict[str, Any] = {"active_model": first, "sensors": second, "metrics": third, "telemetry": first}
    found = facts.models(birth, [one])
    assert len(found) <= facts.MAX_HISTORY + 2
    values = {"a": first, "b": second, "health": third}
    cells = facts.cells("board", values, birth)
    assert len(cells) <= facts.MAX_ROWS
    assert all(len(cell.text) <= 8 * 66 for cell in cells)
    assert facts.raised([{"type": first, "severity": second, "since": third, "evidence": first}])
    report_of(facts.command(REPORT, "collect-report", {"result": {"log": [first, second], "versions": third}}))


def test_a_million_keys_are_a_table_of_some() -> None:
    assert len(facts.cells("board", {f"k{n}": n for n in range(1_000_000)}, {})) == facts.MAX_ROWS
    nested = {"pressure": {f"k{n}": n for n in range(100_000)}}
    assert len(facts.cells("board", nested, {})) == facts.MAX_ROWS


def test_lists_of_tables_are_told_and_empty_ones_are_known() -> None:
    stages = [{"name": "warm", "seconds": 12.5, "deep": [1]}, {"name": "hot", "deep": {"x": 1}}]
    told = {cell.key: cell.text for cell in facts.cells("", {"stages": stages, "findings": [], "n": [1, "two"]}, {})}
    assert told == {"stages": "name warm, seconds 12.5; name hot", "findings": facts.NOTHING, "n": "1, two"}


def test_what_is_nested_for_ever_is_told_at_once() -> None:
    value: object = "end"
    for _ in range(5000):
        value = [{"a": value}] * 8
    (cell,) = facts.cells("", {"x": value}, {})
    assert len(cell.text) <= facts.MAX_TEXT


def test_models_are_what_births_and_results_tell() -> None:
    job = made("fine-tune", status(JOB, "succeeded", 9, NOW, result={"model_sha256": OTHER, "accuracy_after": 0.8}))
    promoted = made("promote", status(PROMOTED, "succeeded", 3, NOW, result={"from": OTHER, "to": MODEL, "slot": "b"}))
    active, before = facts.models(BIRTH, [promoted, job])
    assert (active.role, active.sha256, active.slot, active.score) == ("active", MODEL, "b", ("accuracy", 0.9125))
    assert (before.role, before.sha256, before.job) == ("before", OTHER, JOB)


def test_a_model_waits_until_something_else_was_made_active() -> None:
    waiting = made("fine-tune", status(JOB, "succeeded", 9, NOW, result={"model_sha256": OTHER, "staged": True}))
    assert [model.role for model in facts.models(BIRTH, [waiting])] == ["active", "staged"]
    gone = made("rollback", status(PROMOTED, "succeeded", 3, NOW, result={"from": MODEL, "to": ""}))
    assert "staged" not in [model.role for model in facts.models({}, [gone, waiting])]


def test_a_slot_holds_the_model_that_was_put_there_last() -> None:
    def job(number: int, digest: str, slot: str) -> facts.Command:
        command_id = f"019ff000-0000-7000-8000-00000000010{number}"
        return made("fine-tune", status(command_id, "succeeded", 9, NOW, result={"model_sha256": digest, "slot": slot}))

    newest_first = [job(3, MODEL, "a"), job(2, OTHER, "b"), job(1, "9c" * 32, "a")]
    found = {model.sha256: model.slot for model in facts.models(BIRTH, newest_first)}
    assert found == {MODEL: "a", OTHER: "b", "9c" * 32: ""}


def test_work_at_hand_comes_before_what_waits() -> None:
    running = made("fine-tune", status(JOB, "running", 1, NOW, step="training"))
    waits = made("scrub", status(PROMOTED, "deferred", 1, NOW))
    over = made("collect-report", status(REPORT, "succeeded", 1, NOW))
    assert facts.current([over, waits, running]) == running
    assert facts.current([over, waits]) == waits
    assert facts.current([over]) is None


@pytest.mark.parametrize("value", [True, "1", float("nan"), float("inf"), 1 << 2000, None])
def test_what_is_no_finite_number_is_not_known(value: object) -> None:
    assert finite(value) is None


def test_a_report_shows_its_newest_lines_first_and_whatever_they_are() -> None:
    lines: list[Any] = [
        {"ts": "2026-12-01T09:00:00+00:00", "level": "error", "event": HOSTILE, "n": n} for n in range(300)
    ]
    body = {"ts": NOW, "log": [*lines, 7, None, {"ts": "soon", "level": ["x"], "event": {}}], "log_total": 1e999}
    found = newest_report([made("collect-report", status(REPORT, "succeeded", 1, NOW, result=body))])
    assert found is not None
    assert len(found.lines) == MAX_LINES
    assert found.total is None
    assert found.lines[0].when == "soon"
    assert found.lines[3].ts == pytest.approx(1_796_115_600.0)
    assert found.lines[3].rest == "n=299"
    assert "\u202e" not in found.lines[3].event


def test_what_is_no_report_is_none() -> None:
    assert report_of(made("scrub", status(REPORT, "succeeded", 1, NOW, result={"log": []}))) is None
    assert report_of(made("collect-report", status(REPORT, "succeeded", 1, NOW))) is None
    assert newest_report([]) is None
    json.dumps(BIRTH)
