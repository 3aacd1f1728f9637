"""Gradient rules: for each operator, the nodes that turn the gradient of its output into those of its inputs.

A rule gets the node, the name of the output's gradient and a `Tape` to emit nodes on. Notation: x input [N, C, H, W],
w weight [O, C/g, kh, kw], y output [N, O, P, Q], dy its gradient, s stride, d dilation. The nodes emitted mean the same
in every opset that is read (ReduceSum with axes as input, no ReduceMean, no ScatterElements that adds).
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.engine import (
    gradients_activation,
    gradients_conv,
    gradients_elementwise,
    gradients_norm,
    gradients_pool,
    gradients_product,
    gradients_reduce,
    gradients_shape,
)
from agent.engine.gradients_tape import Product, Rule, Tape, WeightGradient, matmul
from agent.engine.ir import Node
from agent.errors import ModelError

__all__ = ["NO_GRADIENT", "RULES", "Product", "Rule", "Tape", "WeightGradient", "backward", "matmul", "rule_for"]

RULES: dict[str, Rule] = (
    gradients_activation.RULES
    | gradients_conv.RULES
    | gradients_elementwise.RULES
    | gradients_norm.RULES
    | gradients_pool.RULES
    | gradients_product.RULES
    | gradients_reduce.RULES
    | gradients_shape.RULES
)

NO_GRADIENT = frozenset(
    (
        "And",
        "ArgMax",
        "ArgMin",
        "Ceil",
        "ConstantOfShape",
        "Equal",
        "EyeLike",
        "Floor",
        "Greater",
        "GreaterOrEqual",
        "IsInf",
        "IsNaN",
        "Less",
        "LessOrEqual",
        "NonZero",
        "Not",
        "OneHot",
        "Or",
        "Range",
        "Round",
        "Shape",
        "Sign",
        "Size",
        "Xor",
    )
)
"""Operators whose output is whole numbers, truth values or steps: their gradient is zero wherever there is one."""


def rule_for(node: Node) -> Rule:
    """The rule for a node.

    Raises:
        ModelError: the operator has none; says which node and what to do.
    """
    if node.op in NO_GRADIENT:
        return _nothing
    rule = RULES.get(node.op)
    if rule is None:
        raise ModelError(
            f"operator {node.op} has no gradient rule",
            where=node.name,
            fix=f"Freeze past this node, or export the model with {', '.join(sorted(RULES))} only",
        )
    return rule


def backward(tape: Tape, nodes: Iterable[Node]) -> None:
    """Walk forward nodes from the last to the first and apply the rule of each that gradients reach."""
    for node in reversed(tuple(nodes)):
        reached = [tape.gradient(name) for name in node.outputs if name]
        if any(reached):
            rule_for(node)(tape, node, reached[0] or "")


def _nothing(_tape: Tape, _node: Node, _dy: str) -> None:
    """The gradient ends here."""
