"""Gradient rules of operators that combine neighbours without weights: pooling and resizing.

Average pooling and resizing are linear and work along each axis for itself: a matrix an axis, whose transpose is the
gradient. Maximum pooling looks up which cell of each window won.
"""

from __future__ import annotations

import numpy as np

from agent.engine.gradients_conv import Geometry, geometry_of, pads_of, scattered
from agent.engine.gradients_tape import PAST_FREEZING, Rule, Tape, along_axis, constant_input
from agent.engine.ir import Array, Attribute, Node, model_proto
from agent.errors import ModelError

Tensor = tuple[type[np.generic], tuple[int | str, ...]]
RESIZE_OPSET = 19  # knows every older attribute with its meaning
NEVER = -3e38  # added to what lies outside the image, so that it wins no window
MAX_MATRIX_ELEMENTS = 1 << 20  # of one axis of a resize: 1024 to 1024 cells


def _average_pool(tape: Tape, node: Node, dy: str) -> None:
    """Each cell of a window gets dy divided by the cells that count: all, or those inside the image."""
    if node.attrs.get("ceil_mode", 0) and node.attrs.get("count_include_pad", 0):
        raise ModelError(  # onnxruntime 1.19 and later ones divide by different counts
            "AveragePool with ceil_mode and count_include_pad has no gradient rule",
            where=node.name,
            fix="Export it with one of the two",
        )
    x, y = tape.shapes[node.inputs[0]], tape.shapes[node.outputs[0]]
    kernel, spatial = node.ints("kernel_shape", ()), len(x) - 2
    pads = pads_of(node, x[2:], y[2:], kernel)
    strides, dilations = node.ints("strides", [1] * spatial), node.ints("dilations", [1] * spatial)
    shape = y
    for i in range(spatial):
        begin, end = pads[i], pads[i + spatial]
        cells = strides[i] * np.arange(y[2 + i])[:, None] + dilations[i] * np.arange(kernel[i]) - begin
        real = (cells >= 0) & (cells < x[2 + i])
        counted = (cells < x[2 + i] + end) if node.attrs.get("count_include_pad", 0) else real
        matrix = np.zeros((y[2 + i], x[2 + i]), np.float32)
        rows = np.broadcast_to(np.arange(y[2 + i])[:, None], cells.shape)
        matrix[rows[real], cells[real]] = 1
        dy, shape = along_axis(tape, dy, shape, 2 + i, (matrix / counted.sum(axis=1, keepdims=True)).T)
    tape.add(node.inputs[0], dy)


def _max_pool(tape: Tape, node: Node, dy: str) -> None:
    """The cell that won a window gets its dy; of equal cells the first wins, in row-major order.

    A grouped Conv with one-hot kernels lays out each window's K cells as channels, ArgMax finds the winner, and the
    ConvTranspose with the same kernels puts dy back in place.
    """
    x, y = tape.shapes[node.inputs[0]], tape.shapes[node.outputs[0]]
    kernel = node.ints("kernel_shape", ())
    if len(node.outputs) > 1 and node.outputs[1]:
        raise ModelError("MaxPool whose indices are read has no gradient rule", where=node.name, fix=PAST_FREEZING)
    n, c, cells, places = x[0], x[1], int(np.prod(kernel)), int(np.prod(y[2:]))
    pads = pads_of(node, x[2:], y[2:], kernel)
    attrs: dict[str, Attribute] = {**node.attrs, "pads": pads, "group": c}
    g = geometry_of(attrs, x, (c * cells, 1, *kernel), (n, c * cells, *y[2:]))
    taps = tape.constant(np.tile(np.eye(cells, dtype=np.float32), (c, 1)).reshape(c * cells, 1, *kernel))
    after = [max(cells_after, 0) for cells_after in g.after]
    each = tape.emit(
        "Conv",
        node.inputs[0],
        taps,
        group=c,
        strides=list(g.stride),
        dilations=list(g.dilation),
        pads=[*g.before, *after],
    )
    windows = tape.reshape(each, n, c, cells, places)
    outside = tape.constant(_outside(g).reshape(1, 1, cells, places))
    winner = tape.emit("ArgMax", tape.emit("Add", windows, outside), axis=2, keepdims=1)
    order = tape.constant(np.arange(cells, dtype=np.int64).reshape(1, 1, cells, 1))
    won = tape.emit("Cast", tape.emit("Equal", winner, order), to=1)
    placed = tape.emit("Mul", won, tape.reshape(dy, n, c, 1, places))
    tape.add(node.inputs[0], scattered(tape, g, taps, tape.reshape(placed, n, c * cells, *y[2:])))


