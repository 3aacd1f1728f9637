"""How far training moved the weights: bounds that a model of honest data stays well inside of.

A poisoned job, or a rate far too high, moves weights further than learning does, whatever held-out samples of the same
source say. docs/policy.md has the distances measured in honest jobs that the defaults were chosen from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.engine.ir import Array, Graph
from agent.evaluate import Verdict
from policies.policy import GatePolicy

LEAST_RMS = 0.01  # weights smaller than this count as this: a layer of zeros may learn
HALF_MAX = float(np.finfo(np.float16).max)

Half = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Start:
    """The weights that learn, as a job found them.

    Attributes:
        layers: by the name of a layer's weight, its tensors of the base by name, in half precision: the bounds are a
            thousand times coarser than its rounding, and it is half of what a copy would cost the board. A bias counts
            with its weight; alone it is often so near zero that any learning is a multiple of it.
        fresh: names of tensors that a new head brought; there is nothing to compare them with.
    """

    layers: Mapping[str, Mapping[str, Half]]
    fresh: frozenset[str]


@dataclass(frozen=True, slots=True)
class Moved:
    """How far the weights are from their start.

    Attributes:
        growth: largest change of a layer's L2 norm as a factor >= 1, growing or shrinking; `growth_at` names its
            weight.
        update: largest L2 norm of a layer's change over its own norm; `update_at` names its weight.
        head_rms: largest root mean square of a tensor of a new head; `head_at` names it.
        broken_at: the first tensor that is not finite; empty: all are.
    """

    growth: float = 1.0
    growth_at: str = ""
    update: float = 0.0
    update_at: str = ""
    head_rms: float = 0.0
    head_at: str = ""
    broken_at: str = ""

    def table(self) -> dict[str, object]:
        """The numbers as JSON values."""
        return {
            "growth": self.growth,
            "growth_at": self.growth_at,
            "update": self.update,
            "update_at": self.update_at,
            "head_rms": self.head_rms,
            "head_at": self.head_at,
            "not_finite": self.broken_at,
        }


def start_of(graph: Graph, base: Graph, first_layer: int) -> Start:
    """What learns of a graph.

    Args:
        graph: with the head that is trained.
        base: the graph it was made from.
        first_layer: number of the first parametric layer that learns.
    """
    layers: dict[str, dict[str, Half]] = {}
    fresh: set[str] = set()
    for layer in graph.layers()[first_layer:]:
        known = {name for name in layer.parameters if base.initializers.get(name) is graph.initializers[name]}
        fresh |= set(layer.parameters) - known
        if known:
            layers[layer.weight] = {name: _half(graph.initializers[name]) for name in known}
    return Start(layers, frozenset(fresh))


def _half(value: Array) -> Half:
    return np.clip(value, -HALF_MAX, HALF_MAX).astype(np.float16)


def moved(start: Start, tuned: Mapping[str, Array]) -> Moved:
    """Compare tuned weights with their start.

    Args:
        start: what `start_of` took.
        tuned: weights by name, those of `start` among them.
    """
    if broken := next((name for name in sorted(tuned) if not np.isfinite(tuned[name]).all()), ""):
        return Moved(broken_at=broken)
    growth, update, head = (1.0, ""), (0.0, ""), (0.0, "")
    for weight, halves in sorted(start.layers.items()):
        least = LEAST_RMS * sum(half.size for half in halves.values()) ** 0.5
        was = max(least, _norm(halves))
        now = max(least, _norm({name: tuned[name] for name in halves}))
        step = _norm({name: tuned[name] - half.astype(np.float32) for name, half in halves.items()})
        growth = max(growth, (max(now / was, was / now), weight))
        update = max(update, (step / was, weight))
    for name in sorted(start.fresh):
        head = max(head, (_norm({name: tuned[name]}) / tuned[name].size ** 0.5, name))
    return Moved(*growth, *update, *head)


def _norm(tensors: Mapping[str, Array]) -> float:
    """The L2 norm of all of them together."""
    return math.sqrt(sum(float(np.square(value, dtype=np.float64).sum()) for value in tensors.values()))


def weight_verdict(found: Moved, policy: GatePolicy) -> Verdict | None:
    """The refusal that the distances deserve; `None` when they are within the policy's bounds."""
    if found.broken_at:
        evidence = f"weights of {found.broken_at} are not finite"
        return Verdict(accepted=False, reason="gate-not-finite", evidence=evidence)
    for reason, value, bound, key, what in (
        ("gate-weight-norm", found.growth, policy.weight_growth, "weight_growth", f"norm of {found.growth_at}, factor"),
        ("gate-weight-norm", found.head_rms, policy.head_rms, "head_rms", f"new weights {found.head_at}, RMS"),
        ("gate-update-norm", found.update, policy.weight_update, "weight_update", f"change of {found.update_at}"),
    ):
        if value > bound:
            return Verdict(accepted=False, reason=reason, evidence=f"{what} {value:.3g}, gate.{key} allows {bound:g}")
    return None
