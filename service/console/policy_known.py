"""The policies whose text this console knows: those that ship, and those that were sent from here."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.board.profile import named_policy_text, policy_names
from policies.policy import Policy, PolicyError, parse_policy
from service.console.compare_policies import SENT, SHIPPED, sent, text_of
from service.fleet.boards import table

if TYPE_CHECKING:
    from service.console.audit import Audit, Record
    from service.console.room import Room

MOST_OFFERED = 20  # of those sent from here, to choose from


@dataclass(frozen=True, slots=True)
class Known:
    """A policy's text.

    Attributes:
        key: `ship:default`, or `sent:17`, the number of the record in the audit trail.
        name: as it calls itself, or the name it ships under.
        text: TOML.
        ts: when it was sent, seconds since 1970; `None`: it ships.
        who: who sent it.
    """

    key: str
    name: str
    text: str
    ts: float | None = None
    who: str = ""

    @property
    def sha256(self) -> str:
        """Of the text, hex, as boards tell it."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def policy(self) -> Policy | None:
        """What it says; `None` where this version cannot read it."""
        try:
            return parse_policy(self.text)
        except PolicyError:
            return None


async def known_policies(room: Room) -> list[Known]:
    """All of them: those that ship first, then those that were sent, the newest first.

    Raises:
        BoardError: the audit trail cannot be read.
    """
    return await asyncio.to_thread(_known, room.audit)


def _known(audit: Audit) -> list[Known]:
    shipped = [Known(f"{SHIPPED}{name}", name, named_policy_text(name)) for name in policy_names()]
    return shipped + [known for record in sent(audit) if (known := _of_record(record)) is not None]


def _of_record(record: Record) -> Known | None:
    """A text that was sent; one that was sent by name ships already."""
    text = text_of(record)
    if text is None or table(record.details.get("args")).get("name"):
        return None
    try:
        name = parse_policy(text).name
    except PolicyError:
        name = ""
    return Known(f"{SENT}{record.id}", name, text, record.ts, record.who)


def by_hash(known: Sequence[Known], sha256: str) -> Known | None:
    """The policy with this hash."""
    return next((one for one in known if sha256 and one.sha256 == sha256), None)


def by_key(known: Sequence[Known], key: str) -> Known | None:
    """The policy with this key."""
    return next((one for one in known if one.key == key), None)


def offered(known: Sequence[Known]) -> list[Known]:
    """Those to start from: each text once, not all that were ever sent."""
    found: dict[str, Known] = {}
    for one in known:
        found.setdefault(one.sha256, one)
    kept = [one for one in found.values() if one.ts is None]
    return kept + [one for one in found.values() if one.ts is not None][:MOST_OFFERED]
