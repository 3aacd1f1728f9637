"""What forms sent: a form that is posted twice is one command, and what is confirmed is what was shown. In memory."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.errors import SpecError
from agent.strict_json import canonical
from service.commands import Request

MAX_FORMS = 1000  # of all users: a form that is forgotten is asked once more, or answered as one that is too old
TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")


def new_token() -> str:
    """What a form carries so that it counts once, however often it is posted."""
    return secrets.token_urlsafe(16)


def digest_of(**parts: object) -> str:
    """SHA-256, hex, of JSON values: the same for the same command, whoever wrote it down."""
    return hashlib.sha256(canonical(parts)).hexdigest()


@dataclass(slots=True)
class Sent:
    """A signed command of one form."""

    digest: str
    """See `digest_of`."""
    request: Request
    envelope: bytes
    why: str
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by who sends it."""
    recorded: bool = False
    """The audit trail has it."""
    confirmed: bool = False
    """The broker has it."""

    def let_go(self) -> None:
        """The broker has it: of what was sent the id is enough from now on."""
        self.confirmed, self.envelope = True, b""
        self.request = replace(self.request, args={}, expect={})


class SentForms:
    """See the module. A form is known by its user and its token."""

    def __init__(self) -> None:
        self._shown: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._sent: OrderedDict[tuple[str, str], Sent] = OrderedDict()

    def show(self, user: str, token: str, digest: str) -> None:
        """Remember what a user is asked to confirm."""
        self._shown[user, token] = digest
        self._shown.move_to_end((user, token))
        _bound(self._shown)

    def was_shown(self, user: str, token: str, digest: str) -> bool:
        """Whether just this was shown to the user with this form."""
        return self._shown.get((user, token)) == digest

    def find(self, user: str, token: str, digest: str) -> Sent | None:
        """What the form sent before.

        Raises:
            SpecError: `form-used`, it was another command.
        """
        found = self._sent.get((user, token))
        if found is not None and found.digest != digest:
            raise SpecError("this form sent another command", fix="Open the page anew", reason="form-used")
        return found

    def add(self, user: str, token: str, sent: Sent) -> None:
        """Keep what a form sends; the oldest is forgotten."""
        self._sent[user, token] = sent
        _bound(self._sent)


def _bound(kept: OrderedDict[tuple[str, str], str] | OrderedDict[tuple[str, str], Sent]) -> None:
    while len(kept) > MAX_FORMS:
        kept.popitem(last=False)


def parts(
    board: str, kind: str, args: Mapping[str, object], expect: Mapping[str, object], why: str, valid_s: int
) -> str:
    """`digest_of` a command to one board."""
    return digest_of(board=board, kind=kind, args=dict(args), expect=dict(expect), why=why, valid_s=valid_s)
