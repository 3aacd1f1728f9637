"""Who runs a roll-out: one process at a time, which holds a lock file beside the state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from agent.durable import only_holder
from agent.errors import BoardError
from service.fleet.state import FleetState

BUSY = "busy"


@contextlib.contextmanager
def held(state: FleetState, roll_out_id: str) -> Iterator[None]:
    """Hold a roll-out: two processes would send each its own commands. The lock file goes with what has ended.

    Raises:
        BoardError: `busy`, another process runs it; `disk`.
    """
    what, fix = "another temperd runs this roll-out", "Wait: temperd fleet wait --roll-out ID"
    path = lock_path(state.path, roll_out_id)
    with only_holder(path, BoardError(what, where=roll_out_id, fix=fix, reason=BUSY)):
        try:
            yield
        finally:
            if state.has_ended(roll_out_id):
                path.unlink(missing_ok=True)


def is_held(state: FleetState, roll_out_id: str) -> bool:
    """Whether a process runs it, as far as the lock file can be asked."""
    try:
        with held(state, roll_out_id):
            return False
    except BoardError as error:
        return error.code == BUSY


def lock_path(state: Path, roll_out_id: str) -> Path:
    """The lock file of a roll-out, beside the state."""
    return state.with_name(f"{state.name}.{roll_out_id}.lock")
