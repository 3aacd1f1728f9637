"""The channel-major graphs, with and without the kernel library, against the plain gradient rules on whole networks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from agent.engine.autodiff import GRADIENT, SUM, forward_graph, step_graph
from agent.engine.base import LossSpec, UpdatePlan
from agent.engine.infer import Inference
from agent.engine.ir import Graph, shapes
from agent.engine.layout import DEPTHWISE, POINTWISE, channel_major
from agent.engine.losses import LABELS, LOSS
from agent.engine.native import library
from agent.engine.passes import fold_batch_norm, split
from agent.engine.sessions import session
from tests.simulators import small_architectures as nets
from tests.simulators.gradient_check import Check, gradients
from tests.simulators.small_models import mobile_block_net

BATCH = 4
ARCHITECTURES = [
    mobile_block_net, nets.mobilenet_v1, nets.mobilenet_v2, nets.mobilenet_v3, nets.efficientnet_b0, nets.proxyless,
    nets.squeezenet, nets.resnet, nets.preactivation_resnet, nets.ds_cnn,
]  # fmt: skip
each_net = pytest.mark.parametrize("make", ARCHITECTURES, ids=lambda make: make.__name__)
each_way = pytest.mark.parametrize(
    "native",
    [
        pytest.param(False, id="standard"),
        pytest.param(True, id="native", marks=pytest.mark.skipif(library() is None, reason="needs the library")),
    ],
)


def data(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    samples = rng.standard_normal((BATCH, *graph.input_shape)).astype(np.float32)
    classes = shapes(graph, BATCH)[graph.output][-1]
    return samples, rng.integers(0, classes, BATCH)


def plain(graph: Graph, samples: np.ndarray, labels: np.ndarray, learning: tuple[str, ...]) -> tuple[dict, float]:
    """Loss and gradients by the rules of the standard operators alone."""
    values = dict(graph.initializers) | {graph.input: samples}
    case = Check(graph.nodes, values, learning, LossSpec(), graph.opset, graph.output)
    return gradients(case, shapes(graph, BATCH), labels)


def run_step(graph: Graph, plan: UpdatePlan, native: bool, micro: int) -> tuple[dict[str, np.ndarray], float]:
    """Loss and gradients of a batch in micro-batches, from what crosses the boundary."""
    samples, labels = data(graph)
    made = step_graph(graph, plan, micro, BATCH, LossSpec(), accumulate=True, native=native)
    running = session(made.model, 2)
    sums = {name: np.zeros(shape, np.float32) for name, shape in made.gradient_shapes.items()}
    loss = 0.0
    for start in range(0, BATCH, micro):
        part = slice(start, start + micro)
        feeds = {name: graph.initializers[name] for name in made.cut.learning}
        feeds |= {SUM + name: value for name, value in sums.items()}
        feeds |= {LABELS: labels[part]}
        feeds |= {name: crossing(graph, name, samples[part]) for name in made.cut.crossing}
        value, *found = running.run([LOSS, *(GRADIENT + name for name in sums)], feeds)
        loss += float(value)
        sums = dict(zip(sums, found, strict=True))
    return {name: value.reshape(graph.initializers[name].shape) for name, value in sums.items()}, loss


def crossing(graph: Graph, name: str, samples: np.ndarray) -> np.ndarray:
    if name == graph.input:
        return samples
    return Inference(Graph(graph.nodes, graph.initializers, graph.input, graph.input_shape, name), 1).run(samples)


def assert_alike(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, value in found.items():
        scale = np.abs(expected[name]).max() + 1e-6
        np.testing.assert_allclose(value / scale, expected[name] / scale, atol=2e-3, err_msg=name)


@each_net
@each_way
@pytest.mark.parametrize("micro", [BATCH, 2], ids=["whole", "halves"])
def test_gradients_are_those_of_the_plain_rules(make: Callable[[], Graph], native: bool, micro: int) -> None:
    graph = make()
    learning = split(graph, UpdatePlan(0)).learning
    expected, loss = plain(graph, *data(graph), learning)
    found, value = run_step(graph, UpdatePlan(0), native, micro)
    assert value == pytest.approx(loss, rel=1e-4)
    assert found.keys() == set(learning)
    assert_alike(found, expected)


@each_net
@each_way
def test_gradients_past_any_boundary_are_the_same(make: Callable[[], Graph], native: bool) -> None:
    graph = make()
    layers = len(graph.layers())
    expected, _ = plain(graph, *data(graph), split(graph, UpdatePlan(0)).learning)
    for frozen in sorted({1, layers // 2, layers - 1}):
        found, _ = run_step(graph, UpdatePlan(frozen), native, BATCH)
        assert_alike(found, expected)


@each_way
@pytest.mark.parametrize("kind", ["biases", "one weight in the middle"])
def test_a_sparse_plan_gives_the_gradients_of_what_learns(native: bool, kind: str) -> None:
    graph = nets.mobilenet_v2()
    layers = graph.layers()
    names = {layer.bias for layer in layers if layer.bias} if kind == "biases" else {layers[2].weight}
    expected, _ = plain(graph, *data(graph), split(graph, UpdatePlan(0)).learning)
    found, _ = run_step(graph, UpdatePlan(0, frozenset(names)), native, BATCH)
    assert found.keys() == names
    assert_alike(found, expected)


@each_net
@each_way
def test_the_forward_graph_is_the_model(make: Callable[[], Graph], native: bool) -> None:
    graph = make()
    samples, _ = data(graph)
    cut = split(graph, UpdatePlan(len(graph.layers()) // 2))
    feeds = {name: crossing(graph, name, samples) for name in cut.crossing}
    feeds |= {name: graph.initializers[name] for name in cut.learning}
    (found,) = session(forward_graph(graph, cut, BATCH, native=native), 2).run(None, feeds)
    np.testing.assert_allclose(found, Inference(graph, 1).run(samples), rtol=1e-4, atol=1e-5)


def test_clips_join_the_convolution_before_them() -> None:
    graph = fold_batch_norm(nets.mobilenet_v2())
    known = shapes(graph, BATCH)
    nodes = channel_major(graph.nodes, known, graph.initializers, graph.output)
    ops = [node.op for node in nodes]
    assert {POINTWISE, DEPTHWISE} <= set(ops)
    assert ops.count("Clip") + ops.count("Relu") < sum(node.op in ("Clip", "Relu") for node in graph.nodes)
    assert len(known) > len(shapes(graph, BATCH))  # shapes of what was made are known


def test_a_frozen_part_has_no_gradient_nodes() -> None:
    graph = mobile_block_net()
    sizes = [
        len(step_graph(graph, UpdatePlan(frozen), BATCH, BATCH, LossSpec()).model.graph.node)
        for frozen in range(len(graph.layers()))
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 3
