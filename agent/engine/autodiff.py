"""Reverse-mode differentiation as graph construction: loss and gradients of one batch as one ONNX graph.

Only tensors on a path from a learning parameter to the loss are walked, so a frozen part has no backward nodes at all:
freezing is compilation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from agent.engine.base import LossSpec, UpdatePlan
from agent.engine.blocks import Blocks, output_shapes
from agent.engine.gradients import rule_for
from agent.engine.gradients_tape import Product, Tape, WeightGradient
from agent.engine.ir import Array, Graph, Node, model_proto, shapes
from agent.engine.layout import channel_major
from agent.engine.losses import LOSS, emit_loss, target_input
from agent.engine.native import DOMAIN
from agent.engine.passes import Split, split

Tensor = tuple[type[np.generic], tuple[int | str, ...]]
SUM, GRADIENT = "sum:", "gradient:"  # names of a parameter's gradient before and after a graph has added to it


@dataclass(frozen=True, slots=True)
class StepGraph:
    """A compiled step, ready for a session.

    Attributes:
        model: inputs are the crossing tensors, the targets, the parameters and, when it accumulates, `sum:<parameter>`
            each; outputs are `loss` and `gradient:<parameter>` each.
        cut: the split it was made for.
        crossing_shapes: static shapes of the crossing tensors.
        gradient_shapes: shape in which each gradient goes in and out: as many values as the parameter has.
        targets: name of the targets.
    """

    model: onnx.ModelProto
    cut: Split
    crossing_shapes: Mapping[str, tuple[int, ...]]
    gradient_shapes: Mapping[str, tuple[int, ...]]
    targets: str


def step_graph(
    graph: Graph,
    plan: UpdatePlan,
    samples: int,
    batch: int,
    loss: LossSpec,
    *,
    accumulate: bool = False,
    native: bool = False,
) -> StepGraph:
    """Forward of the suffix, loss and backward for `samples` of the `batch` samples of a step.

    Args:
        graph: batch-norm folded where that can be, with its head.
        plan: what learns.
        samples: how many go through the graph at once.
        batch: how many the loss is the mean of; losses and gradients of all parts of a batch add up.
        loss: what is differentiated.
        accumulate: add gradients to inputs `sum:<parameter>`. In and out may be the same memory: each value is written
            once, after it was read.
        native: use operators of the kernel library.

    Raises:
        ModelError: an operator on the path has no rule, or the loss does not fit the output.
    """
    cut = split(graph, plan)
    tape = _differentiate(graph, cut, samples, batch, loss, native=native)
    outputs: dict[str, Tensor | None] = {LOSS: (np.float32, ())}
    targets = target_input(loss, tape.shapes[graph.output])
    inputs: dict[str, Tensor] = {name: (np.float32, tape.shapes[name]) for name in cut.crossing} | targets
    shapes_out: dict[str, tuple[int, ...]] = {}
    for name in cut.learning:
        gradient = tape.weight_gradients.get(name, _zero(tape, name))
        shape = (gradient.rows, gradient.columns) if isinstance(gradient, Product) else tape.shapes[name]
        _emit_gradient(tape, name, gradient, accumulate=accumulate)
        shapes_out[name] = shape
        inputs[name] = (np.float32, tape.shapes[name])
        outputs[GRADIENT + name] = (np.float32, shape)
        if accumulate:
            inputs[SUM + name] = (np.float32, shape)
    model = model_proto(tape.nodes, _constants(graph, tape, cut), inputs, outputs, opset=graph.opset)
    _declare(model, tape)
    crossing = {name: tape.shapes[name] for name in cut.crossing}
    return StepGraph(model, cut, crossing, shapes_out, next(iter(targets)))


def forward_graph(graph: Graph, cut: Split, samples: int, *, native: bool = False) -> onnx.ModelProto:
    """Forward of the suffix alone, for `samples` samples; learning parameters are inputs."""
    tape, _, _ = _forward(graph, cut, samples, native=native)
    inputs: dict[str, Tensor] = {name: (np.float32, tape.shapes[name]) for name in (*cut.crossing, *cut.learning)}
    output = {graph.output: (np.float32, tape.shapes[graph.output])}
    model = model_proto(tape.nodes, _constants(graph, tape, cut), inputs, output, opset=graph.opset)
    _declare(model, tape)
    return model


def _forward(graph: Graph, cut: Split, samples: int, *, native: bool) -> tuple[Tape, Blocks, list[Node]]:
    learning = set(cut.learning)
    frozen = {name: value for name, value in graph.initializers.items() if name not in learning}
    known = shapes(graph, samples)
    nodes = channel_major(cut.suffix, known, frozen, graph.output)
    needed = learning | {name for node in nodes for name in node.outputs}
    tape = Tape(known, frozen, needed, [])
    blocks = Blocks(tape, nodes, graph.output, native=native)
    for node in nodes:
        if node.domain == DOMAIN:
            blocks.write(node)
        else:
            tape.nodes.append(node)
    return tape, blocks, nodes


def _differentiate(graph: Graph, cut: Split, samples: int, batch: int, loss: LossSpec, *, native: bool) -> Tape:
    tape, blocks, nodes = _forward(graph, cut, samples, native=native)
    made = set(cut.crossing)
    for node in nodes:  # what no learning parameter reaches wants no gradient, wherever the layout pass put it
        if not made.isdisjoint(node.inputs) and not any(name in tape.needed - made for name in node.inputs):
            made.update(node.outputs)
    tape.needed -= made
    tape.add(graph.output, emit_loss(tape, loss, graph.output, batch))
    for node in reversed(nodes):
        reached = [tape.gradient(name) for name in node.outputs if name]
        if not any(reached):
            continue
        rule = blocks.differentiate if node.domain == DOMAIN else rule_for(node)
        rule(tape, node, reached[0] or "")
    return tape


def _declare(model: onnx.ModelProto, tape: Tape) -> None:
    """State the shapes that shape inference does not know: those of the library's operators."""
    for node in tape.nodes:
        if node.domain == DOMAIN:
            shapes_made = zip(node.outputs, output_shapes(node), strict=True)
            model.graph.value_info.extend(
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes_made
            )


def _emit_gradient(tape: Tape, name: str, gradient: WeightGradient, *, accumulate: bool) -> None:
    """Name a gradient as an output, added to what the sum held; a matrix product takes the sum along."""
    before = (SUM + name,) if accumulate else ()
    if isinstance(gradient, Product):
        attrs = {"transA": int(gradient.transpose_a), "transB": int(gradient.transpose_b)}
        node = Node("Gemm", (gradient.a, gradient.b, *before), (GRADIENT + name,), attrs, GRADIENT + name)
    elif accumulate:
        node = Node("Add", (SUM + name, gradient), (GRADIENT + name,), {}, GRADIENT + name)
    else:
        node = Node("Identity", (gradient,), (GRADIENT + name,), {}, GRADIENT + name)
    tape.nodes.append(node)


def _zero(tape: Tape, name: str) -> str:
    """The gradient of a parameter that the loss does not depend on."""
    return tape.constant(np.zeros(tape.shapes[name], np.float32))


def _constants(graph: Graph, tape: Tape, cut: Split) -> dict[str, Array]:
    learning = set(cut.learning)
    return {name: value for name, value in graph.initializers.items() if name not in learning} | tape.made
