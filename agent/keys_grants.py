"""Grants: a model's data key, wrapped so that one board can open it for one sealed file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from agent.errors import GrantError, SpecError
from agent.keys_files import KEY_BYTES, read_table
from agent.keys_identity import DeviceIdentity, DeviceKeys, PublicDocument, parse_public_document
from agent.strict_json import canonical, loads
from policies.strict import limits

MAX_GRANT_BYTES = 4096  # a wrapped key in hexadecimal, two names and a hash
_SUITE_NAME = "hpke-x25519-hkdf-sha256-aes-256-gcm"
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


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
    """The 32-byte data key inside a grant for any of the board's live keys.

    Raises:
        GrantError: `grant-format`, `grant-other-device`, `grant-other-target`, or `grant-broken` when it does not
            open with this board's keys.
    """
    table = loads(grant, what="grant", max_bytes=MAX_GRANT_BYTES, error=_GrantFormatError)
    read = read_table(_Grant, table, "grant", _GrantFormatError)
    if read.device != identity.device:
        raise GrantError(f"grant is for device {read.device[:64]!r}", reason="grant-other-device")
    if read.target_sha256 != target_sha256:
        raise GrantError(f"grant is for sealed file {read.target_sha256[:64]!r}", reason="grant-other-target")
    info = _grant_info(identity.device, target_sha256)
    for keys in identity.live:
        key = _unwrap(keys, read.ciphertext, info)
        if len(key) == KEY_BYTES:
            return key
    raise GrantError(
        "grant does not open with this board's keys",
        fix="Grant again for the board's present public document",
        reason="grant-broken",
    )


class _GrantFormatError(GrantError):
    reason = "grant-format"


@dataclass(frozen=True, slots=True)
class _Grant:
    device: str
    target_sha256: str
    ciphertext: str
    suite: str = field(metadata=limits(choices=(_SUITE_NAME,)))


def _grant_info(device: str, target_sha256: str) -> bytes:
    return canonical({"device": device, "format": "temperd-grant-1", "target_sha256": target_sha256})


def _unwrap(keys: DeviceKeys, ciphertext: str, info: bytes) -> bytes:
    """What is inside, or nothing when these keys do not open it."""
    try:
        return _SUITE.decrypt(bytes.fromhex(ciphertext), keys.x25519, info)
    except (InvalidTag, ValueError):
        return b""
