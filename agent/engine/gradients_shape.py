"""Gradient rules of operators that move values and compute none: reshaping, cutting, joining, indexing."""

from __future__ import annotations

import numpy as np

from agent.engine.gradients_elementwise import give
from agent.engine.gradients_tape import PAST_FREEZING, Rule, Tape, along_axis, constant_input
from agent.engine.ir import Array, Node
from agent.errors import ModelError

FLOAT = 1  # TensorProto.FLOAT
FLOATS = (1, 10, 11, 16)  # float32, float16, double, bfloat16
MAX_TABLE_ELEMENTS = 1 << 24  # one-hot rows of an embedding's gradient: 64 MB
TABLE_RANK = 2


def _reshaped(tape: Tape, node: Node, dy: str) -> None:
    """The gradient in the input's shape."""
    if tape.learns(node, 0):
        tape.add(node.inputs[0], tape.reshape(dy, *tape.shapes[node.inputs[0]]))


def _identity(tape: Tape, node: Node, dy: str) -> None:
    """The gradient itself."""
    tape.add(node.inputs[0], dy)


def _dropout(tape: Tape, node: Node, dy: str) -> None:
    """Identity: fine-tuning runs the model as it was exported, for inference."""
    training = constant_input(tape, node, 2, "a training mode")
    if training is not None and bool(training):
        raise ModelError("Dropout in training mode is random", where=node.name, fix="Export the model for inference")
    tape.add(node.inputs[0], dy)


def _cast(tape: Tape, node: Node, dy: str) -> None:
    """To float32: the gradient itself. To integers or bool: none. Other floats are refused."""
    to = int(node.number("to", FLOAT))
    if to == FLOAT:
        tape.add(node.inputs[0], dy)
    elif to in FLOATS:
        raise ModelError("Cast to another float type has no gradient rule", where=node.name, fix="Export in float32")


def _transpose(tape: Tape, node: Node, dy: str) -> None:
    """The inverse permutation."""
    rank = len(tape.shapes[node.inputs[0]])
    perm = node.ints("perm", reversed(range(rank)))
    tape.add(node.inputs[0], tape.emit("Transpose", dy, perm=[int(axis) for axis in np.argsort(perm)]))


def _concat(tape: Tape, node: Node, dy: str) -> None:
    """Each input gets its own part of dy."""
    axis = int(node.number("axis", 0)) % len(tape.shapes[node.outputs[0]])
    start = 0
    for position, name in enumerate(node.inputs):
        end = start + tape.shapes[name][axis]
        if tape.learns(node, position):
            tape.add(name, tape.emit("Slice", dy, tape.ints(start), tape.ints(end), tape.ints(axis)))
        start = end


def _split(tape: Tape, node: Node, dy: str) -> None:
    """Join the outputs' gradients; an output that nothing reads counts as zero; `dy` is the first one's."""
    del dy
    axis = int(node.number("axis", 0)) % len(tape.shapes[node.inputs[0]])
    parts = [
        tape.gradient(name) or tape.constant(np.zeros(tape.shapes[name], np.float32)) for name in node.outputs if name
    ]
    tape.add(node.inputs[0], tape.emit("Concat", *parts, axis=axis))


def _padded(tape: Tape, dy: str, rank: int, axis: int, before: int, after: int) -> str:
    """The tensor with zeros before and after it along one axis; negative counts cut."""
    pads = np.zeros((2, rank), np.int64)
    pads[:, axis] = before, after
    return tape.emit("Pad", dy, tape.ints(*pads.reshape(-1).tolist())) if before or after else dy


def _slice(tape: Tape, node: Node, dy: str) -> None:
    """The inverse of each axis's cut, with zeros elsewhere: padding, or for other steps than 1 a selection matrix."""
    shape, x = tape.shapes[node.inputs[0]], node.inputs[0]
    given = [constant_input(tape, node, position, what) for position, what in ((1, "starts"), (2, "ends"))]
    starts, ends = ([] if value is None else value.reshape(-1).tolist() for value in given)
    axes, steps = constant_input(tape, node, 3, "axes"), constant_input(tape, node, 4, "steps")
    chosen = range(len(starts)) if axes is None else axes.reshape(-1).tolist()
    strides = [1] * len(starts) if steps is None else steps.reshape(-1).tolist()
    current = list(tape.shapes[node.outputs[0]])
    for start, end, axis, step in zip(starts, ends, (int(a) % len(shape) for a in chosen), strides, strict=True):
        taken = _taken(shape[axis], int(start), int(end), int(step))
        if step == 1:
            dy = _padded(tape, dy, len(shape), axis, taken.start, shape[axis] - taken.stop)
        else:
            dy, _ = along_axis(tape, dy, current, axis, _selection(np.asarray(taken), shape[axis]).T)
        current[axis] = shape[axis]
    tape.add(x, dy)


