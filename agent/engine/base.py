"""The one face of training that the trainer sees, whatever runs the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from agent.engine.ir import Graph

if TYPE_CHECKING:
    from agent.engine.quantize import Int8Check
    from agent.engine.slices import SliceCheck

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32]
"""What a step learns from: class indices [N], or values of the output's own shape (float32)."""


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
    clip_norm: float = 0.0
    """Gradients are scaled down so that their global L2 norm is at most this (Pascanu et al. 2013); 0: never."""


@dataclass(frozen=True, slots=True)
class LossSpec:
    """Which loss of output and target a step lowers; always the mean over the batch (and, of values, their elements).

    `cross-entropy`: softmax cross-entropy of logits [N, K] with class indices [N] int64. `mse`: (y - t)^2. `l1`:
    |y - t|. `huber`: 0.5 (y - t)^2 where |y - t| <= delta, else delta (|y - t| - delta / 2). `bce`: binary
    cross-entropy of logits with targets 0..1. Targets of all but the first are float32 of the output's shape.
    """

    kind: str = "cross-entropy"
    label_smoothing: float = 0.0
    """Share of a label's weight that is spread evenly over all classes (Szegedy et al. 2016)."""
    delta: float = 1.0
    """Huber: where the square becomes a line."""


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """What learns.

    Attributes:
        frozen_layers: parametric layers, counted from the input, that learn nothing and have no backward pass.
        learning: names of the parameters past that boundary that learn; `None`: all of them. A layer whose parameters
            all stay as they are still passes gradients on.
    """

    frozen_layers: int
    learning: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """Everything a run needs beside the data.

    Attributes:
        graph: model whose parameters are float32 initializers.
        batch: samples a step; every step gets exactly this many.
        input_shape: shape of one sample, e.g. [C, H, W].
        frozen_layers: how many parametric layers (Conv, Gemm), counted from the input, are frozen at the start.
        optimizer: the update rule.
        threads: intra-op threads.
        loss: what a step lowers.
        micro_batch: samples that go through the step graph at once; their gradients are summed, so the update is that
            of the whole batch. It divides `batch`; 0: chosen from the memory that is free.
    """

    graph: Graph
    batch: int
    input_shape: tuple[int, ...]
    frozen_layers: int
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    threads: int = 2
    loss: LossSpec = field(default_factory=LossSpec)
    micro_batch: int = 0
    learning: frozenset[str] | None = None
    """What learns past the boundary at the start, as in `UpdatePlan`."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step gave.

    Attributes:
        loss: mean loss of the batch before the update.
        gradient_norm: global L2 norm of the gradient, before clipping.
        kept: whether the update was made; `False` when loss or gradient were not finite, and then nothing changed.
    """

    loss: float
    gradient_norm: float
    kept: bool


