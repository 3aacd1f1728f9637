"""What `temperd fleet` was asked for: boards, command, conditions, lifetime, read from words and options."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from agent.errors import SpecError
from policies.strict import TableError, build
from service.commands import (
    COLLECT_REPORT,
    MAX_ENVELOPE_BYTES,
    MAX_LIFETIME_S,
    SCRUB,
    SUPPORTED,
    Expectation,
    Request,
    sign_command,
)
from service.config import NAME
from service.fleet.access import Access
from service.fleet.follow import MAX_COMMANDS
from service.fleet.state import FleetState, state_path

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TYPES = SUPPORTED  # other types are reserved: every board refuses them
WITHOUT_ARGUMENTS = (SCRUB, COLLECT_REPORT)
MAX_VERSION_DIGITS = 16  # 2^53 has sixteen


def split_words(words: Sequence[str], *, grouped: bool) -> tuple[tuple[str, ...], str, str]:
    """Boards, command type and argument of `BOARD... TYPE [ARGUMENT]`; with a group, of `TYPE [ARGUMENT]`.

    Raises:
        SpecError: no type is among them, or too many words follow it.
    """
    first, last = 0 if grouped else 1, len(words) - 1
    # A board may be called `scrub`: a type that takes no argument is one only where nothing follows.
    places = (i for i, word in enumerate(words) if i >= first and word in TYPES)
    at = next((i for i in places if i == last or words[i] not in WITHOUT_ARGUMENTS), None)
    if at is None:
        usage = "TYPE [ARGUMENT]" if grouped else "BOARD... TYPE [ARGUMENT]"
        raise SpecError(f"no command among {' '.join(words)[:200]!r}", fix=f"Say {usage}; types: {', '.join(TYPES)}")
    if grouped and at:
        raise SpecError("name boards or a group, not both", where=words[0][:80])
    if len(words) > at + 2:
        raise SpecError(f"{words[at]} takes one argument at most", where=words[at + 2][:80])
    return tuple(words[:at]), words[at], words[at + 1] if len(words) > at + 1 else ""


def chosen_boards(options: argparse.Namespace, access: Access, named: Sequence[str]) -> tuple[str, ...]:
    """The boards that were named, each once, or those of `--group`.

    Raises:
        SpecError: a name that is none, no board, too many, or no such group.
    """
    boards = list(dict.fromkeys(named))
    if options.group:
        with FleetState(state_path(access.state, os.environ)) as state:
            boards += [board for board in state.members(access.tenant, options.group) if board not in boards]
    for board in boards:
        if not NAME.fullmatch(board):
            raise SpecError(f"{board[:80]!r} is no device name: 1 to 63 of a-z, 0-9 and dash")
    if not 1 <= len(boards) <= MAX_COMMANDS:
        raise SpecError(f"{len(boards)} boards were named, 1 to {MAX_COMMANDS} go", fix="Name boards, or a --group")
    return tuple(boards)


def check_valid(seconds: int) -> None:
    """Refuse a lifetime that boards refuse.

    Raises:
        SpecError: it is outside the limits.
    """
    if not 0 < seconds <= MAX_LIFETIME_S:
        raise SpecError(f"--valid {seconds} is outside 1..{MAX_LIFETIME_S} seconds")


def read_expect(given: Sequence[str]) -> dict[str, object]:
    """Conditions on a board's state, of `KEY=VALUE`.

    Raises:
        SpecError: an unknown key, or a value that can never hold.
    """
    expect: dict[str, object] = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise SpecError("a condition is KEY=VALUE", where=f"--expect {item[:80]}")
        number = key == "state_version" and value.isascii() and value.isdecimal() and len(value) <= MAX_VERSION_DIGITS
        expect[key] = int(value) if number else value
    try:
        build(Expectation, expect)
    except TableError as error:
        raise SpecError(error.what, where=f"--expect {error.key}") from error
    return expect


def signed(request: Request, key: Ed25519PrivateKey) -> bytes:
    """The envelope of a request.

    Raises:
        SpecError: it is longer than boards read.
    """
    envelope = sign_command(request, key)
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise SpecError(f"the signed command has {len(envelope)} bytes, boards read at most {MAX_ENVELOPE_BYTES}")
    return envelope
