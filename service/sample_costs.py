"""What a training sample costs at each freeze depth and micro-batch.

Measured from the steps that the worker tells of, remembered by model and settings, and reckoned for the depths that
nobody trained at.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from agent.messages import Progress
from policies.outlook import DepthCost
from policies.reading import Reading
from service.journal import Journal

RECENT_STEPS = 15  # whose median counts
MOST_CLOCKS = 16  # told apart at one depth; tables of boards have about as many points
LEAST_STEPS = 5  # at each of two clocks, before they are compared
LEAST_RATIO = 1.25  # of two clocks that are compared: closer ones differ by less than their steps do
LEAST_CLOCKED = 0.5  # no training step waits longer for memory than it computes (assumed); less is noise
REUSED_SHARE = 0.9  # of a step's samples: the frozen part did not run
MODELS_KEPT = 32  # combinations of model and settings whose costs are remembered, about 100 bytes each
LONGEST_SAMPLE_S = 3600.0  # a larger cost in the journal is no cost of a sample
COSTS = "sample-costs"  # name in the journal's memory


class Cost(NamedTuple):
    """Seconds a sample at the board's top clock, the share of them that grows as the clock falls, the micro-batch."""

    sample_s: float
    clocked_share: float = 1.0
    micro_batch: int = 0  # as the plan says


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
    macs: Mapping[int, int], least_percent: int, measured: Mapping[int, Cost], micro_batch: int
) -> tuple[DepthCost, ...]:
    """What a sample costs at each depth of the ladder from `least_percent` on; empty while none was measured.

    A depth that was not measured is reckoned from the nearest one that was, by the ratio of their
    multiply-accumulates.

    Args:
        macs: multiply-accumulates of a sample's step, by depth in percent.
        least_percent: shallowest depth that the job may train at.
        measured: by depth.
        micro_batch: samples that go through a step at once, where the measured cost does not tell.
    """
    rates = {percent: cost.sample_s / macs[percent] for percent, cost in measured.items() if macs.get(percent, 0) > 0}
    if not rates:
        return ()
    costs = []
    for percent in sorted(depth for depth in macs if depth >= least_percent):
        nearest = min(rates, key=lambda other: (abs(other - percent), other))
        reckoned = measured[nearest]._replace(sample_s=rates[nearest] * macs[percent])
        seconds, clocked, micro = measured.get(percent, reckoned)
        if seconds > 0:
            known = percent in measured
            costs.append(
                DepthCost(percent, seconds, measured=known, micro_batch=micro or micro_batch, clocked_share=clocked)
            )
    return tuple(costs)


def clock_share(reading: Reading) -> float:
    """The present clock as a share of the board's top clock; 1 where it is not known."""
    top = max((point.frequency_hz for point in reading.operating_points), default=0)
    return min(1.0, reading.frequency_hz / top) if reading.frequency_hz and top else 1.0


class StepTimes:
    """Step times of one job, by depth, micro-batch and clock.

    The first pass at a depth also fills the feature cache. Once steps find their samples there, the slower ones before
    no longer count.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, dict[int, dict[float, deque[float]]]] = {}
        self._present: dict[int, int] = {}
        self._reusing: set[int] = set()
        self._before = (0, 0)

    def add(self, message: Progress, batch: int, reading: Reading) -> None:
        """A step of `batch` samples was told, under the clock of `reading`."""
        samples, reused = message.samples - self._before[0], message.reused - self._before[1]
        self._before = message.samples, message.reused
        whole = message.step < message.steps or message.steps == 1  # an epoch's last batch may be a short one
        if message.step_ms <= 0 or batch <= 0 or not whole:
            return
        depth = message.depth_percent
        if samples > 0 and reused >= REUSED_SHARE * samples and depth not in self._reusing:
            self._reusing.add(depth)
            self._seconds.pop(depth, None)
        micro = message.micro_batch if 0 < message.micro_batch <= batch and batch % message.micro_batch == 0 else 0
        clocks = self._seconds.setdefault(depth, {}).setdefault(micro, {})
        self._present[depth] = micro
        share = round(clock_share(reading), 2)
        if share not in clocks and len(clocks) >= MOST_CLOCKS:
            del clocks[next(iter(clocks))]
        clocks.setdefault(share, deque(maxlen=RECENT_STEPS)).append(message.step_ms / 1e3 / batch)

    def costs(self) -> dict[int, Cost]:
        """By depth, with the micro-batch that was used there last."""
        return {depth: _cost(self._seconds[depth][micro], micro) for depth, micro in self._present.items()}

    def usual(self) -> dict[int, Cost]:
        """By depth, with the largest micro-batch used there: a smaller one is memory's, and not the next job's."""
        return {depth: _cost(sizes[max(sizes)], max(sizes)) for depth, sizes in self._seconds.items()}

    def told(self) -> list[dict[str, object]]:
        """All as JSON values."""
        return [
            {"depth_percent": depth, **_cost(clocks, micro)._asdict()}
            for depth, sizes in sorted(self._seconds.items())
            for micro, clocks in sorted(sizes.items())
        ]


def median(values: Iterable[float]) -> float:
    """The middle value, or the mean of the two: statistics.median brings fractions and decimal, 0.4 MB.

    Raises:
        ValueError: there is none.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no median of nothing")
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return (low + high) / 2


def _cost(clocks: Mapping[float, deque[float]], micro_batch: int) -> Cost:
    """A sample takes s (c / share + 1 - c) seconds under a share of the top clock.

    Two clocks tell s and c apart; with one, c is taken to be 1.
    """
    known = {share: median(steps) for share, steps in clocks.items() if len(steps) >= LEAST_STEPS}
    if known and max(known) >= LEAST_RATIO * min(known):
        low, high = min(known), max(known)
        clocked_s = (known[low] - known[high]) / (1 / low - 1 / high)
        rest_s = known[high] - clocked_s / high
        whole = clocked_s + rest_s
        share = min(1.0, max(LEAST_CLOCKED, clocked_s / whole)) if whole > 0 else 1.0
        return Cost(known[high] / (share / high + 1 - share), share, micro_batch)
    latest = max(clocks, key=lambda share: len(clocks[share]))
    return Cost(median(clocks[latest]) * latest, micro_batch=micro_batch)


class RememberedCosts:
    """Costs of earlier jobs, in the journal's memory."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def get(self, key: str) -> dict[int, Cost]:
        """Those kept under `key`; what cannot be a cost is left out."""
        return self._all().get(key, {})

    def keep(self, key: str, costs: Mapping[int, Cost]) -> None:
        """Lay `costs` over those kept under `key`; the keys that were not renewed for longest go.

        Raises:
            BoardError: the journal cannot be written.
        """
        kept = self._all()
        merged = kept.pop(key, {}) | dict(costs)
        self._journal.remember(COSTS, json.dumps(dict([*kept.items(), (key, merged)][-MODELS_KEPT:])))

    def _all(self) -> dict[str, dict[int, Cost]]:
        try:
            found = json.loads(self._journal.recall(COSTS) or "{}")
            return {
                str(key): {int(depth): Cost(*row) for depth, row in costs.items() if _sane(*row)}
                for key, costs in found.items()
            }
        except (ValueError, TypeError, AttributeError):
            return {}


def _sane(sample_s: float, clocked_share: float, micro_batch: int = 0) -> bool:
    sound = 0.0 < sample_s < LONGEST_SAMPLE_S and LEAST_CLOCKED <= clocked_share <= 1.0
    return sound and isinstance(micro_batch, int) and micro_batch >= 0
