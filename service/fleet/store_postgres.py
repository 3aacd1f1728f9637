"""The store in PostgreSQL, for several consumers on several machines.

Telemetry is a table with a partition for each day, so that forgetting a day is dropping a table; times that no clock of
today gives (1970, years ahead) are in a partition of their own. With TimescaleDB it is a hypertable instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg

from agent.errors import BoardError, NetworkError
from service.fleet import store_postgres_sql as statements
from service.fleet.store import (
    MAX_DEVICES,
    MAX_PAGE,
    RECENT_S,
    Batch,
    DeviceRow,
    Filter,
    Sample,
    Written,
    boot_number,
    device_row,
    key,
    metric_path,
    presence_values,
)
from service.fleet.store_chart import MAX_CHANGES, Changes, Chart
from service.fleet.store_digest import slot_of
from service.fleet.store_draw import draw, list_changes
from service.fleet.store_history import history_body
from service.fleet.store_postgres_read import CONDENSING, PostgresSource, condense_slice, unsettle
from service.fleet.store_postgres_room import DAY, MAKING, make_day, trim_slice, used_bytes

SCHEMA_VERSION = 2  # 1 had no history, digests and unsettled
CONNECT_S = 10
STATEMENT_MS = 60_000  # a batch takes some ten ms: a server that needs a minute is away
PAST = timedelta(days=60)  # a board's outbox reaches back 30 days
AHEAD = timedelta(days=2)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class PostgresStore:
    """See `service.fleet.store.Store`.

    Args:
        url: postgresql://user@host/database; a password may come from ~/.pgpass or PGPASSWORD instead.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._ids: dict[tuple[str, str], int] = {}
        self._days: set[str] = set()
        self._timescale = False
        self._connection: psycopg.Connection | None = None
        try:
            with self._storing() as connection, connection.transaction():
                self._prepare(connection)
        except BaseException:
            self.close()
            raise

    def _prepare(self, connection: psycopg.Connection) -> None:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (MAKING,))
        found = connection.execute("SELECT to_regclass('temperd_schema')").fetchone()
        extension = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'").fetchone()
        self._timescale = extension is not None
        if found is None or found[0] is None:
            connection.execute(statements.SCHEMA)
            if self._timescale:
                connection.execute(statements.TELEMETRY)
                connection.execute(
                    "SELECT create_hypertable('telemetry', 'ts', chunk_time_interval => interval '1 day')"
                )
            else:
                connection.execute(statements.TELEMETRY + " PARTITION BY RANGE (ts)")
                connection.execute("CREATE TABLE telemetry_other PARTITION OF telemetry DEFAULT")
            connection.execute(statements.BY_TIME)
            connection.execute("INSERT INTO temperd_schema VALUES (1)")
        row = connection.execute("SELECT version FROM temperd_schema").fetchone()
        if row is None or row[0] > SCHEMA_VERSION:
            raise BoardError("the store was written by a newer temperd", where="schema", fix="Install that version")
        if row[0] < SCHEMA_VERSION:
            connection.execute(statements.SINCE_2)
            connection.execute("UPDATE temperd_schema SET version = %s", (SCHEMA_VERSION,))
        rows = connection.execute("SELECT tenant, name, id FROM devices")
        self._ids = {(tenant, name): number for tenant, name, number in rows}

    def write(self, batch: Batch, received: float) -> Written:
        """See `Store.write`."""
        with self._storing() as connection:
            self._make_days(connection, batch, received)
            with connection.transaction(), connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", (CONDENSING,))
                ids = self._known(cursor, batch)
                kept, strangers = batch.of(ids)
                _write_truth(cursor, kept, ids, received)
                new = 0
                if kept.samples:
                    new, moved = self._write_samples(cursor, _columns(kept.samples, ids, received))
                    slots = {(ids[key(fact)], fact.group, slot_of(fact.ts_ms)) for fact in kept.samples}
                    unsettle(cursor, slots | moved, received)
            self._ids = ids
        return Written(new, len(kept.samples) - new, strangers)

    def _write_samples(
        self, cursor: psycopg.Cursor, columns: Mapping[str, object]
    ) -> tuple[int, set[tuple[int, str, int]]]:
        """How many are new, and the quarters that messages left whose time was not right."""
        replaced, moved = 0, set()
        if not self._timescale:
            cursor.execute(statements.REPLACED, columns)
            replaced = cursor.rowcount
            moved = {(device, group, slot_of(ts)) for device, group, ts in cursor}
        cursor.execute(statements.SAMPLES, columns)
        return max(0, cursor.rowcount - replaced), moved

    def _known(self, cursor: psycopg.Cursor, batch: Batch) -> dict[tuple[str, str], int]:
        missing = sorted(batch.devices() - self._ids.keys())[: max(0, MAX_DEVICES - len(self._ids))]
        if not missing:
            return self._ids
        tenants, names = [tenant for tenant, _ in missing], [name for _, name in missing]
        pairs = "SELECT * FROM unnest(%s::text[], %s::text[])"
        cursor.execute(f"INSERT INTO devices (tenant, name) {pairs} ON CONFLICT DO NOTHING", (tenants, names))
        cursor.execute(
            f"SELECT tenant, name, id FROM devices WHERE (tenant, name) IN ({pairs})",  # noqa: S608 - constants of ours
            (tenants, names),
        )
        return self._ids | {(tenant, name): number for tenant, name, number in cursor}

    def _make_days(self, connection: psycopg.Connection, batch: Batch, received: float) -> None:
        """A partition for each day in the batch; in a transaction of its own, as it locks the table for a moment."""
        if self._timescale:
            return
        now = datetime.fromtimestamp(received, UTC)
        days = {_moment(fact.ts_ms).date() for fact in batch.samples if -PAST < _moment(fact.ts_ms) - now < AHEAD}
        for day in sorted(days):
            if day.isoformat() not in self._days:
                with connection.transaction():
                    make_day(connection, day)
                self._days.add(day.isoformat())

    def devices(self, wanted: Filter, now: float) -> list[DeviceRow]:
        """See `Store.devices`."""
        span = {
            "newest": datetime.fromtimestamp(now, UTC) + DAY,
            "oldest": datetime.fromtimestamp(now - RECENT_S, UTC),
        }
        with self._storing() as connection:
            return [device_row(row) for row in connection.execute(statements.DEVICES, wanted.values() | span)]

    def latest(self, tenant: str, device: str, now: float) -> dict[str, tuple[float, str]]:
        """See `Store.latest`."""
        query = (
            "SELECT DISTINCT ON (grp) grp, ts, body::text FROM telemetry WHERE device = %s AND grp = %s AND ts <= %s"
            " ORDER BY grp, ts DESC LIMIT 1"
        )
        following = "SELECT min(grp) FROM telemetry WHERE device = %s AND grp > %s"
        found: dict[str, tuple[float, str]] = {}
        newest = datetime.fromtimestamp(now, UTC) + DAY
        with self._storing() as connection:
            number, group = _id(connection, tenant, device), ""
            while True:
                row = connection.execute(following, (number, group)).fetchone()
                if row is None or row[0] is None:
                    return found
                group = row[0]
                row = connection.execute(query, (number, group, newest)).fetchone()
                if row is not None:
                    found[row[0]] = (row[1].timestamp(), json.dumps(json.loads(row[2]), separators=(",", ":")))

    def series(
        self, tenant: str, device: str, group: str, metric: str, since: float, until: float, limit: int = MAX_PAGE
    ) -> list[tuple[float, object]]:
        """See `Store.series`."""
        query = (
            "SELECT ts, body #> %s FROM telemetry WHERE device = %s AND grp = %s AND ts >= %s AND ts < %s"
            " ORDER BY ts LIMIT %s"
        )
        path = metric_path(metric)
        with self._storing() as connection:
            number = _id(connection, tenant, device)
            span = (_moment(int(since * 1000)), _moment(int(until * 1000)), min(limit, MAX_PAGE))
            return [(ts.timestamp(), value) for ts, value in connection.execute(query, (path, number, group, *span))]

    def alarms(self, tenant: str, device: str) -> list[str]:
        """See `Store.alarms`."""
        with self._storing() as connection:
            number = _id(connection, tenant, device)
            rows = connection.execute("SELECT body FROM alarms WHERE device = %s ORDER BY type", (number,))
            return [row[0] for row in rows]

    def forget_alarms(self, tenant: str, unseen_since: float) -> int:
        """See `Store.forget_alarms`."""
        text = "DELETE FROM alarms WHERE seen < %s AND device IN (SELECT id FROM devices WHERE tenant = %s OR %s = '')"
        with self._storing() as connection:
            return connection.execute(text, (unseen_since, tenant, tenant)).rowcount

    def has_read(self, consumer: str) -> bool:
        """See `Store.has_read`."""
        with self._storing() as connection:
            found = connection.execute("SELECT 1 FROM readers WHERE name = %s", (consumer,))
            return found.fetchone() is not None

    def note_read(self, consumer: str, *, whole: bool) -> None:
        """See `Store.note_read`."""
        kept = "INSERT INTO readers VALUES (%s) ON CONFLICT DO NOTHING"
        with self._storing() as connection:
            connection.execute(kept if whole else "DELETE FROM readers WHERE name = %s", (consumer,))

    def statuses(self, tenant: str, device: str) -> list[str]:
        """See `Store.statuses`."""
        query = "SELECT body FROM commands WHERE device = %s ORDER BY id DESC LIMIT %s"
        with self._storing() as connection:
            return [row[0] for row in connection.execute(query, (_id(connection, tenant, device), MAX_PAGE))]

    def types(self, tenant: str, device: str) -> dict[str, str]:
        """See `Store.types`."""
        query = "SELECT id, type FROM commands WHERE device = %s ORDER BY id DESC LIMIT %s"
        with self._storing() as connection:
            return dict(connection.execute(query, (_id(connection, tenant, device), MAX_PAGE)).fetchall())

    def birth(self, tenant: str, device: str) -> str:
        """See `Store.birth`."""
        with self._storing() as connection:
            number = _id(connection, tenant, device)
            row = connection.execute("SELECT body FROM births WHERE device = %s", (number,)).fetchone()
            return str(row[0]) if row else ""

    def history(self, tenant: str, device: str, command_id: str) -> list[str]:
        """See `Store.history`."""
        query = "SELECT body FROM history WHERE device = %s AND id = %s ORDER BY version"
        with self._storing() as connection:
            return [row[0] for row in connection.execute(query, (_id(connection, tenant, device), command_id))]

    def chart(
        self, tenant: str, device: str, wanted: Mapping[str, Sequence[str]], since: float, until: float, buckets: int
    ) -> Chart:
        """See `Store.chart`."""
        with self._storing() as connection:
            source = PostgresSource(connection, _id(connection, tenant, device))
            return draw(source, wanted, since, until, buckets)

    def changes(
        self,
        tenant: str,
        device: str,
        group: str,
        metrics: Sequence[str],
        since: float,
        until: float,
        limit: int = MAX_CHANGES,
    ) -> Changes:
        """See `Store.changes`."""
        with self._storing() as connection:
            source = PostgresSource(connection, _id(connection, tenant, device))
            return list_changes(source, group, metrics, since, until, limit)

    def condense(self, now: float) -> int:
        """See `Store.condense`."""
        with self._storing() as connection, connection.transaction():
            return condense_slice(connection, now)

    def trim(self, received_before: float, most_bytes: int) -> int:
        """See `Store.trim`. A slice is a day; of times that no clock gives, some messages."""
        with self._storing() as connection, connection.transaction():
            gone, dropped = trim_slice(connection, received_before, most_bytes, timescale=self._timescale)
            if dropped:
                self._days.clear()
            return gone

    def used_bytes(self) -> int:
        """See `Store.used_bytes`. The database's size: PostgreSQL gives nothing back but what a dropped day took."""
        with self._storing() as connection:
            return used_bytes(connection)

    def count(self) -> int:
        """See `Store.count`."""
        with self._storing() as connection:
            row = connection.execute("SELECT count(*) FROM telemetry").fetchone()
            return int(row[0]) if row else 0

    def close(self) -> None:
        """See `Store.close`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _storing(self) -> Iterator[psycopg.Connection]:
        """The connection, made anew when it was lost, and the one seam where psycopg's errors become ours."""
        try:
            if self._connection is None or self._connection.closed:
                options = f"-c statement_timeout={STATEMENT_MS}"
                self._connection = psycopg.connect(
                    self._url, autocommit=True, connect_timeout=CONNECT_S, options=options
                )
            yield self._connection
        except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
            raise BoardError("the store has no room", where=_told(error), reason="no-space") from None
        except psycopg.OperationalError as error:  # away, ended, or two consumers in each other's way
            raise NetworkError("the store cannot be reached", where=_told(error)) from None
        except psycopg.Error as error:
            raise BoardError("the store cannot be used", where=_told(error)) from None


