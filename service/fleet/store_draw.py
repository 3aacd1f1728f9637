"""How a span of telemetry becomes a chart, or a list of changes, in either database: digests, and messages between."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from agent.errors import SpecError
from service.fleet.store_chart import (
    MAX_CHANGES,
    Changes,
    Chart,
    Fold,
    Mark,
    Moments,
    Span,
    check_metrics,
    mark,
    span_of,
    width_of,
)
from service.fleet.store_digest import SLOT_MS, STEP_MS, Digest, draw_digest, slot_of, told_by

QUICK_ROWS = 15_000  # messages that are read in a tenth of a second: beyond it digests fill the buckets
MAX_ROWS = 200_000  # messages of one question where there are no digests: a second

T = TypeVar("T")


class Source(Protocol):
    """The telemetry of one device."""

    def count(self, group: str, span: Span, most: int) -> int:
        """How many messages there are, at most `most`."""

    def numbers(
        self, group: str, metrics: Sequence[str], span: Span, most: int
    ) -> Iterable[tuple[int, Sequence[object]]]:
        """Time and values of the newest messages; all values but numbers, true and false may be anything."""

    def texts(self, group: str, metrics: Sequence[str], span: Span, most: int) -> Iterable[tuple[int, str]]:
        """Time, and the JSON text of an array that begins with the values, of the newest messages, newest first."""

    def digests(self, group: str, slots: Span) -> Iterable[tuple[int, Digest]]:
        """Begin of the quarter, and the digest, of each quarter that begins in the span; oldest first."""

    def heads(self, group: str, slots: Span) -> Iterable[tuple[int, str]]:
        """The same with the head alone."""


class _Left:
    """How many messages may still be read."""

    def __init__(self) -> None:
        self.rows = MAX_ROWS
        self.cut = False

    def take(self, rows: Iterable[T]) -> Iterator[T]:
        """Rows as long as there are any left to read."""
        for row in rows:
            if not self.rows:
                self.cut = True
                return
            self.rows -= 1
            yield row


def draw(source: Source, wanted: Mapping[str, Sequence[str]], since: float, until: float, buckets: int) -> Chart:
    """See `service.fleet.store.Store.chart`."""
    check_metrics(wanted)
    span = span_of(since, until)
    width = width_of(span, buckets)
    enough = max(buckets, QUICK_ROWS if width < STEP_MS else 0)
    rows = 0
    for group in wanted:
        rows += source.count(group, span, enough + 1 - rows)
    if rows <= buckets:
        width = 0
    elif width < STEP_MS and rows > QUICK_ROWS:
        width = width_of(span, buckets, STEP_MS)
    span = span.widened(width) if width else span
    fold = Fold([f"{group}.{metric}" for group, metrics in wanted.items() for metric in metrics], width)
    left, first = _Left(), 0
    for group, metrics in wanted.items():
        drawn: list[int] = []
        if width >= STEP_MS:
            for start, digest in source.digests(group, Span(slot_of(span.since), span.until)):
                with contextlib.suppress(ValueError):  # damaged: its messages are read
                    draw_digest(start, digest, fold, first, metrics, span)
                    drawn.append(start)
        for gap in reversed(_between(drawn, span)):
            for ts, values in left.take(source.numbers(group, metrics, gap, left.rows + 1)):
                fold.add(ts, first, values)
        first += len(metrics)
    return fold.chart(cut=left.cut)


def list_changes(source: Source, group: str, metrics: Sequence[str], since: float, until: float, limit: int) -> Changes:
    """See `service.fleet.store.Store.changes`."""
    check_metrics({group: metrics})
    if not 1 <= limit <= MAX_CHANGES:
        raise SpecError(f"{limit} changes: 1 to {MAX_CHANGES} are listed")
    span = span_of(since, until)
    left = _Left()
    parts: list[list[tuple[int, tuple[Mark, ...]]]] = []
    drawn: list[int] = []
    for start, head in source.heads(group, Span(-(-span.since // SLOT_MS) * SLOT_MS, span.until - SLOT_MS + 1)):
        with contextlib.suppress(ValueError):  # damaged: its messages are read
            parts.append(list(left.take(told_by(head, metrics))))
            drawn.append(start)
    for gap in reversed(_between(drawn, span)):
        runs = _runs(left.take(source.texts(group, metrics, gap, left.rows + 1)))
        parts.append([(ts, tuple(map(mark, json.loads(text)[: len(metrics)]))) for ts, text in runs])
    moments = Moments(metrics)
    for part in sorted(filter(None, parts), key=lambda rows: rows[0][0]):
        for ts, marks in part:
            moments.add(ts, marks)
    return moments.changes(limit, cut=left.cut)


def _between(drawn: Sequence[int], span: Span) -> list[Span]:
    """What of a span no digest covers, oldest first, by the quarters that one does."""
    gaps, start = [], span.since
    for slot in drawn:
        if slot > start:
            gaps.append(Span(start, slot))
        start = slot + SLOT_MS
    if start < span.until:
        gaps.append(Span(start, span.until))
    return gaps


def _runs(rows: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    """Of rows, newest first, the oldest of each run of equal ones; oldest first."""
    runs: list[tuple[int, str]] = []
    for row in rows:
        if runs and runs[-1][1] == row[1]:
            runs[-1] = row
        else:
            runs.append(row)
    return runs[::-1]
