"""The table of gradient rules, and whole networks against central differences."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from agent.engine import autodiff
from agent.engine.base import LossSpec, UpdatePlan
from agent.engine.gradients import NO_GRADIENT, RULES, rule_for
from agent.engine.infer import Inference
from agent.engine.ir import Graph, Node, parse, serialize, shapes
from agent.engine.losses import LOSS
from agent.engine.prepare import prepare
from agent.engine.sessions import session
from agent.errors import ModelError
from tests.simulators.gradient_check import Check, check, gradients
from tests.simulators.small_architectures import ARCHITECTURES, REBUILDS

BATCH = 3


def parameters(graph: Graph) -> list[str]:
    return [name for layer in graph.layers() for name in layer.parameters]


def loss_for(name: str) -> LossSpec:
    return LossSpec("huber") if name in REBUILDS else LossSpec(label_smoothing=0.1)


def samples(graph: Graph, count: int = BATCH) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, *graph.input_shape)).astype(np.float32)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_of_a_network_has_the_right_gradient(name: str) -> None:
    graph = prepare(ARCHITECTURES[name]())
    learning = parameters(graph)
    assert len(learning) == len(set(learning)) > 0
    values = {**graph.initializers, "x": samples(graph)}
    check(Check(graph.nodes, values, learning, loss_for(name), graph.opset, graph.output))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_compiled_step_gives_the_gradients_of_the_rules(name: str) -> None:
    """The engine lays convolutions out in its own way: that may change no gradient."""
    graph, loss = prepare(ARCHITECTURES[name]()), loss_for(name)
    learning = parameters(graph)
    x, known = samples(graph), shapes(graph, BATCH)
    target = np.arange(BATCH) if name not in REBUILDS else np.zeros(known[graph.output], np.float32)
    case = Check(graph.nodes, {**graph.initializers, "x": x}, learning, loss, graph.opset, graph.output)
    expected, value = gradients(case, known, target)
    step = autodiff.step_graph(graph, UpdatePlan(0), BATCH, BATCH, loss)
    feeds = {step.targets: target} | {name: graph.initializers[name] for name in learning}
    feeds |= {name: x if name == "x" else Inference(graph, 1, name).run(x) for name in step.cut.crossing}
    outputs = [LOSS, *(f"{autodiff.GRADIENT}{name}" for name in learning)]
    found, *made = session(step.model, 1).run(outputs, feeds)
    assert found == pytest.approx(value, rel=1e-5)
    for parameter, gradient in zip(learning, made, strict=True):
        wanted = expected[parameter]
        scale = np.abs(wanted).max() + 1e-6
        np.testing.assert_allclose(gradient.reshape(wanted.shape), wanted, atol=1e-4 * scale, err_msg=parameter)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prepared_network_computes_the_same_for_any_batch(name: str) -> None:
    graph = ARCHITECTURES[name]()
    prepared = prepare(parse(serialize(graph)))
    for count in (1, 4):
        expected = Inference(graph, 1).run(samples(graph, count))
        np.testing.assert_allclose(Inference(prepared, 1).run(samples(graph, count)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_step_compiles_at_every_freeze_depth(name: str) -> None:
    graph = prepare(ARCHITECTURES[name]())
    sizes = []
    for frozen in range(len(graph.layers())):
        step = autodiff.step_graph(graph, UpdatePlan(frozen), 2, 4, loss_for(name))
        sizes.append(len(step.model.graph.node))
        assert step.cut.learning == tuple(p for layer in graph.layers()[frozen:] for p in layer.parameters)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0]


def test_every_parameter_is_of_one_layer_and_what_is_no_parameter_of_none() -> None:
    graph = prepare(ARCHITECTURES["Transformer"]())
    assert [layer.node.op for layer in graph.layers()] == [
        "MatMul", "LayerNormalization", "MatMul", "MatMul", "LayerNormalization", "MatMul", "MatMul", "Gemm",
    ]  # fmt: skip
    assert all(layer.bias for layer in graph.layers())
    assert not {node.op for node in graph.nodes} & {"Shape", "Split", "Unsqueeze", "Concat", "Gather"}


def test_normalizations_that_cannot_be_folded_are_layers() -> None:
    ops = [layer.node.op for layer in prepare(ARCHITECTURES["pre-activation ResNet"]()).layers()]
    assert ops.count("BatchNormalization") == 3
    assert "BatchNormalization" not in [layer.node.op for layer in prepare(ARCHITECTURES["ResNet"]()).layers()]


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_rule_is_for_an_operator_of_the_standard() -> None:
    for op in (*RULES, *NO_GRADIENT):
        assert onnx.defs.has(op), op
    assert not NO_GRADIENT & RULES.keys()


def test_an_operator_without_rule_is_refused_by_name_and_node() -> None:
    with pytest.raises(ModelError) as caught:
        rule_for(Node("LSTM", ("a",), ("b",), {}, "memory"))
    assert "operator LSTM has no gradient rule (memory). Freeze past this node" in str(caught.value)


def test_such_an_operator_is_fine_in_the_frozen_part() -> None:
    graph = ARCHITECTURES["dense autoencoder"]()
    odd = (*graph.nodes[:1], Node("Selu", (graph.nodes[0].outputs[0],), ("s",), {}, "odd"))
    first, *rest = graph.nodes[1:]
    nodes = (*odd, Node(first.op, ("s", *first.inputs[1:]), first.outputs, first.attrs, first.name), *rest)
    odd_graph = prepare(Graph(nodes, graph.initializers, "x", graph.input_shape, graph.output))
    loss = LossSpec("mse")
    autodiff.step_graph(odd_graph, UpdatePlan(1), 2, 2, loss)
    with pytest.raises(ModelError, match=r"operator Selu .*\(odd\)"):
        autodiff.step_graph(odd_graph, UpdatePlan(0), 2, 2, loss)


def test_frozen_part_has_no_backward_nodes() -> None:
    graph = prepare(ARCHITECTURES["ResNet"]())
    last = len(graph.layers()) - 1
    whole = autodiff.step_graph(graph, UpdatePlan(0), BATCH, BATCH, LossSpec()).model.graph.node
    head = autodiff.step_graph(graph, UpdatePlan(last), BATCH, BATCH, LossSpec()).model.graph.node
    assert not any(node.op_type == "Conv" for node in head)
    assert len(head) < len(whole) / 3
