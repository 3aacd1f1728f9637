"""Who did what, to which boards, when and why: records that are only ever added, each with the hash of the one before.

    hash = SHA-256(hash of the record before, 32 bytes, then the record's JSON text)

Whoever changes, removes or slips in a record breaks the chain from there on. The chain holds no secret: who may write
the file can also work it out anew from there, or cut off its end. That shows to whoever noted the last number and hash
elsewhere; the log has them at each start.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import ArtifactError
from service.console.sqlite_file import SqliteFile
from service.fleet.plain import plain
from service.logs import logger

FILE_NAME = "audit.sqlite"
NOBODY = "-"
MAX_RECORDS = 1_000_000  # some 400 MB; a busy fleet's people make a hundred a day
MAX_BYTES = 4 << 30  # of the file, where records are long
TRIM_RECORDS = 1000  # go at once, the oldest
MAX_WHY = 500  # characters: a reason, not a report; two or three sentences
MAX_TEXT = 64  # of a name or an action
MAX_BOARDS = 20_000  # of one record, as many as a tenant has
MAX_DETAILS_BYTES = 128 << 10  # a policy of 45 KiB and its escapes; of what is longer the hash is kept
MAX_ROWS = 200  # of a page
MAX_OPEN = 100_000  # commands whose outcome is waited for
OPEN_S = 32 * 86400.0  # a command lives 31 days at most; then nothing is heard of it any more
GENESIS = bytes(32)
_log = logger("console")
_SCHEMA = """
CREATE TABLE records (
    id INTEGER PRIMARY KEY, ts REAL NOT NULL, who TEXT NOT NULL, action TEXT NOT NULL, body TEXT NOT NULL,
    hash BLOB NOT NULL
) STRICT;
CREATE INDEX records_by_who ON records (who, id);
CREATE INDEX records_by_action ON records (action, id);
CREATE TABLE boards (board TEXT NOT NULL, record INTEGER NOT NULL, PRIMARY KEY (board, record)) STRICT, WITHOUT ROWID;
CREATE INDEX boards_by_record ON boards (record);
CREATE TABLE open (id TEXT PRIMARY KEY, board TEXT NOT NULL, record INTEGER NOT NULL, ts REAL NOT NULL) STRICT,
    WITHOUT ROWID;
CREATE TABLE anchor (one INTEGER PRIMARY KEY CHECK (one = 1), id INTEGER NOT NULL, hash BLOB NOT NULL) STRICT;
INSERT INTO anchor VALUES (1, 0, zeroblob(32));
CREATE TRIGGER records_stay BEFORE UPDATE ON records BEGIN SELECT raise(ABORT, 'records are only added'); END;
CREATE TRIGGER records_go_from_the_oldest BEFORE DELETE ON records
    WHEN old.id > (SELECT id FROM anchor) BEGIN SELECT raise(ABORT, 'records are only added'); END
