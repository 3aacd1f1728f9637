"""Losses: values and gradients against their definitions; shares of micro-batches add up."""

from __future__ import annotations

import numpy as np
import pytest

from agent.engine.base import LossSpec
from agent.engine.gradients import Tape
from agent.engine.ir import Node, model_proto
from agent.engine.losses import LABELS, LOSS, TARGETS, emit_loss, target_input
from agent.engine.sessions import session
from agent.errors import ModelError
from tests.simulators.gradient_check import Check, check, gradients, loss_of

RNG = np.random.default_rng(17)
SAME = (Node("Identity", ("x",), ("y",), {}, "same"),)
SPECS = [
    LossSpec(),
    LossSpec(label_smoothing=0.1),
    LossSpec("mse"),
    LossSpec("l1"),
    LossSpec("huber"),
    LossSpec("huber", delta=0.3),
    LossSpec("bce"),
]


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def targets(spec: LossSpec, samples: int) -> np.ndarray:
    if spec.kind == "cross-entropy":
        return RNG.integers(0, 5, samples)
    return RNG.random((samples, 5)).astype(np.float32)


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_value_and_gradient(spec: LossSpec, opset: int) -> None:
    check(Check(SAME, {"x": draw(4, 5) * 2}, loss=spec, opset=opset))


@pytest.mark.parametrize("shape", [(3,), (3, 2, 4), (3, 1, 4, 2)])
@pytest.mark.parametrize("spec", SPECS[2:], ids=str)
def test_values_of_any_shape_are_averaged_over_all_elements(spec: LossSpec, shape: tuple[int, ...]) -> None:
    check(Check(SAME, {"x": draw(*shape)}, loss=spec))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_shares_of_micro_batches_add_up_to_the_batch(spec: LossSpec) -> None:
    x, wanted = draw(6, 5), targets(spec, 6)
    whole, loss = gradients(Check(SAME, {"x": x}, loss=spec), {"x": (6, 5), "y": (6, 5)}, wanted)
    parts = [
        gradients(Check(SAME, {"x": x[i : i + 2]}, loss=spec), {"x": (2, 5), "y": (2, 5)}, wanted[i : i + 2], batch=6)
        for i in (0, 2, 4)
    ]
    assert sum(value for _, value in parts) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(np.concatenate([made["x"] for made, _ in parts]), whole["x"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_extreme_outputs_overflow_nothing(spec: LossSpec) -> None:
    x = np.asarray([[-300.0, 300.0, 0.0, 80.0, -80.0]], np.float32)
    wanted = np.asarray([0]) if spec.kind == "cross-entropy" else np.asarray([[0, 1, 0.5, 1, 0]], np.float32)
    found, loss = gradients(Check(SAME, {"x": x}, loss=spec), {"x": (1, 5), "y": (1, 5)}, wanted)
    assert np.isfinite(loss)
    assert np.isfinite(found["x"]).all()
    if spec.kind != "bce":  # whose plain definition is what overflows
        assert loss == pytest.approx(loss_of(spec, x.astype(np.float64), wanted), rel=1e-5)


def test_smoothing_spreads_its_share_evenly() -> None:
    even = np.zeros((1, 5), np.float32)
    _, loss = gradients(Check(SAME, {"x": even}, loss=SPECS[1]), {"x": (1, 5), "y": (1, 5)}, np.asarray([2]))
    assert loss == pytest.approx(np.log(5), rel=1e-6)


def test_the_gradient_is_multiplied_by_the_factor_and_the_loss_is_not() -> None:
    tape = Tape({"y": (2, 3)}, {}, {"y"}, [])
    slope = emit_loss(tape, LossSpec("mse"), "y", 2, "rate")
    model = model_proto(
        tape.nodes,
        tape.made,
        {"y": (np.float32, (2, 3)), TARGETS: (np.float32, (2, 3)), "rate": (np.float32, ())},
        {LOSS: (np.float32, ()), slope: (np.float32, (2, 3))},
    )
    y = draw(2, 3)
    feeds = {"y": y, TARGETS: np.zeros((2, 3), np.float32), "rate": np.asarray(0.25, np.float32)}
    loss, gradient = session(model, 1).run([LOSS, slope], feeds)
    assert loss == pytest.approx((y**2).mean(), rel=1e-6)
    np.testing.assert_allclose(gradient, 0.25 * 2 * y / 6, rtol=1e-6)


def test_what_a_loss_compares_with() -> None:
    assert target_input(LossSpec(), (4, 7)) == {LABELS: (np.int64, (4,))}
    assert target_input(LossSpec("huber"), (4, 7, 2)) == {TARGETS: (np.float32, (4, 7, 2))}


@pytest.mark.parametrize(
    ("spec", "output", "says"),
    [
        (LossSpec("hinge"), (4, 7), "unknown loss 'hinge'. Choose one of cross-entropy, mse"),
        (LossSpec(), (4, 7, 2), r"cross-entropy needs an output \[N, classes\], the model gives \[4, 7, 2\]"),
        (LossSpec(), (4,), "cross-entropy needs an output"),
        (LossSpec(label_smoothing=1.0), (4, 7), "out of range"),
        (LossSpec(label_smoothing=-0.1), (4, 7), "out of range"),
        (LossSpec("huber", delta=0.0), (4, 7), "out of range"),
        (LossSpec("huber", delta=float("nan")), (4, 7), "out of range"),
    ],
)
def test_a_loss_that_does_not_fit_is_refused(spec: LossSpec, output: tuple[int, ...], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        target_input(spec, output)
