"""The commands `qualify` that the journal remembers: the one asked for last, and earlier ends with their results."""

from __future__ import annotations

import dataclasses
import json

from service.asked import Asked
from service.journal import Journal
from service.kept import recall_records

LAST = "qualify"
"""Name in the journal's memory: the command asked for last."""
ENDED = "qualify-ended"
"""The same: earlier ones."""
MAX_ENDED = 8  # a run takes a minute at least and a broker confirms in seconds; a result has a few KB


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StressAsked(Asked):
    """A command `qualify`."""

    id: str
    minutes: int


def recall(journal: Journal, name: str) -> list[StressAsked]:
    """What is kept under `name`: one command or a list. What another version wrote must not stop the daemon."""
    return recall_records(journal, name, StressAsked)


def text(asked: StressAsked | None) -> str:
    """What the journal keeps under `LAST`."""
    return json.dumps(None if asked is None else dataclasses.asdict(asked), allow_nan=False)


def texts(ended: list[StressAsked]) -> str:
    """What the journal keeps under `ENDED`."""
    return json.dumps([dataclasses.asdict(one) for one in ended], allow_nan=False)
