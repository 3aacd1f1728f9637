"""Gradient rules of arithmetic and functions that work value by value, with broadcasting between operands."""

from __future__ import annotations

import math

import numpy as np

from agent.engine.gradients_tape import Rule, Tape, constant_input, unbroadcast
from agent.engine.ir import Node


def give(tape: Tape, node: Node, position: int, gradient: str) -> None:
    """Add a gradient of the output's shape to input `position`, summed over what was broadcast."""
    name = node.inputs[position]
    tape.add(name, unbroadcast(tape, gradient, tape.shapes[node.outputs[0]], tape.shapes[name]))


def _sum(tape: Tape, node: Node, dy: str) -> None:
    """Add and Sum: the gradient passes to every operand."""
    for position in range(len(node.inputs)):
        if tape.learns(node, position):
            give(tape, node, position, dy)


def _sub(tape: Tape, node: Node, dy: str) -> None:
    """For y = a - b: da = dy, db = -dy."""
    if tape.learns(node, 0):
        give(tape, node, 0, dy)
    if tape.learns(node, 1):
        give(tape, node, 1, tape.emit("Neg", dy))


def _mul(tape: Tape, node: Node, dy: str) -> None:
    """For y = a b: da = dy b, db = dy a."""
    for position in (0, 1):
        if tape.learns(node, position):
            give(tape, node, position, tape.emit("Mul", dy, node.inputs[1 - position]))


def _div(tape: Tape, node: Node, dy: str) -> None:
    """For y = a / b: da = dy / b, db = -dy y / b."""
    if tape.learns(node, 0):
        give(tape, node, 0, tape.emit("Div", dy, node.inputs[1]))
    if tape.learns(node, 1):
        share = tape.emit("Div", tape.emit("Mul", dy, node.outputs[0]), node.inputs[1])
        give(tape, node, 1, tape.emit("Neg", share))


def _neg(tape: Tape, node: Node, dy: str) -> None:
    """For y = -x: dx = -dy."""
    tape.add(node.inputs[0], tape.emit("Neg", dy))


def _reciprocal(tape: Tape, node: Node, dy: str) -> None:
    """For y = 1 / x: dx = -dy y^2."""
    y = node.outputs[0]
    tape.add(node.inputs[0], tape.emit("Neg", tape.emit("Mul", dy, tape.emit("Mul", y, y))))


def _sqrt(tape: Tape, node: Node, dy: str) -> None:
    """For y = sqrt(x): dx = dy / (2 y)."""
    tape.add(node.inputs[0], tape.emit("Div", tape.emit("Mul", dy, tape.scalar(0.5)), node.outputs[0]))


def _pow(tape: Tape, node: Node, dy: str) -> None:
    """For y = x^c with constant c: dx = dy c x^(c - 1)."""
    exponent = constant_input(tape, node, 1, "an exponent")
    if not tape.learns(node, 0) or exponent is None:
        return
    x = node.inputs[0]
    c = exponent.astype(np.float32)
    if np.all(c == 2):  # noqa: PLR2004 - the square, by far the most frequent
        slope = tape.emit("Mul", x, tape.scalar(2))
    else:
        slope = tape.emit("Mul", tape.emit("Pow", x, tape.constant(c - 1)), tape.constant(c))
    give(tape, node, 0, tape.emit("Mul", dy, slope))


def _exp(tape: Tape, node: Node, dy: str) -> None:
    """For y = exp(x): dx = dy y."""
    tape.add(node.inputs[0], tape.emit("Mul", dy, node.outputs[0]))


def _log(tape: Tape, node: Node, dy: str) -> None:
    """For y = ln(x): dx = dy / x."""
    tape.add(node.inputs[0], tape.emit("Div", dy, node.inputs[0]))


def _abs(tape: Tape, node: Node, dy: str) -> None:
    """For y = |x|: dx = dy sign(x), 0 at 0."""
    tape.add(node.inputs[0], tape.emit("Mul", dy, tape.emit("Sign", node.inputs[0])))


def _erf(tape: Tape, node: Node, dy: str) -> None:
    """For y = erf(x): dx = dy 2 / sqrt(pi) exp(-x^2)."""
    x = node.inputs[0]
    bell = tape.emit("Exp", tape.emit("Neg", tape.emit("Mul", x, x)))
    tape.add(x, tape.emit("Mul", dy, tape.emit("Mul", bell, tape.scalar(2 / math.sqrt(math.pi)))))


def _extreme(tape: Tape, node: Node, dy: str) -> None:
    """Max and Min: the gradient goes to the operand that gave the value; equal operands share it evenly."""
    y = node.outputs[0]
    masks = [tape.emit("Cast", tape.emit("Equal", name, y), to=1) for name in node.inputs]
    ties = masks[0] if len(masks) == 1 else tape.emit("Sum", *masks)
    share = tape.emit("Div", dy, ties)
    for position, mask in enumerate(masks):
        if tape.learns(node, position):
            give(tape, node, position, tape.emit("Mul", share, mask))


def _where(tape: Tape, node: Node, dy: str) -> None:
    """The gradient goes to the branch that was chosen; the condition has none."""
    condition, zero = node.inputs[0], tape.scalar(0)
    if tape.learns(node, 1):
        give(tape, node, 1, tape.emit("Where", condition, dy, zero))
    if tape.learns(node, 2):
        give(tape, node, 2, tape.emit("Where", condition, zero, dy))


RULES: dict[str, Rule] = {
    "Abs": _abs,
    "Add": _sum,
    "Div": _div,
    "Erf": _erf,
    "Exp": _exp,
    "Log": _log,
    "Max": _extreme,
    "Min": _extreme,
    "Mul": _mul,
    "Neg": _neg,
    "Pow": _pow,
    "Reciprocal": _reciprocal,
    "Sqrt": _sqrt,
    "Sub": _sub,
    "Sum": _sum,
    "Where": _where,
}
