"""The telemetry of one device in the SQLite store, as charts read it, and the digests that make them fast."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from service.fleet import store_sqlite_sql as statements
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

_WHERE = "WHERE device = ? AND grp = ? AND ts >= ? AND ts < ?"
_SLOTS = "FROM digests WHERE device = ? AND grp = ? AND slot >= ? AND slot < ? ORDER BY slot"


def json_path(metric: str) -> str:
    """A metric's name as SQLite's JSON functions take it.

    Raises:
        SpecError: not the name of a metric.
    """
    return "$" + "".join(f'."{key}"' for key in metric_path(metric))


class SqliteSource:
    """See `service.fleet.store_draw.Source`.

    Args:
        database: the store.
        device: its number there.
    """

    def __init__(self, database: sqlite3.Connection, device: int) -> None:
        self._database, self._device = database, device

    def count(self, group: str, span: Span, most: int) -> int:
        """See `Source.count`."""
        query = f"SELECT count(*) FROM (SELECT 1 FROM telemetry {_WHERE} LIMIT ?)"  # noqa: S608 - a constant
        return int(self._database.execute(query, (self._device, group, *span, most)).fetchone()[0])

    def numbers(
        self, group: str, metrics: Sequence[str], span: Span, most: int
    ) -> Iterator[tuple[int, Sequence[object]]]:
        """See `Source.numbers`."""
        asked = ", ".join("json_extract(body, ?)" for _ in metrics)
        query = f"SELECT ts, {asked} FROM telemetry {_WHERE} ORDER BY ts DESC LIMIT ?"  # noqa: S608 - constants
        paths = map(json_path, metrics)
        for ts, *values in self._database.execute(query, (*paths, self._device, group, *span, most)):
            yield ts, values

    def texts(self, group: str, metrics: Sequence[str], span: Span, most: int) -> Iterable[tuple[int, str]]:
        """See `Source.texts`."""
        paths = [json_path(metric) for metric in (*metrics, metrics[0])]  # of two and more it makes an array
        asked = ", ".join("?" for _ in paths)
        query = f"SELECT ts, json_extract(body, {asked}) FROM telemetry {_WHERE} ORDER BY ts DESC LIMIT ?"  # noqa: S608
        return self._database.execute(query, (*paths, self._device, group, *span, most))

    def digests(self, group: str, slots: Span) -> Iterator[tuple[int, Digest]]:
        """See `Source.digests`."""
        query = f"SELECT slot, head, numbers {_SLOTS}"
        for slot, head, numbers in self._database.execute(query, (self._device, group, *slots)):
            yield slot, Digest(head, numbers)

    def heads(self, group: str, slots: Span) -> Iterable[tuple[int, str]]:
        """See `Source.heads`."""
        return self._database.execute(f"SELECT slot, head {_SLOTS}", (self._device, group, *slots))


def condense_slice(database: sqlite3.Connection, now: float) -> int:
    """See `service.fleet.store.Store.condense`; within a transaction."""
    settled = database.execute(statements.SETTLED, (now - SETTLED_S, MAX_SLOTS)).fetchall()
    done = read = 0
    for device, group, slot in settled:
        span = (device, group, slot, slot + SLOT_MS)
        rows = database.execute(f"SELECT count(*), max(id) FROM {statements.OF_SLOT}", span).fetchone()  # noqa: S608
        if FEWEST <= rows[0] <= MOST_ROWS:
            found = database.execute(f"SELECT ts, body, dated FROM {statements.OF_SLOT} ORDER BY ts", span)  # noqa: S608
            digest = condense(Row(ts, body, bool(dated)) for ts, body, dated in found)
            if digest is not None:
                database.execute(statements.DIGEST, (device, group, slot, rows[1], *digest))
            read += rows[0]
        database.execute("DELETE FROM unsettled WHERE device = ? AND grp = ? AND slot = ?", (device, group, slot))
        done += 1
        if read >= SLICE_ROWS:
            break
    return done
