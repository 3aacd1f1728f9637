"""How deep to freeze (R1, R2), and where exactly to cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from policies.policy import FreezingPolicy

HEAD_ONLY_PERCENT = 100
TRIAL_DEPTHS = (75, 50, 25)
"""Depths that are tried, cheapest first. The head alone was nowhere best, and a fresh head on fixed features settles at
a pace of its own, which misleads. With nothing frozen, trials would cost as much as a short job."""
SNAP_LAYERS = 2
"""A boundary may move this many layers from the nominal one: about 4 % of a 52-layer network."""


def choose_depth(policy: FreezingPolicy, similarity: float | None) -> tuple[int, str]:
    """Share of parametric layers to freeze, in percent, and the rule that chose it (R2).

    Args:
        policy: thresholds.
        similarity: cosine of target and source features, -1..1; `None` (or not a number) when there is no signature.
    """
    if similarity is None or similarity != similarity:  # noqa: PLR0124 - the test for not-a-number
        return policy.unknown_percent, "freezing.similarity-unknown"
    if similarity > policy.similarity_over_75:
        return 75, "freezing.similarity-75"
    if similarity > policy.similarity_over_50:
        return 50, "freezing.similarity-50"
    if similarity > policy.similarity_over_25:
        return 25, "freezing.similarity-25"
    return 0, "freezing.similarity-0"


def choose_by_trials(policy: FreezingPolicy, loss_at: Callable[[int], float]) -> tuple[int, str]:
    """Share of parametric layers to freeze, in percent, and the rule that chose it: by trying.

    The trials walk from the deepest depth towards the input and end with the first one that is not worth its cost.

    Args:
        policy: `probe_gain`.
        loss_at: makes the trial at a depth; its loss, infinite or not a number where it failed.
    """
    depth, loss = TRIAL_DEPTHS[0], loss_at(TRIAL_DEPTHS[0])
    for shallower in TRIAL_DEPTHS[1:]:
        found = loss_at(shallower)
        if not found < loss * (1 - policy.probe_gain):
            break
        depth, loss = shallower, found
    return depth, f"freezing.probe-{depth}"


def snap(crossing_bytes: Sequence[int], percent: int, within: int = SNAP_LAYERS) -> int:
    """Number of layers to freeze for a nominal depth: the cheapest boundary within `within` layers of it.

    The tensor that crosses the boundary is stored a sample in the feature cache and read in every step, and early in a
    network it may be ten times larger than two layers further on.

    Args:
        crossing_bytes: entry k holds the bytes that cross the boundary with k layers frozen, k = 0..L.
        percent: nominal depth, 0..100.
        within: how far the boundary may move, in layers.

    Returns:
        0 for 0 percent; L - 1 for 100 percent (head only); else a count in 1..L - 1, of equally cheap ones the nearest
        to the nominal depth, and of equally near ones the deeper.

    Raises:
        ValueError: fewer than two entries, or a percent outside 0..100.
    """
    layers = len(crossing_bytes) - 1
    if layers < 1 or not 0 <= percent <= HEAD_ONLY_PERCENT:
        raise ValueError(f"cannot freeze {percent} % of {layers} layers")
    deepest = layers - 1  # the head always learns
    if percent in (0, HEAD_ONLY_PERCENT) or deepest == 0:
        return 0 if percent == 0 else deepest
    nominal = min(max(round(layers * percent / 100), 1), deepest)
    near = range(max(1, nominal - within), min(deepest, nominal + within) + 1)
    return min(near, key=lambda k: (crossing_bytes[k], abs(k - nominal), -k))
