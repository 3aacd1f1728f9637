"""Room in the PostgreSQL store: a partition for each day, and what is forgotten."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta

import psycopg
from psycopg import sql

from service.fleet import store_postgres_sql as statements
from service.fleet.store_digest import slot_of
from service.fleet.store_postgres_read import CONDENSING, forget_digests, unsettle

TRIM_ROWS = 20_000
DAY = timedelta(days=1)
MAKING = 0x7465_6D70  # the lock of whoever makes tables: consumers start at the same time
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def make_day(connection: psycopg.Connection, day: date) -> None:
    """The partition of a day, if it is not there; within a transaction."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (MAKING,))
    name = f"telemetry_{day:%Y%m%d}"
    there = connection.execute("SELECT to_regclass(%s)", (name,)).fetchone()
    if there is not None and there[0] is not None:
        return
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    span = (start, start + DAY)
    # What a clock that ran ahead put there before would be in the new partition's way.
    moved = connection.execute("DELETE FROM telemetry_other WHERE ts >= %s AND ts < %s RETURNING *", span).fetchall()
    text = sql.SQL("CREATE TABLE {} PARTITION OF telemetry FOR VALUES FROM ({}) TO ({})")
    connection.execute(text.format(sql.Identifier(name), *map(sql.Literal, span)))
    with connection.cursor() as cursor:
        rows = [(*row[:7], json.dumps(row[7]), row[8]) for row in moved]
        cursor.executemany("INSERT INTO telemetry VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)", rows)


def used_bytes(connection: psycopg.Connection) -> int:
    """The database's size."""
    row = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    return int(row[0]) if row else 0


def trim_slice(
    connection: psycopg.Connection, received_before: float, most_bytes: int, *, timescale: bool
) -> tuple[int, bool]:
    """See `service.fleet.store.Store.trim`; within a transaction. Also whether a partition was dropped."""
    before = datetime.fromtimestamp(received_before, UTC)
    connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", (CONDENSING,))
    gone = _trim_commands(connection, received_before)
    if timescale:
        return gone + _drop_chunks(connection, before, full=used_bytes(connection) > most_bytes), False
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (MAKING,))
    days = [name for (name,) in connection.execute(statements.PARTITIONS) if name != "telemetry_other"]
    oldest = days[0] if days else ""
    full = len(days) > 1 and used_bytes(connection) > most_bytes
    if oldest and (full or oldest <= f"telemetry_{before - DAY:%Y%m%d}"):
        connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(oldest)))
        day = datetime.strptime(oldest, "telemetry_%Y%m%d").replace(tzinfo=UTC)
        forget_digests(connection, day, day + DAY)
        return gone + 1, True
    return gone + _trim_others(connection, before), False


def _trim_commands(connection: psycopg.Connection, received_before: float) -> int:
    gone = connection.execute(statements.TRIM_COMMANDS, (received_before, TRIM_ROWS)).fetchall()
    with connection.cursor() as cursor:
        cursor.executemany("DELETE FROM history WHERE device = %s AND id = %s", gone)
    return len(gone)


def _trim_others(connection: psycopg.Connection, before: datetime) -> int:
    """Times that no clock gives."""
    gone = connection.execute(statements.TRIM_OTHERS, (before, TRIM_ROWS)).fetchall()
    with connection.cursor() as cursor:
        unsettle(cursor, {(device, group, slot_of(ts)) for device, group, ts in gone}, before.timestamp())
    return len(gone)


def _drop_chunks(connection: psycopg.Connection, before: datetime, *, full: bool) -> int:
    """Drop what is too old; of a full store the oldest day that is left."""
    if full:
        row = connection.execute(
            "SELECT min(range_end) FROM timescaledb_information.chunks WHERE hypertable_name = 'telemetry'"
        ).fetchone()
        before = max(before, row[0]) if row and row[0] else before
    gone = connection.execute("SELECT drop_chunks('telemetry', %s::timestamptz)", (before,)).fetchall()
    if gone:
        row = connection.execute("SELECT min(ts) FROM telemetry").fetchone()
        forget_digests(connection, _EPOCH, row[0] if row and row[0] else before)
    return len(gone)
