"""What lies ahead of the governor: what a sample costs at each depth, how much of the job is left, the hour."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping
from statistics import median

from agent.messages import Progress
from policies.outlook import DepthCost, Outlook
from policies.reading import Reading
from service.journal import JobRecord, Journal
from service.statuses import Clock

RECENT_STEPS = 15  # whose median counts: the first of a depth fill its cache and are slow
MODELS_KEPT = 32  # combinations of model and settings whose costs are remembered, about 100 bytes each
LONGEST_SAMPLE_S = 3600.0  # a larger cost in the journal is no cost of a sample
ABSURDLY_LATE_S = 31 * 86_400.0  # a job lives at most as long: it was accepted while the clock was not set
HIGHER_IS_BETTER = ("accuracy", "auc")  # as in agent.evaluate, which loads NumPy
COSTS = "sample-costs"  # name in the journal's memory


def step_macs(plan: Mapping[str, object]) -> dict[int, int]:
    """Multiply-accumulates of one sample's training step by nominal depth, of a journaled plan."""
    macs = _ladder(plan)
    depth, planned = plan.get("depth_percent"), plan.get("step_macs")
    if isinstance(depth, int) and depth in macs and isinstance(planned, int) and planned > 0:
        macs[depth] = planned  # with an update that leaves parameters out a step costs less than its rung
    return macs


def prefix_macs(plan: Mapping[str, object], depth_percent: int) -> int:
    """Multiply-accumulates of the frozen part for one sample: half of what freezing saves (agent.features_prefix)."""
    macs = _ladder(plan)
    whole = macs.get(0, 0)
    return max(0, whole - macs.get(depth_percent, whole)) // 2


def _ladder(plan: Mapping[str, object]) -> dict[int, int]:
    rungs = plan.get("ladder")
    return {rung["percent"]: rung["step_macs"] for rung in rungs} if isinstance(rungs, list) else {}


def depth_costs(
    macs: Mapping[int, int], least_percent: int, measured: Mapping[int, float], micro_batch: int
) -> tuple[DepthCost, ...]:
    """What a sample costs at each depth of the ladder from `least_percent` on; empty while none was measured.

    A depth that was not measured is reckoned from the nearest one that was, by the ratio of their
    multiply-accumulates.

    Args:
        macs: multiply-accumulates of a sample's step, by depth in percent.
        least_percent: shallowest depth that the job may train at.
        measured: seconds a sample at the top clock, by depth.
        micro_batch: samples that go through a step at once.
    """
    rates = {percent: seconds / macs[percent] for percent, seconds in measured.items() if macs.get(percent, 0) > 0}
    if not rates:
        return ()
    costs = []
    for percent in sorted(depth for depth in macs if depth >= least_percent):
        nearest = min(rates, key=lambda other: (abs(other - percent), other))
        seconds = measured.get(percent, rates[nearest] * macs[percent])
        if seconds > 0:
            costs.append(DepthCost(percent, seconds, measured=percent in measured, micro_batch=micro_batch))
    return tuple(costs)


def clock_share(reading: Reading) -> float:
    """The present clock as a share of the board's top clock; 1 where it is not known."""
    top = max((point.frequency_hz for point in reading.operating_points), default=0)
    return min(1.0, reading.frequency_hz / top) if reading.frequency_hz and top else 1.0


def minute_of_day(unix_s: float) -> int:
    """Local time of the day, 0..1439."""
    local = time.localtime(unix_s)
    return local.tm_hour * 60 + local.tm_min


class Outlooks:
    """Follows one job after the other.

    Args:
        journal: keeps measured costs beyond a job.
        clock: see `Clock`.
    """

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal, self._clock = journal, clock
        self._deadlines: dict[str, float] = {}
        self.begin(None)

    def begin(self, record: JobRecord | None) -> None:
        """Follow `record` from here; nothing where it is `None`."""
        self._record = record
        self._steps: dict[int, deque[float]] = {}
        self._samples_left: int | None = None
        self._loss: float | None = None
        self._score: float | None = None
        self._samples = 0
        self._kept: dict[int, float] = {}
        self._plan: Mapping[str, object] = {}
        if record is not None:
            self.planned(record)

    def planned(self, record: JobRecord) -> None:
        """The job has a plan, or another one."""
        self._record = record
        plan = (record.plan or {}).get("plan")
        self._plan = plan if isinstance(plan, dict) else {}
        self._kept = self._recalled().get(self._key(), {}) if self._plan else {}
        self._samples_left = self._whole(0, 0)

    def follow(self, message: Progress, reading: Reading) -> None:
        """A step or an epoch was told, under the clock of `reading`."""
        self._samples, self._samples_left = message.samples, self._whole(message.epoch, message.step)
        if message.score is not None:
            self._score = message.score if message.metric in HIGHER_IS_BETTER else -message.score
        if message.step_ms <= 0:
            return
        self._loss = message.loss
        batch = self._number("batch")
        if batch and (message.step < message.steps or message.steps == 1):  # an epoch's last batch may be a short one
            seconds = message.step_ms / 1e3 / batch * clock_share(reading)
            self._steps.setdefault(message.depth_percent, deque(maxlen=RECENT_STEPS)).append(seconds)

    def outlook(self) -> Outlook:
        """As the governor is told it now; without a job only the hour."""
        minute = minute_of_day(self._clock.now()) if self._clock.synchronised() else None
        if self._record is None:
            return Outlook(minute_of_day=minute)
        depth = self._number("depth_percent")
        measured = self._kept | self._measured()
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

    def deadline_mono_s(self, record: JobRecord) -> float | None:
        """Monotonic time by which the job should be done; `None` without a deadline. Once found it stays.

        It counts from the acceptance by the wall clock, which survives a restart. While that clock cannot be trusted,
        or where it was not set at the acceptance, it counts from the first look. A clock that was set back never gives
        more than the whole.
        """
        asked = record.spec.get("deadline_s", 0.0)
        if not isinstance(asked, int | float) or asked <= 0:
            return None
        if record.id not in self._deadlines:
            passed = self._clock.now() - record.created if self._clock.synchronised() else 0.0
            if passed > asked + ABSURDLY_LATE_S:
                passed = 0.0
            self._deadlines[record.id] = self._clock.mono() + asked - max(0.0, passed)
        return self._deadlines[record.id]

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
        measured, key = self._measured(), self._key()
        self.begin(None)
        if key and measured:
            kept = self._recalled()
            costs = kept.pop(key, {}) | measured
            newest = [*kept.items(), (key, costs)][-MODELS_KEPT:]
            self._journal.remember(COSTS, json.dumps(dict(newest)))

    def forget(self, job_id: str) -> None:
        """The job has ended for good."""
        self._deadlines.pop(job_id, None)

    def costs_told(self) -> list[dict[str, object]]:
        """The measured costs as JSON values."""
        measured = self._measured()
        return [{"depth_percent": depth, "sample_s": measured[depth]} for depth in sorted(measured)]

    def _measured(self) -> dict[int, float]:
        return {depth: median(steps) for depth, steps in self._steps.items()}

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

    def _recalled(self) -> dict[str, dict[int, float]]:
        """Costs of earlier jobs; what cannot be a cost is left out."""
        try:
            found = json.loads(self._journal.recall(COSTS) or "{}")
            return {
                str(key): {int(depth): float(cost) for depth, cost in costs.items() if 0.0 < cost < LONGEST_SAMPLE_S}
                for key, costs in found.items()
            }
        except (ValueError, TypeError, AttributeError):
            return {}
