"""A quarter of an hour of one group of a device in one small row: what a chart of a day reads in place of messages.

A digest is made a while after the quarter, and thrown away when a message of it comes later. What has none is read
message by message: digests make charts faster and never different. Pure: rows in, a digest out.
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

from service.fleet.store_chart import Fold, Mark, Span, mark

SLOT_MS = 900_000
STEP_MS = 30_000  # the finest bucket that a digest can fill: 6 hours have 720 of them, what a screen has
STEPS = SLOT_MS // STEP_MS
SETTLED_S = 1800.0  # from a quarter's first message to its digest: until then more come
FEWEST = 120  # rows: below it a digest saves little, and takes a larger share of the store
MOST_ROWS = 5000  # five a second; beyond it, or these bytes, somebody floods us, and has to be slow
MOST_BYTES = 8 << 20
MOST_METRICS = 128  # numbers of one group; the longest has 30
MOST_NAMES = 1024  # keys of all kinds
MOST_CHANGES = 512  # of all its texts: rules change some times in a quarter
MAX_SLOTS = 200  # in one transaction, which stands between two batches
SLICE_ROWS = 1000  # so are these: some 20 ms
_DEPTH = 4  # keys that a metric's name has at most
_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LARGEST = sys.float_info.max
_NUMBERS = struct.Struct(f"<{3 * STEPS}d")


class Row(NamedTuple):
    """A message as a digest needs it."""

    ts_ms: int
    body: str
    dated: bool


class Digest(NamedTuple):
    """As it is kept.

    Attributes:
        head: JSON: `first`, the time of the first message; `names` of the metrics that are numbers; `texts`, by metric
            the moments at which its text changed, each with what it was from then on.
        numbers: by metric, in the order of the names, the low, high and last of each step, NaN for none: 64-bit floats.
    """

    head: str
    numbers: bytes


class _Head(TypedDict):
    first: int
    names: list[str]
    texts: dict[str, list[tuple[int, Mark]]]


class _TooMuchError(Exception):
    """More than a digest holds."""


def slot_of(ts_ms: int) -> int:
    """The quarter of a time, by its beginning."""
    return ts_ms - ts_ms % SLOT_MS


def condense(rows: Iterable[Row]) -> Digest | None:
    """The digest of all messages of one quarter, oldest first. None: it is to be read message by message.

    That holds where a message may still get another time, and where there is more than a digest holds.
    """
    making = _Making()
    try:
        for number, row in enumerate(rows):
            making.add(row)
            if number >= MOST_ROWS:
                return None
    except (_TooMuchError, ValueError, RecursionError):  # ValueError: not JSON, or a number of thousands of digits
        return None
    return making.digest()


class _Making:
    def __init__(self) -> None:
        self._first: int | None = None
        self._bytes = self._changes = 0
        self._names: dict[str, str] = {}
        self._numbers: dict[str, dict[int, list[float]]] = {}
        self._marks: dict[str, Mark] = {}
        self._texts: dict[str, list[tuple[int, Mark]]] = {}

    def add(self, row: Row) -> None:
        self._bytes += len(row.body)
        if not row.dated or self._bytes > MOST_BYTES:
            raise _TooMuchError
        if self._first is None:
            self._first = row.ts_ms
        step = row.ts_ms % SLOT_MS // STEP_MS
        marks: dict[str, Mark] = {}
        body = json.loads(row.body)
        self._read(body if isinstance(body, dict) else {}, "", step, marks, _DEPTH)
        if marks != self._marks:
            self._change(row.ts_ms, marks)

    def _read(self, body: Mapping[str, object], prefix: str, step: int, marks: dict[str, Mark], depth: int) -> None:
        """Count the numbers, and put the texts into `marks`, of all names that can be asked for."""
        for key, value in body.items():
            name = self._names.get(f"{prefix}/{key}")
            if name is None:
                name = self._name(prefix, key)
            if not name or value is None:
                continue
            if isinstance(value, float | int):
                self._count(name, step, value)
            if isinstance(value, str | bool):
                marks[name] = mark(value)
            elif depth > 1 and isinstance(value, dict):
                self._read(value, f"{name}.", step, marks, depth - 1)

    def _name(self, prefix: str, key: str) -> str:
        """What a key is asked for by; empty: by nothing."""
        if len(self._names) >= MOST_NAMES:
            raise _TooMuchError
        found = self._names[f"{prefix}/{key}"] = prefix + key if _KEY.fullmatch(key) else ""
        return found

    def _count(self, name: str, step: int, value: float) -> None:
        if not -_LARGEST <= value <= _LARGEST:
            return
        cells = self._numbers.get(name)
        if cells is None:
            cells = self._numbers[name] = {}
            if len(self._numbers) > MOST_METRICS:
                raise _TooMuchError
        cell = cells.get(step)
        if cell is None:
            cells[step] = [value, value, value]
            return
        cell[2] = value
        if value < cell[0]:
            cell[0] = value
        elif value > cell[1]:
            cell[1] = value

    def _change(self, ts: int, marks: dict[str, Mark]) -> None:
        for name in self._marks.keys() | marks.keys():
            if self._marks.get(name) != marks.get(name):
                self._texts.setdefault(name, []).append((ts, marks.get(name)))
                self._changes += 1
        if self._changes > MOST_CHANGES:
            raise _TooMuchError
        self._marks = marks

    def digest(self) -> Digest:
        names = sorted(self._numbers)
        head = _Head(first=self._first or 0, names=names, texts=self._texts)
        empty = [math.nan] * 3
        packed = []
        for name in names:
            steps = [self._numbers[name].get(step, empty) for step in range(STEPS)]
            packed.append(_NUMBERS.pack(*(cell[part] for part in range(3) for cell in steps)))
        return Digest(json.dumps(head, separators=(",", ":")), b"".join(packed))


def draw_digest(start: int, digest: Digest, fold: Fold, first: int, metrics: Sequence[str], span: Span) -> None:
    """Add the steps of a quarter that lie within a span to a fold.

    Args:
        start: of the quarter, milliseconds since 1970.
        digest: as it was kept.
        fold: where the metrics' numbers begin at `first`.
        first: see `fold`.
        metrics: of the digest's group.
        span: begins and ends between two steps.

    Raises:
        ValueError: it is damaged; nothing was added.
    """
    head = _head(digest.head)
    index = {name: number for number, name in enumerate(head["names"])}
    if len(digest.numbers) != len(index) * _NUMBERS.size:
        raise ValueError("a digest without all its numbers")
    times = [(step, start + step * STEP_MS) for step in range(STEPS)]
    times = [(step, ts) for step, ts in times if span.since <= ts < span.until]
    for number, metric in enumerate(metrics, first):
        if metric not in index:
            continue
        cells = _NUMBERS.unpack_from(digest.numbers, index[metric] * _NUMBERS.size)
        for step, ts in times:
            if not math.isnan(cells[step]):
                fold.add_step(ts, number, cells[step], cells[STEPS + step], cells[2 * STEPS + step])


def told_by(head: str, metrics: Sequence[str]) -> Iterator[tuple[int, tuple[Mark, ...]]]:
    """What the texts of a quarter were, at each moment at which one of these changed, oldest first.

    Raises:
        ValueError: it is damaged.
    """
    read = _head(head)
    told: dict[int, dict[str, Mark]] = {read["first"]: {}}
    for metric in metrics:
        for ts, text in read["texts"].get(metric, ()):
            told.setdefault(ts, {})[metric] = text
    now: dict[str, Mark] = {}
    for ts in sorted(told):
        now |= told[ts]
        yield ts, tuple(now.get(metric) for metric in metrics)


def _head(text: str) -> _Head:
    head: _Head = json.loads(text)
    if not isinstance(head, dict) or head.keys() != _Head.__annotations__.keys():
        raise ValueError("a digest without its parts")
    return head
