"""The store in one SQLite file: write-ahead log, any number of readers beside one writer at a time.

Telemetry is appended in the order in which it came, so forgetting the oldest is forgetting a head of the table. One
index knows the messages that are there already, another finds a device's by time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from agent.errors import BoardError
from service.fleet.store import (
    DAY_MS,
    ENDED,
    MAX_DEVICES,
    MAX_PAGE,
    NEWER_STATUS,
    RECENT_S,
    Alarm,
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

SCHEMA_VERSION = 1
BUSY_S = 10.0  # another consumer writes a batch in a few ms; a disk that is stalled gets some seconds
CACHE_KIB = 64 << 10  # the last leaf of each device's index, 10,000 of 4 KiB, and room for their parents
CHECKPOINT_PAGES = 16 << 10  # 64 MiB of log: a page that is written by many batches goes to the file once
TRIM_ROWS = 2000  # some 20 ms of deleting: stands between two batches

_SCHEMA = """
CREATE TABLE devices (
    id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL,
    online INTEGER NOT NULL DEFAULT 0, session INTEGER NOT NULL DEFAULT -1, connection INTEGER NOT NULL DEFAULT -1,
    since REAL, agent TEXT NOT NULL DEFAULT '', board TEXT NOT NULL DEFAULT '', model TEXT NOT NULL DEFAULT '',
    state_version INTEGER NOT NULL DEFAULT -1,
    UNIQUE (tenant, name)
) STRICT;
CREATE TABLE readers (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE births (device INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;
CREATE TABLE commands (
    device INTEGER NOT NULL, id TEXT NOT NULL, type TEXT NOT NULL, version INTEGER NOT NULL, status TEXT NOT NULL,
    ts REAL NOT NULL, body TEXT NOT NULL, seen REAL NOT NULL, UNIQUE (device, id)
) STRICT;
CREATE INDEX commands_by_age ON commands (seen);
CREATE TABLE alarms (
    device INTEGER NOT NULL, type TEXT NOT NULL, severity TEXT NOT NULL, ts REAL NOT NULL, body TEXT NOT NULL,
    seen REAL NOT NULL, PRIMARY KEY (device, type)
) STRICT, WITHOUT ROWID;
CREATE TABLE telemetry (
    id INTEGER PRIMARY KEY, device INTEGER NOT NULL, grp TEXT NOT NULL, ts INTEGER NOT NULL, boot INTEGER NOT NULL,
    seq INTEGER NOT NULL, mono_ms INTEGER NOT NULL, received REAL NOT NULL, body TEXT NOT NULL, dated INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX telemetry_once ON telemetry (device, boot, seq);
CREATE INDEX telemetry_by_time ON telemetry (device, grp, ts);
"""
_PRESENCE = """
UPDATE devices SET online = :online, session = :session, connection = :connection, since = :since WHERE id = :id
AND ((:session, :connection, NOT :online) > (session, connection, NOT online)
  OR (:online AND :session < session AND :since > since))
"""
_BIRTH = "UPDATE devices SET agent = ?, board = ?, model = ?, state_version = ? WHERE id = ?"
_STATUS = f"""
INSERT INTO commands VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device, id) DO UPDATE SET
    type = excluded.type, version = excluded.version, status = excluded.status, ts = excluded.ts, body = excluded.body,
    seen = excluded.seen
WHERE {NEWER_STATUS}
"""  # noqa: S608 - a constant of ours
_ALARM = """
INSERT INTO alarms VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (device, type) DO UPDATE SET
    severity = excluded.severity, ts = excluded.ts, body = excluded.body, seen = excluded.seen
"""
_SAMPLE = """
INSERT INTO telemetry VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device, boot, seq) DO UPDATE SET
    ts = excluded.ts, dated = 1
WHERE excluded.dated > telemetry.dated
"""
_DEVICES = """
SELECT d.tenant, d.name, d.online, d.since, d.agent, d.board, d.model,
    (SELECT count(*) FROM alarms a WHERE a.device = d.id) AS alarms,
    t.ts, json_extract(t.body, '$.temperature_celsius'), json_extract(t.body, '$.action')
FROM devices d LEFT JOIN telemetry t ON t.id = (
    SELECT n.id FROM telemetry n WHERE n.device = d.id AND n.grp = 'board' AND n.ts > :oldest AND n.ts <= :newest
    ORDER BY n.ts DESC LIMIT 1)
WHERE (d.tenant, d.name) > (:tenant_after, :name_after) AND (:tenant = '' OR d.tenant = :tenant)
    AND substr(d.name, 1, length(:prefix)) = :prefix
    AND (:online IS NULL OR d.online = :online) AND (:alarmed IS NULL OR (alarms > 0) = :alarmed)
ORDER BY d.tenant, d.name LIMIT :limit
"""
_TRIM_COMMANDS = f"""
DELETE FROM commands WHERE rowid IN (
    SELECT rowid FROM commands WHERE seen < ? AND status IN {ENDED} ORDER BY seen LIMIT {TRIM_ROWS})
"""  # noqa: S608 - constants of this module
_TRIM = f"""
DELETE FROM telemetry WHERE id IN (SELECT id FROM telemetry ORDER BY id LIMIT {TRIM_ROWS}) AND (:all OR received < :t)
"""  # noqa: S608 - a constant of this module


class SqliteStore:
    """See `service.fleet.store.Store`.

    Args:
        path: the file; made when missing, with its folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._storing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S, check_same_thread=False)
        try:
            with self._storing():
                self._prepare()
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> None:
        run = self._database.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")  # what is acknowledged to the broker survives a power cut
        run(f"PRAGMA cache_size = -{CACHE_KIB}")
        run(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        with self._transaction():
            version = int(run("PRAGMA user_version").fetchone()[0])
            if version > SCHEMA_VERSION:
                fix = "Install that version, or name another file"
                raise BoardError("the store was written by a newer temperd", where=str(self._path), fix=fix)
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    run(statement)
                run(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._ids = {(tenant, name): number for number, tenant, name in run("SELECT id, tenant, name FROM devices")}

    def write(self, batch: Batch, received: float) -> Written:
        """See `Store.write`."""
        many = self._database.executemany
        with self._storing():
            with self._transaction():
                ids = self._known(batch)
                kept, strangers = batch.of(ids)
                many(_PRESENCE, [presence_values(fact, ids[key(fact)]) for fact in kept.presences])
                births = [(b.agent, b.board, b.model, b.state_version, ids[key(b)]) for b in kept.births]
                many(_BIRTH, births)
                many("INSERT OR REPLACE INTO births VALUES (?, ?)", [(ids[key(b)], b.body) for b in kept.births])
                many(_STATUS, [(ids[key(fact)], *fact[2:], received) for fact in kept.statuses])
                self._write_alarms(kept.alarms, ids, received)
                rows = [_row(fact, ids, received) for fact in kept.samples]
                new = many(_SAMPLE, rows).rowcount if rows else 0
            self._ids = ids
        return Written(new, len(rows) - new, strangers)

    def _known(self, batch: Batch) -> dict[tuple[str, str], int]:
        """Ids of all devices, those of the batch included as far as there is room."""
        missing = batch.devices() - self._ids.keys()
        if not missing:
            return self._ids
        ids = dict(self._ids)
        for tenant, name in sorted(missing)[: max(0, MAX_DEVICES - len(ids))]:
            self._database.execute("INSERT OR IGNORE INTO devices (tenant, name) VALUES (?, ?)", (tenant, name))
            ids[tenant, name] = self._id(tenant, name)
        return ids

    def _id(self, tenant: str, name: str) -> int:
        row = self._database.execute("SELECT id FROM devices WHERE tenant = ? AND name = ?", (tenant, name)).fetchone()
        return int(row[0]) if row else -1

    def _write_alarms(self, alarms: list[Alarm], ids: dict[tuple[str, str], int], received: float) -> None:
        for fact in alarms:  # one by one: an alarm may be raised and cleared in one batch
            if fact.body:
                self._database.execute(_ALARM, (ids[key(fact)], *fact[2:], received))
            else:
                self._database.execute("DELETE FROM alarms WHERE device = ? AND type = ?", (ids[key(fact)], fact.type))

    def devices(self, wanted: Filter, now: float) -> list[DeviceRow]:
        """See `Store.devices`."""
        span = {"newest": int(now * 1000) + DAY_MS, "oldest": int((now - RECENT_S) * 1000)}
        with self._storing():
            return [device_row(row) for row in self._database.execute(_DEVICES, wanted.values() | span)]

    def latest(self, tenant: str, device: str, now: float) -> dict[str, tuple[float, str]]:
        """See `Store.latest`."""
        found: dict[str, tuple[float, str]] = {}
        newest = "SELECT grp, ts, body FROM telemetry WHERE device = ? AND grp = ? AND ts <= ? ORDER BY ts DESC LIMIT 1"
        following = "SELECT min(grp) FROM telemetry WHERE device = ? AND grp > ?"
        with self._storing():
            number, group = self._id(tenant, device), ""
            while (group := self._database.execute(following, (number, group)).fetchone()[0]) is not None:
                row = self._database.execute(newest, (number, group, int(now * 1000) + DAY_MS)).fetchone()
                if row:
                    found[row[0]] = (row[1] / 1000, row[2])
        return found

    def series(
        self, tenant: str, device: str, group: str, metric: str, since: float, until: float, limit: int = MAX_PAGE
    ) -> list[tuple[float, object]]:
        """See `Store.series`."""
        path = "$" + "".join(f'."{key}"' for key in metric_path(metric))
        query = (
            "SELECT ts / 1000.0, json_extract(body, ?), json_type(body, ?) FROM telemetry"
            " WHERE device = ? AND grp = ? AND ts >= ? AND ts < ? ORDER BY ts LIMIT ?"
        )
        span = (int(since * 1000), int(until * 1000), min(limit, MAX_PAGE))
        with self._storing():
            rows = self._database.execute(query, (path, path, self._id(tenant, device), group, *span))
            return [(ts, kind == "true" if kind in ("true", "false") else value) for ts, value, kind in rows]

    def alarms(self, tenant: str, device: str) -> list[str]:
        """See `Store.alarms`."""
        with self._storing():
            number = self._id(tenant, device)
            rows = self._database.execute("SELECT body FROM alarms WHERE device = ? ORDER BY type", (number,))
            return [row[0] for row in rows]

    def forget_alarms(self, tenant: str, unseen_since: float) -> int:
        """See `Store.forget_alarms`."""
        text = "DELETE FROM alarms WHERE seen < ? AND device IN (SELECT id FROM devices WHERE tenant = ? OR ? = '')"
        with self._storing():
            return self._database.execute(text, (unseen_since, tenant, tenant)).rowcount

    def has_read(self, consumer: str) -> bool:
        """See `Store.has_read`."""
        with self._storing():
            found = self._database.execute("SELECT 1 FROM readers WHERE name = ?", (consumer,))
            return found.fetchone() is not None

    def note_read(self, consumer: str, *, whole: bool) -> None:
        """See `Store.note_read`."""
        text = "INSERT OR IGNORE INTO readers VALUES (?)" if whole else "DELETE FROM readers WHERE name = ?"
        with self._storing():
            self._database.execute(text, (consumer,))

    def statuses(self, tenant: str, device: str) -> list[str]:
        """See `Store.statuses`."""
        query = "SELECT body FROM commands WHERE device = ? ORDER BY id DESC LIMIT ?"
        with self._storing():
            return [row[0] for row in self._database.execute(query, (self._id(tenant, device), MAX_PAGE))]

    def types(self, tenant: str, device: str) -> dict[str, str]:
        """See `Store.types`."""
        query = "SELECT id, type FROM commands WHERE device = ? ORDER BY id DESC LIMIT ?"
        with self._storing():
            return dict(self._database.execute(query, (self._id(tenant, device), MAX_PAGE)))

    def birth(self, tenant: str, device: str) -> str:
        """See `Store.birth`."""
        raise NotImplementedError(tenant, device)

    def history(self, tenant: str, device: str, command_id: str) -> list[str]:
        """See `Store.history`."""
        raise NotImplementedError(tenant, device, command_id)

    def chart(
        self, tenant: str, device: str, wanted: Mapping[str, Sequence[str]], since: float, until: float, buckets: int
    ) -> Chart:
        """See `Store.chart`."""
        raise NotImplementedError(tenant, device, wanted, since, until, buckets)

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
        raise NotImplementedError(tenant, device, group, metrics, since, until, limit)

    def trim(self, received_before: float, most_bytes: int) -> int:
        """See `Store.trim`."""
        with self._storing():
            full = self._used() > most_bytes
            with self._transaction():
                gone = self._database.execute(_TRIM, {"all": full, "t": received_before}).rowcount
                return gone + self._database.execute(_TRIM_COMMANDS, (received_before,)).rowcount

    def used_bytes(self) -> int:
        """See `Store.used_bytes`."""
        with self._storing():
            return self._used()

    def _used(self) -> int:
        pages, free, size = (
            int(self._database.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def count(self) -> int:
        """See `Store.count`."""
        with self._storing():
            return int(self._database.execute("SELECT count(*) FROM telemetry").fetchone()[0])

    def close(self) -> None:
        """See `Store.close`."""
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """The one seam where SQLite's and the system's errors become BoardError."""
        try:
            yield
        except sqlite3.Error as error:
            reason = "no-space" if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL" else "disk"
            raise BoardError(f"the store cannot be used: {error}", where=str(self._path), reason=reason) from error
        except OSError as error:
            raise BoardError(f"the store cannot be used: {error.strerror}", where=str(self._path)) from error


def _row(fact: Sample, ids: dict[tuple[str, str], int], received: float) -> tuple[object, ...]:
    boot = boot_number(fact.boot_id)
    return ids[key(fact)], fact.group, fact.ts_ms, boot, fact.seq, fact.mono_ms, received, fact.values, fact.dated
