"""Sessions: who is logged in, from where, until when."""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from service.console.accounts_file import MAX_TOKEN, User, new_token, token_id, user_of
from service.console.sqlite_file import SqliteFile

IDLE_S = 12 * 3600.0  # a working day; who closed the laptop in the evening logs in again
WHOLE_S = 7 * 86400.0  # a stolen cookie is worth a week at most
TOUCH_S = 60.0  # between two writes of when a session was last used: each waits for the disk
MAX_SESSIONS = 20  # of one user: some browsers on some machines; the one unused for longest goes
MAX_AGENT = 200  # characters that are kept of what a browser calls itself
_CSRF = b"temperd console csrf"


@dataclass(frozen=True, slots=True)
class Session:
    """A session that holds.

    Attributes:
        id: SHA-256 of its token, hex.
        user: whose it is, as they are now.
        began: seconds since 1970.
        seen: when it was last used, to a minute.
        address: from where it was begun.
        agent: what the browser called itself.
    """

    id: str
    user: User
    began: float
    seen: float
    address: str
    agent: str


_SELECT = "SELECT s.*, u.* FROM sessions s JOIN users u ON u.name = s.user"
_HOLDS = "NOT u.disabled AND s.seen > :idle AND s.began > :whole"


class Sessions:
    """All sessions.

    Args:
        file: see `accounts_file`.
        now: wall clock, seconds since 1970.

    Raises (each method):
        BoardError: the disk fails.
    """

    def __init__(self, file: SqliteFile, now: Callable[[], float]) -> None:
        self._file, self._now = file, now

    def begin(self, user: str, address: str = "", agent: str = "") -> str:
        """A new session; its token, which goes into a cookie and is kept nowhere. Blocks for the disk."""
        token, now = new_token(), self._now()
        with self._file.writing() as database:
            database.execute("DELETE FROM sessions WHERE seen <= ? OR began <= ?", (now - IDLE_S, now - WHOLE_S))
            oldest = "SELECT id FROM sessions WHERE user = ? ORDER BY seen DESC, began DESC LIMIT -1 OFFSET ?"
            database.execute(f"DELETE FROM sessions WHERE id IN ({oldest})", (user, MAX_SESSIONS - 1))  # noqa: S608 - ours
            row = (token_id(token), user, now, now, address[:64], agent[:MAX_AGENT])
            database.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?)", row)
        return token

    def find(self, token: str) -> Session | None:
        """The session of a cookie's token, if it holds: a read of some 50 microseconds."""
        if not 0 < len(token) <= MAX_TOKEN:
            return None
        return self.by_id(token_id(token))

    def by_id(self, session: str) -> Session | None:
        """A session by its id, if it holds: for streams that outlive the request that began them."""
        with self._file.reading() as database:
            query = f"{_SELECT} WHERE s.id = :id AND {_HOLDS}"
            row = database.execute(query, {"id": session, **self._limits()}).fetchone()
        return _session(row) if row else None

    def of(self, user: str) -> list[Session]:
        """Those of a user that hold, the latest used first."""
        with self._file.reading() as database:
            query = f"{_SELECT} WHERE s.user = :user AND {_HOLDS} ORDER BY s.seen DESC, s.began DESC"
            return [_session(row) for row in database.execute(query, {"user": user, **self._limits()})]

    def is_due(self, session: Session) -> bool:
        """Whether `touch` is to be called: the session was not noted as used for a minute."""
        return self._now() - session.seen >= TOUCH_S

    def touch(self, session: Session) -> None:
        """Note that a session is in use. Blocks for the disk."""
        with self._file.writing() as database:
            database.execute("UPDATE sessions SET seen = max(seen, ?) WHERE id = ?", (self._now(), session.id))

    def end(self, session: str, user: str) -> bool:
        """End a session of a user by its id; whether there was one. Blocks for the disk."""
        with self._file.writing() as database:
            done = database.execute("DELETE FROM sessions WHERE id = ? AND user = ?", (session, user))
            return done.rowcount > 0

    def end_all(self, user: str) -> int:
        """End all sessions of a user; how many. Blocks for the disk."""
        with self._file.writing() as database:
            return database.execute("DELETE FROM sessions WHERE user = ?", (user,)).rowcount

    def _limits(self) -> dict[str, float]:
        now = self._now()
        return {"idle": now - IDLE_S, "whole": now - WHOLE_S}


def csrf_of(token: str) -> str:
    """The CSRF token that belongs to a cookie's token: a page that shows it tells nothing of the cookie."""
    return hmac.new(token.encode("utf-8", "replace"), _CSRF, hashlib.sha256).hexdigest()


def _session(row: sqlite3.Row) -> Session:
    return Session(row["id"], user_of(row), row["began"], row["seen"], row["address"], row["agent"])
