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
from service.fleet import store_sqlite_sql as statements
from service.fleet.store import (
    DAY_MS,
    MAX_DEVICES,
    MAX_PAGE,
    RECENT_S,
    Alarm,
    Batch,
    DeviceRow,
    Filter,
    Sample,
    Status,
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
from service.fleet.store_sqlite_read import SqliteSource, condense_slice
from service.sqlite_seam import reason_of, transaction

SCHEMA_VERSION = 2  # 1 had no history, digests and unsettled
BUSY_S = 10.0  # another consumer writes a batch in a few ms; a disk that is stalled gets some seconds
CACHE_KIB = 64 << 10  # the last leaf of each device's index, 10,000 of 4 KiB, and room for their parents
CHECKPOINT_PAGES = 16 << 10  # 64 MiB of log: a page that is written by many batches goes to the file once


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
        if self._version() != SCHEMA_VERSION:  # whoever only reads does not wait for a writer
            with transaction(self._database):
                self._upgrade()
        self._ids = {(tenant, name): number for number, tenant, name in run("SELECT id, tenant, name FROM devices")}

    def _version(self) -> int:
        return int(self._database.execute("PRAGMA user_version").fetchone()[0])

    def _upgrade(self) -> None:
        """Add what the file lacks; what it has is not touched, however large it is."""
        version = self._version()
        if version > SCHEMA_VERSION:
            fix = "Install that version, or name another file"
            raise BoardError("the store was written by a newer temperd", where=str(self._path), fix=fix)
        lacking = (statements.SCHEMA, statements.SINCE_2)[version:]
        for statement in ";".join(lacking).split(";"):
            self._database.execute(statement)
        self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def write(self, batch: Batch, received: float) -> Written:
        """See `Store.write`."""
        many = self._database.executemany
        with self._storing():
            with transaction(self._database):
                ids = self._known(batch)
                kept, strangers = batch.of(ids)
                many(statements.PRESENCE, [presence_values(fact, ids[key(fact)]) for fact in kept.presences])
                births = [(b.agent, b.board, b.model, b.state_version, ids[key(b)]) for b in kept.births]
                many(statements.BIRTH, births)
                many("INSERT OR REPLACE INTO births VALUES (?, ?)", [(ids[key(b)], b.body) for b in kept.births])
                many(statements.STATUS, [(ids[key(fact)], *fact[2:], received) for fact in kept.statuses])
                self._write_history(kept.statuses, ids)
                self._write_alarms(kept.alarms, ids, received)
                rows = [_row(fact, ids, received) for fact in kept.samples]
                new = many(statements.SAMPLE, rows).rowcount if rows else 0
                self._unsettle({(row[0], row[1], slot_of(row[2])) for row in rows}, received)
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

    def _write_history(self, statuses: list[Status], ids: dict[tuple[str, str], int]) -> None:
        told = [(ids[key(fact)], fact.id, fact.version, history_body(fact)) for fact in statuses]
        self._database.executemany(statements.HISTORY, told)
        commands = {(device, name) for device, name, *_ in told}
        self._database.executemany(statements.SHORTEN, [{"device": device, "id": name} for device, name in commands])

    def _unsettle(self, slots: set[tuple[int, str, int]], received: float) -> None:
        """A quarter with a message more has no digest until it has rested again."""
        self._database.executemany(statements.UNDIGEST, slots)
        self._database.executemany(statements.UNSETTLE, [(*slot, received) for slot in slots])

    def _write_alarms(self, alarms: list[Alarm], ids: dict[tuple[str, str], int], received: float) -> None:
        for fact in alarms:  # one by one: an alarm may be raised and cleared in one batch
            if fact.body:
                self._database.execute(statements.ALARM, (ids[key(fact)], *fact[2:], received))
            else:
                self._database.execute("DELETE FROM alarms WHERE device = ? AND type = ?", (ids[key(fact)], fact.type))

    def devices(self, wanted: Filter, now: float) -> list[DeviceRow]:
        """See `Store.devices`."""
        span = {"newest": int(now * 1000) + DAY_MS, "oldest": int((now - RECENT_S) * 1000)}
        with self._storing():
            return [device_row(row) for row in self._database.execute(statements.DEVICES, wanted.values() | span)]

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
        with self._storing():
            number = self._id(tenant, device)
            row = self._database.execute("SELECT body FROM births WHERE device = ?", (number,)).fetchone()
            return str(row[0]) if row else ""

    def history(self, tenant: str, device: str, command_id: str) -> list[str]:
        """See `Store.history`."""
        query = "SELECT body FROM history WHERE device = ? AND id = ? ORDER BY version"
        with self._storing():
            return [row[0] for row in self._database.execute(query, (self._id(tenant, device), command_id))]

    def chart(
        self, tenant: str, device: str, wanted: Mapping[str, Sequence[str]], since: float, until: float, buckets: int
    ) -> Chart:
        """See `Store.chart`."""
        with self._storing():
            return draw(SqliteSource(self._database, self._id(tenant, device)), wanted, since, until, buckets)

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
        with self._storing():
            source = SqliteSource(self._database, self._id(tenant, device))
            return list_changes(source, group, metrics, since, until, limit)

    def condense(self, now: float) -> int:
        """See `Store.condense`."""
        with self._storing(), transaction(self._database):
            return condense_slice(self._database, now)

    def trim(self, received_before: float, most_bytes: int) -> int:
        """See `Store.trim`."""
        with self._storing():
            full = self._used() > most_bytes
            with transaction(self._database):
                gone = self._database.execute(statements.TRIM, {"all": full, "t": received_before}).rowcount
                commands = self._database.execute(statements.TRIM_COMMANDS, (received_before,)).fetchall()
                self._database.executemany("DELETE FROM history WHERE device = ? AND id = ?", commands)
                if gone:
                    self._database.execute(statements.TRIM_DIGESTS)
                return gone + len(commands)

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
    def _storing(self) -> Iterator[None]:
        """The one seam where SQLite's and the system's errors become BoardError."""
        try:
            yield
        except sqlite3.Error as error:
            what = f"the store cannot be used: {error}"
            raise BoardError(what, where=str(self._path), reason=reason_of(error)) from error
        except OSError as error:
            raise BoardError(f"the store cannot be used: {error.strerror}", where=str(self._path)) from error


def _row(fact: Sample, ids: dict[tuple[str, str], int], received: float) -> tuple[int, str, int, *tuple[object, ...]]:
    boot = boot_number(fact.boot_id)
    return ids[key(fact)], fact.group, fact.ts_ms, boot, fact.seq, fact.mono_ms, received, fact.values, fact.dated
