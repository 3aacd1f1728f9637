"""Gradient rules of Conv (2-D): pointwise, depthwise and plain, any stride, asymmetric pads.

Notation as in `gradients`: x [N, C, H, W], w [O, C/g, kh, kw], y [N, O, P, Q]. For pads (top, left, bottom, right) and
stride s, y[p] = sum_i w[i] x[s p + i - top], so
  dw[i] = sum_p dy[p] x[s p + i - top]     a convolution of x with dy dilated by s
  dx[j] = sum_i dy[(j + top - i) / s] w[i] a convolution of dy, zeros inserted, with w flipped (a ConvTranspose)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.engine.gradients import Product, Tape, matmul
from agent.engine.ir import Node
from agent.errors import ModelError

FAR = -(2**31)  # Slice end that means: down to and including index 0


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Sizes of one convolution, in the notation of the module."""

    n: int
    c: int
    o: int
    group: int
    size: tuple[int, int]
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    before: tuple[int, int]

    @property
    def pointwise(self) -> bool:
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.group == 1 and self.before == (0, 0)

    @property
    def depthwise(self) -> bool:
        return self.group == self.c == self.o


def conv(tape: Tape, node: Node, dy: str) -> None:
    """Emit the gradients of weight, bias and input that are needed."""
    geometry = _geometry(tape, node)
    x, w = node.inputs[:2]
    if tape.learns(node, 2):
        tape.weight_gradients[node.inputs[2]] = tape.emit("ReduceSum", dy, tape.ints(0, 2, 3), keepdims=0)
    if tape.learns(node, 1):
        if geometry.pointwise:
            tape.weight_gradients[w] = _pointwise_weight(tape, geometry, x, dy, tape.shapes[w])
        elif geometry.depthwise:
            tape.weight_gradients[w] = _depthwise_weight(tape, geometry, x, dy)
        elif geometry.group == 1:
            tape.weight_gradients[w] = _plain_weight(tape, geometry, x, dy)
        else:
            raise ModelError(
                f"a Conv with {geometry.group} groups of several channels has no weight-gradient rule",
                where=node.name,
                fix="Freeze past this node",
            )
    if tape.learns(node, 0):
        tape.add(x, _input(tape, geometry, w, dy))


def _geometry(tape: Tape, node: Node) -> _Geometry:
    x, y, w = tape.shapes[node.inputs[0]], tape.shapes[node.outputs[0]], tape.shapes[node.inputs[1]]
    if len(x) != 4:  # noqa: PLR2004 - N, C, H, W
        raise ModelError(f"a Conv over {len(x) - 2} dimensions has no gradient rule", where=node.name)
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ModelError("Conv with auto_pad has no gradient rule", where=node.name, fix="Export with explicit pads")
    if node.ints("dilations", (1, 1)) != (1, 1):
        raise ModelError("a dilated Conv has no gradient rule", where=node.name, fix="Freeze past this node")
    pads = node.ints("pads", (0, 0, 0, 0))
    stride = node.ints("strides", (1, 1))
    group = int(node.number("group", 1))
    return _Geometry(
        x[0], x[1], w[0], group, (x[2], x[3]), (y[2], y[3]), (w[2], w[3]), (stride[0], stride[1]), (pads[0], pads[1])
    )


def _pointwise_weight(tape: Tape, g: _Geometry, x: str, dy: str, shape: tuple[int, ...]) -> str | Product:
    """The product dw = dy x^T over all positions of all samples.

    Few positions against many channels (late layers): transpose the small activations once and make one GEMM, whose
    update can then be fused. Else a batched product without any transpose, summed over the samples.
    """
    positions = g.out[0] * g.out[1]
    if g.o * g.c > 2 * (g.o + g.c) * positions:
        rows = tape.emit("Transpose", tape.reshape(dy, g.n, g.o, positions), perm=[1, 0, 2])
        columns = tape.emit("Transpose", tape.reshape(x, g.n, g.c, positions), perm=[0, 2, 1])
        a, b = tape.reshape(rows, g.o, g.n * positions), tape.reshape(columns, g.n * positions, g.c)
        return Product(a, b, transpose_a=False, rows=g.o, columns=g.c, shape=shape)
    a, b = tape.reshape(dy, g.n, g.o, positions), tape.reshape(x, g.n, g.c, positions)
    each = matmul(tape, a, b, transpose_b=True)
    return tape.reshape(tape.emit("ReduceSum", each, tape.ints(0), keepdims=0), *shape)


