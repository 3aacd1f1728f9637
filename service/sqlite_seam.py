"""What every SQLite file of the service has in common: transactions that take the lock at once, and why one failed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Alone among all writers; kept when the block ends, dropped when it raises or cannot be kept.

    Args:
        database: opened with `isolation_level=None`.

    Raises:
        sqlite3.Error: nothing of it was kept.
    """
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # SQLite ends some by itself, as on a full disk
            database.execute("ROLLBACK")
        raise


def reason_of(error: sqlite3.Error) -> str:
    """`no-space` where the disk is full, else `disk`."""
    return "no-space" if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL" else "disk"
