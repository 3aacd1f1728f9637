"""Keys: the board's identity, the consoles it obeys, and grants that carry a model's data key to one board.

Private keys never leave the file they were made in; no repr, message or log line shows one. A key file that others
may read is refused: a leaked key must not stay in use unnoticed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from agent.card import NAME, SHA256
from agent.durable import disk_errors, make_folder, write_atomic
from agent.errors import ArtifactError, BoardError, GrantError, SpecError, TemperdError
from agent.strict_json import canonical, loads
from policies.strict import TableError, build, limits

KEY_BYTES = 32  # X25519, Ed25519 and AES-256 alike
KEY_SUFFIX = ".key"
MAX_KEY_FILE_BYTES = 4096  # a few keys in hexadecimal
MAX_GRANT_BYTES = 4096  # a wrapped key in hexadecimal, two names and a hash
MAX_CONSOLES = 64  # people who may command one board
T = TypeVar("T")
IDENTITY_FILE = "identity.json"
_READABLE_BY_OTHERS = 0o077
_WRITABLE_BY_OTHERS = 0o022
_SUITE_NAME = "hpke-x25519-hkdf-sha256-aes-256-gcm"
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


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
    return _build(PublicDocument, table, "device document", SpecError)


@dataclass(frozen=True, slots=True, repr=False)
class DeviceIdentity:
    """A board's private keys. Made on the board; only `public` leaves it."""

    device: str
    _x25519: X25519PrivateKey
    _ed25519: Ed25519PrivateKey
    storage_key: bytes
    """32 bytes; seals tuned models and checkpoints on this board."""

    def __repr__(self) -> str:
        return f"DeviceIdentity({self.device!r})"

    @property
    def public(self) -> PublicDocument:
        """The public half."""
        x25519, ed25519 = self._x25519.public_key(), self._ed25519.public_key()
        return PublicDocument(self.device, x25519.public_bytes_raw().hex(), ed25519.public_bytes_raw().hex())

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature, 64 bytes."""
        return self._ed25519.sign(message)


def create_identity(folder: Path, device: str) -> DeviceIdentity:
    """Make a board's keys in `folder` (made 0700 where missing), in one file of mode 0600.

    Raises:
        SpecError: the name does not match `agent.card.NAME`, or the board has an identity already.
        BoardError: others may enter the folder, or the disk fails.
    """
    if not NAME.fullmatch(device):
        raise SpecError(f"device name {device[:64]!r} does not match {NAME.pattern}")
    make_folder(folder)
    _check_folder(folder)
    path = folder / IDENTITY_FILE
    _refuse_existing(path, "this board has an identity")
    stored = {
        "device": device,
        "ed25519": Ed25519PrivateKey.generate().private_bytes_raw().hex(),
        "storage": os.urandom(KEY_BYTES).hex(),
        "x25519": X25519PrivateKey.generate().private_bytes_raw().hex(),
    }
    write_atomic(path, canonical(stored) + b"\n")
    return load_identity(folder)


def load_identity(folder: Path) -> DeviceIdentity:
    """Read what `create_identity` made.

    Raises:
        BoardError: `key-missing`; `key-permissions` when others may read the file or enter the folder; `disk`.
        ArtifactError: the file is broken.
    """
    path = folder / IDENTITY_FILE
    data = read_secret(path, "Make it with: temperd keys init")
    _check_folder(folder)
    stored = _build(_StoredIdentity, loads(data, what="identity", max_bytes=MAX_KEY_FILE_BYTES), "identity")
    return DeviceIdentity(
        stored.device,
        X25519PrivateKey.from_private_bytes(_key_bytes(stored.x25519, path)),
        Ed25519PrivateKey.from_private_bytes(_key_bytes(stored.ed25519, path)),
        _key_bytes(stored.storage, path),
    )


def read_secret(path: Path, fix: str = "Check the folder given") -> bytes:
    """A secret file of this user (or root) that nobody else may read; a symbolic link is refused.

    Args:
        path: of the file.
        fix: what to do where it is missing.

    Raises:
        BoardError: `key-missing`, `key-permissions` or `disk`.
        ArtifactError: longer than 4096 bytes.
    """
    return _read_guarded(path, _READABLE_BY_OTHERS, fix)


def keyid(key: Ed25519PublicKey) -> str:
    """SHA-256 of the raw public key, in hexadecimal."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def create_console_key(folder: Path, name: str) -> Path:
    """Make `<name>.key` (0600) and `<name>.pub.json` (0644), a console's signing key and its public file.

    Returns:
        The path of the public file, to be put into the boards' folder of trusted consoles.

    Raises:
        SpecError: the name does not match `agent.card.NAME`, or the key exists.
        BoardError: the disk fails.
    """
    if not NAME.fullmatch(name):
        raise SpecError(f"console name {name[:64]!r} does not match {NAME.pattern}")
    make_folder(folder)
    private, public = folder / f"{name}{KEY_SUFFIX}", folder / f"{name}.pub.json"
    _refuse_existing(private, "this console key exists")
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
    if path.suffix != KEY_SUFFIX:
        raise SpecError("not a console's private key file", where=str(path), fix=f"Give the file NAME{KEY_SUFFIX}")
    text = read_secret(path).decode("ascii", "replace").strip()
    return Ed25519PrivateKey.from_private_bytes(_key_bytes(text, path))


