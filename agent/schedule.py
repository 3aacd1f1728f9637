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
