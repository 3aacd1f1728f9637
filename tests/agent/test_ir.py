from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from agent.engine import ir
from agent.engine.infer import Inference
from agent.engine.ir import Graph, Node, parse, serialize, shapes
from agent.errors import ModelError
from tests.simulators.small_models import colour_images, mobile_block_net

steady = settings(derandomize=True, deadline=None, max_examples=150)
NET = mobile_block_net()
DATA = serialize(NET)


def tiny(**more: Any) -> onnx.ModelProto:
    """y = Gemm(x, w, b), as another exporter would write it."""
    given: dict[str, Any] = {
        "nodes": [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="dense")],
        "inputs": [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        "outputs": [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        "weights": [("w", np.ones((4, 3), np.float32)), ("b", np.zeros(3, np.float32))],
        "opsets": [("", 17)],
    } | more
    tensors = [numpy_helper.from_array(value, name) for name, value in given["weights"]]
    graph = helper.make_graph(given["nodes"], "g", given["inputs"], given["outputs"], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*item) for item in given["opsets"]])


def refused(model: onnx.ModelProto | bytes, says: str) -> ModelError:
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(ModelError, match=says) as caught:
        parse(data)
    return caught.value


def same(a: Graph, b: Graph) -> None:
    assert replace(a, initializers={}) == replace(b, initializers={})
    assert set(a.initializers) == set(b.initializers)
    for name, value in a.initializers.items():
        assert value.dtype == b.initializers[name].dtype
        np.testing.assert_array_equal(value, b.initializers[name])


def test_what_is_written_is_read_back_and_written_the_same() -> None:
    noted = replace(NET, metadata={"origin": "test", "ünïcode": "☀"})
    data = serialize(noted)
    same(parse(data), noted)
    assert serialize(parse(data)) == data


def test_a_file_of_another_exporter_reads_as_the_graph_it_holds() -> None:
    graph = parse(tiny().SerializeToString())
    assert graph.nodes == (Node("Gemm", ("x", "w", "b"), ("y",), {}, "dense"),)
    assert (graph.input, graph.input_shape, graph.output) == ("x", (4,), "y")
    layer = graph.layers()[0]
    assert (layer.index, layer.weight, layer.bias, layer.parameters) == (0, "w", "b", ("w", "b"))


def test_every_constant_becomes_an_initializer() -> None:
    nodes = [
        helper.make_node("Constant", [], ["t"], value=numpy_helper.from_array(np.ones((4, 3), np.float32))),
        helper.make_node("Identity", ["t"], ["w"]),
        helper.make_node("Constant", [], ["axes"], value_ints=[1]),
        helper.make_node("Constant", [], ["axis"], value_int=1),
        helper.make_node("Constant", [], ["low"], value_float=0.5),
        helper.make_node("Constant", [], ["lows"], value_floats=[0.5, 1.5]),
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Mystery", ["m", "axes", "axis", "low", "lows"], ["y"], s="text", fs=[1.0], i=3),
    ]
    graph = parse(tiny(nodes=nodes, weights=[]).SerializeToString())
    assert [node.op for node in graph.nodes] == ["MatMul", "Mystery"]
    assert {k: (v.dtype.name, v.tolist()) for k, v in graph.initializers.items() if k != "w"} == {
        "axes": ("int64", [1]),
        "axis": ("int64", 1),
        "low": ("float32", 0.5),
        "lows": ("float32", [0.5, 1.5]),
    }
    node = graph.nodes[1]
    assert (node.name, node.attrs["s"], node.number("i", 0), node.number("gone", 7)) == ("Mystery_1", "text", 3.0, 7.0)
    assert node.ints("gone", (1, 2)) == (1, 2)


def test_unused_constants_are_left_out_and_absent_inputs_stay() -> None:
    nodes = [helper.make_node("Clip", ["x", "", "six"], ["y"])]
    weights = [("six", np.float32(6).reshape(())), ("unused", np.ones(9, np.float32))]
    graph = parse(tiny(nodes=nodes, weights=weights).SerializeToString())
    assert set(graph.initializers) == {"six"}
    assert graph.nodes[0].inputs == ("x", "", "six")


