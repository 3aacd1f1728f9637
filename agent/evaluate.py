"""Held-out metrics and the gate that a tuned model must pass before it may run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.engine.base import Float32, Int64

ROUNDING = 1e-9  # far below one sample in a million: differences of accuracies are not exact


@dataclass(frozen=True, slots=True)
class Score:
    """How a classifier does on held-out samples.

    Attributes:
        accuracy: share of samples whose largest logit is the label's, 0..1.
        loss: mean cross-entropy.
        samples: how many were scored.
        finite: whether every logit is finite.
    """

    accuracy: float
    loss: float
    samples: int
    finite: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer: `reason` is a stable code when refused, `evidence` says with which numbers."""

    accepted: bool
    reason: str
    evidence: str


def score(logits: Float32, labels: Int64) -> Score:
    """Score logits [M, K] against labels [M]."""
    finite = bool(np.isfinite(logits).all())
    if not finite:
        return Score(0.0, float("inf"), len(labels), finite=False)
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    picked = log_p[np.arange(len(labels)), labels]
    return Score(float((logits.argmax(axis=1) == labels).mean()), float(-picked.mean()), len(labels), finite=True)


def majority_share(labels: Int64) -> float:
    """Accuracy of always answering the most frequent class: what any useful model must beat."""
    return float(np.bincount(labels).max()) / len(labels)


def gate(tuned: Score, before: Score, running: Score | None, floor: float, least_gain: float) -> Verdict:
    """Whether the tuned model may be promoted.

    Args:
        tuned: the candidate.
        before: the model the job started from, with its fresh or kept head.
        running: the model in the active slot on the same held-out set; `None` when there is none for these classes.
        floor: `majority_share` of the held-out labels.
        least_gain: accuracy that the candidate must add to both; a negative one lets a worse candidate pass.
    """
    if not tuned.finite:
        return Verdict(accepted=False, reason="gate-not-finite", evidence="held-out logits are not finite")
    shown = f"held-out accuracy {tuned.accuracy:.4f} on {tuned.samples} samples"
    if tuned.accuracy <= floor:
        return Verdict(
            accepted=False, reason="gate-majority", evidence=f"{shown}, the largest class alone gives {floor:.4f}"
        )
    for name, other in (("gate-base", before), ("gate-running", running)):
        if other is not None and not _better(tuned, other, least_gain):
            needed = f"{name.removeprefix('gate-')} model has {other.accuracy:.4f} at loss {other.loss:.4f}"
            evidence = f"{shown} at loss {tuned.loss:.4f}, the {needed}, least_gain is {least_gain:g}"
            return Verdict(accepted=False, reason=name, evidence=evidence)
    return Verdict(accepted=True, reason="", evidence=shown)


def _better(tuned: Score, other: Score, least_gain: float) -> bool:
    """More accurate by more than the gain asked for; at exactly that, the lower loss decides."""
    gained = tuned.accuracy - other.accuracy - least_gain
    if abs(gained) < ROUNDING:
        return tuned.loss < other.loss
    return gained > 0
