"""A console key that a passphrase protects: `NAME.key.sealed` beside `NAME.key`.

JSON: the public key and its id in plain, so that a locked console knows whose key it has; the private key by
AES-256-GCM under scrypt's key of the passphrase, as in a back-up (`service.backup_keys`), bound to the public one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.durable import write_atomic
from agent.errors import ArtifactError, SpecError
from agent.keys_consoles import KEY_SUFFIX, keyid, load_console_key
from agent.keys_files import (
    MAX_KEY_FILE_BYTES,
    key_bytes,
    read_credential,
    read_secret,
    read_table,
    refuse_existing,
)
from agent.keys_stored import CREDENTIALS_DIRECTORY
from agent.strict_json import canonical, loads
from policies.strict import limits
from service.backup_format import SealedKeys
from service.backup_keys import check_passphrase, open_keys, seal_keys

FORMAT = "temperd-console-key-1"
SEALED_SUFFIX = ".sealed"


@dataclass(frozen=True, slots=True)
class SealedKey:
    """The file as it lies. Hexadecimal."""

    ed25519: str = field(metadata=limits(longest=64))
    """The public key."""
    keyid: str = field(metadata=limits(longest=64))
    salt: str = field(metadata=limits(longest=64))
    nonce: str = field(metadata=limits(longest=64))
    sealed: str = field(metadata=limits(longest=256))
    format: str = field(default=FORMAT, metadata=limits(choices=(FORMAT,)))


def protect_key(path: Path, passphrase: str, random: Callable[[int], bytes]) -> Path:
    """Write a key once more, protected; the plain file stays for its owner to remove.

    Args:
        path: `NAME.key`.
        passphrase: 12 characters or more.
        random: gives so many random bytes.

    Returns:
        The new file, `NAME.key.sealed`, 0600.

    Raises:
        SpecError: the passphrase is too short, the file exists, or `path` is no key.
        BoardError, ArtifactError: see `load_console_key`.
    """
    key = load_console_key(path)
    target = path.with_name(path.name + SEALED_SUFFIX)
    refuse_existing(target, "this key is protected already")
    raw, digits = key.public_key().public_bytes_raw().hex(), keyid(key.public_key())
    sealed = seal_keys(key.private_bytes_raw(), passphrase, _bound(raw, digits), random)
    table = SealedKey(raw, digits, sealed.salt, sealed.nonce, sealed.sealed)
    write_atomic(target, canonical(dataclasses.asdict(table)) + b"\n")
    return target


def read_key(path: Path, environ: Mapping[str, str]) -> Ed25519PrivateKey | SealedKey:
    """A console key: open, or protected and still locked.

    Args:
        path: `NAME.key`, `NAME.key.sealed`, or either as a credential of systemd, under any name.
        environ: CREDENTIALS_DIRECTORY is read.

    Raises:
        BoardError: the file is missing, others may read it, or the disk fails.
        ArtifactError: it is broken.
        SpecError: its name is not that of a key.
    """
    credentials = environ.get(CREDENTIALS_DIRECTORY, "")
    if credentials and path.parent == Path(credentials):
        data = read_credential(path)
        if data.lstrip()[:1] == b"{":
            return _parse(data, path)
        return Ed25519PrivateKey.from_private_bytes(key_bytes(data.decode("ascii", "replace").strip(), path))
    if path.name.endswith(KEY_SUFFIX + SEALED_SUFFIX):
        return _parse(read_secret(path, f"`temperd console key protect NAME{KEY_SUFFIX}` makes it"), path)
    return load_console_key(path)


def _parse(data: bytes, path: Path) -> SealedKey:
    what = f"protected key {path.name}"
    found = read_table(SealedKey, loads(data, what=what, max_bytes=MAX_KEY_FILE_BYTES), what)
    if hashlib.sha256(key_bytes(found.ed25519, path)).hexdigest() != found.keyid:
        raise ArtifactError("key id is not that of the key", where=str(path), reason="key-broken")
    return found


def open_sealed_key(found: SealedKey, passphrase: str) -> Ed25519PrivateKey:
    """The key; half a second and 128 MiB.

    Raises:
        ArtifactError: `passphrase-wrong`, or the file was changed.
    """
    sealed = SealedKeys(found.salt, found.nonce, found.sealed)
    try:
        check_passphrase(passphrase)  # what never protected a key costs nothing
        raw = open_keys(sealed, passphrase, _bound(found.ed25519, found.keyid))
        key = Ed25519PrivateKey.from_private_bytes(raw)
    except (ArtifactError, SpecError, ValueError) as error:
        what = "the key does not open: another passphrase, or its file was changed"
        raise ArtifactError(what, reason="passphrase-wrong") from error
    if key.public_key().public_bytes_raw().hex() != found.ed25519:
        raise ArtifactError("the sealed key is another one than its file says", reason="key-broken")
    return key


def _bound(public: str, digits: str) -> bytes:
    return canonical({"ed25519": public, "format": FORMAT, "keyid": digits})