def test_an_initializer_may_be_listed_among_the_inputs_as_old_exporters_do() -> None:
    weights = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3])
    assert parse(tiny(inputs=[*tiny().graph.input, weights]).SerializeToString()).input == "x"


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"not a model", DATA[: len(DATA) // 2], b"\x08" + DATA])
def test_what_is_not_onnx_is_refused(data: bytes) -> None:
    refused(data, "not an ONNX model|no operator set")


def test_a_model_above_the_bound_is_refused_unread() -> None:
    refused(bytes(ir.MAX_MODEL_BYTES + 1), f"at most {ir.MAX_MODEL_BYTES}")


@pytest.mark.parametrize("version", range(ir.OLDEST_OPSET, ir.NEWEST_OPSET + 1))
def test_every_opset_of_the_range_is_read(version: int) -> None:
    for domain in ("", "ai.onnx"):
        assert parse(tiny(opsets=[(domain, version)]).SerializeToString()).layers()


@pytest.mark.parametrize("version", [0, 1, 12, 22, 2**31])
def test_other_opsets_are_refused(version: int) -> None:
    refused(tiny(opsets=[("", version)]), f"opset {version} is outside 13..21")


def test_other_domains_are_refused() -> None:
    refused(tiny(opsets=[("", 17), ("com.microsoft", 1)]), "operator domain 'com.microsoft' is not allowed")
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="dense", domain="com.evil")]
    assert refused(tiny(nodes=nodes), "operator domain 'com.evil'").where == "dense"
    model = tiny()
    del model.opset_import[:]
    refused(model, "names no operator set")


@pytest.mark.parametrize(
    ("dtype", "says"),
    [
        (np.float16, "float16 weights"),
        (np.float64, "double weights"),
        (np.uint16, "uint16 weights"),
        (np.complex64, "complex64 weights"),
        (object, "string weights"),
    ],
)
def test_other_types_of_weights_are_refused(dtype: Any, says: str) -> None:
    value = np.asarray(["a"] * 3, object) if dtype is object else np.zeros(3, dtype)
    assert refused(tiny(weights=[("w", np.ones((4, 3), np.float32)), ("b", value)]), says).where == "b"


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN"])
def test_the_short_floats_are_refused(kind: str) -> None:
    model = tiny()
    model.graph.initializer[1].CopyFrom(helper.make_tensor("b", TensorProto.DataType.Value(kind), [3], [0.0, 0.0, 0.0]))
    refused(model, f"{kind.lower()} weights are not trained")


def test_a_type_that_nobody_knows_is_refused() -> None:
    model = tiny()
    model.graph.initializer[1].data_type = 99
    refused(model, "type 99 weights")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    weight = np.ones((4, 3), np.float32)
    weight[2, 1] = bad
    assert refused(tiny(weights=[("w", weight), ("b", np.zeros(3, np.float32))]), "not finite").where == "w"


def test_nodes_that_carry_constants_are_held_to_the_same_rules() -> None:
    poisoned = numpy_helper.from_array(np.asarray([np.nan], np.float32), "v")
    outside = numpy_helper.from_array(np.zeros(1, np.float32), "v")
    outside.data_location = TensorProto.EXTERNAL
    for value, says in ((poisoned, "not finite"), (outside, "external data")):
        for op in ("Constant", "ConstantOfShape"):
            refused(tiny(nodes=[helper.make_node(op, ["x"][: op != "Constant"], ["y"], value=value)]), says)