def load_trusted_consoles(folder: Path) -> dict[str, Ed25519PublicKey]:
    """The consoles this board obeys: every `*.json` in `folder`, by key id. No folder: no console is obeyed.

    Raises:
        BoardError: others may write the folder or a file, or the disk fails.
        ArtifactError: a file is broken or its key id is not that of its key; more than 64 files.
    """
    with disk_errors(folder):
        if not folder.exists():
            return {}
        _check_mode(folder, folder.stat(), _WRITABLE_BY_OTHERS)
        paths = sorted(folder.glob("*.json"))
    if len(paths) > MAX_CONSOLES:
        raise ArtifactError(f"{len(paths)} trusted consoles, at most {MAX_CONSOLES}", where=str(folder))
    return dict(_read_console(path) for path in paths)


def make_grant(device: PublicDocument | Mapping[str, object], data_key: bytes, target_sha256: str) -> bytes:
    """Wrap a model's data key so that only `device` can open it, and only for that sealed file.

    HPKE (RFC 9180) base mode; `info` binds the device's name and the target's hash.

    Args:
        device: its public document.
        data_key: 32 bytes.
        target_sha256: of the sealed file, in hexadecimal.

    Returns:
        The grant as JSON.

    Raises:
        SpecError: the document is broken, or its X25519 key is no usable point.
        ValueError: the data key has not 32 bytes.
    """
    if len(data_key) != KEY_BYTES:
        raise ValueError(f"a data key has {KEY_BYTES} bytes")
    document = device if isinstance(device, PublicDocument) else parse_public_document(device)
    public = X25519PublicKey.from_public_bytes(bytes.fromhex(document.x25519))
    try:
        wrapped = _SUITE.encrypt(data_key, public, _grant_info(document.device, target_sha256))
    except ValueError as error:
        raise SpecError("X25519 key of the device document is no usable point", where=document.device) from error
    return canonical(
        {
            "ciphertext": wrapped.hex(),
            "device": document.device,
            "suite": _SUITE_NAME,
            "target_sha256": target_sha256,
        }
    )


