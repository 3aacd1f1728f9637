"""Held-out metrics and the gate that a tuned model must pass before it may run."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from agent.engine.base import Float32, Int64

ROUNDING = 1e-9  # far below one sample in a million: differences of scores are not exact
ACCURACY, AUC, ERROR, MAE = "accuracy", "auc", "reconstruction_error", "mae"
HIGHER_IS_BETTER = frozenset({ACCURACY, AUC})
CHANCE = 0.5  # AUC of a score that knows nothing

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Score:
    """How a model does on held-out samples.

    Attributes:
        metric: what `value` is. `accuracy`: share of samples whose largest logit is the label's, 0..1. `auc`: see
            `auc`. `reconstruction_error`: mean squared error of the normalized input. `mae`: mean absolute error in
            the units of the data.
        value: infinite for an error, 0 for a share, when an output is not finite.
        loss: a finer measure that decides between equal values; lower is better.
        samples: how many were scored.
        finite: whether every output is finite.
        by_class: right answers and samples of each class, where the task has classes and the outputs are finite.
    """

    metric: str
    value: float
    loss: float
    samples: int
    finite: bool
    by_class: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is the better one."""
        return self.metric in HIGHER_IS_BETTER


@dataclass(frozen=True, slots=True)
class Baseline:
    """What an answer without any model scores: the least that a useful model must beat.

    Attributes:
        name: `majority`, `chance`, `mean`, `naive_last`, `seasonal_naive`.
        value: its score by the task's metric.
        told: in words.
    """

    name: str
    value: float
    told: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer: `reason` is a stable code when refused, `evidence` says with which numbers."""

    accepted: bool
    reason: str
    evidence: str


def unusable(metric: str, samples: int) -> Score:
    """The score of a model whose outputs are not finite."""
    return Score(metric, 0.0 if metric in HIGHER_IS_BETTER else float("inf"), float("inf"), samples, finite=False)


def score_logits(logits: Float32, labels: Int64) -> Score:
    """Accuracy of logits [M, K] against labels [M]; the loss is their mean cross-entropy."""
    if not np.isfinite(logits).all():
        return unusable(ACCURACY, len(labels))
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    picked = log_p[np.arange(len(labels)), labels]
    right = logits.argmax(axis=1) == labels
    counts = (np.bincount(of, minlength=logits.shape[1]).tolist() for of in (labels[right], labels))
    by_class = tuple(zip(*counts, strict=True))
    return Score(ACCURACY, float(right.mean()), float(-picked.mean()), len(labels), finite=True, by_class=by_class)


def majority_share(labels: Int64) -> float:
    """Accuracy of always answering the most frequent class: what any useful model must beat."""
    return float(np.bincount(labels).max()) / len(labels)


def auc(scores: Float64, positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the probability that a positive sample scores higher than a negative one.

    Equal scores count half. From the ranks (Mann and Whitney 1947): with n positive of N samples and R the sum of the
    positives' ranks from 1, tied scores sharing their mean rank, AUC = (R - n (n + 1) / 2) / (n (N - n)).

    Args:
        scores: [N], finite.
        positive: [N], both kinds present.
    """
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2)[place]
    n = int(positive.sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def score_errors(errors: Float64, anomalous: npt.NDArray[np.bool_] | None) -> Score:
    """Anomaly scores [M] (mean squared reconstruction error of each window), judged by labels where there are any.

    With both kinds of label: the AUC; the loss is the error of the normal windows. Else the mean error itself.
    """
    if not np.isfinite(errors).all():
        return unusable(ERROR if anomalous is None else AUC, len(errors))
    if anomalous is None:
        mean = float(errors.mean())
        return Score(ERROR, mean, mean, len(errors), finite=True)
    return Score(AUC, auc(errors, anomalous), float(errors[~anomalous].mean()), len(errors), finite=True)


def score_forecast(found: Float64, actual: Float64) -> Score:
    """Mean absolute error of forecasts [M, H] in the units of the data; the loss is the root mean squared error."""
    if not np.isfinite(found).all():
        return unusable(MAE, len(actual))
    off = found - actual
    return Score(MAE, float(np.abs(off).mean()), float(np.sqrt((off**2).mean())), len(actual), finite=True)


def gate(tuned: Score, before: Score, running: Score | None, floor: Baseline, least_gain: float) -> Verdict:
    """Whether the tuned model may be promoted.

    Args:
        tuned: the candidate.
        before: the model the job started from, with its fresh or kept head.
        running: the model in the active slot on the same held-out set; `None` when it cannot be compared.
        floor: what no model at all scores.
        least_gain: what the candidate must add to both: of a share its points (0..1), of an error the part of it that
            must go; a negative one lets a worse candidate pass.
    """
    named = tuned.metric.replace("_", " ").replace("auc", "AUC").replace("mae", "MAE")
    if not tuned.finite:
        return Verdict(accepted=False, reason="gate-not-finite", evidence="held-out outputs are not finite")
    shown = f"held-out {named} {tuned.value:.4f} on {tuned.samples} samples"
    if not _exceeds(tuned, floor.value):
        evidence = f"{shown}, {floor.told} gives {floor.value:.4f}"
        return Verdict(accepted=False, reason=f"gate-{floor.name.replace('_', '-')}", evidence=evidence)
    for name, other in (("gate-base", before), ("gate-running", running)):
        if other is not None and not _better(tuned, other, least_gain):
            needed = f"{name.removeprefix('gate-')} model has {other.value:.4f} at loss {other.loss:.4f}"
            evidence = f"{shown} at loss {tuned.loss:.4f}, the {needed}, least_gain is {least_gain:g}"
            return Verdict(accepted=False, reason=name, evidence=evidence)
    return Verdict(accepted=True, reason="", evidence=shown)


def _exceeds(tuned: Score, value: float) -> bool:
    return tuned.value > value if tuned.higher_is_better else tuned.value < value


def _better(tuned: Score, other: Score, least_gain: float) -> bool:
    """Better by more than the gain asked for; at exactly that, the lower loss decides."""
    if not other.finite:
        return True
    if tuned.higher_is_better:
        gained = tuned.value - other.value - least_gain
    else:
        gained = other.value * (1 - least_gain) - tuned.value
    if abs(gained) < ROUNDING:
        return tuned.loss < other.loss
    return gained > 0