def _told(error: psycopg.Error) -> str:
    """The first line of an error; `from None` beside it: the cause may show the URL and its password."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _write_truth(cursor: psycopg.Cursor, batch: Batch, ids: dict[tuple[str, str], int], received: float) -> None:
    """What is retained, each kind in the order of the devices: two consumers then wait for, not on, each other."""
    births = sorted(batch.births, key=lambda fact: ids[key(fact)])
    told = sorted(batch.statuses, key=lambda fact: (ids[key(fact)], fact.id))
    presences = sorted(batch.presences, key=lambda fact: ids[key(fact)])
    if presences:
        cursor.executemany(statements.PRESENCE, [presence_values(fact, ids[key(fact)]) for fact in presences])
    if births:
        cursor.executemany(
            statements.BIRTH, [(b.agent, b.board, b.model, b.state_version, ids[key(b)]) for b in births]
        )
        cursor.executemany(statements.BIRTH_BODY, [(ids[key(b)], b.body) for b in births])
    if told:
        cursor.executemany(statements.STATUS, [(ids[key(fact)], *fact[2:], received) for fact in told])
        history = [(ids[key(fact)], fact.id, fact.version, history_body(fact)) for fact in told]
        cursor.executemany(statements.HISTORY, history)
        commands = sorted({(device, name) for device, name, *_ in history})
        cursor.executemany(statements.SHORTEN, [{"device": device, "id": name} for device, name in commands])
    for fact in sorted(batch.alarms, key=lambda fact: (ids[key(fact)], fact.type)):
        if fact.body:
            cursor.execute(statements.ALARM, (ids[key(fact)], *fact[2:], received))
        else:
            cursor.execute("DELETE FROM alarms WHERE device = %s AND type = %s", (ids[key(fact)], fact.type))


def _columns(samples: list[Sample], ids: dict[tuple[str, str], int], received: float) -> dict[str, object]:
    return {
        "received": datetime.fromtimestamp(received, UTC),
        "device": [ids[key(fact)] for fact in samples],
        "grp": [fact.group for fact in samples],
        "ts": [_moment(fact.ts_ms) for fact in samples],
        "boot": [boot_number(fact.boot_id) for fact in samples],
        "seq": [fact.seq for fact in samples],
        "mono": [fact.mono_ms for fact in samples],
        "body": [fact.values for fact in samples],
        "dated": [fact.dated for fact in samples],
    }


def _moment(ts_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=ts_ms)


def _id(connection: psycopg.Connection, tenant: str, device: str) -> int:
    row = connection.execute("SELECT id FROM devices WHERE tenant = %s AND name = %s", (tenant, device)).fetchone()
    return int(row[0]) if row else -1
