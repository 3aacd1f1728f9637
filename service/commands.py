"""Signed commands from a console: a DSSE envelope around a JSON request. Pure: values in, values or a refusal out.

Envelope: https://github.com/secure-systems-lab/dsse (protocol 1.0), Ed25519, JSON form. The profile here is narrower:
unknown fields are refused, and a signature counts only under a key identifier that this board trusts.

Signatures are judged by `agent.ed25519` without `cryptography`, 7 MB that only a console needs, for signing.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING

from agent import strict_json
from agent.ed25519 import is_signed
from agent.errors import CommandError, SpecError
from agent.spec import FineTuneSpec, parse_spec
from policies.policy import MAX_POLICY_BYTES
from policies.strict import TableError, build, limits
from service.qualify_plan import DEFAULT_MINUTES, LEAST_MINUTES, MOST_MINUTES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PAYLOAD_TYPE = "application/vnd.temperd.command+json"
MAX_ENVELOPE_BYTES = 64 << 10  # a fine-tune request has about 1 KB
MAX_JSON_DEPTH = 8  # payload, args, and what an argument may nest
MAX_SIGNATURES = 8  # more consoles than ever sign one command; each costs a verification
MAX_LIFETIME_S = 31 * 86400  # a board may be offline for thirty days; a command must not stay dangerous for longer
MAX_SKEW_S = 300  # how far a console's clock may be ahead of the board's
MAX_TIME_S = 253_402_300_799  # the last second of the year 9999

COMMAND_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_MAX_ID_MS = (1 << 48) - 1

FINE_TUNE, CANCEL, PAUSE, RESUME, SCRUB = "fine-tune", "cancel", "pause", "resume", "scrub"
SET_POLICY, QUALIFY = "set-policy", "qualify"
COLLECT_REPORT = "collect-report"
SUPPORTED = (FINE_TUNE, CANCEL, PAUSE, RESUME, SCRUB, SET_POLICY, QUALIFY)
KNOWN = (
    *SUPPORTED,
    *("evaluate", "promote", "rollback", "update-agent", "update-system"),
    COLLECT_REPORT,
)
WITHOUT_CLOCK = frozenset({CANCEL, PAUSE, COLLECT_REPORT})
"""What runs while the board does not know the time: nothing here starts work or changes a model."""


class Refusal(StrEnum):
    """Why a command is refused: the closed set of `reason_code` on the wire. Listed in docs/mqtt.md."""

    TOO_LARGE = "too-large"
    MALFORMED = "malformed"
    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown-key"
    BAD_SIGNATURE = "bad-signature"
    OTHER_DEVICE = "other-device"
    TOPIC_MISMATCH = "topic-mismatch"
    UNKNOWN_TYPE = "unknown-type"
    UNSUPPORTED_TYPE = "unsupported-type"
    CLOCK_UNSYNCHRONISED = "clock-unsynchronised"
    EXPIRED = "expired"
    NOT_YET = "not-yet"
    LIFETIME_TOO_LONG = "lifetime-too-long"
    UNKNOWN_EXPECTATION = "unknown-expectation"
    BAD_ARGUMENTS = "bad-arguments"
    REPLAY = "replay"
    """Decided by the journal: an id seen with other bytes, or older than the kept ledger."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a console signs. Times are whole seconds since 1970, UTC."""

    id: str = field(metadata=limits(longest=36))
    """UUIDv7, see `new_id`: ids sort by the time they were made."""
    device: str = field(metadata=limits(longest=63))
    type: str = field(metadata=limits(longest=32))
    issued_at: int = field(metadata=limits(0, MAX_TIME_S))
    not_after: int = field(metadata=limits(0, MAX_TIME_S))
    args: dict[str, object]
    expect: dict[str, object] = field(default_factory=dict)
    """Conditions on the board's state. None is defined yet, so anything here is refused rather than ignored."""


@dataclass(frozen=True, slots=True)
class Command(Request):
    """A request whose signature, target, time and arguments were checked."""

    digest: str = ""
    """SHA-256 of the signed bytes, hex: two envelopes with one digest ask for the same thing."""
    keyid: str = ""
    """The console that signed."""

    @property
    def spec(self) -> FineTuneSpec:
        """Arguments of a fine-tune command."""
        return parse_spec(self.args)

    @property
    def job(self) -> str:
        """The job that a cancel, pause or resume command names."""
        return build(_JobArguments, self.args).job

    @property
    def nothing(self) -> None:
        """Arguments of a scrub command: there are none."""
        build(_NoArguments, self.args)

    @property
    def minutes(self) -> int:
        """Length of the run that a qualify command asks for."""
        return build(_QualifyArguments, self.args).minutes

    @property
    def policy(self) -> PolicyArguments:
        """Arguments of a set-policy command."""
        return build(PolicyArguments, self.args)


