"""The report of a board: bounded whatever it is made of, without secrets, and kept for the command that asked."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import logs
from service.answers import Answers
from service.commands import COLLECT_REPORT, Command
from service.config import Config, Device, Mqtt, Repository
from service.journal import Journal
from service.report import HIDDEN, MAX_REPORT_BYTES, Reports, Views, report_of
from service.report_log import KEPT, MAX_LINE_BYTES, RECENT, RecentLog, line
from service.statuses import Clock, Statuses

NOW = 1_800_000_000.0
ID = "01a1d8f0-0000-7000-8000-000000000001"


def make(
    folder: Path,
    live: Mapping[str, object] | None = None,
    recent: RecentLog | None = None,
    *,
    synchronised: bool = True,
) -> tuple[Reports, Journal]:
    config = Config(
        Device("board-1", state_dir=str(folder)),
        Repository("https://models.example.org/"),
        Mqtt(username="board-1-user", password_file="/etc/temperd/password"),
    )
    journal = Journal.open(folder / "journal.sqlite", 0.0).journal
    views = Views(
        lambda: {"schema": 1, "metrics": {"board": {}}}, lambda: live or {"alarms": []}, lambda: {"connected": True}
    )
    clock = Clock(lambda: NOW, lambda: 5.0, lambda: synchronised)
    return Reports(config, journal, clock, recent or RecentLog(), views), journal


def test_a_report_is_made_without_a_synchronised_clock_and_says_so(tmp_path: Path) -> None:
    report = make(tmp_path, synchronised=False)[0].make()
    assert report["clock"] == "unsynchronised"
    assert report["jobs"] == []
    assert report["disk"]["free_bytes"] > 0  # type: ignore[index]
    assert report["versions"]["sqlite"]  # type: ignore[index]


def test_the_newest_jobs_are_told_with_their_short_values(tmp_path: Path) -> None:
    reports, journal = make(tmp_path)
    for number in range(30):
        spec = {"model": "m", "data": "/srv/d", "classes": ["a"] * 1000}
        journal.add_job(f"job-{number:02}", "digest", "fine-tune", spec, NOW)
    journal.update("job-29", NOW, result={"metric": "accuracy", "accuracy_after": 0.5, "warnings": ["x"]})
    jobs: Any = reports.make()["jobs"]
    assert [job["id"] for job in jobs] == [f"job-{number:02}" for number in range(29, 9, -1)]
    assert jobs[0]["result"] == {"metric": "accuracy", "accuracy_after": 0.5}
    assert jobs[0]["spec"] == {"model": "m", "data": "/srv/d"}


def test_a_journal_that_cannot_be_read_is_said_in_its_place(tmp_path: Path) -> None:
    reports, journal = make(tmp_path)
    journal._db.execute("DROP TABLE jobs")
    assert "unreadable" in reports.make()["jobs"]  # type: ignore[operator]


def test_the_name_for_the_broker_is_hidden(tmp_path: Path) -> None:
    report = make(tmp_path)[0].make()
    assert "board-1-user" not in json.dumps(report)
    assert report["configuration"]["mqtt"]["username"] == HIDDEN  # type: ignore[index]


def test_a_report_is_kept_for_the_command_that_asked_and_for_no_other(tmp_path: Path) -> None:
    reports, journal = make(tmp_path)
    command = Command(ID, "board-1", COLLECT_REPORT, int(NOW), int(NOW) + 60, {}, digest="d", keyid="k")
    journal.record(ID, "d", "succeeded", reports.marks(command))
    kept: Any = report_of(journal, ID)
    assert kept["configuration"]["device"]["name"] == "board-1"
    assert report_of(journal, ID.replace("1", "2")) is None


class Broker:
    """Keeps statuses as a broker keeps what is retained."""

    def __init__(self) -> None:
        self.kept: dict[str, Mapping[str, object]] = {}

    def publish_status(
        self, _kind: str, command_id: str, status: Mapping[str, object], *, retained: bool = True
    ) -> None:
        assert retained
        self.kept[command_id] = status


def test_a_later_report_or_a_restart_never_takes_an_earlier_one_from_the_broker(tmp_path: Path) -> None:
    reports, journal = make(tmp_path)
    broker = Broker()
    statuses = Statuses(journal, broker, Clock(lambda: NOW, lambda: 5.0, lambda: True))
    ids = [ID, ID.replace("1", "2")]
    answers = Answers(journal, statuses, partial(report_of, journal))
    for command_id in ids:
        command = Command(command_id, "board-1", COLLECT_REPORT, int(NOW), int(NOW) + 60, {}, digest="d", keyid="k")
        answers.give(command, "succeeded", marks=reports.marks(command))
    before = dict(broker.kept)
    assert all(status["result"] for status in before.values())
    again = Answers(journal, statuses, partial(report_of, journal))
    again.publish_pending()
    for command_id in ids:
        again.repeat(command_id, COLLECT_REPORT)  # as each connect brings its request again
    assert {name: status["result"] for name, status in broker.kept.items()} == {
        name: status["result"] for name, status in before.items()
    }
    broker.kept.clear()
    again.repeat(ids[1], COLLECT_REPORT)
    assert broker.kept[ids[1]]["result"] == before[ids[1]]["result"]


def test_an_answer_that_no_broker_confirmed_is_told_even_when_its_report_is_gone(tmp_path: Path) -> None:
    reports, journal = make(tmp_path)
    broker = Broker()
    statuses = Statuses(journal, broker, Clock(lambda: NOW, lambda: 5.0, lambda: True))
    answers = Answers(journal, statuses, partial(report_of, journal))
    for command_id in (ID, ID.replace("1", "2")):
        command = Command(command_id, "board-1", COLLECT_REPORT, int(NOW), int(NOW) + 60, {}, digest="d", keyid="k")
        answers.give(command, "succeeded", marks=reports.marks(command))
    broker.kept.clear()
    answers.publish_pending()
    assert broker.kept[ID]["status"] == "succeeded"
    assert broker.kept[ID]["reason"] == "a later report has taken its place"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=False) | st.text(max_size=2000),
    lambda inner: st.lists(inner, max_size=90) | st.dictionaries(st.text(max_size=700), inner, max_size=90),
    max_leaves=30,
)


@settings(max_examples=40)
@given(value=JSON)
def test_whatever_a_view_holds_the_report_is_json_within_its_bound(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    reports, journal = make(tmp_path_factory.mktemp("report"), {"x": value, "alarms": [value]})
    try:
        assert len(json.dumps(reports.make(), separators=(",", ":"), allow_nan=False)) <= MAX_REPORT_BYTES
    finally:
        journal.close()


def test_what_is_too_much_is_left_out_from_the_least_needed_and_said(tmp_path: Path) -> None:
    recent = RecentLog()
    for number in range(KEPT):
        recent(None, "", {"level": "error", "event": "e", "number": number, **{f"k{i}": "x" * 100 for i in range(3)}})
    wide = {f"key-{i}": ["y" * 400] * 60 for i in range(2)}
    report: Any = make(tmp_path, {"alarms": [{"type": "overheated"}], **wide}, recent)[0].make()
    assert report["shortened"] is True
    assert report["alarms"] == [{"type": "overheated"}]
    assert report["log"][-1]["number"] == KEPT - 1, "the newest lines stay"
    assert 0 < len(report["log"]) < KEPT
    assert report["log_total"] == KEPT


# --- the log ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def recent() -> Iterator[RecentLog]:
    RECENT.clear()
    yield RECENT
    RECENT.clear()


def test_warnings_and_errors_of_the_programs_log_are_kept_and_nothing_less(recent: RecentLog) -> None:
    logs.configure("info", "json", stream=io.StringIO())
    log = logs.logger("test")
    log.info("quiet")
    log.warning("loud", key=1)
    try:
        int("inner")
    except ValueError:
        log.exception("louder")
    RECENT(None, "", {"level": "warning", "event": "long", "number": 10**5000})
    first, second, third = (json.loads(text) for text in recent.lines())
    assert (first["event"], first["level"], first["room"], first["key"]) == ("loud", "warning", "test", 1)
    assert first["ts"]
    assert second["event"] == "louder"
    assert "inner" in second["exception"]
    assert third["number"] == "(a long number)"
    assert recent.total == 3


def test_the_log_is_bounded_in_lines_and_in_each() -> None:
    recent = RecentLog()
    for number in range(KEPT + 5):
        recent(None, "", {"level": "warning", "event": "e" * 5000, "number": number, "x": object(), "y": [1] * 5000})
    assert len(recent.lines()) == KEPT
    assert recent.total == KEPT + 5
    assert max(map(len, recent.lines())) <= MAX_LINE_BYTES


@pytest.mark.parametrize(
    "key", ["password", "broker_passwd", "Secret", "private_key", "api_token", "credentials", "pin"]
)
def test_what_is_called_a_secret_is_hidden(key: str) -> None:
    assert json.loads(line({"event": "e", key: "hunter2"})) == {"event": "e", key: HIDDEN}


def test_a_password_in_an_address_is_cut() -> None:
    told = json.loads(line({"event": "e", "url": "postgresql://me:hunter2@host/db", "why": "at https://u@h/x"}))
    assert told == {"event": "e", "url": "postgresql://host/db", "why": "at https://h/x"}


@given(st.dictionaries(st.text(max_size=200), st.none() | st.integers() | st.text() | st.lists(st.text()), max_size=20))
def test_any_event_is_one_line_of_json(event: dict[str, Any]) -> None:
    text = line(event)
    assert isinstance(json.loads(text), dict)
    assert len(text) <= MAX_LINE_BYTES
