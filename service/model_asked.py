"""Commands about models that the journal remembers: those that wait or are at work, and the latest ends."""

from __future__ import annotations

import dataclasses
import json

from policies.strict import TableError, build_known
from service.asked import Asked
from service.journal import Journal
from service.logs import logger

KEPT = "models-asked"
"""Name in the journal's memory."""

log = logger("models")


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
    try:
        tables = json.loads(journal.recall(KEPT) or "[]")
        if not isinstance(tables, list):
            raise TableError("", "must be a list")
        asked = [build_known(ModelAsked, table) for table in tables]
        return {one.id: one for one in asked}
    except (ValueError, AttributeError, TypeError) as error:  # a TableError is a ValueError
        log.warning("commands about models are forgotten, the journal has them in another form", why=str(error))
        return {}


def text(asked: dict[str, ModelAsked]) -> str:
    """What the journal keeps under `KEPT`."""
    return json.dumps([dataclasses.asdict(one) for one in asked.values()], allow_nan=False)
