"""A journal that comes out of a back-up: nothing that it knows is done once more."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from agent.errors import ArtifactError
from agent.strict_json import loads
from service.backup_format import broken
from service.commands import new_id
from service.job import Event, State, advance
from service.journal import Journal
from service.journal_file import connect, storing
from service.journal_ledger import refuse_up_to

KEPT_MARKS = (
    *("high_water", "state", "answers", "answer-results", "policy-command", "report"),
    *("alarms", "job-energy", "home-assistant", "scrub", "models-unusable"),
)
"""What the daemon remembers that is no order: orders that it had not carried out are left behind."""
CODE, REASON = "canceled", "the board was restored from a back-up"
MAX_MARK_BYTES = 4 << 20  # the longest is a report of some hundred KB
_COUNTERS = ("session", "state-version")


def settle_journal(path: Path, now: float) -> int:
    """Let no command up to `now` run, no job go on, and no counter be given twice.

    Args:
        path: of the journal; nobody else uses it.
        now: seconds since 1970.

    Returns:
        How many jobs had not ended: they are canceled now.

    Raises:
        ArtifactError: `backup-broken`: it is no journal.
        BoardError: the disk fails; it was written by a newer temperd.
    """
    try:
        with contextlib.closing(connect(path)) as database, storing(path):
            _settle(database, now)
    except sqlite3.DatabaseError as error:
        raise broken("its journal is broken") from error
    opened = Journal.open(path, now)
    if opened.quarantined:
        raise broken("its journal is broken")
    with contextlib.closing(opened.journal) as journal:
        unfinished = journal.unfinished()
        for record in unfinished:
            promoting = record.standing.state is State.PROMOTING  # that is never canceled: it ends within seconds
            event = Event.FAIL if promoting else Event.CANCEL
            journal.update(record.id, now, standing=advance(record.standing, event, CODE, REASON))
    return len(unfinished)


def _settle(database: sqlite3.Connection, now: float) -> None:
    """In one commit. No journal of ours has triggers or views: they could leave commands out of the ledger for ever."""
    if database.execute("SELECT 1 FROM sqlite_master WHERE type NOT IN ('table', 'index')").fetchone():
        raise broken("there is a program in its journal")
    database.execute("BEGIN IMMEDIATE")
    refuse_up_to(database, new_id(int(now * 1000), lambda count: b"\xff" * count))
    marks = ", ".join("?" * len(KEPT_MARKS))
    database.execute(f"DELETE FROM marks WHERE name NOT IN ({marks})", KEPT_MARKS)  # noqa: S608 - only question marks are put in
    for name, value in database.execute("SELECT name, value FROM marks").fetchall():
        if value[:1] in ("{", "[") and not _is_json(value):
            database.execute("DELETE FROM marks WHERE name = ?", (name,))
    for name in _COUNTERS:
        database.execute(
            "INSERT INTO counters (name, value) VALUES (?, ?)"
            " ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)",
            (name, int(now)),
        )
    database.execute("COMMIT")


def _is_json(text: str) -> bool:
    """Whether the daemon's readers take it; one that nests without end would end them at each start."""
    try:
        loads(text.encode(), what="mark", max_bytes=MAX_MARK_BYTES)
    except ArtifactError:
        return False
    return True
