"""Which setting serves best: by energy, in time for a deadline, within a charge, and not another one every minute."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from policies.dvfs import TABLE_TOLERANCE
from policies.outlook import DepthCost, Outlook
from policies.policy import Policy
from policies.policy_predictive import PredictivePolicy
from policies.progress import samples_to_go
from policies.search import Grid, Prospect, Setting, best, coolest

ENERGY, DELTA_T = "predict.energy", "predict.delta-t"
DEADLINE, CHARGE = "predict.deadline", "predict.charge"
MARGIN_KELVIN = 1.0
"""Kept free below the limit by a new setting, on top of the errors: a sensor's step and its noise."""
NEAR_KELVIN = 5.0
"""A setting that was left out with its expected delta-T further below the limit was left out because its heat is not
known, not because it is hot: twice the standard error at which the models count as sure."""
KEPT_MARGIN_KELVIN = 0.3
"""The same for the present setting, so that it is not left for a prediction that moved a little."""
LEAST_GAIN = 0.03
"""Another setting must give so many more samples per joule: less is within the power model's error."""
SAME_ENERGY = 0.02
"""Of settings whose samples per joule differ by less than this share, the fastest is taken."""
SPARE = 1.05
"""A setting is chosen to meet a deadline with so much spare, and left when it would miss it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The setting in force."""

    setting: Setting
    rule: str
    since_s: float
    searched_s: float
    cap_ratio: float
    """Cap and depth it was searched under."""
    wanted_depth: int
    deadline_mono_s: float | None = None
    """Of the job it was searched for."""


def limit_kelvin(policy: Policy, ambient_celsius: float) -> float:
    """Highest delta-T that the prediction may reach: the policy's own, and below both trips of the slow stage."""
    slow = policy.thermal.slow
    return min(policy.predictive.delta_kelvin, slow.delta_kelvin, slow.absolute_celsius - ambient_celsius)


@dataclass(frozen=True, slots=True)
class Moment:
    """What a search depends on beside models and job."""

    mono_s: float
    cap_ratio: float
    """Highest clock that other rules leave, as a share of the top clock."""
    wanted_depth: int
    held_joules: float | None
    """What the battery gives before its pause mark; `None` on mains and while that is not known."""
    present: Choice | None


