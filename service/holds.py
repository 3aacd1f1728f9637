"""Jobs that an operator paused, over restarts, whatever the order in which requests arrive.

Requests are retained by the broker, which hands them over in any order after it lost a session: of those that pause and
resume one job the one issued last counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from policies.strict import build_known
from service.command_types import PAUSE, Command
from service.journal import Journal
from service.logs import logger

HELD = "held"
"""Name in the journal's memory."""

log = logger("jobs")


@dataclass(frozen=True, slots=True)
class _Hold:
    """The last request that was obeyed for a job."""

    held: bool
    issued_at: int
    id: str


class Holds:
    """See the module; a container of the ids of jobs that rest, and an iteration over all that were asked to.

    Args:
        journal: keeps them.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._holds = _recall(journal)

    def __iter__(self) -> Iterator[str]:
        return iter(self._holds)

    def __contains__(self, job_id: object) -> bool:
        hold = self._holds.get(job_id) if isinstance(job_id, str) else None
        return hold is not None and hold.held

    def superseded_by(self, command: Command) -> str:
        """The id of a request for the same job that was issued after `command` and is obeyed; empty: there is none."""
        last = self._holds.get(command.job)
        later = last is not None and (command.issued_at, command.id) < (last.issued_at, last.id)
        return last.id if last is not None and later else ""

    def after(self, command: Command) -> dict[str, str]:
        """What the journal is to remember for `command`, a pause or a resume; `reload` once it does."""
        hold = _Hold(command.type == PAUSE, command.issued_at, command.id)
        return {HELD: _text({**self._holds, command.job: hold})}

    def reload(self) -> None:
        """Take what the journal remembers."""
        self._holds = _recall(self._journal)

    def discard(self, job_id: str) -> None:
        """The job has ended.

        Raises:
            BoardError: the disk refuses; nothing changed.
        """
        if job_id in self._holds:
            left = {key: hold for key, hold in self._holds.items() if key != job_id}
            self._journal.remember(HELD, _text(left))
            self._holds = left


def _text(holds: dict[str, _Hold]) -> str:
    return json.dumps({job_id: asdict(hold) for job_id, hold in holds.items()})


def _recall(journal: Journal) -> dict[str, _Hold]:
    """What is kept; a list of ids is what versions wrote that did not keep the order."""
    try:
        kept = json.loads(journal.recall(HELD) or "{}")
        if isinstance(kept, list):
            return {str(job_id): _Hold(held=True, issued_at=0, id="") for job_id in kept}
        return {job_id: build_known(_Hold, table) for job_id, table in kept.items()}
    except (ValueError, AttributeError, TypeError) as error:  # a TableError is a ValueError
        log.warning("paused jobs are forgotten, the journal has them in another form", why=str(error))
        return {}
