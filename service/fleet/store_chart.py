"""What a store answers when a span of telemetry is to be drawn. Pure: readings in, columns out."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent.errors import SpecError

MAX_BUCKETS = 2000  # more than a screen has columns
MAX_METRICS = 16  # of one chart: eight lines are drawn at most, and some are compared
MAX_CHART_S = 92 * 86400.0  # `temperd ingest` keeps 90 days, if not told otherwise
ROUNDING_S = 1e-3  # `since + MAX_CHART_S - since` may be more than `MAX_CHART_S`
MAX_CHANGES = 1000  # marks of one chart: beyond it nobody can tell them apart
MAX_MARK = 128  # characters of a text that changes: rules and actions have some twenty
LAST_S = 4_102_444_800.0  # the year 2100, beyond which no message is kept
_S, _MIN, _H, _DAY = 1000, 60_000, 3_600_000, 86_400_000
WIDTHS_MS = (
    *(_S, 2 * _S, 5 * _S, 10 * _S, 15 * _S, 30 * _S, _MIN, 2 * _MIN, 5 * _MIN, 10 * _MIN, 15 * _MIN, 30 * _MIN),
    *(_H, 2 * _H, 3 * _H, 6 * _H, 12 * _H, _DAY, 2 * _DAY, 7 * _DAY, 28 * _DAY, 112 * _DAY),
)
"""Widths of a bucket; two of the last hold the longest span, wherever it begins."""
_METRIC = re.compile(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,3}")  # keys of nested tables, with dots
_LARGEST = sys.float_info.max


@dataclass(frozen=True, slots=True)
class Column:
    """One metric over the `starts` of its chart; `None` where it said no number. All finite; true is 1, false 0."""

    lows: tuple[float | None, ...]
    highs: tuple[float | None, ...]
    lasts: tuple[float | None, ...]
    """By the board's clock."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Several metrics over one time, for drawing.

    Attributes:
        starts: seconds since 1970, rising: of the buckets that hold a number, or of the messages that do.
        width_s: seconds of a bucket, whose starts are multiples of it; 0: `starts` are messages, and low, high and last
            of each are its value.
        columns: by `group.metric`, such as `board.temperature_celsius`; each wanted metric has one.
        cut: older messages of the span are not in it: it holds more than are read at a time.
    """

    starts: tuple[float, ...]
    width_s: float
    columns: Mapping[str, Column]
    cut: bool = False


Mark = str | bool | None


class Change(NamedTuple):
    """A moment at which what a board says differs from what it said before."""

    ts: float
    """Seconds since 1970, by the board's clock."""
    values: Mapping[str, Mark]
    """By metric: what it says from then on, texts of at most `MAX_MARK` characters. `None`: nothing, or no text."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes of a span, oldest first; the first is what held at its beginning.

    Attributes:
        rows: see `Change`.
        cut: there are more than were asked for, or than are read at a time; the oldest are left out.
    """

    rows: tuple[Change, ...]
    cut: bool = False


