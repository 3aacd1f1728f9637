"""A back-up of a board's state, also beside the running daemon: nothing is locked, and nothing is changed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from agent import __version__
from agent.durable import PARTIAL, disk_errors
from agent.errors import BoardError
from agent.keys_stored import find_identity
from service.backup_format import Manifest, SealedKeys, is_allowed, write_contents, write_file
from service.journal_file import BUSY_S, SCHEMA_VERSION, storing

JOURNAL = "journal.sqlite"
STATUS = Path("store", "slots", "status.json")
TRIES = 20  # a promotion changes the slots in some seconds, and a board promotes a few times a day
_MACHINE_ID = Path("/etc/machine-id")
SealKeys = Callable[[bytes, bytes], SealedKeys]
"""Encrypts the identity (first) bound to the manifest (second)."""


@dataclass(frozen=True, slots=True)
class Made:
    """What a back-up holds."""

    manifest: Manifest
    bytes: int


def make_backup(state: Path, out: BinaryIO, device: str, now: float, seal_keys: SealKeys | None = None) -> Made:
    """Write a back-up.

    Args:
        state: the state folder.
        out: a new file.
        device: name of the board.
        now: seconds since 1970.
        seal_keys: for the private keys; `None`: they are left out.

    Raises:
        BoardError: there is no state or no identity; the disk fails.
        ArtifactError: the identity is broken.
    """
    if not (state / JOURNAL).exists():
        raise BoardError("there is nothing to back up: no journal", where=str(state), fix="temperd run makes one")
    identity = find_identity(state / "keys").stored.encode() if seal_keys else b""
    digests: dict[str, str] = {}
    with disk_errors(state), _copied_journal(state / JOURNAL) as journal, _opened(state) as files:
        for name, source in ((JOURNAL, journal), *files):
            digests[name] = write_file(out, name, source, os.fstat(source.fileno()).st_size)
        manifest = Manifest(device, now, __version__, SCHEMA_VERSION, machine_mark(), digests)
        if seal_keys:
            manifest = replace(manifest, keys=seal_keys(identity, manifest.bound()))
        write_contents(out, manifest)
        return Made(manifest, out.tell())


def machine_mark(path: Path = _MACHINE_ID) -> str:
    """Tells two machines apart without naming either (machine-id(5) asks for that); empty where there is no id."""
    try:
        identifier = path.read_bytes()
    except OSError:
        return ""
    return hashlib.sha256(b"temperd back-up " + identifier.strip()).hexdigest() if identifier.strip() else ""


@contextlib.contextmanager
def _copied_journal(path: Path) -> Iterator[BinaryIO]:
    """The journal as one commit left it, whatever the daemon writes meanwhile."""
    with tempfile.TemporaryDirectory(prefix="temperd-backup-") as scratch:
        copy = Path(scratch, JOURNAL)
        with (
            storing(path),
            contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)) as old,
            contextlib.closing(sqlite3.connect(copy)) as new,
        ):
            old.backup(new)
            new.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        with copy.open("rb") as stream:
            yield stream


@contextlib.contextmanager
def _opened(state: Path) -> Iterator[list[tuple[str, BinaryIO]]]:
    """All other files, opened at a moment in which the slots did not change; each is replaced whole, never written."""
    with contextlib.ExitStack() as stack:
        for _ in range(TRIES):
            before, attempt = _status(state), contextlib.ExitStack()
            files: list[tuple[str, BinaryIO]] = []
            try:
                files += [(name, attempt.enter_context((state / name).open("rb"))) for name in _names(state)]
            except FileNotFoundError:  # it was just replaced by others
                attempt.close()
                continue
            if _status(state) == before:
                stack.push(attempt)
                yield files
                return
            attempt.close()
        raise BoardError("the slots change all the time", where=str(state), fix="Try again after the promotion")


def _status(state: Path) -> bytes:
    try:
        return (state / STATUS).read_bytes()
    except FileNotFoundError:
        return b""


def _names(state: Path) -> list[str]:
    found = [state / name for name in ("board.json", "policy-command.toml")]
    for folder in (state / "store" / "slots", state / "store" / "frozen"):
        found += sorted(folder.rglob("*"))
    names = [path.relative_to(state).as_posix() for path in found if path.is_file() and not path.is_symlink()]
    return [name for name in names if is_allowed(name) and not name.endswith(PARTIAL)]
