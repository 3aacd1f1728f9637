"""Gradient rules: for each operator, the nodes that turn the gradient of its output into those of its inputs.

A rule gets the node, the name of the output's gradient and a `Tape` to emit nodes on. Notation: x input [N, C, H, W],
w weight [O, C/g, kh, kw], y output [N, O, P, Q], dy its gradient, s stride, d dilation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from agent.engine.ir import MICROSOFT, Array, Attribute, Node
from agent.errors import ModelError


@dataclass(frozen=True, slots=True)
class Product:
    """A weight gradient that is one matrix product a b: the optimizer may fuse its update into the GEMM.

    `shape` is the weight's own shape, `a` is [rows, K] (or [K, rows] when `transpose_a`), `b` is [K, columns].
    """

    a: str
    b: str
    transpose_a: bool
    rows: int
    columns: int
    shape: tuple[int, ...]


WeightGradient = str | Product


@dataclass(slots=True)
class Tape:
    """Collects the nodes and constants of the backward pass.

    Attributes:
        shapes: static shape of every forward tensor.
        constants: values of the forward graph's frozen initializers.
        needed: tensors and parameters whose gradient somebody wants.
    """

    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, Array]
    needed: set[str]
    nodes: list[Node] = field(default_factory=list)
    made: dict[str, Array] = field(default_factory=dict)
    tensor_gradients: dict[str, list[str]] = field(default_factory=dict)
    weight_gradients: dict[str, WeightGradient] = field(default_factory=dict)
    _keys: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def emit(self, op: str, *inputs: str, domain: str = "", **attrs: Attribute) -> str:
        """Append a node with one output; returns the output's name."""
        name = f"grad.{len(self.nodes)}.{op}"
        self.nodes.append(Node(op, inputs, (name,), attrs, name, domain))
        return name

    def constant(self, value: Array) -> str:
        """Name of a constant, shared between equal values."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._keys:
            name = f"grad.constant.{len(self._keys)}"
            self._keys[key] = name
            self.made[name] = value
        return self._keys[key]

    def ints(self, *values: int) -> str:
        """An int64 vector constant."""
        return self.constant(np.asarray(values, np.int64))

    def scalar(self, value: float) -> str:
        """A float32 scalar constant."""
        return self.constant(np.asarray(value, np.float32))

    def reshape(self, name: str, *shape: int) -> str:
        """The tensor in another shape."""
        return self.emit("Reshape", name, self.ints(*shape))

    def add(self, name: str, gradient: str) -> None:
        """One more contribution to the gradient of tensor `name`."""
        self.tensor_gradients.setdefault(name, []).append(gradient)

    def gradient(self, name: str) -> str | None:
        """The summed gradient of tensor `name`, or `None` when nothing contributed."""
        parts = self.tensor_gradients.get(name)
        if not parts:
            return None
        if len(parts) > 1:
            self.tensor_gradients[name] = [self.emit("Add" if len(parts) == 2 else "Sum", *parts)]  # noqa: PLR2004 - two operands
        return self.tensor_gradients[name][0]

    def learns(self, node: Node, position: int) -> bool:
        """Whether input `position` of the node wants a gradient."""
        return len(node.inputs) > position and node.inputs[position] in self.needed


Rule = Callable[[Tape, Node, str], None]


def _gemm(tape: Tape, node: Node, dy: str) -> None:
    """For y = x w^T + b (transB) or x w + b: dw = dy^T x or x^T dy; dx = dy w or dy w^T."""
    if node.number("alpha", 1) != 1 or node.number("beta", 1) != 1 or node.attrs.get("transA", 0):
        raise ModelError("Gemm with alpha, beta or transA has no gradient rule", where=node.name)
    x, w = node.inputs[:2]
    transposed = bool(node.attrs.get("transB", 0))
    shape = tape.shapes[w]
    if tape.learns(node, 1):
        a, b = (dy, x) if transposed else (x, dy)
        tape.weight_gradients[w] = Product(a, b, transpose_a=True, rows=shape[0], columns=shape[1], shape=shape)
    if tape.learns(node, 2):
        tape.weight_gradients[node.inputs[2]] = tape.emit("ReduceSum", dy, tape.ints(0), keepdims=0)
    if tape.learns(node, 0):
        tape.add(x, tape.emit("Gemm", dy, w, transB=0 if transposed else 1))


def _add(tape: Tape, node: Node, dy: str) -> None:
    """The gradient passes to both operands of equal shape."""
    for position, name in enumerate(node.inputs):
        if tape.learns(node, position):
            if tape.shapes[name] != tape.shapes[node.outputs[0]]:
                raise ModelError("Add with broadcasting has no gradient rule", where=node.name)
            tape.add(name, dy)


def _clip(tape: Tape, node: Node, dy: str) -> None:
    """1 strictly between the bounds, else 0; taken from the output y, so the input need not be kept.

    (y - lo) (hi - y) is zero exactly at the bounds; HardSigmoid with a huge slope turns it into a mask in one pass.
    """
    if not tape.learns(node, 0):
        return
    y = node.outputs[0]
    low, high = (_bound(tape, node, position) for position in (1, 2))
    if low is None and high is None:
        tape.add(node.inputs[0], dy)
        return
    tape.add(node.inputs[0], tape.emit("Mul", dy, _inside(tape, y, low, high)))


_STEEP = 1e30  # any float32 further than 1e-30 from a bound counts as inside


def _inside(tape: Tape, y: str, low: float | None, high: float | None) -> str:
    below = None if high is None else tape.emit("Sub", tape.scalar(high), y)
    above = None if low is None else y if low == 0 else tape.emit("Sub", y, tape.scalar(low))
    distance = tape.emit("Mul", above, below) if above and below else above or below
    assert distance is not None
    return tape.emit("HardSigmoid", distance, alpha=_STEEP, beta=0.0)


def _bound(tape: Tape, node: Node, position: int) -> float | None:
    if len(node.inputs) <= position or not node.inputs[position]:
        return None
    value = tape.constants.get(node.inputs[position])
    if value is None or value.size != 1:
        raise ModelError("Clip with a bound that is not constant has no gradient rule", where=node.name)
    return float(value.item())


def _relu(tape: Tape, node: Node, dy: str) -> None:
    """1 where y > 0, else 0."""
    if tape.learns(node, 0):
        tape.add(node.inputs[0], tape.emit("Mul", dy, _inside(tape, node.outputs[0], 0.0, None)))


def _global_average_pool(tape: Tape, node: Node, dy: str) -> None:
    """Each position gets dy / (H W)."""
    if not tape.learns(node, 0):
        return
    shape = tape.shapes[node.inputs[0]]
    share = tape.emit("Mul", dy, tape.scalar(1.0 / float(np.prod(shape[2:]))))
    tape.add(node.inputs[0], tape.emit("Expand", share, tape.ints(*shape)))


def _reshaped(tape: Tape, node: Node, dy: str) -> None:
    """Flatten and Reshape: the gradient in the input's shape."""
    if tape.learns(node, 0):
        tape.add(node.inputs[0], tape.reshape(dy, *tape.shapes[node.inputs[0]]))


def _conv(tape: Tape, node: Node, dy: str) -> None:
    from agent.engine.gradients_conv import conv  # noqa: PLC0415 - the two modules are one table, split by size

    conv(tape, node, dy)


RULES: dict[str, Rule] = {
    "Add": _add,
    "Clip": _clip,
    "Conv": _conv,
    "Flatten": _reshaped,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Relu": _relu,
    "Reshape": _reshaped,
}


def matmul(tape: Tape, a: str, b: str, *, transpose_a: bool = False, transpose_b: bool = False) -> str:
    """A batched product with transposes inside the kernel (in every stock onnxruntime wheel)."""
    return tape.emit("FusedMatMul", a, b, domain=MICROSOFT, transA=int(transpose_a), transB=int(transpose_b))


def rule_for(node: Node) -> Rule:
    """The rule for a node.

    Raises:
        ModelError: the operator has none; says which node and what to do.
    """
    rule = RULES.get(node.op)
    if rule is None:
        raise ModelError(
            f"operator {node.op} has no gradient rule",
            where=node.name,
            fix=f"Freeze past this node, or export the model with {', '.join(sorted(RULES))} only",
        )
    return rule
