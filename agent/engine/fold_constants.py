"""Pass: compute before training what does not depend on the samples.

Exporters write shapes as computations: Shape -> Gather -> Concat -> Reshape. Once the sample shape is known all of that
is constant, except where the batch size enters. So everything is worked out for two batch sizes: what comes out equal
becomes a constant, and a Reshape target that differs gets 0 (copy this axis) or -1 (work it out) in that place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agent.engine.ir import Array, Graph, Node, inferred_shapes, model_proto
from agent.errors import ModelError

BATCHES = (2, 3)  # unequal, and neither is 1, which would broadcast
MAX_ROUNDS = 8  # a round can make known the shapes that the next needs; exporters nest two or three deep
MAX_ELEMENTS = 1 << 24  # of one folded constant: 64 MB

SMALLER = frozenset(
    ("Cast", "Ceil", "Concat", "Exp", "Flatten", "Floor", "Identity", "Log", "Neg", "Not", "ReduceMax", "ReduceMin")
) | {"ReduceProd", "ReduceSum", "Reshape", "Slice", "Sqrt", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators whose result has at most as many values as their inputs together."""
BROADCAST = frozenset(
    ("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul")
) | {"Or", "Pow", "Sub", "Where"}

Both = tuple[Array, Array]
"""A value for the first and for the second of `BATCHES`."""


def fold_constants(graph: Graph) -> Graph:
    """Fold what depends on constants and on the sample shape only.

    Precondition: the sample shape is known.
    Postcondition: the function computed is the same, for any batch size; no more nodes than before.

    Raises:
        ModelError: the graph does not fit the sample shape, or a constant cannot be computed.
    """
    for _ in range(MAX_ROUNDS):
        folded = _Round(graph).run()
        if folded.nodes == graph.nodes:
            return graph
        graph = folded
    return graph


@dataclass(slots=True)
class _Round:
    graph: Graph
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] = ()
    values: dict[str, Both] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)

    def run(self) -> Graph:
        self.shapes = tuple(inferred_shapes(self.graph, batch) for batch in BATCHES)
        self.constants = dict(self.graph.initializers)
        self.values = {name: (value, value) for name, value in self.constants.items()}
        kept: list[Node] = []
        for node in self.graph.nodes:
            found = self._value(node)
            if found is not None:
                self.values[node.outputs[0]] = found
            if found is not None and np.array_equal(*found) and node.outputs[0] != self.graph.output:
                self.constants[node.outputs[0]] = found[0]
            else:
                kept.append(self._with_static_target(node))
        return reaching_output(replace(self.graph, nodes=tuple(kept), initializers=self.constants))

    def _value(self, node: Node) -> Both | None:
        """What the node makes, where that depends on constants and the sample shape only."""
        if node.op in ("Shape", "Size"):
            if any(node.inputs[0] not in known for known in self.shapes):
                return None
            first, second = (_shape_value(node, known[node.inputs[0]]) for known in self.shapes)
            return first, second
        given = [self.values.get(name) for name in node.inputs if name]
        if len(node.outputs) != 1 or not given or any(value is None for value in given):
            return None
        sides = [[both[side] for both in given if both is not None] for side in (0, 1)]
        if any(not 0 < _elements(node, side) <= MAX_ELEMENTS for side in sides):
            return None
        first = _evaluate(node, sides[0], self.graph.opset)
        same = all(both is not None and both[0] is both[1] for both in given)
        return first, first if same else _evaluate(node, sides[1], self.graph.opset)

    def _with_static_target(self, node: Node) -> Node:
        """A Reshape whose target depends on the batch size only: a constant target."""
        if node.op != "Reshape" or node.inputs[1] in self.constants or node.inputs[1] not in self.values:
            return node
        targets = [value.reshape(-1).tolist() for value in self.values[node.inputs[1]]]
        sources = [known.get(node.inputs[0], ()) for known in self.shapes]
        target = _static_target(targets, sources)
        if target is None or node.attrs.get("allowzero", 0):
            return node
        name = f"{node.outputs[0]}.shape"
        self.constants[name] = np.asarray(target, np.int64)
        self.values[name] = (self.constants[name], self.constants[name])
        return replace(node, inputs=(node.inputs[0], name))


def _static_target(targets: Sequence[Sequence[int]], sources: Sequence[Sequence[int]]) -> list[int] | None:
    """One Reshape target for every batch size, or `None` where there is none."""
    made: list[int] = []
    for axis, sizes in enumerate(zip(*targets, strict=True)):
        copied = all(axis < len(source) and source[axis] == size for source, size in zip(sources, sizes, strict=True))
        made.append(sizes[0] if len(set(sizes)) == 1 else 0 if copied else -1)
    return made if made.count(-1) <= 1 else None


def _shape_value(node: Node, shape: tuple[int, ...]) -> Array:
    if node.op == "Size":
        return np.asarray(int(np.prod(shape)), np.int64)
    end = node.attrs.get("end")
    return np.asarray(
        shape[int(node.number("start", 0)) : None if end is None else int(node.number("end", 0))], np.int64
    )


def _elements(node: Node, inputs: Sequence[Array]) -> int:
    """Upper bound of how many values the node makes; 0 where it is not folded."""
    if node.op in SMALLER:
        return sum(value.size for value in inputs)
    if node.op in BROADCAST:
        try:
            return math.prod(np.broadcast_shapes(*(value.shape for value in inputs)))
        except ValueError:
            return 0
    grows = GROWING.get(node.op)
    return 0 if grows is None else grows(inputs)


def _range_elements(inputs: Sequence[Array]) -> int:
    start, limit, delta = (float(value.item()) for value in inputs)
    return int(max((limit - start) / delta, 0)) + 1 if delta else 0


GROWING: dict[str, Callable[[Sequence[Array]], int]] = {
    "ConstantOfShape": lambda inputs: math.prod(inputs[0].reshape(-1).tolist()),
    "Expand": lambda inputs: inputs[0].size * math.prod(inputs[1].reshape(-1).tolist()),
    "Gather": lambda inputs: inputs[0].size * inputs[1].size,
    "Range": _range_elements,
    "Tile": lambda inputs: inputs[0].size * math.prod(inputs[1].reshape(-1).tolist()),
}


def _evaluate(node: Node, inputs: Sequence[Array], opset: int) -> Array:
    """The node's value, by the reference implementation."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - slow to import, not every model needs it

    names = iter(range(len(inputs)))
    renamed = replace(node, inputs=tuple(f"i{next(names)}" if name else "" for name in node.inputs), outputs=("o",))
    feeds = {f"i{index}": value for index, value in enumerate(inputs)}
    ends = {name: (value.dtype.type, value.shape) for name, value in feeds.items()}
    model = model_proto([renamed], {}, ends, {"o": None}, opset=opset)
    try:
        with np.errstate(all="ignore"):  # a division by zero is the model's own business
            return np.asarray(ReferenceEvaluator(model).run(["o"], feeds)[0])  # type: ignore[index]
    except Exception as error:  # the reference raises whatever NumPy does
        raise ModelError(f"{node.op} of constants cannot be computed", where=node.name) from error


def reaching_output(graph: Graph) -> Graph:
    """Only the nodes and constants that the output depends on."""
    needed = {graph.output}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if not needed.isdisjoint(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    constants = {name: value for name, value in graph.initializers.items() if name in needed}
    return replace(graph, nodes=tuple(reversed(kept)), initializers=constants)
