"""Whether a job's frozen layers run in 8 bits (R3): tried where it may pay, kept where the classes stay apart.

A fresh classifier knows nothing yet, so accuracy cannot be asked of the whole model before training. What is asked is
whether the activations at the boundary still tell the classes apart: a nearest-class-mean classifier on their pooled
values (Mensink et al. 2013), its means from some training samples in float32, its accuracy on others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from agent.card import IMAGE_CLASSIFICATION
from agent.engine.base import Float32, Targets, TrainingRun
from agent.errors import EngineError, ModelError
from agent.spec import FineTuneSpec
from agent.task import Task

WORTH_RUNS = 2000  # samples through the frozen part from which calibration and check, about 1,000, are paid back
CALIBRATION_SAMPLES = 64
CHECK_SAMPLES = 256


def expected_runs(spec: FineTuneSpec, task: Task) -> int:
    """Samples that will go through the frozen part during training."""
    passes = spec.epochs if spec.cache == "off" else min(spec.epochs, spec.views)
    return passes * task.train_samples


def too_few_runs(choice: str, spec: FineTuneSpec, task: Task) -> str:
    """Why another form of the frozen part is not tried with `choice` of `auto` or more; empty when it is."""
    runs = expected_runs(spec, task)
    return f"not worth trying for {runs} samples, {WORTH_RUNS} are" if choice == "auto" and runs < WORTH_RUNS else ""


def choose_form(run: TrainingRun, spec: FineTuneSpec, task: Task) -> dict[str, object]:
    """Let the frozen part run in 8 bits if that is asked for or worth trying, and kept by its check.

    Returns:
        What the job's result tells: `form` (`float32` or `int8`), `reason`; where it was tried, both times and scores.
    """
    reason = _not_tried(run, spec, task)
    if reason:
        return {"form": "float32", "reason": reason}
    order = np.random.default_rng(spec.seed).permutation(task.train_samples)
    calibration, rest = order[:CALIBRATION_SAMPLES], order[CALIBRATION_SAMPLES:][: 2 * CHECK_SAMPLES]
    known, asked = rest[::2], rest[1::2]
    try:
        means = run.boundary(task.inputs(known))
        score = class_means_score(means, task.targets(known), task.targets(asked))
        check = run.use_int8(task.inputs(calibration), task.inputs(asked), score)
    except (ModelError, EngineError) as error:
        return {"form": "float32", "reason": str(error)}
    return {
        "form": "int8" if check.keep else "float32",
        "reason": check.reason,
        "float_ms": 1e3 * check.float_seconds,
        "int8_ms": 1e3 * check.int8_seconds,
        "float_score": check.float_score,
        "int8_score": check.int8_score,
    }


def class_means_score(
    known: Sequence[Float32], known_labels: Targets, asked_labels: Targets
) -> Callable[[Sequence[Float32]], float]:
    """Accuracy 0..1 of the nearest class mean, as a function of the boundary activations of the asked samples.

    Args:
        known: boundary activations [K, ...] of samples whose classes are known; their pooled values are standardized.
        known_labels: their classes [K].
        asked_labels: classes [M] of the samples that will be asked about.
    """
    features = _pooled(known)
    middle, spread = features.mean(axis=0), features.std(axis=0) + np.float32(1e-6)
    classes = np.unique(known_labels)
    scaled = (features - middle) / spread
    means = np.stack([scaled[known_labels == label].mean(axis=0) for label in classes])

    def score(activations: Sequence[Float32]) -> float:
        asked = (_pooled(activations) - middle) / spread
        distances = np.square(means).sum(axis=1) - 2 * asked @ means.T
        return float((classes[distances.argmin(axis=1)] == asked_labels[: len(asked)]).mean())

    return score


def _not_tried(run: TrainingRun, spec: FineTuneSpec, task: Task) -> str:
    if spec.prefix == "float32":
        return "asked for"
    if run.frozen_layers == 0:
        return "nothing is frozen"
    if task.name != IMAGE_CLASSIFICATION:
        return "only pictures are tried"
    if task.train_samples < CALIBRATION_SAMPLES + 2 * len(task.classes):
        return "too few samples to check it"
    return too_few_runs(spec.prefix, spec, task)


def _pooled(activations: Sequence[Float32]) -> Float32:
    """Means over positions, [M, sum of channels]."""
    return np.concatenate([a.reshape(*a.shape[:2], -1).mean(axis=2) for a in activations], axis=1)
