"""The last part of a restore, which the daemon does at its start where it was cut short; see `service.restore`."""

from __future__ import annotations

import shutil
from pathlib import Path

from agent.durable import disk_errors, read_bounded, sync_folder
from agent.errors import ArtifactError
from agent.strict_json import loads

FOLDER, DECIDED = "restoring", "decided.json"
ASIDE = "before-restore-{}"
MAX_DECIDED_BYTES = 4096  # a dozen names
MAX_ASIDE = 1000  # restores of one board
KEYS = "keys"
MOVED = (
    *("journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm", "store"),
    *("board.json", "policy-command.toml", "policy.toml", "parity"),
)
"""What is set aside in any case; the keys are where the back-up brings others."""


def finish(state: Path) -> bool:
    """End a restore that was cut short: to its end where it was decided, else as if it had not begun.

    For whoever holds the lock of the state folder.

    Returns:
        Whether one was decided.

    Raises:
        ArtifactError, BoardError: what was decided cannot be read; the disk fails.
    """
    folder = state / FOLDER
    if not folder.exists():
        return False
    with disk_errors(folder):
        try:
            data = read_bounded(folder / DECIDED, MAX_DECIDED_BYTES)
        except FileNotFoundError:
            shutil.rmtree(folder)
            return False
        aside, names = _decided(data, folder / DECIDED)
        _move(state, folder / "new", state / aside, names)
        (folder / DECIDED).unlink()
        sync_folder(folder)
        shutil.rmtree(folder)
        sync_folder(state)
    return True


def _decided(data: bytes, path: Path) -> tuple[str, list[str]]:
    """Where the state before goes, and what comes in its place."""
    table = loads(data, what=str(path), max_bytes=MAX_DECIDED_BYTES)
    match table:
        case {"aside": str(aside), "names": list(names)} if set(names) <= {*MOVED, KEYS}:
            if aside in [ASIDE.format(number) for number in range(1, MAX_ASIDE + 1)]:
                return aside, names
    raise ArtifactError("what was decided of a restore cannot be read", where=str(path))


def _move(state: Path, new: Path, aside: Path, names: list[str]) -> None:
    """Each name: the old one aside, the new one in; doing it again after a crash goes on where it was."""
    aside.mkdir(mode=0o700, exist_ok=True)
    for name in dict.fromkeys([*MOVED, *names]):
        fresh, there = new / name, state / name
        if there.exists() and (fresh.exists() or name not in names):  # else what is there is the new one
            there.rename(aside / name)
            sync_folder(aside)
        if fresh.exists():
            fresh.rename(there)
    if not any(aside.iterdir()):
        aside.rmdir()
    sync_folder(state)