class Span(NamedTuple):
    """Milliseconds since 1970: `since` <= time < `until`."""

    since: int
    until: int

    def widened(self, width: int) -> Span:
        """To whole buckets."""
        return Span(self.since // width * width, -(-self.until // width) * width)

    def buckets(self, width: int) -> int:
        """How many of a width hold it."""
        wide = self.widened(width)
        return (wide.until - wide.since) // width


def metric_path(metric: str) -> list[str]:
    """The keys of a metric.

    Raises:
        SpecError: not the name of a metric.
    """
    if not _METRIC.fullmatch(metric):
        raise SpecError(f"{metric[:64]!r} is no metric: keys of a-z, 0-9, _ and -, with dots between, at most 4")
    return metric.split(".")


def span_of(since: float, until: float) -> Span:
    """A span that may be drawn; what of it is before 1970 or after 2100, where nothing is, is left out.

    Raises:
        SpecError: no time, the end is not after the beginning, or it is longer than `MAX_CHART_S`.
    """
    if not (math.isfinite(since) and math.isfinite(until) and 0 < until - since <= MAX_CHART_S + ROUNDING_S):
        raise SpecError(f"a span of more than 0 and at most {MAX_CHART_S / 86400:.0f} days is drawn")
    start, end = (min(max(ts, 0.0), LAST_S) for ts in (since, until))
    return Span(round(start * 1000), max(round(end * 1000), round(start * 1000) + 1))


def check_metrics(wanted: Mapping[str, Sequence[str]]) -> None:
    """Whether so many of these names may be asked for at once.

    Raises:
        SpecError: not the name of a metric, none at all, or more than `MAX_METRICS`.
    """
    number = sum(map(len, wanted.values()))
    if not 0 < number <= MAX_METRICS or not all(wanted.values()):
        raise SpecError(f"{number} metrics: 1 to {MAX_METRICS} are drawn at once, and of each group one at least")
    for metrics in wanted.values():
        for metric in metrics:
            metric_path(metric)


def width_of(span: Span, buckets: int, least: int = 0) -> int:
    """The smallest of `WIDTHS_MS`, not below `least`, of which at most so many hold a span of this length.

    One more is needed where it begins within one.

    Raises:
        SpecError: no bucket, or more than `MAX_BUCKETS`.
    """
    if not 1 <= buckets <= MAX_BUCKETS:
        raise SpecError(f"{buckets} buckets: 1 to {MAX_BUCKETS} are drawn")
    return next(width for width in WIDTHS_MS if width >= least and span.buckets(width) <= buckets + 1)


class Fold:
    """Readings by bucket, in whatever order they come.

    Args:
        names: of the metrics.
        width: milliseconds of a bucket; 0: each message is one.
    """

    def __init__(self, names: Sequence[str], width: int) -> None:
        self._names, self._width = names, width
        self._cells: list[dict[int, list[float]]] = [{} for _ in names]
        """By metric and bucket: low, high, last, and when that was."""

    def add(self, ts: int, first: int, values: Sequence[object]) -> None:
        """One message, at `ts` milliseconds: values of the metrics from number `first` on; what is no number: none."""
        start = ts - ts % self._width if self._width else ts
        for number, value in enumerate(values, first):
            if isinstance(value, float | int) and -_LARGEST <= value <= _LARGEST:  # false for what is no number
                self._put(number, start, ts, (value, value, value))

    def add_step(self, ts: int, number: int, low: float, high: float, last: float) -> None:
        """What one metric was from `ts` on for a while, which lies in one bucket."""
        self._put(number, ts - ts % self._width, ts, (low, high, last))

    def _put(self, number: int, start: int, ts: int, told: tuple[float, float, float]) -> None:
        cell = self._cells[number].get(start)
        if cell is None:
            self._cells[number][start] = [*told, ts]
            return
        low, high, last = told
        cell[0] = min(low, cell[0])
        cell[1] = max(high, cell[1])
        if ts > cell[3]:
            cell[2:] = last, ts

    def chart(self, *, cut: bool) -> Chart:
        """All that was added."""
        starts = sorted(set().union(*self._cells))
        columns = {}
        for name, cells in zip(self._names, self._cells, strict=True):
            found = [cells.get(start) for start in starts]
            low, high, last = (tuple(None if cell is None else float(cell[k]) for cell in found) for k in range(3))
            columns[name] = Column(low, high, last)
        return Chart(tuple(start / 1000 for start in starts), self._width / 1000, columns, cut)


def mark(value: object) -> Mark:
    """What of a value is compared: texts, cut, and yes or no; nothing of all else."""
    if isinstance(value, str):
        return value[:MAX_MARK]
    return value if isinstance(value, bool) else None


class Moments:
    """What a board said, in the order of its clock, as far as it changed.

    Args:
        names: of the metrics.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._seen: list[tuple[int, tuple[Mark, ...]]] = []

    def add(self, ts: int, values: tuple[Mark, ...]) -> None:
        """What it said at `ts` milliseconds; of messages with one time the last is true."""
        if self._seen and self._seen[-1][0] == ts:
            self._seen[-1] = (ts, values)
        elif not self._seen or self._seen[-1][1] != values:
            self._seen.append((ts, values))

    def changes(self, limit: int, *, cut: bool) -> Changes:
        """The newest `limit` changes."""
        rows: list[Change] = []
        before: tuple[Mark, ...] | None = None
        for ts, values in self._seen:
            if values != before:
                rows.append(Change(ts / 1000, dict(zip(self._names, values, strict=True))))
            before = values
        return Changes(tuple(rows[-limit:]), cut or len(rows) > limit)
