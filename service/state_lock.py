"""One user of a state folder at a time: the daemon, or a verb that rewrites what the daemon uses."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from agent.durable import disk_errors
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
    path = state / LOCK_FILE
    with disk_errors(path):
        stream = path.open("w", encoding="ascii")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BoardError("another temperd uses this state folder", where=str(state), fix=fix) from error
        yield
