"""Losses as graph nodes: the value, and the gradient with respect to the output.

A graph may see only `micro` samples of a batch: every loss is its micro-batch's share of the mean over `batch` samples,
so that shares and their gradients add up to those of the whole batch. E: values a sample. Formulas: see `LossSpec`.
"""

from __future__ import annotations

import numpy as np

from agent.engine.base import LossSpec
from agent.engine.gradients_tape import Tape
from agent.engine.ir import Node
from agent.errors import ModelError

LABELS = "labels"  # class indices [micro], int64
TARGETS = "targets"  # values of the output's shape, float32
LOSS = "loss"
KINDS = ("cross-entropy", "mse", "l1", "huber", "bce")
LOGITS_RANK = 2

Tensor = tuple[type[np.generic], tuple[int | str, ...]]


def target_input(spec: LossSpec, output: tuple[int, ...]) -> dict[str, Tensor]:
    """Name, type and shape of what a loss compares an output of shape `output` with.

    Raises:
        ModelError: the loss is unknown, its constants are outside their range, or it does not fit the output.
    """
    if spec.kind not in KINDS:
        raise ModelError(f"unknown loss {spec.kind!r}", fix=f"Choose one of {', '.join(KINDS)}")
    if not 0 <= spec.label_smoothing < 1 or not 0 < spec.delta < float("inf"):
        raise ModelError(
            f"label smoothing {spec.label_smoothing} or Huber delta {spec.delta} is out of range",
            fix="Smoothing is 0 up to 1 (not included), delta is positive",
        )
    if spec.kind != "cross-entropy":
        return {TARGETS: (np.float32, output)}
    if len(output) != LOGITS_RANK:
        raise ModelError(
            f"cross-entropy needs an output [N, classes], the model gives {list(output)}",
            fix="Choose the loss mse, l1, huber or bce, or export the model with a classifier at its end",
        )
    return {LABELS: (np.int64, output[:1])}


def emit_loss(tape: Tape, spec: LossSpec, output: str, batch: int, factor: str = "") -> str:
    """Emit the scalar `loss` of a micro-batch and return the gradient dL/d`output`, of the output's shape.

    Args:
        tape: with the forward nodes; `output` has the shape [micro, ...].
        spec: which loss.
        output: name of the model's output.
        batch: samples that the mean is over, a multiple of `micro`.
        factor: a scalar tensor to multiply the gradient by, or "".

    Raises:
        ModelError: as `target_input`.
    """
    shape = tape.shapes[output]
    target_input(spec, shape)
    if spec.kind == "cross-entropy":
        value, slope = _cross_entropy(tape, spec, output, shape[1])
        count = batch
    else:
        value, slope = _VALUES[spec.kind](tape, spec, output)
        count = batch * int(np.prod(shape[1:]))
    share = tape.scalar(1 / count)
    whole = tape.emit("ReduceSum", value, keepdims=0)
    tape.nodes.append(Node("Mul", (whole, share), (LOSS,), {}, LOSS))
    return tape.emit("Mul", slope, tape.emit("Mul", share, factor) if factor else share)


def _cross_entropy(tape: Tape, spec: LossSpec, logits: str, classes: int) -> tuple[str, str]:
    """Value -q log softmax and slope softmax - q, where q has 1 - e + e / K at the label and e / K elsewhere."""
    low = spec.label_smoothing / classes
    levels = tape.constant(np.asarray([low, 1 - spec.label_smoothing + low], np.float32))
    expected = tape.emit("OneHot", LABELS, tape.constant(np.asarray(classes, np.int64)), levels)
    log_p = tape.emit("LogSoftmax", logits, axis=1)
    value = tape.emit("Neg", tape.emit("Mul", expected, log_p))
    return value, tape.emit("Sub", tape.emit("Exp", log_p), expected)


def _mse(tape: Tape, spec: LossSpec, output: str) -> tuple[str, str]:
    """Value e^2, slope 2 e with e = y - t."""
    del spec
    error = tape.emit("Sub", output, TARGETS)
    return tape.emit("Mul", error, error), tape.emit("Mul", error, tape.scalar(2))


def _l1(tape: Tape, spec: LossSpec, output: str) -> tuple[str, str]:
    """Value |e|, slope sign(e)."""
    del spec
    error = tape.emit("Sub", output, TARGETS)
    return tape.emit("Abs", error), tape.emit("Sign", error)


def _huber(tape: Tape, spec: LossSpec, output: str) -> tuple[str, str]:
    """With c = clip(e, -delta, delta): value c (e - c / 2), slope c (Huber 1964)."""
    error = tape.emit("Sub", output, TARGETS)
    clipped = tape.emit("Clip", error, tape.scalar(-spec.delta), tape.scalar(spec.delta))
    rest = tape.emit("Sub", error, tape.emit("Mul", clipped, tape.scalar(0.5)))
    return tape.emit("Mul", clipped, rest), clipped


def _bce(tape: Tape, spec: LossSpec, output: str) -> tuple[str, str]:
    """Value max(y, 0) - y t + ln(1 + exp(-|y|)), which overflows for no y; slope sigmoid(y) - t."""
    del spec
    tail = tape.emit(
        "Log", tape.emit("Add", tape.scalar(1), tape.emit("Exp", tape.emit("Neg", tape.emit("Abs", output))))
    )
    linear = tape.emit("Sub", tape.emit("Relu", output), tape.emit("Mul", output, TARGETS))
    return tape.emit("Add", linear, tail), tape.emit("Sub", tape.emit("Sigmoid", output), TARGETS)


_VALUES = {"bce": _bce, "huber": _huber, "l1": _l1, "mse": _mse}
