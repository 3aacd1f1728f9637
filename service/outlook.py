"""What lies ahead of the governor: what a sample costs at each depth, how much of the job is left, the hour."""

from __future__ import annotations

from collections.abc import Mapping

from agent.messages import Progress
from policies.outlook import Outlook
from policies.reading import Reading
from service.journal import JobRecord, Journal
from service.sample_costs import Cost, RememberedCosts, StepTimes, depth_costs, step_macs
from service.statuses import Clock

ABSURDLY_LATE_S = 31 * 86_400.0  # a job lives at most as long: it was accepted while the clock was not set
DUES = ("deadline_s", "most_wait_s")  # bounds that count from a job's acceptance
HIGHER_IS_BETTER = ("accuracy", "auc")  # as in agent.evaluate, which loads NumPy


class Outlooks:
    """Follows one job after the other.

    Args:
        journal: keeps measured costs beyond a job.
        clock: see `Clock`.
    """

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._remembered, self._clock = RememberedCosts(journal), clock
        self._dues: dict[tuple[str, str], float] = {}
        self._accepted: set[str] = set()
        self.begin(None)

    def begin(self, record: JobRecord | None) -> None:
        """Follow `record` from here; nothing where it is `None`.

        How much is left of a job that was planned before is not known until its worker says where it goes on.
        """
        self._record = record
        self._goes_on = record is not None and record.plan is not None
        self._steps = StepTimes()
        self._samples_left: int | None = None
        self._loss: float | None = None
        self._score: float | None = None
        self._samples = 0
        self._kept: dict[int, Cost] = {}
        self._plan: Mapping[str, object] = {}
        if record is not None:
            self.planned(record)

    def planned(self, record: JobRecord) -> None:
        """The job has a plan, or another one."""
        self._record = record
        plan = (record.plan or {}).get("plan")
        self._plan = plan if isinstance(plan, dict) else {}
        self._kept = self._remembered.get(self._key()) if self._plan else {}
        if not self._goes_on:
            self._samples_left = self._whole(0, 0)

    def follow(self, message: Progress, reading: Reading) -> None:
        """A step or an epoch was told, under the clock of `reading`."""
        self._samples, self._samples_left = message.samples, self._whole(message.epoch, message.step)
        if message.score is not None:
            self._score = message.score if message.metric in HIGHER_IS_BETTER else -message.score
        if message.step_ms > 0:
            self._loss = message.loss
        self._steps.add(message, self._number("batch"), reading)

    def outlook(self) -> Outlook:
        """As the governor is told it now; without a job only the hour."""
        minute = self._clock.hour().minute_of_day
        if self._record is None:
            return Outlook(minute_of_day=minute)
        depth = self._number("depth_percent")
        measured = self._kept | self._steps.costs()
        return Outlook(
            plan_depth_percent=depth,
            costs=depth_costs(step_macs(self._plan), depth, measured, self._number("micro_batch")),
            samples_left=self._samples_left,
            samples_done=self._samples,
            loss=self._loss,
            score=self._score,
            deadline_mono_s=self.deadline_mono_s(self._record),
            minute_of_day=minute,
        )

    @property
    def samples_left(self) -> int | None:
        """Training samples to the end of the job that is followed; `None` where that is not known."""
        return self._samples_left

    def deadline_mono_s(self, record: JobRecord) -> float | None:
        """Monotonic time by which the job should be done; `None` without a deadline."""
        return self.due_mono_s(record, "deadline_s")

    def due_mono_s(self, record: JobRecord, name: str) -> float | None:
        """Monotonic time at which the seconds that the job's spec has under `name` are over; `None` where it has none.

        They count from the acceptance: by the monotonic clock in the life of the daemon that accepted the job, after a
        restart by the wall clock. While that cannot be trusted, or where it was not set at the acceptance, they count
        from the first look. A board without a clock of its own learns the time some seconds after its start: a
        deadline found by the wall clock may come nearer then, and never goes further away. A clock that was set back
        never gives more than the whole.
        """
        asked, key = record.spec.get(name, 0.0), (record.id, name)
        if not isinstance(asked, int | float) or asked <= 0:
            return None
        if record.id not in self._accepted or key not in self._dues:
            passed = self._clock.now() - record.created if self._clock.synchronised() else 0.0
            if record.id in self._accepted or passed > asked + ABSURDLY_LATE_S:
                passed = 0.0
            due = self._clock.mono() + asked - max(0.0, passed)
            self._dues[key] = min(due, self._dues.get(key, due))
        return self._dues[key]

    def accepted(self, record: JobRecord) -> None:
        """The job was accepted just now, so what is due of it needs no wall clock."""
        self._accepted.add(record.id)
        for name in DUES:
            self.due_mono_s(record, name)

    def deadline_told(self, record: JobRecord) -> dict[str, object] | None:
        """Whether the deadline is met as of now, as JSON values; `None` without one."""
        due = self.deadline_mono_s(record)
        if due is None:
            return None
        left = due - self._clock.mono()
        return {"deadline_s": record.spec["deadline_s"], "left_s": left, "met": left >= 0}

    def end(self) -> None:
        """The job is over for now: what was measured is kept for the next one with this model and these settings.

        Raises:
            BoardError: the journal cannot be written; the costs are lost, nothing else.
        """
        costs, key = self._steps.usual(), self._key()
        self.begin(None)
        if key and costs:
            self._remembered.keep(key, costs)

    def forget(self, job_id: str) -> None:
        """The job has ended for good."""
        for name in DUES:
            self._dues.pop((job_id, name), None)
        self._accepted.discard(job_id)

    def costs_told(self) -> list[dict[str, object]]:
        """The measured costs as JSON values."""
        return self._steps.told()

    def _whole(self, epoch: int, step: int) -> int | None:
        """Samples from there to the end of the job."""
        epochs = self._record.spec.get("epochs") if self._record else None
        steps, batch = self._number("steps"), self._number("batch")
        if not isinstance(epochs, int) or not steps:
            return None
        return max(0, epochs * steps - epoch * steps - step) * batch

    def _number(self, name: str) -> int:
        value = self._plan.get(name, 0)
        return value if isinstance(value, int) else 0

    def _key(self) -> str:
        """What a sample's cost depends on beside depth and clock; empty without a plan."""
        if self._record is None or not self._plan:
            return ""
        spec, plan = self._record.spec, self._plan
        model = (self._record.plan or {}).get("model", "")
        settings = [plan.get(name) for name in ("engine", "batch", "micro_batch")]
        asked = [spec.get(name) for name in ("image_size", "update", "cache", "prefix", "optimizer")]
        return ":".join(map(str, [model, *settings, *asked]))
