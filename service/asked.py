"""A command that is answered when something else has ended, as the journal remembers it: a scrub, a stress run."""

from __future__ import annotations

from dataclasses import dataclass

WAITING, RUNNING = "accepted", "running"


@dataclass(frozen=True, slots=True)
class Asked:
    """The command and how it stands."""

    digest: str
    status: str = WAITING
    version: int = 1
    code: str = ""
    reason: str = ""
    result: dict[str, object] | None = None

    @property
    def ended(self) -> bool:
        """Whether its status is the last one."""
        return self.status not in (WAITING, RUNNING)

    @property
    def outcome(self) -> str:
        """As the ledger has it."""
        if not self.ended:
            return WAITING
        return f"{self.status}:{self.code}" if self.code else self.status
