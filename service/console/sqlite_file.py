"""An SQLite file of the console's own: readable by nobody else, commits that survive a power cut, errors of ours."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.durable import disk_errors, make_folder
from agent.errors import BoardError
from agent.keys_files import check_mode
from service.sqlite_seam import reason_of, transaction

BUSY_S = 5.0  # a command line that adds a user beside a running console writes for milliseconds


class SqliteFile:
    """One file, one connection that writes and one that reads: a commit that waits for the disk holds up no page.

    Args:
        path: the file; made when missing, 0600 in a folder of 0700.
        schema: statements that make the tables, with semicolons between; a trigger's body may have some, too.
        version: of the schema.
        what: this file, for messages.

    Raises:
        BoardError: others may read the folder or the file, the disk fails, or a newer temperd wrote the file.
    """

    def __init__(self, path: Path, schema: str, version: int, what: str) -> None:
        self.path, self._what = path, what
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        make_folder(path.parent)
        check_mode(path.parent)
        with disk_errors(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        check_mode(path)
        with self._using():
            self._writer = _connect(path)
        try:
            with self._using():
                self._set_up(schema, version)
                self._reader = _connect(path)
                self._reader.execute("PRAGMA query_only = ON")
        except BaseException:
            self._writer.close()
            raise

    def _set_up(self, schema: str, version: int) -> None:
        run = self._writer.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")  # a commit survives a power cut
        run("PRAGMA foreign_keys = ON")
        with transaction(self._writer):  # of two processes that make the file at once, one makes the tables
            found = int(run("PRAGMA user_version").fetchone()[0])
            if found > version:
                fix = "Install that version, or name another folder with --state"
                raise BoardError(f"{self._what} was written by a newer temperd", where=str(self.path), fix=fix)
            if found == 0:
                for statement in _statements(schema):
                    run(statement)
                run(f"PRAGMA user_version = {version}")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, alone in all processes; it is kept when the block ends and dropped when it raises.

        Raises:
            BoardError: `no-space` or `disk`; nothing of it was kept.
        """
        with self._write_lock, self._using(), transaction(self._writer):
            yield self._writer

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection that reads; what is committed is seen at once.

        Raises:
            BoardError: `disk`.
        """
        with self._read_lock, self._using():
            yield self._reader

    def close(self) -> None:
        """Let go of the file."""
        with self._read_lock, self._write_lock:
            self._reader.close()
            self._writer.close()

    @contextmanager
    def _using(self) -> Iterator[None]:
        """The one seam where SQLite's errors become BoardError."""
        try:
            yield
        except sqlite3.Error as error:
            reason = reason_of(error)
            fix = "Free space" if reason == "no-space" else "Name another folder with --state"
            what = f"{self._what} cannot be used: {error}"
            raise BoardError(what, where=str(self.path), reason=reason, fix=fix) from error


def _statements(schema: str) -> Iterator[str]:
    """One by one; `executescript` would end the transaction."""
    text = ""
    for part in schema.split(";"):
        text += f"{part};"
        if sqlite3.complete_statement(text):  # a trigger's body has semicolons of its own
            yield text
            text = ""


def _connect(path: Path) -> sqlite3.Connection:
    made = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S, check_same_thread=False)
    made.row_factory = sqlite3.Row
    return made
