"""Convolutions, pools, resizing and normalizations against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent.engine.gradients import Tape, rule_for
from agent.engine.ir import Node
from agent.errors import ModelError
from tests.simulators.gradient_check import Check, check

OPSETS = (13, 17, 21)
RNG = np.random.default_rng(13)
steady = settings(derandomize=True, deadline=None, max_examples=40)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def apart(*shape: int) -> np.ndarray:
    """Values in random order, no two of them equal or close."""
    return (RNG.permutation(int(np.prod(shape))).reshape(shape) / 7 - 2).astype(np.float32)


def window(op: str, x: tuple[int, ...], w: tuple[int, ...], *, bias: int = 0, opset: int = 17, **attrs: Any) -> Check:
    values = {"x": draw(*x), "w": draw(*w)} | ({"b": draw(bias)} if bias else {})
    return Check((Node(op, tuple(values), ("y",), attrs, op.lower()),), values, tuple(values), opset=opset)


CONVS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1-D": ((2, 3, 9), (4, 3, 3), {}),
    "1-D pointwise": ((2, 3, 9), (4, 3, 1), {}),
    "1-D causal, dilated": ((2, 3, 9), (4, 3, 2), {"pads": [4, 0], "dilations": [4]}),
    "1-D depthwise, stride 2": ((2, 3, 9), (3, 1, 3), {"group": 3, "strides": [2], "pads": [1, 1]}),
    "1-D depthwise, dilated": ((2, 3, 9), (3, 1, 3), {"group": 3, "dilations": [2], "pads": [2, 2]}),
    "1-D grouped": ((2, 4, 9), (6, 2, 3), {"group": 2, "strides": [2]}),
    "1-D, stride 3, cells left over": ((2, 3, 10), (4, 3, 2), {"strides": [3]}),
    "2-D": ((2, 3, 5, 6), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "2-D dilated": ((2, 3, 7, 8), (4, 3, 3, 2), {"dilations": [2, 3], "pads": [2, 1, 0, 1]}),
    "2-D dilated and strided": ((2, 3, 9, 9), (4, 3, 3, 3), {"dilations": [2, 2], "strides": [2, 2]}),
    "2-D grouped": ((2, 4, 6, 6), (6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "2-D grouped, strided, dilated": (
        (2, 6, 8, 9),
        (3, 2, 2, 3),
        {"group": 3, "strides": [2, 1], "dilations": [1, 2], "pads": [1, 0, 0, 1]},
    ),
    "2-D grouped pointwise": ((2, 4, 3, 3), (6, 2, 1, 1), {"group": 2}),
    "2-D depthwise with a multiplier": ((2, 3, 6, 6), (6, 1, 3, 3), {"group": 3, "strides": [2, 2]}),
    "2-D depthwise, dilated": ((2, 3, 8, 8), (3, 1, 3, 3), {"group": 3, "dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    "2-D depthwise, dilated, strided": (
        (2, 3, 8, 8),
        (3, 1, 3, 3),
        {"group": 3, "dilations": [2, 2], "strides": [2, 2], "pads": [2, 2, 2, 2]},
    ),
    "2-D pointwise with pads": ((2, 3, 4, 4), (4, 3, 1, 1), {"pads": [1, 1, 1, 1]}),
    "2-D pointwise with pads behind": ((2, 3, 4, 4), (4, 3, 1, 1), {"pads": [0, 0, 1, 1]}),
    "2-D pointwise": ((3, 4, 5, 6), (6, 4, 1, 1), {}),
    "2-D pointwise, one product": ((3, 4, 1, 1), (96, 4, 1, 1), {}),
    "2-D pointwise, one product of many channels": ((3, 4, 2, 1), (40, 4, 1, 1), {}),
    "2-D pointwise, stride 2": ((3, 4, 5, 6), (6, 4, 1, 1), {"strides": [2, 2]}),
    "2-D depthwise, more pads than kernel": ((2, 4, 5, 5), (4, 1, 2, 2), {"group": 4, "pads": [2, 2, 2, 2]}),
    "2-D depthwise 5x5, stride 2, asymmetric": (
        (2, 4, 6, 6),
        (4, 1, 5, 5),
        {"group": 4, "pads": [1, 1, 2, 2], "strides": [2, 2]},
    ),
    "2-D kernel of the image's size": ((2, 3, 4, 4), (5, 3, 4, 4), {}),
    "2-D one sample": ((1, 3, 4, 4), (5, 3, 3, 3), {}),
    "SAME_UPPER, stride 2": ((2, 3, 6, 7), (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "SAME_LOWER, stride 2": ((2, 3, 6, 7), (4, 3, 3, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "SAME_UPPER, depthwise": (
        (2, 3, 6, 7),
        (3, 1, 3, 3),
        {"auto_pad": "SAME_UPPER", "strides": [2, 2], "group": 3},
    ),
    "SAME_UPPER, pointwise": ((2, 3, 6, 7), (4, 3, 1, 1), {"auto_pad": "SAME_UPPER"}),
    "VALID": ((2, 3, 6, 7), (4, 3, 3, 3), {"auto_pad": "VALID", "strides": [2, 2]}),
    "3-D": ((2, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"pads": [0, 1, 0, 0, 1, 1], "strides": [1, 2, 1]}),
}


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("name", CONVS)
def test_conv(name: str, opset: int) -> None:
    x, w, attrs = CONVS[name]
    check(window("Conv", x, w, bias=w[0], opset=opset, **attrs))
    check(window("Conv", x, w, opset=opset, **attrs))


@steady
@given(st.data())
def test_any_conv_of_two_axes(data: st.DataObject) -> None:
    def pick(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    group, within, multiple = pick(1, 3), pick(1, 2), pick(1, 2)
    kernel, strides, dilations = ([pick(1, 3), pick(1, 3)] for _ in range(3))
    size = [pick(1, 9), pick(1, 9)]
    pads = [pick(0, 3) for _ in range(4)]
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    assume(all(h + a + b >= s for h, a, b, s in zip(size, pads[:2], pads[2:], spans, strict=True)))
    attrs = {"group": group, "strides": strides, "dilations": dilations, "pads": pads}
    x, w = (pick(1, 2), group * within, *size), (group * multiple, within, *kernel)
    check(window("Conv", x, w, bias=w[0], **attrs))


def test_groups_that_do_not_fit_are_refused() -> None:
    node = Node("Conv", ("x", "w"), ("y",), {"group": 3}, "odd")
    tape = Tape({"x": (1, 4, 2, 2), "w": (6, 2, 1, 1), "y": (1, 6, 2, 2)}, {}, {"x", "w", "y"}, [node])
    with pytest.raises(ModelError, match=r"Conv in 3 groups does not fit its channels \(odd\)"):
        rule_for(node)(tape, node, "dy")


TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "1-D": ((2, 3, 5), (3, 4, 3), {}),
    "1-D, stride 2, output padding": ((2, 3, 5), (3, 4, 3), {"strides": [2], "pads": [1, 1], "output_padding": [1]}),
    "2-D": ((2, 3, 4, 5), (3, 4, 3, 2), {}),
    "2-D, stride 2, pads": ((2, 3, 4, 5), (3, 4, 3, 3), {"strides": [2, 2], "pads": [1, 0, 1, 1]}),
    "2-D, kernel 2, stride 2": ((2, 3, 4, 5), (3, 4, 2, 2), {"strides": [2, 2]}),
    "2-D, grouped": ((2, 4, 4, 5), (4, 3, 3, 3), {"group": 2, "strides": [2, 1]}),
    "2-D, depthwise": ((2, 4, 4, 5), (4, 1, 3, 3), {"group": 4, "strides": [2, 2]}),
    "2-D, dilated, output padding": (
        (2, 3, 4, 5),
        (3, 2, 3, 2),
        {"strides": [2, 3], "dilations": [2, 1], "pads": [1, 0, 0, 1], "output_padding": [1, 2]},
    ),
    "2-D, stride beyond the kernel": ((2, 3, 4, 5), (3, 2, 2, 1), {"strides": [3, 2]}),
}


@pytest.mark.parametrize("opset", [13, 21])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose(name: str, opset: int) -> None:
    x, w, attrs = TRANSPOSED[name]
    check(window("ConvTranspose", x, w, bias=w[1] * attrs.get("group", 1), opset=opset, **attrs))


def test_a_conv_transpose_of_given_size_is_refused() -> None:
    for attrs in ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"output_shape": [6, 6], "strides": [2, 2]}):
        with pytest.raises(ModelError, match="ConvTranspose with auto_pad or output_shape"):
            check(window("ConvTranspose", (1, 2, 3, 3), (2, 2, 3, 3), **attrs))


# --- pools ------------------------------------------------------------------------------------------------------------

POOLS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "1-D": ((2, 3, 9), {"kernel_shape": [3], "strides": [2]}),
    "1-D padded": ((2, 3, 9), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
    "2-D": ((2, 3, 6, 6), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "2-D overlapping, padded": ((2, 3, 7, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "2-D asymmetric pads": ((2, 3, 7, 8), {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [0, 1, 1, 0]}),
    "2-D stride 1": ((2, 3, 4, 5), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "2-D cells left over": ((2, 3, 8, 8), {"kernel_shape": [3, 3], "strides": [3, 3]}),
    "2-D ceil": ((2, 3, 6, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "SAME_UPPER": ((2, 3, 6, 7), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", POOLS)
def test_max_pool(name: str, opset: int) -> None:
    shape, attrs = POOLS[name]
    check(Check((Node("MaxPool", ("x",), ("y",), attrs, "pool"),), {"x": apart(*shape)}, opset=opset))


def test_a_max_pool_of_negative_values_never_picks_the_border() -> None:
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    check(Check((Node("MaxPool", ("x",), ("y",), attrs),), {"x": apart(1, 2, 5, 5) - 30}))


def test_a_dilated_max_pool() -> None:
    attrs = {"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [0, 1, 0, 1]}
    check(Check((Node("MaxPool", ("x",), ("y",), attrs),), {"x": apart(1, 2, 6, 7)}))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("name", POOLS)
def test_average_pool(name: str, include: int, opset: int) -> None:
    shape, attrs = POOLS[name]
    node = Node("AveragePool", ("x",), ("y",), attrs | {"count_include_pad": include}, "pool")
    case = Check((node,), {"x": draw(*shape)}, opset=opset)
    if include and attrs.get("ceil_mode"):
        with pytest.raises(ModelError, match="AveragePool with ceil_mode and count_include_pad"):
            check(case)
    else:
        check(case)


def test_max_pool_indices_are_refused() -> None:
    node = Node("MaxPool", ("x",), ("y", "i"), {"kernel_shape": [2, 2]}, "pool")
    with pytest.raises(ModelError, match="indices"):
        check(Check((node,), {"x": draw(1, 2, 4, 4)}))


# --- resize -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    ("mode", "transform", "scales"),
    [
        ("nearest", "asymmetric", (1, 1, 2, 3)),
        ("linear", "half_pixel", (1, 1, 2, 2)),
        ("linear", "align_corners", (1, 1, 2, 3)),
        ("linear", "asymmetric", (1, 1, 1.5, 2)),
        ("linear", "half_pixel", (1, 1, 0.5, 1)),
        ("linear", "pytorch_half_pixel", (1, 1, 2, 1)),
    ],
)
def test_resize(mode: str, transform: str, scales: tuple[float, ...], opset: int) -> None:
    attrs = {"mode": mode, "coordinate_transformation_mode": transform, "nearest_mode": "floor"}
    node = Node("Resize", ("x", "", "scales"), ("y",), attrs, "resize")
    check(Check((node,), {"x": draw(2, 3, 4, 5), "scales": np.asarray(scales, np.float32)}, opset=opset))


@pytest.mark.parametrize("opset", OPSETS)
def test_resize_to_sizes(opset: int) -> None:
    node = Node("Resize", ("x", "", "", "sizes"), ("y",), {"mode": "linear"}, "resize")
    check(Check((node,), {"x": draw(2, 3, 4, 5), "sizes": np.asarray([2, 3, 7, 6], np.int64)}, opset=opset))


def test_a_resize_that_crops_is_refused() -> None:
    attrs = {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear"}
    values = {"x": draw(1, 1, 4, 4), "roi": np.asarray([0, 0, 0, 0, 1, 1, 1, 1], np.float32)}
    values["sizes"] = np.asarray([1, 1, 2, 2], np.int64)
    with pytest.raises(ModelError, match="Resize that crops"):
        check(Check((Node("Resize", ("x", "roi", "", "sizes"), ("y",), attrs),), values))


# --- normalization ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize(("axis", "scale"), [(-1, (5,)), (1, (4, 5)), (-2, (4, 5)), (0, (3, 4, 5))])
def test_layer_normalization(axis: int, scale: tuple[int, ...], opset: int) -> None:
    node = Node("LayerNormalization", ("x", "s", "b"), ("y",), {"axis": axis, "epsilon": 1e-3}, "norm")
    values = {"x": draw(3, 4, 5), "s": draw(*scale), "b": draw(*scale)}
    check(Check((node,), values, ("x", "s", "b"), opset=opset))


def test_layer_normalization_without_shift() -> None:
    node = Node("LayerNormalization", ("x", "s"), ("y",), {}, "norm")
    check(Check((node,), {"x": draw(3, 4, 5), "s": draw(5)}, ("x", "s")))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("shape", [(2, 3, 6), (2, 3, 4, 5)])
def test_instance_normalization(shape: tuple[int, ...], opset: int) -> None:
    node = Node("InstanceNormalization", ("x", "s", "b"), ("y",), {"epsilon": 1e-2}, "norm")
    check(Check((node,), {"x": draw(*shape), "s": draw(3), "b": draw(3)}, ("x", "s", "b"), opset=opset))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 6), (2, 3, 4, 5)])
def test_batch_normalization_with_frozen_statistics(shape: tuple[int, ...], opset: int) -> None:
    node = Node("BatchNormalization", ("x", "s", "b", "m", "v"), ("y",), {"epsilon": 1e-3}, "norm")
    values = {"x": draw(*shape), "s": draw(3), "b": draw(3), "m": draw(3), "v": draw(3) ** 2 + np.float32(0.1)}
    check(Check((node,), values, ("x", "s", "b"), opset=opset))
    check(Check((node,), values, opset=opset))


def test_batch_normalization_in_training_mode_is_refused() -> None:
    node = Node("BatchNormalization", ("x", "s", "b", "m", "v"), ("y", "m2", "v2"), {"training_mode": 1}, "norm")
    values = {"x": draw(2, 3, 4), **{name: np.ones(3, np.float32) for name in "sbmv"}}
    with pytest.raises(ModelError, match="training mode"):
        check(Check((node,), values))
