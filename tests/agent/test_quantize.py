from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine import quantize
from agent.engine.base import Float32, UpdatePlan
from agent.engine.ir import Array, Node, model_proto, shapes
from agent.engine.passes import split
from agent.engine.quantize import Observed, check_int8, mean_error, observe, quantize_prefix, quantized_weight
from agent.engine.sessions import session
from agent.errors import DataError, EngineError, ModelError
from tests.simulators.small_models import mobile_block_net

NET = mobile_block_net(size=24)


def prefix(frozen_layers: int) -> onnx.ModelProto:
    cut, known = split(NET, UpdatePlan(frozen_layers)), shapes(NET, 1)
    return model_proto(
        cut.prefix,
        NET.initializers,
        {NET.input: (np.float32, ("N", *NET.input_shape))},
        {name: (np.float32, ("N", *known[name][1:])) for name in cut.crossing},
        opset=NET.opset,
    )


def samples(count: int, seed: int = 1) -> Float32:
    return np.random.default_rng(seed).uniform(-1, 1, (count, *NET.input_shape)).astype(np.float32)


def run(model: onnx.ModelProto, x: Float32) -> list[Float32]:
    return list(session(model, 1).run(None, {model.graph.input[0].name: x}))


def chain(nodes: Sequence[Node], constants: dict[str, Array], output: str = "y") -> onnx.ModelProto:
    return model_proto(nodes, constants, {"x": (np.float32, ("N", 2, 6, 6))}, {output: None})


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def relative_error(made: Float32, expected: Float32) -> float:
    return float(np.linalg.norm(made - expected) / np.linalg.norm(expected))


# --- the rewritten graph ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen_layers", range(1, 8))
def test_every_boundary_keeps_its_function_within_rounding(frozen_layers: int) -> None:
    model = prefix(frozen_layers)
    made = quantize_prefix(model, [samples(40)], 1)
    assert [value.name for value in made.graph.output] == [value.name for value in model.graph.output]
    held_out = samples(8, seed=2)
    for integer, real in zip(run(made, held_out), run(model, held_out), strict=True):
        assert integer.dtype == np.float32
        assert integer.shape == real.shape
        assert relative_error(integer, real) < 0.06


def test_the_whole_chain_runs_on_integers() -> None:
    made = quantize_prefix(prefix(7), [samples(4)], 1)
    assert operators(made) == {
        "QuantizeLinear": 1,
        "QLinearConv": 7,
        "QLinearAdd": 1,
        "DequantizeLinear": 1,
        "GlobalAveragePool": 1,
        "Flatten": 1,
    }


def test_weights_take_a_quarter_of_the_bytes() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 32, 3, 3)).astype(np.float32)
    model = model_proto(
        [Node("Conv", ("x", "w"), ("y",))], {"w": weight}, {"x": (np.float32, ("N", 32, 6, 6))}, {"y": None}
    )
    made = quantize_prefix(model, [rng.standard_normal((2, 32, 6, 6)).astype(np.float32)], 1)
    assert made.ByteSize() < 0.3 * model.ByteSize()
    assert weight.tobytes() not in made.SerializeToString()


def test_an_operator_without_an_integer_form_stays_as_it_is() -> None:
    weight = np.random.default_rng(0).standard_normal((2, 2, 1, 1)).astype(np.float32)
    nodes = [
        Node("Conv", ("x", "w"), ("c",)),
        Node("Sigmoid", ("c",), ("s",)),
        Node("Conv", ("s", "w"), ("y",)),
    ]
    model = chain(nodes, {"w": weight})
    x = np.random.default_rng(1).standard_normal((16, 2, 6, 6)).astype(np.float32)
    made = quantize_prefix(model, [x], 1)
    assert operators(made) == {"QuantizeLinear": 2, "QLinearConv": 2, "DequantizeLinear": 2, "Sigmoid": 1}
    assert relative_error(run(made, x)[0], run(model, x)[0]) < 0.05