def _used(tape: Tape, g: _Geometry, x: str) -> tuple[str, tuple[int, ...], list[int]]:
    """The part of x that a dilated dy reaches, its size, and the pads that make its convolution with dy kh x kw."""
    after = [k + (p - 1) * s - h - b for k, p, s, h, b in zip(g.kernel, g.out, g.stride, g.size, g.before, strict=True)]
    size = tuple(h + min(a, 0) for h, a in zip(g.size, after, strict=True))
    if size != g.size:
        x = tape.emit("Slice", x, tape.ints(0, 0), tape.ints(*size), tape.ints(2, 3))
    return x, size, [*g.before, *(max(a, 0) for a in after)]


def _depthwise_weight(tape: Tape, g: _Geometry, x: str, dy: str) -> str:
    """Each sample's channel is a group of one convolution of x with dy; the result is summed over the samples."""
    x, size, pads = _used(tape, g, x)
    images = tape.reshape(x, 1, g.n * g.c, *size)
    kernels = tape.reshape(dy, g.n * g.c, 1, *g.out)
    each = tape.emit("Conv", images, kernels, group=g.n * g.c, dilations=list(g.stride), pads=pads)
    total = tape.emit("ReduceSum", tape.reshape(each, g.n, g.c, 1, *g.kernel), tape.ints(0), keepdims=0)
    return tape.reshape(total, g.c, 1, *g.kernel)


def _plain_weight(tape: Tape, g: _Geometry, x: str, dy: str) -> str:
    """With samples and channels swapped: x^T [C, N, H, W] convolved with dy^T [O, N, P, Q] is w^T [C, O, kh, kw]."""
    x, _, pads = _used(tape, g, x)
    images = tape.emit("Transpose", x, perm=[1, 0, 2, 3])
    kernels = tape.emit("Transpose", dy, perm=[1, 0, 2, 3])
    each = tape.emit("Conv", images, kernels, dilations=list(g.stride), pads=pads)
    return tape.emit("Transpose", each, perm=[1, 0, 2, 3])


def _input(tape: Tape, g: _Geometry, w: str, dy: str) -> str:
    if g.pointwise:
        return tape.emit("Conv", dy, tape.emit("Transpose", w, perm=[1, 0, 2, 3]))
    before = [k - 1 - b for k, b in zip(g.kernel, g.before, strict=True)]
    after = [h - p * s + b for h, p, s, b in zip(g.size, g.out, g.stride, g.before, strict=True)]
    if g.depthwise and min(before) >= 0 and min(after) >= 0:
        flipped = tape.emit("Slice", w, tape.ints(-1, -1), tape.ints(FAR, FAR), tape.ints(2, 3), tape.ints(-1, -1))
        spread = _zeros_between(tape, g, dy)
        return tape.emit("Conv", spread, flipped, group=g.group, pads=[*before, *after])
    return _transposed(tape, g, w, dy)


def _zeros_between(tape: Tape, g: _Geometry, dy: str) -> str:
    """The gradient dy with stride - 1 zeros after each value: [N, O, P s, Q s].

    Nearest-neighbour Resize and a mask: both run at memory speed, where Pad copies value by value (8 times slower).
    """
    if g.stride == (1, 1):
        return dy
    (p, q), (sh, sw) = g.out, g.stride
    scales = tape.constant(np.asarray([1, 1, sh, sw], np.float32))
    mask = np.zeros((1, 1, p * sh, q * sw), np.float32)
    mask[:, :, ::sh, ::sw] = 1
    repeated = tape.emit(
        "Resize", dy, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    return tape.emit("Mul", repeated, tape.constant(mask))


def _transposed(tape: Tape, g: _Geometry, w: str, dy: str) -> str:
    """ConvTranspose is the gradient by definition; its end pads follow from the size of x."""
    after = [s * (p - 1) + k - b - h for s, p, k, b, h in zip(g.stride, g.out, g.kernel, g.before, g.size, strict=True)]
    return tape.emit(
        "ConvTranspose",
        dy,
        w,
        group=g.group,
        strides=list(g.stride),
        pads=[*g.before, *(max(a, 0) for a in after)],
        output_padding=[max(-a, 0) for a in after],
    )
