from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.base import UpdatePlan
from agent.engine.infer import Inference
from agent.engine.ir import Array, Graph, Node, shapes
from agent.engine.passes import fold_batch_norm, replace_head, split, unshare_parameters
from agent.errors import ModelError
from tests.simulators.small_models import mobile_block_net

NET = mobile_block_net()
LAYERS = len(NET.layers())


def norm(rng: np.random.Generator, name: str, channels: int, constants: dict[str, Array]) -> tuple[str, ...]:
    constants[f"{name}.scale"] = rng.uniform(-2, 2, channels).astype(np.float32)
    constants[f"{name}.shift"] = rng.standard_normal(channels).astype(np.float32)
    constants[f"{name}.mean"] = rng.standard_normal(channels).astype(np.float32)
    constants[f"{name}.variance"] = rng.uniform(0.01, 4, channels).astype(np.float32)
    return tuple(f"{name}.{part}" for part in ("scale", "shift", "mean", "variance"))


def normalised(seed: int = 0) -> Graph:
    """The small net with a batch normalization behind every Conv, every other one without a bias."""
    rng = np.random.default_rng(seed)
    constants = dict(NET.initializers)
    nodes: list[Node] = []
    for index, node in enumerate(NET.nodes):
        if node.op != "Conv":
            nodes.append(node)
            continue
        biased = node.inputs if index % 2 else (*node.inputs[:2], "")[: 2 + index % 4 // 2]
        nodes.append(replace(node, inputs=biased, outputs=(f"{node.name}.raw",)))
        parameters = norm(rng, node.name, constants[node.inputs[1]].shape[0], constants)
        attrs = {"epsilon": 1e-3} if index % 3 else {}
        nodes.append(
            Node("BatchNormalization", (f"{node.name}.raw", *parameters), node.outputs, attrs, f"{node.name}.bn")
        )
    return replace(NET, nodes=tuple(nodes), initializers=constants)


def samples(count: int = 3, seed: int = 1, shape: tuple[int, ...] = NET.input_shape) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def run(graph: Graph) -> np.ndarray:
    return Inference(graph, 1).run(samples(shape=graph.input_shape))


# --- batch normalization ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_folding_keeps_the_function(seed: int) -> None:
    graph = normalised(seed)
    folded = fold_batch_norm(graph)
    assert not [node for node in folded.nodes if node.op == "BatchNormalization"]
    assert [node.name for node in folded.nodes] == [node.name for node in NET.nodes]
    assert all(layer.bias for layer in folded.layers())
    assert {name for node in folded.nodes for name in node.inputs} >= set(folded.initializers)
    expected = run(graph)
    np.testing.assert_allclose(run(folded), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def one_conv(nodes: tuple[Node, ...], constants: dict[str, Array], output: str = "y") -> Graph:
    weight = {"w": np.random.default_rng(3).standard_normal((4, 2, 3, 3)).astype(np.float32)}
    return Graph(nodes, weight | constants, "x", (2, 5, 5), output)


def test_two_convs_that_share_a_weight_keep_their_own_normalizations() -> None:
    constants: dict[str, Array] = {}
    rng = np.random.default_rng(0)
    first, second = norm(rng, "a", 4, constants), norm(rng, "b", 4, constants)
    graph = one_conv(
        (
            Node("Conv", ("x", "w"), ("c1",), {}, "conv1"),
            Node("BatchNormalization", ("c1", *first), ("n1",), {}, "bn1"),
            Node("Conv", ("x", "w"), ("c2",), {}, "conv2"),
            Node("BatchNormalization", ("c2", *second), ("n2",), {}, "bn2"),
            Node("Sub", ("n1", "n2"), ("y",), {}, "sub"),
        ),
        constants,
    )
    np.testing.assert_allclose(run(fold_batch_norm(graph)), run(graph), rtol=1e-4, atol=1e-4)


def test_a_graph_without_normalization_is_left_alone() -> None:
    assert fold_batch_norm(NET).nodes == NET.nodes


@pytest.mark.parametrize(
    "case", ["no conv", "read twice", "is the output", "computed weight", "computed bias", "first"]
)
def test_a_normalization_that_cannot_be_folded_stays(case: str) -> None:
    constants: dict[str, Array] = {"one": np.float32(1).reshape(())}
    parameters = norm(np.random.default_rng(0), "bn", 4, constants)
    conv, bn = (
        Node("Conv", ("x", "w"), ("c",), {}, "conv"),
        Node("BatchNormalization", ("c", *parameters), ("y",), {}, "bn"),
    )
    own = Node("Mul", ("w", "one"), ("w2",), {}, "own")
    mean = Node("Mul", ("bn.mean", "one"), ("b2",), {}, "bias")
    first = Node("BatchNormalization", ("x", *norm(np.random.default_rng(1), "bn2", 2, constants)), ("y",), {}, "bn")
    graph = {
        "no conv": one_conv((conv, Node("Relu", ("c",), ("r",)), replace(bn, inputs=("r", *parameters))), constants),
        "read twice": one_conv((conv, replace(bn, outputs=("n",)), Node("Add", ("n", "c"), ("y",))), constants),
        "is the output": one_conv((conv, bn), constants, "c"),
        "computed weight": one_conv((own, replace(conv, inputs=("x", "w2")), bn), constants),
        "computed bias": one_conv((mean, replace(conv, inputs=("x", "w", "b2")), bn), constants),
        "first": one_conv((first,), constants),
    }[case]
    kept = fold_batch_norm(graph)
    assert kept.nodes == graph.nodes
    np.testing.assert_array_equal(run(kept), run(graph))


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("biased", [True, False])
def test_a_normalization_behind_a_gemm_is_folded(transposed: int, *, biased: bool) -> None:
    rng = np.random.default_rng(4)
    constants: dict[str, Array] = {"g": rng.standard_normal((3, 4)[:: 1 - 2 * transposed]).astype(np.float32)}
    inputs = ("x", "g", "b") if biased else ("x", "g")
    constants |= {"b": rng.standard_normal(4).astype(np.float32)} if biased else {}
    bn = Node("BatchNormalization", ("h", *norm(rng, "bn", 4, constants)), ("y",), {}, "bn")
    graph = Graph((Node("Gemm", inputs, ("h",), {"transB": transposed}, "fc"), bn), constants, "x", (3,), "y")
    folded = fold_batch_norm(graph)
    assert [node.op for node in folded.nodes] == ["Gemm"]
    np.testing.assert_allclose(run(folded), run(graph), rtol=1e-4, atol=1e-4)


def test_a_normalization_behind_a_scaled_gemm_stays() -> None:
    rng = np.random.default_rng(4)
    constants: dict[str, Array] = {"g": rng.standard_normal((3, 4)).astype(np.float32)}
    bn = Node("BatchNormalization", ("h", *norm(rng, "bn", 4, constants)), ("y",), {}, "bn")
    graph = Graph((Node("Gemm", ("x", "g"), ("h",), {"alpha": 0.5}, "fc"), bn), constants, "x", (3,), "y")
    assert fold_batch_norm(graph).nodes == graph.nodes


@pytest.mark.parametrize("group", [1, 2])
def test_a_normalization_behind_a_conv_transpose_is_folded(group: int) -> None:
    rng = np.random.default_rng(5)
    constants: dict[str, Array] = {"t": rng.standard_normal((4, 3, 2, 2)).astype(np.float32)}
    bn = Node("BatchNormalization", ("h", *norm(rng, "bn", 3 * group, constants)), ("y",), {}, "bn")
    up = Node("ConvTranspose", ("x", "t"), ("h",), {"group": group, "strides": [2, 2]}, "up")
    graph = Graph((up, bn), constants, "x", (4, 3, 3), "y")
    folded = fold_batch_norm(graph)
    assert [node.op for node in folded.nodes] == ["ConvTranspose"]
    np.testing.assert_allclose(run(folded), run(graph), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("part", "value", "says"),
    [
        ("variance", np.full(4, -1, np.float32), "negative variance"),
        ("mean", np.zeros(3, np.float32), "several sizes"),
        ("all", np.ones(3, np.float32), "does not fit the layer"),
    ],
)
def test_statistics_that_are_none_are_refused_by_name(part: str, value: Array, says: str) -> None:
    constants: dict[str, Array] = {}
    parameters = norm(np.random.default_rng(0), "bn", 4, constants)
    constants |= {name: value for name in constants if part in (name.removeprefix("bn."), "all")}
    nodes = (
        Node("Conv", ("x", "w"), ("c",), {}, "conv"),
        Node("BatchNormalization", ("c", *parameters), ("y",), {}, "bn"),
    )
    with pytest.raises(ModelError, match=says) as caught:
        fold_batch_norm(one_conv(nodes, constants))
    assert caught.value.where == "bn"


# --- head -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_a_new_head_has_its_classes_and_touches_nothing_else(classes: int) -> None:
    graph = replace_head(NET, classes, seed=5)
    assert shapes(graph, 2)["logits"] == (2, classes)
    assert run(graph).shape == (3, classes)
    weight = graph.initializers["head.w"]
    assert weight.dtype == np.float32
    assert np.abs(weight).max() <= 1 / np.sqrt(8)
    np.testing.assert_array_equal(graph.initializers["head.b"], np.zeros(classes, np.float32))
    for name, value in NET.initializers.items():
        assert name.startswith("head.") or graph.initializers[name] is value
    assert graph.nodes == NET.nodes


def test_a_new_head_follows_its_seed() -> None:
    a, b, c = (replace_head(NET, 3, seed).initializers["head.w"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_a_head_of_the_other_layout_without_bias_gets_both_right() -> None:
    head = replace(NET.nodes[-1], inputs=("features", "head.w"), attrs={})
    constants = dict(NET.initializers) | {"head.w": np.ones((8, 3), np.float32)}
    graph = replace_head(replace(NET, nodes=(*NET.nodes[:-1], head), initializers=constants), 5, 0)
    assert graph.initializers["head.w"].shape == (8, 5)
    assert graph.layers()[-1].bias == "head.w.bias"
    assert run(graph).shape == (3, 5)


def test_a_node_behind_the_head_that_nothing_reads_is_no_harm() -> None:
    graph = replace(NET, nodes=(*NET.nodes, Node("Relu", ("pooled",), ("unread",), {}, "extra")))
    fresh = replace_head(graph, 4, 0)
    assert [node.name for node in fresh.nodes] == [node.name for node in graph.nodes]
    assert run(fresh).shape == (3, 4)


def map_head(*behind: Node, kernel: int = 1, group: int = 1) -> Graph:
    """A 1 x 1 Conv that gives five maps, and what stands behind it; the output is `y`."""
    rng = np.random.default_rng(6)
    constants = {"w": rng.standard_normal((5, 10 // group, kernel, kernel)).astype(np.float32)}
    conv = Node("Conv", ("x", "w"), ("m",), {"group": group}, "maps")
    return Graph((conv, *behind), constants, "x", (10, 4, 4), "y")


POOLED = (Node("GlobalAveragePool", ("r",), ("p",)), Node("Flatten", ("p",), ("y",)))


def test_a_head_of_maps_is_replaced() -> None:
    graph = replace_head(map_head(Node("Relu", ("m",), ("r",)), *POOLED), 7, seed=5)
    assert shapes(graph, 2)["y"] == (2, 7)
    assert graph.initializers["w"].shape == (7, 10, 1, 1)
    assert graph.layers()[0].bias == "w.bias"


@pytest.mark.parametrize(
    "graph",
    [
        map_head(Node("Sigmoid", ("m",), ("r",)), *POOLED),
        map_head(Node("Relu", ("m",), ("r",)), *POOLED, kernel=3),
        map_head(Node("Relu", ("m",), ("r",)), *POOLED, group=5),
        map_head(Node("Add", ("m", "m"), ("r",)), *POOLED),
        replace(map_head(Node("Relu", ("m",), ("r",)), *POOLED), output="m2"),
    ],
)
def test_other_heads_of_maps_are_refused(graph: Graph) -> None:
    with pytest.raises(ModelError, match="does not end in a fully connected classifier"):
        replace_head(graph, 3, 0)


def test_a_model_without_such_a_head_is_refused() -> None:
    softmax = replace(NET, nodes=(*NET.nodes, Node("Softmax", ("logits",), ("p",))), output="p")
    features = replace(NET, nodes=NET.nodes[:-1], output="features")
    empty = Graph((Node("Relu", ("x",), ("y",)),), {}, "x", (3,), "y")
    for graph in (softmax, features, empty):
        with pytest.raises(ModelError, match="does not end in a fully connected classifier"):
            replace_head(graph, 3, 0)


# --- split ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", range(LAYERS))
def test_a_split_is_the_graph_in_two(frozen: int) -> None:
    cut = split(NET, UpdatePlan(frozen))
    assert Counter(node.name for node in (*cut.prefix, *cut.suffix)) == Counter(node.name for node in NET.nodes)
    order = {node.name: index for index, node in enumerate(NET.nodes)}
    for part in (cut.prefix, cut.suffix):
        assert [order[node.name] for node in part] == sorted(order[node.name] for node in part)
    made_late = {name for node in cut.suffix for name in node.outputs}
    assert not [node for node in cut.prefix if made_late & set(node.inputs)]
    learning = {name for layer in NET.layers()[frozen:] for name in layer.parameters}
    assert set(cut.learning) == learning
    assert not [node for node in cut.prefix if learning & set(node.inputs)]
    frozen_nodes = [layer.node for layer in NET.layers()[:frozen]]
    assert [node for node in cut.prefix if node in frozen_nodes] == frozen_nodes


@pytest.mark.parametrize("frozen", range(LAYERS))
def test_what_crosses_is_all_that_the_suffix_needs(frozen: int) -> None:
    """Run both halves apart and get what the whole gives."""
    cut = split(NET, UpdatePlan(frozen))
    values = {"image": samples()}
    for name in cut.crossing:
        if name != "image":
            values[name] = Inference(replace(NET, nodes=cut.prefix), 1, name).run(values["image"])
    made = {name for node in cut.suffix for name in node.outputs}
    read = {name for node in cut.suffix for name in node.inputs} - set(NET.initializers) - made
    assert read == set(cut.crossing)
    assert len(set(cut.crossing)) == len(cut.crossing)
    if len(cut.crossing) == 1:
        name = cut.crossing[0]
        half = replace(NET, nodes=cut.suffix, input=name, input_shape=values[name].shape[1:])
        np.testing.assert_allclose(Inference(half, 1).run(values[name]), run(NET), rtol=1e-5, atol=1e-5)


def test_a_node_that_nobody_reads_is_not_computed() -> None:
    unread = Node("Relu", ("stem.r",), ("unread",), {}, "extra")
    cut = split(replace(NET, nodes=(*NET.nodes[:2], unread, *NET.nodes[2:])), UpdatePlan(4))
    assert "extra" not in {node.name for node in (*cut.prefix, *cut.suffix)}


@settings(derandomize=True, deadline=None)
@given(st.integers(-20, 40).filter(lambda k: not 0 <= k < LAYERS))
def test_a_boundary_outside_the_layers_is_refused(frozen: int) -> None:
    with pytest.raises(ModelError, match=f"cannot freeze {frozen} of 8 layers"):
        split(NET, UpdatePlan(frozen))


def test_layers_that_share_a_parameter_get_their_own() -> None:
    net = mobile_block_net()
    nodes = tuple(
        replace(node, inputs=(*node.inputs[:2], "expand.b")) if node.name == "expand2" else node for node in net.nodes
    )
    apart = unshare_parameters(replace(net, nodes=nodes))
    owners: dict[str, str] = {}
    for layer in apart.layers():
        for name in layer.parameters:
            assert owners.setdefault(name, layer.node.name) == layer.node.name
    by_name = {layer.node.name: layer for layer in apart.layers()}
    bias = by_name["expand2"].bias
    assert bias not in (None, "expand.b")
    np.testing.assert_array_equal(apart.initializers[bias], net.initializers["expand.b"])