@dataclass(frozen=True, slots=True)
class PolicyArguments:
    """What a set-policy command asks for: exactly one of these."""

    text: str = field(default="", metadata=limits(longest=MAX_POLICY_BYTES))
    """A policy in TOML."""
    name: str = field(default="", metadata=limits(longest=63))
    """One that ships."""
    reset: bool = False
    """None from a console any more."""

    def __post_init__(self) -> None:
        """Refuse none and several."""
        given = [key for key in ("text", "name", "reset") if getattr(self, key)]
        if len(given) != 1:
            raise TableError(given[-1] if given else "text", "give exactly one of text, name and reset")


@dataclass(frozen=True, slots=True)
class _NoArguments:
    pass


@dataclass(frozen=True, slots=True)
class _QualifyArguments:
    minutes: int = field(default=DEFAULT_MINUTES, metadata=limits(LEAST_MINUTES, MOST_MINUTES))


@dataclass(frozen=True, slots=True)
class _JobArguments:
    job: str = field(metadata=limits(longest=36))

    def __post_init__(self) -> None:
        if not COMMAND_ID.fullmatch(self.job):
            raise TableError("job", "is no job id (a job has the id of its fine-tune command)")


@dataclass(frozen=True, slots=True)
class _Signature:
    sig: str
    keyid: str = field(default="", metadata=limits(longest=64))


@dataclass(frozen=True, slots=True)
class _Envelope:
    payload: str = field(metadata=limits(longest=MAX_ENVELOPE_BYTES))
    payloadType: str  # noqa: N815 - the name on the wire
    signatures: tuple[_Signature, ...] = field(metadata=limits(longest=MAX_SIGNATURES))


def new_id(now_ms: int, random: Callable[[int], bytes]) -> str:
    """A UUIDv7 (RFC 9562, 5.7).

    Args:
        now_ms: milliseconds since 1970; ids of later milliseconds sort after.
        random: gives that many unpredictable bytes, e.g. `secrets.token_bytes`.
    """
    if not 0 <= now_ms <= _MAX_ID_MS:
        raise ValueError(f"{now_ms} ms does not fit 48 bits")
    noise = int.from_bytes(random(10))
    value = now_ms << 80 | 0x7 << 76 | (noise >> 62 & 0xFFF) << 64 | 0b10 << 62 | noise & (1 << 62) - 1
    text = f"{value:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """What is signed: DSSE's PAE, which binds the type and both lengths."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_command(request: Request, private_key: Ed25519PrivateKey) -> bytes:
    """The envelope to publish. The same request and key give the same bytes."""
    from agent.keys import keyid  # noqa: PLC0415 - see the module's docstring

    payload = strict_json.canonical({item.name: getattr(request, item.name) for item in dataclasses.fields(Request)})
    signature = {
        "keyid": keyid(private_key.public_key()),
        "sig": base64.b64encode(private_key.sign(pre_authentication(PAYLOAD_TYPE, payload))).decode(),
    }
    encoded = base64.b64encode(payload).decode()
    return strict_json.canonical({"payload": encoded, "payloadType": PAYLOAD_TYPE, "signatures": [signature]})


def open_command(
    envelope: bytes,
    *,
    topic_type: str,
    topic_id: str,
    trusted: Mapping[str, bytes],
    device: str,
    now: float,
    clock_synchronised: bool,
) -> Command:
    """Check an envelope; nothing of it is believed before its signature holds.

    Args:
        envelope: as received.
        topic_type: the type level of the topic it arrived on.
        topic_id: the id level.
        trusted: raw console keys by key identifier; one valid signature of any of them is enough.
        device: this board's name.
        now: wall clock, seconds since 1970.
        clock_synchronised: whether `now` can be believed. If not, times are not judged and only `WITHOUT_CLOCK` runs.

    Raises:
        CommandError: refused; `code` is one of `Refusal`.
    """
    parsed = _parse_envelope(envelope)
    payload = _decode(parsed.payload, "payload")
    keyid = _verify(parsed, payload, trusted)
    command = _parse_payload(payload, keyid)
    _check_target(command, topic_type, topic_id, device)
    _check_time(command, now, clock_synchronised)
    _check_arguments(command)
    return command


def _refuse(refusal: Refusal, what: str, where: str = "", fix: str = "") -> CommandError:
    return CommandError(what, where=where, fix=fix, reason=refusal)


def _json(data: bytes, what: str) -> dict[str, object]:
    try:
        value = strict_json.loads(
            data, what=what, max_bytes=MAX_ENVELOPE_BYTES, max_depth=MAX_JSON_DEPTH, error=CommandError
        )
    except CommandError as error:
        raise _refuse(Refusal.MALFORMED, error.what, error.where, error.fix) from error
    if not isinstance(value, dict):
        raise _refuse(Refusal.MALFORMED, f"{what} is no JSON object")
    return value


