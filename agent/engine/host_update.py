"""Update rules on the host: one parameter at a time, in place, in float32.

Used by engines whose runtime hands gradients out. The same formulas and state names as `agent.engine.optimizers`, so a
checkpoint of one engine continues on the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agent.engine.base import Float32, OptimizerSpec


def apply_update(
    spec: OptimizerSpec,
    weight: Float32,
    gradient: Float32,
    state: Sequence[Float32],
    updates_made: int,
    learning_rate: float,
) -> None:
    """Change `weight` and `state` in place as `OptimizerSpec` says; `gradient` is left alone.

    Args:
        spec: the rule and its constants.
        weight: parameter of any shape.
        gradient: of the same shape.
        state: what `optimizers.state_names` names: nothing, (velocity,) or (first moment, second moment).
        updates_made: updates of this parameter since its state was zero; AdamW's bias corrections count from it.
        learning_rate: of this step.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # whether a step stayed finite is the trainer's question
        if spec.kind == "adamw":
            _adamw(spec, weight, gradient, state, updates_made + 1, learning_rate)
        else:
            _sgd(spec, weight, gradient, state, learning_rate)


def _sgd(
    spec: OptimizerSpec, weight: Float32, gradient: Float32, state: Sequence[Float32], learning_rate: float
) -> None:
    """Heavy ball: v <- momentum v + g + decay w; w <- w - lr v."""
    step = gradient + spec.weight_decay * weight if spec.weight_decay else gradient
    if state:
        (velocity,) = state
        velocity *= spec.momentum
        velocity += step
        step = velocity
    weight -= learning_rate * step


def _adamw(
    spec: OptimizerSpec, weight: Float32, gradient: Float32, state: Sequence[Float32], t: int, learning_rate: float
) -> None:
    """Decay, moments, step: w <- w - lr decay w; m, v; w <- w - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)."""
    first, second = state
    first *= spec.beta1
    first += (1 - spec.beta1) * gradient
    second *= spec.beta2
    second += (1 - spec.beta2) * np.square(gradient)
    denominator = np.sqrt(second * (1 - spec.beta2**t) ** -1)
    denominator += spec.epsilon
    np.divide(first, denominator, out=denominator)
    denominator *= learning_rate / (1 - spec.beta1**t)
    if spec.weight_decay:
        weight *= 1 - learning_rate * spec.weight_decay
    weight -= denominator
