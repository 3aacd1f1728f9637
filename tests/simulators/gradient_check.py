"""Central differences: the reference implementation in float64 against the gradient graph in the runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from agent.engine.base import LossSpec
from agent.engine.gradients import Tape, backward
from agent.engine.ir import Array, Graph, Node, model_proto, shapes
from agent.engine.losses import LABELS, LOSS, emit_loss, target_input
from agent.engine.sessions import session

DIRECTIONS = 3
STEP = 1e-6  # of a central difference in float64: truncation and rounding are both near 1e-10 of the loss
TOLERANCE = 5e-4  # float32 kernels against float64, relative to the length of the gradient


@dataclass(frozen=True)
class Check:
    """Nodes, the values of all that no node makes, and which of those learn; `y` is what the loss sees."""

    nodes: Sequence[Node]
    values: Mapping[str, Array]
    learning: Sequence[str] = ("x",)
    loss: LossSpec = field(default_factory=lambda: LossSpec("mse"))
    opset: int = 17
    output: str = "y"
    target: Array | None = None


def check(case: Check, seed: int = 0) -> None:
    """Assert that loss and gradients of the compiled graph are those of the reference."""
    rng = np.random.default_rng(seed)
    known = _shapes(case)
    wanted = case.target if case.target is not None else _target(case, known[case.output], rng)
    found, value = gradients(case, known, wanted)
    loss = _reference_loss(case, wanted)
    wide = {name: _wide(v) for name, v in case.values.items()}
    expected = loss(wide)
    assert abs(value - expected) <= 1e-4 * abs(expected) + 1e-6, (value, expected)
    for name in case.learning:
        got = found[name].astype(np.float64)
        assert got.shape == wide[name].shape, name
        for _ in range(DIRECTIONS):
            way = rng.standard_normal(got.shape)
            up = loss(wide | {name: wide[name] + STEP * way})
            down = loss(wide | {name: wide[name] - STEP * way})
            slope = (up - down) / (2 * STEP)
            scale = float(np.linalg.norm(got)) + 1e-4
            assert abs(float((got * way).sum()) - slope) <= TOLERANCE * scale, (name, (got * way).sum(), slope)


def gradients(
    case: Check, known: dict[str, tuple[int, ...]], wanted: Array, batch: int = 0
) -> tuple[dict[str, Array], float]:
    """Gradient of every learning value, and the loss, as the runtime computes them."""
    learning = set(case.learning)
    constants = {name: value for name, value in case.values.items() if name not in learning}
    tape = Tape(dict(known), constants, _reached(case.nodes, learning), list(case.nodes))
    tape.add(case.output, emit_loss(tape, case.loss, case.output, batch or known[case.output][0]))
    backward(tape, case.nodes)
    names = [tape.tensor(tape.weight_gradients[name]) for name in case.learning]
    target, (dtype, shape) = next(iter(target_input(case.loss, known[case.output]).items()))
    inputs: dict[str, Any] = {name: (np.float32, case.values[name].shape) for name in case.learning}
    inputs[target] = (dtype, shape)
    outputs: dict[str, Any] = {LOSS: (np.float32, ())}
    outputs |= {made: (np.float32, case.values[name].shape) for made, name in zip(names, case.learning, strict=True)}
    model = model_proto(tape.nodes, constants | tape.made, inputs, outputs, opset=case.opset)
    onnx.checker.check_model(model)
    feeds = {name: case.values[name] for name in case.learning} | {target: wanted}
    value, *made = session(model, 1).run([LOSS, *names], feeds)
    return dict(zip(case.learning, made, strict=True)), float(value)


def _reached(nodes: Sequence[Node], learning: set[str]) -> set[str]:
    """The learning values and all tensors that depend on them."""
    needed = set(learning)
    for node in nodes:
        if not needed.isdisjoint(node.inputs):
            needed.update(name for name in node.outputs if name)
    return needed


def _shapes(case: Check) -> dict[str, tuple[int, ...]]:
    x = case.values["x"]
    rest = {name: value for name, value in case.values.items() if name != "x"}
    return shapes(Graph(tuple(case.nodes), rest, "x", x.shape[1:], case.output, opset=case.opset), x.shape[0])


def _target(case: Check, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    name, (_, wanted) = next(iter(target_input(case.loss, shape).items()))
    if name == LABELS:
        return rng.integers(0, shape[1], shape[:1])
    if case.loss.kind == "bce":
        return rng.random(wanted).astype(np.float32)
    return rng.standard_normal(wanted).astype(np.float32)


def _wide(value: Array) -> Array:
    return value.astype(np.float64) if value.dtype == np.float32 else value


def _reference_loss(case: Check, wanted: Array) -> Callable[[Mapping[str, Array]], float]:
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - slow to import

    wide = {name: _wide(value) for name, value in case.values.items()}
    varying = {name: value for name, value in wide.items() if value.dtype == np.float64}
    model = model_proto(
        case.nodes,
        {name: value for name, value in wide.items() if name not in varying},
        {name: (np.float64, value.shape) for name, value in varying.items()},
        {case.output: None},
        opset=case.opset,
    )
    evaluator = ReferenceEvaluator(model, new_ops=_in_double())

    def loss(values: Mapping[str, Array]) -> float:
        y = evaluator.run([case.output], {name: values[name] for name in varying})[0]
        return loss_of(case.loss, np.asarray(y, np.float64), wanted)

    return loss


def _in_double() -> list[Any]:
    """Operators that the reference computes in float32 or gets wrong, from their definition."""
    from onnx.reference.op_run import OpRun  # noqa: PLC0415 - slow to import

    erf = np.vectorize(math.erf, otypes=[np.float64])

    class Erf(OpRun):
        def _run(self, x: Array) -> tuple[Array, ...]:
            return (erf(x),)

    class Gelu(OpRun):
        def _run(self, x: Array, approximate: str = "none") -> tuple[Array, ...]:
            if approximate == "tanh":
                return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
            return (0.5 * x * (1 + erf(x / math.sqrt(2))),)

    class Cast(OpRun):
        def _run(self, x: Array, to: int = 1, **_: Any) -> tuple[Array, ...]:
            return (x.astype(np.float64 if to == 1 else onnx.helper.tensor_dtype_to_np_dtype(to)),)

    class BatchNormalization(OpRun):
        def _run(self, x: Array, scale: Array, shift: Array, mean: Array, variance: Array, **attrs: Any) -> Any:
            s, b, m, v = (part.reshape(1, -1, *[1] * (x.ndim - 2)) for part in (scale, shift, mean, variance))
            return (s * (x - m) / np.sqrt(v + (attrs.get("epsilon") or 1e-5)) + b,)

    class GlobalMaxPool(OpRun):
        def _run(self, x: Array) -> tuple[Array, ...]:
            return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)

    class ConvTranspose(OpRun):
        def _run(self, x: Array, w: Array, b: Array | None = None, **attrs: Any) -> tuple[Array, ...]:
            return (_conv_transpose(x, w, b, attrs),)

    return [Erf, Gelu, Cast, BatchNormalization, GlobalMaxPool, ConvTranspose]


def _conv_transpose(x: Array, w: Array, b: Array | None, attrs: Mapping[str, Any]) -> Array:
    """Every value of x adds its multiple of the kernel to y; then the pads are cut off."""
    axes = x.ndim - 2
    s, d = attrs.get("strides") or [1] * axes, attrs.get("dilations") or [1] * axes
    pads, extra = attrs.get("pads") or [0] * 2 * axes, attrs.get("output_padding") or [0] * axes
    group = attrs.get("group") or 1
    whole = [s[i] * (x.shape[2 + i] - 1) + d[i] * (w.shape[2 + i] - 1) + 1 + extra[i] for i in range(axes)]
    split_x = x.reshape(x.shape[0], group, -1, *x.shape[2:])
    split_w = w.reshape(group, -1, *w.shape[1:])
    y = np.zeros((x.shape[0], group, w.shape[1], *whole))
    for tap in np.ndindex(*w.shape[2:]):
        places = tuple(slice(d[i] * tap[i], d[i] * tap[i] + s[i] * x.shape[2 + i], s[i]) for i in range(axes))
        y[(..., *places)] += np.einsum("ngc...,gco->ngo...", split_x, split_w[(..., *tap)])
    cut = tuple(slice(pads[i], whole[i] - pads[i + axes]) for i in range(axes))
    y = y.reshape(x.shape[0], -1, *whole)[(..., *cut)]
    return y if b is None else y + b.reshape(1, -1, *[1] * axes)


def loss_of(spec: LossSpec, y: Array, t: Array) -> float:
    """The loss in NumPy, from its definition."""
    if spec.kind == "cross-entropy":
        p = np.exp(y - y.max(axis=1, keepdims=True))
        log_p = np.log(p / p.sum(axis=1, keepdims=True))
        share = spec.label_smoothing
        own = log_p[np.arange(len(t)), t]
        return float(-((1 - share) * own + share * log_p.mean(axis=1)).mean())
    e = y - t
    if spec.kind == "bce":
        p = 1 / (1 + np.exp(-y))
        return float(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())
    if spec.kind == "huber":
        return float(np.where(abs(e) <= spec.delta, e**2 / 2, spec.delta * (abs(e) - spec.delta / 2)).mean())
    return float((e**2 if spec.kind == "mse" else abs(e)).mean())
