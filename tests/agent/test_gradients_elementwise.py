"""Arithmetic, activations and matrix products against central differences, in the opsets that have the operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agent.engine.ir import Node
from agent.errors import ModelError
from tests.simulators.gradient_check import Check, check

OPSETS = (13, 17, 21)
RNG = np.random.default_rng(11)


def draw(*shape: int) -> np.ndarray:
    """Normal values that keep away from 0, 0.5, 1 and 3, where some functions have kinks."""
    values = RNG.standard_normal(shape) * 1.5
    for kink in (0.0, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0):
        values = np.where(np.abs(values - kink) < 0.01, values + 0.03, values)
    return values.astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.3, 3, shape).astype(np.float32)


def scalar(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)


def one(
    op: str, *values: np.ndarray, learning: tuple[int, ...] = (0,), opset: int = 17, attrs: dict[str, Any] | None = None
) -> Check:
    names = ("x", "b", "c", "d")[: len(values)]
    node = Node(op, names, ("y",), attrs or {}, op.lower())
    return Check((node,), dict(zip(names, values, strict=True)), tuple(names[i] for i in learning), opset=opset)


BINARY = {
    "same shape": ((3, 4), (3, 4)),
    "scalar": ((3, 4), ()),
    "row": ((3, 2, 4), (4,)),
    "channels": ((3, 2, 4, 5), (2, 1, 1)),
    "both": ((3, 1, 4), (1, 2, 4)),
    "left is narrower": ((4,), (3, 4)),
}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("shapes", BINARY.values(), ids=BINARY)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum"])
def test_two_operands(op: str, shapes: tuple[tuple[int, ...], ...], opset: int) -> None:
    check(one(op, draw(*shapes[0]), positive(*shapes[1]), learning=(0, 1), opset=opset))


@pytest.mark.parametrize("op", ["Add", "Mul", "Sub"])
def test_a_tensor_used_twice_collects_both_gradients(op: str) -> None:
    square = Node("Mul", ("x", "x"), ("s",), {}, "square")
    check(Check((square, Node(op, ("s", "x"), ("y",), {}, "both")), {"x": draw(3, 4)}))


UNARY: dict[str, tuple[str, dict[str, Any], int]] = {
    "Neg": ("Neg", {}, 13),
    "Abs": ("Abs", {}, 13),
    "Exp": ("Exp", {}, 13),
    "Erf": ("Erf", {}, 13),
    "Relu": ("Relu", {}, 13),
    "LeakyRelu": ("LeakyRelu", {}, 13),
    "LeakyRelu 0.3": ("LeakyRelu", {"alpha": 0.3}, 13),
    "Sigmoid": ("Sigmoid", {}, 13),
    "Tanh": ("Tanh", {}, 13),
    "Elu": ("Elu", {}, 13),
    "Elu 0.7": ("Elu", {"alpha": 0.7}, 13),
    "Softplus": ("Softplus", {}, 13),
    "HardSigmoid": ("HardSigmoid", {}, 13),
    "HardSigmoid of PyTorch": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, 13),
    "HardSwish": ("HardSwish", {}, 14),
    "Gelu": ("Gelu", {}, 20),
    "Gelu by tanh": ("Gelu", {"approximate": "tanh"}, 20),
    "Clip without bounds": ("Clip", {}, 13),
    "Identity": ("Identity", {}, 13),
}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_value(name: str, opset: int) -> None:
    op, attrs, since = UNARY[name]
    if opset < since:
        pytest.skip(f"{op} exists since opset {since}")
    check(one(op, draw(4, 3, 5) * 2, opset=opset, attrs=attrs))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("op", ["Sqrt", "Log", "Reciprocal"])
def test_functions_of_positive_values(op: str, opset: int) -> None:
    check(one(op, positive(3, 4), opset=opset))


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -1.0, 1.0, 0.0])
def test_powers(exponent: float) -> None:
    check(one("Pow", positive(3, 4), scalar(exponent)))


def test_power_of_several_exponents_broadcast() -> None:
    check(one("Pow", positive(3, 1), np.asarray([2, 3, 0.5], np.float32)))


def test_a_negative_base_may_be_squared() -> None:
    check(one("Pow", draw(3, 4), scalar(2)))
    check(one("Pow", draw(3, 4), scalar(3)))


def test_a_learning_exponent_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Pow with an exponent that is not constant.*\(pow\)"):
        check(one("Pow", positive(3, 4), scalar(2), learning=(0, 1)))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("bounds", [(0.0, 6.0), (-0.4, 0.7), (None, 0.7), (-0.4, None), (0.0, None)])
def test_clip(bounds: tuple[float | None, float | None], opset: int) -> None:
    names = tuple("" if bound is None else name for name, bound in zip(("low", "high"), bounds, strict=True))
    values = {name: scalar(bound) for name, bound in zip(names, bounds, strict=True) if bound is not None}
    node = Node("Clip", ("x", *names), ("y",), {}, "clip")
    check(Check((node,), {"x": draw(4, 5), **values}, opset=opset))


def test_a_computed_bound_of_clip_is_refused() -> None:
    nodes = (Node("Neg", ("low",), ("m",)), Node("Clip", ("x", "m"), ("y",), {}, "clip"))
    with pytest.raises(ModelError, match="Clip with a bound that is not constant"):
        check(Check(nodes, {"x": draw(4, 5), "low": scalar(1)}))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("slope", [(3, 1, 1), (1,), (3, 4, 5)])
def test_prelu_and_its_slope(slope: tuple[int, ...], opset: int) -> None:
    check(one("PRelu", draw(2, 3, 4, 5), draw(*slope), learning=(0, 1), opset=opset))
    check(one("PRelu", draw(2, 3, 4, 5), draw(*slope), opset=opset))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("axis", [None, -1, 1, 0])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax(op: str, axis: int | None, opset: int) -> None:
    check(one(op, draw(3, 4, 5), opset=opset, attrs={} if axis is None else {"axis": axis}))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("condition", [(3, 4), (4,), (3, 1)])
def test_where(condition: tuple[int, ...], opset: int) -> None:
    chosen = RNG.random(condition) > 0.5
    node = Node("Where", ("m", "x", "b"), ("y",), {}, "where")
    check(Check((node,), {"m": chosen, "x": draw(3, 4), "b": draw(1, 4)}, ("x", "b"), opset=opset))


def test_where_of_a_computed_condition() -> None:
    nodes = (Node("Greater", ("x", "zero"), ("m",)), Node("Where", ("m", "x", "zero"), ("y",)))
    check(Check(nodes, {"x": draw(3, 4), "zero": scalar(0)}))


def test_gelu_as_exporters_write_it() -> None:
    nodes = (
        Node("Div", ("x", "root"), ("s",)),
        Node("Erf", ("s",), ("e",)),
        Node("Add", ("e", "one"), ("p",)),
        Node("Mul", ("x", "p"), ("t",)),
        Node("Mul", ("t", "half"), ("y",)),
    )
    check(Check(nodes, {"x": draw(3, 4), "root": scalar(2**0.5), "one": scalar(1), "half": scalar(0.5)}))


# --- matrix products --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("transpose_a", [0, 1])
@pytest.mark.parametrize("transpose_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0)])
def test_gemm(transpose_a: int, transpose_b: int, alpha: float, beta: float, opset: int) -> None:
    a, b = draw(3, 4), draw(4, 5)
    attrs = {"transA": transpose_a, "transB": transpose_b, "alpha": alpha, "beta": beta}
    for bias in ((5,), (3, 1), (1, 5), ()):
        values = (a.T.copy() if transpose_a else a, b.T.copy() if transpose_b else b, draw(*bias))
        check(one("Gemm", *values, learning=(0, 1, 2), attrs=attrs, opset=opset))


def test_gemm_without_bias() -> None:
    check(one("Gemm", draw(3, 4), draw(4, 5), learning=(0, 1)))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((2, 2, 3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((1, 3, 4), (2, 4, 5)),
    ],
)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], opset: int) -> None:
    check(one("MatMul", draw(*a), draw(*b), learning=(0, 1), opset=opset))


def test_a_matmul_of_computed_matrices() -> None:
    nodes = (Node("Neg", ("w",), ("v",)), Node("MatMul", ("x", "v"), ("m",)), Node("Gemm", ("m", "v"), ("y",)))
    check(Check(nodes, {"x": draw(3, 4), "w": draw(4, 4)}, ("x", "w")))


def test_one_weight_of_two_nodes_collects_both_gradients() -> None:
    nodes = (Node("MatMul", ("x", "w"), ("m",)), Node("Gemm", ("m", "w"), ("y",), {"transB": 1}))
    check(Check(nodes, {"x": draw(3, 4), "w": draw(4, 4)}, ("w",)))


@pytest.mark.parametrize(("a", "b"), [((4,), (4, 5)), ((3, 4), (4,))])
def test_a_product_with_a_vector_is_refused(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"MatMul with a vector has no gradient rule \(matmul\)"):
        check(one("MatMul", draw(*a), draw(*b), learning=(0, 1)))
