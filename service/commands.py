"""Signed commands from a console, as one face; and the judge of them. Pure: values in, values or a refusal out.

envelope        the signature
command_types   types, arguments, roles, the reasons of a refusal

A command is judged in two steps, because what is repeated is answered again and not judged again: `read_command` finds
out who asks this board for what, `check_command` whether that is to be done now.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from agent import strict_json
from agent.errors import SpecError
from agent.keys_consoles import TrustedConsole
from policies.strict import TableError, build
from service.command_types import (
    ARGUMENTS,
    CANCEL,
    COLLECT_REPORT,
    COMMAND_ID,
    EVALUATE,
    FINE_TUNE,
    KNOWN,
    PAUSE,
    PERMITTED,
    PROMOTE,
    QUALIFY,
    RESUME,
    ROLLBACK,
    SCHEMA,
    SCRUB,
    SET_POLICY,
    STRANGERS,
    SUPPORTED,
    UPDATE_AGENT,
    UPDATE_SYSTEM,
    WITHOUT_CLOCK,
    Command,
    Expectation,
    JobArguments,
    NoArguments,
    PolicyArguments,
    QualifyArguments,
    Refusal,
    Request,
    RollbackArguments,
    id_time_s,
    new_id,
    refuse,
)
from service.envelope import (
    MAX_ENVELOPE_BYTES,
    MAX_JSON_DEPTH,
    MAX_SIGNATURES,
    PAYLOAD_TYPE,
    Signed,
    open_envelope,
    pre_authentication,
    read_json,
    sign,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = [
    "ARGUMENTS",
    "CANCEL",
    "COLLECT_REPORT",
    "COMMAND_ID",
    "EVALUATE",
    "FINE_TUNE",
    "KNOWN",
    "MAX_ENVELOPE_BYTES",
    "MAX_JSON_DEPTH",
    "MAX_LIFETIME_S",
    "MAX_SIGNATURES",
    "MAX_SKEW_S",
    "PAUSE",
    "PAYLOAD_TYPE",
    "PERMITTED",
    "PROMOTE",
    "QUALIFY",
    "RESUME",
    "ROLLBACK",
    "SCHEMA",
    "SCRUB",
    "SET_POLICY",
    "STRANGERS",
    "SUPPORTED",
    "UPDATE_AGENT",
    "UPDATE_SYSTEM",
    "WITHOUT_CLOCK",
    "Command",
    "Expectation",
    "JobArguments",
    "NoArguments",
    "PolicyArguments",
    "QualifyArguments",
    "Refusal",
    "Request",
    "RollbackArguments",
    "check_command",
    "new_id",
    "open_command",
    "pre_authentication",
    "read_command",
    "refuse",
    "sign_command",
]

MAX_LIFETIME_S = 31 * 86400  # a board may be offline for thirty days; a command must not stay dangerous for longer
MAX_SKEW_S = 300  # how far a console's clock may be ahead of the board's


def sign_command(request: Request, private_key: Ed25519PrivateKey) -> bytes:
    """The envelope to publish. The same request and key give the same bytes.

    The first schema is not written out: boards that knew no other refuse the field.
    """
    names = [item.name for item in dataclasses.fields(Request) if (item.name, request.schema) != ("schema", SCHEMA)]
    return sign(strict_json.canonical({name: getattr(request, name) for name in names}), private_key)


def open_command(
    envelope: bytes,
    *,
    topic_type: str,
    topic_id: str,
    trusted: Mapping[str, TrustedConsole],
    device: str,
    now: float,
    clock_synchronised: bool,
) -> Command:
    """`read_command` and `check_command` at once, for who has no ledger between them."""
    command = read_command(envelope, topic_type=topic_type, topic_id=topic_id, trusted=trusted, device=device)
    check_command(command, now=now, clock_synchronised=clock_synchronised)
    return command


def read_command(
    envelope: bytes, *, topic_type: str, topic_id: str, trusted: Mapping[str, TrustedConsole], device: str
) -> Command:
    """What a trusted console asks this board for, whether or not it may now.

    Args:
        envelope: as received.
        topic_type: the type level of the topic it arrived on.
        topic_id: the id level.
        trusted: consoles by key identifier.
        device: this board's name.

    Raises:
        CommandError: refused; `code` is one of `STRANGERS`.
    """
    command = _parse_payload(open_envelope(envelope, trusted))
    if command.device != device:
        raise refuse(Refusal.OTHER_DEVICE, f"the command is for {command.device!r}, this is {device!r}", command.id)
    if (command.type, command.id) != (topic_type, topic_id):
        raise refuse(Refusal.TOPIC_MISMATCH, "the command was signed for another topic", command.id)
    return command


def check_command(command: Command, *, now: float, clock_synchronised: bool) -> None:
    """Whether a command is to be carried out, as far as it can be told without the board's state.

    Args:
        command: see `read_command`.
        now: wall clock, seconds since 1970.
        clock_synchronised: whether `now` can be believed. If not, times are not judged and only `WITHOUT_CLOCK` runs.

    Raises:
        CommandError: refused; `code` is one of `Refusal`.
    """
    _check_type(command)
    _check_time(command, now, clock_synchronised)
    _check_arguments(command)


def _parse_payload(signed: Signed) -> Command:
    table = read_json(signed.payload, "command")
    schema = table.get("schema", SCHEMA)
    if type(schema) is int and schema != SCHEMA:  # before the rest, which may have another form then
        what = f"a command of schema {schema}, this version reads {SCHEMA}"
        raise refuse(Refusal.UNKNOWN_SCHEMA, what, "schema", "Update temperd on the board")
    try:
        _refuse_dashes(table)
        request = build(Request, table)
    except TableError as error:
        raise refuse(Refusal.MALFORMED, f"command: {error.what}", error.key) from error
    if not COMMAND_ID.fullmatch(request.id):
        raise refuse(Refusal.MALFORMED, "command: the id is no UUIDv7 in lower case", "id")
    values = {item.name: getattr(request, item.name) for item in dataclasses.fields(Request)}
    return Command(**values, digest=signed.digest, keyid=signed.console.keyid, role=signed.console.role)


def _check_type(command: Command) -> None:
    if command.type not in KNOWN:
        raise refuse(Refusal.UNKNOWN_TYPE, f"no command is called {command.type!r}", command.id)
    if command.type not in PERMITTED[command.role]:
        what = f"a console with the role {command.role} may not send {command.type!r}"
        raise refuse(Refusal.NOT_PERMITTED, what, f"key {command.keyid}", "The board's owner gives roles")


def _check_time(command: Command, now: float, clock_synchronised: bool) -> None:  # noqa: FBT001 - private, one caller
    if not 0 <= command.not_after - command.issued_at <= MAX_LIFETIME_S:
        what = f"a command lives 0 to {MAX_LIFETIME_S} s, not {command.not_after - command.issued_at}"
        raise refuse(Refusal.LIFETIME_TOO_LONG, what, command.id)
    if not clock_synchronised:
        if command.type in WITHOUT_CLOCK:
            return
        what = f"the board does not know the time, so {command.type!r} cannot be judged"
        raise refuse(Refusal.CLOCK_UNSYNCHRONISED, what, command.id, "Wait for time synchronisation and send anew")
    if now > command.not_after:
        raise refuse(Refusal.EXPIRED, f"the command expired {now - command.not_after:.0f} s ago", command.id)
    # The ledger forgets by the order of ids: one from the far future would outlive all others there.
    ahead = max(command.issued_at, id_time_s(command.id)) - now
    if ahead > MAX_SKEW_S:
        what = f"the command was issued {ahead:.0f} s in the future"
        raise refuse(Refusal.NOT_YET, what, command.id, "Set the console's clock")


def _check_arguments(command: Command) -> None:
    try:
        _refuse_dashes(command.expect)
        _ = command.expectation
    except TableError as error:
        raise refuse(Refusal.UNKNOWN_EXPECTATION, error.what, f"expect.{error.key}") from error
    try:
        _refuse_dashes(command.args)
        ARGUMENTS[command.type](command)
    except SpecError as error:
        raise refuse(Refusal.BAD_ARGUMENTS, error.what, f"args.{error.where}", error.fix) from error
    except TableError as error:
        raise refuse(Refusal.BAD_ARGUMENTS, error.what, f"args.{error.key}") from error


def _refuse_dashes(table: Mapping[str, object]) -> None:
    """In a file a dash may stand for an underscore; on the wire a key has one form, that of docs/asyncapi.yaml."""
    for key in table:
        if "-" in key:
            raise TableError(key, "unknown key: keys are written with underscores here")
