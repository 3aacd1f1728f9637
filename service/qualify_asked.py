"""The commands `qualify` that the journal remembers: the one asked for last, and ends that are not confirmed yet."""

from __future__ import annotations

import dataclasses
import json

from policies.strict import TableError, build
from service.journal import Journal
from service.logs import logger

WAITING, RUNNING = "accepted", "running"
LAST = "qualify"
"""Name in the journal's memory: the command asked for last, until its end is confirmed."""
ENDED = "qualify-ended"
"""The same: earlier ones whose ends are not confirmed yet."""
MAX_ENDED = 8  # a run takes a minute at least and a broker confirms in seconds; a result has a few KB

log = logger("qualify")


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """The command, as it is kept."""

    id: str
    digest: str
    minutes: int
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


def recall(journal: Journal, name: str) -> list[Asked]:
    """What is kept under `name`: one command or a list. What another version wrote must not stop the daemon."""
    try:
        found = json.loads(journal.recall(name) or "[]") or []
        return [build(Asked, _table(item)) for item in (found if isinstance(found, list) else [found])]
    except ValueError as error:  # a TableError is one too
        log.warning("stress runs asked for before are forgotten, the journal has them in another form", why=str(error))
        return []


def text(asked: Asked | None) -> str:
    """What the journal keeps under `LAST`."""
    return json.dumps(None if asked is None else dataclasses.asdict(asked), allow_nan=False)


def texts(ended: list[Asked]) -> str:
    """What the journal keeps under `ENDED`."""
    return json.dumps([dataclasses.asdict(one) for one in ended], allow_nan=False)


def _table(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TableError("", "must be a table")
    return value
