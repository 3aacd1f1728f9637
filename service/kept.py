"""What the journal keeps as JSON, read so that what another version wrote, or nobody did, stops no daemon."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from policies.strict import build_known
from service.journal import Journal
from service.logs import logger

T = TypeVar("T")

log = logger("journal")


def recall_table(journal: Journal, name: str) -> dict[str, Any]:
    """The JSON object that is kept under `name`; empty where none is.

    Raises:
        BoardError: the disk fails.
    """
    found = _read(journal, name, "{}")
    return found if isinstance(found, dict) else {}


def recall_names(journal: Journal, name: str) -> set[str]:
    """The texts of a JSON list that is kept under `name`; raises like `recall_table`."""
    found = _read(journal, name, "[]")
    return {one for one in found if isinstance(one, str)} if isinstance(found, list) else set()


def recall_records(journal: Journal, name: str, cls: type[T]) -> list[T]:
    """The records `cls`, one or a list of them, that are kept under `name`: keys of a later version are passed over.

    Raises:
        BoardError: the disk fails.
    """
    try:
        found = json.loads(journal.recall(name) or "[]") or []
        return [build_known(cls, table) for table in (found if isinstance(found, list) else [found])]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:  # a TableError is a ValueError
        log.warning("it is forgotten, the journal has it in another form", name=name, why=str(error))
        return []


def _read(journal: Journal, name: str, nothing: str) -> object:
    try:
        found: object = json.loads(journal.recall(name) or nothing)
    except (ValueError, RecursionError):
        found = None
    if type(found) is not type(json.loads(nothing)):
        log.warning("it is forgotten, the journal has it in another form", name=name)
    return found
