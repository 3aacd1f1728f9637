"""Key files as they lie on the disk: who may read and write them is checked before a byte is used.

Private keys never leave the file they were made in; no repr, message or log line shows one. A key file that others may
read is refused: a leaked key must not stay in use unnoticed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from agent.card import SHA256
from agent.durable import disk_errors
from agent.errors import ArtifactError, BoardError, SpecError, TemperdError
from policies.strict import TableError, build

KEY_BYTES = 32  # X25519, Ed25519 and AES-256 alike
MAX_KEY_FILE_BYTES = 4096  # a few keys in hexadecimal
READABLE_BY_OTHERS = 0o077
WRITABLE_BY_OTHERS = 0o022
OPEN_TO_ALL = 0o027  # to read; a group may read and not write
_READABLE_BY_GROUP = 0o050
T = TypeVar("T")


def read_secret(path: Path, fix: str = "Check the folder given") -> bytes:
    """A secret file of this user (or root) that nobody else may read; a symbolic link is refused.

    Args:
        path: of the file.
        fix: what to do where it is missing.

    Raises:
        BoardError: `key-missing`, `key-permissions` or `disk`.
        ArtifactError: longer than 4096 bytes.
    """
    data, found = _read_open(path, fix)
    _check_found(path, found, READABLE_BY_OTHERS)
    return data


def read_public(path: Path) -> bytes:
    """A file of this user (or root) that nobody else may write; a symbolic link is refused.

    Raises:
        BoardError: `key-missing`, `key-permissions` or `disk`.
        ArtifactError: longer than 4096 bytes.
    """
    data, found = _read_open(path, "")
    _check_found(path, found, WRITABLE_BY_OTHERS)
    return data


def read_credential(path: Path) -> bytes:
    """A secret that the service manager handed over, below its credentials folder.

    systemd gives it to root and names the service's user in an access list; the mask of that list then shows as the
    group's bits. So the group may read where it is root's own, and nobody else may.

    Raises:
        BoardError: `key-missing`, `key-permissions` or `disk`.
        ArtifactError: longer than 4096 bytes.
    """
    data, found = _read_open(path, "")
    _check_found(path, found, OPEN_TO_ALL)
    if found.st_mode & _READABLE_BY_GROUP and found.st_gid != 0:
        _check_found(path, found, READABLE_BY_OTHERS)
    return data


def check_mode(path: Path, forbidden: int = READABLE_BY_OTHERS) -> None:
    """Refuse a folder or file whose mode has one of the `forbidden` bits, or that is neither this user's nor root's.

    Raises:
        BoardError: `key-permissions` or `disk`.
    """
    with disk_errors(path):
        _check_found(path, path.stat(), forbidden)


def read_private(path: Path, fix: str = "Check the folder given", environ: Mapping[str, str] = os.environ) -> bytes:
    """A private key: a credential where it lies in the folder that systemd named, else a file as for `read_secret`.

    Raises:
        BoardError, ArtifactError: as `read_credential` and `read_secret`.
    """
    handed = environ.get("CREDENTIALS_DIRECTORY", "")  # systemd.exec(5)
    return read_credential(path) if handed and path.parent == Path(handed) else read_secret(path, fix)


def refuse_existing(path: Path, what: str) -> None:
    """Keys are never overwritten.

    Raises:
        SpecError: `key-exists`.
        BoardError: `disk`.
    """
    with disk_errors(path):
        exists = path.exists()
    if exists:
        raise SpecError(what, where=str(path), fix="Remove it by hand to make a new one", reason="key-exists")


def key_bytes(text: str, path: Path) -> bytes:
    """A key from its 64 hexadecimal digits.

    Raises:
        ArtifactError: `key-broken`; the message does not quote the text.
    """
    if not SHA256.fullmatch(text):
        raise ArtifactError("a key is not 64 hexadecimal digits", where=str(path), reason="key-broken")
    return bytes.fromhex(text)


def read_table(cls: type[T], table: object, what: str, error: type[TemperdError] = ArtifactError) -> T:
    """A dataclass from JSON values.

    Raises:
        error: names the key and what is wrong with it.
    """
    if not isinstance(table, Mapping):
        raise error(f"{what} is not a table")
    try:
        return build(cls, table)
    except TableError as cause:
        raise error(f"{what}: {cause.what}", where=cause.key) from cause


def spoken(digits: str) -> str:
    """Hexadecimal digits in groups of four, for people who compare them by voice."""
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))


def _read_open(path: Path, fix: str) -> tuple[bytes, os.stat_result]:
    with disk_errors(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise BoardError("key file is missing", where=str(path), fix=fix, reason="key-missing") from error
        with os.fdopen(descriptor, "rb") as stream:
            found = os.fstat(descriptor)
            data = stream.read(MAX_KEY_FILE_BYTES + 1)
    if len(data) > MAX_KEY_FILE_BYTES:
        raise ArtifactError(f"key file is longer than {MAX_KEY_FILE_BYTES} bytes", where=str(path), reason="key-broken")
    return data, found


def _check_found(path: Path, found: os.stat_result, forbidden: int) -> None:
    if found.st_uid not in {0, os.geteuid()}:
        raise BoardError(
            "key file or folder belongs to another user", where=str(path), fix="chown it", reason="key-permissions"
        )
    if found.st_mode & forbidden:
        deed = "write" if forbidden == WRITABLE_BY_OTHERS else "read"
        wanted = stat.S_IMODE(found.st_mode) & ~forbidden
        raise BoardError(
            f"others may {deed} a key file or folder",
            where=str(path),
            fix=f"chmod {wanted:04o} {path}",
            reason="key-permissions",
        )
