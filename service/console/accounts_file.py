"""The file of users, sessions and one-time links, and what its rows mean."""

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from agent.errors import SpecError
from agent.keys_consoles import Role
from service.console.sqlite_file import SqliteFile

FILE_NAME = "console.sqlite"
USER_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")  # `-` alone stands for nobody in the audit trail
TOKEN_BYTES = 32  # 256 bits: nobody guesses one
MAX_TOKEN = 64  # characters of a token that is read back; ours have 43
_SCHEMA = """
CREATE TABLE users (
    name TEXT PRIMARY KEY, role TEXT NOT NULL, hash TEXT NOT NULL, language TEXT NOT NULL, disabled INTEGER NOT NULL,
    created REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE sessions (
    id TEXT PRIMARY KEY, user TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE, began REAL NOT NULL,
    seen REAL NOT NULL, address TEXT NOT NULL, agent TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_by_user ON sessions (user);
CREATE TABLE links (
    id TEXT PRIMARY KEY, user TEXT NOT NULL UNIQUE, until REAL NOT NULL
) STRICT, WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may log in.

    Attributes:
        name: see `USER_NAME`.
        role: what they may do.
        language: of pages; empty: what the browser asks for.
        disabled: whether they may not log in at present.
        created: seconds since 1970.
    """

    name: str
    role: Role
    language: str
    disabled: bool
    created: float


def accounts_file(folder: Path) -> SqliteFile:
    """The file below the console's folder.

    Raises:
        BoardError: see `SqliteFile`.
    """
    return SqliteFile(folder / FILE_NAME, _SCHEMA, 1, "the file of users")


def user_of(row: sqlite3.Row) -> User:
    """A user from a row of the table."""
    return User(row["name"], Role(row["role"]), row["language"], bool(row["disabled"]), row["created"])


def check_user_name(name: str) -> str:
    """The name of a user, if it is one.

    Raises:
        SpecError: it is none.
    """
    if not USER_NAME.fullmatch(name):
        what = f"{name[:80]!r} is no user name: 1 to 32 of a-z, 0-9, dot, dash and _, a letter or digit first"
        raise SpecError(what, reason="user-name")
    return name


def new_token() -> str:
    """A secret that stands for a session or a link: 43 characters that fit into a URL and a cookie."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def token_id(token: str) -> str:
    """What is kept of a token, and what of it may be shown: its SHA-256, hex. Whoever reads the file has no token."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
