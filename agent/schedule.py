"""How the learning rate goes over a training."""

from __future__ import annotations

import math


def rate_share(done: int, total: int, warm_up: float, *, falls: bool) -> float:
    """Share of the peak rate for a step: linear warm-up, then half a cosine to zero (Loshchilov and Hutter 2017).

    Args:
        done: steps made before this one.
        total: steps of the whole training.
        warm_up: share of all steps over which the rate rises: fresh weights would else throw the others about.
        falls: `False`: the rate stays at its peak after the warm-up.
    """
    warm = max(1, int(total * warm_up))
    if done < warm:
        return (done + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, total - warm))) if falls else 1.0


def rewarmed_share(done: int, head_until: int | None, total: int, warm_up: float) -> float:
    """What is left of `rate_share` once other layers learn after the head alone: a second warm-up as long as the first.

    The first one may be over by then, and layers that begin at the full rate can end a training: one run collapsed
    without a second one (docs/govern.md).

    Args:
        done: steps made before this one.
        head_until: steps that were made when the head last stopped learning alone; `None`: it never learnt alone.
        total: steps of the whole training.
        warm_up: as for `rate_share`.
    """
    if head_until is None:
        return 1.0
    return min(1.0, (max(0, done - head_until) + 1) / max(1, int(total * warm_up)))