def external(model: onnx.ModelProto, location: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


@pytest.mark.parametrize("location", ["weights.bin", "/etc/passwd", "../../secret"])
def test_external_data_is_refused(location: str) -> None:
    model = tiny()
    external(model, location)
    assert refused(model, "external data is refused").where == "w"
    model.graph.initializer[0].data_location = TensorProto.DEFAULT  # said in one place only
    refused(model, "external data is refused")


def damage(model: onnx.ModelProto, how: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    how(model)
    return model


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, 5), "does not match its declared shape"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, -4), "impossible shape"),
        (lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**40), "impossible shape"),
        (lambda m: setattr(m.graph.initializer[0], "raw_data", b"123"), "does not match its declared shape"),
        (lambda m: m.graph.sparse_initializer.add(), "sparse initializers are not read"),
        (lambda m: m.functions.add(), "functions and sparse"),
        (lambda m: m.graph.node[0].ClearField("output"), "Gemm makes nothing"),
        (lambda m: m.graph.node[0].attribute.add(name="alpha"), "attribute of a kind that is not read"),
        (lambda m: m.graph.node[0].attribute.add(name="op_type", type=2, i=1), "attribute named 'op_type'"),
        (lambda m: m.graph.node[0].attribute.add(name="inputs", type=2, i=1), "attribute named 'inputs'"),
        (lambda m: m.graph.node[0].attribute.add(name="g", type=5), "attribute of a kind that is not read"),
        (lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", TensorProto.DOUBLE), "input is not float32"),
        (lambda m: m.graph.input[0].type.Clear(), "input is not float32"),
        (lambda m: m.graph.input[0].type.tensor_type.shape.Clear(), "no batch axis"),
        (lambda m: m.graph.output.pop(), "1 inputs and 0 outputs"),
        (lambda m: m.graph.input.pop(), "0 inputs and 1 outputs"),
        (lambda m: setattr(m.graph.output[0], "name", "z"), "nothing makes the output"),
        (lambda m: m.graph.node.add(op_type="Identity", output=["z"]), "z"),
        (lambda m: m.graph.node.add(op_type="Relu", input=["y"], output=["w"]), "'w' is made twice"),
        (lambda m: m.graph.node.add(op_type="Relu", input=["y"], output=["x"]), "'x' is made twice"),
        (lambda m: m.graph.node.add(op_type="Constant", output=["k"]), "constant of an unknown kind"),
    ],
)
def test_damaged_models_are_refused(how: Callable[[onnx.ModelProto], object], says: str) -> None:
    model = damage(tiny(), how)
    if says == "z":  # an Identity of nothing changes nothing
        assert [node.op for node in parse(model.SerializeToString()).nodes] == ["Gemm", "Identity"]
    else:
        refused(model, re.escape(says))


def test_two_inputs_or_outputs_are_refused_by_name() -> None:
    second = helper.make_tensor_value_info("x2", TensorProto.FLOAT, ["N", 4])
    assert refused(tiny(inputs=[*tiny().graph.input, second]), "2 inputs and 1 outputs").where == "x, x2"
    also = helper.make_tensor_value_info("y2", TensorProto.FLOAT, None)
    nodes = [*tiny().graph.node, helper.make_node("Relu", ["y"], ["y2"])]
    refused(tiny(nodes=nodes, outputs=[*tiny().graph.output, also]), "1 inputs and 2 outputs")


def test_nodes_out_of_order_are_refused_by_name() -> None:
    nodes = [helper.make_node("Relu", ["m"], ["y"], name="late"), helper.make_node("MatMul", ["x", "w"], ["m"])]
    assert refused(tiny(nodes=nodes), "uses 'm', which nothing before it makes").where == "late"


def test_more_nodes_than_the_bound_are_refused() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])] * (ir.MAX_NODES + 1)
    refused(tiny(nodes=nodes), "has 20001 nodes, at most 20000")


@steady
@given(st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_a_model_or_a_model_error(damages: list[tuple[int, int]]) -> None:
    raw = bytearray(DATA)
    for place, value in damages:
        raw[place] = value
    try:
        graph = parse(bytes(raw))
        shapes(graph, 1)
    except ModelError as error:
        assert error.what  # noqa: PT017 - both ends are allowed
        return
    same(parse(serialize(graph)), graph)


def test_a_name_that_is_not_text_is_refused() -> None:
    raw = DATA.replace(b"depthwise.y", b"depthwise\xff\xff")
    refused(raw, "a name is not UTF-8")


# --- models that were exported otherwise ------------------------------------------------------------------------------


def fixed(dims: list[int | str], *nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)]
    return tiny(nodes=list(nodes), inputs=inputs, weights=list(weights.items()))


