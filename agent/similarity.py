"""How like the source data the target data look to the model: cosine of mean features (R2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agent.engine.base import Float32


def cosine_of_means(features: Float32, signature: Sequence[float]) -> float | None:
    """Cosine between the mean of target features [N, F] and a source signature [F].

    Returns:
        -1..1, or `None` when the signature is unknown or of another length, or either vector is zero or not finite.
    """
    source = np.asarray(signature, np.float64)
    target = features.mean(axis=0, dtype=np.float64)
    if source.shape != target.shape:
        return None
    norm = float(np.linalg.norm(source) * np.linalg.norm(target))
    cosine = float(source @ target) / norm if norm > 0 else math.nan
    return min(1.0, max(-1.0, cosine)) if math.isfinite(cosine) else None
