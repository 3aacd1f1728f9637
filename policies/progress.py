"""The freeze depth over a job: as planned, then deeper in two stages; before both, if asked for, the head alone.

A job whose plan lets early layers learn needs them to learn for a while, not all the time: as the learning rate falls,
they move least and cost most (Brock et al. 2017, "FreezeOut"). A frozen prefix runs once a sample. A fresh head that
learns alone first is cheap (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features"), but takes samples from
layers that have few. docs/govern.md has what both save, and what else was tried.
"""

from __future__ import annotations

import dataclasses
import math

from policies.bounds import Bound
from policies.freezing import HEAD_ONLY_PERCENT
from policies.outlook import Outlook
from policies.policy_predictive import PredictivePolicy
from policies.reading import Action

RULE = "predict.progress"
HALF, DEEP = 50, 75
"""Depths of the settled stage. A plan that froze three quarters or more is left alone: an epoch of it costs less than
what the head needs, the frozen part once more. The late stage is the head alone: with what is left of the rate, deeper
layers learnt nothing that was seen on held-out samples (docs/govern.md)."""
LEAST_SAVING = 0.15
"""A deeper boundary must make a sample cheaper by this share: what crosses it has to be made once for all samples."""


def least_depth(policy: PredictivePolicy, outlook: Outlook) -> Bound | None:
    """The depth to train at now, as a bound on it; `None`: as planned.

    It depends on how far the job is and on nothing else, so it goes on unchanged after a restart.

    Args:
        policy: `head_first_share`, `settled_share` and `late_share`.
        outlook: the job; without its length or its costs nothing is asked for.
    """
    wanted, until = _wanted(policy, outlook)
    if wanted <= outlook.plan_depth_percent or not _saves(outlook, wanted):
        return None
    return Bound(RULE, Action.RUN, depth=wanted, depth_until_samples=until)


def samples_to_go(policy: PredictivePolicy, outlook: Outlook, depth_percent: int) -> float | None:
    """How many samples at `depth_percent` would take as long as those that are left, each at its own depth.

    Args:
        policy: the stages.
        outlook: the job.
        depth_percent: 0..100; no stage is thought to train shallower than this.

    Returns:
        Samples, 0 or more; `None` where the job's length is unknown, its plain samples where the costs are.
    """
    left, done = outlook.samples_left, outlook.samples_done
    if left is None:
        return None
    per_sample = _cost(outlook, depth_percent)
    if per_sample is None or left <= 0:
        return float(max(left, 0))
    total, spent_s, at = left + done, 0.0, float(done)
    marks = (policy.head_first_share * total, policy.settled_share * total, policy.late_share * total, float(total))
    for end in sorted(marks):
        if end > at:  # the stage is the same from here to there: ask for it in the middle
            middle = round((at + end) / 2)
            bound = least_depth(policy, dataclasses.replace(outlook, samples_done=middle, samples_left=total - middle))
            depth = max(depth_percent, outlook.plan_depth_percent, bound.depth if bound else 0)
            spent_s += (end - at) * (_cost(outlook, depth) or per_sample)
            at = end
    return spent_s / per_sample


def _cost(outlook: Outlook, depth_percent: int) -> float | None:
    """Seconds a sample at the shallowest depth known that freezes so much; `None` where none is or it takes no time."""
    found = next((cost.sample_s for cost in outlook.costs if cost.depth_percent >= depth_percent), None)
    return found if found is not None and 0.0 < found < math.inf else None


def _wanted(policy: PredictivePolicy, outlook: Outlook) -> tuple[int, int]:
    """Depth in percent (0: as planned) and the samples done until which it is wanted (0: to the job's end)."""
    total = (outlook.samples_left or 0) + outlook.samples_done
    if outlook.samples_left is None or total <= 0 or outlook.plan_depth_percent >= DEEP:
        return 0, 0
    head_until = math.floor(policy.head_first_share * total)
    if outlook.samples_done < head_until:
        return HEAD_ONLY_PERCENT, head_until
    if outlook.samples_done >= policy.late_share * total:
        return HEAD_ONLY_PERCENT, 0
    if outlook.samples_done >= policy.settled_share * total:
        return (HALF if outlook.plan_depth_percent < HALF else DEEP), 0
    return 0, 0


def _saves(outlook: Outlook, wanted: int) -> bool:
    """Whether a sample is cheaper at `wanted` than as planned, as far as the costs of both are known."""
    planned = [cost.sample_s for cost in outlook.costs if cost.depth_percent >= outlook.plan_depth_percent]
    deeper = [cost.sample_s for cost in outlook.costs if cost.depth_percent >= wanted]
    return bool(planned and deeper) and deeper[0] <= planned[0] * (1 - LEAST_SAVING)
