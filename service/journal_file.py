"""The journal's SQLite file: schema, opening, quarantine, and the seam where its errors become ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.errors import BoardError

SCHEMA_VERSION = 2
MIN_READER = "min-reader"
"""A counter: the earliest schema whose programs can go on with the file. A migration that only adds tables, or columns
with a default, leaves it where it was or sets it to the schema before: after a rollback the release before opens the
same file, and the ledger in it must not be lost. Files without it, as all up to schema 2, are for their own schema."""
BUSY_S = 2.0  # a reader may hold the file for a moment
_LEAST_FREE_BYTES = 1 << 20  # below this, "unable to open" means that SQLite found no room for its log

_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, digest TEXT NOT NULL, type TEXT NOT NULL, spec TEXT NOT NULL,
    state TEXT NOT NULL, attempt INTEGER NOT NULL, version INTEGER NOT NULL,
    plan TEXT, reason_code TEXT NOT NULL, reason TEXT NOT NULL, result TEXT, energy_j REAL,
    created REAL NOT NULL, updated REAL NOT NULL, status_published INTEGER NOT NULL,
    until TEXT, worked_s REAL NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE ledger (id TEXT PRIMARY KEY, digest TEXT NOT NULL, outcome TEXT NOT NULL) STRICT;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE marks (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""
_MIGRATIONS = {
    1: "ALTER TABLE jobs ADD COLUMN until TEXT; ALTER TABLE jobs ADD COLUMN worked_s REAL NOT NULL DEFAULT 0;",
}
"""What leads from each earlier version to the next one."""


def connect(path: Path) -> sqlite3.Connection:
    """Open or make the database; raises sqlite3.DatabaseError or BoardError when it cannot be used."""
    database = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S)
    try:
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")  # a commit survives power loss, not only a crash
        verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        _migrate(database, path, str(verdict))
    except BaseException:
        database.close()
        raise
    return database


def _migrate(database: sqlite3.Connection, path: Path, verdict: str) -> None:
    if verdict != "ok":
        raise _CorruptError(verdict)
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION >= _min_reader(database, version):
        return  # a later release was here: its columns and tables stay as they are
    if version > SCHEMA_VERSION:
        fix = "Install that version, or move the file away"
        raise BoardError("the journal was written by a newer temperd", where=str(path), fix=fix)
    if version == 0:
        database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    elif version < SCHEMA_VERSION:
        steps = " ".join(_MIGRATIONS[step] for step in range(version, SCHEMA_VERSION))
        database.executescript(f"BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _min_reader(database: sqlite3.Connection, version: int) -> int:
    """The earliest schema whose programs may open a file of a later one; its own where it does not say."""
    row = database.execute("SELECT value FROM counters WHERE name = ?", (MIN_READER,)).fetchone()
    return version if row is None else int(row[0])


class _CorruptError(sqlite3.DatabaseError):
    """The file opened, but its pages do not fit together."""


def is_corrupt(error: sqlite3.DatabaseError) -> bool:
    """Whether the file itself is broken, not the disk or the lock."""
    name = getattr(error, "sqlite_errorname", "")
    return isinstance(error, _CorruptError) or name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def quarantine(path: Path) -> Path:
    """Rename the file and its log aside; earlier ones are kept."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """The one seam where SQLite's and the system's errors become BoardError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "")
        reason = "no-space" if name == "SQLITE_FULL" or (_is_write(name) and _is_full(path)) else "disk"
        raise BoardError(f"the journal cannot be used: {error}", where=str(path), reason=reason) from error
    except OSError as error:
        reason = "no-space" if _is_full(path) else "disk"
        raise BoardError(f"the journal cannot be used: {error.strerror}", where=str(path), reason=reason) from error


def _is_write(name: str) -> bool:
    return name.startswith(("SQLITE_CANTOPEN", "SQLITE_IOERR"))


def _is_full(path: Path) -> bool:
    import shutil  # noqa: PLC0415 - loads two compressors, and a disk is seldom full

    try:
        return shutil.disk_usage(path.parent).free < _LEAST_FREE_BYTES
    except OSError:
        return False
