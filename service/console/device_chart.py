"""The charts of a board: which curves there are, which span is wanted, and the numbers in columns. Pure."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from agent.errors import SpecError
from service.fleet.boards import number
from service.fleet.store import metric_path

DAY_S = 86400.0
SPANS_S = (900, 3600, 6 * 3600, 86400, 7 * 86400)
"""What the page offers: 15 minutes to a week."""
DEFAULT_SPAN_S = 3600
LEAST_SPAN_S = 1.0  # shorter, no two messages fall into it
MOST_SPAN_S = 92 * DAY_S  # a quarter: a longer one reads for seconds, and says less than a report
LATEST_S = 253_402_300_799.0  # the last second of the year 9999
DEFAULT_BUCKETS, MOST_BUCKETS = 600, 2000  # one for each pixel of a wide screen, and what the store gives at most
MOST_METRICS = 16  # of one question
MOST_QUERY = 2000  # characters of `metrics`
EPOCH_S = 7200.0  # a score comes with each epoch; of longer ones each has a point of its own
GAP_IDLE = 2.5  # so many intervals of a board at rest without a word are a gap
WORK_S = 30.0  # without a word of a group that speaks each second while a job works: its work rested, or ended
IDLE_S = 60.0  # between two messages of a board at rest, where its birth does not tell
MOST_IDLE_S = 86400.0  # a board may say anything of its interval

MOST_NAME = 64  # characters of an alarm's type
MOST_ALARMS = 64  # of one list: the closed list is shorter
MOST_ALARM_MARKS = 500  # beyond it nobody can tell them apart
SAME_ALARM_S = 90.0  # an alarm's own message and the telemetry that lists it come within a minute of each other

OF_WORK = ("training", "energy")
"""Groups that speak of a job only."""
DECISIONS = ("action", "rule", "frequency_rule", "depth_rule", "batch_rule")
"""Texts of the group `board` whose changes are marks."""
ALWAYS = ("action", "rule")
"""Of these, what each mark names, changed or not."""

Column: TypeAlias = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: its metric as `group.key`, what it is multiplied by to be shown, and how it is drawn."""

    metric: str
    name: str
    """In the texts, as `device.curve.<name>`."""
    scale: float = 1.0
    steps: bool = False
    """A level that holds until the next one, not a course."""
    dashed: bool = False
    unit: str = ""
    """Where it is another one than the panel's."""
    holds_s: float = 0.0
    """How long a value holds without another one, where that is longer than a board may be silent."""


@dataclass(frozen=True, slots=True)
class ChartPanel:
    """Curves that share an axis."""

    name: str
    """In the texts, as `device.panel.<name>`."""
    unit: str
    digits: int
    curves: tuple[Curve, ...]
    low: float | None = None
    high: float | None = None


PANELS = (
    ChartPanel(
        "temperature", "°C", 1,
        (
            Curve("board.temperature_celsius", "temperature"),
            Curve("board.delta_t_celsius", "delta", unit="K"),
            Curve("board.ambient_celsius", "ambient", dashed=True),
        ),
    ),
    ChartPanel(
        "frequency", "MHz", 0,
        (
            Curve("board.frequency_hz", "frequency", 1e-6),
            Curve("board.frequency_cap_hz", "cap", 1e-6, steps=True, dashed=True),
        ),
    ),
    ChartPanel(
        "depth", "%", 0,
        (
            Curve("training.depth_percent", "depth", steps=True),
            Curve("board.least_depth_percent", "least_depth", steps=True, dashed=True),
        ),
        0, 100,
    ),
    ChartPanel("duty", "%", 0, (Curve("board.duty", "duty", 100.0, steps=True),), 0, 100),
    ChartPanel("power", "W", 2, (Curve("board.power_watts", "power"),)),
    ChartPanel("charge", "%", 0, (Curve("board.charge", "charge", 100.0),), 0, 100),
    ChartPanel("loss", "", 3, (Curve("training.loss", "loss"),)),
    ChartPanel("score", "", 3, (Curve("training.score", "score", holds_s=EPOCH_S),)),
)  # fmt: skip
METRICS = tuple(curve.metric for panel in PANELS for curve in panel.curves)


