"""What every gradient rule writes on: the tape, and the few graph pieces that many rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.engine.ir import MICROSOFT, Array, Attribute, Node
from agent.errors import ModelError

PAST_FREEZING = "Freeze past this node, or export the model without it"


@dataclass(frozen=True, slots=True)
class Product:
    """A weight gradient that is one matrix product a b: the optimizer may fuse its update into the GEMM.

    `shape` is the weight's own shape, `a` is [rows, K] (or [K, rows] when `transpose_a`), `b` is [K, columns] (or
    [columns, K] when `transpose_b`).
    """

    a: str
    b: str
    transpose_a: bool
    rows: int
    columns: int
    shape: tuple[int, ...]
    transpose_b: bool = False


WeightGradient = str | Product


@dataclass(slots=True)
class Tape:
    """Collects the nodes and constants of the backward pass.

    Attributes:
        shapes: static shape of every forward tensor.
        constants: values of the forward graph's frozen initializers.
        needed: tensors and parameters whose gradient somebody wants.
        nodes: at first the forward nodes; rules append the backward ones.
    """

    shapes: dict[str, tuple[int, ...]]
    constants: dict[str, Array]
    needed: set[str]
    nodes: list[Node] = field(default_factory=list)
    made: dict[str, Array] = field(default_factory=dict)
    tensor_gradients: dict[str, list[str]] = field(default_factory=dict)
    weight_gradients: dict[str, WeightGradient] = field(default_factory=dict)
    _keys: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)
    _computed: set[str] = field(default_factory=set)

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

    def add(self, name: str, gradient: WeightGradient) -> None:
        """One more contribution to the gradient of `name`: a tensor that a node makes, or a parameter."""
        if not self._computed:
            self._computed = {output for node in self.nodes for output in node.outputs}
        if name in self._computed:
            self.tensor_gradients.setdefault(name, []).append(self.tensor(gradient))
        else:
            self.add_weight(name, gradient)

    def add_weight(self, name: str, gradient: WeightGradient) -> None:
        """One more contribution to the gradient of parameter `name`."""
        before = self.weight_gradients.get(name)
        if before is not None:  # several nodes read one parameter
            gradient = self.emit("Add", self.tensor(before), self.tensor(gradient))
        self.weight_gradients[name] = gradient

    def tensor(self, gradient: WeightGradient) -> str:
        """The gradient as a tensor of the weight's shape."""
        if isinstance(gradient, str):
            return gradient
        product = self.emit(
            "Gemm", gradient.a, gradient.b, transA=int(gradient.transpose_a), transB=int(gradient.transpose_b)
        )
        return self.reshape(product, *gradient.shape)

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


def constant_input(tape: Tape, node: Node, position: int, what: str) -> Array | None:
    """Value of a constant input, or `None` where it is absent.

    Raises:
        ModelError: it is there but computed or learning; `what` says in the message which input it is.
    """
    if len(node.inputs) <= position or not node.inputs[position]:
        return None
    value = tape.constants.get(node.inputs[position])
    if value is None:
        raise ModelError(
            f"{node.op} with {what} that is not constant has no gradient rule", where=node.name, fix=PAST_FREEZING
        )
    return value


def total(tape: Tape, name: str, axes: Iterable[int], *, keep: bool = False) -> str:
    """Sum over `axes`; no axes: the tensor itself."""
    chosen = list(axes)
    return tape.emit("ReduceSum", name, tape.ints(*chosen), keepdims=int(keep)) if chosen else name


def unbroadcast(tape: Tape, gradient: str, wide: Sequence[int], narrow: Sequence[int]) -> str:
    """Sum a gradient of shape `wide` to shape `narrow`, which was broadcast to it (NumPy's rules)."""
    if tuple(wide) == tuple(narrow):
        return gradient
    extra = len(wide) - len(narrow)
    axes = [i for i, size in enumerate(wide) if i < extra or (narrow[i - extra] == 1 and size != 1)]
    summed = total(tape, gradient, axes)
    return tape.reshape(summed, *narrow)


def matmul(tape: Tape, a: str, b: str, *, transpose_a: bool = False, transpose_b: bool = False) -> str:
    """A batched product with transposes inside the kernel (in every stock onnxruntime wheel)."""
    return tape.emit("FusedMatMul", a, b, domain=MICROSOFT, transA=int(transpose_a), transB=int(transpose_b))


def along_axis(tape: Tape, name: str, shape: Sequence[int], axis: int, matrix: Array) -> tuple[str, tuple[int, ...]]:
    """Apply a constant matrix [R, shape[axis]] along one axis; the result and its shape.

    Every operator that is linear along an axis (Gather, Slice, Pad, Resize, average pooling) has the transposed matrix
    as its gradient. The tensor is seen as [before, shape[axis], after], so nothing is transposed.
    """
    before, after = int(np.prod(shape[:axis])), int(np.prod(shape[axis + 1 :]))
    flat = tape.reshape(name, before, shape[axis], after)
    mapped = tape.emit("MatMul", tape.constant(np.ascontiguousarray(matrix, np.float32)), flat)
    out = (*shape[:axis], matrix.shape[0], *shape[axis + 1 :])
    return tape.reshape(mapped, *out), out


STEEP = 1e30  # any float32 further than 1e-30 from a bound counts as inside


def above_zero(tape: Tape, distance: str) -> str:
    """1 where `distance` > 0, else 0, as float32: HardSigmoid with a huge slope makes the mask in one pass."""
    return tape.emit("HardSigmoid", distance, alpha=STEEP, beta=0.0)


def inside(tape: Tape, y: str, low: float | None, high: float | None) -> str:
    """1 where low < y < high, else 0: (y - low) (high - y) is zero exactly at the bounds, one of which is given."""
    below = None if high is None else tape.emit("Sub", tape.scalar(high), y)
    above = None if low is None else y if low == 0 else tape.emit("Sub", y, tape.scalar(low))
    distance = tape.emit("Mul", above, below) if above and below else above or below
    assert distance is not None
    return above_zero(tape, distance)
