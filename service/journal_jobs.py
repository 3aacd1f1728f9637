"""A job as the journal's table has it, and as docs/mqtt.md tells it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from service.job import Standing, State, wire_status


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job as journaled. Times are seconds since 1970."""

    id: str
    digest: str
    type: str
    spec: dict[str, object]
    standing: Standing
    version: int
    """Rises by one with every change."""
    plan: dict[str, object] | None
    result: dict[str, object] | None
    energy_j: float | None
    created: float
    updated: float
    status_published: bool
    """The broker confirmed this version's status."""
    until: dict[str, object] | None = None
    """What a deferred or paused job waits for, see `service.until`."""
    worked_s: float = 0.0
    """Time in which a worker of the job was at work, pauses left out, all attempts together."""

    def status(
        self, *, ts: float, clock: str, progress: float | None = None, eta_s: float | None = None
    ) -> dict[str, object]:
        """The status message of docs/mqtt.md.

        Args:
            ts: seconds since 1970.
            clock: how far `ts` can be believed.
            progress: 0..1.
            eta_s: seconds of training that are left.
        """
        standing, wire = self.standing, wire_status(self.standing.state)
        return {
            "id": self.id,
            "status": wire.status,
            "step": wire.step,
            "version": self.version,
            "attempt": standing.attempt,
            "reason_code": standing.reason_code,
            "reason": standing.reason,
            "progress": progress,
            "eta_s": eta_s,
            "until": self.until,
            "ts": ts,
            "clock": clock,
            "energy_j": self.energy_j,
            "result": self.result,
        }


def job_of(row: sqlite3.Row) -> JobRecord:
    """A row of the table `jobs`."""
    return JobRecord(
        id=row["id"],
        digest=row["digest"],
        type=row["type"],
        spec=json.loads(row["spec"]),
        standing=Standing(State(row["state"]), row["attempt"], row["reason_code"], row["reason"]),
        version=row["version"],
        plan=_load(row["plan"]),
        result=_load(row["result"]),
        energy_j=row["energy_j"],
        created=row["created"],
        updated=row["updated"],
        status_published=bool(row["status_published"]),
        until=_load(row["until"]) if "until" in row.keys() else None,  # noqa: SIM118 - `in` looks at a row's values
        worked_s=row["worked_s"] if "worked_s" in row.keys() else 0.0,  # noqa: SIM118 - an older daemon's file, peeked
    )


def dump(value: Mapping[str, object]) -> str:
    """Plain JSON values as the table keeps them."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _load(text: str | None) -> dict[str, object] | None:
    return None if text is None else dict(json.loads(text))
