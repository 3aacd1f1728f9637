"""One user of a state folder at a time: the daemon, or a verb that rewrites what the daemon uses."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from agent.durable import only_holder
from agent.errors import BoardError

LOCK_FILE = "lock"


@contextlib.contextmanager
def state_lock(state: Path, fix: str) -> Iterator[None]:
    """Hold the lock of the state folder.

    Args:
        state: the folder.
        fix: what to do where somebody else holds it.

    Raises:
        BoardError: somebody else holds it, or the disk fails.
    """
    taken = BoardError("another temperd uses this state folder", where=str(state), fix=fix)
    with only_holder(state / LOCK_FILE, taken):
        yield
