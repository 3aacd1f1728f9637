"""A command that is answered when something else has ended, as the journal remembers it: a scrub, an update."""

from __future__ import annotations

from dataclasses import dataclass

WAITING, DEFERRED, RUNNING = "accepted", "deferred", "running"
PULLING, INSTALLING, RESTARTING, TRIAL = "pulling", "installing", "restarting", "trial"
UPDATE_STEPS = (PULLING, INSTALLING, RESTARTING, TRIAL)
"""`step` of an update of the agent or of the system that is running."""


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
        return self.status not in (WAITING, DEFERRED, RUNNING)

    @property
    def outcome(self) -> str:
        """As the ledger has it."""
        if not self.ended:
            return WAITING
        return f"{self.status}:{self.code}" if self.code else self.status

    @property
    def step(self) -> str:
        """Of an update that is running, see `UPDATE_STEPS`; else empty."""
        return ""

    @property
    def until(self) -> dict[str, object] | None:
        """What one that is deferred waits for, see `service.until`."""
        return None
