"""The page of a job, and its files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from agent.keys_consoles import Role
from service.console.device_chart import ChartNumbers
from service.console.device_facts import command
from service.console.formats import no_formula
from service.console.job_facts import Moment, Stage, end_of, gate_of, moments, rest_of, span_of, stages, warnings_of
from service.console.job_files import JobRows, Window, picture
from service.console.job_reads import windows
from service.console.room import Room
from service.console.texts import words
from service.fleet.store_chart import Change, Changes, Chart, Column
from tests.console import device_stage as stage
from tests.console.device_stage import BOARD, HOSTILE, JOB, NOW, status
from tests.console.test_device_facts import VALUES

START = NOW - 3000
Client = Callable[..., TestClient]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with stage.staged(tmp_path_factory.mktemp("job"), seconds=3600) as made:
        yield made


@pytest.fixture
def client(room: Room) -> Client:
    return lambda role=Role.OWNER, language="en": TestClient(
        stage.stage_app(room, role, language), follow_redirects=False
    )


def test_a_job_is_told_whole(client: Client) -> None:
    page = client().get(f"/device/{BOARD}/jobs/{JOB}").text
    for told in (
        "0.7100",
        "0.9125",
        "+0.2025",
        "better than its base",
        "2 unreadable images",
        "thermal.delta-t-pause",
        "modelled",
    ):
        assert told in page
    assert page.count("<li><div>") == 11  # every status
    assert "Not sent from this console" in page
    assert f"/device/{BOARD}/act/" not in page  # it is over and was promoted


def test_what_is_known_of_who_sent_it_is_told(
    room: Room, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = command(JOB, "", {}).begun
    audit = stage.Audit(tmp_path / "audit", lambda: made + 1)
    monkeypatch.setattr(room, "audit", audit)
    audit.write("lan", "fine-tune", boards=(BOARD,), why=HOSTILE, commands=(JOB,), details={"args": {"model": HOSTILE}})
    page = client().get(f"/device/{BOARD}/jobs/{JOB}").text
    audit.close()
    assert "lan" in page
    assert "&lt;img src=x" in page
    assert "<img src=x" not in page
    assert "\u202e" not in page


def test_a_command_that_takes_no_time_has_no_charts_and_leads_to_its_job(
    room: Room, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pause = JOB[:-1] + "7"
    audit = stage.Audit(tmp_path / "audit", lambda: command(pause, "", {}).begun + 1)
    monkeypatch.setattr(room, "audit", audit)
    audit.write("lan", "pause", boards=(BOARD,), commands=(pause,), details={"args": {"job": JOB}})
    page = client().get(f"/device/{BOARD}/jobs/{pause}").text
    audit.close()
    assert f'<a href="/device/{BOARD}/jobs/{JOB}">' in page
    assert 'aria-labelledby="charts-title" hidden' in page
    assert 'aria-labelledby="charts-title" hidden' not in client().get(f"/device/{BOARD}/jobs/{JOB}").text


def test_a_result_tells_moments_and_what_is_empty(tmp_path: Path) -> None:
    scrub, result = JOB[:-1] + "8", {"ts": NOW, "findings": [], "notes": None}
    with stage.staged(tmp_path, seconds=1, told=[("scrub", status(scrub, "succeeded", 3, NOW, result=result))]) as room:
        page = TestClient(stage.stage_app(room)).get(f"/device/{BOARD}/jobs/{scrub}").text
    rows = {part.split("</bdi>")[0].rpartition("<bdi>")[2]: part for part in page.split('<tr><th scope="row">')[1:]}
    assert "<time" in rows["ts"]
    assert "none" in rows["findings"]
    assert "not known" in rows["notes"]


def test_an_end_is_that_of_the_last_status_though_charts_go_on() -> None:
    body = status(JOB, "succeeded", 3, NOW)
    way, one = moments([], body), command(JOB, "", body)
    assert end_of(way, one, NOW + 60) == NOW
    assert span_of(way, one, NOW + 60)[1] >= NOW
    begun = one.begun
    quick = status(JOB, "succeeded", 3, begun)
    assert end_of(moments([], quick), command(JOB, "", quick), NOW) == begun
    assert span_of(moments([], quick), command(JOB, "", quick), NOW)[1] == begun + 10


def test_a_command_that_was_only_sent_waits_for_its_board(
    room: Room, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = "019ff000-0000-7000-8000-0000000000bb"
    audit = stage.Audit(tmp_path / "audit", lambda: command(sent, "", {}).begun)
    monkeypatch.setattr(room, "audit", audit)
    audit.write("lan", "scrub", boards=(BOARD,), commands=(sent,), details={"args": {}})
    page = client().get(f"/device/{BOARD}/jobs/{sent}")
    audit.close()
    assert page.status_code == 200
    assert "has not answered yet" in page.text


def test_a_job_at_work_may_be_paused_by_operators_only(tmp_path: Path) -> None:
    running = status(stage.PROMOTED, "running", 3, NOW - 5, step="training", progress=0.2)
    with stage.staged(tmp_path, seconds=60, told=[("fine-tune", running)]) as room:
        where = f"/device/{BOARD}/jobs/{stage.PROMOTED}"
        operator = TestClient(stage.stage_app(room, Role.OPERATOR)).get(where).text
        viewer = TestClient(stage.stage_app(room, Role.VIEWER)).get(where).text
    assert f"/device/{BOARD}/act/pause?job={stage.PROMOTED}" in operator
    assert f"/device/{BOARD}/act/cancel?job={stage.PROMOTED}" in operator
    assert "/act/" not in viewer


def test_a_model_that_waits_may_be_promoted_by_owners_only(tmp_path: Path) -> None:
    ended = status(stage.PROMOTED, "succeeded", 3, NOW - 5, result={"staged": True, "model_sha256": "7b" * 32})
    with stage.staged(tmp_path, seconds=60, told=[("fine-tune", ended)]) as room:
        where = f"/device/{BOARD}/jobs/{stage.PROMOTED}"
        owner, operator = (
            TestClient(stage.stage_app(room, role)).get(where).text for role in (Role.OWNER, Role.OPERATOR)
        )
    assert "/act/promote?job=" in owner
    assert "/act/promote" not in operator


def test_telemetry_comes_message_by_message(client: Client) -> None:
    answer = client().get(f"/device/{BOARD}/jobs/{JOB}.csv")
    assert answer.headers["content-type"].startswith("text/csv")
    assert f'filename="{BOARD}-{JOB}.csv"' in answer.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    times = [float(row["unix_s"]) for row in rows]
    assert sorted(times) == times
    assert len(set(times)) == len(times)
    assert len(rows) == 900  # 930 s less the last 30, which lie in the gap
    assert {row["stage"] for row in rows} >= {"pulling", "training", "paused", "evaluating"} - {"evaluating"}
    for row, second in ((rows[10], 610), (rows[500], 1100)):
        told, _ = stage.reading(round(float(row["unix_s"]) - NOW + 3600))
        assert float(row["board.temperature_celsius"]) == told["temperature_celsius"], second
        assert row["board.rule"] == told["rule"]


def test_a_picture_is_one_svg_that_speaks_the_readers_language(client: Client) -> None:
    answer = client(language="vi").get(f"/device/{BOARD}/jobs/{JOB}.svg")
    assert answer.headers["content-type"] == "image/svg+xml"
    root = ET.fromstring(answer.text)  # noqa: S314 - ours
    texts = {node.text for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert any("Nhiệt độ" in (text or "") for text in texts)
    assert any("theo mô hình" in (text or "") for text in texts)
    assert "đang huấn luyện" in texts


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\r=1", "\n=1"])
def test_no_text_is_a_formula(text: str) -> None:
    assert no_formula(text).startswith("'")
    assert no_formula("run") == "run"


@given(st.text())
def test_texts_of_boards_are_quoted(text: str) -> None:
    since = 100.0
    values: Mapping[str, str | bool | None] = {"action": text, "rule": None}
    column = Column((1.5, None), (1.5, None), (1.5, None))
    rows = JobRows(since, (Stage(100, 102, text),), metrics=("board.duty",))
    window = Window(Chart((101.0, 103.0), 0.0, {"board.duty": column}), Changes((Change(100.5, values),)))
    made = rows.head() + "".join(rows.rows(window))
    read = list(csv.reader(io.StringIO(made, newline="")))
    assert [len(row) for row in read] == [7, 7, 7]
    assert read[1][5] == no_formula(text)
    assert not read[1][3].startswith(("=", "+", "-", "@"))
    assert read[2][3] == ""


def test_the_span_of_a_month_has_an_end() -> None:
    class Long:
        since, until = 0.0, 10_000_000.0

    spans = list(windows(Long()))  # type: ignore[arg-type]
    assert len(spans) == 4500
    assert all(until - since <= 600 for since, until in spans)


def told(*words_of: tuple[str, str, float]) -> list[Moment]:
    return moments(
        [{"status": word, "step": step, "ts": ts, "version": at} for at, (word, step, ts) in enumerate(words_of)], {}
    )


def test_a_way_is_stages() -> None:
    way = told(("accepted", "", 10), ("running", "training", 20), ("running", "training", 30), ("paused", "", 40),
               ("running", "training", 50), ("succeeded", "", 60))  # fmt: skip
    assert stages(way, 60) == [
        Stage(10, 20, "accepted"), Stage(20, 40, "training"), Stage(40, 50, "paused"), Stage(50, 60, "training"),
    ]  # fmt: skip


def test_a_clock_that_was_set_back_makes_no_stage_backwards() -> None:
    way = told(("accepted", "", 1000), ("running", "training", 20), ("succeeded", "", 60))
    assert all(one.until > one.since for one in stages(way, 60))
    since, until = span_of(way, command(JOB, "", status(JOB, "succeeded", 3, 60)), NOW)
    assert until > since


def test_the_newest_status_ends_a_way_once() -> None:
    body = status(JOB, "succeeded", 5, NOW)
    assert len(moments([status(JOB, "running", 4, NOW - 1)], body)) == 2
    assert len(moments([status(JOB, "running", 4, NOW - 1), body], body)) == 2
    assert len(moments([], body)) == 1


def test_a_lost_history_begins_as_long_ago_as_the_work_took() -> None:
    body = status(JOB, "succeeded", 5, NOW, result={"wall_s": 120.0})
    assert span_of(moments([], body), command(JOB, "", body), NOW) == (NOW - 120, NOW)


@given(VALUES, st.lists(VALUES, max_size=5))
def test_whatever_a_result_is_it_is_told_bounded(result: object, history: list[object]) -> None:
    body: dict[str, Any] = {"status": "succeeded", "ts": result, "result": result, "version": result}
    one = command(JOB, "", body)
    way = moments([item if isinstance(item, dict) else {"ts": item, "step": item} for item in history], body)
    since, until = span_of(way, one, NOW)
    assert until - since > 0
    for made in stages(way, until):
        assert made.until > made.since
    gate_of(one.result)
    assert len(rest_of(one.result)) <= 64
    assert len(warnings_of(one.result)) <= 20


@pytest.mark.parametrize(
    ("metric", "before", "after", "better"),
    [("accuracy", 0.5, 0.6, True), ("accuracy", 0.6, 0.5, False), ("mae", 2.0, 1.5, True), ("mae", 1.0, 1.5, False),
     ("accuracy", 0.5, 0.5, None), ("luck", 0.5, 0.6, None)],
)  # fmt: skip
def test_which_score_is_better_depends_on_the_metric(
    metric: str, before: float, after: float, better: bool | None
) -> None:
    gate = gate_of({"metric": metric, f"{metric}_before": before, f"{metric}_after": after})
    assert gate is not None
    assert gate.better is better


def test_a_job_without_telemetry_has_a_picture_without_curves() -> None:
    made = picture(f"job {HOSTILE}", ChartNumbers((), {}, 0.0, 150.0), (), NOW, words("en", "device"), "")
    ET.fromstring(made)  # noqa: S314 - ours
