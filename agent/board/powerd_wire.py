"""What temperd and temperd-powerd say to each other: one JSON object a packet, as docs/powerd.md tells."""

from __future__ import annotations

from dataclasses import dataclass

from agent import strict_json
from agent.board.lever_files import MAX_NUMBER, MAX_VALUE
from agent.errors import ArtifactError

VERSION = 1
MAX_REQUEST_BYTES = 512  # the longest has about 60
MAX_REPLY_BYTES = 2048  # a message of MAX_MESSAGE characters, each escaped to six
MAX_ID = 2**31 - 1
MAX_MESSAGE = 240  # characters of an error message
VERBS = {
    "hello": {},
    "set-cap": {"policy": MAX_NUMBER, "khz": MAX_VALUE},
    "set-cooling": {"device": MAX_NUMBER, "level": MAX_VALUE},
    "restore": {},
    "throttled": {},
}
"""Each verb with its arguments, whole numbers from 0 to the bound given; all are required."""


class Refusal(Exception):  # noqa: N818 - an answer, not a failure of the program
    """A request that is not done.

    Args:
        code: one of docs/powerd.md.
        message: what is wrong, for people.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message[:MAX_MESSAGE])


@dataclass(frozen=True, slots=True)
class Request:
    """A request that fits `VERBS`."""

    id: int
    verb: str
    arguments: dict[str, int]


def parse_request(packet: bytes) -> Request:
    """Read one packet.

    Raises:
        Refusal: `bad-request`; nothing of it is to be done.
    """
    body = _table(packet, "request", MAX_REQUEST_BYTES)
    verb = body.get("verb")
    if not isinstance(verb, str) or verb not in VERBS:
        raise Refusal("bad-request", f"unknown verb; known are {', '.join(VERBS)}")
    bounds = {"id": MAX_ID} | VERBS[verb]
    if set(body) != {"verb", *bounds}:
        raise Refusal("bad-request", f"{verb} takes exactly: {', '.join(sorted(bounds))}")
    numbers = {name: _whole_number(body[name], name, most) for name, most in bounds.items()}
    return Request(numbers.pop("id"), verb, numbers)


def parse_reply(packet: bytes) -> dict[str, object]:
    """Read what a helper answered.

    Raises:
        Refusal: `bad-reply`.
    """
    try:
        return _table(packet, "reply", MAX_REPLY_BYTES)
    except Refusal as error:
        raise Refusal("bad-reply", str(error)) from error


def _table(packet: bytes, what: str, max_bytes: int) -> dict[str, object]:
    try:
        body = strict_json.loads(packet, what=what, max_bytes=max_bytes, max_depth=1)
    except ArtifactError as error:
        raise Refusal("bad-request", str(error)) from None
    if not isinstance(body, dict):
        raise Refusal("bad-request", f"{what} is no JSON object")
    return body


def _whole_number(value: object, name: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Refusal("bad-request", f"{name} must be a whole number from 0 to {most}")
    return value
