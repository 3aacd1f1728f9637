"""Commands about models that the journal remembers: those that wait or are at work, and the latest ends."""

from __future__ import annotations

import dataclasses
import json

from service.asked import Asked
from service.journal import Journal
from service.kept import recall_records

KEPT = "models-asked"
"""Name in the journal's memory."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelAsked(Asked):
    """A command `evaluate`, `promote` or `rollback`."""

    id: str
    type: str
    args: dict[str, object] = dataclasses.field(default_factory=dict)
    """Of an evaluate command."""
    before: str | None = ""
    """Hash of the model that was active when a switch was asked for; `None`: it was broken."""
    after: str = ""
    """Hash of the one that is to run; empty: the base."""
    attempt: int = 1


def recall(journal: Journal) -> dict[str, ModelAsked]:
    """What is kept, by id. What another version wrote must not stop the daemon."""
    return {one.id: one for one in recall_records(journal, KEPT, ModelAsked)}


def text(asked: dict[str, ModelAsked]) -> str:
    """What the journal keeps under `KEPT`."""
    return json.dumps([dataclasses.asdict(one) for one in asked.values()], allow_nan=False)
