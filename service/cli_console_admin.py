"""`temperd console user|audit|key`: what is done on the server itself, by whoever may read the console's folder."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import getpass
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import SpecError
from agent.keys_consoles import Role
from agent.keys_files import read_secret
from service.cli import say_json
from service.cli_console import folder_of, need_extra

if TYPE_CHECKING:
    from service.console.accounts import Accounts
    from service.console.audit import Audit

MAX_URL = 300  # characters of the console's address
_EXPECTED = re.compile(r"([0-9]{1,15}):([0-9a-f]{64})")


def user_add(options: argparse.Namespace) -> int:
    """Add a user."""
    with _open(options) as (accounts, audit):
        password = _password(options)
        asyncio.run(accounts.add(options.name, Role(options.role), password))
        _record(audit, "user-added", options.name, options.role)
    print(f"{options.name} may log in as {options.role}")
    return 0


def user_list(options: argparse.Namespace) -> int:
    """All users."""
    with _open(options) as (accounts, _):
        users = accounts.users()
        rows = [{**dataclasses.asdict(user), "sessions": len(accounts.sessions.of(user.name))} for user in users]
    if options.json:
        say_json(rows)
        return 0
    for row in rows:
        since = datetime.fromtimestamp(row["created"], UTC).date().isoformat()
        out = ", kept out" if row["disabled"] else ""
        print(f"{row['name']:<32}  {row['role']:<8}  since {since}, sessions {row['sessions']}{out}")
    if not rows:
        print("no users: start `temperd console` for a set-up link, or `temperd console user add NAME --role owner`")
    return 0


def user_remove(options: argparse.Namespace) -> int:
    """Remove a user."""
    with _open(options) as (accounts, audit):
        asyncio.run(accounts.remove(options.name))
        _record(audit, "user-remove", options.name)
    print(f"{options.name} cannot log in any more")
    return 0


def user_password(options: argparse.Namespace) -> int:
    """Another password, or a link for one."""
    with _open(options) as (accounts, audit):
        if options.link:
            from service.console.accounts import LINK_S  # noqa: PLC0415 - needs the extra
            from service.console.serve import set_up_link  # noqa: PLC0415

            if not re.fullmatch(r"https?://[^\s?#]+", options.link[:MAX_URL]):
                raise SpecError("not the address of a console, such as https://console.example", where="--link")
            link = set_up_link(accounts, options.link[:MAX_URL].rstrip("/"), options.name)
            _record(audit, "user-link", options.name)
            print(f"within {LINK_S / 60:.0f} minutes, once: {link}")
            return 0
        asyncio.run(accounts.set_password(options.name, _password(options)))
        _record(audit, "user-password", options.name)
    print(f"the password of {options.name} is set; all their sessions have ended")
    return 0


def audit(options: argparse.Namespace) -> int:
    """Print the trail, or check it."""
    with _open(options) as (_, trail):
        if options.verify:
            count = trail.verify(_expected(options.expect))
            number, digest = trail.head()
            if options.json:
                say_json({"records": count, "last": number, "hash": digest})
            else:
                print(f"{count} records hold together; the last is {number}:{digest}")
            return 0
        for record in trail.everything():
            if options.json:
                print(json.dumps(dataclasses.asdict(record), separators=(",", ":")))
                continue
            moment = datetime.fromtimestamp(record.ts, UTC).isoformat(timespec="seconds")
            boards = f" {' '.join(record.boards[:5])}" + (
                f" and {len(record.boards) - 5} more" if record.boards[5:] else ""
            )
            why = f": {_plain(record.why)}" if record.why else ""
            print(f"{record.id:>7}  {moment}  {_plain(record.who)}  {_plain(record.action)}{_plain(boards)}{why}")
    return 0


def protect(options: argparse.Namespace) -> int:
    """Protect a key by a passphrase."""
    from service.console.sealed_key import protect_key  # noqa: PLC0415 - loads cryptography

    passphrase = _secret(options.passphrase_file, "passphrase")
    made = protect_key(Path(options.file), passphrase, secrets.token_bytes)
    if options.json:
        say_json({"file": str(made)})
    else:
        print(f"{made}: start the console with it; keep {options.file} elsewhere, or remove it")
    return 0


@contextmanager
def _open(options: argparse.Namespace) -> Iterator[tuple[Accounts, Audit]]:
    need_extra()
    from service.console.accounts import Accounts  # noqa: PLC0415 - needs the extra
    from service.console.audit import Audit  # noqa: PLC0415

    folder = folder_of(options.state if "state" in options else "", os.environ)
    accounts = Accounts(folder, time.time)
    try:
        trail = Audit(folder, time.time)
        try:
            yield accounts, trail
        finally:
            trail.close()
    finally:
        accounts.close()


def _record(trail: Audit, action: str, user: str, role: str = "") -> None:
    """By whom: whoever is logged in to the machine."""
    try:
        person = getpass.getuser()
    except (KeyError, OSError):
        person = str(os.geteuid())
    trail.write("-", action, details={"user": user, "on the server": person} | ({"role": role} if role else {}))


def _password(options: argparse.Namespace) -> str:
    return _secret(options.password_file, "password")


def _secret(file: str, what: str) -> str:
    if file:
        try:
            return read_secret(Path(file)).decode().split("\n", 1)[0].rstrip("\r")
        except UnicodeDecodeError as error:
            raise SpecError(f"the {what} is not UTF-8", where=file, fix="Write the file anew as UTF-8") from error
    if not sys.stdin.isatty():
        raise SpecError(f"there is no terminal to ask for the {what}", fix=f"Give --{what}-file FILE")
    text = getpass.getpass(f"{what}: ")
    if getpass.getpass("once more: ") != text:
        raise SpecError(f"the two {what}s differ")
    return text


def _expected(text: str) -> tuple[int, str] | None:
    if not text:
        return None
    found = _EXPECTED.fullmatch(text)
    if found is None:
        raise SpecError("not NUMBER:HASH, as --verify prints it", where="--expect")
    return int(found[1]), found[2]


def _plain(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
