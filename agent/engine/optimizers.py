"""Update rules in place over flat float32 arrays: weights, gradients and optimizer state of many parameters at once.

Formulas: `OptimizerSpec`. State lives in tensors of the parameter's shape: `momentum/<w>` for SGD with momentum,
`adam_m/<w>` and `adam_v/<w>` for AdamW. Both engines use these names, so a checkpoint of one continues on the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import TypeVar

import numpy as np

from agent.engine.base import Float32, OptimizerSpec
from agent.engine.native import AdamwRule, kernels

CHUNK = 1 << 16  # floats: four arrays of 256 KiB stay in a board's second-level cache between the passes of one chunk
NATIVE_CHUNK = 1 << 18  # floats: large beside the cost of a call, small enough to share out
Part = TypeVar("Part")
Made = TypeVar("Made")
MOMENTUM, FIRST_MOMENT, SECOND_MOMENT = "momentum", "adam_m", "adam_v"


def state_kinds(spec: OptimizerSpec) -> tuple[str, ...]:
    """Prefixes of the state tensors that every parameter needs."""
    if spec.kind == "adamw":
        return (FIRST_MOMENT, SECOND_MOMENT)
    return (MOMENTUM,) if spec.momentum > 0 else ()


def state_names(spec: OptimizerSpec, parameter: str) -> tuple[str, ...]:
    """State tensors of one parameter, each of the parameter's own shape."""
    return tuple(f"{kind}/{parameter}" for kind in state_kinds(spec))


def gradient_norm(gradients: Iterable[Float32], threads: Executor | None = None) -> float:
    """Global L2 norm of contiguous arrays; infinite or not a number when one of their values is.

    Args:
        gradients: any shapes.
        threads: where large arrays are worked on in parts.
    """
    native = kernels()
    parts = [part for values in gradients for part in _chunks(values.reshape(-1))]

    def work(chosen: Sequence[Float32]) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            if native is not None:
                return sum(native.square_sum(part) for part in chosen)
            return sum(float(np.vdot(part, part)) for part in chosen)

    return math.sqrt(sum(_shared(work, parts, threads)))


def clip_scale(spec: OptimizerSpec, norm: float) -> float:
    """Factor that brings a gradient of this norm down to `clip_norm`; 1 where it need not come down."""
    return spec.clip_norm / norm if 0 < spec.clip_norm < norm else 1.0


def apply_update(
    spec: OptimizerSpec,
    weight: Float32,
    gradient: Float32,
    state: Sequence[Float32],
    updates_made: int,
    learning_rate: float,
    scale: float = 1.0,
    threads: Executor | None = None,
) -> None:
    """Change `weight` and `state` in place as `OptimizerSpec` says; `gradient` is left alone.

    Args:
        spec: the rule and its constants.
        weight: contiguous, any shape, of one parameter or of many neighbours.
        gradient: of the same shape.
        state: what `state_kinds` names: nothing, (velocity,) or (first moment, second moment).
        updates_made: updates of these parameters since their state was zero; AdamW's bias corrections count from it.
        learning_rate: of this step.
        scale: factor of the gradient, see `clip_scale`.
        threads: where large arrays are worked on in parts.
    """
    rule = _rule(spec, updates_made + 1, learning_rate, scale)
    flat = [array.reshape(-1) for array in (weight, gradient, *state)]
    parts = list(zip(*(_chunks(array) for array in flat), strict=True))

    def work(chosen: Sequence[Sequence[Float32]]) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # whether a step is finite was asked before
            for arrays in chosen:
                rule(arrays)

    _shared(work, parts, threads)


def _chunks(flat: Float32) -> list[Float32]:
    """The library makes one pass over a chunk, NumPy one for each operation: its chunks must stay in a cache."""
    size = CHUNK if kernels() is None else NATIVE_CHUNK
    return [flat[start : start + size] for start in range(0, flat.size, size)]


def _shared(work: Callable[[Sequence[Part]], Made], parts: Sequence[Part], threads: Executor | None) -> list[Made]:
    """Half of the parts here, the others on a thread."""
    if threads is None or len(parts) < 2:  # noqa: PLR2004 - nothing to share out
        return [work(parts)]
    other = threads.submit(work, parts[1::2])
    return [work(parts[::2]), other.result()]


Rule = Callable[[Sequence[Float32]], None]


def _rule(spec: OptimizerSpec, t: int, learning_rate: float, scale: float) -> Rule:
    """The update of one chunk: [weight, gradient, *state], each [n]."""
    if spec.kind != "adamw":
        return lambda arrays: _sgd(spec, arrays, learning_rate, scale)
    constants = AdamwRule(
        spec.beta1, spec.beta2, spec.epsilon, 1 - learning_rate * spec.weight_decay,
        learning_rate / (1 - spec.beta1**t), (1 - spec.beta2**t) ** -0.5, scale,
    )  # fmt: skip
    return lambda arrays: _adamw(constants, *arrays)


def _sgd(spec: OptimizerSpec, arrays: Sequence[Float32], rate: float, scale: float) -> None:
    """Heavy ball: v <- momentum v + g + decay w; w <- w - rate v."""
    weight, gradient = arrays[:2]
    velocity = arrays[2] if len(arrays) > 2 else None  # noqa: PLR2004 - weight, gradient, velocity
    native = kernels()
    if native is not None:
        native.sgd(weight, velocity, gradient, rate=rate, momentum=spec.momentum, decay=spec.weight_decay, scale=scale)
        return
    step = gradient if scale == 1 else gradient * np.float32(scale)
    if spec.weight_decay:
        step = step + np.float32(spec.weight_decay) * weight
    if velocity is not None:
        velocity *= np.float32(spec.momentum)
        velocity += step
        step = velocity
    weight -= np.float32(rate) * step


def _adamw(rule: AdamwRule, weight: Float32, gradient: Float32, first: Float32, second: Float32) -> None:
    """Decay, moments, step: w <- w - rate decay w; m, v; w <- w - step m / (sqrt(v) root + eps)."""
    native = kernels()
    if native is not None:
        native.adamw(weight, first, second, gradient, rule)
        return
    step = gradient if rule.scale == 1 else gradient * np.float32(rule.scale)
    first *= np.float32(rule.beta1)
    first += np.float32(1 - rule.beta1) * step
    second *= np.float32(rule.beta2)
    second += np.float32(1 - rule.beta2) * np.square(step)
    denominator = np.sqrt(second)
    denominator *= np.float32(rule.root_correction)
    denominator += np.float32(rule.epsilon)
    np.divide(first, denominator, out=denominator)
    denominator *= np.float32(rule.step_size)
    if rule.shrink != 1:
        weight *= np.float32(rule.shrink)
    weight -= denominator
