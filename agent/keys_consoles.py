"""Consoles: the keys of people who command boards, and the folder of those that a board obeys.

The daemon reads the folder at each command, so `cryptography` is imported only where private keys are made and read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from agent.card import NAME
from agent.durable import disk_errors, make_folder, remove, write_atomic
from agent.errors import ArtifactError, SpecError
from agent.keys_files import (
    MAX_KEY_FILE_BYTES,
    WRITABLE_BY_OTHERS,
    check_mode,
    key_bytes,
    read_private,
    read_public,
    read_table,
    refuse_existing,
)
from agent.strict_json import canonical, loads
from policies.strict import limits

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_SUFFIX = ".key"
MAX_CONSOLES = 64  # people who may command one board
SHORTEST_KEY_ID = 8  # digits: two of 64 consoles share so many once in two million folders


class Role(StrEnum):
    """What the owner of a board lets a console do: which types of command, see `service.command_types`."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    OWNER = "owner"


def keyid(key: Ed25519PublicKey) -> str:
    """SHA-256 of the raw public key, in hexadecimal."""
    return _raw_keyid(key.public_bytes_raw())


def _raw_keyid(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


_RANKS = tuple(Role)


@dataclass(frozen=True, slots=True)
class TrustedConsole:
    """A console that a board obeys.

    Attributes:
        name: as its file gives it; the key id alone is proof.
        keyid: see `keyid`.
        key: its public key, raw, 32 bytes.
        path: of the file.
        role: what it may do.
    """

    name: str
    keyid: str
    key: bytes
    path: Path
    role: Role = Role.OWNER


def create_console_key(folder: Path, name: str) -> Path:
    """Make `<name>.key` (0600) and `<name>.pub.json` (0644), a console's signing key and its public file.

    Returns:
        The path of the public file, to be put into the boards' folder of trusted consoles.

    Raises:
        SpecError: the name does not match `agent.card.NAME`, or the key exists.
        BoardError: the disk fails.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - see the module

    if not NAME.fullmatch(name):
        raise SpecError(f"console name {name[:64]!r} does not match {NAME.pattern}")
    make_folder(folder)
    private, public = folder / f"{name}{KEY_SUFFIX}", folder / f"{name}.pub.json"
    refuse_existing(private, "this console key exists")
    key = Ed25519PrivateKey.generate()
    write_atomic(private, key.private_bytes_raw().hex().encode() + b"\n")
    raw = key.public_key().public_bytes_raw().hex()
    write_atomic(public, canonical({"ed25519": raw, "keyid": keyid(key.public_key()), "name": name}) + b"\n", 0o644)
    return public


def load_console_key(path: Path) -> Ed25519PrivateKey:
    """Read a console's private key.

    Raises:
        BoardError: `key-missing`, `key-permissions` or `disk`.
        SpecError: the file's name is not that of a private key.
        ArtifactError: the file is broken.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - see the module

    if path.suffix != KEY_SUFFIX:
        raise SpecError("not a console's private key file", where=str(path), fix=f"Give the file NAME{KEY_SUFFIX}")
    text = read_private(path, "`temperd keys console NAME` makes one").decode("ascii", "replace").strip()
    return Ed25519PrivateKey.from_private_bytes(key_bytes(text, path))


def trusted_consoles(folder: Path) -> tuple[TrustedConsole, ...]:
    """The consoles this board obeys: every `*.json` in `folder`, by file name. No folder: no console is obeyed.

    Raises:
        BoardError: others may write the folder or a file, or the disk fails.
        ArtifactError: a file is broken or its key id is not that of its key; more than 64 files.
    """
    with disk_errors(folder):
        if not folder.exists():
            return ()
        check_mode(folder, WRITABLE_BY_OTHERS)
        paths = sorted(folder.glob("*.json"))
    if len(paths) > MAX_CONSOLES:
        raise ArtifactError(f"{len(paths)} trusted consoles, at most {MAX_CONSOLES}", where=str(folder))
    return tuple(_read_console(path) for path in paths)


def load_trusted_consoles(folder: Path) -> dict[str, TrustedConsole]:
    """`trusted_consoles` by key id; raises like it. Of a key that lies there twice, the least of its roles counts."""
    found: dict[str, TrustedConsole] = {}
    for console in trusted_consoles(folder):
        before = found.get(console.keyid)
        if before is None or _RANKS.index(console.role) < _RANKS.index(before.role):
            found[console.keyid] = console
    return found


def console_document(data: bytes, path: Path, role: Role) -> bytes:
    """A console's public document as a board that gives it `role` keeps it.

    Args:
        data: the document as its owner made it; a role in it is replaced, for the board's owner decides.
        path: where it came from, for messages.
        role: see `Role`.

    Raises:
        ArtifactError: it is none.
    """
    console = _parse_console(data, path)
    return canonical({"ed25519": console.key.hex(), "keyid": console.keyid, "name": console.name, "role": role}) + b"\n"


def distrust_console(folder: Path, digits: str) -> tuple[TrustedConsole, ...]:
    """Obey a console no more: every file with its key leaves `folder`, durably.

    Args:
        folder: of trusted consoles.
        digits: its key id, or the first eight digits or more of it; spaces between them count for nothing.

    Returns:
        What was removed: the same key may lie there under two names.

    Raises:
        SpecError: `no-such-console`; `ambiguous-console`: the digits fit two keys; fewer than eight digits.
        BoardError, ArtifactError: see `trusted_consoles`.
    """
    wanted = digits.replace(" ", "").lower()
    if len(wanted) < SHORTEST_KEY_ID:
        raise SpecError(f"a key id is given by {SHORTEST_KEY_ID} digits or more", where=digits[:64])
    found = tuple(console for console in trusted_consoles(folder) if console.keyid.startswith(wanted))
    if not found:
        fix = "`temperd keys show` lists the consoles trusted"
        raise SpecError("no console with this key id is trusted", where=wanted[:64], fix=fix, reason="no-such-console")
    if len({console.keyid for console in found}) > 1:
        raise SpecError("these digits fit two consoles", where=wanted, fix="Give more", reason="ambiguous-console")
    for console in found:
        remove(console.path)
    return found


@dataclass(frozen=True, slots=True)
class _StoredConsole:
    name: str = field(metadata=limits(longest=64))
    ed25519: str
    keyid: str
    role: str = field(default=Role.OWNER, metadata=limits(choices=tuple(Role)))
    """Files of boards that knew no roles have none: their consoles were told that they may do everything."""


def _read_console(path: Path) -> TrustedConsole:
    return _parse_console(read_public(path), path)


def _parse_console(data: bytes, path: Path) -> TrustedConsole:
    what = f"trusted console {path.name}"
    stored = read_table(_StoredConsole, loads(data, what=what, max_bytes=MAX_KEY_FILE_BYTES), what)
    key = key_bytes(stored.ed25519, path)
    if _raw_keyid(key) != stored.keyid:
        raise ArtifactError("key id is not that of the key", where=str(path), reason="key-broken")
    return TrustedConsole(stored.name, stored.keyid, key, path, Role(stored.role))