@pytest.mark.parametrize(("low", "high", "absorbed"), [(0, 6, True), (-1, 1, True), (0.5, 6, False), (-3, -1, False)])
def test_a_clip_is_absorbed_only_where_saturation_does_the_same(low: float, high: float, *, absorbed: bool) -> None:
    constants: dict[str, Array] = {
        "w": np.float32([[[[2]], [[0]]], [[[0]], [[-3]]]]),
        "low": np.asarray(low, np.float32),
        "high": np.asarray(high, np.float32),
    }
    model = chain([Node("Conv", ("x", "w"), ("c",)), Node("Clip", ("c", "low", "high"), ("y",))], constants)
    x = np.random.default_rng(2).uniform(-4, 4, (16, 2, 6, 6)).astype(np.float32)
    made = quantize_prefix(model, [x], 1)
    assert ("Clip" not in operators(made)) == absorbed
    result = run(made, x)[0]
    assert result.min() >= low - 0.02
    assert result.max() <= high + 0.02
    assert np.abs(result - run(model, x)[0]).max() < 0.2


def test_a_clip_beside_another_reader_is_not_absorbed() -> None:
    constants: dict[str, Array] = {"w": np.random.default_rng(0).standard_normal((2, 2, 1, 1)).astype(np.float32)}
    nodes = [
        Node("Conv", ("x", "w"), ("c",)),
        Node("Relu", ("c",), ("r",)),
        Node("Add", ("c", "r"), ("y",)),
    ]
    model = chain(nodes, constants)
    x = np.random.default_rng(1).standard_normal((16, 2, 6, 6)).astype(np.float32)
    made = quantize_prefix(model, [x], 1)
    assert operators(made)["Relu"] == 1
    assert relative_error(run(made, x)[0], run(model, x)[0]) < 0.05


def test_a_model_without_integer_operators_is_refused() -> None:
    with pytest.raises(ModelError, match="nothing in the frozen part can run in 8 bits"):
        quantize_prefix(chain([Node("Sigmoid", ("x",), ("y",))], {}), [np.zeros((1, 2, 6, 6), np.float32)], 1)


# --- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_takes_a_bounded_number_of_samples() -> None:
    taken = []

    def endless() -> Iterator[Float32]:
        for seed in itertools.count():
            taken.append(seed)
            yield samples(10, seed)

    observe(prefix(1), endless(), 1)
    assert len(taken) == -(-quantize.CALIBRATION_SAMPLES // 10)


def test_calibration_sees_ranges_and_means() -> None:
    x = np.stack([np.full((2, 6, 6), value, np.float32) for value in range(11)])
    x[:, 1] *= -2
    model = chain([Node("Conv", ("x", "w"), ("y",))], {"w": np.ones((1, 2, 1, 1), np.float32)})
    seen = observe(model, [x], 1)
    assert seen["x"].high == pytest.approx(9)  # one sample in ten may be cut off
    assert seen["x"].low == pytest.approx(-18)
    assert seen["x"].mean == pytest.approx([5, -10])
    assert seen["y"].low == pytest.approx(-9)


def test_no_samples_are_refused() -> None:
    with pytest.raises(DataError, match="no samples"):
        quantize_prefix(prefix(1), [], 1)


def test_values_that_are_not_finite_are_refused_by_name() -> None:
    x = samples(2)
    x[1, 0, 0, 0] = np.inf
    with pytest.raises(EngineError, match="not finite") as caught:
        quantize_prefix(prefix(1), [x], 1)
    assert caught.value.where == "image"


# --- numbers ----------------------------------------------------------------------------------------------------------

finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)  # the runtime has switched subnormals off


@given(low=finite, high=finite)
def test_every_range_holds_zero_exactly(low: float, high: float) -> None:
    seen = Observed(min(low, high), max(low, high))
    assert seen.scale() > 0
    assert 0 <= seen.zero_point() <= 255
    reach = (255 - seen.zero_point()) * seen.scale()
    assert reach >= max(seen.high, 0.0) - 0.51 * seen.scale()
    assert -seen.zero_point() * seen.scale() <= min(seen.low, 0.0) + 0.51 * seen.scale()


