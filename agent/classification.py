"""Image classification as a task: pixels in, logits out, accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from agent.augment import augmented
from agent.card import IMAGE_CLASSIFICATION, Preprocess
from agent.engine.base import Float32, Int64, LossSpec, Targets
from agent.evaluate import Baseline, Score, majority_share, score_logits
from agent.images import Images, fingerprint, load, preprocessed
from agent.spec import FineTuneSpec


@dataclass(frozen=True, slots=True)
class Classification:
    """See `agent.task.Task`."""

    images: Images
    rule: Preprocess
    loss: LossSpec
    smoothing: float = 0.0
    """Share of a label's weight spread over all classes, where the targets are made here (`bce`)."""
    name: str = IMAGE_CLASSIFICATION
    seed: int = 0
    """Of the views."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""
        return self.images.classes

    @property
    def train_samples(self) -> int:
        """Samples to learn from."""
        return len(self.images.y_train)

    @property
    def test_samples(self) -> int:
        """Samples held out."""
        return len(self.images.y_test)

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """Always the most frequent class."""
        return (Baseline("majority", majority_share(self.images.y_test), "the largest class alone"),)

    def inputs(self, chosen: Int64) -> Float32:
        """Training images [N, 3, S, S]."""
        return preprocessed(self.images.x_train[chosen], self.rule)

    def view(self, chosen: Int64, number: int) -> Float32:
        """See `agent.augment.augmented`."""
        return preprocessed(augmented(self.images.x_train[chosen], number, self.seed), self.rule)

    def targets(self, chosen: Int64) -> Targets:
        """Labels [N]; for binary cross-entropy one column a class [N, K]."""
        labels = self.images.y_train[chosen]
        if self.loss.kind != "bce":
            return labels
        one_hot = np.eye(len(self.classes), dtype=np.float32)[labels]
        return one_hot * np.float32(1 - self.smoothing) + np.float32(self.smoothing / len(self.classes))

    def test_inputs(self, start: int, stop: int) -> Float32:
        """Held-out images [M, 3, S, S]."""
        return preprocessed(self.images.x_test[start:stop], self.rule)

    def measured(self, outputs: Float32, start: int) -> Float32:  # noqa: ARG002 - logits are judged all at once
        """The logits themselves."""
        return outputs

    def score(self, measured: Float32) -> Score:
        """Accuracy."""
        return score_logits(measured, self.images.y_test)

    def fingerprint(self) -> str:
        """See `agent.images.fingerprint`."""
        return fingerprint(self.images)

    def skipped(self) -> tuple[int, str]:
        """Images that could not be read, and which."""
        count, names = self.images.skipped, self.images.skipped_names
        return count, f"{count} unreadable image{'s' * (count > 1)} skipped: {'; '.join(names)}" if count else ""

    def with_classes(self, classes: tuple[str, ...]) -> Classification:
        """Labels as indices into the model's classes (they differ from the data's when the head is kept)."""
        if classes == self.classes:
            return self
        index = np.asarray([classes.index(name) for name in self.classes], np.int64)
        images = self.images
        images = replace(images, y_train=index[images.y_train], y_test=index[images.y_test], classes=classes)
        return replace(self, images=images)

    def manifest(self) -> dict[str, object]:
        """What predicting needs."""
        size = self.images.x_test.shape[1]
        return {
            "classes": list(self.classes),
            "image_size": size,
            "scale": self.rule.scale,
            "offset": self.rule.offset,
        }

    def judging(self, manifest: dict[str, object]) -> Classification | None:
        """For a model with the same classes and image size."""
        mine = self.manifest()
        if any(manifest.get(key) != mine[key] for key in ("classes", "image_size")):
            return None
        return replace(self, rule=Preprocess(cast("float", manifest["scale"]), cast("float", manifest["offset"])))

    def decision(self, forward: Callable[[Float32], Float32]) -> dict[str, object]:  # noqa: ARG002 - nothing to learn
        """Nothing: the largest logit decides."""
        return {}


def classification(spec: FineTuneSpec, rule: Preprocess, obey: Callable[[], object] = lambda: None) -> Classification:
    """The images of a job; `obey` see `agent.images.load`.

    Raises:
        DataError: see `agent.images.load`.
    """
    images = load(spec.data, spec.image_size, spec.held_out, spec.seed, spec.most_samples, obey)
    if spec.loss == "bce":
        return Classification(images, rule, LossSpec("bce"), spec.label_smoothing, seed=spec.seed)
    loss = LossSpec("cross-entropy", label_smoothing=spec.label_smoothing)
    return Classification(images, rule, loss, seed=spec.seed)