def test_a_model_of_a_fixed_batch_takes_any() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
    ]
    weights = {"flat": np.asarray([1, 12]), "w": np.ones((12, 3), np.float32), "b": np.zeros(3, np.float32)}
    graph = parse(fixed([1, 3, 4], *nodes, **weights).SerializeToString())
    assert graph.initializers["f.shape"].tolist() == [0, 12]
    x = np.random.default_rng(0).standard_normal((5, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(
        Inference(graph, 1).run(x), x.reshape(5, 12).sum(axis=1, keepdims=True).repeat(3, axis=1), rtol=1e-5
    )
    same(parse(serialize(graph)), graph)


def test_a_fixed_batch_that_nothing_depends_on_is_simply_freed() -> None:
    assert parse(fixed([8, 4], helper.make_node("Relu", ["x"], ["y"])).SerializeToString()).input_shape == (4,)


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([helper.make_node("Reshape", ["x", "s"], ["y"])], {"s": np.asarray([12])}),
        ([helper.make_node("Reshape", ["x", "s"], ["y"])], {"s": np.asarray([3, 4])}),
        ([helper.make_node("Add", ["x", "c"], ["y"])], {"c": np.ones((4, 3, 1), np.float32)}),
        ([helper.make_node("Expand", ["x", "s"], ["y"])], {"s": np.asarray([4, 3, 4])}),
        (
            [
                helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
                helper.make_node("Squeeze", ["t", "a"], ["y"]),
            ],
            {"a": np.asarray([1])},
        ),
    ],
)
def test_a_batch_size_that_is_built_in_is_refused_with_the_remedy(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]
) -> None:
    error = refused(fixed([1, 3, 4], *nodes, **weights), "was exported for a batch of exactly 1")
    assert error.where == "x"
    assert 'dynamic_axes={"x": {0: "N"}}' in error.fix


@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear", "QLinearConv", "MatMulInteger"])
def test_quantized_models_are_refused_with_the_remedy(op: str) -> None:
    node = helper.make_node(op, ["x", "w", "b"], ["y"], name="q")
    error = refused(tiny(nodes=[node]), rf"the model is quantized \({op}\)")
    assert error.where == "q"
    assert "float32 model it was made from" in error.fix


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT64])
def test_inputs_of_other_types_are_refused(kind: int) -> None:
    error = refused(tiny(inputs=[helper.make_tensor_value_info("x", kind, ["N", 4])]), "input is not float32")
    assert error.fix == "Export the model as float32"


@pytest.mark.parametrize("sample", [(4,), (3, 4), (2, 3, 4), (1, 2, 3, 4)])
def test_samples_of_one_to_four_axes_are_read(sample: tuple[int, ...]) -> None:
    graph = parse(fixed(["N", *sample], helper.make_node("Relu", ["x"], ["y"])).SerializeToString())
    assert graph.input_shape == sample
    assert shapes(graph, 7)["y"] == (7, *sample)


@pytest.mark.parametrize("sample", [(), (1, 1, 1, 1, 4)])
def test_samples_of_other_ranks_are_refused(sample: tuple[int, ...]) -> None:
    refused(fixed(["N", *sample], helper.make_node("Relu", ["x"], ["y"])), f"samples have {len(sample)} axes")


def test_a_model_without_operators_is_refused() -> None:
    outputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)]
    refused(tiny(nodes=[], outputs=outputs), "no operators")


# --- shapes and weights -----------------------------------------------------------------------------------------------


def test_shapes_are_those_that_the_runtime_gives() -> None:
    known = shapes(NET, 2)
    pixels, _ = colour_images(2)
    inputs = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    for node in NET.nodes:
        assert Inference(NET, 1, node.outputs[0]).run(inputs).shape == known[node.outputs[0]]
    assert known["image"] == (2, 3, 12, 12)
    assert known["head.w"] == (3, 8)
    assert shapes(NET, 1, (3, 20, 16))["stem.y"] == (1, 8, 10, 8)


def test_samples_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match=r"does not accept samples of shape \[5\]"):
        shapes(parse(tiny().SerializeToString()), 1, (5,))


def test_a_shape_that_depends_on_data_is_refused_by_name() -> None:
    graph = Graph((Node("Compress", ("x", "mask"), ("y",), {}, "where"),), {"mask": np.asarray([True])}, "x", (4,), "y")
    with pytest.raises(ModelError, match="not known before running") as caught:
        shapes(graph, 1)
    assert caught.value.where == "where: y"


