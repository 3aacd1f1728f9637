"""Engine `graph`: the whole training step is one ONNX graph of ours, run by a plain InferenceSession."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from agent.engine.base import Float32, Int64, TrainingRun, TrainingSetup
from agent.engine.optimizers import LEARNING_RATE, ROOT_CORRECTION, STEP_SIZE
from agent.engine.passes import check_boundary, fold_batch_norm
from agent.engine.program import Program
from agent.engine.sessions import FORWARD_CHUNK, first_line
from agent.errors import EngineError, ModelError

WEIGHT, UPDATES = "weight/", "updates/"  # key prefixes in a saved state


class GraphEngine:
    """Compiles gradient graphs for any onnxruntime."""

    name = "graph"

    def start(self, setup: TrainingSetup) -> TrainingRun:
        """See `TrainingEngine.start`."""
        return GraphRun(setup)


class GraphRun:
    """A run of the `graph` engine; see `TrainingRun`."""

    def __init__(self, setup: TrainingSetup) -> None:
        graph = replace(setup.graph, input_shape=setup.input_shape)
        self._graph = fold_batch_norm(graph)
        self._setup = setup
        self._layers = self._graph.layers()
        self._updates_made: dict[str, int] = {}
        self._frozen = -1
        self._program: Program | None = self._compile(setup.frozen_layers)

    @property
    def frozen_layers(self) -> int:
        """Parametric layers frozen now, counted from the input."""
        return self._frozen

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that learn now, in execution order."""
        return tuple(update.parameter for update in self._running.step_graph.updates)

    def step(self, samples: Float32, labels: Int64, learning_rate: float) -> float:
        """See `TrainingRun.step`."""
        expected = (self._setup.batch, *self._graph.input_shape)
        if samples.shape != expected or labels.shape != expected[:1]:
            raise EngineError(f"a batch of shape {samples.shape} and {labels.shape} does not fit {expected}")
        try:
            loss = self._running.run(samples, labels, self._scalars(learning_rate))
        except Exception as error:  # onnxruntime raises many unrelated types from C++
            raise EngineError("a training step failed", where=first_line(error)) from error
        for name in self.trainable:
            self._updates_made[name] = self._updates_made.get(name, 0) + 1
        return loss

    def set_frozen_layers(self, count: int) -> None:
        """See `TrainingRun.set_frozen_layers`."""
        if count == self._frozen:
            return
        check_boundary(len(self._layers), count)  # before anything is given up
        kept = self.state()
        weights = {key.removeprefix(WEIGHT): value for key, value in kept.items() if key.startswith(WEIGHT)}
        self._graph = self._graph.with_weights(weights)
        self._program = None  # two programs at once would double the peak
        self._program = self._compile(count)
        self._restore(kept)

    def logits(self, samples: Float32) -> Float32:
        """See `TrainingRun.logits`."""
        starts = range(0, len(samples), FORWARD_CHUNK)
        return np.concatenate([self._running.logits(samples[i : i + FORWARD_CHUNK]) for i in starts])

    def parameters(self) -> Mapping[str, Float32]:
        """See `TrainingRun.parameters`."""
        current = self._running.current
        weights = self._graph.initializers
        return {
            name: np.array(current[name].numpy() if name in current else weights[name], np.float32)
            for layer in self._layers
            for name in layer.parameters
        }

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """See `TrainingRun.state`."""
        found: dict[str, npt.NDArray[np.generic]] = {WEIGHT + k: v for k, v in self.parameters().items()}
        for update in self._running.step_graph.updates:
            found |= {name: self._running.current[name].numpy().copy() for name in update.states}
            made = self._updates_made.get(update.parameter, 0)
            found[UPDATES + update.parameter] = np.asarray(made, np.int64)
        return found

    def load_state(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """See `TrainingRun.load_state`."""
        names = [name for layer in self._layers for name in layer.parameters]
        lost = [name for name in names if WEIGHT + name not in state]
        if lost:
            raise EngineError("the saved state does not fit this model", where=lost[0])
        try:
            self._graph = self._graph.with_weights({name: np.asarray(state[WEIGHT + name]) for name in names})
        except ModelError as error:
            raise EngineError("the saved state does not fit this model", where=error.where) from error
        self._updates_made = {k.removeprefix(UPDATES): int(v) for k, v in state.items() if k.startswith(UPDATES)}
        self._program = None
        self._program = self._compile(self._frozen)
        self._restore(state)

    def close(self) -> None:
        """See `TrainingRun.close`; sessions go with the last reference."""
        self._program = None

    @property
    def _running(self) -> Program:
        if self._program is None:
            raise EngineError("the run is closed, or its last compilation failed")
        return self._program

    def _compile(self, frozen_layers: int) -> Program:
        learning = {name for layer in self._layers[frozen_layers:] for name in layer.parameters}
        self._updates_made = {name: made for name, made in self._updates_made.items() if name in learning}
        self._frozen = frozen_layers
        setup = self._setup
        return Program(self._graph, frozen_layers, setup.batch, setup.optimizer, self._groups(learning), setup.threads)

    def _groups(self, learning: set[str]) -> dict[str, int]:
        """Parameters that have made equally many updates share AdamW's bias corrections."""
        counts = sorted({self._updates_made.get(name, 0) for name in learning})
        return {name: counts.index(self._updates_made.get(name, 0)) for name in learning}

    def _restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Put saved optimizer state back where the parameter still learns."""
        current = self._running.current
        for update in self._running.step_graph.updates:
            for name in update.states:
                if name in state:
                    current[name].update_inplace(np.ascontiguousarray(state[name]))

    def _scalars(self, learning_rate: float) -> dict[str, float]:
        """Learning rate and, for each group, AdamW's corrections at step t = updates made + 1."""
        spec = self._setup.optimizer
        values = {LEARNING_RATE: learning_rate}
        if spec.kind == "adamw":
            for update in self._running.step_graph.updates:
                t = self._updates_made.get(update.parameter, 0) + 1
                values[f"{STEP_SIZE}.{update.group}"] = learning_rate / (1 - spec.beta1**t)
                values[f"{ROOT_CORRECTION}.{update.group}"] = (1 - spec.beta2**t) ** -0.5
        return values
