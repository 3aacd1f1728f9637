"""A board's identity: the keys that open its grants, sign for it and seal what it stores.

While a rotation is open two sets of keys are live: what was granted or sealed for the previous ones still opens, and
everything new is sealed under the current ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.card import NAME, SHA256
from agent.durable import make_folder
from agent.errors import SpecError
from agent.keys_files import KEY_BYTES, check_mode, read_table, refuse_existing
from agent.keys_stored import IDENTITY_FILE, StoredIdentity, StoredKeys, find_identity, write_identity
from agent.strict_json import canonical
from policies.strict import TableError, limits

_STORAGE_KEY_ID = b"temperd-storage-key-id-1\0"  # a bare hash of a key could be that of the same bytes elsewhere


@dataclass(frozen=True, slots=True)
class PublicDocument:
    """What a publisher is given of a board: its name and public keys in hexadecimal."""

    device: str = field(metadata=limits(longest=64))
    x25519: str = field(metadata=limits(longest=64))
    ed25519: str = field(metadata=limits(longest=64))

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.device):
            raise TableError("device", f"{self.device[:64]!r} does not match {NAME.pattern}")
        for key in ("x25519", "ed25519"):
            if not SHA256.fullmatch(getattr(self, key)):
                raise TableError(key, "is not 64 hexadecimal digits")

    def to_table(self) -> dict[str, object]:
        """As JSON values."""
        return {"device": self.device, "ed25519": self.ed25519, "x25519": self.x25519}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the canonical JSON of the document, in hexadecimal: what people compare."""
        return hashlib.sha256(canonical(self.to_table())).hexdigest()


def parse_public_document(table: object) -> PublicDocument:
    """Read what `PublicDocument.to_table` gave.

    Raises:
        SpecError: names the key and what is wrong with it.
    """
    return read_table(PublicDocument, table, "device document", SpecError)


@dataclass(frozen=True, slots=True, repr=False)
class DeviceKeys:
    """One set of a board's private keys."""

    x25519: X25519PrivateKey
    ed25519: Ed25519PrivateKey
    storage: bytes

    @property
    def storage_key_id(self) -> str:
        """What names the storage key without telling it: a hash with a prefix of its own, in hexadecimal."""
        return hashlib.sha256(_STORAGE_KEY_ID + self.storage).hexdigest()


@dataclass(frozen=True, slots=True, repr=False)
class DeviceIdentity:
    """A board's private keys. Made on the board; only `public` leaves it."""

    device: str
    live: tuple[DeviceKeys, ...]
    """The current keys, and behind them the previous ones while a rotation is open."""

    def __repr__(self) -> str:
        return f"DeviceIdentity({self.device!r})"

    @property
    def public(self) -> PublicDocument:
        """The public half of the current keys."""
        return self.documents[0]

    @property
    def documents(self) -> tuple[PublicDocument, ...]:
        """The public halves of all live keys, the current first."""
        return tuple(_document(self.device, keys) for keys in self.live)

    @property
    def storage_key(self) -> bytes:
        """32 bytes; seals tuned models and checkpoints on this board."""
        return self.live[0].storage

    @property
    def storage_keys(self) -> tuple[bytes, ...]:
        """All that may have sealed what is stored on this board, the current first; 32 bytes each."""
        return tuple(keys.storage for keys in self.live)

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature of the current key, 64 bytes."""
        return self.live[0].ed25519.sign(message)


def create_identity(folder: Path, device: str) -> DeviceIdentity:
    """Make a board's keys in `folder` (made 0700 where missing), in one file of mode 0600.

    Raises:
        SpecError: the name does not match `agent.card.NAME`, or the board has an identity already.
        BoardError: others may enter the folder, or the disk fails.
    """
    stored = new_identity(device)
    make_folder(folder)
    check_mode(folder)
    refuse_existing(folder / IDENTITY_FILE, "this board has an identity")
    write_identity(folder, stored)
    return as_identity(stored)


def load_identity(folder: Path, environ: Mapping[str, str] = os.environ) -> DeviceIdentity:
    """The board's identity, from systemd's credential or from `folder`; raises like `find_identity`."""
    return as_identity(find_identity(folder, environ).stored)


def as_identity(stored: StoredIdentity) -> DeviceIdentity:
    """The keys of a stored identity, which has been checked when it was read."""
    return DeviceIdentity(stored.device, tuple(_keys(one) for one in stored.keys))


def new_identity(device: str) -> StoredIdentity:
    """Fresh keys for a board, not written anywhere yet.

    Raises:
        SpecError: the name does not match `agent.card.NAME`.
    """
    if not NAME.fullmatch(device):
        raise SpecError(f"device name {device[:64]!r} does not match {NAME.pattern}")
    return StoredIdentity(device, (_new_keys(),))


def rotated(stored: StoredIdentity) -> StoredIdentity:
    """The identity with fresh keys in front; those before stay live.

    Raises:
        SpecError: `rotation-open`: the last rotation was not finished.
    """
    if len(stored.keys) > 1:
        fix = "Finish the last rotation first: temperd keys retire"
        raise SpecError("a rotation is open", where=stored.device, fix=fix, reason="rotation-open")
    return replace(stored, keys=(_new_keys(), *stored.keys))


def without_previous(stored: StoredIdentity) -> StoredIdentity:
    """The identity with its current keys alone.

    Raises:
        SpecError: `no-rotation`: there are no previous keys.
    """
    if len(stored.keys) == 1:
        raise SpecError(
            "no rotation is open", where=stored.device, fix="Begin: temperd keys rotate", reason="no-rotation"
        )
    return replace(stored, keys=stored.keys[:1])


def _new_keys() -> StoredKeys:
    return StoredKeys(
        Ed25519PrivateKey.generate().private_bytes_raw().hex(),
        os.urandom(KEY_BYTES).hex(),
        X25519PrivateKey.generate().private_bytes_raw().hex(),
    )


def _keys(stored: StoredKeys) -> DeviceKeys:
    return DeviceKeys(
        X25519PrivateKey.from_private_bytes(bytes.fromhex(stored.x25519)),
        Ed25519PrivateKey.from_private_bytes(bytes.fromhex(stored.ed25519)),
        bytes.fromhex(stored.storage),
    )


def _document(device: str, keys: DeviceKeys) -> PublicDocument:
    x25519, ed25519 = keys.x25519.public_key(), keys.ed25519.public_key()
    return PublicDocument(device, x25519.public_bytes_raw().hex(), ed25519.public_bytes_raw().hex())
