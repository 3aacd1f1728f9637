"""What a command went through: of each of its statuses the part that tells it. Pure."""

from __future__ import annotations

import json

from service.fleet.boards import number
from service.fleet.store import Status

MAX_HISTORY = 500  # statuses of one command: a job has some twenty, one that is deferred each night some hundred
MAX_TEXT = 500  # characters of a reason, as boards cut theirs; and of a table, such as `until`
KEPT = (
    *("version", "status", "step", "attempt", "reason_code", "reason", "progress", "eta_s", "until", "ts", "clock"),
    *("energy_j", "worked_s"),
)
"""Keys of a status. A result is not among them: it may have some tens of KiB, and the newest status has it."""


def history_body(fact: Status) -> str:
    """What the history keeps of a status, as JSON text."""
    try:
        body = json.loads(fact.body)
    except (ValueError, RecursionError):  # who writes into a store has read the message; else this much is known
        body = None
    told: dict[str, object] = {"version": fact.version, "status": fact.status, "ts": fact.ts}
    for name in KEPT:
        value = body.get(name) if isinstance(body, dict) else None
        if isinstance(value, str):
            value = value[:MAX_TEXT]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            value = value if number(value) is not None else None
        elif isinstance(value, list | dict) and len(json.dumps(value)) > MAX_TEXT:
            value = None
        if value is not None:
            told.setdefault(name, value)
    return json.dumps(told, separators=(",", ":"))
