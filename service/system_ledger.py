"""The command `update-system` as the journal remembers it: across the restart of the board it is all that is known."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from policies.strict import TableError, build, limits
from service.asked import DEFERRED, RUNNING, Asked
from service.asked_told import Teller
from service.journal import Journal
from service.logs import logger
from service.statuses import MAX_REASON, Statuses

UPDATE_SYSTEM = "update-system"
KEPT = "system-update"
"""Name in the journal's memory: the command asked for last, and earlier ends."""
MAX_ENDED = 8  # a board gets a few images a year; a broker confirms an end in seconds
LEAST_WINDOW_S, MOST_WINDOW_S, WINDOW_S = 10.0, 86_400.0, 600.0

log = logger("system")


@dataclass(frozen=True, slots=True)
class SystemArguments:
    """What an update-system command asks for."""

    name: str = field(metadata=limits(longest=64))
    """Of the image."""
    version: str = field(default="latest", metadata=limits(longest=64))
    window_s: float = field(default=WINDOW_S, metadata=limits(LEAST_WINDOW_S, MOST_WINDOW_S))
    """How long the new system must be healthy before it stays."""
    allow_downgrade: bool = False
    """Take one that is older than what runs, as far as its security floor allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemAsked(Asked):
    """A command `update-system`.

    Attributes:
        args: see `SystemArguments`.
        stage: one of `service.asked.UPDATE_STEPS`; empty before the first.
        waits_for: what releases it, see `service.until`.
        attempt: how often pulling and installing began.
        retry_s: when a deferred one is tried again, seconds since 1970; 0: not by itself.
        found: version of the image; `latest` is none.
        length: of the bundle in bytes.
        slot_before: bootname of the slot that ran when the bundle was installed.
        slot_after: bootname of the slot on trial.
        boot_id: the boot that is to end: the one before the trial, or that of the trial once there is a verdict.
        left_ts: when the board was told to restart, seconds since 1970; 0: not known.
        starts: of the daemon in the trial.
        baseline: what the system before measured, see `policies.trial_health`.
        verdict: code of what is wrong with the new system, which is left; empty: nothing.
        why: the same for people.
        downtime_s: from the order to restart until the daemon was there again; `None`: not known.
    """

    id: str
    args: dict[str, object] = field(default_factory=dict)
    stage: str = ""
    waits_for: dict[str, object] | None = None
    attempt: int = 0
    retry_s: float = 0.0
    found: str = ""
    length: int = 0
    slot_before: str = ""
    slot_after: str = ""
    boot_id: str = ""
    left_ts: float = 0.0
    starts: int = 0
    baseline: dict[str, object] = field(default_factory=dict)
    verdict: str = ""
    why: str = ""
    downtime_s: float | None = None

    @property
    def wanted(self) -> SystemArguments:
        """The arguments, which were checked when the command came."""
        return build(SystemArguments, self.args)

    @property
    def step(self) -> str:
        """As the status has it."""
        return self.stage if self.status == RUNNING else ""

    @property
    def until(self) -> dict[str, object] | None:
        """As the status has it."""
        return self.waits_for if self.status == DEFERRED else None


class SystemLedger:
    """The command at hand and earlier ends: kept first, then told.

    Args:
        journal: remembers them.
        statuses: publishes.

    Attributes:
        now: the command asked for last; `None`: none ever was.
    """

    def __init__(self, journal: Journal, statuses: Statuses) -> None:
        self._journal, self._teller = journal, Teller(statuses)
        kept = _recall(journal)
        self._ended, self.now = {one.id: one for one in kept[:-1]}, kept[-1] if kept else None

    @property
    def open(self) -> SystemAsked | None:
        """The command at hand."""
        return None if self.now is None or self.now.ended else self.now

    def begin(self, asked: SystemAsked) -> None:
        """Take a new command; the one before has ended.

        Raises:
            BoardError: the disk refuses; nothing changed.
        """
        ended = [*self._ended.values(), *([self.now] if self.now else [])]
        for lost in ended[:-MAX_ENDED]:
            if not self._teller.has(lost.id, lost):
                log.warning("an end that the broker never confirmed is not told", id=lost.id, status=lost.status)
        self._keep(asked, ended[-MAX_ENDED:])
        self._tell(asked)

    def advance(self, **changes: Any) -> SystemAsked:  # noqa: ANN401 - fields of SystemAsked, whose types mypy cannot name
        """Change the command at hand, durably, then tell.

        Raises:
            BoardError: the disk refuses; nothing changed.
        """
        assert self.now is not None
        changed = dataclasses.replace(self.now, **{"version": self.now.version + 1, **changes})
        self._keep(changed, list(self._ended.values()))
        self._tell(changed)
        return changed

    def note(self, **changes: Any) -> SystemAsked:  # noqa: ANN401 - see `advance`
        """Change what only the board needs to know; raises like `advance`."""
        assert self.now is not None
        changed = dataclasses.replace(self.now, **changes)
        self._keep(changed, list(self._ended.values()))
        return changed

    def close(self, status: str, code: str = "", reason: str = "", result: dict[str, object] | None = None) -> None:
        """End the command at hand; raises like `advance`."""
        ended = self.advance(status=status, code=code, reason=reason[:MAX_REASON], result=result, waits_for=None)
        said = log.info if status in ("succeeded", "canceled") else log.warning
        said("update of the system ended", id=ended.id, status=status, reason=code, why=reason)

    def repeat(self, command_id: str) -> bool:
        """Publish the status of the command once more; false where it is not known here."""
        known = [one for one in self._all() if one.id == command_id]
        for one in known:
            self._tell(one)
        return bool(known)

    def publish_pending(self) -> None:
        """Publish what the broker has not confirmed."""
        self._teller.tell_new({one.id: (UPDATE_SYSTEM, one) for one in self._all()})

    def broker_lost(self) -> None:
        """The broker lost what it kept: all is told once more."""
        self._teller.broker_lost()

    def outcome(self, command_id: str) -> str:
        """What the ledger of all commands says of one; empty: nothing."""
        return self._journal.outcome(command_id) or ""

    def _all(self) -> list[SystemAsked]:
        return [*self._ended.values(), *([self.now] if self.now else [])]

    def _keep(self, asked: SystemAsked, ended: list[SystemAsked]) -> None:
        """Remember it, and in the same commit what the ledger has of it."""
        whole = json.dumps([dataclasses.asdict(one) for one in [*ended, asked]], allow_nan=False)
        self._journal.record(asked.id, asked.digest, asked.outcome, {KEPT: whole})
        self._ended, self.now = {one.id: one for one in ended}, asked

    def _tell(self, now: SystemAsked) -> None:
        self._teller.tell(UPDATE_SYSTEM, now.id, now)


def _recall(journal: Journal) -> list[SystemAsked]:
    """What is kept, the latest last. Keys of a later version are left out: after a rollback it has been here."""
    known = {item.name for item in dataclasses.fields(SystemAsked)}
    try:
        tables = json.loads(journal.recall(KEPT) or "[]")
        if not isinstance(tables, list):
            raise TableError("", "must be a list")
        return [build(SystemAsked, {key: table[key] for key in table if key in known}) for table in tables]
    except (ValueError, AttributeError, TypeError) as error:  # a TableError is a ValueError
        log.warning("updates of the system are forgotten, the journal has them in another form", why=str(error))
        return []