def test_an_impossibly_large_tensor_is_refused_by_name() -> None:
    pad = Node("Pad", ("x", "p"), ("y",), {}, "pad")
    graph = Graph((pad,), {"p": np.asarray([0, 0, 0, 2**40])}, "x", (4,), "y")
    with pytest.raises(ModelError, match="impossible shape") as caught:
        shapes(graph, 1)
    assert caught.value.where == "y"


def test_weights_are_replaced_only_by_such_of_the_same_shape_and_type() -> None:
    fresh = np.full((3, 8), 2, np.float32)
    assert NET.with_weights({"head.w": fresh}).initializers["head.w"] is fresh
    assert NET.initializers["head.w"] is not fresh
    for name, value in (("head.w", fresh.T), ("head.w", fresh.astype(np.float64)), ("gone", fresh)):
        with pytest.raises(ModelError, match="weights do not fit") as caught:
            NET.with_weights({name: value})
        assert caught.value.where == name


def test_layers_are_those_with_weights_of_their_own() -> None:
    assert [layer.node.name for layer in NET.layers()] == [
        "stem", "expand", "depthwise", "project", "expand2", "depthwise2", "project2", "head",
    ]  # fmt: skip
    product = Graph((Node("MatMul", ("x", "x"), ("y",)),), {}, "x", (4,), "y")
    assert product.layers() == ()


PARAMETERS = {name: np.ones(3, np.float32) for name in ("s", "b", "m", "v")} | {
    "w": np.ones((3, 3), np.float32), "two": np.float32(2).reshape(()), "i": np.asarray([0, 1])
}  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("Conv", "x", "w", "b")], [("w", "b")]),
        ([("ConvTranspose", "x", "w", "b")], [("w", "b")]),
        ([("Gemm", "x", "w", "b")], [("w", "b")]),
        ([("Gemm", "w", "x", "b")], [("w", "b")]),
        ([("MatMul", "w", "x")], [("w",)]),
        ([("MatMul", "x", "w"), ("Add", "y0", "b")], [("w", "b")]),
        ([("MatMul", "x", "w"), ("Add", "b", "y0")], [("w", "b")]),
        ([("MatMul", "x", "w"), ("Add", "y0", "two")], [("w",)]),
        ([("MatMul", "x", "w"), ("Add", "y0", "x")], [("w",)]),
        ([("MatMul", "x", "w"), ("Add", "y0", "b"), ("Mul", "y1", "y0")], [("w",)]),
        ([("LayerNormalization", "x", "s", "b")], [("s", "b")]),
        ([("LayerNormalization", "x", "s")], [("s",)]),
        ([("InstanceNormalization", "x", "s", "b")], [("s", "b")]),
        ([("BatchNormalization", "x", "s", "b", "m", "v")], [("s", "b")]),
        ([("PRelu", "x", "s")], [("s",)]),
        ([("Gather", "w", "x")], [("w",)]),
        ([("Gather", "w", "i")], []),
        ([("Gather", "x", "i")], []),
        ([("Clip", "x", "two", "two")], []),
        ([("Mul", "x", "two"), ("Add", "y0", "b"), ("Div", "y1", "s")], []),
        ([("Conv", "x", "x", "b")], []),
        ([("Reshape", "x", "i")], []),
    ],
)
def test_parameters_are_found_each_once(nodes: list[tuple[str, ...]], expected: list[tuple[str, ...]]) -> None:
    made = tuple(Node(op, tuple(inputs), (f"y{at}",)) for at, (op, *inputs) in enumerate(nodes))
    graph = Graph(made, PARAMETERS, "x", (3,), made[-1].outputs[0])
    assert [layer.parameters for layer in graph.layers()] == expected
    assert [layer.index for layer in graph.layers()] == list(range(len(expected)))


def test_an_absent_optional_output_needs_no_shape() -> None:
    pool = Node("MaxPool", ("x",), ("y", ""), {"kernel_shape": [2]})
    assert shapes(Graph((pool,), {}, "x", (3, 4), "y"), 2)["y"] == (2, 3, 3)
