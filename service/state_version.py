"""What a console may expect of a board: its active model, its policy, and a version that rises with either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from agent.errors import TemperdError
from agent.slots import read_active
from service.command_types import Expectation
from service.journal import Journal
from service.logs import logger
from service.policy_file import PolicyFile

log = logger("commands")

UNKNOWN = "unknown"
"""Stands for the hash of an active model that cannot be read: no expectation of a model holds then."""


@dataclass(frozen=True, slots=True)
class BoardState:
    """What `birth` says and an expectation is held against."""

    active_model: str
    """SHA-256 of the running model, hex; empty: none runs; or `UNKNOWN`."""
    policy: str
    """SHA-256 of the policy in force, hex."""
    state_version: int
    """Rises when one of the others changes."""

    def unmet(self, expected: Expectation) -> str:
        """What does not hold, as a sentence; empty where everything does."""
        found, wanted = asdict(self), asdict(expected)
        unmet = [item.name for item in fields(expected) if wanted[item.name] not in (None, found[item.name])]
        return "; ".join(f"{name} is {found[name]!r}, not {wanted[name]!r}" for name in unmet)


def state_reader(journal: Journal, store: Path, policies: PolicyFile) -> Callable[[], BoardState]:
    """What reads the state of this moment, and counts its version up when it finds another than before.

    Args:
        journal: keeps the version.
        store: folder of the slots.
        policies: what is in force.
    """

    def read() -> BoardState:
        try:
            active = read_active(store)
            model = active.plaintext_sha256 if active else ""
        except TemperdError as error:  # the next worker sets a broken status aside and rebuilds it
            log.warning("the active model is not known", why=str(error))
            model = UNKNOWN
        policy = policies.now.sha256
        return BoardState(model, policy, journal.state_version(f"{model} {policy}"))

    return read
