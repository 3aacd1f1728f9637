"""The signed envelope around a command, DSSE: values in, the signed bytes or a refusal out.

Envelope: https://github.com/secure-systems-lab/dsse (protocol 1.0), Ed25519, JSON form. The profile here is narrower:
unknown fields are refused, and a signature counts only under a key identifier that this board trusts.

Signatures are judged by `agent.ed25519` without `cryptography`, 7 MB that only a console needs, for signing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent import strict_json
from agent.ed25519 import is_signed
from agent.errors import CommandError
from agent.keys_consoles import TrustedConsole
from policies.strict import TableError, build, limits
from service.command_types import Refusal, refuse

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PAYLOAD_TYPE = "application/vnd.temperd.command+json"
MAX_ENVELOPE_BYTES = 64 << 10  # a fine-tune request has about 1 KB
MAX_JSON_DEPTH = 8  # payload, args, and what an argument may nest
MAX_SIGNATURES = 8  # more consoles than ever sign one command; each costs a verification


@dataclass(frozen=True, slots=True)
class Signed:
    """What a trusted console signed.

    Attributes:
        payload: the signed bytes.
        console: the first whose signature holds.
    """

    payload: bytes
    console: TrustedConsole

    @property
    def digest(self) -> str:
        """SHA-256 of the signed bytes, hex: two envelopes with one digest ask for the same thing."""
        return hashlib.sha256(self.payload).hexdigest()


@dataclass(frozen=True, slots=True)
class _Signature:
    sig: str
    keyid: str = field(default="", metadata=limits(longest=64))


@dataclass(frozen=True, slots=True)
class _Envelope:
    payload: str = field(metadata=limits(longest=MAX_ENVELOPE_BYTES))
    payloadType: str  # noqa: N815 - the name on the wire
    signatures: tuple[_Signature, ...] = field(metadata=limits(longest=MAX_SIGNATURES))


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """What is signed: DSSE's PAE, which binds the type and both lengths."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, private_key: Ed25519PrivateKey) -> bytes:
    """The envelope to publish. The same payload and key give the same bytes."""
    from agent.keys import keyid  # noqa: PLC0415 - see the module's docstring

    signature = {
        "keyid": keyid(private_key.public_key()),
        "sig": base64.b64encode(private_key.sign(pre_authentication(PAYLOAD_TYPE, payload))).decode(),
    }
    encoded = base64.b64encode(payload).decode()
    return strict_json.canonical({"payload": encoded, "payloadType": PAYLOAD_TYPE, "signatures": [signature]})


def open_envelope(data: bytes, trusted: Mapping[str, TrustedConsole]) -> Signed:
    """Check an envelope; nothing of it is believed before its signature holds.

    Args:
        data: as received.
        trusted: consoles by key identifier; one valid signature of any of them is enough.

    Raises:
        CommandError: refused; `code` is one of `Refusal`.
    """
    envelope = _parse(data)
    payload = _decode(envelope.payload, "payload")
    if not envelope.signatures:
        raise refuse(Refusal.UNSIGNED, "the command carries no signature")
    signed = pre_authentication(envelope.payloadType, payload)
    known = [item for item in envelope.signatures if item.keyid in trusted]
    for item in known:
        if is_signed(trusted[item.keyid].key, _decode(item.sig, "signature"), signed):
            return Signed(payload, trusted[item.keyid])
    if known:
        raise refuse(Refusal.BAD_SIGNATURE, "the signature does not hold", f"key {known[0].keyid}")
    shown = ", ".join(sorted({repr(item.keyid[:16]) for item in envelope.signatures}))
    raise refuse(Refusal.UNKNOWN_KEY, "no trusted console signed this", shown, "Trust the console's public key first")


def read_json(data: bytes, what: str) -> dict[str, object]:
    """A JSON object within the bounds of this module.

    Raises:
        CommandError: `malformed`.
    """
    try:
        value = strict_json.loads(
            data, what=what, max_bytes=MAX_ENVELOPE_BYTES, max_depth=MAX_JSON_DEPTH, error=CommandError
        )
    except CommandError as error:
        raise refuse(Refusal.MALFORMED, error.what, error.where, error.fix) from error
    if not isinstance(value, dict):
        raise refuse(Refusal.MALFORMED, f"{what} is no JSON object")
    return value


def _parse(data: bytes) -> _Envelope:
    if len(data) > MAX_ENVELOPE_BYTES:
        raise refuse(Refusal.TOO_LARGE, f"a command of {len(data)} bytes, at most {MAX_ENVELOPE_BYTES} are read")
    try:
        envelope = build(_Envelope, read_json(data, "command envelope"))
    except TableError as error:
        raise refuse(Refusal.MALFORMED, f"command envelope: {error.what}", error.key) from error
    if envelope.payloadType != PAYLOAD_TYPE:
        raise refuse(Refusal.MALFORMED, f"payload type {envelope.payloadType[:80]!r} is not {PAYLOAD_TYPE}")
    return envelope


def _decode(text: str, what: str) -> bytes:
    """Standard or URL-safe base64; DSSE allows both."""
    try:
        return base64.b64decode(text.translate({ord("-"): "+", ord("_"): "/"}), validate=True)
    except (binascii.Error, ValueError) as error:
        raise refuse(Refusal.MALFORMED, f"{what} is not base64", "command envelope") from error
