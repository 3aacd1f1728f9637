"""The ledger of commands: what was obeyed or refused, so that nothing is done twice. Inside the journal's commits."""

from __future__ import annotations

import sqlite3
from enum import StrEnum

LEDGER_KEPT = 10_000  # commands; years of work for one board, about 1 MB

_HIGH_WATER = "SELECT value FROM marks WHERE name = 'high_water'"
_RAISE_HIGH_WATER = (
    "INSERT INTO marks (name, value) VALUES ('high_water', ?)"
    " ON CONFLICT (name) DO UPDATE SET value = max(value, excluded.value)"
)


class Verdict(StrEnum):
    """What the ledger says about a command."""

    NEW = "new"
    REPEAT = "repeat"
    """The same command again: publish its status again, run nothing."""
    REPLAY = "replay"
    """The id was used for something else, or is older than the ledger remembers."""


def judged(db: sqlite3.Connection, command_id: str, digest: str) -> Verdict:
    """See `Journal.judge`."""
    row = db.execute("SELECT digest FROM ledger WHERE id = ?", (command_id,)).fetchone()
    if row is not None:
        return Verdict.REPEAT if row["digest"] == digest else Verdict.REPLAY
    mark = db.execute(_HIGH_WATER).fetchone()
    return Verdict.REPLAY if mark is not None and command_id <= mark["value"] else Verdict.NEW


def enter(db: sqlite3.Connection, command_id: str, digest: str, outcome: str, kept: int) -> None:
    """Enter a command, or another outcome of it; beyond `kept` the oldest go, and count as replays from then on."""
    db.execute(
        "INSERT INTO ledger (id, digest, outcome) VALUES (?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET outcome = excluded.outcome",
        (command_id, digest, outcome),
    )
    dropped = db.execute(
        "DELETE FROM ledger WHERE id < (SELECT id FROM ledger ORDER BY id DESC LIMIT 1 OFFSET ?) RETURNING id",
        (kept - 1,),
    ).fetchall()
    if dropped:
        refuse_up_to(db, max(row["id"] for row in dropped))


def refuse_up_to(db: sqlite3.Connection, command_id: str) -> None:
    """Every command that is not in the ledger and no later than this one counts as a replay."""
    db.execute(_RAISE_HIGH_WATER, (command_id,))
