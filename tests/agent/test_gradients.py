"""Each gradient rule against central differences of the loss, through a small graph that ends in cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest

from agent.engine import autodiff
from agent.engine.ir import Graph, Node, model_proto
from agent.engine.losses import LABELS, LOSS
from agent.engine.sessions import session
from agent.errors import ModelError

BATCH = 3
RNG = np.random.default_rng(7)
CLASSES = 4


@dataclass(frozen=True)
class Case:
    """Nodes between a first layer `w0` (so that input gradients are needed) and the head."""

    name: str
    nodes: tuple[Node, ...]
    constants: dict[str, np.ndarray]
    channels: int = 4
    size: tuple[int, int] = (6, 6)


def weight(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.4).astype(np.float32)


def conv(
    name: str, w: tuple[int, ...], *, x: str = "a", y: str = "b", bias: bool = True, **attrs: object
) -> tuple[Node, dict]:
    constants = {f"{name}.w": weight(*w)} | ({f"{name}.b": weight(w[0])} if bias else {})
    return Node("Conv", (x, *constants), (y,), attrs, name), constants


def conv_case(
    label: str, w: tuple[int, ...], size: tuple[int, int] = (6, 6), *, bias: bool = True, **attrs: object
) -> Case:
    node, constants = conv("conv", w, bias=bias, **attrs)
    return Case(label, (node,), constants, channels=w[0], size=size)


def scalar(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)


CASES = [
    conv_case("pointwise, batched", (6, 4, 1, 1)),
    conv_case("pointwise, one product", (96, 4, 1, 1), size=(1, 1)),
    conv_case("pointwise, one product of many channels", (40, 4, 1, 1), size=(2, 1)),
    conv_case("pointwise without bias", (6, 4, 1, 1), bias=False),
    conv_case("pointwise, stride 2", (6, 4, 1, 1), strides=[2, 2]),
    conv_case("plain 3x3", (5, 4, 3, 3), pads=[1, 1, 1, 1]),
    conv_case("plain 3x3, stride 2, asymmetric pads", (5, 4, 3, 3), pads=[0, 0, 1, 1], strides=[2, 2]),
    conv_case("plain 3x3, stride 2, rows left over", (5, 4, 3, 3), size=(6, 8), strides=[2, 2]),
    conv_case("plain 2x3 kernel, stride 1x2", (5, 4, 2, 3), size=(5, 7), pads=[1, 1, 0, 1], strides=[1, 2]),
    conv_case("depthwise 3x3", (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1]),
    conv_case("depthwise 5x5", (4, 1, 5, 5), group=4, pads=[2, 2, 2, 2]),
    conv_case("depthwise 3x3, stride 2, symmetric pads", (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1], strides=[2, 2]),
    conv_case("depthwise 3x3, stride 2, asymmetric pads", (4, 1, 3, 3), group=4, pads=[0, 0, 1, 1], strides=[2, 2]),
    conv_case("depthwise 5x5, stride 2, asymmetric pads", (4, 1, 5, 5), group=4, pads=[1, 1, 2, 2], strides=[2, 2]),
    conv_case(
        "depthwise 3x3, stride 2, odd size", (4, 1, 3, 3), size=(7, 5), group=4, pads=[1, 1, 1, 1], strides=[2, 2]
    ),
    conv_case("depthwise 3x3, stride 2, rows left over", (4, 1, 3, 3), size=(8, 6), group=4, strides=[2, 2]),
    conv_case("depthwise, more pads than kernel", (4, 1, 2, 2), group=4, pads=[2, 2, 2, 2]),
    Case("relu", (Node("Relu", ("a",), ("b",), {}, "relu"),), {}),
    Case("clip 0..6", (Node("Clip", ("a", "lo", "hi"), ("b",), {}, "clip"),), {"lo": scalar(0), "hi": scalar(0.6)}),
    Case(
        "clip -0.3..0.5",
        (Node("Clip", ("a", "lo", "hi"), ("b",), {}, "clip"),),
        {"lo": scalar(-0.3), "hi": scalar(0.5)},
    ),
    Case("clip, lower bound only", (Node("Clip", ("a", "lo"), ("b",), {}, "clip"),), {"lo": scalar(-0.2)}),
    Case("clip, upper bound only", (Node("Clip", ("a", "", "hi"), ("b",), {}, "clip"),), {"hi": scalar(0.2)}),
    Case("clip without bounds", (Node("Clip", ("a",), ("b",), {}, "clip"),), {}),
    Case("add of itself", (Node("Add", ("a", "a"), ("b",), {}, "add"),), {}),
    Case(
        "residual block",
        (
            conv("inner", (4, 4, 1, 1), x="a", y="c")[0],
            Node("Add", ("a", "c"), ("d",), {}, "add"),
            Node("Add", ("d", "a"), ("b",), {}, "add2"),
        ),
        {"inner.w": weight(4, 4, 1, 1), "inner.b": weight(4)},
    ),
    Case(
        "reshape there and back",
        (
            Node("Reshape", ("a", "flat"), ("c",), {}, "reshape"),
            Node("Reshape", ("c", "full"), ("b",), {}, "reshape2"),
        ),
        {"flat": np.asarray([BATCH, -1], np.int64), "full": np.asarray([BATCH, 4, 6, 6], np.int64)},
    ),
]


def network(case: Case, head: str = "transB") -> Graph:
    first, constants = conv("first", (case_input_channels(case), 2, 1, 1), x="x", y="a")
    tail = (
        Node("GlobalAveragePool", ("b",), ("p",), {}, "pool"),
        Node("Flatten", ("p",), ("f",), {"axis": 1}, "flatten"),
        Node("Gemm", ("f", "head.w", "head.b"), ("logits",), {"transB": 1} if head == "transB" else {}, "head"),
    )
    shape = (CLASSES, case.channels) if head == "transB" else (case.channels, CLASSES)
    constants |= case.constants | {"head.w": weight(*shape) * 4, "head.b": weight(CLASSES)}
    return Graph((first, *case.nodes, *tail), constants, "x", (2, *case.size), "logits")


def case_input_channels(case: Case) -> int:
    kernel = case.constants.get("conv.w")
    if kernel is None:
        return 4
    group = int(case.nodes[0].number("group", 1))
    return kernel.shape[1] * group


def double_precision_loss(net: Graph, batch: np.ndarray, labels: np.ndarray) -> object:
    """The loss as a function of the parameters, evaluated by the ONNX reference in float64."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - slow to import

    parameters = [name for layer in net.layers() for name in layer.parameters]
    wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in net.initializers.items()}
    model = model_proto(
        net.nodes,
        {k: v for k, v in wide.items() if k not in parameters},
        {"x": (np.float64, batch.shape)} | {p: (np.float64, wide[p].shape) for p in parameters},
        {"logits": (np.float64, (len(batch), CLASSES))},
    )
    evaluator = ReferenceEvaluator(model)

    def loss(values: dict[str, np.ndarray]) -> float:
        logits = evaluator.run(None, {"x": batch.astype(np.float64)} | values)[0]
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return float(-log_p[np.arange(len(labels)), labels].mean())

    return loss, {p: wide[p] for p in parameters}