class TrainingRun(Protocol):
    """A run in progress. Not thread-safe; one step at a time."""

    @property
    def frozen_layers(self) -> int:
        """Parametric layers frozen now, counted from the input."""

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that learn now, in execution order."""

    @property
    def boundary_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape for one sample of each tensor that the learning part reads from the frozen part, in order.

        With nothing frozen this is the input itself.
        """

    @property
    def prefix_digest(self) -> bytes:
        """SHA-256 over the nodes and weights of the frozen part as it runs; see `identity.prefix_digest`.

        Equal digests promise equal `boundary` for equal samples. Found once a compilation: it is read at every step.
        """

    def step(self, samples: Float32, targets: Targets, learning_rate: float) -> StepResult:
        """One optimizer step on samples [N, ...] and their targets.

        Raises:
            EngineError: the runtime failed, or the batch does not fit.
        """

    def gradients(self, samples: Float32, targets: Targets) -> Mapping[str, Float32]:
        """Gradients of the parameters that learn now on one batch (copies); nothing is updated.

        Raises:
            EngineError: the runtime failed, or the batch does not fit.
        """

    def boundary(self, samples: Float32) -> tuple[Float32, ...]:
        """Run the frozen part on samples [M, ...], M >= 1: one array [M, ...] for each of `boundary_shapes`."""

    def step_from_boundary(self, activations: Sequence[Float32], targets: Targets, learning_rate: float) -> StepResult:
        """`step` on what `boundary` gave for a batch (or on what a cache kept of it)."""

    def outputs_from_boundary(self, activations: Sequence[Float32]) -> Float32:
        """`outputs` on what `boundary` gave for samples [M, ...], any M >= 1 (or on what a cache kept of it)."""

    def use_int8(
        self, calibration: Float32, held_out: Float32, score: Callable[[Sequence[Float32]], float]
    ) -> Int8Check:
        """Run the frozen part of the current plan in 8 bits if it scores as well and is faster here.

        It stays so until the plan changes or `use_float32`; what learns, learns on what the 8-bit part gives.

        Args:
            calibration: samples [M, ...] that show the ranges of its tensors.
            held_out: other samples [K, ...], to check it with.
            score: rates what crosses the boundary for them, greater is better, accuracies as 0..1.

        Raises:
            ModelError: nothing in it can run in 8 bits, or this engine cannot.
        """

    def use_slices(self, slower_allowed: float = ...) -> SliceCheck:
        """Run the frozen part's first stage in tiles of rows if that takes less memory and is not slower here.

        What it gives stays the same. It stays so until the plan changes or 8 bits are used.

        Args:
            slower_allowed: keep it up to this many times the duration on whole maps; a few per cent more by default.

        Raises:
            ModelError: it would save no memory, or this engine cannot.
        """

    def use_float32(self) -> None:
        """Run the frozen part in float32 again."""

    def set_frozen_layers(self, count: int) -> None:
        """`set_plan` with all parameters past the boundary learning."""

    def set_plan(self, plan: UpdatePlan) -> None:
        """Change between two steps what learns.

        Weights are kept, and so is the optimizer state of every parameter that was and stays trainable; a parameter
        that becomes trainable again starts from zero state.

        Raises:
            ModelError: the plan leaves nothing to learn, names an unknown parameter or needs a missing gradient rule;
                the run goes on as before.
        """

    @property
    def micro_batch(self) -> int:
        """Samples that go through the learning part at once now; it divides the batch."""

    def set_micro_batch_share(self, share: float) -> None:
        """Let at most `share` (0..1) of the usual micro-batch through at once from now on, and one sample at least.

        Updates stay those of the whole batch; a form that was chosen for the frozen part stays. It takes less memory
        and more time; 1 is the usual again.

        Raises:
            EngineError: the runtime failed; the run goes on as before.
            ModelError: this engine takes whole batches only.
        """

    def outputs(self, samples: Float32) -> Float32:
        """Forward pass with the current weights on samples [M, ...], any M >= 1."""

    def parameters(self) -> Mapping[str, Float32]:
        """Current values of all parameters, frozen ones included (copies)."""

    def frozen_memory(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """Every parameter that does not learn now and every other constant, where it lies: not copies.

        Valid until the plan changes. Sessions may have copies of their own beside these; see `probe`.
        """

    @property
    def form(self) -> int:
        """Number of the compilation that runs now; it comes back when its sessions were kept and run again."""

    @property
    def probe_samples(self) -> int:
        """As many samples as a probe takes at once: fewer take as long. The same in the same `form`."""

    def probe(self, samples: Float32) -> bytes:
        """Digest of what all that is constant inside the compiled sessions makes of samples [M, ...], M >= 1.

        The same samples give the same digest in the same `form`, whatever has been learnt meanwhile.
        Empty where no session holds a constant that `frozen_memory` does not give.

        Raises:
            EngineError: the runtime failed.
        """

    def renew(self) -> None:
        """Compile the frozen part anew, in the form in which it runs: what flipped in the runtime's copies is gone.

        Raises:
            EngineError: the runtime failed.
        """

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
