"""A compiled update plan of the `graph` engine: its sessions and the values bound to them.

`prefix` runs the frozen part with weights as constants, so that the runtime may pack and fuse them; `step` runs suffix
forward, loss and backward. Weights go in where they lie, gradients come out where the update reads them; nothing is
copied through NumPy but the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort

from agent.engine.arena import Arena, bound
from agent.engine.autodiff import GRADIENT, SUM, StepGraph, forward_graph, step_graph
from agent.engine.base import Float32, Targets, TrainingSetup, UpdatePlan
from agent.engine.footprint import RUNTIME_BYTES, Footprint, choose_micro_batch, micro_batch_within, peak_live_bytes
from agent.engine.ir import Graph
from agent.engine.losses import LABELS, LOSS
from agent.engine.native import library
from agent.engine.prefix import Prefix
from agent.engine.quantize import Int8Check, check_int8, quantize_prefix
from agent.engine.sessions import session, take_out
from agent.engine.slices import SliceCheck, faster_slices
from agent.memory import resident_bytes

SESSION_BYTES = 4 << 20  # structures of a session that waits, as measured on networks of some hundred nodes
PACKED_IN_STEP = 3  # copies of a constant among what learns: forward, backward, and in the session that evaluates
STAND_IN_SPREAD = 0.2  # of a probe's stand-ins for weights that learn: as large as those of usual layers
Parts = tuple[Float32, ...]


class Program:
    """Sessions and values for one update plan.

    Args:
        graph: its initializers that learn are views of `weights`.
        plan: what learns.
        setup: batch and micro-batch, loss, threads.
        weights: current values of all parameters.
        gradients: where those of the learning parameters go.
        made_at: the caller's count of changes to the weights, kept for it.
        share: of the usual micro-batch, the most that goes through at once.
        like: a program of the same plan: the form of its frozen part is taken over, and its usual micro-batch where
            `share` is smaller than there, for memory is shorter now than when that was chosen.
    """

    def __init__(
        self,
        graph: Graph,
        plan: UpdatePlan,
        setup: TrainingSetup,
        weights: Arena,
        gradients: Arena,
        made_at: int,
        share: float = 1.0,
        like: Program | None = None,
    ) -> None:
        self._graph, self._batch, self._threads = graph, setup.batch, setup.threads
        self._weights, self._gradients, self.made_at = weights, gradients, made_at
        self._before = resident_bytes()
        native = library() is not None

        def compiled(samples: int) -> StepGraph:
            accumulate = samples < setup.batch
            return step_graph(graph, plan, samples, setup.batch, setup.loss, accumulate=accumulate, native=native)

        made: StepGraph | None = None
        usual = setup.micro_batch or (like.usual_micro_batch if like and share < like.share else 0)
        if not usual:
            made = compiled(setup.batch)
            usual = choose_micro_batch(setup.batch, peak_live_bytes(made.model))
        self.share: float = share
        self.usual_micro_batch: int = usual
        self._micro = micro_batch_within(setup.batch, min(usual, usual * share))
        self.step_graph = made if made and self._micro == setup.batch else compiled(self._micro)
        self._step_live = peak_live_bytes(self.step_graph.model)
        self._spans = [gradients.span(first, last) for first, last in gradients.runs(self.learning)]
        self._crossing = {name: np.zeros(shape, np.float32) for name, shape in self.step_graph.crossing_shapes.items()}
        self._step = self._open(self.step_graph.model)
        self.prefix: Prefix = (
            like.prefix.like(self._crossing)
            if like
            else Prefix(graph, self.step_graph.cut, self._crossing, self._threads)
        )
        self._forward: tuple[ort.InferenceSession, ort.IOBinding, Float32] | None = None
        self._bind()

    @property
    def learning(self) -> tuple[str, ...]:
        """Names of the parameters that learn, in execution order."""
        return self.step_graph.cut.learning

    @property
    def prefix_constants(self) -> frozenset[str]:
        """Names that the frozen part holds the values of."""
        return frozenset(name for node in self.step_graph.cut.prefix for name in node.inputs)

    @property
    def step_constants(self) -> frozenset[str]:
        """Parameters that the step graph holds the values of: those past the boundary that do not learn."""
        return frozenset(name for node in self.step_graph.cut.suffix for name in node.inputs).difference(self.learning)

    @property
    def footprint(self) -> Footprint:
        """Predicted memory of this plan in the form in which it runs now."""
        parameters = sum(array.nbytes for array in self._crossing.values())
        live = max(self._step_live, self.prefix.live_bytes)  # they take turns in one arena
        return Footprint(self._before, parameters, live, RUNTIME_BYTES + self._packed_bytes)

    @property
    def kept_bytes(self) -> int:
        """About what the program takes while it does not run."""
        return self._packed_bytes + sum(array.nbytes for array in self._crossing.values()) + SESSION_BYTES

    @property
    def _packed_bytes(self) -> int:
        """What constants take in the runtime's own order, beside the weights themselves."""
        views = self._weights.views
        once = sum(views[name].nbytes for name in self.prefix_constants & views.keys())
        return once + PACKED_IN_STEP * sum(views[name].nbytes for name in self._held_in_step)

    def renew_prefix(self, made_at: int) -> None:
        """Take the frozen part's weights as they are now."""
        self.made_at = made_at
        self.prefix.use(None)

    def use_int8(
        self, calibration: Float32, held_out: Float32, score: Callable[[Sequence[Float32]], float]
    ) -> Int8Check:
        """See `TrainingRun.use_int8`."""
        integer = quantize_prefix(self.prefix.model(), [calibration], self._threads)
        trial = Prefix(self._graph, self.step_graph.cut, self._crossing, self._threads)
        trial.use(integer)
        float_run, int8_run = partial(self._crossed, self.prefix), partial(self._crossed, trial)
        check = check_int8(float_run, int8_run, held_out, score, self._micro)
        if check.keep:
            self.prefix = trial
        return check

    def use_slices(self, slower_allowed: float) -> SliceCheck:
        """See `TrainingRun.use_slices`."""
        samples = np.random.default_rng(0).standard_normal((self._micro, *self._graph.input_shape), np.float32)
        for plan in self.prefix.slices():
            trial = Prefix(self._graph, self.step_graph.cut, self._crossing, self._threads, plan)
            whole_run, sliced_run = partial(self._crossed, self.prefix, samples), partial(self._crossed, trial, samples)
            check = faster_slices(whole_run, sliced_run, plan, slower_allowed)
            if check.keep:
                self.prefix = trial
                break
        return check

    def _crossed(self, prefix: Prefix, samples: Float32) -> Parts:
        """What a form of the frozen part makes of samples [M, ...], M <= micro-batch."""
        prefix.run(samples)
        return tuple(buffer[: len(samples)].copy() for buffer in self._crossing.values())

    @property
    def micro_batch(self) -> int:
        """Samples that go through a session at once."""
        return self._micro

    @property
    def boundary(self) -> dict[str, tuple[int, ...]]:
        """Name and shape for one sample of what crosses from the prefix."""
        return {name: shape[1:] for name, shape in self.step_graph.crossing_shapes.items()}

    def backward(self, samples: Float32, targets: Targets) -> float:
        """Loss of a batch, run from its samples; its gradients are where they belong afterwards."""
        return self._backward(self._cross(samples), targets)

    def backward_from(self, activations: Sequence[Float32], targets: Targets) -> float:
        """`backward` from what crosses the boundary, each array [batch, ...]."""

        def parts() -> Iterator[None]:
            for start in range(0, self._batch, self._micro):
                for buffer, values in zip(self._crossing.values(), activations, strict=True):
                    np.copyto(buffer, values[start : start + self._micro])
                yield

        return self._backward(parts(), targets)

    def cross(self, samples: Float32) -> Parts:
        """What the prefix makes of samples [M, ...]: one array [M, ...] for each entry of `boundary`."""
        made = [np.empty((len(samples), *shape), np.float32) for shape in self.boundary.values()]
        for start, _ in zip(range(0, len(samples), self._micro), self._cross(samples), strict=True):
            for whole, buffer in zip(made, self._crossing.values(), strict=True):
                part = whole[start : start + self._micro]
                part[...] = buffer[: len(part)]
        return tuple(made)

    def outputs(self, samples: Float32) -> Float32:
        """Forward pass of samples [M, ...] with the current weights."""
        return self._outputs(len(samples), self._cross(samples))

    def outputs_from(self, activations: Sequence[Float32]) -> Float32:
        """`outputs` from what crosses the boundary, each array [M, ...]."""
        count = len(activations[0])

        def parts() -> Iterator[None]:
            for start in range(0, count, self._micro):
                for buffer, values in zip(self._crossing.values(), activations, strict=True):
                    part = values[start : start + self._micro]
                    buffer[: len(part)] = part
                yield

        return self._outputs(count, parts())

    @property
    def _held_in_step(self) -> frozenset[str]:
        """Parameters that the sessions of the learning part hold copies of."""
        return self.step_constants & self._weights.views.keys()

    @property
    def probe_samples(self) -> int:
        """See `TrainingRun.probe_samples`."""
        return self._micro if self._held_in_step else self.prefix.tile

    def probe(self, samples: Float32) -> bytes:
        """See `TrainingRun.probe`; between two steps, whose buffers it uses."""
        held = self._held_in_step
        if not self.step_graph.cut.prefix and not held:
            return b""
        digest = hashlib.sha256()
        for start, _ in zip(range(0, len(samples), self._micro), self._cross(samples), strict=True):
            for buffer in self._crossing.values():
                buffer[len(samples) - start :] = 0  # what lies there is of another batch
                digest.update(buffer.data)
            for values in self._learning_part_made() if held else ():
                digest.update(values.data)
        return digest.digest()

    def _learning_part_made(self) -> Iterator[Float32]:
        """What its constants make of the crossing buffers, with the same stand-ins every time for what learns."""
        size = max(self._weights.views[name].size for name in self.learning)
        noise = (np.random.default_rng(0).random(size, np.float32) - np.float32(0.5)) * STAND_IN_SPREAD
        learning = {name: noise[: self._weights.views[name].size] for name in self.learning}
        stand_ins = {name: bound(v, self._weights.views[name].shape) for name, v in learning.items()}
        for span in self._spans:
            self._gradients.flat[span] = 0
        self._targets[...] = 0
        self._step.run_with_iobinding(self._bound_step(stand_ins))
        yield self._loss
        for span in self._spans:
            yield self._gradients.flat[span]
        if self._forward is None:
            self._forward = self._bind_forward()
        running, _, made = self._forward
        running.run_with_iobinding(self._bound_forward(running, made, stand_ins))
        yield made

    def _cross(self, samples: Float32) -> Iterator[None]:
        """Fill the crossing buffers with micro-batch after micro-batch; the last one may be filled in part."""
        for start in range(0, len(samples), self._micro):
            self.prefix.run(samples[start : start + self._micro])
            yield

    def _backward(self, parts: Iterator[None], targets: Targets) -> float:
        if self._micro < self._batch:
            for span in self._spans:
                self._gradients.flat[span] = 0
        loss = 0.0
        for index, _ in enumerate(parts):
            self._targets[...] = targets[index * self._micro : (index + 1) * self._micro]
            self._step.run_with_iobinding(self._binding)
            loss += float(self._loss)
        return loss

    def _outputs(self, count: int, parts: Iterator[None]) -> Float32:
        if self._forward is None:
            self._forward = self._bind_forward()
        running, binding, made = self._forward
        found = []
        for index, _ in enumerate(parts):
            running.run_with_iobinding(binding)
            found.append(made[: count - index * self._micro].copy())
        return np.concatenate(found)

    def _bind(self) -> None:
        made = self.step_graph
        kind = np.int64 if made.targets == LABELS else np.float32
        shape = next(tuple(entry.shape) for entry in self._step.get_inputs() if entry.name == made.targets)
        self._targets = np.zeros(shape, kind)
        self._loss = np.zeros((), np.float32)
        self._binding = self._bound_step({name: bound(self._weights.views[name]) for name in made.cut.learning})

    def _bound_step(self, learning: Mapping[str, ort.OrtValue]) -> ort.IOBinding:
        """The step's inputs and outputs, with these values of what learns."""
        made = self.step_graph
        sums = {name: bound(self._gradients.views[name], made.gradient_shapes[name]) for name in made.cut.learning}
        values = {name: bound(buffer) for name, buffer in self._crossing.items()}
        values |= learning
        values |= {SUM + name: value for name, value in sums.items()}
        values[made.targets] = bound(self._targets)
        binding = self._step.io_binding()
        for entry in self._step.get_inputs():
            binding.bind_ortvalue_input(entry.name, values[entry.name])
        binding.bind_ortvalue_output(LOSS, bound(self._loss))
        for name, value in sums.items():
            binding.bind_ortvalue_output(GRADIENT + name, value)
        return binding

    def _open(self, model: onnx.ModelProto) -> ort.InferenceSession:
        """A session of a model, which loses its large constants."""
        outside = take_out(model, self._graph.initializers)
        return session(model, self._threads, outside)

    def _bind_forward(self) -> tuple[ort.InferenceSession, ort.IOBinding, Float32]:
        model = forward_graph(self._graph, self.step_graph.cut, self._micro, native=library() is not None)
        running = self._open(model)
        made = np.zeros(running.get_outputs()[0].shape, np.float32)
        weights = {name: bound(self._weights.views[name]) for name in self.learning}
        return running, self._bound_forward(running, made, weights), made

    def _bound_forward(
        self, running: ort.InferenceSession, made: Float32, learning: Mapping[str, ort.OrtValue]
    ) -> ort.IOBinding:
        binding = running.io_binding()
        for entry in running.get_inputs():
            buffer = self._crossing.get(entry.name)
            binding.bind_ortvalue_input(entry.name, learning[entry.name] if buffer is None else bound(buffer))
        binding.bind_ortvalue_output(self._graph.output, bound(made))
        return binding
