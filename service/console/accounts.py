"""Users, their passwords and sessions."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

from agent.errors import SpecError
from agent.keys_consoles import Role
from service.console.accounts_file import (
    MAX_TOKEN,
    User,
    accounts_file,
    check_user_name,
    new_token,
    token_id,
    user_of,
)
from service.console.passwords import Cost, Hashing, check_password
from service.console.sessions import Sessions
from service.console.texts import LANGUAGES

MAX_USERS = 200  # people who look after one fleet
LINK_S = 3600.0  # how long a one-time link is good: long enough to walk to another machine
_OWNERS = "SELECT count(*) FROM users WHERE role = 'owner' AND NOT disabled"


class Accounts:
    """All users. Other processes (the command line) may change them at any time: what counts is asked at each use.

    Args:
        folder: of the console's state; made when missing, 0700.
        now: wall clock, seconds since 1970.
        cost: of password hashes.

    Attributes:
        sessions: who is logged in.

    Raises:
        BoardError: others may read the folder, or the disk fails; so does each method.
    """

    def __init__(self, folder: Path, now: Callable[[], float], cost: Cost = Cost()) -> None:  # noqa: B008 - frozen
        self._file, self._now = accounts_file(folder), now
        self._hashing = Hashing(cost)
        self.sessions = Sessions(self._file, now)

    def close(self) -> None:
        """Let go of the file."""
        self._hashing.close()
        self._file.close()

    # --- asking ------------------------------------------------------------------------------------------------------

    def users(self) -> list[User]:
        """All, by name."""
        with self._file.reading() as database:
            return [user_of(row) for row in database.execute("SELECT * FROM users ORDER BY name")]

    def user(self, name: str) -> User | None:
        """One of them."""
        with self._file.reading() as database:
            row = database.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone()
        return user_of(row) if row else None

    def has_owner(self) -> bool:
        """Whether somebody may log in as an owner; if not, the next start prints a set-up link."""
        with self._file.reading() as database:
            return _count(database, _OWNERS) > 0

    async def log_in(self, name: str, password: str) -> User | None:
        """The user, if the password is theirs and they may log in. Whoever is unknown costs the same time.

        Raises:
            BoardError: `busy`: too many log in at once.
        """
        with self._file.reading() as database:
            row = database.execute("SELECT * FROM users WHERE name = ?", (name[:MAX_TOKEN],)).fetchone()
        kept = row["hash"] if row else None
        right = await self._hashing.is_right(kept, password)
        if not right or row is None or kept is None or row["disabled"]:
            return None
        if self._hashing.is_outdated(kept):
            fresh = await self._hashing.hash(password)
            await self._write("UPDATE users SET hash = ? WHERE name = ? AND hash = ?", fresh, name, kept)
        return user_of(row)

    # --- changing ----------------------------------------------------------------------------------------------------

    async def add(self, name: str, role: Role, password: str, language: str = "") -> None:
        """A new user.

        Raises:
            SpecError: the name is none or taken, the password is refused, or there are too many.
        """
        check_user_name(name)
        check_password(password, name)
        row = (name, role, await self._hashing.hash(password), _language(language), 0, self._now())
        await asyncio.to_thread(self._add, row)

    def _add(self, row: tuple[object, ...], link: str = "") -> None:
        with self._file.writing() as database:
            if link:
                self._take_link(database, link, "")
                if _count(database, _OWNERS):
                    raise _refused_link()
            if _count(database, "SELECT count(*) FROM users") >= MAX_USERS:
                raise SpecError(f"there are {MAX_USERS} users already", fix="Remove one", reason="users-full")
            try:
                database.execute("INSERT INTO users VALUES (?, ?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError as error:
                raise SpecError(f"there is a user {row[0]!r} already", reason="user-exists") from error

    async def set_password(self, name: str, password: str) -> None:
        """Another password; all sessions of the user end.

        Raises:
            SpecError: no such user, or the password is refused.
        """
        check_password(password, name)
        fresh = await self._hashing.hash(password)
        await asyncio.to_thread(self._change, name, "hash", fresh)

    async def set_role(self, name: str, role: Role) -> None:
        """Another role; all sessions of the user end, so that no page shows what it may not.

        Raises:
            SpecError: no such user, or the last owner.
        """
        await asyncio.to_thread(self._change, name, "role", role)

    async def set_disabled(self, name: str, *, disabled: bool) -> None:
        """Keep a user out, or let one in again; all sessions end.

        Raises:
            SpecError: no such user, or the last owner.
        """
        await asyncio.to_thread(self._change, name, "disabled", int(disabled))

    async def set_language(self, name: str, language: str) -> None:
        """The language of a user's pages; empty: what the browser asks for."""
        await self._write("UPDATE users SET language = ? WHERE name = ?", _language(language), name)

    async def remove(self, name: str) -> None:
        """Forget a user, with all sessions.

        Raises:
            SpecError: no such user, or the last owner.
        """
        await asyncio.to_thread(self._change, name, "", None)

    def _change(self, name: str, column: str, value: object, link: str = "") -> None:
        with self._file.writing() as database:
            if link:
                self._take_link(database, link, name)
            owners = _count(database, _OWNERS)
            values: tuple[object, ...]
            if column:
                query, values = f"UPDATE users SET {column} = ? WHERE name = ?", (value, name)  # noqa: S608 - our own names
            else:
                query, values = "DELETE FROM users WHERE name = ?", (name,)
            if not database.execute(query, values).rowcount:
                raise SpecError(f"no user is called {name[:80]!r}", reason="no-such-user")
            if owners and not _count(database, _OWNERS):
                fix = "Make somebody else an owner first"
                raise SpecError("this is the last owner", where=name, fix=fix, reason="last-owner")
            database.execute("DELETE FROM sessions WHERE user = ?", (name,))
            database.execute("DELETE FROM links WHERE user = ?", (name,))

    async def _write(self, query: str, *values: object) -> None:
        def work() -> None:
            with self._file.writing() as database:
                database.execute(query, values)

        await asyncio.to_thread(work)

    # --- one-time links ----------------------------------------------------------------------------------------------

    def make_link(self, user: str = "") -> str:
        """The token of a one-time link, good for an hour; one made before is void.

        Args:
            user: who may set a password by it; empty: who holds it becomes the first owner.

        Raises:
            SpecError: no such user; or there is an owner already.
        """
        token = new_token()
        with self._file.writing() as database:
            if user and not _count(database, "SELECT count(*) FROM users WHERE name = ?", user):
                raise SpecError(f"no user is called {user[:80]!r}", reason="no-such-user")
            if not user and _count(database, _OWNERS):
                raise SpecError("there is an owner already", fix="temperd console user list", reason="owner-exists")
            row = (token_id(token), user, self._now() + LINK_S)
            database.execute("INSERT OR REPLACE INTO links VALUES (?, ?, ?)", row)
        return token

    def link_user(self, token: str) -> str:
        """Whose link a token is; empty: the first owner's.

        Raises:
            SpecError: `link-refused`: it was used, is too old or never was.
        """
        with self._file.reading() as database:
            query = "SELECT user FROM links WHERE id = ? AND until > ?"
            row = database.execute(query, (token_id(token[:MAX_TOKEN]), self._now())).fetchone()
        if row is None or (not row["user"] and self.has_owner()):
            raise _refused_link()
        return str(row["user"])

    async def use_link(self, token: str, name: str, password: str, language: str = "") -> None:
        """Make the first owner, or set the password of the link's user. The link is void after it.

        Raises:
            SpecError: `link-refused`; or the name or the password is refused, and the link stays good.
        """
        user = self.link_user(token)
        if user:
            check_password(password, user)
            fresh = await self._hashing.hash(password)
            await asyncio.to_thread(self._change, user, "hash", fresh, token)
            return
        check_user_name(name)
        check_password(password, name)
        row = (name, Role.OWNER, await self._hashing.hash(password), _language(language), 0, self._now())
        await asyncio.to_thread(self._add, row, token)

    def _take_link(self, database: sqlite3.Connection, token: str, user: str) -> None:
        query = "DELETE FROM links WHERE id = ? AND user = ? AND until > ?"
        if not database.execute(query, (token_id(token[:MAX_TOKEN]), user, self._now())).rowcount:
            raise _refused_link()


def _count(database: sqlite3.Connection, query: str, *values: object) -> int:
    return int(database.execute(query, values).fetchone()[0])


def _language(language: str) -> str:
    if language and language not in LANGUAGES:
        raise SpecError(f"{language[:20]!r} is no language of the console", reason="language")
    return language


def _refused_link() -> SpecError:
    fix = "Start the console anew for another, or `temperd console user password NAME --link`"
    return SpecError("this link was used, is too old or never was", fix=fix, reason="link-refused")
