"""What a job learns and how it is judged: the one face that trainer, gate and promotion see of the three tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from agent.anomaly import anomaly_detection
from agent.card import ANOMALY_DETECTION, IMAGE_CLASSIFICATION, ModelCard
from agent.classification import classification
from agent.engine.base import Float32, Int64, LossSpec, Targets
from agent.errors import SpecError
from agent.evaluate import Baseline, Score
from agent.forecasting import forecasting
from agent.spec import FineTuneSpec


class Task(Protocol):
    """A task with a job's data, split once."""

    @property
    def name(self) -> str:
        """One of `agent.card.TASKS`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the data; empty where the task has none."""

    @property
    def loss(self) -> LossSpec:
        """What a training step lowers."""

    @property
    def train_samples(self) -> int:
        """How many samples there are to learn from."""

    @property
    def test_samples(self) -> int:
        """How many are held out."""

    @property
    def baselines(self) -> tuple[Baseline, ...]:
        """What no model at all scores on the held-out samples; the gate asks for more than the first."""

    @property
    def rule(self) -> object:
        """How samples become the model's input; its `repr` tells any two rules apart."""

    def inputs(self, chosen: Int64) -> Float32:
        """Training samples by number [N] as the model's input [N, ...]."""

    def view(self, chosen: Int64, number: int) -> Float32:
        """One of their fixed views: number 0 is `inputs`, and the only one of what is no picture."""

    def targets(self, chosen: Int64) -> Targets:
        """What the model is to answer for them."""

    def test_inputs(self, start: int, stop: int) -> Float32:
        """A run of held-out samples as the model's input [M, ...]."""

    def measured(self, outputs: Float32, start: int) -> Any:  # noqa: ANN401 - each task's own array
        """What scoring needs of the outputs [M, ...] for the held-out samples from `start` on: an array [M, ...]."""

    def score(self, measured: Any) -> Score:  # noqa: ANN401 - same
        """Score what `measured` gave for all held-out samples, in order."""

    def fingerprint(self) -> str:
        """SHA-256 over the data as split, in hexadecimal."""

    def skipped(self) -> tuple[int, str]:
        """How many samples could not be used, and which, in words."""

    def with_classes(self, classes: tuple[str, ...]) -> Task:
        """The same data, labelled by the classes of the model's outputs."""

    def manifest(self) -> dict[str, object]:
        """What predicting with the tuned model needs, as JSON values."""

    def judging(self, manifest: dict[str, object]) -> Task | None:
        """The same held-out samples as another tuned model takes them; `None` when the two cannot be compared."""

    def decision(self, forward: Callable[[Float32], Float32]) -> dict[str, object]:
        """What is learnt of the training samples once the weights are: entries for the manifest."""


def load_task(spec: FineTuneSpec, card: ModelCard, obey: Callable[[], object] = lambda: None) -> Task:
    """The task of a model with the data of a job; `obey` is called before each picture and may wait or raise.

    Raises:
        DataError: the data cannot be used.
        SpecError: the job asks for what does not fit the task.
    """
    if spec.views > 1 and card.task != IMAGE_CLASSIFICATION:
        raise SpecError(
            f"views are for pictures, and {spec.model} is for {card.task}", where="views", fix="Leave it out"
        )
    if card.task == IMAGE_CLASSIFICATION:
        assert card.preprocess is not None
        return classification(spec, card.preprocess, obey)
    assert card.windows is not None
    return (anomaly_detection if card.task == ANOMALY_DETECTION else forecasting)(spec, card.windows)
