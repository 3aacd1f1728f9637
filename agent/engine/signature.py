"""Signature of a model's source features: the mean pooled feature, with the source data or without it.

Depth selection (R2) compares the mean feature of the target data with that of the data the base was trained on. The
publisher rarely has the latter any more, but a batch-normalised model remembers its statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agent.engine.base import Float32
from agent.engine.ir import Array, Graph, Node

SQRT_HALF, NORMAL_PEAK = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)
_POOLS = ("GlobalAveragePool",)
_PASSING = ("Flatten", "Reshape", "Squeeze", "Dropout")


def signature_from_samples(features: Sequence[Float32] | Float32) -> tuple[float, ...]:
    """Mean over samples of pooled features [N, C]: C numbers."""
    return tuple(float(value) for value in np.asarray(features, np.float64).mean(axis=0))


def signature_from_batch_norm(graph: Graph) -> tuple[float, ...] | None:
    """Expected pooled feature over the source data from batch-norm parameters alone, or `None`.

    The pattern asked for is BatchNormalization -> Clip or Relu -> GlobalAveragePool -> last Gemm. In training, batch
    normalisation shifts and scales each channel to mean beta and standard deviation |gamma| over the source data, which
    is why its statistics stand in for that data (DeepInversion, Yin et al. 2020). Taking channel c as normal,
    z ~ N(beta, gamma^2), and averaging over positions being linear, the mean feature is E[clip(z, low, high)].

    With a = (low - beta)/s, b = (high - beta)/s, s = |gamma|, phi and Phi the normal density and distribution:

        E = low Phi(a) + high (1 - Phi(b)) + beta (Phi(b) - Phi(a)) + s (phi(a) - phi(b))

    the three pieces being mass clipped below, mass clipped above, and the mean of the part between (integrate z phi).
    Real channels are skewed, so this is an estimate; the running statistics do not enter, as they cancel.
    """
    found = _pooled_clip(graph)
    if found is None:
        return None
    norm, low, high = found
    scale, shift = (graph.initializers[name].astype(np.float64).tolist() for name in norm.inputs[1:3])
    return tuple(_clipped_mean(beta, abs(gamma), low, high) for gamma, beta in zip(scale, shift, strict=True))


def _clipped_mean(mean: float, deviation: float, low: float, high: float) -> float:
    """E[clip(z, low, high)] for z ~ N(mean, deviation^2); `high` may be infinite."""
    if deviation == 0:
        return min(max(mean, low), high)
    a, b = (low - mean) / deviation, (high - mean) / deviation
    below, above = _distribution(a), 1 - _distribution(b)
    clipped = low * below + (high * above if above else 0.0)
    return clipped + mean * (1 - below - above) + deviation * (_density(a) - _density(b))


def _distribution(x: float) -> float:
    return 0.5 * math.erfc(-x * SQRT_HALF)


def _density(x: float) -> float:
    return NORMAL_PEAK * math.exp(-0.5 * x * x)


def _pooled_clip(graph: Graph) -> tuple[Node, float, float] | None:
    """The batch normalisation behind the pooled features and the bounds of the clip between."""
    makers = {name: node for node in graph.nodes for name in node.outputs}
    layers = graph.layers()
    node = makers.get(layers[-1].node.inputs[0]) if layers else None
    while node is not None and node.op in _PASSING:
        node = makers.get(node.inputs[0])
    if node is None or node.op not in _POOLS:
        return None
    clip = makers.get(node.inputs[0])
    if clip is None or clip.op not in {"Clip", "Relu"}:
        return None
    norm = makers.get(clip.inputs[0])
    if (
        norm is None
        or norm.op != "BatchNormalization"
        or any(name not in graph.initializers for name in norm.inputs[1:3])
    ):
        return None
    low, high = (
        (0.0, math.inf) if clip.op == "Relu" else (_bound(graph, clip, 1, 0.0), _bound(graph, clip, 2, math.inf))
    )
    return norm, low, high


def _bound(graph: Graph, clip: Node, position: int, absent: float) -> float:
    value: Array | None = graph.initializers.get(clip.inputs[position]) if len(clip.inputs) > position else None
    return absent if value is None else float(value)
