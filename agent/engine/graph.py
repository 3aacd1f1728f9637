"""Engine `graph`: the whole training step is one ONNX graph of ours, run by a plain InferenceSession.

Three sessions make a run: `prefix` (frozen layers, weights as constants, so that the runtime may pack and fuse them),
`step` (suffix forward, loss, backward, update) and, once somebody asks for logits, `forward` (suffix only). Parameters
and optimizer state live in two sets of device values that are swapped after each step: what one step writes the next
reads, and nothing is copied through NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from agent.engine import autodiff
from agent.engine.base import Float32, Int64, TrainingRun, TrainingSetup
from agent.engine.ir import Graph, model_proto
from agent.engine.losses import LABELS, LOSS
from agent.engine.optimizers import LEARNING_RATE, NEW, ROOT_CORRECTION, STEP_SIZE, state_names
from agent.engine.passes import fold_batch_norm
from agent.errors import EngineError, ModelError

LOG_ERRORS_ONLY = 3
FORWARD_CHUNK = 64  # samples a forward call: bounds the memory of an evaluation


def session(model: onnx.ModelProto | bytes, threads: int) -> ort.InferenceSession:
    """A CPU session.

    Raises:
        EngineError: the runtime refuses the graph.
    """
    options = ort.SessionOptions()
    options.log_severity_level = LOG_ERRORS_ONLY
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    if _share_threads(threads):
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    data = model if isinstance(model, bytes) else model.SerializeToString()
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many unrelated types from C++
        raise EngineError("onnxruntime refuses the graph", where=first_line(error)) from error


@functools.cache
def _share_threads(threads: int) -> bool:
    """One thread pool for all sessions, made at the first call: idle pools that spin would take the busy one's cores.

    False on runtimes without global pools (before 1.2x); their sessions get pools of their own that do not spin.
    """
    if not hasattr(ort, "set_global_thread_pool_sizes") or _share_threads.cache_info().currsize:
        return False
    ort.set_global_thread_pool_sizes(threads, 1)
    return True


def first_line(error: Exception) -> str:
    """The telling part of a runtime error."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


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
        self._graph: Graph = fold_batch_norm(graph) if any(n.op == "BatchNormalization" for n in graph.nodes) else graph
        self._setup = setup
        self._layers = self._graph.layers()
        # Frozen weights rest as arrays in the graph; trainable ones and their state as device values.
        self._values: dict[str, ort.OrtValue] = {}
        self._rest: dict[str, Float32] = {
            name: np.asarray(self._graph.initializers[name], np.float32)
            for layer in self._layers
            for name in layer.parameters
        }
        self._updates_made: dict[str, int] = {}
        self._compile(setup.frozen_layers)

    @property
    def frozen_layers(self) -> int:
        """Parametric layers frozen now, counted from the input."""
        return self._frozen

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that learn now, in execution order."""
        return tuple(update.parameter for update in self._step_graph.updates)

    def step(self, samples: Float32, labels: Int64, learning_rate: float) -> float:
        """See `TrainingRun.step`."""
        self._check_batch(samples, labels)
        try:
            self._feed(samples, labels, learning_rate)
            if self._prefix_binding is not None:
                self._prefix.run_with_iobinding(self._prefix_binding)
            self._step.run_with_iobinding(self._bindings[self._turn])
        except Exception as error:  # noqa: BLE001 - onnxruntime raises many unrelated types from C++
            raise EngineError("a training step failed", where=first_line(error)) from error
        self._turn = 1 - self._turn
        for name in self.trainable:
            self._updates_made[name] = self._updates_made.get(name, 0) + 1
        return float(self._loss.numpy())

    def set_frozen_layers(self, count: int) -> None:
        """See `TrainingRun.set_frozen_layers`."""
        if count != self._frozen:
            kept = self.state()
            self._compile(count)
            self._fill(kept, dropping=False)

    def logits(self, samples: Float32) -> Float32:
        """See `TrainingRun.logits`."""
        if self._forward is None:
            self._forward = session(self._forward_model(), self._setup.threads)
        parts = [self._logits_of(samples[i : i + FORWARD_CHUNK]) for i in range(0, len(samples), FORWARD_CHUNK)]
        return np.concatenate(parts)

    def parameters(self) -> Mapping[str, Float32]:
        """See `TrainingRun.parameters`."""
        current = self._current()
        return {
            name: current[name].numpy().copy() if name in current else value.copy()
            for name, value in self._rest.items()
        }

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """See `TrainingRun.state`."""
        found: dict[str, npt.NDArray[np.generic]] = {f"weight/{k}": v for k, v in self.parameters().items()}
        current = self._current()
        found |= {name: value.numpy().copy() for name, value in current.items() if name not in self._rest}
        for name in self.trainable:
            found[f"updates/{name}"] = np.asarray(self._updates_made.get(name, 0), np.int64)
        return found

    def load_state(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """See `TrainingRun.load_state`."""
        weights = {name: state.get(f"weight/{name}") for name in self._rest}
        for name, value in weights.items():
            if value is None or value.shape != self._rest[name].shape:
                raise EngineError("the saved state does not fit this model", where=name)
            self._rest[name] = np.asarray(value, np.float32)
        self._updates_made = {
            key.removeprefix("updates/"): int(value) for key, value in state.items() if key.startswith("updates/")
        }
        self._compile(self._frozen)
        self._fill(state, dropping=True)

    def close(self) -> None:
        """See `TrainingRun.close`."""
        self._values.clear()
        self._bindings = ()

    # --- compilation -------------------------------------------------------------------------------------------------

    def _compile(self, frozen_layers: int) -> None:
        """Build both sessions for a boundary; weights at rest become constants of the prefix."""
        if not 0 <= frozen_layers < len(self._layers):
            raise ModelError(
                f"cannot freeze {frozen_layers} of {len(self._layers)} layers: at least the last must learn"
            )
        if self._values:
            self._rest = dict(self.parameters())
        self._graph = self._graph.with_weights(self._rest)
        learning = {name for layer in self._layers[frozen_layers:] for name in layer.parameters}
        self._updates_made = {name: n for name, n in self._updates_made.items() if name in learning}
        groups = self._groups(learning)
        self._step_graph = autodiff.step_graph(
            self._graph, frozen_layers, self._setup.batch, self._setup.optimizer, groups
        )
        self._frozen = frozen_layers
        self._forward: ort.InferenceSession | None = None
        self._step = session(self._step_graph.model, self._setup.threads)
        cut = self._step_graph.cut
        self._prefix = session(self._prefix_model(), self._setup.threads) if cut.prefix else None
        self._allocate()

    def _groups(self, learning: set[str]) -> dict[str, int]:
        """Parameters that have made equally many updates share AdamW's bias corrections."""
        counts = sorted({self._updates_made.get(name, 0) for name in learning})
        return {name: counts.index(self._updates_made.get(name, 0)) for name in learning}

    def _prefix_model(self) -> onnx.ModelProto:
        cut, graph = self._step_graph.cut, self._graph
        return model_proto(
            cut.prefix,
            graph.initializers,
            {graph.input: (np.float32, ("N", *graph.input_shape))},
            {name: (np.float32, ("N", *self._step_graph.crossing_shapes[name][1:])) for name in self._made_by_prefix()},
        )

    def _made_by_prefix(self) -> tuple[str, ...]:
        return tuple(name for name in self._step_graph.cut.crossing if name != self._graph.input)

    def _forward_model(self) -> onnx.ModelProto:
        cut, graph = self._step_graph.cut, self._graph
        learning = set(self.trainable)
        inputs: dict[str, autodiff.Tensor] = {
            name: (np.float32, ("N", *shape[1:])) for name, shape in self._step_graph.crossing_shapes.items()
        }
        inputs |= {name: (np.float32, self._rest[name].shape) for name in self.trainable}
        constants = {name: value for name, value in graph.initializers.items() if name not in learning}
        return model_proto(cut.suffix, constants, inputs, {graph.output: None})

    # --- values ------------------------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        """Device values and the two bindings that swap them."""
        spec, batch = self._setup.optimizer, self._setup.batch
        self._values = {}
        pairs: list[tuple[str, ort.OrtValue, ort.OrtValue]] = []
        for name in self.trainable:
            for key in (name, *state_names(spec, name)):
                start = self._rest[name] if key == name else np.zeros_like(self._rest[name])
                pairs.append((key, _value(start), _value(np.zeros_like(start))))
        self._sides = ({k: a for k, a, _ in pairs}, {k: b for k, _, b in pairs})
        self._turn = 0
        self._samples = _value(np.zeros((batch, *self._graph.input_shape), np.float32))
        self._labels = _value(np.zeros(batch, np.int64))
        self._scalars = {
            entry.name: _value(np.zeros((), np.float32))
            for entry in self._step.get_inputs()
            if entry.name == LEARNING_RATE or entry.name.startswith((STEP_SIZE, ROOT_CORRECTION))
        }
        self._loss = _value(np.zeros((), np.float32))
        self._crossing = {
            name: self._samples if name == self._graph.input else _value(np.zeros(shape, np.float32))
            for name, shape in self._step_graph.crossing_shapes.items()
        }
        self._values = self._sides[0]
        self._bindings = tuple(self._bind(self._sides[i], self._sides[1 - i]) for i in (0, 1))
        self._prefix_binding = None
        if self._prefix is not None:
            self._prefix_binding = self._prefix.io_binding()
            self._prefix_binding.bind_ortvalue_input(self._graph.input, self._samples)
            for name in self._made_by_prefix():
                self._prefix_binding.bind_ortvalue_output(name, self._crossing[name])

    def _bind(self, source: dict[str, ort.OrtValue], target: dict[str, ort.OrtValue]) -> ort.IOBinding:
        binding = self._step.io_binding()
        for name, value in (*self._crossing.items(), (LABELS, self._labels), *self._scalars.items(), *source.items()):
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(LOSS, self._loss)
        for name, value in target.items():
            binding.bind_ortvalue_output(NEW + name, value)
        return binding

    def _current(self) -> dict[str, ort.OrtValue]:
        return self._sides[self._turn]

    def _fill(self, state: Mapping[str, npt.NDArray[np.generic]], *, dropping: bool) -> None:
        """Put saved optimizer state back; with `dropping`, weights too (they were compiled in already)."""
        for name, value in self._current().items():
            saved = state.get(name)
            if saved is not None and name not in self._rest and saved.shape == tuple(value.shape()):
                value.update_inplace(np.ascontiguousarray(saved))
            elif dropping and name not in self._rest:
                raise EngineError("the saved state lacks optimizer state", where=name)

    def _feed(self, samples: Float32, labels: Int64, learning_rate: float) -> None:
        self._samples.update_inplace(np.ascontiguousarray(samples, np.float32))
        self._labels.update_inplace(np.ascontiguousarray(labels, np.int64))
        self._scalars[LEARNING_RATE].update_inplace(np.asarray(learning_rate, np.float32))
        spec = self._setup.optimizer
        if spec.kind != "adamw":
            return
        for update in self._step_graph.updates:
            t = self._updates_made.get(update.parameter, 0) + 1
            self._scalars[f"{STEP_SIZE}.{update.group}"].update_inplace(
                np.asarray(learning_rate / (1 - spec.beta1**t), np.float32)
            )
            self._scalars[f"{ROOT_CORRECTION}.{update.group}"].update_inplace(
                np.asarray((1 - spec.beta2**t) ** -0.5, np.float32)
            )

    def _logits_of(self, samples: Float32) -> Float32:
        assert self._forward is not None
        feeds = {self._graph.input: np.ascontiguousarray(samples, np.float32)}
        made = dict(zip(self._made_by_prefix(), self._prefix.run(None, feeds), strict=True)) if self._prefix else {}
        wanted = feeds | made
        values = {name: ort.OrtValue.ortvalue_from_numpy(wanted[name]) for name in self._step_graph.crossing_shapes}
        current = self._current()
        values |= {name: current[name] for name in self.trainable}
        result: Float32 = self._forward.run_with_ort_values(None, values)[0].numpy()
        return result

    def _check_batch(self, samples: Float32, labels: Int64) -> None:
        expected = (self._setup.batch, *self._graph.input_shape)
        if samples.shape != expected or labels.shape != expected[:1]:
            raise EngineError(f"a batch of shape {samples.shape} and {labels.shape} does not fit {expected}")


def _value(array: npt.NDArray[np.generic]) -> ort.OrtValue:
    """A device value with its own memory."""
    value = ort.OrtValue.ortvalue_from_shape_and_type(list(array.shape), array.dtype.type, "cpu", 0)
    value.update_inplace(np.ascontiguousarray(array))
    return value