class Search:
    """One search.

    Args:
        policy: `predictive`.
        grid: models and board.
        limit_kelvin: highest delta-T.
        outlook: the job.
        costs: of the wanted depth and of deeper ones, one each, shallowest first; empty while nothing is known.
        moment: what else there is.
    """

    def __init__(
        self,
        policy: PredictivePolicy,
        grid: Grid,
        limit_kelvin: float,
        outlook: Outlook,
        costs: tuple[DepthCost, ...],
        moment: Moment,
    ) -> None:
        self._policy, self._grid, self._outlook, self._costs, self._moment = policy, grid, outlook, costs, moment
        self._limit, self._kept_limit = limit_kelvin - MARGIN_KELVIN, limit_kelvin - KEPT_MARGIN_KELVIN

    def choice(self) -> Choice:
        """The choice from now on: the present one, unless another is due."""
        found, rule = self._best(list(self._grid.prospects(self._moment.cap_ratio)))
        now, old = self._moment.mono_s, self._moment.present
        setting, since_s = found.setting, now
        if old is not None and (old.setting == setting or self._kept(old, found, rule)):
            setting, since_s = old.setting, old.since_s
        moment = self._moment
        return Choice(setting, rule, since_s, now, moment.cap_ratio, moment.wanted_depth, self._outlook.deadline_mono_s)

    def _best(self, prospects: list[Prospect]) -> tuple[Prospect, str]:
        thrifty = best(self._grid, prospects, self._limit, _thrift)
        if thrifty is None:  # of what is cool enough nothing is known well: the least step away from what is
            return best(self._grid, prospects, self._limit, _speed, known=False) or coolest(
                self._grid, self._limit
            ), DELTA_T
        rule = DELTA_T if self._heat_binds(prospects, thrifty) else ENERGY
        if self._charge_binds(thrifty):
            return thrifty, CHARGE
        near = [x for x in prospects if x.rate > thrifty.rate and _about_as_thrifty(x, thrifty, SAME_ENERGY)]
        thrifty = best(self._grid, near, self._limit, _speed) or thrifty
        need = self._needed_pace()
        if need is None or self._pace(thrifty) >= need * SPARE:
            return thrifty, rule
        return self._in_time(prospects, need * SPARE), DEADLINE

    def _heat_binds(self, prospects: list[Prospect], thrifty: Prospect) -> bool:
        """Whether one that gives more samples per joule than `thrifty` is predicted to be too warm."""
        thriftier = (x for x in prospects if x.samples_per_joule > thrifty.samples_per_joule)
        return any(x.delta_kelvin > self._limit - NEAR_KELVIN and self._grid.known(x) for x in thriftier)

    def _in_time(self, prospects: list[Prospect], need: float) -> Prospect:
        """The thriftiest that meets `need`, at the shallowest depth at which one does; else the fastest."""
        fastest = None
        for cost in self._costs:
            at_depth = [self._at(prospect, cost) for prospect in prospects]
            fast = [prospect for prospect in at_depth if self._pace(prospect) >= need]
            found = best(self._grid, fast, self._limit, _thrift)
            if found is not None:
                return found
            top = best(self._grid, at_depth, self._limit, _speed)
            if top is not None and (fastest is None or self._pace(top) > self._pace(fastest)):
                fastest = top
        assert fastest is not None  # the thriftiest of all is among them
        return fastest

    def _at(self, prospect: Prospect, cost: DepthCost) -> Prospect:
        """The same setting at another depth; heat and power do not depend on it."""
        deeper = 0 if cost is self._costs[0] else cost.depth_percent
        setting = dataclasses.replace(prospect.setting, depth=deeper)
        return dataclasses.replace(prospect, setting=setting, rate=self._grid.rate(setting, cost))

    def _kept(self, old: Choice, found: Prospect, rule: str) -> bool:
        """Whether the present setting stays although the search found another."""
        if not self._grid.has(old.setting) or self._above_the_cap(old.setting):
            return False
        cost = next((cost for cost in self._costs if cost.depth_percent == old.setting.depth), None)
        present = self._grid.foresee(old.setting, cost)
        if not self._grid.highest_kelvin(present) <= self._kept_limit:
            return False
        if rule == DEADLINE and self._pace(present) < min(self._needed_pace() or 0.0, self._pace(found)):
            return False  # a job that is already late does not wait out the dwell
        if 0.0 <= self._moment.mono_s - old.since_s < self._policy.dwell_s:
            return True
        if old.setting.duty != found.setting.duty:
            return False
        return self._in_time_as_well(present, found) if rule == DEADLINE else _about_as_thrifty(present, found)

    def _above_the_cap(self, setting: Setting) -> bool:
        top, lowest = self._grid.points[-1].frequency_hz, self._grid.points[0].frequency_hz
        return setting.frequency_hz > max((self._moment.cap_ratio + TABLE_TOLERANCE) * top, lowest)

    def _in_time_as_well(self, present: Prospect, found: Prospect) -> bool:
        need = self._needed_pace()
        assert need is not None  # the deadline rule found something
        if present.setting.depth > found.setting.depth:  # back to the shallower depth only with more to spare
            return self._pace(found) < need * SPARE * SPARE
        return present.setting.depth == found.setting.depth and _about_as_thrifty(present, found)

    def _needed_pace(self) -> float | None:
        """Share of the rest a second that meets the deadline; `None` without one or where the length is unknown."""
        deadline_s, left = self._outlook.deadline_mono_s, self._outlook.samples_left
        if deadline_s is None or left is None or not self._costs:
            return None
        left_s = deadline_s - self._moment.mono_s
        return 1.0 / left_s if left_s > 0.0 else math.inf

    def _pace(self, prospect: Prospect) -> float:
        """Share of the job's rest done in a second, if its later stages follow the schedule."""
        to_go = self._to_go(prospect.setting.depth)
        return prospect.rate / to_go if to_go else math.inf

    def _to_go(self, depth: int) -> float:
        at_least = max(depth, self._moment.wanted_depth)
        return samples_to_go(self._policy, self._outlook, at_least) or 0.0

    def _charge_binds(self, thrifty: Prospect) -> bool:
        """Whether the job, at its thriftiest, would not end before the battery's pause mark."""
        held = self._moment.held_joules
        if held is None or self._outlook.samples_left is None or not self._costs:
            return False
        return self._to_go(0) > held * thrifty.samples_per_joule


def _about_as_thrifty(present: Prospect, found: Prospect, gain: float = LEAST_GAIN) -> bool:
    if present.setting.depth != found.setting.depth:
        return False
    return found.samples_per_joule < present.samples_per_joule * (1.0 + gain)


def _thrift(prospect: Prospect) -> float:
    return prospect.samples_per_joule


def _speed(prospect: Prospect) -> float:
    return prospect.rate


def costs_from(outlook: Outlook, wanted_depth: int) -> tuple[DepthCost, ...]:
    """One cost a depth, from the wanted depth on; the first of a depth counts.

    A smaller micro-batch never costs less (docs/prediction.md), so it is memory's lever alone and no part of the grid.
    """
    by_depth: dict[int, DepthCost] = {}
    for cost in outlook.costs:
        if cost.depth_percent >= wanted_depth and cost.sample_s > 0.0:
            by_depth.setdefault(cost.depth_percent, cost)
    return tuple(by_depth[depth] for depth in sorted(by_depth))
