"""Losses as graph nodes: the value, and the gradient with respect to the logits."""

from __future__ import annotations

import numpy as np

from agent.engine.gradients import Tape
from agent.engine.ir import Node

LABELS = "labels"
LOSS = "loss"


def cross_entropy(tape: Tape, logits: str, factor: str = "") -> str:
    """Mean softmax cross-entropy of logits [N, K] against integer labels [N].

    Emits the scalar `loss` and returns the gradient (softmax(logits) - onehot(labels)) / N, [N, K], times the scalar
    tensor `factor` if one is named.
    """
    batch, classes = tape.shapes[logits]
    log_softmax = "grad.log_softmax"
    tape.nodes.append(
        Node("SoftmaxCrossEntropyLoss", (logits, LABELS), (LOSS, log_softmax), {"reduction": "mean"}, "cross_entropy")
    )
    probabilities = tape.emit("Exp", log_softmax)
    depth = tape.constant(np.asarray(classes, np.int64))
    expected = tape.emit("OneHot", LABELS, depth, tape.constant(np.asarray([0, 1], np.float32)))
    share = tape.scalar(1.0 / batch)
    return tape.emit(
        "Mul", tape.emit("Sub", probabilities, expected), tape.emit("Mul", share, factor) if factor else share
    )
