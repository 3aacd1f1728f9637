"""The telemetry of one device in the PostgreSQL store, as charts read it, and the digests that make them fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import psycopg

from service.fleet import store_postgres_sql as statements
from service.fleet.store_chart import Span, metric_path
from service.fleet.store_digest import (
    FEWEST,
    MAX_SLOTS,
    MOST_ROWS,
    SETTLED_S,
    SLICE_ROWS,
    SLOT_MS,
    Digest,
    Row,
    condense,
)

CONDENSING = 0x7465_6D71  # writers share this lock: while a digest is made, no message of its quarter is under way
_FETCH = 500  # rows at a time: a hostile message has 128 KiB
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = "(extract(epoch FROM ts) * 1000)::bigint"
_OF_SPAN = "FROM telemetry WHERE device = %s AND grp = %s AND ts >= %s AND ts < %s"
_SLOTS = "FROM digests WHERE device = %s AND grp = %s AND slot >= %s AND slot < %s ORDER BY slot"


class PostgresSource:
    """See `service.fleet.store_draw.Source`.

    Args:
        connection: to the database.
        device: its number there.
    """

    def __init__(self, connection: psycopg.Connection, device: int) -> None:
        self._connection, self._device = connection, device

    def count(self, group: str, span: Span, most: int) -> int:
        """See `Source.count`."""
        query = f"SELECT count(*) FROM (SELECT 1 {_OF_SPAN} LIMIT %s) found"  # noqa: S608 - constants
        row = self._connection.execute(query, (self._device, group, *_moments(span), most)).fetchone()
        return int(row[0]) if row else 0

    def numbers(
        self, group: str, metrics: Sequence[str], span: Span, most: int
    ) -> Iterator[tuple[int, Sequence[object]]]:
        """See `Source.numbers`."""
        yield from self._values(group, metrics, span, most, "")

    def texts(self, group: str, metrics: Sequence[str], span: Span, most: int) -> Iterator[tuple[int, str]]:
        """See `Source.texts`."""
        yield from self._values(group, metrics, span, most, "::text")

    def _values(self, group: str, metrics: Sequence[str], span: Span, most: int, cast: str) -> psycopg.Cursor:
        asked = ", ".join("body #> %s" for _ in metrics)
        query = f"SELECT {_MS}, jsonb_build_array({asked}){cast} {_OF_SPAN} ORDER BY ts DESC LIMIT %s"
        paths = map(metric_path, metrics)
        return self._connection.execute(query, (*paths, self._device, group, *_moments(span), most))

    def digests(self, group: str, slots: Span) -> Iterator[tuple[int, Digest]]:
        """See `Source.digests`."""
        query = f"SELECT slot, head, numbers {_SLOTS}"
        for slot, head, numbers in self._connection.execute(query, (self._device, group, *slots), binary=True):
            yield slot, Digest(head, bytes(numbers))  # as text the numbers were twice as long

    def heads(self, group: str, slots: Span) -> Iterator[tuple[int, str]]:
        """See `Source.heads`."""
        yield from self._connection.execute(f"SELECT slot, head {_SLOTS}", (self._device, group, *slots))


def unsettle(cursor: psycopg.Cursor, slots: set[tuple[int, str, int]], since: float) -> None:
    """A quarter whose messages changed has no digest until it has rested again."""
    if not slots:
        return
    devices, groups, starts = map(list, zip(*sorted(slots), strict=True))
    named = {"device": devices, "grp": groups, "slot": starts, "since": since}
    cursor.execute(statements.UNDIGEST, named)
    cursor.execute(statements.UNSETTLE, named)


def condense_slice(connection: psycopg.Connection, now: float) -> int:
    """See `service.fleet.store.Store.condense`; within a transaction."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (CONDENSING,))
    settled = connection.execute(statements.SETTLED, (now - SETTLED_S, MAX_SLOTS)).fetchall()
    done = read = 0
    for device, group, slot in settled:
        whole = (device, group, *_moments(Span(slot, slot + SLOT_MS)))
        counted = connection.execute(f"SELECT count(*) {_OF_SPAN}", whole).fetchone()
        rows = counted[0] if counted else 0
        if FEWEST <= rows <= MOST_ROWS:
            digest = _condensed(connection, whole)
            if digest is not None:
                connection.execute(statements.DIGEST, (device, group, slot, *digest))
            read += rows
        connection.execute("DELETE FROM unsettled WHERE device = %s AND grp = %s AND slot = %s", (device, group, slot))
        done += 1
        if read >= SLICE_ROWS:
            break
    return done


def _condensed(connection: psycopg.Connection, whole: tuple[object, ...]) -> Digest | None:
    with connection.cursor("condensing") as cursor:
        cursor.itersize = _FETCH
        cursor.execute(f"SELECT {_MS}, body::text, dated {_OF_SPAN} ORDER BY ts", whole)
        return condense(Row(*row) for row in cursor)


def forget_digests(connection: psycopg.Connection, since: datetime, until: datetime) -> None:
    """Those of a time whose messages are gone."""
    span = [round((moment - _EPOCH).total_seconds() * 1000) for moment in (since, until)]
    connection.execute("DELETE FROM digests WHERE slot >= %s AND slot < %s", span)


def _moments(span: Span) -> tuple[datetime, datetime]:
    since, until = (_EPOCH + timedelta(milliseconds=ts) for ts in span)
    return since, until