def check(net: Graph) -> None:
    batch = RNG.standard_normal((BATCH, *net.input_shape)).astype(np.float32)
    labels = RNG.integers(0, CLASSES, BATCH)
    model, names = autodiff.gradient_graph(net, 0, BATCH)
    onnx.checker.check_model(model)
    runtime = session(model, 1)
    parameters = [name for layer in net.layers() for name in layer.parameters]
    feeds = {"x": batch, LABELS: labels} | {p: net.initializers[p] for p in parameters}
    found = dict(zip((LOSS, *parameters), runtime.run((LOSS, *names), feeds), strict=True))
    loss, values = double_precision_loss(net, batch, labels)
    assert found[LOSS] == pytest.approx(loss(values), rel=1e-5)
    for name, value in values.items():
        flat = value.reshape(-1)
        expected = np.empty_like(flat)
        for i in range(flat.size):
            kept, step = flat[i], 1e-6
            flat[i] = kept + step
            up = loss(values)
            flat[i] = kept - step
            expected[i] = (up - loss(values)) / (2 * step)
            flat[i] = kept
        scale = np.abs(expected).max() + 1e-3
        np.testing.assert_allclose(found[name].reshape(-1), expected, atol=2e-4 * scale, err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rule_agrees_with_central_differences(case: Case) -> None:
    check(network(case))


def test_gemm_head_without_transpose() -> None:
    check(network(CASES[0], head="plain"))


@pytest.mark.parametrize(
    ("node", "constants", "said"),
    [
        (Node("Softplus", ("a",), ("b",), {}, "odd"), {}, "operator Softplus has no gradient rule (odd)"),
        (
            Node("Conv", ("a", "conv.w"), ("b",), {"dilations": [2, 2]}, "wide"),
            {"conv.w": weight(4, 4, 2, 2)},
            "dilated",
        ),
        (
            Node("Conv", ("a", "conv.w"), ("b",), {"auto_pad": "SAME_UPPER"}, "auto"),
            {"conv.w": weight(4, 4, 3, 3)},
            "auto_pad",
        ),
        (Node("Conv", ("a", "conv.w"), ("b",), {"group": 2}, "grouped"), {"conv.w": weight(4, 2, 1, 1)}, "2 groups"),
        (Node("Add", ("a", "one"), ("b",), {}, "broadcast"), {"one": weight(1, 4, 6, 6)[:, :, :1, :1]}, None),
    ],
    ids=lambda value: value.name if isinstance(value, Node) else "",
)
def test_unsupported_operator_is_refused_by_name_and_node(node: Node, constants: dict, said: str | None) -> None:
    net = network(Case("refused", (node,), constants))
    if said is None:
        check(net)  # adding a constant needs no reduction: its own shape wants no gradient
        return
    with pytest.raises(ModelError) as caught:
        autodiff.step_graph(net, 0, BATCH, autodiff.OptimizerSpec())
    assert said in str(caught.value)
    assert node.name in str(caught.value)


def test_frozen_part_has_no_backward_nodes() -> None:
    net = network(CASES[0])
    whole = len(autodiff.step_graph(net, 0, BATCH, autodiff.OptimizerSpec()).model.graph.node)
    head = autodiff.step_graph(net, 2, BATCH, autodiff.OptimizerSpec())
    assert [u.parameter for u in head.updates] == ["head.w", "head.b"]
    assert head.cut.crossing == ("f",)
    assert not any(node.op_type == "Conv" for node in head.model.graph.node)
    assert len(head.model.graph.node) < whole / 2
