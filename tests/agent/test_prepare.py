"""Passes between an exporter's graph and training: each on graphs of a few nodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine import autodiff
from agent.engine import fold_constants as folding
from agent.engine.base import LossSpec, UpdatePlan
from agent.engine.fold_constants import fold_constants
from agent.engine.infer import Inference
from agent.engine.ir import Array, Graph, Node, parse, serialize
from agent.engine.prepare import (
    drop_identities,
    explicit_pads,
    gemm_from_matmul,
    logits_output,
    prepare,
    slices_from_split,
)
from agent.errors import ModelError
from tests.simulators.small_architectures import ARCHITECTURES

steady = settings(derandomize=True, deadline=None, max_examples=40)
RNG = np.random.default_rng(21)


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


def draw(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def graph_of(*nodes: Node, sample: tuple[int, ...], opset: int = 17, **constants: Array) -> Graph:
    return Graph(nodes, constants, "x", sample, "y", opset=opset)


def same_function(before: Graph, after: Graph, batches: tuple[int, ...] = (1, 2, 5)) -> None:
    for count in batches:
        x = draw(count, *before.input_shape)
        np.testing.assert_allclose(Inference(after, 1).run(x), Inference(before, 1).run(x), rtol=1e-5, atol=1e-6)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


# --- constants --------------------------------------------------------------------------------------------------------


def test_a_shape_that_is_computed_becomes_a_reshape_target_for_any_batch() -> None:
    graph = graph_of(
        Node("Shape", ("x",), ("s",)),
        Node("Gather", ("s", "zero"), ("n",)),
        Node("Unsqueeze", ("n", "first"), ("n1",)),
        Node("Concat", ("n1", "rest"), ("target",), {"axis": 0}),
        Node("Reshape", ("x", "target"), ("y",)),
        sample=(4, 6), zero=np.asarray(0, np.int64), first=ints(0), rest=ints(-1),
    )  # fmt: skip
    folded = fold_constants(graph)
    assert ops(folded) == ["Reshape"]
    assert folded.initializers["y.shape"].tolist() == [0, -1]
    same_function(graph, folded)


def test_the_batch_may_move_to_another_axis() -> None:
    """[N, T, F] -> [N T, F]: the product of batch and steps is worked out at run time."""
    graph = graph_of(
        Node("Shape", ("x",), ("s",)),
        Node("Gather", ("s", "both"), ("nt",)),
        Node("ReduceProd", ("nt",), ("rows",), {"keepdims": 1}),
        Node("Concat", ("rows", "f"), ("target",), {"axis": 0}),
        Node("Reshape", ("x", "target"), ("y",)),
        sample=(4, 6), both=ints(0, 1), f=ints(6),
    )  # fmt: skip
    folded = fold_constants(graph)
    assert ops(folded) == ["Reshape"]
    assert folded.initializers["y.shape"].tolist() == [-1, 6]
    same_function(graph, folded)


def test_parts_that_do_not_depend_on_the_batch_become_constants() -> None:
    graph = graph_of(
        Node("Shape", ("x",), ("s",), {"start": 1}),
        Node("ReduceProd", ("s",), ("count",), {"keepdims": 0}),
        Node("Cast", ("count",), ("f",), {"to": 1}),
        Node("Div", ("x", "f"), ("y",)),
        sample=(4, 6),
    )  # fmt: skip
    folded = fold_constants(graph)
    assert ops(folded) == ["Div"]
    assert float(folded.initializers["f"]) == 24
    same_function(graph, folded)


def test_weights_that_are_computed_become_weights() -> None:
    graph = graph_of(
        Node("Transpose", ("w",), ("wt",), {"perm": [1, 0]}),
        Node("Mul", ("wt", "scale"), ("scaled",)),
        Node("MatMul", ("x", "scaled"), ("y",)),
        sample=(4,), w=draw(3, 4), scale=draw(3),
    )  # fmt: skip
    folded = fold_constants(graph)
    assert [layer.weight for layer in folded.layers()] == ["scaled"]
    assert set(folded.initializers) == {"scaled"}
    same_function(graph, folded)


def test_what_only_the_batch_decides_stays_computed() -> None:
    graph = graph_of(
        Node("Shape", ("x",), ("s",)),
        Node("Expand", ("token", "s"), ("e",)),
        Node("Add", ("x", "e"), ("y",)),
        sample=(4, 6), token=draw(1, 4, 6),
    )  # fmt: skip
    assert ops(fold_constants(graph)) == ["Shape", "Expand", "Add"]


def test_a_constant_that_would_grow_beyond_the_bound_is_not_made() -> None:
    size = folding.MAX_ELEMENTS // 4 + 1
    graph = graph_of(
        Node("ConstantOfShape", ("size",), ("big",)),
        Node("ReduceSum", ("big",), ("sum",), {"keepdims": 0}),
        Node("Add", ("x", "sum"), ("y",)),
        sample=(4,), size=ints(4, size),
    )  # fmt: skip
    assert ops(fold_constants(graph)) == ops(graph)
    small = replace(graph, initializers={"size": ints(4, 3)})
    assert ops(fold_constants(small)) == ["Add"]


def test_random_numbers_are_never_folded() -> None:
    graph = graph_of(Node("RandomUniformLike", ("w",), ("r",)), Node("Add", ("x", "r"), ("y",)), sample=(4,), w=draw(4))
    assert ops(fold_constants(graph)) == ["RandomUniformLike", "Add"]


def test_an_output_that_is_constant_stays_a_node() -> None:
    graph = graph_of(Node("Neg", ("c",), ("y",)), sample=(4,), c=draw(1, 2))
    assert ops(fold_constants(graph)) == ["Neg"]


def test_a_graph_without_constants_to_fold_is_left_alone() -> None:
    graph = graph_of(Node("Relu", ("x",), ("y",)), sample=(4,))
    assert fold_constants(graph) is graph


# --- the other passes -------------------------------------------------------------------------------------------------


def test_a_classifier_that_ends_in_softmax_gives_its_logits() -> None:
    graph = graph_of(Node("Gemm", ("x", "w"), ("l",)), Node("Softmax", ("l",), ("y",)), sample=(4,), w=draw(4, 3))
    logits = logits_output(graph)
    assert (ops(logits), logits.output) == (["Gemm"], "l")
    assert logits_output(logits) is logits
    x = draw(3, 4)
    weights = np.exp(Inference(logits, 1).run(x))
    np.testing.assert_allclose(Inference(graph, 1).run(x), weights / weights.sum(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize(("sample", "axis"), [((4, 5), -1), ((4,), 0)])
def test_another_softmax_stays(sample: tuple[int, ...], axis: int) -> None:
    graph = graph_of(Node("Softmax", ("x",), ("y",), {"axis": axis}), sample=sample)
    assert logits_output(graph) is graph


def test_dropout_and_identity_go() -> None:
    graph = graph_of(
        Node("Dropout", ("x", "ratio"), ("d", "mask")),
        Node("Identity", ("d",), ("i",)),
        Node("Add", ("i", "d"), ("y",)),
        sample=(4,), ratio=np.asarray(0.5, np.float32),
    )  # fmt: skip
    dropped = drop_identities(graph)
    assert dropped.nodes == (Node("Add", ("x", "x"), ("y",)),)
    assert dropped.initializers == {}
    same_function(graph, dropped)


def test_a_dropout_that_makes_the_output_or_whose_mask_is_read_stays() -> None:
    last = graph_of(Node("Relu", ("x",), ("r",)), Node("Dropout", ("r",), ("y",)), sample=(4,))
    assert ops(drop_identities(last)) == ["Relu", "Dropout"]
    masked = graph_of(Node("Dropout", ("x",), ("d", "m")), Node("Where", ("m", "d", "x"), ("y",)), sample=(4,))
    assert ops(drop_identities(masked)) == ["Dropout", "Where"]


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("sizes", [None, (1, 3, 2)])
def test_a_split_becomes_slices(sizes: tuple[int, ...] | None, opset: int) -> None:
    attrs = {"axis": -1} | ({"num_outputs": 3} if opset >= 18 and sizes is None else {})
    inputs = ("x",) if sizes is None else ("x", "sizes")
    given = {} if sizes is None else {"sizes": ints(*sizes)}
    graph = graph_of(
        Node("Split", inputs, ("a", "b", "c"), attrs, "split"),
        Node("Concat", ("c", "a"), ("y",), {"axis": -1}),
        sample=(4, 6), opset=opset, **given,
    )  # fmt: skip
    sliced = slices_from_split(graph)
    assert ops(sliced) == ["Slice", "Slice", "Concat"]  # nothing reads b
    same_function(graph, sliced)


@steady
@given(
    kind=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]),
    op=st.sampled_from(["Conv", "MaxPool", "AveragePool"]),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)  # (a stride beyond the kernel makes the runtime's own pads negative, which its pools refuse)
def test_explicit_pads_compute_the_same(
    kind: str, op: str, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int]
) -> None:
    steps = [min(s, k) for s, k in zip(stride, kernel, strict=True)]
    attrs = {"auto_pad": kind, "strides": steps, "kernel_shape": list(kernel)}
    weight = {"w": draw(2, 2, *kernel)} if op == "Conv" else {}
    graph = graph_of(Node(op, ("x", *weight), ("y",), attrs), sample=(2, *size), **weight)
    explicit = explicit_pads(graph)
    assert "auto_pad" not in explicit.nodes[0].attrs
    same_function(graph, explicit, (2,))


@pytest.mark.parametrize("bias", [None, (5,), (1, 5)])
def test_a_dense_layer_of_matmul_and_add_becomes_a_gemm(bias: tuple[int, ...] | None) -> None:
    nodes = [Node("MatMul", ("x", "w"), ("m" if bias else "y",), {}, "dense")]
    constants = {"w": draw(4, 5)}
    if bias:
        nodes.append(Node("Add", ("b", "m"), ("y",), {}, "shift"))
        constants["b"] = draw(*bias)
    graph = graph_of(*nodes, sample=(4,), **constants)
    fused = gemm_from_matmul(graph)
    assert ops(fused) == ["Gemm"]
    assert fused.nodes[0].name == "dense"
    assert len(fused.layers()[0].parameters) == len(constants)
    same_function(graph, fused)


@pytest.mark.parametrize("case", ["sequence", "read twice", "scalar", "is the output", "weight first"])
def test_other_products_stay(case: str) -> None:
    matmul, add = Node("MatMul", ("x", "w"), ("m",), {}, "dense"), Node("Add", ("m", "b"), ("y",))
    graph, kept = {
        "sequence": (graph_of(matmul, add, sample=(3, 4), w=draw(4, 5), b=draw(5)), ["MatMul", "Add"]),
        "read twice": (
            graph_of(matmul, replace(add, outputs=("a",)), Node("Mul", ("a", "m"), ("y",)), sample=(4,),
                     w=draw(4, 5), b=draw(5)),
            ["Gemm", "Add", "Mul"],
        ),
        "scalar": (graph_of(matmul, add, sample=(4,), w=draw(4, 5), b=draw(1)), ["Gemm", "Add"]),
        "is the output": (replace(graph_of(matmul, add, sample=(4,), w=draw(4, 5), b=draw(5)), output="m"), ["Gemm"]),
        "weight first": (
            graph_of(Node("MatMul", ("w", "x"), ("m",)), add, sample=(4, 5), w=draw(3, 4), b=draw(5)),
            ["MatMul", "Add"],
        ),
    }[case]  # fmt: skip
    fused = gemm_from_matmul(graph)
    assert ops(fused) == kept
    same_function(graph, fused)


def test_a_prepared_graph_is_prepared_already() -> None:
    graph = graph_of(
        Node("Dropout", ("x",), ("d",)),
        Node("Conv", ("d", "w"), ("c",), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        Node("GlobalAveragePool", ("c",), ("p",)),
        Node("Flatten", ("p",), ("f",)),
        Node("MatMul", ("f", "v"), ("m",)),
        Node("Add", ("m", "b"), ("y",)),
        sample=(3, 7, 6), w=draw(4, 3, 3, 3), v=draw(4, 5), b=draw(5),
    )  # fmt: skip
    once = prepare(graph)
    twice = prepare(once)
    assert twice.nodes == once.nodes
    assert ops(once) == ["Conv", "GlobalAveragePool", "Flatten", "Gemm"]
    same_function(graph, once)
    assert ops(prepare(parse(serialize(once)))) == ops(once)


def test_a_graph_that_does_not_fit_its_sample_is_refused() -> None:
    graph = graph_of(Node("MatMul", ("x", "w"), ("y",)), sample=(5,), w=draw(4, 3))
    with pytest.raises(ModelError, match="does not accept samples"):
        prepare(graph)


@pytest.mark.parametrize(
    "node",
    [
        Node("PRelu", ("x",), ("y",), {}, "odd"),
        Node("Relu", ("x", "x"), ("y",), {}, "odd"),
        Node("Relu", ("x",), ("y",), {"slope": 1}, "odd"),
        Node("Nowhere", ("x",), ("y",), {}, "odd"),
        Node("Concat", ("x", "x"), ("y",), {}, "odd"),
    ],
)
def test_nodes_that_are_not_as_their_definition_says_are_refused_by_name(node: Node) -> None:
    with pytest.raises(ModelError, match=r"not a valid ONNX graph \(.*(odd|Nowhere)"):
        prepare(graph_of(node, sample=(4,)))


def test_constants_that_cannot_be_computed_are_refused_by_name() -> None:
    graph = graph_of(
        Node("Gather", ("c", "far"), ("g",), {}, "pick"), Node("Add", ("x", "g"), ("y",)),
        sample=(4,), c=draw(4), far=ints(9),
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"Gather of constants cannot be computed \(pick\)"):
        fold_constants(graph)


DATA = {name: serialize(ARCHITECTURES[name]()) for name in ("Transformer", "DS-CNN", "SqueezeNet")}


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.sampled_from(sorted(DATA)),
    st.lists(st.tuples(st.integers(0, 99_999), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_a_damaged_file_is_prepared_or_refused(name: str, damages: list[tuple[int, int]]) -> None:
    raw = bytearray(DATA[name])
    for place, value in damages:
        raw[place % len(raw)] = value
    try:
        graph = prepare(parse(bytes(raw)))
        autodiff.step_graph(graph, UpdatePlan(0), 2, 2, LossSpec())
    except ModelError as error:
        assert error.what  # noqa: PT017 - both ends are allowed
        return
    assert graph.layers()
