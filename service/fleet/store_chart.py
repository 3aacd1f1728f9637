"""What a store answers when a span of telemetry is to be drawn. Pure: readings in, columns out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

MAX_BUCKETS = 2000  # more than a screen has columns
MAX_METRICS = 16  # of one chart: eight lines are drawn at most, and some are compared
MAX_CHART_S = 92 * 86400.0  # `temperd ingest` keeps 90 days, if not told otherwise
MAX_CHANGES = 1000  # marks of one chart: beyond it nobody can tell them apart


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
        starts: seconds since 1970, rising: of the buckets that hold a message, or of the messages themselves.
        width_s: seconds of a bucket, whose starts are multiples of it; 0: `starts` are messages, and low, high and last
            of each are its value.
        columns: by `group.metric`, such as `board.temperature_celsius`; each wanted metric has one.
        cut: older messages of the span are not in it: it holds more than are read at a time.
    """

    starts: tuple[float, ...]
    width_s: float
    columns: Mapping[str, Column]
    cut: bool = False


class Change(NamedTuple):
    """A moment at which what a board says differs from what it said before."""

    ts: float
    """Seconds since 1970, by the board's clock."""
    values: Mapping[str, str | bool | None]
    """By metric: what it says from then on, texts of at most 128 characters. `None`: nothing, or what is no text."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes of a span, oldest first; the first is what held at its beginning.

    Attributes:
        rows: see `Change`.
        cut: there are more than were asked for, or than are read at a time; the oldest are left out.
    """

    rows: tuple[Change, ...]
    cut: bool = False
