"""Digests of whatever a message may hold: what is drawn from one is what is drawn from its messages."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from service.fleet.store_chart import MAX_CHART_S, Fold, Moments, Span, mark, span_of
from service.fleet.store_digest import (
    MOST_BYTES,
    MOST_CHANGES,
    MOST_METRICS,
    MOST_ROWS,
    SLOT_MS,
    Row,
    condense,
    draw_digest,
    told_by,
)

START = 1_790_000_100_000 // SLOT_MS * SLOT_MS
SPAN = Span(START, START + SLOT_MS)
NAMES = ["a", "b", "c.a", "c.c.b"]
_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(10**308, 10**310),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=140),
    st.lists(st.integers(), max_size=2),
)
_keys = st.sampled_from(["a", "b", "c", "c.a", "", "\u202e"])
_tables = st.recursive(
    st.dictionaries(_keys, _values, max_size=4),
    lambda inner: st.dictionaries(_keys, _values | inner, max_size=4),
    max_leaves=4,
)


def row(at_ms: int, body: Any, *, dated: bool = True) -> Row:
    return Row(START + at_ms, json.dumps(body, separators=(",", ":")), dated)


def value(body: Any, name: str) -> Any:
    for key in name.split("."):
        body = body.get(key) if isinstance(body, dict) else None
    return body


@given(st.lists(st.tuples(st.integers(0, SLOT_MS - 1), _tables), max_size=12))
def test_a_digest_draws_and_tells_what_its_messages_do(found: list[tuple[int, dict[str, Any]]]) -> None:
    found = sorted(dict(found).items())  # one message at a time: of two the order is the database's
    digest = condense(row(at, body) for at, body in found)
    assert digest is not None
    for width in (30_000, 300_000):
        whole, drawn = Fold(NAMES, width), Fold(NAMES, width)
        for at, body in found:
            whole.add(START + at, 0, [value(body, name) for name in NAMES])
        draw_digest(START, digest, drawn, 0, NAMES, SPAN)
        chart = drawn.chart(cut=False)
        assert chart == whole.chart(cut=False)
        assert all(math.isfinite(low) for column in chart.columns.values() for low in column.lows if low is not None)
    whole_told, told = Moments(NAMES), Moments(NAMES)
    for at, body in found:
        whole_told.add(START + at, tuple(mark(value(body, name)) for name in NAMES))
    if found:
        for ts, marks in told_by(digest.head, NAMES):
            told.add(ts, marks)
    assert told.changes(1000, cut=False) == whole_told.changes(1000, cut=False)


def test_what_may_move_or_floods_has_no_digest() -> None:
    small = {"a": 1}
    assert condense([row(1, small), row(2, small)]) is not None
    assert condense([row(1, small), row(2, small, dated=False)]) is None
    assert condense(row(n, small) for n in range(MOST_ROWS + 1)) is None
    assert condense(row(n, {"a": "x" * 100_000}) for n in range(MOST_BYTES // 100_000 + 1)) is None
    assert condense([row(1, {f"m{n}": n for n in range(MOST_METRICS)})]) is not None
    assert condense([row(1, {f"m{n}": n for n in range(MOST_METRICS + 1)})]) is None
    assert condense(row(n, {f"{n}.{k}": None for k in range(9)}) for n in range(200)) is None
    assert condense(row(n, {"a": str(n)}) for n in range(MOST_CHANGES)) is not None
    assert condense(row(n, {"a": str(n)}) for n in range(MOST_CHANGES + 1)) is None


def test_what_is_no_json_has_no_digest() -> None:
    for text in ("", "{", "1" * 5000, "[" * 100_000):
        assert condense([Row(START, text, dated=True)]) is None
    assert condense([Row(START, "[1]", dated=True)]) is not None


@given(st.integers(1, 4_000_000_000_000))
@example(490_690_767)
def test_the_longest_span_may_begin_at_any_time(since_ms: int) -> None:
    since = since_ms / 1000  # as a board without a clock has it: near 1970 floats are fine enough to round up
    span = span_of(since, since + MAX_CHART_S)
    assert 0 < span.until - span.since <= MAX_CHART_S * 1000 + 1
