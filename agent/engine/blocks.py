"""The operators that `layout` makes: how each is written in ONNX, and its gradient.

Notation: x [C, N, H, W], w [O, C, 1, 1] or [C, 1, kh, kw], y [O, N, P, Q], L = N H W positions; dz is the gradient
before the clip that follows a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agent.engine import gradients_conv
from agent.engine.gradients_tape import Product, Tape, inside
from agent.engine.ir import Attribute, Node
from agent.engine.layout import DEPTHWISE, POINTWISE, POOL, SWAP, TO_CHANNELS, TO_SAMPLES
from agent.engine.native import DOMAIN, LARGEST_KERNEL, LARGEST_STRIDE


class Blocks:
    """Writes the operators of one graph on a tape.

    Args:
        tape: forward nodes go there in order, later the backward ones.
        nodes: all nodes of the graph: who reads a tensor decides what may be fused.
        output: tensor that is read from outside.
        native: use the kernel library's operators; else standard ones alone.
    """

    def __init__(self, tape: Tape, nodes: Sequence[Node], output: str, *, native: bool) -> None:
        self._tape = tape
        self._makers = {name: node for node in nodes for name in node.outputs}
        readers: dict[str, int] = {output: 1}
        for node in nodes:
            for name in node.inputs:
                readers[name] = readers.get(name, 0) + 1
        self._readers = readers
        self._native = native
        self._sums: dict[str, str] = {}
        """Tensors whose gradient is masked already, with its sum over all but the channel axis."""

    def write(self, node: Node) -> None:
        """The forward pass of one operator."""
        if node.op in (TO_CHANNELS, TO_SAMPLES):
            self._append("Transpose", node.inputs, node.outputs, perm=list(SWAP))
        elif node.op == POOL:
            self._append("GlobalAveragePool", node.inputs, node.outputs)
        elif node.op == POINTWISE:
            self._pointwise(node)
        elif self._fits(node):
            self._tape.nodes.append(
                Node(DEPTHWISE, self._with_bias(node), node.outputs, self._window(node), node.name, DOMAIN)
            )
        else:
            self._depthwise(node)

    def differentiate(self, tape: Tape, node: Node, dy: str) -> None:
        """The backward pass of one operator, given the gradient of its output; a `Rule`."""
        if node.op in (TO_CHANNELS, TO_SAMPLES):
            if tape.learns(node, 0):
                tape.add(node.inputs[0], tape.emit("Transpose", dy, perm=list(SWAP)))
        elif node.op == POOL:
            self._pool_gradient(node, dy)
        elif node.op == POINTWISE:
            self._pointwise_gradient(node, dy)
        elif self._fits(node):
            self._depthwise_gradient(node, dy)
        else:
            self._depthwise_gradient_by_convolution(node, dy)

    # --- pointwise ---------------------------------------------------------------------------------------------------

    def _pointwise(self, node: Node) -> None:
        """One Conv over [1, C, N H, W]: the runtime's matrix product with bias and clip in it."""
        c, n, h, w = self._tape.shapes[node.inputs[0]]
        flat = self._tape.reshape(node.inputs[0], 1, c, n * h, w)
        made = self._tape.emit("Conv", flat, *[name for name in node.inputs[1:] if name])
        self._reshape_to(node, self._clipped(node, made))

    def _pointwise_gradient(self, node: Node, dy: str) -> None:
        """The products dw = dz x^T [O, C] and dx = w^T dz [C, L], and db, the row sums of dz."""
        tape = self._tape
        x, w = node.inputs[:2]
        c, n, h, width = tape.shapes[x]
        o, positions = tape.shapes[w][0], n * h * width
        dz, sums = self._before_clip(node, dy)
        flat = tape.reshape(dz, o, positions)
        if tape.learns(node, 2):
            tape.add_weight(node.inputs[2], sums or tape.emit("ReduceSum", flat, tape.ints(1), keepdims=0))
        if tape.learns(node, 1):
            seen = tape.reshape(x, c, positions)
            tape.add_weight(w, Product(flat, seen, False, o, c, tape.shapes[w], transpose_b=True))
        if tape.learns(node, 0):
            tape.add(x, tape.reshape(tape.emit("Gemm", tape.reshape(w, o, c), flat, transA=1), c, n, h, width))

    # --- depthwise ---------------------------------------------------------------------------------------------------

    def _depthwise_gradient(self, node: Node, dy: str) -> None:
        tape, (x, w) = self._tape, node.inputs[:2]
        attrs = self._window(node)
        clip = self._clip_of(x)
        if clip is not None:
            attrs |= {"x_low": clip[0], "x_high": clip[1]}
        attrs["input_gradient"] = int(tape.learns(node, 0))
        made = tuple(f"grad.{len(tape.nodes)}.{DEPTHWISE}.{part}" for part in ("dx", "dw", "db", "sums"))
        inputs = (x, w, node.outputs[0], dy)
        tape.nodes.append(Node(f"{DEPTHWISE}Grad", inputs, made, attrs, f"{node.name}.gradient", DOMAIN))
        if tape.learns(node, 1):
            tape.add_weight(w, made[1])
        if tape.learns(node, 2):
            tape.add_weight(node.inputs[2], made[2])
        if tape.learns(node, 0):
            tape.add(x, made[0])
            if clip is not None:
                self._sums[x] = made[3]

    def _clip_of(self, x: str) -> tuple[float, float] | None:
        """The clip that made x, when its gradient comes from one reader only and can be masked there."""
        maker = self._makers.get(x)
        if maker is None or maker.op not in (POINTWISE, DEPTHWISE) or self._readers.get(x) != 1:
            return None
        bounds = _bounds(maker)
        return None if all(map(math.isinf, bounds)) else bounds

    def _fits(self, node: Node) -> bool:
        """Whether the library takes this convolution."""
        kernel, stride = self._tape.shapes[node.inputs[1]][2:], node.ints("strides", (1, 1))[0]
        return self._native and max(kernel) <= LARGEST_KERNEL and stride <= LARGEST_STRIDE

    def _window(self, node: Node) -> dict[str, Attribute]:
        pads, kernel = node.ints("pads", (0, 0, 0, 0)), self._tape.shapes[node.inputs[1]][2:]
        sizes = self._sizes(node.inputs[0], node.outputs[0], _bounds(node))
        return sizes | {
            "kernel_height": kernel[0], "kernel_width": kernel[1], "stride": node.ints("strides", (1, 1))[0],
            "pad_top": pads[0], "pad_left": pads[1],
        }  # fmt: skip

    def _sizes(self, x: str, y: str, bounds: tuple[float, float]) -> dict[str, Attribute]:
        """Attributes that all operators of the library have: sizes of two tensors and the clip between them."""
        c, n, height, width = self._tape.shapes[x]
        p, q = self._tape.shapes[y][2:]
        return {
            "channels": c, "samples": n, "height": height, "width": width, "out_height": p, "out_width": q,
            "kernel_height": 1, "kernel_width": 1, "stride": 1, "pad_top": 0, "pad_left": 0,
            "low": bounds[0], "high": bounds[1], "x_low": -math.inf, "x_high": math.inf, "input_gradient": 0,
        }  # fmt: skip

    def _with_bias(self, node: Node) -> tuple[str, ...]:
        given = tuple(name for name in node.inputs if name)
        if len(given) > 2:  # noqa: PLR2004 - x, w, b
            return given
        return (*given, self._tape.constant(np.zeros(self._tape.shapes[given[1]][0], np.float32)))

    def _depthwise(self, node: Node) -> None:
        """Without the library: a grouped Conv over [1, C N, H, W] with each kernel repeated for all samples."""
        c, n, h, w = self._tape.shapes[node.inputs[0]]
        flat = self._tape.reshape(node.inputs[0], 1, c * n, h, w)
        kernels = [self._repeated(name, n) for name in node.inputs[1:] if name]
        made = self._tape.emit("Conv", flat, *kernels, domain="", **self._spread_attrs(node, c * n))
        self._reshape_to(node, self._clipped(node, made))

    def _depthwise_gradient_by_convolution(self, node: Node, dy: str) -> None:
        """The gradients of the repeated kernels, summed over the samples."""
        tape, (x, w) = self._tape, node.inputs[:2]
        c, n, h, width = tape.shapes[x]
        _, _, p, q = tape.shapes[node.outputs[0]]
        kernel = tape.shapes[w][2:]
        dz, _ = self._before_clip(node, dy)
        flat, gradient = tape.reshape(x, 1, c * n, h, width), tape.reshape(dz, 1, c * n, p, q)
        attrs = self._spread_attrs(node, c * n)
        geometry = gradients_conv.geometry_of(attrs, (1, c * n, h, width), (c * n, 1, *kernel), (1, c * n, p, q))
        if tape.learns(node, 2):
            tape.add_weight(node.inputs[2], tape.emit("ReduceSum", dz, tape.ints(1, 2, 3), keepdims=0))
        if tape.learns(node, 1):
            each = gradients_conv.depthwise_weight(tape, geometry, flat, gradient)
            total = tape.emit("ReduceSum", tape.reshape(each, c, n, *kernel), tape.ints(1), keepdims=0)
            tape.add_weight(w, tape.reshape(total, c, 1, *kernel))
        if tape.learns(node, 0):
            made = gradients_conv.input_gradient(tape, geometry, self._repeated(w, n), gradient)
            tape.add(x, tape.reshape(made, c, n, h, width))

    def _spread_attrs(self, node: Node, groups: int) -> dict[str, Attribute]:
        return {
            "group": groups,
            "strides": list(node.ints("strides", (1, 1))),
            "pads": list(node.ints("pads", (0, 0, 0, 0))),
        }

    def _repeated(self, name: str, samples: int) -> str:
        """A kernel [C, 1, kh, kw] or bias [C], each channel `samples` times, behind one another."""
        c, *rest = self._tape.shapes[name]
        shape = rest or [1]
        wide = self._tape.emit("Expand", self._tape.reshape(name, c, 1, *shape), self._tape.ints(c, samples, *shape))
        return self._tape.reshape(wide, c * samples, *rest)

    def _pool_gradient(self, node: Node, dy: str) -> None:
        """Each position gets dy / (H W); where a clip comes before, its gradient spreads the value itself."""
        tape, x = self._tape, node.inputs[0]
        if not tape.learns(node, 0):
            return
        shape = tape.shapes[x]
        share = tape.emit("Mul", dy, tape.scalar(1.0 / math.prod(shape[2:])))
        if self._native and self._clip_of(x) is not None:
            tape.shapes[share] = (*shape[:2], 1, 1)
            tape.add(x, share)
        else:
            tape.add(x, tape.emit("Expand", share, tape.ints(*shape)))

    # --- all --------------------------------------------------------------------------------------------------------

    def _before_clip(self, node: Node, dy: str) -> tuple[str, str | None]:
        """The gradient dz, and its sums over positions where another kernel made them already."""
        y = node.outputs[0]
        if y in self._sums:
            return dy, self._sums[y]
        low, high = (None if math.isinf(bound) else bound for bound in _bounds(node))
        if low is None and high is None:
            return dy, None
        if self._native:
            made = tuple(f"grad.{len(self._tape.nodes)}.ClipGrad.{part}" for part in ("dz", "sums"))
            attrs = self._sizes(y, dy if dy in self._tape.shapes else y, _bounds(node))
            self._tape.nodes.append(Node("ClipGrad", (y, dy), made, attrs, f"{node.name}.clip_gradient", DOMAIN))
            return made[0], made[1]
        return self._tape.emit("Mul", dy, inside(self._tape, y, low, high)), None

    def _clipped(self, node: Node, made: str) -> str:
        low, high = _bounds(node)
        if math.isinf(low) and math.isinf(high):
            return made
        if low == 0 and math.isinf(high):
            return self._tape.emit("Relu", made)
        bounds = ["" if math.isinf(bound) else self._tape.scalar(bound) for bound in (low, high)]
        return self._tape.emit("Clip", made, *bounds)

    def _reshape_to(self, node: Node, made: str) -> None:
        shape = self._tape.ints(*self._tape.shapes[node.outputs[0]])
        self._append("Reshape", (made, shape), node.outputs)

    def _append(self, op: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **attrs: list[int]) -> None:
        self._tape.nodes.append(Node(op, inputs, outputs, attrs, f"{outputs[0]}.{op}"))


def _bounds(node: Node) -> tuple[float, float]:
    return node.number("low", -math.inf), node.number("high", math.inf)


def output_shapes(node: Node) -> tuple[tuple[int, ...], ...]:
    """Shapes of what an operator of the library makes; see native/ops.c."""
    size = {key: int(node.number(key, 0)) for key in _SIZES}
    x = (size["channels"], size["samples"], size["height"], size["width"])
    y = (*x[:2], size["out_height"], size["out_width"])
    if node.op == DEPTHWISE:
        return (y,)
    if node.op == "ClipGrad":
        return x, x[:1]
    dx, sums = (x, x[:1]) if size["input_gradient"] else ((0, 0, 0, 0), (0,))
    return dx, (x[0], 1, size["kernel_height"], size["kernel_width"]), x[:1], sums


_SIZES = (
    "channels", "samples", "height", "width", "out_height", "out_width", "kernel_height", "kernel_width",
    "input_gradient",
)  # fmt: skip