def open_grant(identity: DeviceIdentity, grant: bytes, target_sha256: str) -> bytes:
    """The 32-byte data key inside a grant.

    Raises:
        GrantError: `grant-format`, `grant-other-device`, `grant-other-target`, or `grant-broken` when it does not
            open with this board's key.
    """
    table = loads(grant, what="grant", max_bytes=MAX_GRANT_BYTES, error=_GrantFormatError)
    read = _build(_Grant, table, "grant", _GrantFormatError)
    if read.device != identity.device:
        raise GrantError(f"grant is for device {read.device[:64]!r}", reason="grant-other-device")
    if read.target_sha256 != target_sha256:
        raise GrantError(f"grant is for sealed file {read.target_sha256[:64]!r}", reason="grant-other-target")
    try:
        info = _grant_info(identity.device, target_sha256)
        key = _SUITE.decrypt(bytes.fromhex(read.ciphertext), identity._x25519, info)  # noqa: SLF001 - same room: the identity only holds the key
    except (InvalidTag, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise GrantError(
            "grant does not open with this board's key",
            fix="Grant again for the board's present public document",
            reason="grant-broken",
        )
    return key


class _GrantFormatError(GrantError):
    reason = "grant-format"


@dataclass(frozen=True, slots=True, repr=False)
class _StoredIdentity:
    device: str = field(metadata=limits(longest=64))
    x25519: str
    ed25519: str
    storage: str


@dataclass(frozen=True, slots=True)
class _StoredConsole:
    name: str = field(metadata=limits(longest=64))
    ed25519: str
    keyid: str


@dataclass(frozen=True, slots=True)
class _Grant:
    device: str
    target_sha256: str
    ciphertext: str
    suite: str = field(metadata=limits(choices=(_SUITE_NAME,)))


def _grant_info(device: str, target_sha256: str) -> bytes:
    return canonical({"device": device, "format": "temperd-grant-1", "target_sha256": target_sha256})


def _build(cls: type[T], table: object, what: str, error: type[TemperdError] = ArtifactError) -> T:
    if not isinstance(table, Mapping):
        raise error(f"{what} is not a table")
    try:
        return build(cls, table)
    except TableError as cause:
        raise error(f"{what}: {cause.what}", where=cause.key) from cause


def _key_bytes(text: str, path: Path) -> bytes:
    if not SHA256.fullmatch(text):
        raise ArtifactError("a key is not 64 hexadecimal digits", where=str(path), reason="key-broken")
    return bytes.fromhex(text)


def _read_console(path: Path) -> tuple[str, Ed25519PublicKey]:
    data = _read_guarded(path, _WRITABLE_BY_OTHERS)
    what = f"trusted console {path.name}"
    stored = _build(_StoredConsole, loads(data, what=what, max_bytes=MAX_KEY_FILE_BYTES), what)
    key = Ed25519PublicKey.from_public_bytes(_key_bytes(stored.ed25519, path))
    if keyid(key) != stored.keyid:
        raise ArtifactError("key id is not that of the key", where=str(path), reason="key-broken")
    return stored.keyid, key


def _refuse_existing(path: Path, what: str) -> None:
    with disk_errors(path):
        exists = path.exists()
    if exists:
        raise SpecError(what, where=str(path), fix="Remove it by hand to make a new one", reason="key-exists")


def _check_folder(folder: Path) -> None:
    with disk_errors(folder):
        _check_mode(folder, folder.stat(), _READABLE_BY_OTHERS)


def _read_guarded(path: Path, forbidden: int, fix: str = "") -> bytes:
    with disk_errors(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise BoardError("key file is missing", where=str(path), fix=fix, reason="key-missing") from error
        with os.fdopen(descriptor, "rb") as stream:
            _check_mode(path, os.fstat(descriptor), forbidden)
            data = stream.read(MAX_KEY_FILE_BYTES + 1)
    if len(data) > MAX_KEY_FILE_BYTES:
        raise ArtifactError(f"key file is longer than {MAX_KEY_FILE_BYTES} bytes", where=str(path), reason="key-broken")
    return data


def _check_mode(path: Path, found: os.stat_result, forbidden: int) -> None:
    if found.st_uid not in {0, os.geteuid()}:
        raise BoardError(
            "key file or folder belongs to another user", where=str(path), fix="chown it", reason="key-permissions"
        )
    if found.st_mode & forbidden:
        deed = "write" if forbidden == _WRITABLE_BY_OTHERS else "read"
        wanted = stat.S_IMODE(found.st_mode) & ~forbidden
        raise BoardError(
            f"others may {deed} a key file or folder",
            where=str(path),
            fix=f"chmod {wanted:04o} {path}",
            reason="key-permissions",
        )
