"""What charts are asked for, what they answer, and where curves have gaps."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import SpecError
from service.console.device_chart import (
    DEFAULT_SPAN_S,
    METRICS,
    MOST_METRICS,
    MOST_SPAN_S,
    PANELS,
    ChartNumbers,
    ChartQuery,
    Mark,
    alarm_marks,
    as_csv,
    as_json,
    gap_of,
    marks_of,
    merged,
    raised_marks,
    read_chart_query,
    work_gap_of,
)
from service.fleet.store_chart import MAX_BUCKETS, MAX_CHART_S, MAX_METRICS

NOW = 1_790_000_000.0


def test_what_may_be_asked_is_what_the_store_answers() -> None:
    assert len(METRICS) <= MOST_METRICS <= MAX_METRICS
    assert MOST_SPAN_S <= MAX_CHART_S
    assert read_chart_query({"buckets": str(MAX_BUCKETS)}, NOW).buckets == MAX_BUCKETS
    assert all(len(panel.curves) <= 6 for panel in PANELS)  # as many colours as the pages have


def test_a_span_ends_now_unless_said_otherwise() -> None:
    assert read_chart_query({}, NOW) == ChartQuery(NOW - DEFAULT_SPAN_S, NOW)
    assert read_chart_query({"span": "900"}, NOW).since == NOW - 900
    assert read_chart_query({"until": "5000", "span": "900"}, NOW) == ChartQuery(4100, 5000)
    assert read_chart_query({"since": "4000", "until": "5000"}, NOW) == ChartQuery(4000, 5000)
    wanted = read_chart_query({"metrics": "board.temperature_celsius,training.loss,board.pressure.cpu"}, NOW)
    assert wanted.wanted() == {"board": ["temperature_celsius", "pressure.cpu"], "training": ["loss"]}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("since", "nan"), ("since", "inf"), ("since", "-1"), ("since", "1e99"), ("since", "x"), ("since", "1" * 60),
        ("span", "0"), ("span", "0.5"), ("span", str(MOST_SPAN_S + 1)), ("buckets", "0"), ("buckets", "2001"),
        ("buckets", "1.5"), ("format", "xml"), ("metrics", "temperature_celsius"), ("metrics", "board.a b"),
        ("metrics", "board.'; drop table telemetry"), ("metrics", ",".join(f"board.m{n}" for n in range(17))),
        ("metrics", "board." + "x" * 5000), ("metrics", ","), ("until", "1"),
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_refused(key: str, value: str) -> None:
    with pytest.raises(SpecError):
        read_chart_query({key: value} | ({"since": "5000"} if key == "until" else {}), NOW)


@given(st.dictionaries(st.sampled_from(("since", "until", "span", "buckets", "metrics", "format")), st.text()))
def test_any_address_is_read_or_refused(address: dict[str, str]) -> None:
    try:
        query = read_chart_query(address, NOW)
    except SpecError:
        return
    assert 1 <= query.until - query.since <= MOST_SPAN_S
    assert 1 <= query.buckets <= MAX_BUCKETS
    assert 1 <= len(query.metrics) <= MOST_METRICS


@pytest.mark.parametrize("told", [None, "60", True, -1, 0, math.nan, 1e300, {}, 1 << 2000])
def test_a_board_that_does_not_tell_its_interval_is_taken_to_speak_once_a_minute(told: object) -> None:
    assert gap_of({"telemetry": {"idle_s": told}}, 1.0) == 150.0
    assert gap_of({"telemetry": told}, 1.0) == 150.0


def test_a_gap_is_longer_than_a_board_is_silent_and_than_a_bucket() -> None:
    assert gap_of({"telemetry": {"idle_s": 900}}, 1.0) == 2250.0
    assert gap_of({"telemetry": {"idle_s": 900}}, 3600.0) == 9000.0
    assert work_gap_of({"telemetry": {"active_s": 1}}, 1.0) == 30.0
    assert work_gap_of({"telemetry": {"active_s": 30}}, 1.0) == 75.0


def test_decisions_are_marks_with_their_rules_and_what_else_changed() -> None:
    told: list[tuple[float, dict[str, object]]] = [
        (1.0, {"action": "RUN", "rule": "run", "frequency_rule": "unlimited", "depth_rule": None}),
        (2.0, {"action": "SLOW", "rule": "thermal.delta-t-slow", "frequency_rule": "thermal.delta-t-slow"}),
        (3.0, {"action": "SLOW", "rule": "thermal.delta-t-slow", "frequency_rule": "unlimited"}),
        (4.0, {"action": 5, "rule": ["x"]}),
    ]
    assert marks_of(told) == [
        Mark(1.0, "decision", {"action": "RUN", "rule": "run", "frequency_rule": "unlimited"}),
        Mark(
            2.0,
            "decision",
            {"action": "SLOW", "rule": "thermal.delta-t-slow", "frequency_rule": "thermal.delta-t-slow"},
        ),
        Mark(3.0, "decision", {"action": "SLOW", "rule": "thermal.delta-t-slow", "frequency_rule": "unlimited"}),
    ]


def test_alarms_are_marks_when_they_come_and_when_they_go() -> None:
    told: list[tuple[float, object]] = [
        (1.0, '["disk-full"]'), (2.0, '["disk-full","overheated"]'), (3.0, None), (4.0, "[["), (5.0, '["overheated"]'),
    ]  # fmt: skip
    found = alarm_marks(told)
    assert [(mark.ts, mark.kind, mark.values["alarm"]) for mark in found] == [
        (2.0, "raised", "overheated"),
        (5.0, "cleared", "disk-full"),
    ]


def test_an_alarm_that_telemetry_and_its_own_message_tell_of_is_one_mark() -> None:
    own = raised_marks([{"type": "overheated", "since": 1.5}, {"type": 3, "since": 1.0}, {"type": "x", "since": "y"}],
                       ChartQuery(0, 100))  # fmt: skip
    listed = alarm_marks([(1.0, "[]"), (2.0, '["overheated"]'), (50.0, "[]"), (99.0, '["overheated"]')])
    assert [(mark.ts, mark.kind) for mark in merged([*listed, *own])] == [
        (1.5, "raised"),
        (50.0, "cleared"),
        (99.0, "raised"),
    ]


@given(st.lists(st.tuples(st.floats(0, 1e9), st.one_of(st.none(), st.text(), st.lists(st.text()), st.integers()))))
def test_whatever_a_list_of_alarms_is_marks_are_bounded(told: list[tuple[float, Any]]) -> None:
    assert all(len(mark.values["alarm"]) <= 64 for mark in alarm_marks(told))


def numbers(*values: float | None) -> ChartNumbers:
    column = tuple(values)
    starts = tuple(float(at) for at in range(len(values)))
    return ChartNumbers(starts, {"board.duty": (column, column, column)}, 1.0, 150.0)


def test_what_is_not_known_is_null_and_numbers_are_short() -> None:
    body = as_json(ChartQuery(0, 10), numbers(1 / 3, None, 2.0))
    assert body["metrics"]["board.duty"]["last"] == [0.333333, None, 2.0]
    json.dumps(body, allow_nan=False)
    assert numbers(3.0, None, 1.0).summary("board.duty") == (1.0, 3.0, 1.0)
    assert numbers(None).summary("board.duty") is None
    assert numbers().summary("board.other") is None


def test_a_table_has_a_row_for_each_moment() -> None:
    rows = list(csv.reader(io.StringIO(as_csv(numbers(0.5, None)))))
    assert rows[0] == ["time_utc", "unix_s", "board.duty.min", "board.duty.max", "board.duty.last"]
    assert rows[1] == ["1970-01-01T00:00:00.000Z", "0.000", "0.5", "0.5", "0.5"]
    assert rows[2][2:] == ["", "", ""]
