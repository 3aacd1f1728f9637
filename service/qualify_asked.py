"""The commands `qualify` that the journal remembers: the one asked for last, and earlier ends with their results."""

from __future__ import annotations

import dataclasses
import json

from policies.strict import TableError, build_known
from service.asked import Asked
from service.journal import Journal
from service.logs import logger

LAST = "qualify"
"""Name in the journal's memory: the command asked for last."""
ENDED = "qualify-ended"
"""The same: earlier ones."""
MAX_ENDED = 8  # a run takes a minute at least and a broker confirms in seconds; a result has a few KB

log = logger("qualify")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StressAsked(Asked):
    """A command `qualify`."""

    id: str
    minutes: int


def recall(journal: Journal, name: str) -> list[StressAsked]:
    """What is kept under `name`: one command or a list. What another version wrote must not stop the daemon."""
    try:
        found = json.loads(journal.recall(name) or "[]") or []
        return [build_known(StressAsked, _table(item)) for item in (found if isinstance(found, list) else [found])]
    except ValueError as error:  # a TableError is one too
        log.warning("stress runs asked for before are forgotten, the journal has them in another form", why=str(error))
        return []


def text(asked: StressAsked | None) -> str:
    """What the journal keeps under `LAST`."""
    return json.dumps(None if asked is None else dataclasses.asdict(asked), allow_nan=False)


def texts(ended: list[StressAsked]) -> str:
    """What the journal keeps under `ENDED`."""
    return json.dumps([dataclasses.asdict(one) for one in ended], allow_nan=False)


def _table(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TableError("", "must be a table")
    return value
