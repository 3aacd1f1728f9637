"""No class may be given up for the others: a model can gain on average and be blind to one class."""

from __future__ import annotations

import math
from collections.abc import Sequence

from agent.evaluate import Score, Verdict
from policies.policy import GatePolicy

CONFIDENCE_Z = 2.576  # two-sided 99 %: a fault must show beyond what so few samples would do by chance
MOST_TOLD = 20  # classes in a result; those that lost most come first


def wilson_upper(right: int, samples: int) -> float:
    """Upper end of the Wilson score interval of a share (Wilson 1927)."""
    share, z2 = right / samples, CONFIDENCE_Z**2
    half = CONFIDENCE_Z * math.sqrt(share * (1 - share) / samples + z2 / (4 * samples**2))
    return min(1.0, (share + z2 / (2 * samples) + half) / (1 + z2 / samples))


def class_verdict(
    tuned: Score, others: Sequence[Score | None], names: Sequence[str], policy: GatePolicy
) -> Verdict | None:
    """The refusal that the worst class deserves; `None` when every class is above its floor.

    A class is judged when it has `class_samples` held-out samples. Its floor is the best share of right answers among
    the others less `class_drop`, and at least `class_least`. It is below when even the upper end of its share's
    interval is.

    Args:
        tuned: the candidate.
        others: models that knew these classes, scored on the same samples.
        names: of the classes.
        policy: the bounds.
    """
    worst: tuple[float, str] | None = None
    for label, (right, samples) in enumerate(tuned.by_class):
        if samples < policy.class_samples:
            continue
        best = max((other.by_class[label][0] for other in others if other is not None and other.finite), default=0)
        floor = max(policy.class_least, best / samples - policy.class_drop)
        lacking = floor - wilson_upper(right, samples)
        if lacking > 0 and (worst is None or lacking > worst[0]):
            worst = (
                lacking,
                (
                    f"class {names[label]}: {right} of {samples} held-out samples right, {best} before; "
                    f"the floor is {floor:.0%}"
                ),
            )
    return None if worst is None else Verdict(accepted=False, reason="gate-class-floor", evidence=worst[1])


def class_table(tuned: Score, others: Sequence[Score | None], names: Sequence[str]) -> dict[str, object]:
    """Right answers, the best of the others' and samples of each class: JSON values, those that lost most first."""
    lines: list[tuple[int, str, list[int]]] = []
    for label, (right, samples) in enumerate(tuned.by_class):
        best = max((other.by_class[label][0] for other in others if other is not None and other.finite), default=0)
        if samples:
            lines.append((right - best, names[label], [right, best, samples]))
    return {name: counts for _, name, counts in sorted(lines)[:MOST_TOLD]}
