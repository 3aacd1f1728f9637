"""What a laptop remembers of its fleet, in one SQLite file: boards seen, groups, roll-outs with every command's bytes.

A commit survives power loss. Roll-outs are journaled ahead of every publication: after a crash the same bytes go out
again, and boards that had them answer with the status they have.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from agent.durable import make_folder
from agent.errors import BoardError, SpecError
from service.config import NAME
from service.sqlite_seam import reason_of, transaction

SCHEMA_VERSION = 1
BUSY_S = 5.0  # another `temperd fleet` may be writing
MAX_GROUPS = 1000  # of one tenant
MAX_MEMBERS = 20_000  # of one group, as many as one tenant's boards
MAX_REMEMBERED = 40_000  # boards of one tenant: twice what a broker shows, and a broker may invent others each time
MAX_OVER = 100  # roll-outs of one tenant that are over: each keeps a command for every board
MAX_VIEW_BYTES = 16 << 10  # of one board; a summary has about 1 KB
FILE_NAME = "fleet.sqlite"
RUNNING, STOPPED, ABORTED, ENDED = "running", "stopped", "aborted", "done"
"""States of a roll-out."""

_SCHEMA = """
CREATE TABLE boards (
    tenant TEXT NOT NULL, board TEXT NOT NULL, seen REAL NOT NULL, view TEXT NOT NULL,
    PRIMARY KEY (tenant, board)
) STRICT, WITHOUT ROWID;
CREATE TABLE members (
    tenant TEXT NOT NULL, name TEXT NOT NULL, board TEXT NOT NULL,
    PRIMARY KEY (tenant, name, board)
) STRICT, WITHOUT ROWID;
CREATE TABLE roll_outs (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, type TEXT NOT NULL, terms TEXT NOT NULL,
    created REAL NOT NULL, state TEXT NOT NULL, why TEXT NOT NULL
) STRICT;
CREATE TABLE commands (
    roll_out TEXT NOT NULL REFERENCES roll_outs (id), place INTEGER NOT NULL, board TEXT NOT NULL,
    id TEXT NOT NULL, envelope BLOB NOT NULL, not_after INTEGER NOT NULL, sent INTEGER NOT NULL,
    outcome TEXT NOT NULL, status TEXT NOT NULL, cancel_id TEXT NOT NULL, cancel BLOB NOT NULL,
    PRIMARY KEY (roll_out, place)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX commands_by_board ON commands (roll_out, board);
"""
_COUNTED = "CREATE INDEX IF NOT EXISTS commands_by_outcome ON commands (roll_out, outcome)"
"""Made in files of older versions too, which may go on using them: counts without reading every envelope."""
_FORGET = """
DELETE FROM boards WHERE tenant = :tenant AND board IN (
    SELECT b.board FROM boards b WHERE b.tenant = :tenant
    ORDER BY b.board IN (SELECT board FROM members WHERE tenant = :tenant) DESC, b.seen DESC, b.board
    LIMIT -1 OFFSET :most)
"""

_OVER = """
SELECT id FROM roll_outs WHERE tenant = :tenant AND state IN ('done', 'aborted') ORDER BY id DESC LIMIT -1 OFFSET :most
"""


@dataclass(frozen=True, slots=True)
class RollOut:
    """A roll-out as it was asked for, and where it stands."""

    id: str
    tenant: str
    type: str
    terms: dict[str, object]
    """What is asked of each board, and how the roll-out goes: see `roll_out.Terms`."""
    created: float
    state: str
    """`running`, `stopped`, `aborted` or `done`."""
    why: str


@dataclass(frozen=True, slots=True)
class Sent:
    """The command of a roll-out for one board. Without an `id` it was not made yet."""

    place: int
    """In the order of the roll-out; canaries come first."""
    board: str
    id: str = ""
    envelope: bytes = b""
    not_after: int = 0
    sent: bool = False
    """The broker confirmed it once."""
    outcome: str = "waiting"
    status: dict[str, object] | None = None
    """The latest that the board said."""
    cancel_id: str = ""
    cancel: bytes = b""


def state_path(named: str, environ: Mapping[str, str]) -> Path:
    """The file that was named, else `temperd/fleet.sqlite` in XDG_STATE_HOME or ~/.local/state."""
    if named:
        return Path(named)
    base = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME", "/"), ".local", "state")
    return Path(base, "temperd", FILE_NAME)


class FleetState:
    """The file, open. One thread; several processes may have it open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        make_folder(path.parent)
        with self._using():
            self._database = sqlite3.connect(path, isolation_level=None, timeout=BUSY_S)
            try:
                self._set_up()
            except BaseException:
                self._database.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._database.close()

    def _set_up(self) -> None:
        self._database.row_factory = sqlite3.Row
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")  # a commit survives power loss
        version = int(self._database.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            fix = "Install that version, or name another file"
            raise BoardError("the fleet's state was written by a newer temperd", where=str(self.path), fix=fix)
        if version == 0:
            with transaction(self._database):
                if not self._database.execute("PRAGMA user_version").fetchone()[0]:
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        self._database.execute(statement)
                    self._database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._database.execute(_COUNTED)

    # --- boards ------------------------------------------------------------------------------------------------------

    def remember_boards(self, tenant: str, views: Iterable[Mapping[str, object]]) -> None:
        """Keep what is known of boards, each as `boards.summary` gives it.

        Beyond `MAX_REMEMBERED` those go that are in no group and were not seen for longest.
        """
        rows = [(tenant, view["board"], view.get("last_seen") or 0.0, json.dumps(view)) for view in views]
        rows = [row for row in rows if len(str(row[3])) <= MAX_VIEW_BYTES]
        with self._using(), transaction(self._database):
            self._database.executemany("INSERT OR REPLACE INTO boards VALUES (?, ?, ?, ?)", rows)
            self._database.execute(_FORGET, {"tenant": tenant, "most": MAX_REMEMBERED})

    def known_boards(self, tenant: str) -> dict[str, dict[str, object]]:
        """The last view of every board ever seen, by name."""
        with self._using():
            found = self._database.execute("SELECT board, view FROM boards WHERE tenant = ?", (tenant,)).fetchall()
        return {row["board"]: json.loads(row["view"]) for row in found}

    def forget_board(self, tenant: str, board: str) -> bool:
        """Drop a board, for one that was taken out of service, from all groups too; whether it was known."""
        with self._using(), transaction(self._database):
            self._database.execute("DELETE FROM members WHERE tenant = ? AND board = ?", (tenant, board))
            done = self._database.execute("DELETE FROM boards WHERE tenant = ? AND board = ?", (tenant, board))
        return done.rowcount > 0

    # --- groups ------------------------------------------------------------------------------------------------------

    def add_members(self, tenant: str, group: str, boards: Sequence[str]) -> int:
        """Put boards into a group, which is made when it is missing; how many were not in it before.

        Raises:
            SpecError: a name that is none, or too many groups or members.
        """
        for name in (group, *boards):
            check_name(name)
        with self._using(), transaction(self._database):
            groups = self.groups(tenant)
            if group not in groups and len(groups) >= MAX_GROUPS:
                raise SpecError(f"there are {MAX_GROUPS} groups already", fix="Remove one")
            before = len(groups.get(group, ()))
            if len({*groups.get(group, ()), *boards}) > MAX_MEMBERS:
                raise SpecError(f"a group has at most {MAX_MEMBERS} boards", where=group)
            rows = [(tenant, group, board) for board in boards]
            self._database.executemany("INSERT OR IGNORE INTO members VALUES (?, ?, ?)", rows)
            return len(self.groups(tenant).get(group, ())) - before

    def remove_members(self, tenant: str, group: str, boards: Sequence[str]) -> int:
        """Take boards out of a group, all of them when none is named; how many went."""
        with self._using(), transaction(self._database):
            chosen = boards or self.groups(tenant).get(group, ())
            rows = [(tenant, group, board) for board in chosen]
            done = self._database.executemany("DELETE FROM members WHERE tenant = ? AND name = ? AND board = ?", rows)
            return done.rowcount

    def groups(self, tenant: str) -> dict[str, tuple[str, ...]]:
        """Members by group, both sorted."""
        with self._using():
            query = "SELECT name, board FROM members WHERE tenant = ? ORDER BY name, board"
            found = self._database.execute(query, (tenant,)).fetchall()
        groups: dict[str, tuple[str, ...]] = {}
        members: dict[str, list[str]] = {}
        for row in found:
            members.setdefault(row["name"], []).append(row["board"])
        groups.update({name: tuple(boards) for name, boards in members.items()})
        return groups

    def members(self, tenant: str, group: str) -> tuple[str, ...]:
        """The boards of a group.

        Raises:
            SpecError: there is no such group.
        """
        found = self.groups(tenant).get(group)
        if not found:
            raise SpecError(f"no group is called {group[:80]!r}", fix="Make it: temperd fleet group add GROUP BOARD...")
        return found

    # --- roll-outs ---------------------------------------------------------------------------------------------------

    def begin(self, roll_out: RollOut, boards: Sequence[str]) -> None:
        """Journal a roll-out over boards, in its order, before anything is sent. The oldest that are over go."""
        row = (
            *(roll_out.id, roll_out.tenant, roll_out.type, json.dumps(roll_out.terms)),
            *(roll_out.created, roll_out.state, roll_out.why),
        )
        with self._using(), transaction(self._database):
            self._database.execute("INSERT INTO roll_outs VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self._database.executemany(
                "INSERT INTO commands VALUES (?, ?, ?, '', x'', 0, 0, 'waiting', 'null', '', x'')",
                [(roll_out.id, place, board) for place, board in enumerate(boards)],
            )
            over = self._database.execute(_OVER, {"tenant": roll_out.tenant, "most": MAX_OVER}).fetchall()
            self._database.executemany("DELETE FROM commands WHERE roll_out = ?", map(tuple, over))
            self._database.executemany("DELETE FROM roll_outs WHERE id = ?", map(tuple, over))

    def roll_out(self, wanted: str) -> RollOut:
        """A roll-out by its id.

        Raises:
            SpecError: there is none.
        """
        with self._using():
            row = self._database.execute("SELECT * FROM roll_outs WHERE id = ?", (wanted,)).fetchone()
        if row is None:
            raise SpecError(f"no roll-out has the id {wanted[:80]!r} in this state file", where=str(self.path))
        return RollOut(**{**dict(row), "terms": json.loads(row["terms"])})

    def has_ended(self, wanted: str) -> bool:
        """Whether a roll-out never sends again: done, aborted, or never begun."""
        with self._using():
            row = self._database.execute("SELECT state FROM roll_outs WHERE id = ?", (wanted,)).fetchone()
        return row is None or row["state"] in ("done", "aborted")

    def roll_outs(self, tenant: str) -> list[RollOut]:
        """All of a tenant, the newest first."""
        with self._using():
            query = "SELECT id FROM roll_outs WHERE tenant = ? ORDER BY id DESC"
            found = self._database.execute(query, (tenant,)).fetchall()
        return [self.roll_out(row["id"]) for row in found]

    def stand(self, roll_out: str, state: str, why: str = "", terms: Mapping[str, object] | None = None) -> None:
        """Journal where a roll-out stands; `terms` replace those it had."""
        with self._using(), transaction(self._database):
            self._database.execute("UPDATE roll_outs SET state = ?, why = ? WHERE id = ?", (state, why, roll_out))
            if terms is not None:
                self._database.execute("UPDATE roll_outs SET terms = ? WHERE id = ?", (json.dumps(terms), roll_out))

    def commands(self, roll_out: str) -> list[Sent]:
        """Its commands in order."""
        names = ", ".join(Sent.__slots__)
        with self._using():
            query = f"SELECT {names} FROM commands WHERE roll_out = ? ORDER BY place"  # noqa: S608 - our own names
            found = self._database.execute(query, (roll_out,)).fetchall()
        return [Sent(**{**dict(row), "sent": bool(row["sent"]), "status": json.loads(row["status"])}) for row in found]

    def write(self, roll_out: str, commands: Iterable[Sent]) -> None:
        """Journal commands as they are now, all or none."""
        names = [name for name in Sent.__slots__ if name not in ("place", "board")]
        query = f"UPDATE commands SET {', '.join(f'{name} = ?' for name in names)} WHERE roll_out = ? AND place = ?"  # noqa: S608 - our own names
        rows = [(*(_column(getattr(command, name)) for name in names), roll_out, command.place) for command in commands]
        with self._using(), transaction(self._database):
            self._database.executemany(query, rows)

    def counts(self, roll_out: str, first: int = 0) -> tuple[dict[str, int], dict[str, int]]:
        """Boards by outcome: of the `first` places, and of the rest."""
        with self._using():
            query = "SELECT place >= ?, outcome, count(*) FROM commands WHERE roll_out = ? GROUP BY 1, 2"
            found = self._database.execute(query, (first, roll_out)).fetchall()
        counted: tuple[dict[str, int], dict[str, int]] = ({}, {})
        for later, outcome, count in found:
            counted[later][outcome] = count
        return counted

    def stood(
        self, roll_out: str, outcomes: Sequence[str] = (), search: str = "", *, limit: int = -1, offset: int = 0
    ) -> tuple[list[Sent], int]:
        """Some of its commands in order, without their bytes, and how many fit in all.

        Args:
            roll_out: whose.
            outcomes: only these; empty: any.
            search: part of the board's name.
            limit: at most so many; -1: all.
            offset: how many to pass over.
        """
        names = [name for name in Sent.__slots__ if name not in ("envelope", "cancel")]
        wanted = [("roll_out = ?", roll_out)]
        if search:
            wanted.append(("instr(board, ?) > 0", search))
        where = " AND ".join(condition for condition, _ in wanted)
        if outcomes:
            where += f" AND outcome IN ({', '.join('?' * len(outcomes))})"
        values = (*(value for _, value in wanted), *outcomes)
        with self._using():
            query = f"SELECT {', '.join(names)} FROM commands WHERE {where} ORDER BY place LIMIT ? OFFSET ?"  # noqa: S608 - our own names
            found = self._database.execute(query, (*values, limit, offset)).fetchall()
            total = self._database.execute(f"SELECT count(*) FROM commands WHERE {where}", values).fetchone()[0]  # noqa: S608 - same
        rows = [{**dict(row), "sent": bool(row["sent"]), "status": json.loads(row["status"])} for row in found]
        return [Sent(**row) for row in rows], int(total)

    # --- the seam ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _using(self) -> Iterator[None]:
        """Where SQLite's errors become ours."""
        try:
            yield
        except sqlite3.Error as error:
            reason = reason_of(error)
            fix = "Free space" if reason == "no-space" else "Name another file with --state, or move this one away"
            what = f"the fleet's state cannot be used: {error}"
            raise BoardError(what, where=str(self.path), reason=reason, fix=fix) from error


def _column(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict) or value is None else value


def check_name(name: str) -> str:
    """The name of a board or group, if it is one.

    Raises:
        SpecError: it is none.
    """
    if not NAME.fullmatch(name):
        raise SpecError(f"{name[:80]!r} is no name: 1 to 63 of a-z, 0-9 and dash")
    return name