@settings(max_examples=50)
@given(
    exponents=st.lists(st.integers(-44, 6), min_size=1, max_size=6),
    bias=st.floats(-100, 100, allow_subnormal=False),
    input_scale=st.floats(1e-4, 1, allow_subnormal=False),
    seed=st.integers(0, 99),
)
def test_weights_and_biases_fit_their_integers(
    exponents: list[int], bias: float, input_scale: float, seed: int
) -> None:
    sizes = 10.0 ** np.asarray(exponents)
    weight = np.random.default_rng(seed).uniform(-1, 1, (len(sizes), 3, 2, 2)) * sizes[:, None, None, None]
    integers, scale = quantized_weight(weight, np.full(len(sizes), bias), input_scale)
    assert integers.dtype == np.int8
    assert (np.abs(bias / (scale * input_scale)) <= quantize.BIAS_LIMIT + 1).all()
    error = np.abs(integers * scale[:, None, None, None] - weight)
    assert (error <= 0.5000001 * scale[:, None, None, None]).all()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_mean_error_is_that_of_a_constant_input(groups: int) -> None:
    rng = np.random.default_rng(groups)
    error = rng.standard_normal((8, 4 // groups, 3, 3))
    mean = rng.standard_normal(4)
    node = Node("Conv", ("x", "w"), ("y",), {"group": groups})
    weights: dict[str, Array] = {"w": error.astype(np.float32)}
    model = model_proto([node], weights, {"x": (np.float32, ("N", 4, 3, 3))}, {"y": None})
    constant = np.broadcast_to(mean.astype(np.float32)[None, :, None, None], (1, 4, 3, 3))
    expected = run(model, np.ascontiguousarray(constant))[0].ravel()
    np.testing.assert_allclose(mean_error(error, mean), expected, atol=1e-4)


# --- keeping it or not ------------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass only while a run says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def run(self, seconds: float, value: float) -> quantize.Run:
        def took(x: Float32) -> tuple[Float32]:
            self.now += seconds
            return (np.full((len(x), 1), value, np.float32),)

        return took


def first_value(boundary: Sequence[Float32]) -> float:
    return float(boundary[0].mean())


@pytest.mark.parametrize(
    ("int8_seconds", "int8_score", "keep", "reason"),
    [
        (1.0, 0.9, True, "2.00 times as fast"),
        (1.0, 0.8955, True, "2.00 times as fast"),
        (1.0, 0.8945, False, "score 0.0055 lower"),
        (1.0, 0.95, True, "2.00 times as fast"),
        (2.0, 0.9, False, "not faster"),
        (3.0, 0.9, False, "not faster here .0.67 times."),
        (1.0, float("nan"), False, "lower"),
    ],
)
def test_8_bits_stay_only_if_as_good_and_faster(
    int8_seconds: float, int8_score: float, reason: str, *, keep: bool
) -> None:
    clock = Clock()
    check = check_int8(
        clock.run(2.0, 0.9), clock.run(int8_seconds, int8_score), samples(5), first_value, 2, clock=clock
    )
    assert check.keep is keep
    assert (check.float_seconds, check.int8_seconds) == (2.0, int8_seconds)
    assert check.float_score == pytest.approx(0.9)
    assert np.isclose(check.int8_score, int8_score, equal_nan=True)
    assert re.search(reason, check.reason)


def test_scoring_sees_every_held_out_sample_once_in_bounded_number() -> None:
    seen: list[int] = []

    def score(boundary: Sequence[Float32]) -> float:
        seen.append(len(boundary[0]))
        return 1.0

    clock = Clock()
    check_int8(clock.run(1, 1), clock.run(1, 1), samples(7), score, 3, clock=clock)
    check_int8(clock.run(1, 1), clock.run(1, 1), np.zeros((300, 1), np.float32), score, 64, clock=clock)
    assert seen == [7, 7, quantize.HELD_OUT_SAMPLES, quantize.HELD_OUT_SAMPLES]


def test_a_check_needs_samples() -> None:
    clock = Clock()
    with pytest.raises(DataError, match="no held-out samples"):
        check_int8(clock.run(1, 1), clock.run(1, 1), samples(0), first_value, 2, clock=clock)
