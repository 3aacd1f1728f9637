"""Engine `ort-training`: gradients from onnxruntime-training 1.19.2, the update on the host.

The runtime's own optimizers are not used. Its SGD knows neither momentum nor decay; its AdamW counts steps for all
parameters together, so one that is thawed later would start with the wrong bias correction (its first steps three times
too large), and its state cannot be carried over a move of the freeze boundary except by rewriting the checkpoint file.
The update over the session's live parameter memory does all of that, at 13 instead of 9 ms beside a step of 220 ms
(AdamW, MobileNetV2 1.0, 16 x 96 px).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from agent.engine.base import Float32, LossSpec, StepResult, Targets, TrainingRun, TrainingSetup, UpdatePlan
from agent.engine.identity import prefix_digest
from agent.engine.ir import Graph, shapes
from agent.engine.optimizers import apply_update, clip_scale, gradient_norm, state_names
from agent.engine.ort_artifacts import Session, check_operators, open_session
from agent.engine.passes import check_boundary, fold_batch_norm
from agent.engine.quantize import Int8Check
from agent.engine.sessions import FORWARD_CHUNK
from agent.engine.slices import SLOWER_ALLOWED, SliceCheck
from agent.errors import EngineError, ModelError

WHOLE_LAYERS = "engine ort-training updates all parameters past the boundary"


class OrtTrainingEngine:
    """Compiles training steps with the training runtime; x86-64 and Python 3.12 or older only."""

    name = "ort-training"

    def start(self, setup: TrainingSetup) -> TrainingRun:
        """See `TrainingEngine.start`; SpecError where the training wheel is not installed."""
        return OrtTrainingRun(setup)


class OrtTrainingRun:
    """A run of the `ort-training` engine; see `TrainingRun`."""

    def __init__(self, setup: TrainingSetup) -> None:
        if setup.learning is not None:
            raise ModelError(WHOLE_LAYERS, fix='Use engine "graph"')
        if setup.loss != LossSpec() or setup.micro_batch not in (0, setup.batch):
            raise ModelError(
                "engine ort-training knows plain cross-entropy over whole batches only", fix='Use engine "graph"'
            )
        graph = replace(setup.graph, input_shape=setup.input_shape)
        self._graph: Graph = fold_batch_norm(graph)
        check_operators(self._graph)
        self._setup = setup
        self._classes = shapes(self._graph, setup.batch)[self._graph.output][-1]
        self._layers = self._graph.layers()
        self._state: dict[str, Float32] = {}
        self._updates_made: dict[str, int] = {}
        self._session: Session | None = None
        initial = {name: self._graph.initializers[name] for layer in self._layers for name in layer.parameters}
        self._open({name: np.asarray(value, np.float32) for name, value in initial.items()}, setup.frozen_layers)

    @property
    def frozen_layers(self) -> int:
        """Parametric layers frozen now, counted from the input."""
        return self._frozen

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that learn now, in execution order."""
        return self._learning(self._frozen)

    @property
    def boundary_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The input itself: this engine runs a frozen part in every step."""
        return {self._graph.input: self._graph.input_shape}

    @property
    def prefix_digest(self) -> bytes:
        """See `TrainingRun.prefix_digest`."""
        return prefix_digest((), {}, self._graph.input)

    def step(self, samples: Float32, targets: Targets, learning_rate: float) -> StepResult:
        """See `TrainingRun.step`."""
        self._check_batch(samples, targets)
        session, spec = self._running, self._setup.optimizer
        loss = session.backward(np.ascontiguousarray(samples, np.float32), np.ascontiguousarray(targets, np.int64))
        norm = gradient_norm([session.gradients[name] for name in self.trainable])
        if not math.isfinite(loss) or not math.isfinite(norm):
            return StepResult(loss, norm, kept=False)
        scale = clip_scale(spec, norm)
        for name in self.trainable:
            state = [self._state[key] for key in state_names(spec, name)]
            made = self._updates_made[name]
            apply_update(spec, session.weights[name], session.gradients[name], state, made, learning_rate, scale)
            self._updates_made[name] = made + 1
        return StepResult(loss, norm, kept=True)

    def gradients(self, samples: Float32, targets: Targets) -> Mapping[str, Float32]:
        """See `TrainingRun.gradients`."""
        self._check_batch(samples, targets)
        session = self._running
        session.backward(np.ascontiguousarray(samples, np.float32), np.ascontiguousarray(targets, np.int64))
        return {name: session.gradients[name].copy() for name in self.trainable}

    def boundary(self, samples: Float32) -> tuple[Float32, ...]:
        """See `boundary_shapes`."""
        return (samples,)

    def step_from_boundary(self, activations: Sequence[Float32], targets: Targets, learning_rate: float) -> StepResult:
        """See `boundary_shapes`."""
        (samples,) = activations
        return self.step(samples, targets, learning_rate)

    def set_frozen_layers(self, count: int) -> None:
        """See `TrainingRun.set_frozen_layers`."""
        if count != self._frozen:
            self._open(self.parameters(), count)

    def set_plan(self, plan: UpdatePlan) -> None:
        """Prefix depths only."""
        if plan.learning is not None:
            raise ModelError(WHOLE_LAYERS, fix='Use engine "graph"')
        self.set_frozen_layers(plan.frozen_layers)

    def use_int8(
        self,
        calibration: Float32,  # noqa: ARG002 - the protocol's
        held_out: Float32,  # noqa: ARG002 - same
        score: Callable[[Sequence[Float32]], float],  # noqa: ARG002 - same
    ) -> Int8Check:
        """Not in this engine: its graph is one, frozen part included."""
        raise ModelError("engine ort-training has no 8-bit frozen part", fix='Use engine "graph"')

    def use_slices(self, slower_allowed: float = SLOWER_ALLOWED) -> SliceCheck:  # noqa: ARG002 - the protocol's
        """Not in this engine: its graph is one, frozen part included."""
        raise ModelError("engine ort-training has no frozen part of its own to tile", fix='Use engine "graph"')

    def use_float32(self) -> None:
        """It never is anything else."""

    @property
    def micro_batch(self) -> int:
        """The whole batch."""
        return self._setup.batch

    def set_micro_batch_share(self, share: float) -> None:
        """Not in this engine: its step takes the whole batch at once."""
        if share < 1.0:
            raise ModelError("engine ort-training takes whole batches only", fix='Use engine "graph"')

    def outputs_from_boundary(self, activations: Sequence[Float32]) -> Float32:
        """See `boundary_shapes`."""
        (samples,) = activations
        return self.outputs(samples)

    def outputs(self, samples: Float32) -> Float32:
        """See `TrainingRun.outputs`."""
        whole = np.ascontiguousarray(samples, np.float32)
        if whole.shape[1:] != self._graph.input_shape or not len(whole):
            raise EngineError(f"samples of shape {whole.shape} do not fit {self._graph.input_shape}")
        session = self._running
        parts = [session.forward(whole[i : i + FORWARD_CHUNK]) for i in range(0, len(whole), FORWARD_CHUNK)]
        return np.concatenate(parts)

    def parameters(self) -> dict[str, Float32]:
        """See `TrainingRun.parameters`."""
        return {name: value.copy() for name, value in self._running.weights.items()}

    def frozen_memory(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """See `TrainingRun.frozen_memory`: the session reads its parameters, frozen ones too, where they are given."""
        learning = set(self.trainable)
        values = {**self._graph.initializers, **self._running.weights}
        return {name: value for name, value in values.items() if name not in learning}

    @property
    def form(self) -> int:
        """No matter: see `probe`."""
        return 0

    @property
    def probe_samples(self) -> int:
        """No matter: see `probe`."""
        return self._setup.batch

    def probe(self, samples: Float32) -> bytes:  # noqa: ARG002 - the protocol's
        """Nothing to ask for: see `frozen_memory`."""
        return b""

    def renew(self) -> None:
        """Nothing to do: see `frozen_memory`."""

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """See `TrainingRun.state`; the same keys as engine `graph`, so a run may go on there."""
        found: dict[str, npt.NDArray[np.generic]] = {f"weight/{k}": v for k, v in self.parameters().items()}
        found |= {key: value.copy() for key, value in self._state.items()}
        return found | {f"updates/{name}": np.asarray(made, np.int64) for name, made in self._updates_made.items()}

    def load_state(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """See `TrainingRun.load_state`; the boundary stays where it is, and nothing changes unless all of it fits."""
        session, spec = self._running, self._setup.optimizer
        weights = {name: _fitting(state, f"weight/{name}", old) for name, old in session.weights.items()}
        keys = {key: session.weights[name] for name in self.trainable for key in state_names(spec, name)}
        moments = {key: _fitting(state, key, like) for key, like in keys.items()}
        zero = np.zeros((), np.int64)
        made = {name: int(_fitting(state, f"updates/{name}", zero)) for name in self.trainable}
        for name, value in weights.items():
            session.weights[name][...] = value
        self._state = {key: np.array(value, np.float32) for key, value in moments.items()}
        self._updates_made = made

    def close(self) -> None:
        """See `TrainingRun.close`; there are no files left to remove."""
        self._session = None
        self._state.clear()

    @property
    def _running(self) -> Session:
        if self._session is None:
            raise EngineError("the run is closed")
        return self._session

    def _learning(self, frozen_layers: int) -> tuple[str, ...]:
        # Layers that share a weight name it once, at the first place.
        return tuple(dict.fromkeys(name for layer in self._layers[frozen_layers:] for name in layer.parameters))

    def _open(self, weights: Mapping[str, Float32], frozen_layers: int) -> None:
        """Compile for a boundary; optimizer state of what stays trainable is kept, the rest starts at zero."""
        check_boundary(len(self._layers), frozen_layers)
        learning = self._learning(frozen_layers)
        self._session = open_session(self._graph, weights, learning, self._setup.threads)
        self._frozen = frozen_layers
        self._updates_made = {name: self._updates_made.get(name, 0) for name in learning}
        keys = {key: name for name in learning for key in state_names(self._setup.optimizer, name)}
        self._state = {
            key: self._state[key] if key in self._state else np.zeros_like(weights[name]) for key, name in keys.items()
        }

    def _check_batch(self, samples: Float32, labels: Targets) -> None:
        expected = (self._setup.batch, *self._graph.input_shape)
        if samples.shape != expected or labels.shape != expected[:1]:
            raise EngineError(f"a batch of shape {samples.shape} and {labels.shape} does not fit {expected}")
        if labels.min() < 0 or labels.max() >= self._classes:  # the runtime would read beyond the scores
            raise EngineError(f"a label is outside 0..{self._classes - 1}")


def _fitting(
    state: Mapping[str, npt.NDArray[np.generic]], key: str, like: npt.NDArray[np.generic]
) -> npt.NDArray[np.generic]:
    value = state.get(key)
    if value is None or value.shape != like.shape or value.dtype != like.dtype:
        raise EngineError("the saved state does not fit this model", where=key, reason="checkpoint-mismatch")
    return value