def _outside(g: Geometry) -> Array:
    """Penalties [kh, kw, P, Q]: 0 where a window's cell lies in the image, else so low that it wins no window."""
    inside = np.ones((1,) * 2 * len(g.size), bool)
    sizes = zip(g.size, g.out, g.kernel, g.stride, g.dilation, g.before, strict=True)
    for i, (h, p, k, s, d, b) in enumerate(sizes):
        cells = d * np.arange(k)[:, None] + s * np.arange(p) - b
        shape = [1] * inside.ndim
        shape[i], shape[i + len(g.size)] = k, p
        inside = inside & ((cells >= 0) & (cells < h)).reshape(shape)
    return np.where(inside, 0, NEVER).astype(np.float32)


def _resize(tape: Tape, node: Node, dy: str) -> None:
    """Each axis's interpolation matrix, transposed; the matrix is what the reference implementation makes of ones."""
    x, y = tape.shapes[node.inputs[0]], tape.shapes[node.outputs[0]]
    policy = node.attrs.get("keep_aspect_ratio_policy", "stretch")
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize" or policy != "stretch":
        raise ModelError("Resize that crops or keeps an aspect has no gradient rule", where=node.name)
    scales, sizes = constant_input(tape, node, 2, "scales"), constant_input(tape, node, 3, "sizes")
    axes = [axis % len(x) for axis in node.ints("axes", range(len(x)))]
    shape = y
    for position, axis in enumerate(axes):
        if x[axis] == y[axis] and (scales is None or not scales.size or float(scales.reshape(-1)[position]) == 1):
            continue
        if x[axis] * y[axis] > MAX_MATRIX_ELEMENTS:
            raise ModelError(f"Resize from {x[axis]} to {y[axis]} cells is too large", where=node.name)
        by = None if sizes is not None or scales is None else float(scales.reshape(-1)[position])
        dy, shape = along_axis(tape, dy, shape, axis, _interpolation(node, x[axis], y[axis], by))
    tape.add(node.inputs[0], dy)


def _interpolation(node: Node, size: int, out: int, scale: float | None) -> Array:
    """Matrix [size, out] whose row i is the resized unit vector i."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - slow to import, seldom needed

    attrs = {key: value for key, value in node.attrs.items() if key not in ("axes", "keep_aspect_ratio_policy")}
    inputs = ("x", "", "", "sizes") if scale is None else ("x", "", "scales")
    given: Array = np.asarray([size, out], np.int64) if scale is None else np.asarray([1, scale], np.float32)
    one = Node("Resize", inputs, ("y",), attrs)
    ends: tuple[dict[str, Tensor], dict[str, Tensor]] = (
        {"x": (np.float32, (size, size))},
        {"y": (np.float32, (size, out))},
    )
    model = model_proto([one], {inputs[-1]: given}, *ends, opset=RESIZE_OPSET)
    try:
        return np.asarray(ReferenceEvaluator(model).run(None, {"x": np.eye(size, dtype=np.float32)})[0])  # type: ignore[index]
    except Exception as error:  # the reference raises whatever NumPy does
        raise ModelError("Resize cannot be computed", where=node.name) from error


RULES: dict[str, Rule] = {"AveragePool": _average_pool, "MaxPool": _max_pool, "Resize": _resize}