@dataclass(frozen=True, slots=True)
class ChartQuery:
    """What is asked for: `since` <= time < `until`, seconds since 1970."""

    since: float
    until: float
    buckets: int = DEFAULT_BUCKETS
    metrics: tuple[str, ...] = METRICS
    format: str = "json"

    def wanted(self) -> dict[str, list[str]]:
        """The metrics by group, as the store wants them."""
        return by_group(self.metrics)


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment at which the governor decided anew, or an alarm came or went."""

    ts: float
    kind: str
    """`decision`, `raised` or `cleared`."""
    values: Mapping[str, str]
    """Of a decision what changed by key; of an alarm its type as `alarm`."""


@dataclass(frozen=True, slots=True)
class ChartNumbers:
    """Of each bucket its time, and by metric columns of the least, greatest and last value; `None`: there is none."""

    starts: Sequence[float]
    columns: Mapping[str, tuple[Column, Column, Column]]
    bucket_s: float
    gap_s: float
    """Without a value for longer than this, a curve has a gap."""
    work_gap_s: float = WORK_S
    """The same of groups that speak of a job: two jobs are no line."""
    marks: Sequence[Mark] = ()
    marks_cut: bool = False

    def summary(self, metric: str) -> tuple[float, float, float] | None:
        """Least, greatest and last value of a metric; `None`: it has none in this span."""
        lows, highs, lasts = self.columns.get(metric, ((), (), ()))
        low = min((value for value in lows if value is not None), default=None)
        high = max((value for value in highs if value is not None), default=None)
        last = next((value for value in reversed(lasts) if value is not None), None)
        return None if low is None or high is None or last is None else (low, high, last)


def by_group(metrics: Iterable[str]) -> dict[str, list[str]]:
    """Keys of metrics by group, out of names such as `board.duty`."""
    found: dict[str, list[str]] = {}
    for metric in metrics:
        group, _, key = metric.partition(".")
        found.setdefault(group, []).append(key)
    return found


def read_chart_query(given: Mapping[str, str], now: float) -> ChartQuery:
    """What a URL asks for: `since` and `until`, or `span` seconds before `until`, which is `now` unless given.

    Raises:
        SpecError: a number that is none, or beyond its bounds; too many metrics, or no such name.
    """
    until = _number(given, "until", now, 0.0, LATEST_S)
    if given.get("since"):
        since = _number(given, "since", 0.0, 0.0, LATEST_S)
    else:
        since = until - _number(given, "span", DEFAULT_SPAN_S, LEAST_SPAN_S, MOST_SPAN_S)
    if not LEAST_SPAN_S <= until - since <= MOST_SPAN_S:
        raise SpecError(f"a chart spans {LEAST_SPAN_S:g} s to {MOST_SPAN_S / DAY_S:g} days", where="since, until")
    buckets = _number(given, "buckets", DEFAULT_BUCKETS, 1, MOST_BUCKETS)
    if not buckets.is_integer():
        raise SpecError("not a whole number", where="buckets")
    form = given.get("format", "json")
    if form not in ("json", "csv"):
        raise SpecError("is neither json nor csv", where="format")
    return ChartQuery(since, until, int(buckets), _metrics(given.get("metrics", "")), form)


def _number(given: Mapping[str, str], key: str, default: float, least: float, most: float) -> float:
    text = given.get(key, "")
    if not text:
        return float(default)
    try:
        value = float(text) if len(text) < 40 else math.nan  # noqa: PLR2004 - longer than any float that is written
    except ValueError:
        value = math.nan
    if not least <= value <= most:  # never of NaN
        raise SpecError(f"not a number from {least:g} to {most:g}", where=key)
    return value


def _metrics(text: str) -> tuple[str, ...]:
    if not text:
        return METRICS
    names = tuple(dict.fromkeys(text[: MOST_QUERY + 1].split(",")))
    if len(text) > MOST_QUERY or len(names) > MOST_METRICS:
        raise SpecError(f"at most {MOST_METRICS} metrics", where="metrics")
    for name in names:
        if len(metric_path(name)) < 2:  # noqa: PLR2004 - a group and a key
            raise SpecError(f"{name[:64]!r} has no group: board.temperature_celsius has one", where="metrics")
    return names


def gap_of(birth: Mapping[str, object], bucket_s: float) -> float:
    """How long a board may be silent before its curve has a gap, seconds."""
    return GAP_IDLE * max(_interval(birth, "idle_s", IDLE_S), bucket_s)


def work_gap_of(birth: Mapping[str, object], bucket_s: float) -> float:
    """The same of what it tells of a job while one is at work."""
    return max(WORK_S, GAP_IDLE * max(_interval(birth, "active_s", 1.0), bucket_s))


def _interval(birth: Mapping[str, object], key: str, otherwise: float) -> float:
    told = birth.get("telemetry")
    value = told.get(key) if isinstance(told, Mapping) else None
    believed = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MOST_IDLE_S
    return float(value) if believed and value else otherwise


def marks_of(changes: Iterable[tuple[float, Mapping[str, object]]]) -> list[Mark]:
    """Marks of decisions out of moments at which their texts changed, oldest first.

    The first moment is where the span begins: what held there is a mark as well.
    """
    found: list[Mark] = []
    before: dict[str, str] = {}
    for ts, values in changes:
        texts = {key: value for key, value in values.items() if isinstance(value, str)}
        changed = {key: value for key, value in texts.items() if before.get(key) != value}
        if changed:
            named = {key: texts[key] for key in ALWAYS if key in texts}
            found.append(Mark(ts, "decision", {**named, **changed}))
        before |= texts
    return found


def alarm_marks(told: Iterable[tuple[float, object]]) -> list[Mark]:
    """Marks of alarms that came and went, out of the lists of raised ones in telemetry, oldest first.

    What was raised when the span began is no mark: nobody knows when it came.
    """
    found: list[Mark] = []
    before: frozenset[str] | None = None
    for ts, value in told:
        now = _types(value)
        if now is None:
            continue
        known = now if before is None else before
        for kind, names in (("raised", now - known), ("cleared", known - now)):
            found += [Mark(ts, kind, {"alarm": name}) for name in sorted(names)]
        before = now
    return found[-MOST_ALARM_MARKS:]


def raised_marks(alarms: Iterable[Mapping[str, object]], query: ChartQuery) -> list[Mark]:
    """Marks of alarms that are raised now and came within the span."""
    found = []
    for alarm in alarms:
        since, name = number(alarm.get("since")), alarm.get("type")
        if since is not None and isinstance(name, str) and query.since <= since < query.until:
            found.append(Mark(since, "raised", {"alarm": name[:MOST_NAME]}))
    return found


def merged(marks: Iterable[Mark]) -> list[Mark]:
    """By time, and of an alarm that both telemetry and its own message tell of one mark."""
    kept: list[Mark] = []
    raised: dict[str, float] = {}
    for mark in sorted(marks, key=lambda mark: mark.ts):
        name = mark.values.get("alarm", "")
        if mark.kind == "raised":
            if name in raised and mark.ts - raised[name] < SAME_ALARM_S:
                continue
            raised[name] = mark.ts
        elif mark.kind == "cleared":
            raised.pop(name, None)
        kept.append(mark)
    return kept


def _types(value: object) -> frozenset[str] | None:
    """The alarm types of a list, or of its JSON text; `None`: it is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list):
        return None
    return frozenset(item[:MOST_NAME] for item in value[:MOST_ALARMS] if isinstance(item, str))


