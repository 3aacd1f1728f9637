"""What a model costs by layer: the table from which depth, batch and budgets are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from agent.engine.base import UpdatePlan
from agent.engine.ir import Graph, Layer, shapes
from agent.engine.passes import split

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class LayerCost:
    """One parametric layer, for one sample.

    Attributes:
        name: node name.
        macs: multiply-accumulates of the forward pass.
        weight_bytes: size of weight and bias.
        output_bytes: size of the layer's output.
    """

    name: str
    macs: int
    weight_bytes: int
    output_bytes: int


@dataclass(frozen=True, slots=True)
class CostTable:
    """Costs of all layers, and of each place to freeze at.

    Attributes:
        layers: parametric layers in execution order.
        crossing_bytes: for k = 0..L-1 frozen layers, bytes a sample that cross from the frozen to the learning part.
    """

    layers: tuple[LayerCost, ...]
    crossing_bytes: tuple[int, ...]

    def step_macs(self, frozen_layers: int) -> int:
        """Multiply-accumulates of one training step on one sample.

        Forward for all layers, twice that again for the learning ones (gradients of input and of weight), except
        the first learning layer, whose input gradient nobody wants.
        """
        forward = sum(layer.macs for layer in self.layers)
        learning = self.layers[frozen_layers:]
        return forward + 2 * sum(layer.macs for layer in learning) - learning[0].macs

    def weight_bytes(self) -> int:
        """Size of all parameters."""
        return sum(layer.weight_bytes for layer in self.layers)


def cost_table(graph: Graph) -> CostTable:
    """The table for a model at its own input shape.

    Raises:
        ModelError: shapes are not known before running.
    """
    known = shapes(graph, 1)
    layers = []
    for layer in graph.layers():
        outputs = int(np.prod(known[layer.node.outputs[0]]))
        size = sum(int(np.prod(known[name])) for name in layer.parameters) * FLOAT_BYTES
        layers.append(LayerCost(layer.node.name, _macs(layer, known), size, outputs * FLOAT_BYTES))
    crossing = tuple(
        sum(int(np.prod(known[name])) for name in split(graph, UpdatePlan(k)).crossing) * FLOAT_BYTES
        for k in range(len(layers))
    )
    return CostTable(tuple(layers), crossing)


def _macs(layer: Layer, known: Mapping[str, tuple[int, ...]]) -> int:
    """Products of one forward pass: each value made of a weight's whole row, or each value times one factor."""
    weight, output = known[layer.weight], int(np.prod(known[layer.node.outputs[0]]))
    if layer.node.op == "Conv":
        return output * int(np.prod(weight[1:]))
    if layer.node.op == "ConvTranspose":
        return int(np.prod(known[layer.node.inputs[0]])) * int(np.prod(weight[1:]))
    if layer.node.op in ("Gemm", "MatMul"):
        return output * int(np.prod(weight)) // known[layer.node.outputs[0]][-1]
    return output  # normalizations and PRelu
