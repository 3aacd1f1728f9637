"""Gradient rules of reductions: sums, means, norms and extremes over axes, global pools included.

The output's gradient first gets the reduced axes back with size 1, so that it broadcasts against the input.
"""

from __future__ import annotations

import numpy as np

from agent.engine.gradients_tape import Rule, Tape, constant_input, total
from agent.engine.ir import Node


def axes_of(tape: Tape, node: Node) -> tuple[int, ...]:
    """Reduced axes, not negative: from the attribute (opset 13-17) or the constant second input (18 on)."""
    rank = len(tape.shapes[node.inputs[0]])
    given = constant_input(tape, node, 1, "axes")
    axes = node.ints("axes", ()) if given is None else tuple(int(axis) for axis in given.reshape(-1))
    if not axes:
        return () if node.attrs.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(axis % rank for axis in axes))


def _kept(tape: Tape, node: Node, name: str, axes: tuple[int, ...]) -> str:
    """A tensor of the output's shape with the reduced axes as ones."""
    shape = tape.shapes[node.inputs[0]]
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return name if tape.shapes[node.outputs[0]] == kept else tape.reshape(name, *kept)


def _spread(tape: Tape, node: Node, dy: str) -> None:
    """Every reduced position gets the whole dy."""
    kept = _kept(tape, node, dy, axes_of(tape, node))
    tape.add(node.inputs[0], _expanded(tape, node, kept))


def _expanded(tape: Tape, node: Node, kept: str) -> str:
    return tape.emit("Expand", kept, tape.ints(*tape.shapes[node.inputs[0]]))


def _averaged(tape: Tape, node: Node, dy: str, axes: tuple[int, ...]) -> None:
    """Every position gets dy divided by how many there are."""
    shape = tape.shapes[node.inputs[0]]
    share = tape.emit("Mul", dy, tape.scalar(1.0 / float(np.prod([shape[axis] for axis in axes]))))
    tape.add(node.inputs[0], _expanded(tape, node, _kept(tape, node, share, axes)))


def _mean(tape: Tape, node: Node, dy: str) -> None:
    """ReduceMean."""
    _averaged(tape, node, dy, axes_of(tape, node))


def _global_average_pool(tape: Tape, node: Node, dy: str) -> None:
    """The mean over all axes behind the channels."""
    _averaged(tape, node, dy, _spatial(tape, node))


def _spatial(tape: Tape, node: Node) -> tuple[int, ...]:
    return tuple(range(2, len(tape.shapes[node.inputs[0]])))


def _shared(tape: Tape, node: Node, dy: str, axes: tuple[int, ...]) -> None:
    """Extremes: the positions that hold the extreme share dy evenly."""
    x = node.inputs[0]
    mask = tape.emit("Cast", tape.emit("Equal", x, _kept(tape, node, node.outputs[0], axes)), to=1)
    share = tape.emit("Div", _kept(tape, node, dy, axes), total(tape, mask, axes, keep=True))
    tape.add(x, tape.emit("Mul", mask, share))


def _extreme(tape: Tape, node: Node, dy: str) -> None:
    """ReduceMax and ReduceMin."""
    _shared(tape, node, dy, axes_of(tape, node))


def _global_max_pool(tape: Tape, node: Node, dy: str) -> None:
    """The maximum over all axes behind the channels."""
    _shared(tape, node, dy, _spatial(tape, node))


def _sum_square(tape: Tape, node: Node, dy: str) -> None:
    """For y = sum x^2: dx = 2 x dy."""
    x = node.inputs[0]
    kept = _kept(tape, node, tape.emit("Mul", dy, tape.scalar(2)), axes_of(tape, node))
    tape.add(x, tape.emit("Mul", x, kept))


def _norm1(tape: Tape, node: Node, dy: str) -> None:
    """For y = sum |x|: dx = sign(x) dy."""
    x = node.inputs[0]
    tape.add(x, tape.emit("Mul", tape.emit("Sign", x), _kept(tape, node, dy, axes_of(tape, node))))


def _norm2(tape: Tape, node: Node, dy: str) -> None:
    """For y = sqrt(sum x^2): dx = x dy / y; where y is 0 its least positive value keeps dx at 0."""
    x = node.inputs[0]
    floor = tape.emit("Max", node.outputs[0], tape.scalar(float(np.finfo(np.float32).tiny)))
    tape.add(x, tape.emit("Mul", x, _kept(tape, node, tape.emit("Div", dy, floor), axes_of(tape, node))))


RULES: dict[str, Rule] = {
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "ReduceL1": _norm1,
    "ReduceL2": _norm2,
    "ReduceMax": _extreme,
    "ReduceMean": _mean,
    "ReduceMin": _extreme,
    "ReduceSum": _spread,
    "ReduceSumSquare": _sum_square,
}
