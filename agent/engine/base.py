"""The one face of training that the trainer sees, whatever runs the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from agent.engine.ir import Graph

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class OptimizerSpec:
    """Which update rule, with its constants.

    SGD with momentum: v <- momentum v + g + decay w; w <- w - lr v (Sutskever et al. 2013, as PyTorch writes it).
    AdamW: Loshchilov and Hutter 2019, decoupled decay, bias-corrected.
    """

    kind: str = "sgd"
    """`sgd` or `adamw`."""
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """Everything a run needs beside the data.

    Attributes:
        graph: model with a classification head; parameters are float32 initializers.
        batch: samples a step; every step gets exactly this many.
        input_shape: shape of one sample, e.g. [C, H, W].
        frozen_layers: how many parametric layers (Conv, Gemm), counted from the input, are frozen at the start.
        optimizer: the update rule.
        threads: intra-op threads.
    """

    graph: Graph
    batch: int
    input_shape: tuple[int, ...]
    frozen_layers: int
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    threads: int = 2


class TrainingRun(Protocol):
    """A run in progress. Not thread-safe; one step at a time."""

    @property
    def frozen_layers(self) -> int:
        """Parametric layers frozen now, counted from the input."""

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that learn now, in execution order."""

    def step(self, samples: Float32, labels: Int64, learning_rate: float) -> float:
        """One optimizer step on samples [N, C, H, W] and labels [N].

        Returns:
            The mean loss of the batch before the update.

        Raises:
            EngineError: the runtime failed.
        """

    def set_frozen_layers(self, count: int) -> None:
        """Move the freeze boundary between two steps.

        Weights are kept, and so is the optimizer state of every parameter that was and stays trainable; a parameter
        that becomes trainable again starts from zero state.
        """

    def logits(self, samples: Float32) -> Float32:
        """Forward pass with the current weights on samples [M, C, H, W], any M >= 1."""

    def parameters(self) -> Mapping[str, Float32]:
        """Current values of all parameters, frozen ones included (copies)."""

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Weights and optimizer state as plain arrays, enough for `load_state` to go on bit for bit."""

    def load_state(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Go on from what `state` gave on a run with the same graph and optimizer."""

    def close(self) -> None:
        """Release sessions and files."""


class TrainingEngine(Protocol):
    """Makes runs."""

    name: str

    def start(self, setup: TrainingSetup) -> TrainingRun:
        """Compile the training step.

        Raises:
            ModelError: an operator, shape or type that this engine cannot train; names the node.
            EngineError: the runtime refused the compiled graph.
        """