def _taken(size: int, start: int, end: int, step: int) -> range:
    """Indices that Slice takes of an axis: as in Python, where an end before the first means: down to it."""
    return range(size)[slice(start, None if step < 0 and end < -size else end, step)]


def _selection(indices: Array, size: int) -> Array:
    """Matrix [len(indices), size] whose row i picks value indices[i]."""
    rows: Array = np.zeros((indices.size, size), np.float32)
    rows[np.arange(indices.size), indices.reshape(-1)] = 1
    return rows


def _pad(tape: Tape, node: Node, dy: str) -> None:
    """Constant: the inner part of dy. Reflect, edge and wrap: each border value's gradient goes where it came from."""
    x, rank = node.inputs[0], len(tape.shapes[node.inputs[0]])
    pads, axes = constant_input(tape, node, 1, "pads"), constant_input(tape, node, 3, "axes")
    if pads is None or tape.learns(node, 2):
        raise ModelError("Pad with a learning value has no gradient rule", where=node.name, fix=PAST_FREEZING)
    mode = str(node.attrs.get("mode", "constant"))
    chosen = range(rank) if axes is None else [int(axis) % rank for axis in axes.reshape(-1).tolist()]
    befores, afters = pads.reshape(2, -1).tolist()
    current = list(tape.shapes[node.outputs[0]])
    for axis, before, after in zip(chosen, befores, afters, strict=True):
        size = tape.shapes[x][axis]
        if mode == "constant":
            dy = _padded(tape, dy, rank, axis, -before, -after)
        elif before or after:
            if min(before, after) < 0:
                raise ModelError(f"Pad that cuts in mode {mode} has no gradient rule", where=node.name)
            origin = np.pad(np.arange(size), (before, after), mode=mode)  # type: ignore[call-overload]
            dy, _ = along_axis(tape, dy, current, axis, _selection(origin, size).T)
        current[axis] = size
    tape.add(x, dy)


def _gather(tape: Tape, node: Node, dy: str) -> None:
    """Constant indices: the transposed selection along the axis. A table [V, E] that learns: see `_table`."""
    x, indices = node.inputs
    shape = tape.shapes[x]
    axis = int(node.number("axis", 0)) % len(shape)
    value = tape.constants.get(indices)
    if value is not None:
        order = np.asarray(value, np.int64).reshape(-1) % shape[axis]
        flat = (*shape[:axis], order.size, *shape[axis + 1 :])
        selected, _ = along_axis(tape, tape.reshape(dy, *flat), flat, axis, _selection(order, shape[axis]).T)
        tape.add(x, selected)
    elif tape.learns(node, 0):
        _table(tape, node, dy, axis)


def _table(tape: Tape, node: Node, dy: str, axis: int) -> None:
    """Row v of an embedding table gets the sum of dy over the places where index v stands: onehot^T dy.

    Written as a product because ScatterElements can add only from opset 16 on.
    """
    x, indices = node.inputs
    shape, count = tape.shapes[x], int(np.prod(tape.shapes[indices]))
    if axis or len(shape) != TABLE_RANK or count * shape[0] > MAX_TABLE_ELEMENTS:
        raise ModelError(
            f"Gather of computed indices from a tensor of shape {list(shape)} has no gradient rule",
            where=node.name,
            fix=PAST_FREEZING,
        )
    rows = tape.emit(
        "OneHot",
        tape.reshape(indices, count),
        tape.constant(np.asarray(shape[0], np.int64)),
        tape.constant(np.asarray([0, 1], np.float32)),
    )
    tape.add(x, tape.emit("Gemm", rows, tape.reshape(dy, count, shape[1]), transA=1))


def _expand(tape: Tape, node: Node, dy: str) -> None:
    """The sum over what was repeated."""
    give(tape, node, 0, dy)


RULES: dict[str, Rule] = {
    "Cast": _cast,
    "Concat": _concat,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _reshaped,
    "Gather": _gather,
    "Identity": _identity,
    "Pad": _pad,
    "Reshape": _reshaped,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshaped,
    "Transpose": _transpose,
    "Unsqueeze": _reshaped,
}
