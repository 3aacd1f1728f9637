"""Gradient rules of activations. x is the input, y the output; kinks get the value that is named at each rule."""

from __future__ import annotations

import math

from agent.engine.gradients_elementwise import give
from agent.engine.gradients_tape import Rule, Tape, above_zero, constant_input, inside, total
from agent.engine.ir import Node
from agent.errors import ModelError

TANH_GELU_CUBE = 0.044715  # Hendrycks and Gimpel 2016, as ONNX Gelu-20 writes it


def _clip(tape: Tape, node: Node, dy: str) -> None:
    """1 strictly between the bounds, else 0; taken from the output y, so the input need not be kept."""
    bounds = [constant_input(tape, node, position, "a bound") for position in (1, 2)]
    if any(bound is not None and bound.size != 1 for bound in bounds):
        raise ModelError("Clip with a bound that is no scalar has no gradient rule", where=node.name)
    low, high = (None if bound is None else float(bound.item()) for bound in bounds)
    if low is None and high is None:
        tape.add(node.inputs[0], dy)
    else:
        tape.add(node.inputs[0], tape.emit("Mul", dy, inside(tape, node.outputs[0], low, high)))


def _relu(tape: Tape, node: Node, dy: str) -> None:
    """1 where y > 0, else 0."""
    tape.add(node.inputs[0], tape.emit("Mul", dy, above_zero(tape, node.outputs[0])))


def _slope_below(tape: Tape, x: str, slope: str) -> str:
    """1 where x > 0, else `slope`: mask + slope (1 - mask)."""
    mask = above_zero(tape, x)
    return tape.emit("Add", mask, tape.emit("Mul", tape.emit("Sub", tape.scalar(1), mask), slope))


def _leaky_relu(tape: Tape, node: Node, dy: str) -> None:
    """1 where x > 0, else alpha."""
    x = node.inputs[0]
    tape.add(x, tape.emit("Mul", dy, _slope_below(tape, x, tape.scalar(node.number("alpha", 0.01)))))


def _prelu(tape: Tape, node: Node, dy: str) -> None:
    """As LeakyRelu with a slope tensor s, whose own gradient is dy min(x, 0)."""
    x, slope = node.inputs
    if tape.learns(node, 0):
        tape.add(x, tape.emit("Mul", dy, _slope_below(tape, x, slope)))
    if tape.learns(node, 1):
        give(tape, node, 1, tape.emit("Mul", dy, tape.emit("Min", x, tape.scalar(0))))


def _hard_sigmoid(tape: Tape, node: Node, dy: str) -> None:
    """Alpha where 0 < y < 1, else 0."""
    slope = tape.emit("Mul", inside(tape, node.outputs[0], 0.0, 1.0), tape.scalar(node.number("alpha", 0.2)))
    tape.add(node.inputs[0], tape.emit("Mul", dy, slope))


def _hard_swish(tape: Tape, node: Node, dy: str) -> None:
    """For y = x h with h = clip(x / 6 + 1/2, 0, 1): h + x / 6 where 0 < h < 1, else h."""
    x = node.inputs[0]
    gate = tape.emit("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    share = tape.emit("Mul", tape.emit("Mul", x, tape.scalar(1 / 6)), inside(tape, gate, 0.0, 1.0))
    tape.add(x, tape.emit("Mul", dy, tape.emit("Add", gate, share)))


def _sigmoid(tape: Tape, node: Node, dy: str) -> None:
    """Derivative y (1 - y)."""
    y = node.outputs[0]
    slope = tape.emit("Mul", y, tape.emit("Sub", tape.scalar(1), y))
    tape.add(node.inputs[0], tape.emit("Mul", dy, slope))


def _tanh(tape: Tape, node: Node, dy: str) -> None:
    """Derivative 1 - y^2."""
    y = node.outputs[0]
    slope = tape.emit("Sub", tape.scalar(1), tape.emit("Mul", y, y))
    tape.add(node.inputs[0], tape.emit("Mul", dy, slope))


def _elu(tape: Tape, node: Node, dy: str) -> None:
    """1 where x > 0, else y + alpha, which is alpha exp(x)."""
    x = node.inputs[0]
    tail = tape.emit("Add", node.outputs[0], tape.scalar(node.number("alpha", 1)))
    tape.add(x, tape.emit("Mul", dy, _slope_below(tape, x, tail)))


def _softplus(tape: Tape, node: Node, dy: str) -> None:
    """For y = ln(1 + exp(x)): sigmoid(x)."""
    tape.add(node.inputs[0], tape.emit("Mul", dy, tape.emit("Sigmoid", node.inputs[0])))


def _gelu(tape: Tape, node: Node, dy: str) -> None:
    """Exact: P + x p with the normal distribution P and density p. Tanh form: (1 + t) / 2 + x (1 - t^2) u' / 2.

    There t = tanh(u), u = sqrt(2 / pi) (x + 0.044715 x^3).
    """
    x = node.inputs[0]
    square = tape.emit("Mul", x, x)
    if node.attrs.get("approximate", "none") == "tanh":
        root = math.sqrt(2 / math.pi)
        cube = tape.emit("Add", tape.emit("Mul", square, tape.scalar(TANH_GELU_CUBE)), tape.scalar(1))
        t = tape.emit("Tanh", tape.emit("Mul", tape.emit("Mul", x, cube), tape.scalar(root)))
        rise = tape.emit("Add", tape.emit("Mul", square, tape.scalar(3 * root * TANH_GELU_CUBE)), tape.scalar(root))
        bell = tape.emit("Mul", tape.emit("Sub", tape.scalar(1), tape.emit("Mul", t, t)), rise)
        twice = tape.emit("Add", tape.emit("Add", t, tape.scalar(1)), tape.emit("Mul", x, bell))
        slope = tape.emit("Mul", twice, tape.scalar(0.5))
    else:
        erf = tape.emit("Erf", tape.emit("Mul", x, tape.scalar(math.sqrt(0.5))))
        below = tape.emit("Mul", tape.emit("Add", erf, tape.scalar(1)), tape.scalar(0.5))
        bell = tape.emit("Exp", tape.emit("Mul", square, tape.scalar(-0.5)))
        density = tape.emit("Mul", bell, tape.scalar(1 / math.sqrt(2 * math.pi)))
        slope = tape.emit("Add", below, tape.emit("Mul", x, density))
    tape.add(x, tape.emit("Mul", dy, slope))


def _softmax(tape: Tape, node: Node, dy: str) -> None:
    """Derivative dx = y (dy - sum(dy y)), the sum along the axis."""
    y = node.outputs[0]
    axis = int(node.number("axis", -1)) % len(tape.shapes[y])
    mean = total(tape, tape.emit("Mul", dy, y), [axis], keep=True)
    tape.add(node.inputs[0], tape.emit("Mul", y, tape.emit("Sub", dy, mean)))


def _log_softmax(tape: Tape, node: Node, dy: str) -> None:
    """Derivative dx = dy - exp(y) sum(dy), the sum along the axis."""
    y = node.outputs[0]
    axis = int(node.number("axis", -1)) % len(tape.shapes[y])
    summed = total(tape, dy, [axis], keep=True)
    tape.add(node.inputs[0], tape.emit("Sub", dy, tape.emit("Mul", tape.emit("Exp", y), summed)))


RULES: dict[str, Rule] = {
    "Clip": _clip,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _log_softmax,
    "PRelu": _prelu,
    "Relu": _relu,
    "Sigmoid": _sigmoid,
    "Softmax": _softmax,
    "Softplus": _softplus,
    "Tanh": _tanh,
}
