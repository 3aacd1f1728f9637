"""What jobs spent so far, kept in the journal until they end."""

from __future__ import annotations

import json

from agent.energy import TRAINING, UNKNOWN, Energy, Spent, energy_table, parse_energy
from policies.strict import TableError
from service.journal import JobRecord, Journal

NAME = "job-energy"  # in the journal's memory
JOBS_KEPT = 100  # jobs that may be put aside at once; each has about 300 bytes


class EnergyBook:
    """The energy of jobs that have not ended."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def load(self, record: JobRecord) -> Energy:
        """What earlier attempts of the job spent."""
        try:
            return parse_energy(self._all()[record.id])
        except (KeyError, TableError):
            joules = record.energy_j or 0.0
            if joules <= 0:
                return Energy()
            # A journal of before has the joules alone; whether they were measured is not known.
            return Energy({TRAINING: Spent(joules)}, {UNKNOWN: joules}, modelled=True)

    def keep(self, job_id: str, energy: Energy) -> None:
        """Write down what the job spent so far."""
        others = {key: table for key, table in self._all().items() if key != job_id}
        newest = [*others.items(), (job_id, energy_table(energy))][-JOBS_KEPT:]
        self._journal.remember(NAME, json.dumps(dict(newest)))

    def forget(self, job_id: str) -> None:
        """The job has ended; its result has the energy."""
        kept = self._all()
        if kept.pop(job_id, None) is not None:
            self._journal.remember(NAME, json.dumps(kept))

    def _all(self) -> dict[str, dict[str, object]]:
        try:
            found = json.loads(self._journal.recall(NAME) or "{}")
        except ValueError:
            return {}
        tables = found.items() if isinstance(found, dict) else ()
        return {str(key): table for key, table in tables if isinstance(table, dict)}
