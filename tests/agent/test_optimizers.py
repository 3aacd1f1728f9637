from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engine.base import OptimizerSpec
from agent.engine.optimizers import apply_update

RATE = 0.05
# Hundredths, not st.floats: a runtime session in the same process may have switched subnormal numbers off.
hundredths = st.integers(-200, 200).map(lambda n: n / 100)
shares = st.integers(0, 95).map(lambda n: n / 100)
decays = st.integers(0, 100).map(lambda n: n / 1000)


def _run(spec: OptimizerSpec, gradients: list[float], start: float, states: int) -> float:
    weight = np.full((2, 3), start, np.float32)
    state = [np.zeros_like(weight) for _ in range(states)]
    for made, gradient in enumerate(gradients):
        apply_update(spec, weight, np.full_like(weight, gradient), state, made, RATE)
    assert (weight == weight[0, 0]).all()
    return float(weight[0, 0])


@given(
    st.lists(hundredths, min_size=1, max_size=8),
    shares,
    decays,
    hundredths,
)
def test_sgd_is_the_heavy_ball_of_its_specification(
    gradients: list[float], momentum: float, decay: float, start: float
) -> None:
    spec = OptimizerSpec("sgd", momentum=momentum, weight_decay=decay)
    weight, velocity = start, 0.0
    for gradient in gradients:
        velocity = momentum * velocity + gradient + decay * weight
        weight -= RATE * velocity
    assert _run(spec, gradients, start, 1) == pytest.approx(weight, rel=1e-5, abs=1e-5)


@given(
    st.lists(hundredths.filter(bool), min_size=1, max_size=8),
    decays,
    hundredths,
)
def test_adamw_is_bias_corrected_with_decay_apart_from_the_gradient(
    gradients: list[float], decay: float, start: float
) -> None:
    spec = OptimizerSpec("adamw", weight_decay=decay)
    weight, first, second = start, 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        weight -= RATE * decay * weight
        first = spec.beta1 * first + (1 - spec.beta1) * gradient
        second = spec.beta2 * second + (1 - spec.beta2) * gradient**2
        corrected = (second / (1 - spec.beta2**t)) ** 0.5
        weight -= RATE * (first / (1 - spec.beta1**t)) / (corrected + spec.epsilon)
    assert _run(spec, gradients, start, 2) == pytest.approx(weight, rel=1e-4, abs=1e-5)


def test_the_gradient_is_left_alone() -> None:
    weight, gradient = np.ones(3, np.float32), np.full(3, 0.5, np.float32)
    for spec, states in ((OptimizerSpec("sgd"), 1), (OptimizerSpec("adamw", weight_decay=0.1), 2)):
        apply_update(spec, weight, gradient, [np.zeros(3, np.float32) for _ in range(states)], 0, RATE)
    assert (gradient == np.float32(0.5)).all()


def test_an_infinite_gradient_is_left_to_the_trainer_to_judge() -> None:
    weight = np.ones(2, np.float32)
    apply_update(OptimizerSpec("sgd", momentum=0.0), weight, np.asarray([np.inf, 1.0], np.float32), [], 0, RATE)
    assert np.isinf(weight[0])
    assert weight[1] == pytest.approx(1 - RATE)
