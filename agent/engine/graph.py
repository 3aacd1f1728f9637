"""Engine `graph`: loss and gradients are one ONNX graph of ours, run by a plain InferenceSession."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from agent.engine.arena import Arena
from agent.engine.base import Float32, StepResult, Targets, TrainingRun, TrainingSetup, UpdatePlan
from agent.engine.footprint import Footprint
from agent.engine.ir import Array
from agent.engine.optimizers import apply_update, clip_scale, gradient_norm, state_kinds, state_names
from agent.engine.passes import fold_batch_norm, learning_parameters
from agent.engine.program import Program
from agent.engine.quantize import Int8Check
from agent.engine.sessions import first_line, shrink_arena
from agent.engine.shelf import Shelf
from agent.engine.slices import SLOWER_ALLOWED, SliceCheck
from agent.errors import EngineError, ModelError, TemperdError
from agent.memory import return_memory, trim_memory

Made = TypeVar("Made")
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
        if setup.micro_batch and setup.batch % setup.micro_batch:
            raise EngineError(f"a micro-batch of {setup.micro_batch} does not divide a batch of {setup.batch}")
        return_memory()
        graph = fold_batch_norm(replace(setup.graph, input_shape=setup.input_shape))
        names = dict.fromkeys(name for layer in graph.layers() for name in layer.parameters)
        self._weights = Arena({name: graph.initializers[name].shape for name in names})
        self._weights.fill(graph.initializers)
        self._graph = graph.with_weights(self._weights.views)  # constants and weights are one memory
        self._setup = replace(setup, graph=self._graph)  # the weights that came in may be forgotten
        self._gradients = Arena(self._weights.shapes)  # pages of what never learns are never touched
        self._moments = tuple(Arena(self._weights.shapes) for _ in state_kinds(setup.optimizer))
        self._updates_made: dict[str, int] = {}
        self._steps = 0
        self._changed_at: dict[str, int] = {}
        self._shelf = Shelf()
        self._share = 1.0
        self._threads = ThreadPoolExecutor(max(1, setup.threads - 1))
        self._plan = UpdatePlan(setup.frozen_layers, setup.learning)
        self._program: Program | None = self._compile(self._plan)

    @property
    def frozen_layers(self) -> int:
        """Parametric layers frozen now, counted from the input."""
        return self._plan.frozen_layers

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that learn now, in execution order."""
        return self._running.learning

    @property
    def boundary_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See `TrainingRun.boundary_shapes`."""
        return self._running.boundary

    @property
    def footprint(self) -> Footprint:
        """Predicted memory of the plan that runs now."""
        program = self._running
        taken = sum(self._weights.views[name].nbytes for name in program.learning) * (1 + len(self._moments))
        return replace(program.footprint, parameters=program.footprint.parameters + taken)

    @property
    def micro_batch(self) -> int:
        """Samples that go through the step graph at once, as asked for or as chosen."""
        return self._running.micro_batch

    @property
    def prefix_digest(self) -> bytes:
        """See `TrainingRun.prefix_digest`."""
        return self._running.prefix.digest

    def step(self, samples: Float32, targets: Targets, learning_rate: float) -> StepResult:
        """See `TrainingRun.step`."""
        self._check([samples], [self._graph.input_shape], targets)
        return self._update(self._run(lambda program: program.backward(samples, targets)), learning_rate)

    def gradients(self, samples: Float32, targets: Targets) -> Mapping[str, Float32]:
        """See `TrainingRun.gradients`."""
        self._check([samples], [self._graph.input_shape], targets)
        self._run(lambda program: program.backward(samples, targets))
        return {name: self._gradients.views[name].copy() for name in self.trainable}

    def boundary(self, samples: Float32) -> tuple[Float32, ...]:
        """See `TrainingRun.boundary`."""
        return self._run(lambda program: program.cross(samples))

    def step_from_boundary(self, activations: Sequence[Float32], targets: Targets, learning_rate: float) -> StepResult:
        """See `TrainingRun.step_from_boundary`."""
        self._check(activations, list(self._running.boundary.values()), targets)
        return self._update(self._run(lambda program: program.backward_from(activations, targets)), learning_rate)

    def use_int8(
        self, calibration: Float32, held_out: Float32, score: Callable[[Sequence[Float32]], float]
    ) -> Int8Check:
        """See `TrainingRun.use_int8`."""
        if not self._running.step_graph.cut.prefix:
            raise ModelError("nothing is frozen that could run in 8 bits")
        return self._tried(lambda program: program.use_int8(calibration, held_out, score))

    def use_slices(self, slower_allowed: float = SLOWER_ALLOWED) -> SliceCheck:
        """See `TrainingRun.use_slices`."""
        if not self._running.step_graph.cut.prefix:
            raise ModelError("nothing is frozen that could run in tiles")
        return self._tried(lambda program: program.use_slices(slower_allowed))

    def use_float32(self) -> None:
        """See `TrainingRun.use_float32`."""
        self._running.prefix.use(None)

    def set_frozen_layers(self, count: int) -> None:
        """See `TrainingRun.set_frozen_layers`."""
        self.set_plan(UpdatePlan(count))

    def set_plan(self, plan: UpdatePlan) -> None:
        """See `TrainingRun.set_plan`."""
        if plan == self._plan:
            return
        learning = set(learning_parameters(self._graph, plan))
        program = self._compile(plan)
        for name in self._running.learning:
            if name not in learning:
                self._updates_made.pop(name, None)
                for arena in self._moments:
                    arena.views[name].fill(0)
        self._program, self._plan = program, plan

    def set_micro_batch_share(self, share: float) -> None:
        """See `TrainingRun.set_micro_batch_share`. Programs that wait are given up: their memory is what is wanted."""
        if share == self._share:
            return
        self._shelf.clear()
        self._program, self._share = self._made(self._plan, share, self._running), share
        self._shelf.put(self._plan, self._program)
        shrink_arena(self._setup.threads)
        trim_memory()

    def outputs(self, samples: Float32) -> Float32:
        """See `TrainingRun.outputs`."""
        return self._run(lambda program: program.outputs(samples))

    def outputs_from_boundary(self, activations: Sequence[Float32]) -> Float32:
        """See `TrainingRun.outputs_from_boundary`."""
        return self._run(lambda program: program.outputs_from(activations))

    def parameters(self) -> Mapping[str, Float32]:
        """See `TrainingRun.parameters`."""
        return {name: value.copy() for name, value in self._weights.views.items()}

    def frozen_memory(self) -> Mapping[str, Array]:
        """See `TrainingRun.frozen_memory`."""
        learning = set(self.trainable)
        return {name: value for name, value in self._graph.initializers.items() if name not in learning}

    @property
    def form(self) -> int:
        """See `TrainingRun.form`."""
        return self._running.prefix.form

    @property
    def probe_samples(self) -> int:
        """See `TrainingRun.probe_samples`."""
        return self._running.probe_samples

    def probe(self, samples: Float32) -> bytes:
        """See `TrainingRun.probe`."""
        return self._run(lambda program: program.probe(samples))

    def renew(self) -> None:
        """See `TrainingRun.renew`."""
        self._running.prefix.renew()

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """See `TrainingRun.state`."""
        found: dict[str, npt.NDArray[np.generic]] = {WEIGHT + k: v for k, v in self.parameters().items()}
        for name in self.trainable:
            keys = state_names(self._setup.optimizer, name)
            found |= {key: arena.views[name].copy() for key, arena in zip(keys, self._moments, strict=True)}
            found[UPDATES + name] = np.asarray(self._updates_made.get(name, 0), np.int64)
        return found

    def load_state(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """See `TrainingRun.load_state`."""
        weights = {name: _fitting(state, WEIGHT + name, view) for name, view in self._weights.views.items()}
        moments = [
            {name: _fitting(state, f"{kind}/{name}", arena.views[name]) for name in self.trainable}
            for kind, arena in zip(state_kinds(self._setup.optimizer), self._moments, strict=True)
        ]
        made = {name: int(_fitting(state, UPDATES + name, np.zeros((), np.int64))) for name in self.trainable}
        self._weights.fill(weights)
        for arena, values in zip(self._moments, moments, strict=True):
            arena.fill(values)
        self._updates_made = made
        self._steps += 1
        self._changed_at = dict.fromkeys(self._weights.shapes, self._steps)
        self._program = None  # should the compilation fail: what is compiled does not fit these weights
        self._program = self._compile(self._plan)

    def close(self) -> None:
        """See `TrainingRun.close`; sessions go with the last reference."""
        self._program = None
        self._shelf = Shelf()
        self._threads.shutdown()

    @property
    def _running(self) -> Program:
        if self._program is None:
            raise EngineError("the run is closed, or its last compilation failed")
        return self._program

    def _compile(self, plan: UpdatePlan) -> Program:
        """The plan's program: from the shelf, as far as what it took for constant still is, or a new one."""
        known = self._shelf.take(plan)
        if known is not None:
            moved = {name for name, step in self._changed_at.items() if step > known.made_at}
            if moved.isdisjoint(known.step_constants):
                if not moved.isdisjoint(known.prefix_constants):
                    known.renew_prefix(self._steps)
                self._shelf.put(plan, known)
                return known
        made = self._made(plan, self._share)
        self._shelf.put(plan, made)
        return made

    def _made(self, plan: UpdatePlan, share: float, like: Program | None = None) -> Program:
        shrink_arena(self._setup.threads)
        made = Program(
            self._graph, plan, self._setup, self._weights, self._gradients, self._steps, share=share, like=like
        )
        trim_memory()
        return made

    def _check(self, arrays: Sequence[Float32], shapes: Sequence[tuple[int, ...]], targets: Targets) -> None:
        batch = self._setup.batch
        expected = [(batch, *shape) for shape in shapes]
        if [array.shape for array in arrays] != expected or targets.shape[:1] != (batch,):
            found = ", ".join(str(array.shape) for array in (*arrays, targets))
            raise EngineError(f"a batch of shape {found} does not fit {expected}")

    def _run(self, work: Callable[[Program], Made]) -> Made:
        program = self._running
        try:
            return work(program)
        except TemperdError:
            raise
        except Exception as error:  # onnxruntime raises many unrelated types from C++
            raise EngineError("a training step failed", where=first_line(error)) from error

    def _tried(self, trial: Callable[[Program], Made]) -> Made:
        """Run a trial of another form; the memory of the form that is not used goes back."""
        try:
            return self._run(trial)
        finally:
            shrink_arena(self._setup.threads)
            trim_memory()

    def _update(self, loss: float, learning_rate: float) -> StepResult:
        """Apply the gradients of the last backward pass, unless something in them is not finite."""
        program, spec = self._running, self._setup.optimizer
        spans = [self._weights.span(first, last) for first, last in self._weights.runs(program.learning)]
        norm = gradient_norm([self._gradients.flat[span] for span in spans], self._threads)
        if not math.isfinite(loss) or not math.isfinite(norm):
            return StepResult(loss, norm, kept=False)
        scale = clip_scale(spec, norm)
        for first, last, made in self._runs():
            place = self._weights.span(first, last)
            state = [arena.flat[place] for arena in self._moments]
            weight, gradient = self._weights.flat[place], self._gradients.flat[place]
            apply_update(spec, weight, gradient, state, made, learning_rate, scale, self._threads)
        self._steps += 1
        for name in program.learning:
            self._updates_made[name] = self._updates_made.get(name, 0) + 1
            self._changed_at[name] = self._steps
        return StepResult(loss, norm, kept=True)

    def _runs(self) -> list[tuple[str, str, int]]:
        """Neighbours in the arenas with equally many updates: first, last and that number."""
        found: list[tuple[str, str, int]] = []
        for first, last in self._weights.runs(self.trainable):
            names = self._names_between(first, last)
            start = names[0]
            for name, following in zip(names, [*names[1:], ""], strict=True):
                made = self._updates_made.get(name, 0)
                if not following or self._updates_made.get(following, 0) != made:
                    found.append((start, name, made))
                    start = following
        return found

    def _names_between(self, first: str, last: str) -> list[str]:
        order = list(self._weights.shapes)
        return order[order.index(first) : order.index(last) + 1]


def _fitting(
    state: Mapping[str, npt.NDArray[np.generic]], key: str, like: npt.NDArray[np.generic]
) -> npt.NDArray[np.generic]:
    value = state.get(key)
    if value is None or value.shape != like.shape or value.dtype != like.dtype:
        raise EngineError("the saved state does not fit this model", where=key, reason="checkpoint-mismatch")
    return value
