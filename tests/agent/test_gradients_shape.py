"""Operators that move values, and reductions, against central differences, in the opsets that have the operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.engine.ir import Node
from agent.errors import ModelError
from tests.simulators.gradient_check import Check, check, gradients

OPSETS = (13, 17, 21)
AXES_ARE_INPUTS = 18
RNG = np.random.default_rng(12)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def moves(op: str, shape: tuple[int, ...], *inputs: np.ndarray | None, opset: int = 17, **attrs: Any) -> Check:
    names = [f"i{index}" if value is not None else "" for index, value in enumerate(inputs)]
    values = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    node = Node(op, ("x", *names), ("y",), attrs, op.lower())
    return Check((node,), {"x": draw(*shape), **values}, opset=opset)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    ("op", "inputs", "attrs"),
    [
        ("Reshape", (ints(3, 8),), {}),
        ("Reshape", (ints(0, -1),), {}),
        ("Flatten", (), {"axis": 1}),
        ("Flatten", (), {"axis": 2}),
        ("Unsqueeze", (ints(1, -1),), {}),
        ("Transpose", (), {}),
        ("Transpose", (), {"perm": [1, 2, 0]}),
        ("Expand", (ints(2, 3, 2, 4),), {}),
        ("Expand", (ints(3, 1, 1),), {}),
        ("Dropout", (), {}),
        ("Cast", (), {"to": 1}),
    ],
)
def test_values_stay_and_places_change(op: str, inputs: tuple[Any, ...], attrs: dict[str, Any], opset: int) -> None:
    check(moves(op, (3, 2, 4), *inputs, opset=opset, **attrs))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("axes", [(ints(1, 3),), (ints(-3),), ()])
def test_squeeze(axes: tuple[np.ndarray, ...], opset: int) -> None:
    check(moves("Squeeze", (3, 1, 4, 1), *axes, opset=opset))


@pytest.mark.parametrize("opset", OPSETS)
def test_expand_of_ones(opset: int) -> None:
    check(moves("Expand", (3, 1, 4), ints(2, 3, 5, 4), opset=opset))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int, opset: int) -> None:
    shapes = [[3, 2, 4], [3, 2, 4], [3, 2, 4]]
    for size, shape in enumerate(shapes):
        shape[axis] = size + 1
    node = Node("Concat", ("x", "b", "c", "x"), ("y",), {"axis": axis}, "concat")
    values = {name: draw(*shape) for name, shape in zip("xbc", shapes, strict=True)}
    check(Check((node,), values, ("x", "c"), opset=opset))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("sizes", [None, (1, 2, 3)])
@pytest.mark.parametrize("read", [(0, 1, 2), (2,), (0, 1)])
def test_split(sizes: tuple[int, ...] | None, read: tuple[int, ...], opset: int) -> None:
    attrs: dict[str, Any] = {"axis": 1}
    if sizes is None and opset >= AXES_ARE_INPUTS:
        attrs["num_outputs"] = 3
    split = Node("Split", ("x",) if sizes is None else ("x", "sizes"), ("p0", "p1", "p2"), attrs, "split")
    nodes = [split, Node("Concat", tuple(f"p{i}" for i in read), ("y",), {"axis": 1}, "concat")]
    values = {"x": draw(3, 6, 2)} | ({} if sizes is None else {"sizes": ints(*sizes)})
    check(Check(nodes, values, opset=opset))


FAR = 2**31 - 1


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ((1,), (3,), None, None),
        ((0, 1), (2, 4), None, None),
        ((1,), (-1,), (2,), None),
        ((-3,), (FAR,), (-1,), None),
        ((0,), (FAR,), (2,), (2,)),
        ((1, 0), (FAR, 3), (2, 1), (3, 1)),
        ((-1,), (-FAR,), (2,), (-1,)),
        ((4,), (0,), (2,), (-2,)),
        ((-1, -1), (-FAR, -FAR), (1, 2), (-1, -2)),
        ((-100,), (100,), (1,), None),
    ],
)
def test_slice(starts: Any, ends: Any, axes: Any, steps: Any, opset: int) -> None:
    given = [None if value is None else ints(*value) for value in (starts, ends, axes, steps)]
    while given[-1] is None:
        given.pop()
    check(moves("Slice", (3, 4, 5), *given, opset=opset))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("pads", [(0, 0, 1, 0, 2, 3), (1, 0, 0, 0, 0, 0)])
def test_pad_with_a_constant(pads: tuple[int, ...], opset: int) -> None:
    check(moves("Pad", (3, 4, 5), ints(*pads), opset=opset))
    check(moves("Pad", (3, 4, 5), ints(*pads), np.asarray(0.7, np.float32), opset=opset))


def test_negative_pads_cut_and_their_gradient_is_zero_there() -> None:
    case = moves("Pad", (1, 4), ints(0, -1, 0, 1))
    found, _ = gradients(case, {"x": (1, 4), "y": (1, 4)}, np.zeros((1, 4), np.float32))
    np.testing.assert_allclose(found["x"][0], [0, *(case.values["x"][0, 1:] / 2)], rtol=1e-6)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("mode", ["reflect", "edge"])
@pytest.mark.parametrize("pads", [(0, 0, 1, 0, 2, 3), (0, 2, 0, 0, 0, 0)])
def test_pad_with_border_values(mode: str, pads: tuple[int, ...], opset: int) -> None:
    check(moves("Pad", (3, 4, 5), ints(*pads), opset=opset, mode=mode))


def test_pad_of_named_axes() -> None:
    check(moves("Pad", (3, 4, 5), ints(2, 1), None, ints(-1), opset=18))
    check(moves("Pad", (3, 4, 5), ints(2, 0, 1, 1), None, ints(1, 2), opset=21, mode="reflect"))
    check(moves("Pad", (3, 4, 5), ints(2, 9), None, ints(1), opset=21, mode="wrap"))


def test_pad_that_cuts_and_reflects_is_refused() -> None:
    with pytest.raises(ModelError, match="Pad that cuts in mode edge"):
        check(moves("Pad", (3, 4, 5), ints(0, 0, -1, 0, 0, 1), mode="edge"))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("indices", [np.asarray(1), ints(0, 2, 2), ints(-1), ints(1, 0, 2, 1).reshape(2, 2)])
def test_gather_of_constant_indices(indices: np.ndarray, axis: int, opset: int) -> None:
    check(moves("Gather", (3, 4, 5), indices, opset=opset, axis=axis))


@pytest.mark.parametrize("opset", OPSETS)
def test_an_embedding_table_learns(opset: int) -> None:
    nodes = (
        Node("Abs", ("x",), ("magnitude",)),
        Node("Cast", ("magnitude",), ("index",), {"to": 7}),
        Node("Gather", ("table", "index"), ("y",), {}, "gather"),
    )
    check(Check(nodes, {"x": draw(3, 4) * 2, "table": draw(9, 5)}, ("table",), opset=opset))


def test_a_table_that_is_no_matrix_is_refused() -> None:
    nodes = (Node("Cast", ("x",), ("index",), {"to": 7}), Node("Gather", ("t", "index"), ("y",), {"axis": 1}, "pick"))
    with pytest.raises(ModelError, match=r"Gather of computed indices .*\(pick\)"):
        check(Check(nodes, {"x": draw(2), "t": draw(3, 4)}, ("t",)))


@pytest.mark.parametrize(("to", "says"), [(11, "another float type"), (10, "another float type")])
def test_a_cast_to_other_floats_is_refused(to: int, says: str) -> None:
    nodes = (Node("Cast", ("x",), ("d",), {"to": to}, "cast"), Node("Cast", ("d",), ("y",), {"to": 1}))
    with pytest.raises(ModelError, match=says):
        check(Check(nodes, {"x": draw(2, 3)}))


@pytest.mark.parametrize("op", ["Floor", "Round", "Sign", "Ceil"])
def test_steps_have_no_gradient_and_stop_it(op: str) -> None:
    nodes = (Node(op, ("x",), ("s",), {}, "step"), Node("Add", ("s", "x"), ("y",)))
    check(Check(nodes, {"x": RNG.uniform(0.1, 0.4, (3, 4)).astype(np.float32)}))


def test_a_winner_s_index_has_no_gradient() -> None:
    nodes = (
        Node("ArgMax", ("x",), ("i",), {"axis": 1}),
        Node("Cast", ("i",), ("f",), {"to": 1}),
        Node("Mul", ("f", "x"), ("y",)),
    )
    check(Check(nodes, {"x": draw(3, 4)}))


def test_an_unknown_operator_is_refused_by_name_and_node() -> None:
    with pytest.raises(ModelError, match=r"operator Selu has no gradient rule \(odd\)\. Freeze past this node"):
        check(Check((Node("Selu", ("x",), ("y",), {}, "odd"),), {"x": draw(3, 4)}))


# --- reductions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [(1,), (-1, 0), (0, 1, 2), None])
@pytest.mark.parametrize(
    "op",
    ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL1", "ReduceL2"],
)
def test_reductions(op: str, axes: tuple[int, ...] | None, keep: int, opset: int) -> None:
    attrs: dict[str, Any] = {"keepdims": keep}
    values, inputs = {"x": draw(3, 4, 5), "one": ints(1, -1)}, ["x"]
    if axes is not None and (op == "ReduceSum" or opset >= AXES_ARE_INPUTS):
        values["axes"] = ints(*axes)
        inputs.append("axes")
    elif axes is not None:
        attrs["axes"] = list(axes)
    nodes = (Node(op, tuple(inputs), ("r",), attrs, "reduce"), Node("Reshape", ("r", "one"), ("y",)))
    check(Check(nodes, values, opset=opset))


def test_no_axes_may_mean_no_reduction() -> None:
    for op, opset in (("ReduceSum", 13), ("ReduceMean", 18), ("ReduceMax", 21)):
        check(moves(op, (3, 4), ints(), opset=opset, noop_with_empty_axes=1))


def test_equal_extremes_share_the_gradient() -> None:
    """Half of each: the value rises only when both do, so the differences here are one-sided on purpose."""
    x = np.asarray([[1, 3, 3, 0]], np.float32)
    case = Check((Node("ReduceMax", ("x",), ("y",), {"axes": [1], "keepdims": 0}),), {"x": x})
    found, _ = gradients(case, {"x": (1, 4), "y": (1,)}, np.asarray([0.5], np.float32))
    np.testing.assert_allclose(found["x"], [[0, 2.5, 2.5, 0]])


def test_a_norm_of_zeros_has_no_slope() -> None:
    case = Check((Node("ReduceL2", ("x",), ("y",), {"axes": [1], "keepdims": 0}),), {"x": np.zeros((2, 3), np.float32)})
    found, _ = gradients(case, {"x": (2, 3), "y": (2,)}, np.ones(2, np.float32))
    np.testing.assert_array_equal(found["x"], np.zeros((2, 3)))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools(op: str, shape: tuple[int, ...], opset: int) -> None:
    check(moves(op, shape, opset=opset))