"""


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it is read back.

    Attributes:
        id: its number; they rise by one.
        ts: seconds since 1970.
        who: user, or `NOBODY`.
        action: a command type, or what else was done.
        boards: whom it concerned.
        why: what the user said.
        commands: ids that were signed for it.
        details: what else.
        hash: of the chain up to here, hex.
    """

    id: int
    ts: float
    who: str
    action: str
    boards: tuple[str, ...]
    why: str
    commands: tuple[str, ...]
    details: Mapping[str, Any]
    hash: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records a page holds; the newest first. Empty: whatever.

    Attributes:
        who: user.
        action: what was done.
        board: name of one that it concerned.
        since: seconds since 1970, from then on.
        until: up to then.
        before: number below which the page begins; 0: at the newest.
        rows: at most so many.
    """

    who: str = ""
    action: str = ""
    board: str = ""
    since: float | None = None
    until: float | None = None
    before: int = 0
    rows: int = MAX_ROWS


@dataclass(frozen=True, slots=True)
class Open:
    """A command whose outcome no record tells yet: its id, board, and the record that tells of it with its time."""

    id: str
    board: str
    record: int
    ts: float


class Audit:
    """The audit trail. Methods block for the disk; `record` is `write` on a thread.

    Args:
        folder: of the console's state.
        now: wall clock, seconds since 1970.
        most: records that are kept.

    Raises (each method):
        BoardError: the disk fails.
    """

    def __init__(self, folder: Path, now: Callable[[], float], most: int = MAX_RECORDS) -> None:
        self._file, self._now, self._most = SqliteFile(folder / FILE_NAME, _SCHEMA, 1, "the audit trail"), now, most

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    async def record(
        self,
        who: str,
        action: str,
        *,
        boards: Sequence[str] = (),
        why: str = "",
        commands: Sequence[str] = (),
        details: Mapping[str, Any] | None = None,
    ) -> int:
        """`write` on a thread: pages go on while the disk works."""
        return await asyncio.to_thread(
            self.write, who, action, boards=boards, why=why, commands=commands, details=details
        )

    def write(
        self,
        who: str,
        action: str,
        *,
        boards: Sequence[str] = (),
        why: str = "",
        commands: Sequence[str] = (),
        details: Mapping[str, Any] | None = None,
    ) -> int:
        """Add a record, durably, before what it tells of is done; its number.

        Args:
            who: name of the user; `-` where nobody was logged in.
            action: a command type, or `login`, `login-refused`, `logout`, `user-added`, `roll-out-begun`, ...
            boards: whom it concerns.
            why: what the user said.
            commands: ids of the commands that were signed for it, one for each board where there are several; a later
                record with the action `outcome` tells how each ended.
            details: what else, as JSON values: arguments, the roll-out's id, the address that asked.

        Raises:
            BoardError: it cannot be kept; then the action must not go on.
        """
        ts = round(self._now(), 3)
        body: dict[str, Any] = {
            "ts": ts,
            "who": (who or NOBODY)[:MAX_TEXT],
            "action": action[:MAX_TEXT],
            "boards": [board[:MAX_TEXT] for board in boards[:MAX_BOARDS]],
            "why": why[:MAX_WHY],
            "commands": list(commands[:MAX_BOARDS]),
            "details": _bounded(details or {}),
        }
        with self._file.writing() as database:
            number = self._append(database, body)
            concerned = body["boards"] if len(boards) == len(commands) else [*body["boards"][:1]] * len(commands)
            rows = [(*pair, number, ts) for pair in zip(body["commands"], concerned, strict=False)]
            database.executemany("INSERT OR REPLACE INTO open VALUES (?, ?, ?, ?)", rows)
            self._trim(database, number, ts)
        return number

    def outcome(self, command: Open, status: Mapping[str, Any]) -> int:
        """Record how a command ended; a second one of the same command changes nothing and is number 0."""
        with self._file.writing() as database:
            if not database.execute("DELETE FROM open WHERE id = ?", (command.id,)).rowcount:
                return 0
            told = {key: _told(status[key]) for key in ("status", "reason_code", "reason", "ts") if key in status}
            body = {
                "ts": round(self._now(), 3),
                "who": NOBODY,
                "action": "outcome",
                "boards": [command.board],
                "why": "",
                "commands": [command.id],
                "details": _bounded({"record": command.record, **told}),
            }
            return self._append(database, body)

    def open_commands(self) -> list[Open]:
        """Commands whose outcome no record tells yet, the oldest first."""
        with self._file.reading() as database:
            query = "SELECT id, board, record, ts FROM open ORDER BY ts, id LIMIT ?"
            return [Open(*row) for row in database.execute(query, (MAX_OPEN,))]

    def _append(self, database: sqlite3.Connection, body: dict[str, Any]) -> int:
        last = _head(database)
        number = last[0] + 1
        text = _text({"id": number, **body})
        row = (number, body["ts"], body["who"], body["action"], text, _link(last[1], text))
        database.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", row)
        database.executemany("INSERT OR IGNORE INTO boards VALUES (?, ?)", [(name, number) for name in body["boards"]])
        return number

    def _trim(self, database: sqlite3.Connection, number: int, ts: float) -> None:
        """Forget the oldest beyond the bounds; the chain goes on from the last that went."""
        database.execute("DELETE FROM open WHERE ts < ?", (ts - OPEN_S,))
        anchor = int(database.execute("SELECT id FROM anchor").fetchone()[0])
        pages, free, size = (
            int(database.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "freelist_count", "page_size")
        )
        if number - anchor <= self._most and (pages - free) * size <= MAX_BYTES:
            return
        last = min(number - 1, anchor + TRIM_RECORDS)
        row = database.execute("SELECT id, hash FROM records WHERE id = ?", (last,)).fetchone()
        if row is None:
            return
        _log.warning("the audit trail is full: its oldest records go", up_to=last, hash=bytes(row["hash"]).hex())
        database.execute("UPDATE anchor SET id = ?, hash = ?", tuple(row))
        database.execute("DELETE FROM records WHERE id <= ?", (last,))
        database.execute("DELETE FROM boards WHERE record <= ?", (last,))

    # --- reading -----------------------------------------------------------------------------------------------------

    def page(self, wanted: Wanted) -> list[Record]:
        """Records, the newest first, at most `MAX_ROWS`."""
        where, values = ["r.id < :before"], {"before": wanted.before or (1 << 62), "rows": min(wanted.rows, MAX_ROWS)}
        named: dict[str, object] = {**values}
        for clause, key, value in (
            ("r.who = :who", "who", wanted.who or None),
            ("r.action = :action", "action", wanted.action or None),
            ("r.ts >= :since", "since", wanted.since),
            ("r.ts < :until", "until", wanted.until),
            ("r.id IN (SELECT record FROM boards WHERE board = :board)", "board", wanted.board or None),
        ):
            if value is not None:
                where.append(clause)
                named[key] = value
        query = f"SELECT r.body, r.hash FROM records r WHERE {' AND '.join(where)} ORDER BY r.id DESC LIMIT :rows"  # noqa: S608 - our own clauses
        with self._file.reading() as database:
            rows = database.execute(query, named).fetchall()
        return [_record(row) for row in rows]

    def actions(self) -> list[str]:
        """What was ever done and is still kept, by name: for the filter of a page."""
        with self._file.reading() as database:
            return _distinct(database, "action")

    def people(self) -> list[str]:
        """Who did it."""
        with self._file.reading() as database:
            return _distinct(database, "who")

    def everything(self) -> Iterator[Record]:
        """All records, the oldest first, for an export: some at a time."""
        after = 0
        while True:
            with self._file.reading() as database:
                query = "SELECT id, body, hash FROM records WHERE id > ? ORDER BY id LIMIT 1000"
                rows = database.execute(query, (after,)).fetchall()
            if not rows:
                return
            after = rows[-1]["id"]
            yield from map(_record, rows)

    def head(self) -> tuple[int, str]:
        """Number and hash (hex) of the last record; whoever notes them elsewhere can tell that the end was cut off."""
        with self._file.reading() as database:
            number, digest = _head(database)
        return number, digest.hex()

    def verify(self, expected: tuple[int, str] | None = None) -> int:
        """Hold every record against the chain; how many there are.

        Args:
            expected: number and hash of a record as they were noted elsewhere.

        Raises:
            ArtifactError: `audit-broken`: a record was changed, removed or slipped in; it says where.
        """
        with self._file.reading() as database:
            number, digest = database.execute("SELECT id, hash FROM anchor").fetchone()
            found = expected is None or expected == (number, bytes(digest).hex())
            first = number
            for row in database.execute("SELECT * FROM records ORDER BY id"):
                number += 1
                digest = _link(digest, row["body"])
                if row["id"] != number or bytes(row["hash"]) != digest or not _agrees(row):
                    raise _broken(f"record {number} is missing or was changed")
                found = found or expected == (number, digest.hex())
        if not found and expected is not None:
            raise _broken(f"record {expected[0]} with the hash that was noted is not there")
        return int(number - first)


def _link(before: bytes, text: str) -> bytes:
    return hashlib.sha256(before + text.encode()).digest()


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def _bounded(details: Mapping[str, Any]) -> Mapping[str, Any]:
    text = _text(details)
    if len(text) <= MAX_DETAILS_BYTES:
        return details
    return {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _told(value: object) -> object:
    """What a board said, short and on one line: it may say anything."""
    return value if type(value) in (int, float) else plain(value, MAX_WHY)


def _head(database: sqlite3.Connection) -> tuple[int, bytes]:
    row = database.execute("SELECT id, hash FROM records ORDER BY id DESC LIMIT 1").fetchone()
    row = row or database.execute("SELECT id, hash FROM anchor").fetchone()
    return int(row[0]), bytes(row[1])


def _distinct(database: sqlite3.Connection, column: str) -> list[str]:
    """The index is jumped through: a million records have some dozens of actions."""
    found: list[str] = []
    query = f"SELECT min({column}) FROM records WHERE {column} > ?"  # noqa: S608 - our own names
    while len(found) < MAX_ROWS:
        value = database.execute(query, (found[-1] if found else "",)).fetchone()[0]
        if value is None:
            break
        found.append(value)
    return found


def _record(row: sqlite3.Row) -> Record:
    body = json.loads(row["body"])
    return Record(
        **{key: body[key] for key in ("id", "ts", "who", "action", "why", "details")},
        boards=tuple(body["boards"]),
        commands=tuple(body["commands"]),
        hash=bytes(row["hash"]).hex(),
    )


def _agrees(row: sqlite3.Row) -> bool:
    """Whether the columns that pages are filtered by say what the record says."""
    try:
        body = json.loads(row["body"])
        return all(body[key] == row[key] for key in ("id", "ts", "who", "action"))
    except (ValueError, KeyError, TypeError):
        return False


def _broken(what: str) -> ArtifactError:
    fix = "Keep a copy of the file and find out who may write it"
    return ArtifactError(f"the audit trail does not hold together: {what}", fix=fix, reason="audit-broken")
