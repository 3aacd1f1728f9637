"""Gradient rules of matrix products: Gemm and MatMul.

For y = a b:  da = dy b^T,  db = a^T dy  (Giles 2008, "Collected matrix derivative results").
"""

from __future__ import annotations

import numpy as np

from agent.engine.gradients_tape import PAST_FREEZING, Product, Rule, Tape, matmul, unbroadcast
from agent.engine.ir import Node
from agent.errors import ModelError

MATRIX_RANK = 2


def _gemm(tape: Tape, node: Node, dy: str) -> None:
    """For y = alpha a' b' + beta c, where a' and b' are a and b or their transposes; c is broadcast."""
    a, b = node.inputs[:2]
    alpha = node.number("alpha", 1)
    transpose_a, transpose_b = bool(node.attrs.get("transA", 0)), bool(node.attrs.get("transB", 0))
    if tape.learns(node, 1):
        left, right = (dy, a) if transpose_b else (a, dy)
        if alpha == 1 and not transpose_a:
            rows, columns = tape.shapes[b]
            tape.add(b, Product(left, right, transpose_a=True, rows=rows, columns=columns, shape=(rows, columns)))
        elif transpose_b:
            tape.add(b, tape.emit("Gemm", dy, a, alpha=alpha, transA=1, transB=int(transpose_a)))
        else:
            tape.add(b, tape.emit("Gemm", a, dy, alpha=alpha, transA=int(not transpose_a)))
    if tape.learns(node, 0):
        if transpose_a:
            tape.add(a, tape.emit("Gemm", b, dy, alpha=alpha, transA=int(transpose_b), transB=1))
        else:
            tape.add(a, tape.emit("Gemm", dy, b, alpha=alpha, transB=int(not transpose_b)))
    if tape.learns(node, 2):
        _gemm_bias(tape, node, dy)


def _gemm_bias(tape: Tape, node: Node, dy: str) -> None:
    c, beta = node.inputs[2], node.number("beta", 1)
    summed = unbroadcast(tape, dy, tape.shapes[node.outputs[0]], tape.shapes[c])
    tape.add(c, summed if beta == 1 else tape.emit("Mul", summed, tape.scalar(beta)))


def _matmul(tape: Tape, node: Node, dy: str) -> None:
    """Tensors a [..., M, K] and b [..., K, P]; batch axes broadcast, a plain matrix b is one product over all rows."""
    a, b = node.inputs
    shape_a, shape_b, shape_y = tape.shapes[a], tape.shapes[b], tape.shapes[node.outputs[0]]
    if len(shape_a) < MATRIX_RANK or len(shape_b) < MATRIX_RANK:
        raise ModelError("MatMul with a vector has no gradient rule", where=node.name, fix=PAST_FREEZING)
    if tape.learns(node, 0):
        da = matmul(tape, dy, b, transpose_b=True)
        tape.add(a, unbroadcast(tape, da, (*shape_y[:-1], shape_a[-1]), shape_a))
    if not tape.learns(node, 1):
        return
    if len(shape_b) == MATRIX_RANK:
        count, (rows, columns) = int(np.prod(shape_a[:-1])), shape_b
        flat_a = a if len(shape_a) == MATRIX_RANK else tape.reshape(a, count, rows)
        flat_dy = dy if len(shape_y) == MATRIX_RANK else tape.reshape(dy, count, columns)
        tape.add(b, Product(flat_a, flat_dy, transpose_a=True, rows=rows, columns=columns, shape=shape_b))
    else:
        db = matmul(tape, a, dy, transpose_a=True)
        tape.add(b, unbroadcast(tape, db, (*shape_y[:-2], shape_a[-1], shape_b[-1]), shape_b))


RULES: dict[str, Rule] = {"Gemm": _gemm, "MatMul": _matmul}
