"""A board's identity as it is stored, and where it is found; without cryptography: the daemon checks it at start.

    {"format": "temperd-identity-2", "device": NAME, "keys": [{"ed25519": HEX, "storage": HEX, "x25519": HEX}, ...]}

The first keys are the current ones. While a rotation is open the keys before stand behind them. Files of the first
format, one flat set of keys, are read as well.

Two places, the first that is there counts:
    $CREDENTIALS_DIRECTORY/temperd-identity    handed over by systemd (LoadCredential=, LoadCredentialEncrypted=)
    <folder>/identity.json                     a file of mode 0600 in a folder of mode 0700
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agent.card import NAME
from agent.durable import disk_errors, remove_partials, write_atomic
from agent.errors import BoardError, SpecError
from agent.keys_files import (
    MAX_KEY_FILE_BYTES,
    check_mode,
    key_bytes,
    read_credential,
    read_secret,
    read_table,
    refuse_existing,
)
from agent.strict_json import canonical, loads
from policies.strict import TableError, limits

IDENTITY_FILE = "identity.json"
CREDENTIAL = "temperd-identity"
CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"  # systemd.exec(5)
FORMAT = "temperd-identity-2"
MAX_LIVE = 2  # current and previous
Origin = Literal["file", "credential"]


@dataclass(frozen=True, slots=True, repr=False)
class StoredKeys:
    """One set of private keys, in hexadecimal."""

    ed25519: str
    storage: str
    x25519: str


@dataclass(frozen=True, slots=True, repr=False)
class StoredIdentity:
    """The whole file; the current keys come first."""

    device: str = field(metadata=limits(longest=64))
    keys: tuple[StoredKeys, ...] = field(metadata=limits(longest=MAX_LIVE))
    format: str = field(default=FORMAT, metadata=limits(choices=(FORMAT,)))

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.device):
            raise TableError("device", f"does not match {NAME.pattern}")
        if not self.keys:
            raise TableError("keys", "holds none")

    def encode(self) -> bytes:
        """The bytes of the file, or of the credential: a secret."""
        keys = [{"ed25519": one.ed25519, "storage": one.storage, "x25519": one.x25519} for one in self.keys]
        return canonical({"device": self.device, "format": self.format, "keys": keys}) + b"\n"


@dataclass(frozen=True, slots=True)
class Found:
    """An identity and where it was read.

    Attributes:
        stored: the identity.
        path: of the file or credential.
        origin: which of the two it is.
    """

    stored: StoredIdentity
    path: Path
    origin: Origin


def find_identity(folder: Path, environ: Mapping[str, str] = os.environ) -> Found:
    """The board's identity: the credential where systemd gave one, else the file in `folder`.

    Raises:
        BoardError: `key-missing`, with both places; `key-permissions` when others may read the file or enter the
            folder; `disk`.
        ArtifactError: the file or credential is broken.
    """
    credentials = environ.get(CREDENTIALS_DIRECTORY, "")
    if credentials:
        path = Path(credentials) / CREDENTIAL
        with disk_errors(path):
            given = path.exists()
        if given:
            return Found(_parse(read_credential(path), path), path, "credential")
    path = folder / IDENTITY_FILE
    looked = f"no credential {CREDENTIAL} " + (f"in {credentials}" if credentials else f"(no {CREDENTIALS_DIRECTORY})")
    try:
        data = read_secret(path)
    except BoardError as error:
        if error.code != "key-missing":
            raise
        fix = "Make one: temperd keys init. Or hand one over with LoadCredentialEncrypted=, see docs/keys.md"
        raise BoardError(
            "this board has no identity yet", where=f"{path}; {looked}", fix=fix, reason="key-missing"
        ) from error
    check_mode(folder)
    return Found(_parse(data, path), path, "file")


def write_identity(folder: Path, stored: StoredIdentity) -> None:
    """Put the identity at its place in `folder`: after any crash the old or the new one is there, and no third copy.

    Raises:
        BoardError: others may enter the folder, or the disk fails.
    """
    check_mode(folder)
    remove_partials(folder)
    write_atomic(folder / IDENTITY_FILE, stored.encode())


def write_credential(path: Path, stored: StoredIdentity) -> None:
    """Write the identity as a plain credential of mode 0600, for `systemd-creds encrypt`.

    Raises:
        SpecError: `key-exists`: the file is there; the folder is not.
        BoardError: the disk fails.
    """
    if not path.parent.is_dir():
        raise SpecError("the folder of the credential is missing", where=str(path.parent), fix="Make it first")
    refuse_existing(path, "this file exists")
    write_atomic(path, stored.encode())


def _parse(data: bytes, path: Path) -> StoredIdentity:
    what = f"identity {path}"
    table = loads(data, what=what, max_bytes=MAX_KEY_FILE_BYTES)
    if isinstance(table, Mapping) and "format" not in table:
        flat = dict(table)  # the first format had no field that names it
        table = {"device": flat.pop("device", None), "keys": [flat]}
    stored = read_table(StoredIdentity, table, what)
    for one in stored.keys:
        for text in (one.ed25519, one.storage, one.x25519):
            key_bytes(text, path)
    return stored
