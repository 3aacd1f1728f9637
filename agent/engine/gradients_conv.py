"""Gradient rules of Conv and ConvTranspose over any number of axes: grouped, strided, dilated, asymmetric pads.

Notation as in `gradients`: x [N, C, H, W], w [O, C/g, kh, kw], y [N, O, P, Q]. For b cells of padding before x, stride
s and dilation d, y[p] = sum_i w[i] x[s p + d i - b], so
  dw[i] = sum_p dy[p] x[s p + d i - b]       a convolution of x with dy, which is dilated by s, at stride d
  dx[j] = sum_i dy[(j + b - d i) / s] w[i]   a convolution of dy, zeros inserted, with w flipped (a ConvTranspose)
A ConvTranspose is the same with x and y in each other's place (Dumoulin and Visin 2016).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from agent.engine.gradients_tape import Product, Rule, Tape, matmul, total
from agent.engine.ir import Attribute, Node
from agent.errors import ModelError

FAR = -(2**31)  # Slice end that means: down to and including index 0
Sizes = tuple[int, ...]


def pads_of(node: Node, size: Sequence[int], out: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Explicit pads [begin..., end...] of a Conv or pool from `size` to `out` cells, `auto_pad` resolved.

    SAME pads (out - 1) s + d (k - 1) + 1 - size cells in all; an odd one goes to the end (UPPER) or begin (LOWER).
    """
    spatial = len(size)
    kind = node.attrs.get("auto_pad", "NOTSET")
    if kind not in ("SAME_UPPER", "SAME_LOWER"):
        return list(node.ints("pads", [0] * 2 * spatial)) if kind == "NOTSET" else [0] * 2 * spatial
    strides, dilations = node.ints("strides", [1] * spatial), node.ints("dilations", [1] * spatial)
    spans = zip(size, out, kernel, strides, dilations, strict=True)
    missing = [max((p - 1) * s + d * (k - 1) + 1 - h, 0) for h, p, k, s, d in spans]
    begin = [cells // 2 if kind == "SAME_UPPER" else cells - cells // 2 for cells in missing]
    return begin + [cells - first for cells, first in zip(missing, begin, strict=True)]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of one convolution from a big image [N, c, *size] to a small one [N, o, *out]."""

    n: int
    c: int
    o: int
    group: int
    size: Sizes
    out: Sizes
    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    before: Sizes

    @property
    def axes(self) -> list[int]:
        """The axes that the kernel moves along."""
        return list(range(2, 2 + len(self.size)))

    @property
    def pointwise(self) -> bool:
        """One tap, all positions, all channels: a matrix product."""
        single = set(self.kernel) | set(self.stride) | {self.group} == {1}
        return single and self.size == self.out and not any(self.before)

    @property
    def depthwise(self) -> bool:
        """Each channel for itself."""
        return self.group == self.c == self.o

    @property
    def after(self) -> list[int]:
        """Cells of padding behind x that the last window needs; negative: cells of x that no window reaches."""
        return [
            s * (p - 1) + d * (k - 1) + 1 - h - b
            for s, p, d, k, h, b in zip(
                self.stride, self.out, self.dilation, self.kernel, self.size, self.before, strict=True
            )
        ]


def conv(tape: Tape, node: Node, dy: str) -> None:
    """Emit the gradients of weight, bias and input that are needed."""
    x, w = node.inputs[:2]
    shape_x, shape_y, shape_w = tape.shapes[x], tape.shapes[node.outputs[0]], tape.shapes[w]
    pads = pads_of(node, shape_x[2:], shape_y[2:], shape_w[2:])
    g = geometry_of({**node.attrs, "pads": pads}, shape_x, shape_w, shape_y)
    _check_groups(node, g, shape_w[1])
    if tape.learns(node, 2):
        tape.add(node.inputs[2], total(tape, dy, [0, *g.axes]))
    if tape.learns(node, 1):
        tape.add(w, weight_gradient(tape, g, x, dy, shape_w))
    if tape.learns(node, 0):
        tape.add(x, input_gradient(tape, g, w, dy))


def conv_transpose(tape: Tape, node: Node, dy: str) -> None:
    """The roles of x and y are exchanged: w [C, O/g, kh, kw] is the weight of a Conv from y to x."""
    x, w = node.inputs[:2]
    shape_x, shape_y, shape_w = tape.shapes[x], tape.shapes[node.outputs[0]], tape.shapes[w]
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in node.attrs:
        raise ModelError(
            "ConvTranspose with auto_pad or output_shape has no gradient rule",
            where=node.name,
            fix="Export with explicit pads and output_padding",
        )
    g = geometry_of(node.attrs, shape_y, shape_w, shape_x)
    _check_groups(node, g, shape_w[1])
    if tape.learns(node, 2):
        tape.add(node.inputs[2], total(tape, dy, [0, *g.axes]))
    if tape.learns(node, 1):
        tape.add(w, weight_gradient(tape, g, dy, x, shape_w))
    if tape.learns(node, 0):
        image, _, pads = _used(tape, g, dy)
        made = tape.emit("Conv", image, w, group=g.group, strides=list(g.stride), dilations=list(g.dilation), pads=pads)
        tape.add(x, made)


def _check_groups(node: Node, g: Geometry, within: int) -> None:
    if g.group < 1 or g.o % g.group or g.c != within * g.group:
        raise ModelError(f"{node.op} in {g.group} groups does not fit its channels", where=node.name)


def geometry_of(attrs: Mapping[str, Attribute], big: Sizes, weight: Sizes, small: Sizes) -> Geometry:
    """Sizes of a convolution with explicit pads from an image of shape `big` to one of shape `small`."""
    node, spatial = Node("Conv", (), (), attrs), len(big) - 2
    ones = [1] * spatial
    return Geometry(
        n=big[0],
        c=big[1],
        o=small[1],
        group=int(node.number("group", 1)),
        size=big[2:],
        out=small[2:],
        kernel=weight[2:],
        stride=node.ints("strides", ones),
        dilation=node.ints("dilations", ones),
        before=node.ints("pads", [0] * 2 * spatial)[:spatial],
    )


def weight_gradient(tape: Tape, g: Geometry, x: str, dy: str, shape: Sizes) -> str | Product:
    """The gradient of w [O, C/g, ...]: x is the big image, dy the small one."""
    if g.pointwise:
        return _pointwise_weight(tape, g, x, dy, shape)
    return depthwise_weight(tape, g, x, dy) if g.depthwise else _plain_weight(tape, g, x, dy)


def _pointwise_weight(tape: Tape, g: Geometry, x: str, dy: str, shape: Sizes) -> str | Product:
    """The product dw = dy x^T over all positions of all samples.

    Few positions against many channels (late layers): transpose the small activations once and make one GEMM, whose
    update can then be fused. Else a batched product without any transpose, summed over the samples.
    """
    positions = int(np.prod(g.out))
    if g.o * g.c > 2 * (g.o + g.c) * positions:
        rows = tape.emit("Transpose", tape.reshape(dy, g.n, g.o, positions), perm=[1, 0, 2])
        columns = tape.emit("Transpose", tape.reshape(x, g.n, g.c, positions), perm=[0, 2, 1])
        a, b = tape.reshape(rows, g.o, g.n * positions), tape.reshape(columns, g.n * positions, g.c)
        return Product(a, b, transpose_a=False, rows=g.o, columns=g.c, shape=shape)
    a, b = tape.reshape(dy, g.n, g.o, positions), tape.reshape(x, g.n, g.c, positions)
    return tape.reshape(total(tape, matmul(tape, a, b, transpose_b=True), [0]), *shape)


def _used(tape: Tape, g: Geometry, x: str) -> tuple[str, Sizes, list[int]]:
    """The part of x that a window reaches, its size, and the pads that make its convolution fit exactly."""
    size = tuple(h + min(a, 0) for h, a in zip(g.size, g.after, strict=True))
    if size != g.size:
        x = tape.emit("Slice", x, tape.ints(*[0] * len(size)), tape.ints(*size), tape.ints(*g.axes))
    return x, size, [*g.before, *(max(a, 0) for a in g.after)]


def depthwise_weight(tape: Tape, g: Geometry, x: str, dy: str) -> str:
    """Each sample's channel is a group of one convolution of x with dy; the result is summed over the samples.

    In this convolution stride and dilation exchange their roles.
    """
    x, size, pads = _used(tape, g, x)
    images = tape.reshape(x, 1, g.n * g.c, *size)
    kernels = tape.reshape(dy, g.n * g.c, 1, *g.out)
    each = tape.emit(
        "Conv", images, kernels, group=g.n * g.c, dilations=list(g.stride), strides=list(g.dilation), pads=pads
    )
    return total(tape, tape.reshape(each, g.n, g.c, 1, *g.kernel), [0])


def _plain_weight(tape: Tape, g: Geometry, x: str, dy: str) -> str:
    """With samples and channels swapped: x^T [C, N, H, W] convolved with dy^T [O, N, P, Q] is w^T [C, O, kh, kw].

    With groups, the images are [C/g, g N, H, W] and the convolution has as many groups.
    """
    x, size, pads = _used(tape, g, x)
    swapped = [1, 0, *g.axes]
    if g.group == 1:
        images = tape.emit("Transpose", x, perm=swapped)
    else:
        within = g.c // g.group
        apart = tape.reshape(x, g.n, g.group, within, *size)
        turned = tape.emit("Transpose", apart, perm=[2, 1, 0, *(axis + 1 for axis in g.axes)])
        images = tape.reshape(turned, within, g.group * g.n, *size)
    kernels = tape.emit("Transpose", dy, perm=swapped)
    each = tape.emit(
        "Conv", images, kernels, group=g.group, dilations=list(g.stride), strides=list(g.dilation), pads=pads
    )
    return tape.emit("Transpose", each, perm=swapped)


def input_gradient(tape: Tape, g: Geometry, w: str, dy: str) -> str:
    """The gradient of the big image [N, C, *size]."""
    if g.pointwise:
        return tape.emit("Conv", dy, tape.emit("Transpose", w, perm=[1, 0, *g.axes]))
    before = [d * (k - 1) - b for d, k, b in zip(g.dilation, g.kernel, g.before, strict=True)]
    after = [h - p * s + b for h, p, s, b in zip(g.size, g.out, g.stride, g.before, strict=True)]
    if g.depthwise and min(before) >= 0 and min(after) >= 0:
        count = len(g.axes)
        back = [tape.ints(*[value] * count) for value in (-1, FAR, -1)]
        flipped = tape.emit("Slice", w, back[0], back[1], tape.ints(*g.axes), back[2])
        spread = _zeros_between(tape, g, dy)
        return tape.emit("Conv", spread, flipped, group=g.group, dilations=list(g.dilation), pads=[*before, *after])
    return scattered(tape, g, w, dy)


def _zeros_between(tape: Tape, g: Geometry, dy: str) -> str:
    """The gradient dy with stride - 1 zeros after each value: [N, O, P s, Q s].

    Nearest-neighbour Resize and a mask: both run at memory speed, where Pad copies value by value (8 times slower).
    """
    if set(g.stride) == {1}:
        return dy
    scales = tape.constant(np.asarray([1, 1, *g.stride], np.float32))
    mask = np.zeros((1, 1, *(p * s for p, s in zip(g.out, g.stride, strict=True))), np.float32)
    mask[(slice(None), slice(None), *(slice(None, None, s) for s in g.stride))] = 1
    repeated = tape.emit(
        "Resize", dy, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    return tape.emit("Mul", repeated, tape.constant(mask))


def scattered(tape: Tape, g: Geometry, w: str, dy: str) -> str:
    """ConvTranspose is the gradient by definition; its end pads follow from the size of x."""
    return tape.emit(
        "ConvTranspose",
        dy,
        w,
        group=g.group,
        strides=list(g.stride),
        dilations=list(g.dilation),
        pads=[*g.before, *(max(a, 0) for a in g.after)],
        output_padding=[max(-a, 0) for a in g.after],
    )


RULES: dict[str, Rule] = {"Conv": conv, "ConvTranspose": conv_transpose}
