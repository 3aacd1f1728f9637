"""A command that updates the board as the journal remembers it: across the restart it is all that is known."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from service.asked import DEFERRED, RUNNING, Asked
from service.asked_told import Teller
from service.journal import Journal
from service.kept import recall_records
from service.logs import logger
from service.statuses import MAX_REASON, Statuses

MAX_ENDED = 8  # a board gets a few updates a year; a broker confirms an end in seconds

log = logger("update")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateAsked(Asked):
    """A command that updates something.

    Attributes:
        args: of the command, which were checked when it came.
        stage: one of `service.asked.UPDATE_STEPS`; empty before the first.
        waits_for: what releases it, see `service.until`.
        attempt: how often it began.
        retry_s: when a deferred one is tried again, seconds since 1970; 0: not by itself.
    """

    id: str
    args: dict[str, object] = field(default_factory=dict)
    stage: str = ""
    waits_for: dict[str, object] | None = None
    attempt: int = 0
    retry_s: float = 0.0

    @property
    def step(self) -> str:
        """As the status has it."""
        return self.stage if self.status == RUNNING else ""

    @property
    def until(self) -> dict[str, object] | None:
        """As the status has it."""
        return self.waits_for if self.status == DEFERRED else None


A = TypeVar("A", bound=UpdateAsked)


class UpdateLedger(Generic[A]):
    """The command at hand and earlier ends: kept first, then told.

    Args:
        journal: remembers them.
        statuses: publishes.
        kind: type of the command.
        cls: what is remembered of one.

    Attributes:
        now: the command asked for last; `None`: none ever was.
    """

    def __init__(self, journal: Journal, statuses: Statuses, kind: str, cls: type[A]) -> None:
        self._journal, self._teller, self._kind = journal, Teller(statuses), kind
        kept = recall_records(journal, kind, cls)  # the latest last
        self._ended: list[A] = kept[:-1]
        self.now = kept[-1] if kept else None

    @property
    def open(self) -> A | None:
        """The command at hand."""
        return None if self.now is None or self.now.ended else self.now

    def begin(self, asked: A) -> None:
        """Take a new command; the one before has ended.

        Raises:
            BoardError: the disk refuses; nothing changed.
        """
        ended = self._all()
        for lost in ended[:-MAX_ENDED]:
            if not self._teller.has(lost.id, lost):
                log.warning("an end that the broker never confirmed is not told", id=lost.id, status=lost.status)
        self._keep(asked, ended[-MAX_ENDED:])
        self._tell(asked)

    def advance(self, **changes: Any) -> A:  # noqa: ANN401 - fields of the dataclass, whose types mypy cannot name
        """Change the command at hand, durably, then tell.

        Raises:
            BoardError: the disk refuses; nothing changed.
        """
        assert self.now is not None
        changed = dataclasses.replace(self.now, **{"version": self.now.version + 1, **changes})
        self._keep(changed, self._ended)
        self._tell(changed)
        return changed

    def close(self, status: str, code: str = "", reason: str = "", result: dict[str, object] | None = None) -> None:
        """End the command at hand; raises like `advance`."""
        ended = self.advance(status=status, code=code, reason=reason[:MAX_REASON], result=result, waits_for=None)
        said = log.info if status in ("succeeded", "canceled") else log.warning
        said("update ended", id=ended.id, type=self._kind, status=status, reason=code, why=reason)

    def repeat(self, command_id: str) -> bool:
        """Publish the status of the command once more; false where it is not known here."""
        known = [one for one in self._all() if one.id == command_id]
        for one in known:
            self._tell(one)
        return bool(known)

    def publish_pending(self) -> None:
        """Publish what the broker has not confirmed."""
        self._teller.tell_new({one.id: (self._kind, one) for one in self._all()})

    def broker_lost(self) -> None:
        """The broker lost what it kept: all is told once more."""
        self._teller.broker_lost()

    def outcome(self, command_id: str) -> str:
        """What the ledger of all commands says of one; empty: nothing."""
        return self._journal.outcome(command_id) or ""

    def _all(self) -> list[A]:
        return [*self._ended, *([self.now] if self.now else [])]

    def _keep(self, asked: A, ended: list[A]) -> None:
        """Remember it, and in the same commit what the ledger has of it."""
        whole = json.dumps([dataclasses.asdict(one) for one in [*ended, asked]], allow_nan=False)
        self._journal.record(asked.id, asked.digest, asked.outcome, {self._kind: whole})
        self._ended, self.now = list(ended), asked

    def _tell(self, now: A) -> None:
        self._teller.tell(self._kind, now.id, now)