def _parse_envelope(data: bytes) -> _Envelope:
    if len(data) > MAX_ENVELOPE_BYTES:
        raise _refuse(Refusal.TOO_LARGE, f"a command of {len(data)} bytes, at most {MAX_ENVELOPE_BYTES} are read")
    try:
        envelope = build(_Envelope, _json(data, "command envelope"))
    except TableError as error:
        raise _refuse(Refusal.MALFORMED, f"command envelope: {error.what}", error.key) from error
    if envelope.payloadType != PAYLOAD_TYPE:
        raise _refuse(Refusal.MALFORMED, f"payload type {envelope.payloadType[:80]!r} is not {PAYLOAD_TYPE}")
    return envelope


def _decode(text: str, what: str) -> bytes:
    """Standard or URL-safe base64; DSSE allows both."""
    try:
        return base64.b64decode(text.translate({ord("-"): "+", ord("_"): "/"}), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refuse(Refusal.MALFORMED, f"{what} is not base64", "command envelope") from error


def _verify(envelope: _Envelope, payload: bytes, trusted: Mapping[str, bytes]) -> str:
    """The key identifier of the first valid signature by a trusted console."""
    if not envelope.signatures:
        raise _refuse(Refusal.UNSIGNED, "the command carries no signature")
    signed = pre_authentication(envelope.payloadType, payload)
    known = [item for item in envelope.signatures if item.keyid in trusted]
    for item in known:
        if is_signed(trusted[item.keyid], _decode(item.sig, "signature"), signed):
            return item.keyid
    if known:
        raise _refuse(Refusal.BAD_SIGNATURE, "the signature does not hold", f"key {known[0].keyid}")
    shown = ", ".join(sorted({repr(item.keyid[:16]) for item in envelope.signatures}))
    raise _refuse(Refusal.UNKNOWN_KEY, "no trusted console signed this", shown, "Trust the console's public key first")


def _parse_payload(payload: bytes, keyid: str) -> Command:
    try:
        request = build(Request, _json(payload, "command"))
    except TableError as error:
        raise _refuse(Refusal.MALFORMED, f"command: {error.what}", error.key) from error
    if not COMMAND_ID.fullmatch(request.id):
        raise _refuse(Refusal.MALFORMED, "command: the id is no UUIDv7 in lower case", "id")
    values = {item.name: getattr(request, item.name) for item in dataclasses.fields(Request)}
    return Command(**values, digest=hashlib.sha256(payload).hexdigest(), keyid=keyid)


def _check_target(command: Command, topic_type: str, topic_id: str, device: str) -> None:
    if command.device != device:
        raise _refuse(Refusal.OTHER_DEVICE, f"the command is for {command.device!r}, this is {device!r}", command.id)
    if (command.type, command.id) != (topic_type, topic_id):
        raise _refuse(Refusal.TOPIC_MISMATCH, "the command was signed for another topic", command.id)
    if command.type not in KNOWN:
        raise _refuse(Refusal.UNKNOWN_TYPE, f"no command is called {command.type!r}", command.id)
    if command.type not in SUPPORTED:
        raise _refuse(Refusal.UNSUPPORTED_TYPE, f"this version does not carry out {command.type!r}", command.id)


def _check_time(command: Command, now: float, clock_synchronised: bool) -> None:  # noqa: FBT001 - private, one caller
    if not 0 <= command.not_after - command.issued_at <= MAX_LIFETIME_S:
        what = f"a command lives 0 to {MAX_LIFETIME_S} s, not {command.not_after - command.issued_at}"
        raise _refuse(Refusal.LIFETIME_TOO_LONG, what, command.id)
    if not clock_synchronised:
        if command.type in WITHOUT_CLOCK:
            return
        what = f"the board does not know the time, so {command.type!r} cannot be judged"
        raise _refuse(Refusal.CLOCK_UNSYNCHRONISED, what, command.id, "Wait for time synchronisation and send again")
    if now > command.not_after:
        raise _refuse(Refusal.EXPIRED, f"the command expired {now - command.not_after:.0f} s ago", command.id)
    if now < command.issued_at - MAX_SKEW_S:
        what = f"the command was issued {command.issued_at - now:.0f} s in the future"
        raise _refuse(Refusal.NOT_YET, what, command.id, "Set the console's clock")


_ARGUMENTS: Mapping[str, Callable[[Command], object]] = {
    FINE_TUNE: attrgetter("spec"),
    SCRUB: attrgetter("nothing"),
    SET_POLICY: attrgetter("policy"),
    QUALIFY: attrgetter("minutes"),
    **dict.fromkeys((CANCEL, PAUSE, RESUME), attrgetter("job")),
}
"""What reads the arguments of each supported command."""


def _check_arguments(command: Command) -> None:
    if command.expect:
        raise _refuse(Refusal.UNKNOWN_EXPECTATION, "this version checks no expectations", next(iter(command.expect)))
    try:
        _ARGUMENTS[command.type](command)
    except SpecError as error:
        raise _refuse(Refusal.BAD_ARGUMENTS, error.what, f"args.{error.where}", error.fix) from error
    except TableError as error:
        raise _refuse(Refusal.BAD_ARGUMENTS, error.what, f"args.{error.key}") from error
