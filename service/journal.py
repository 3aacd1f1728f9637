"""The daemon's memory: jobs, the ledger of commands and counters, in one SQLite file, written before each effect.

Calls are short and come from one thread. Every method either commits as a whole or changes nothing.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from agent.errors import BoardError
from service.commands import new_id
from service.job import TERMINAL, WORKING, Standing, State
from service.journal_file import BUSY_S, connect, is_corrupt, quarantine, storing
from service.journal_jobs import JobRecord, dump, job_of
from service.journal_ledger import LEDGER_KEPT, Verdict, enter, judged, refuse_up_to

__all__ = ["ENDED_AGAIN", "JOBS_KEPT", "LEDGER_KEPT", "UNTOLD_KEPT", "JobRecord", "Journal", "Opened", "Verdict"]

JOBS_KEPT = 1_000  # finished jobs with plan and result, about 20 KB each at most
UNTOLD_KEPT = 5_000  # finished jobs that no broker confirmed, as on a board that never has one: 100 MB at most
ENDED_AGAIN = 100  # of them so many are told once more to a broker that lost all: 2 MB at most, on bad networks

_REMEMBER = "INSERT INTO marks (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"


class Opened(NamedTuple):
    """An open journal, and where a broken earlier one was put aside."""

    journal: Journal
    quarantined: Path | None


class Journal:
    """An open journal. Every method raises BoardError (`no-space`, `disk`) when the disk refuses."""

    def __init__(
        self, database: sqlite3.Connection, path: Path, ledger_kept: int = LEDGER_KEPT, *, alone: bool = False
    ) -> None:
        self._db, self._path, self._ledger_kept = database, path, ledger_kept
        self._alone = alone  # nobody else writes into the file
        self._nothing: set[str] = set()
        """Questions to which the answer is none until something is written: an idle daemon asks them each second."""
        self.refusal = ""
        """Why the disk refused the latest write, `no-space` or `disk`; empty: it did not."""

    @classmethod
    def open(cls, path: Path, now: float, ledger_kept: int = LEDGER_KEPT) -> Opened:
        """Open or make the journal at `path`, readable by its owner only.

        A file that does not verify is renamed aside and a new one made. What the old ledger knew is lost, so every
        command made before `now` (seconds since 1970) then counts as a replay, and sessions and the version of the
        state go on from `now`.

        Raises:
            BoardError: no space, no permission, or written by a newer version.
        """
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            try:
                return Opened(cls(connect(path), path, ledger_kept, alone=True), None)
            except sqlite3.DatabaseError as error:
                if not is_corrupt(error):
                    raise
            aside = quarantine(path)
            journal = cls(connect(path), path, ledger_kept, alone=True)
            journal._start_after(now)
            return Opened(journal, aside)

    @classmethod
    def peek(cls, path: Path) -> Self:
        """Open for reading only, beside a running daemon.

        Raises:
            BoardError: there is no journal, or it cannot be read.
        """
        with storing(path):
            database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
            database.row_factory = sqlite3.Row
            return cls(database, path)

    def close(self) -> None:
        """Write back and release the file."""
        with storing(self._path):
            self._db.close()

    def next_session(self) -> int:
        """Count one more start of the daemon; larger than every earlier answer."""
        return self._count("session")

    def state_version(self, state: str) -> int:
        """Counts the changes of `state`, a short text: larger whenever it is another than at the last call."""
        if self.recall("state") != state:
            return self._count("state-version", {"state": state})
        with storing(self._path):
            row = self._db.execute("SELECT value FROM counters WHERE name = 'state-version'").fetchone()
            return 0 if row is None else int(row[0])

    def judge(self, command_id: str, digest: str) -> Verdict:
        """Whether a verified command is new here; `command_id` is a UUIDv7, `digest` covers its signed bytes."""
        with storing(self._path):
            return judged(self._db, command_id, digest)

    def outcome(self, command_id: str) -> str | None:
        """What was recorded for a command, or `None`."""
        with storing(self._path):
            row = self._db.execute("SELECT outcome FROM ledger WHERE id = ?", (command_id,)).fetchone()
            return None if row is None else str(row["outcome"])

    def record(self, command_id: str, digest: str, outcome: str, marks: Mapping[str, str] | None = None) -> None:
        """Enter a command and what came of it; a later outcome of the same command replaces the earlier.

        Args:
            command_id: of the command.
            digest: of its signed bytes.
            outcome: what came of it.
            marks: what is to be remembered in the same commit, see `remember`.
        """
        self.record_all([(command_id, digest, outcome)], marks)

    def record_all(self, entries: Iterable[tuple[str, str, str]], marks: Mapping[str, str] | None = None) -> None:
        """`record` of several commands in one commit."""
        with self._writing() as db:
            for command_id, digest, outcome in entries:
                enter(db, command_id, digest, outcome, self._ledger_kept)
            for name, value in (marks or {}).items():
                db.execute(_REMEMBER, (name, value))

    def remember(self, name: str, value: str) -> None:
        """Keep a small text under a name of the daemon's choice."""
        with self._writing() as db:
            db.execute(_REMEMBER, (name, value))

    def recall(self, name: str) -> str:
        """What was kept under `name`; empty when nothing was."""
        with storing(self._path):
            row = self._db.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
            return "" if row is None else str(row["value"])

    def add_job(self, job_id: str, digest: str, kind: str, spec: Mapping[str, object], now: float) -> JobRecord:
        """Enter a command and its job, RECEIVED, in one commit.

        The oldest finished jobs beyond `JOBS_KEPT` go, those whose end nobody was told beyond `UNTOLD_KEPT`.

        Args:
            job_id: the id of the command that asked for it.
            digest: of the signed bytes.
            kind: command type.
            spec: plain JSON values.
            now: seconds since 1970.

        Raises:
            ValueError: there is a job with this id.
        """
        with self._writing() as db:
            if self.job(job_id) is not None:
                raise ValueError(f"job {job_id} is already in the journal")
            enter(db, job_id, digest, "job", self._ledger_kept)
            db.execute(
                "INSERT INTO jobs (id, digest, type, spec, state, attempt, version, reason_code, reason, created,"
                " updated, status_published) VALUES (?, ?, ?, ?, ?, 1, 1, '', '', ?, ?, 0)",
                (job_id, digest, kind, dump(spec), State.RECEIVED, now, now),
            )
            for told, kept in ((1, JOBS_KEPT), (0, UNTOLD_KEPT)):
                db.execute(
                    f"DELETE FROM jobs WHERE state IN ({_marks(TERMINAL)}) AND status_published = ? AND id <"  # noqa: S608 - only question marks are put in
                    " (SELECT id FROM jobs ORDER BY id DESC LIMIT 1 OFFSET ?)",
                    (*TERMINAL, told, kept - 1),
                )
            return self._job(job_id)

    def update(
        self,
        job_id: str,
        now: float,
        *,
        standing: Standing | None = None,
        until: Mapping[str, object] | None = None,
        plan: Mapping[str, object] | None = None,
        result: Mapping[str, object] | None = None,
        energy_j: float | None = None,
        worked_s: float | None = None,
    ) -> JobRecord:
        """Change what is given, count the version up and mark the status as not yet published.

        What a job waits for belongs to its standing: `until` counts with a `standing` only, and goes with it.

        Raises:
            KeyError: no such job.
        """
        fields: dict[str, object] = {}
        if standing is not None:
            fields |= {"state": standing.state, "attempt": standing.attempt}
            fields |= {"reason_code": standing.reason_code, "reason": standing.reason}
            fields["until"] = None if until is None else dump(until)
        fields |= {key: dump(value) for key, value in (("plan", plan), ("result", result)) if value is not None}
        if energy_j is not None:
            fields["energy_j"] = energy_j
        if worked_s is not None:
            fields["worked_s"] = worked_s
        changes = "".join(f", {key} = ?" for key in fields)
        with self._writing() as db:
            db.execute(
                f"UPDATE jobs SET version = version + 1, status_published = 0, updated = ?{changes} WHERE id = ?",  # noqa: S608 - column names are literals above
                (now, *fields.values(), job_id),
            )
            return self._job(job_id)

    def mark_published(self, job_id: str, version: int) -> None:
        """The broker confirmed the status of `version`; without effect when the job changed since."""
        with self._writing() as db:
            db.execute("UPDATE jobs SET status_published = 1 WHERE id = ? AND version = ?", (job_id, version))

    def forget_published(self, since: float = 0.0) -> None:
        """Publish open jobs and the last `ENDED_AGAIN` others again: the broker lost them, or what changed `since`."""
        with self._writing() as db:
            db.execute(
                "UPDATE jobs SET status_published = 0 WHERE updated >= ?"  # noqa: S608 - only question marks are put in
                f" AND (state NOT IN ({_marks(TERMINAL)}) OR id IN"
                f" (SELECT id FROM jobs WHERE state IN ({_marks(TERMINAL)}) ORDER BY updated DESC, id DESC LIMIT ?))",
                (since, *TERMINAL, *TERMINAL, ENDED_AGAIN),
            )

    def job(self, job_id: str) -> JobRecord | None:
        """The job with this id, or `None`."""
        rows = self._jobs("WHERE id = ?", job_id)
        return rows[0] if rows else None

    def jobs(self, most: int = 100) -> list[JobRecord]:
        """The newest jobs, newest first."""
        return self._jobs("ORDER BY id DESC LIMIT ?", most)

    def unfinished(self) -> list[JobRecord]:
        """Jobs that have not ended, oldest first."""
        return self._jobs_unless_none(f"WHERE state NOT IN ({_marks(TERMINAL)}) ORDER BY id", *TERMINAL)

    def interrupted(self) -> list[JobRecord]:
        """Jobs that had a worker when the daemon went away, oldest first: each is due `Event.RESTART`."""
        return self._jobs(f"WHERE state IN ({_marks(WORKING)}) ORDER BY id", *WORKING)

    def unpublished(self) -> list[JobRecord]:
        """Jobs whose latest status the broker has not confirmed, oldest first."""
        return self._jobs_unless_none("WHERE status_published = 0 ORDER BY id")

    def _count(self, name: str, marks: Mapping[str, str] | None = None) -> int:
        """Count up; `marks` are remembered in the same commit."""
        with self._writing() as db:
            for mark, value in (marks or {}).items():
                db.execute(_REMEMBER, (mark, value))
            row = db.execute(
                "INSERT INTO counters (name, value) VALUES (?, 1)"
                " ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
                (name,),
            ).fetchone()
            return int(row[0])

    def _job(self, job_id: str) -> JobRecord:
        job = self.job(job_id)
        if job is None:
            raise KeyError(job_id)
        return job

    def _jobs_unless_none(self, rest: str, *values: object) -> list[JobRecord]:
        if rest in self._nothing:
            return []
        found = self._jobs(rest, *values)
        if self._alone and not found and not self._db.in_transaction:
            self._nothing.add(rest)
        return found

    def _jobs(self, rest: str, *values: object) -> list[JobRecord]:
        with storing(self._path):
            rows = self._db.execute(f"SELECT * FROM jobs {rest}", values)  # noqa: S608 - literals of this module
            return [job_of(row) for row in rows]

    def _start_after(self, now: float) -> None:
        with self._writing() as db:
            refuse_up_to(db, new_id(max(0, int(now * 1000)), lambda count: b"\xff" * count))
            for name in ("session", "state-version"):
                db.execute("INSERT INTO counters (name, value) VALUES (?, ?)", (name, max(0, int(now))))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with storing(self._path):
                self._nothing.clear()
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
        except BoardError as error:
            self.refusal = error.code
            raise
        self.refusal = ""


def _marks(values: frozenset[State]) -> str:
    return ", ".join("?" * len(values))
