"""The books of the running job: energy, operations, working time and pace, over all its attempts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from agent.energy import OTHER
from agent.errors import BoardError
from agent.messages import Progress
from service.energy_book import EnergyBook
from service.journal import JobRecord, Journal
from service.pace import Pace, WorkClock
from service.sample_costs import prefix_macs, step_macs
from service.statuses import Clock
from service.steering import Steering

OPERATIONS_PER_MAC = 2
REACHED = ("epoch", "epochs", "step", "steps", "samples")
BANDWIDTH_METRICS = ("required_bytes_per_s", "measured_bytes_per_s")  # of R10, as the worker found them


class JobBooks:
    """See the module.

    Args:
        journal: keeps the energy between attempts.
        steering: meters the energy.
        clock: see `Clock`.
    """

    def __init__(self, journal: Journal, steering: Steering, clock: Clock) -> None:
        self._steering, self._clock = steering, clock
        self._energies = EnergyBook(journal)
        self._work, self._pace = WorkClock(), Pace()
        self._counted: tuple[int, int] | None = None
        """Samples and reused ones whose operations count already; `None` until a resumed worker says where it is."""
        self.booked_s = 0.0
        """When the energy was last written down, by the monotonic clock."""

    def open(self, record: JobRecord) -> None:
        """A job begins or goes on."""
        self._steering.start_energy(self._energies.load(record))
        self._work, self.booked_s = WorkClock(record.worked_s), self._clock.mono()

    def attempt(self, record: JobRecord) -> None:
        """Another worker of the job starts."""
        self._counted = None if record.plan else (0, 0)
        self._pace = Pace()

    def enter(self, phase: str, *, working: bool) -> None:
        """The job does something else from now on; `phase` as `agent.energy` names it, empty for nothing."""
        self._work.turn(self._clock.mono(), on=working)
        self._steering.enter(self._clock.mono(), phase or OTHER)
        if not working:
            self._pace.rest()

    def follow(self, message: Progress, plan: Mapping[str, object]) -> None:
        """Count what the steps since the last message took and did, by the plan's cost table."""
        self._pace.step(self._clock.mono(), message.samples)
        depth = message.depth_percent
        samples, reused = self._counted or (message.samples, message.reused)
        self._counted = message.samples, message.reused
        macs = (message.samples - samples) * step_macs(plan).get(depth, 0)
        spared = (message.reused - reused) * prefix_macs(plan, depth)
        self._steering.count_operations(max(0, macs - spared) * OPERATIONS_PER_MAC)

    def keep(self, job_id: str, phase: str) -> float:
        """Write down what the job spent, for another attempt; the joules of its training."""
        self.booked_s = self._clock.mono()
        self._steering.enter(self._clock.mono(), phase or OTHER)
        self._energies.keep(job_id, self._steering.energy)
        return self._steering.joules

    def forget(self, job_id: str) -> None:
        """The job has ended for good: its record has all that is worth keeping."""
        with contextlib.suppress(BoardError):  # a few hundred bytes stay until newer jobs push them out
            self._energies.forget(job_id)

    @property
    def worked_s(self) -> float:
        """Seconds in which a worker was at work, pauses left out."""
        return self._work.seconds(self._clock.mono())

    @property
    def drawn_j(self) -> float:
        """Joules that the board drew while the job had a worker, whatever it did."""
        return self._steering.energy.spent().joules

    def eta_s(self, samples_left: int | None) -> float | None:
        """Seconds of training that are left, at the pace of late."""
        return self._pace.eta_s(samples_left)

    def told(self, progress: Progress | None) -> dict[str, object]:
        """What counts against the job's budgets, and how far it came, as JSON values.

        Joules are `None` where nothing tells the power; a job that never trained has no `reached`.
        """
        spent: dict[str, object] = {"spent": {"worked_s": self.worked_s, "energy_j": self.drawn_j or None}}
        return spent if progress is None else spent | {"reached": {name: getattr(progress, name) for name in REACHED}}

    def energy_metrics(self, samples: int, bandwidth: Mapping[str, object]) -> dict[str, object]:
        """The `energy` group of the telemetry."""
        return self._steering.energy_metrics(samples) | {name: bandwidth.get(name) for name in BANDWIDTH_METRICS}
