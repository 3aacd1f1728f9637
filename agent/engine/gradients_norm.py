"""Gradient rules of normalizations.

Layer and instance normalization: with z = (x - mean) r and r = 1 / sqrt(var + eps) over m values, y = scale z + shift,
    dscale = sum(dy z),  dshift = sum(dy),  g = dy scale,  dx = r (g - mean(g) - z mean(g z))
(Ba, Kiros and Hinton 2016; the derivation is that of Ioffe and Szegedy 2015 with the statistics of one sample).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.engine.gradients_tape import PAST_FREEZING, Rule, Tape, total, unbroadcast
from agent.engine.ir import Node
from agent.errors import ModelError


def _mean(tape: Tape, name: str, shape: Sequence[int], axes: Sequence[int]) -> str:
    count = int(np.prod([shape[axis] for axis in axes]))
    return tape.emit("Mul", total(tape, name, axes, keep=True), tape.scalar(1 / count))


def _normalized(tape: Tape, node: Node, dy: str, axes: Sequence[int], wide: tuple[int, ...]) -> None:
    """The formulas of the module; `wide` is the shape in which scale and shift broadcast against x."""
    x, shape = node.inputs[0], tape.shapes[node.inputs[0]]
    centered = tape.emit("Sub", x, _mean(tape, x, shape, axes))
    variance = _mean(tape, tape.emit("Mul", centered, centered), shape, axes)
    deviation = tape.emit("Sqrt", tape.emit("Add", variance, tape.scalar(node.number("epsilon", 1e-5))))
    z = tape.emit("Div", centered, deviation)
    if tape.learns(node, 1):
        _give(tape, node, 1, tape.emit("Mul", dy, z), wide)
    if tape.learns(node, 2):
        _give(tape, node, 2, dy, wide)
    if tape.learns(node, 0):
        scale = node.inputs[1] if tape.shapes[node.inputs[1]] == wide else tape.reshape(node.inputs[1], *wide)
        g = tape.emit("Mul", dy, scale)
        along = tape.emit("Mul", z, _mean(tape, tape.emit("Mul", g, z), shape, axes))
        rest = tape.emit("Sub", tape.emit("Sub", g, _mean(tape, g, shape, axes)), along)
        tape.add(x, tape.emit("Div", rest, deviation))


def _give(tape: Tape, node: Node, position: int, gradient: str, wide: tuple[int, ...]) -> None:
    """Sum over what was broadcast, then take the parameter's own shape."""
    name = node.inputs[position]
    summed = unbroadcast(tape, gradient, tape.shapes[node.inputs[0]], wide)
    tape.add(name, summed if tape.shapes[name] == wide else tape.reshape(summed, *tape.shapes[name]))


def _layer(tape: Tape, node: Node, dy: str) -> None:
    """Over `axis` and all behind it; scale and shift have the shape of those axes or broadcast to it."""
    shape, scale = tape.shapes[node.inputs[0]], tape.shapes[node.inputs[1]]
    axis = int(node.number("axis", -1)) % len(shape)
    if len(node.outputs) > 1 and any(node.outputs[1:]):
        raise ModelError("LayerNormalization whose mean is read has no gradient rule", where=node.name)
    if len(node.inputs) > 2 and node.inputs[2] and tape.shapes[node.inputs[2]] != scale:  # noqa: PLR2004 - X, Scale, B
        raise ModelError("LayerNormalization with scale and shift of two shapes has no gradient rule", where=node.name)
    _normalized(tape, node, dy, range(axis, len(shape)), scale)


def _instance(tape: Tape, node: Node, dy: str) -> None:
    """Over all axes behind the channels, whose scale and shift are [C]."""
    rank, channels = len(tape.shapes[node.inputs[0]]), tape.shapes[node.inputs[0]][1]
    _normalized(tape, node, dy, range(2, rank), (1, channels, *[1] * (rank - 2)))


def _batch(tape: Tape, node: Node, dy: str) -> None:
    """With its statistics frozen it is linear: y = scale (x - mean) r + shift, r = 1 / sqrt(var + eps).

    dx = dy scale r,  dscale = sum(dy (x - mean) r),  dshift = sum(dy).
    """
    if node.attrs.get("training_mode", 0):
        raise ModelError(
            "BatchNormalization in training mode is not trained", where=node.name, fix="Export with eval()"
        )
    mean, variance = (tape.constants.get(name) for name in node.inputs[3:5])
    if mean is None or variance is None:
        raise ModelError("BatchNormalization with computed statistics", where=node.name, fix=PAST_FREEZING)
    x, shape = node.inputs[0], tape.shapes[node.inputs[0]]
    wide = (1, shape[1], *[1] * (len(shape) - 2))
    spread = np.sqrt(variance.astype(np.float64) + node.number("epsilon", 1e-5))
    r = tape.constant((1 / spread).astype(np.float32).reshape(wide))
    if tape.learns(node, 1):
        centered = tape.emit("Sub", x, tape.constant(mean.astype(np.float32).reshape(wide)))
        _give(tape, node, 1, tape.emit("Mul", dy, tape.emit("Mul", centered, r)), wide)
    if tape.learns(node, 2):
        _give(tape, node, 2, dy, wide)
    if tape.learns(node, 0):
        slope = tape.emit("Mul", tape.reshape(node.inputs[1], *wide), r)
        tape.add(x, tape.emit("Mul", dy, slope))


RULES: dict[str, Rule] = {
    "BatchNormalization": _batch,
    "InstanceNormalization": _instance,
    "LayerNormalization": _layer,
}
