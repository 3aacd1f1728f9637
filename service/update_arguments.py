"""What a command asks for that updates temperd itself, or the system below it."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.card import LATEST, NAME, VERSION
from policies.strict import TableError, limits
from policies.trial_standing import LEAST_WINDOW_S, MOST_WINDOW_S, WINDOW_DEFAULT_S


@dataclass(frozen=True, slots=True)
class AgentArguments:
    """What an update-agent command asks for."""

    version: str = field(default=LATEST, metadata=limits(longest=64))
    window_s: float = field(default=WINDOW_DEFAULT_S, metadata=limits(LEAST_WINDOW_S, MOST_WINDOW_S))
    """How long the release must be healthy before it stays."""
    allow_downgrade: bool = False
    """Take one that is older than what runs, as far as its security floor allows."""

    def __post_init__(self) -> None:
        """Refuse what is no version."""
        _check_version(self.version)


@dataclass(frozen=True, slots=True)
class SystemArguments:
    """What an update-system command asks for."""

    name: str = field(metadata=limits(longest=64))
    """Of the image."""
    version: str = field(default=LATEST, metadata=limits(longest=64))
    window_s: float = field(default=WINDOW_DEFAULT_S, metadata=limits(LEAST_WINDOW_S, MOST_WINDOW_S))
    """How long the new system must be healthy before it stays."""
    allow_downgrade: bool = False
    """Take one that is older than what runs, as far as its security floor allows."""

    def __post_init__(self) -> None:
        """Refuse what is no name or no version."""
        if not NAME.fullmatch(self.name):
            raise TableError("name", f"does not match {NAME.pattern}")
        _check_version(self.version)


def _check_version(version: str) -> None:
    if version != LATEST and not VERSION.fullmatch(version):
        raise TableError("version", "is neither numbers with dots, such as 0.2.0, nor latest")
