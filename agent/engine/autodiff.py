"""Reverse-mode differentiation as graph construction: one training step as one ONNX graph.

Only tensors on a path from a trainable parameter to the loss are walked, so a frozen part has no backward nodes at all:
freezing is compilation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from agent.engine.base import OptimizerSpec
from agent.engine.gradients import Tape, rule_for
from agent.engine.ir import Graph, model_proto, shapes
from agent.engine.losses import LABELS, LOSS, cross_entropy
from agent.engine.optimizers import (
    LEARNING_RATE,
    NEW,
    ROOT_CORRECTION,
    STEP_SIZE,
    Update,
    emit_update,
    materialized,
    rides_in_gradient,
    state_names,
)
from agent.engine.passes import Split, split

Tensor = tuple[type[np.generic], tuple[int | str, ...]]


@dataclass(frozen=True, slots=True)
class StepGraph:
    """A compiled training step, ready for a session.

    Attributes:
        model: inputs are the crossing tensors, labels, learning rate (AdamW: corrections), parameters and states;
            outputs are `loss` and `new:<name>` for each parameter and state.
        cut: the split it was made for.
        updates: one entry for each parameter, in execution order.
        crossing_shapes: static shapes of the crossing tensors.
    """

    model: onnx.ModelProto
    cut: Split
    updates: tuple[Update, ...]
    crossing_shapes: Mapping[str, tuple[int, ...]]


def step_graph(
    graph: Graph, frozen_layers: int, batch: int, spec: OptimizerSpec, groups: Mapping[str, int] | None = None
) -> StepGraph:
    """Forward of the suffix, loss, backward and update for a batch of `batch` samples.

    Args:
        graph: batch-norm folded, with its classifier.
        frozen_layers: parametric layers, from the input, that learn nothing.
        batch: samples a step.
        spec: update rule.
        groups: step-count group of each parameter (AdamW); 0 where absent.

    Raises:
        ModelError: an operator on the path has no rule.
    """
    cut = split(graph, frozen_layers)
    tape = _differentiate(graph, cut, shapes(graph, batch), LEARNING_RATE if rides_in_gradient(spec) else "")
    parameters = [name for layer in cut.trainable for name in layer.parameters]
    updates = tuple(Update(name, state_names(spec, name), (groups or {}).get(name, 0)) for name in parameters)
    for update in updates:
        emit_update(tape, spec, update, tape.weight_gradients[update.parameter])
    outputs: dict[str, Tensor | None] = {LOSS: (np.float32, ())}
    inputs = _inputs(tape, cut, batch)
    inputs[LEARNING_RATE] = (np.float32, ())
    for update in updates:
        if spec.kind == "adamw":
            inputs[f"{STEP_SIZE}.{update.group}"] = (np.float32, ())
            inputs[f"{ROOT_CORRECTION}.{update.group}"] = (np.float32, ())
        for name in (update.parameter, *update.states):
            inputs[name] = (np.float32, tape.shapes[update.parameter])
            outputs[NEW + name] = (np.float32, tape.shapes[update.parameter])
    model = model_proto(tape.nodes, _constants(graph, tape, parameters), inputs, outputs, opset=graph.opset)
    return StepGraph(model, cut, updates, {name: tape.shapes[name] for name in cut.crossing})


def gradient_graph(graph: Graph, frozen_layers: int, batch: int) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Forward, loss and backward without an update: outputs `loss` and one gradient a parameter (for checks)."""
    cut = split(graph, frozen_layers)
    tape = _differentiate(graph, cut, shapes(graph, batch))
    parameters = [name for layer in cut.trainable for name in layer.parameters]
    outputs: dict[str, Tensor | None] = {LOSS: (np.float32, ())}
    names = tuple(materialized(tape, tape.weight_gradients[name]) for name in parameters)
    outputs |= {name: (np.float32, tape.shapes[p]) for name, p in zip(names, parameters, strict=True)}
    inputs = _inputs(tape, cut, batch) | {p: (np.float32, tape.shapes[p]) for p in parameters}
    return model_proto(tape.nodes, _constants(graph, tape, parameters), inputs, outputs, opset=graph.opset), names


def _differentiate(graph: Graph, cut: Split, known: dict[str, tuple[int, ...]], factor: str = "") -> Tape:
    learning = {name for layer in cut.trainable for name in layer.parameters}
    needed = learning | {name for node in cut.suffix for name in node.outputs}
    frozen = {name: value for name, value in graph.initializers.items() if name not in learning}
    tape = Tape(known, frozen, needed, list(cut.suffix))
    tape.add(graph.output, cross_entropy(tape, graph.output, factor))
    for node in reversed(cut.suffix):
        dy = tape.gradient(node.outputs[0])
        if dy is not None:
            rule_for(node)(tape, node, dy)
    return tape


def _inputs(tape: Tape, cut: Split, batch: int) -> dict[str, Tensor]:
    inputs: dict[str, Tensor] = {name: (np.float32, tape.shapes[name]) for name in cut.crossing}
    inputs[LABELS] = (np.int64, (batch,))
    return inputs


def _constants(
    graph: Graph, tape: Tape, parameters: list[str]
) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    learning = set(parameters)
    return {name: value for name, value in graph.initializers.items() if name not in learning} | tape.made
