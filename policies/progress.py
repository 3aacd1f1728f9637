"""The freeze depth over a job: the head first, then what the plan froze, then deeper and deeper.

A job whose plan lets early layers learn needs them to learn for a while, not all the time. A fresh head on fixed
features costs next to nothing and keeps its first, wrong gradients away from them (Kumar et al. 2022, "Fine-Tuning can
Distort Pretrained Features"); and as the learning rate falls, early layers move least and cost most (Brock et al. 2017,
"FreezeOut"). A frozen prefix runs once a sample. docs/govern.md has what this saves, and what else was tried.
"""

from __future__ import annotations

import math

from policies.bounds import Bound
from policies.freezing import HEAD_ONLY_PERCENT
from policies.outlook import Outlook
from policies.policy_predictive import PredictivePolicy
from policies.reading import Action

RULE = "predict.progress"
HALF, LATEST = 50, 75
"""Depths of the last two stages. Where the plan froze three quarters or more, only the head goes first."""
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


def _wanted(policy: PredictivePolicy, outlook: Outlook) -> tuple[int, int]:
    """Depth in percent (0: as planned) and the samples done until which it is wanted (0: to the job's end)."""
    total = (outlook.samples_left or 0) + outlook.samples_done
    if outlook.samples_left is None or total <= 0:
        return 0, 0
    head_until = math.floor(policy.head_first_share * total)
    if outlook.samples_done < head_until:
        return HEAD_ONLY_PERCENT, head_until
    if outlook.samples_done >= policy.late_share * total:
        return LATEST, 0
    if outlook.samples_done >= policy.settled_share * total:
        return (HALF if outlook.plan_depth_percent < HALF else LATEST), 0
    return 0, 0


def _saves(outlook: Outlook, wanted: int) -> bool:
    """Whether a sample is cheaper at `wanted` than as planned, as far as the costs of both are known."""
    planned = [cost.sample_s for cost in outlook.costs if cost.depth_percent >= outlook.plan_depth_percent]
    deeper = [cost.sample_s for cost in outlook.costs if cost.depth_percent >= wanted]
    return bool(planned and deeper) and deeper[0] <= planned[0] * (1 - LEAST_SAVING)
