"""Nodes of a graph, and which of them are the layers that training can freeze or teach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Attribute = int | float | str | bytes | list[int] | list[float]

WEIGHT_SECOND = frozenset(
    ("BatchNormalization", "Conv", "ConvTranspose", "InstanceNormalization", "LayerNormalization", "PRelu")
)
"""Operators with the input first, then their weight (or scale or slope), then perhaps a bias (or shift)."""
PRODUCTS = frozenset(("Gemm", "MatMul"))


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call. `inputs` may hold "" for an absent optional input, as in ONNX."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attribute] = field(default_factory=dict)
    name: str = ""
    domain: str = ""

    def ints(self, key: str, default: Iterable[int]) -> tuple[int, ...]:
        """Integer-list attribute `key`, or `default`."""
        value = self.attrs.get(key)
        return tuple(default) if value is None else tuple(int(v) for v in value)  # type: ignore[union-attr]

    def number(self, key: str, default: float) -> float:
        """Scalar attribute `key`, or `default`."""
        return float(self.attrs.get(key, default))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Layer:
    """A parametric layer: a node that holds weights. `index` counts from the input.

    `bias_node` is the Add behind a MatMul where the bias stands there and not in the node itself.
    """

    index: int
    node: Node
    weight: str
    bias: str | None
    bias_node: Node | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """Weight and, where there is one, bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


def layers_of(nodes: Sequence[Node], initializers: Mapping[str, Array], output: str) -> tuple[Layer, ...]:
    """Parametric layers in execution order.

    They are convolutions, matrix products with a constant on either side, normalizations with their scale, PRelu with
    its slope, and Gather from a constant table by computed indices. Bounds, exponents and factors of arithmetic are no
    parameters, nor are the statistics of a batch normalization.
    """
    floats = {name for name, value in initializers.items() if value.dtype == np.float32}
    readers = _readers(nodes, output)
    found: list[Layer] = []
    for node in nodes:
        position = _weight_position(node, floats, initializers)
        if position is None:
            continue
        bias, bias_node = _bias(node, floats), None
        if node.op == "MatMul":
            bias_node = _added(node, readers, initializers, floats)
            bias = None if bias_node is None else next(name for name in bias_node.inputs if name in floats)
        found.append(Layer(len(found), node, node.inputs[position], bias, bias_node))
    return tuple(found)


def _weight_position(node: Node, floats: set[str], initializers: Mapping[str, Array]) -> int | None:
    inputs = node.inputs
    if len(inputs) < 2:  # noqa: PLR2004 - what is worked on, and a weight
        return None
    if node.op in WEIGHT_SECOND:
        return 1 if inputs[1] in floats else None
    if node.op in PRODUCTS:
        return 1 if inputs[1] in floats else 0 if inputs[0] in floats else None
    if node.op == "Gather" and inputs[0] in floats and inputs[1] not in initializers:
        return 0
    return None


def _bias(node: Node, floats: set[str]) -> str | None:
    return node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] in floats else None  # noqa: PLR2004 - X, W, B


def _added(
    node: Node, readers: Mapping[str, list[Node | None]], initializers: Mapping[str, Array], floats: set[str]
) -> Node | None:
    """The Add that alone reads the product and adds one number a column."""
    only = readers.get(node.outputs[0], [])
    after = only[0] if len(only) == 1 else None
    if after is None or after.op != "Add":
        return None
    added = [name for name in after.inputs if name in floats]
    if len(added) != 1 or node.inputs[1] not in floats:
        return None
    columns = initializers[node.inputs[1]].shape[-1]
    value = initializers[added[0]]
    return after if value.ndim and value.size == value.shape[-1] == columns else None


def _readers(nodes: Sequence[Node], output: str) -> dict[str, list[Node | None]]:
    """Who reads each tensor; `None` stands for the caller of the model."""
    readers: dict[str, list[Node | None]] = {output: [None]}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    return readers