def as_json(query: ChartQuery, numbers: ChartNumbers) -> dict[str, Any]:
    """As scripts read it: columns, so that a day is some hundred kilobytes."""
    return {
        "since": query.since,
        "until": query.until,
        "bucket_s": numbers.bucket_s,
        "gap_s": numbers.gap_s,
        "gaps": dict.fromkeys(OF_WORK, numbers.work_gap_s),
        "ts": [round(ts, 3) for ts in numbers.starts],
        "metrics": {
            metric: {name: [_short(value) for value in column] for name, column in zip(_NAMES, columns, strict=True)}
            for metric, columns in numbers.columns.items()
        },
        "marks": [{"ts": mark.ts, "kind": mark.kind, "values": dict(mark.values)} for mark in numbers.marks],
        "marks_cut": numbers.marks_cut,
    }


_NAMES = ("min", "max", "last")


def _short(value: float | None) -> float | None:
    """Six digits: a screen has fewer, and the answer is half as long."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def as_csv(numbers: ChartNumbers) -> str:
    """The same as text: a row for each bucket, three columns for each metric."""
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(["time_utc", "unix_s", *(f"{metric}.{name}" for metric in numbers.columns for name in _NAMES)])
    columns = [column for three in numbers.columns.values() for column in three]
    for index, ts in enumerate(numbers.starts):
        cells = [column[index] for column in columns]
        rows.writerow([utc(ts), f"{ts:.3f}", *("" if cell is None else f"{cell:.9g}" for cell in cells)])
    return out.getvalue()


def utc(ts: float) -> str:
    """A time as ISO 8601 in UTC, to the millisecond; empty where a calendar has no such time."""
    try:
        return datetime.fromtimestamp(ts, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return ""
