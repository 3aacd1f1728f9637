"""A compiled boundary of the `graph` engine: its sessions, the values they share and the bindings that swap them.

`prefix` runs the frozen layers with weights as constants, so that the runtime may pack and fuse them; `step` runs
suffix forward, loss, backward and update. Parameters and optimizer state live in two sets of device values that are
swapped after each step: what one step writes the next reads, and nothing is copied through NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort

from agent.engine.autodiff import StepGraph, Tensor, step_graph
from agent.engine.base import Float32, Int64, OptimizerSpec
from agent.engine.ir import Graph, model_proto
from agent.engine.losses import LABELS, LOSS
from agent.engine.optimizers import LEARNING_RATE, NEW, ROOT_CORRECTION, STEP_SIZE
from agent.engine.sessions import device_value, session

Values = dict[str, ort.OrtValue]


class Program:
    """Sessions and values for one freeze boundary.

    Args:
        graph: all weights as initializers; those that learn start from these values.
        frozen_layers: the boundary.
        batch: samples a step.
        spec: update rule.
        groups: step-count group of each learning parameter.
        threads: intra-op threads.
    """

    _samples: ort.OrtValue
    _labels: ort.OrtValue
    _loss: ort.OrtValue
    _scalars: Values
    _crossing: Values
    _sides: tuple[Values, Values]
    _turn: int
    _bindings: tuple[ort.IOBinding, ...]
    _prefix_binding: ort.IOBinding

    def __init__(
        self, graph: Graph, frozen_layers: int, batch: int, spec: OptimizerSpec, groups: Mapping[str, int], threads: int
    ) -> None:
        self._graph, self._threads = graph, threads
        self.step_graph: StepGraph = step_graph(graph, frozen_layers, batch, spec, groups)
        self._step = session(self.step_graph.model, threads)
        self._prefix = session(self._prefix_model(), threads) if self.step_graph.cut.prefix else None
        self._forward: ort.InferenceSession | None = None
        self._allocate(batch)

    @property
    def current(self) -> Values:
        """Parameters and states as of now."""
        return self._sides[self._turn]

    def run(self, samples: Float32, labels: Int64, scalars: Mapping[str, float]) -> float:
        """One step; the loss before the update."""
        self._samples.update_inplace(np.ascontiguousarray(samples, np.float32))
        self._labels.update_inplace(np.ascontiguousarray(labels, np.int64))
        for name, value in scalars.items():
            if name in self._scalars:
                self._scalars[name].update_inplace(np.asarray(value, np.float32))
        if self._prefix is not None:
            self._prefix.run_with_iobinding(self._prefix_binding)
        self._step.run_with_iobinding(self._bindings[self._turn])
        self._turn = 1 - self._turn
        return float(self._loss.numpy())

    def logits(self, samples: Float32) -> Float32:
        """Forward pass of one chunk with the current weights."""
        if self._forward is None:
            self._forward = session(self._forward_model(), self._threads)
        known = {self._graph.input: np.ascontiguousarray(samples, np.float32)}
        if self._prefix is not None:
            made = self._made_by_prefix()
            known |= dict(zip(made, self._prefix.run(list(made), known), strict=True))
        values = {name: ort.OrtValue.ortvalue_from_numpy(known[name]) for name in self.step_graph.crossing_shapes}
        current = self.current
        values |= {update.parameter: current[update.parameter] for update in self.step_graph.updates}
        result: Float32 = self._forward.run_with_ort_values(None, values)[0].numpy()
        return result

    def _prefix_model(self) -> onnx.ModelProto:
        graph, shapes = self._graph, self.step_graph.crossing_shapes
        return model_proto(
            self.step_graph.cut.prefix,
            graph.initializers,
            {graph.input: (np.float32, ("N", *graph.input_shape))},
            {name: (np.float32, ("N", *shapes[name][1:])) for name in self._made_by_prefix()},
            opset=graph.opset,
        )

    def _made_by_prefix(self) -> tuple[str, ...]:
        return tuple(name for name in self.step_graph.cut.crossing if name != self._graph.input)

    def _forward_model(self) -> onnx.ModelProto:
        learning = {update.parameter for update in self.step_graph.updates}
        weights = self._graph.initializers
        inputs: dict[str, Tensor] = {
            name: (np.float32, ("N", *shape[1:])) for name, shape in self.step_graph.crossing_shapes.items()
        }
        inputs |= {name: (np.float32, weights[name].shape) for name in sorted(learning)}
        constants = {name: value for name, value in weights.items() if name not in learning}
        return model_proto(
            self.step_graph.cut.suffix, constants, inputs, {self._graph.output: None}, opset=self._graph.opset
        )

    def _allocate(self, batch: int) -> None:
        starts: dict[str, Float32] = {}
        for update in self.step_graph.updates:
            weight = np.asarray(self._graph.initializers[update.parameter], np.float32)
            starts |= {update.parameter: weight, **dict.fromkeys(update.states, np.zeros_like(weight))}
        self._sides = (
            {name: device_value(value) for name, value in starts.items()},
            {name: device_value(np.zeros_like(value)) for name, value in starts.items()},
        )
        self._turn = 0
        self._samples = device_value(np.zeros((batch, *self._graph.input_shape), np.float32))
        self._labels = device_value(np.zeros(batch, np.int64))
        self._loss = device_value(np.zeros((), np.float32))
        self._scalars = {
            entry.name: device_value(np.zeros((), np.float32))
            for entry in self._step.get_inputs()
            if entry.name.startswith((LEARNING_RATE, STEP_SIZE, ROOT_CORRECTION))
        }
        self._crossing = {
            name: self._samples if name == self._graph.input else device_value(np.zeros(shape, np.float32))
            for name, shape in self.step_graph.crossing_shapes.items()
        }
        self._bindings = tuple(self._bind(self._sides[i], self._sides[1 - i]) for i in (0, 1))
        if self._prefix is not None:
            self._prefix_binding = self._prefix.io_binding()
            self._prefix_binding.bind_ortvalue_input(self._graph.input, self._samples)
            for name in self._made_by_prefix():
                self._prefix_binding.bind_ortvalue_output(name, self._crossing[name])

    def _bind(self, source: Values, target: Values) -> ort.IOBinding:
        binding = self._step.io_binding()
        inputs = self._crossing | {LABELS: self._labels} | self._scalars | source
        for entry in self._step.get_inputs():
            binding.bind_ortvalue_input(entry.name, inputs[entry.name])
        binding.bind_ortvalue_output(LOSS, self._loss)
        for name, value in target.items():
            binding.bind_ortvalue_output(NEW + name, value)
        return binding
