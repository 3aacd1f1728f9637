"""A small in-memory graph: what the passes and gradient rules work on, and the seam to ONNX files.

Only float32 models with one input [N, ...] and one output are read. Everything is bounded: a model is input from
outside, even when its signature holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper, shape_inference

from agent.engine.checks import (
    BROKEN,
    MAX_DIMENSION,
    MAX_MODEL_BYTES,
    MAX_NODES,
    NEWEST_OPSET,
    OLDEST_OPSET,
    OPERATOR,
    PLAIN,
    TOO_LARGE,
    check_file,
    constant,
    finite,
)
from agent.engine.nodes import Array, Attribute, Layer, Node, layers_of
from agent.errors import ModelError

__all__ = [
    "MAX_MODEL_BYTES",
    "MAX_NODES",
    "NEWEST_OPSET",
    "OLDEST_OPSET",
    "Array",
    "Attribute",
    "Graph",
    "Layer",
    "Node",
    "model_proto",
    "parse",
    "serialize",
    "shapes",
]

IR_VERSION = 9  # up to opset 20; onnxruntime 1.19, the last training wheel, reads up to 10
FIRST_OPSET_OF_IR_10 = 21
OPSET = 17  # operators as of opset 17: LayerNormalization exists, ReduceSum takes axes as input
MAX_SHAPE_VALUES = 256  # in an initializer whose values may decide a shape: axes, sizes, pads
MAX_SAMPLE_RANK = 4  # up to [C, D, H, W]
QUANTIZED = frozenset(
    ("ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul")
) | {"QuantizeLinear"}
MICROSOFT = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in topological order with their constants.

    Attributes:
        nodes: operators, each after the producers of its inputs.
        initializers: constants and weights by tensor name.
        input: name of the input tensor [N, ...].
        input_shape: shape of one sample.
        output: name of the output tensor.
        metadata: free-form key/value pairs of the file.
    """

    nodes: tuple[Node, ...]
    initializers: Mapping[str, Array]
    input: str
    input_shape: tuple[int, ...]
    output: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    opset: int = OPSET
    """The opset whose meaning the nodes have; what is added in training means the same in all that are read."""

    def layers(self) -> tuple[Layer, ...]:
        """Parametric layers in execution order, as `layers_of` finds them."""
        return layers_of(self.nodes, self.initializers, self.output)

    def with_weights(self, weights: Mapping[str, Array]) -> Graph:
        """The same graph with some initializers replaced; shapes and types must match."""
        merged = dict(self.initializers)
        for name, value in weights.items():
            old = merged.get(name)
            if old is None or old.shape != value.shape or old.dtype != value.dtype:
                raise ModelError("weights do not fit the graph", where=name, fix="Use weights of the same model")
            merged[name] = value
        return replace(self, initializers=merged)


def parse(data: bytes) -> Graph:
    """Read ONNX bytes.

    Constants and identities of constants become initializers.

    Raises:
        ModelError: not ONNX, too large, external data, control flow, unknown domain, opset outside 13..21, a float
            type other than float32, or not exactly one input and one output.
    """
    if len(data) > MAX_MODEL_BYTES:
        raise ModelError(f"model has {len(data)} bytes, at most {MAX_MODEL_BYTES} are read", reason=TOO_LARGE)
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise ModelError("not an ONNX model", fix="Export with torch.onnx.export or tf2onnx", reason=BROKEN) from error
    check_file(model)
    proto = model.graph
    initializers = {tensor.name: constant(tensor) for tensor in proto.initializer}
    nodes: list[Node] = []
    for item in proto.node:
        attrs = _attributes(item)
        if item.op_type == "Constant":
            initializers[item.output[0]] = _constant_value(item.name, attrs)
        elif item.op_type == "Identity" and item.input[:1] and item.input[0] in initializers:
            initializers[item.output[0]] = initializers[item.input[0]]
        else:
            nodes.append(_node(item, attrs, len(nodes)))
    used = {name for node in nodes for name in node.inputs}
    initializers = {name: value for name, value in initializers.items() if name in used}
    inputs = [value for value in proto.input if value.name not in initializers]
    if len(inputs) != 1 or len(proto.output) != 1:
        raise ModelError(
            f"model has {len(inputs)} inputs and {len(proto.output)} outputs, one of each is needed",
            where=", ".join(value.name for value in inputs),
            fix="Export the model without auxiliary inputs",
        )
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    opset = next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), OPSET)
    batch, *sample = _input_dims(inputs[0])
    graph = Graph(tuple(nodes), initializers, inputs[0].name, tuple(sample), proto.output[0].name, metadata, opset)
    _check_order(graph)
    return _free_batch(graph, batch) if batch > 0 and min(sample) > 0 else graph


def _attributes(item: onnx.NodeProto) -> dict[str, Attribute]:
    if not item.output:
        raise ModelError(f"{item.op_type} makes nothing", where=item.name)
    try:
        attrs = {a.name: helper.get_attribute_value(a) for a in item.attribute}
    except ValueError:
        attrs = {"": None}
    for value in attrs.values():
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(value, TensorProto):
            constant(value)  # what is refused of a weight is refused here too
        elif not isinstance(first, int | float | str | bytes | list):
            raise ModelError(f"{item.op_type} has an attribute of a kind that is not read", where=item.name, fix=PLAIN)
    return attrs


def _constant_value(name: str, attrs: Mapping[str, object]) -> Array:
    if isinstance(tensor := attrs.get("value"), TensorProto):
        return constant(tensor)
    for key, dtype in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        if key in attrs:
            return finite(np.asarray(attrs[key], dtype=dtype), name)
    raise ModelError("constant of an unknown kind", where=name)


def _node(item: onnx.NodeProto, attrs: dict[str, Attribute], position: int) -> Node:
    if item.domain not in ("", "ai.onnx"):
        raise ModelError(f"operator domain {item.domain!r} is not allowed", where=item.name, reason=OPERATOR)
    if item.op_type in QUANTIZED:
        raise ModelError(
            f"the model is quantized ({item.op_type})",
            where=item.name,
            fix="Publish the float32 model it was made from: training needs its weights, and quantizes nothing",
        )
    plain = {key: value.decode(errors="replace") if isinstance(value, bytes) else value for key, value in attrs.items()}
    return Node(item.op_type, tuple(item.input), tuple(item.output), plain, item.name or f"{item.op_type}_{position}")


def _input_dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Sizes of all axes of the input, 0 where free; the first is the batch axis."""
    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        raise ModelError("the input is not float32", where=value.name, fix="Export the model as float32")
    dims = tuple(dim.dim_value for dim in tensor.shape.dim)
    if not dims:
        raise ModelError("the input has no batch axis", where=value.name)
    if not 1 <= len(dims) - 1 <= MAX_SAMPLE_RANK:
        raise ModelError(
            f"samples have {len(dims) - 1} axes, 1 to {MAX_SAMPLE_RANK} are read",
            where=value.name,
            fix="Export with an input such as [N, F], [N, C, T] or [N, C, H, W]",
        )
    return dims


def _free_batch(graph: Graph, batch: int) -> Graph:
    """The graph of a model that was exported for exactly `batch` samples, made to take any number.

    Reshape targets that begin with the batch size copy the first axis instead. What depends on the batch size in
    another way is refused.
    """
    known = shapes(graph, batch)
    constants = dict(graph.initializers)
    nodes: list[Node] = []
    for node in graph.nodes:
        target = constants.get(node.inputs[1]) if node.op == "Reshape" and len(node.inputs) > 1 else None
        if target is not None and target.size and target.reshape(-1)[0] == batch:
            first = {known[name][:1] for name in (node.inputs[0], node.outputs[0])}
            if first == {(batch,)} and not node.attrs.get("allowzero", 0):
                constants[f"{node.outputs[0]}.shape"] = np.asarray([0, *target.reshape(-1)[1:]], np.int64)
                node = replace(node, inputs=(node.inputs[0], f"{node.outputs[0]}.shape"))  # noqa: PLW2901 - the same node, freed
        nodes.append(node)
    used = {name for node in nodes for name in node.inputs}
    freed = replace(graph, nodes=tuple(nodes), initializers={k: v for k, v in constants.items() if k in used})
    for other in (batch + 1, batch + 2):
        try:
            fits = shapes(freed, other)[graph.output] == (other, *known[graph.output][1:])
        except ModelError:
            fits = False
        if not fits or known[graph.output][:1] != (batch,):
            raise ModelError(
                f"the model was exported for a batch of exactly {batch}",
                where=graph.input,
                fix=f'Export it with a free batch axis: dynamic_axes={{"{graph.input}": {{0: "N"}}}}',
            )
    return freed


def _check_order(graph: Graph) -> None:
    known = set(graph.initializers) | {graph.input, ""}
    for node in graph.nodes:
        missing = [name for name in node.inputs if name not in known]
        if missing:
            raise ModelError(
                f"{node.op} uses {missing[0]!r}, which nothing before it makes", where=node.name, reason=BROKEN
            )
        if again := [name for name in node.outputs if name and name in known]:
            raise ModelError(f"{again[0]!r} is made twice", where=node.name, reason=BROKEN)
        known.update(node.outputs)
    if graph.output not in known:
        raise ModelError("nothing makes the output", where=graph.output)
    if not graph.nodes:
        raise ModelError("the model has no operators", where=graph.output)


def model_proto(
    nodes: Iterable[Node],
    initializers: Mapping[str, Array],
    inputs: Mapping[str, tuple[type[np.generic], tuple[int | str, ...]]],
    outputs: Mapping[str, tuple[type[np.generic], tuple[int | str, ...]] | None],
    metadata: Mapping[str, str] | None = None,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Build an ONNX model; an output given as `None` gets a float tensor of unknown shape."""
    protos = [
        helper.make_node(n.op, list(n.inputs), list(n.outputs), name=n.name or None, domain=n.domain or None, **n.attrs)  # type: ignore[arg-type]
        for n in nodes
    ]
    used = {name for node in protos for name in node.input}
    graph = helper.make_graph(
        protos,
        "temperd",
        [_value_info(name, spec) for name, spec in inputs.items()],
        [_value_info(name, spec) for name, spec in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in initializers.items() if name in used],
    )
    domains = [helper.make_opsetid("", opset)]
    domains += [helper.make_opsetid(domain, 1) for domain in sorted({node.domain for node in protos} - {""})]
    model = helper.make_model(
        graph,
        opset_imports=domains,
        producer_name="temperd",
        ir_version=IR_VERSION if opset < FIRST_OPSET_OF_IR_10 else IR_VERSION + 1,
    )
    if metadata:
        helper.set_model_props(model, dict(metadata))
    return model


def _value_info(name: str, spec: tuple[type[np.generic], tuple[int | str, ...]] | None) -> onnx.ValueInfoProto:
    if spec is None:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    dtype, shape = spec
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))


def serialize(graph: Graph) -> bytes:
    """The graph as an ONNX file with a free batch axis."""
    model = model_proto(
        graph.nodes,
        graph.initializers,
        {graph.input: (np.float32, ("N", *graph.input_shape))},
        {graph.output: None},
        graph.metadata,
        graph.opset,
    )
    return bytes(model.SerializeToString(deterministic=True))


def shapes(graph: Graph, batch: int, input_shape: tuple[int, ...] | None = None) -> dict[str, tuple[int, ...]]:
    """Static shape of every tensor for a batch of `batch` samples.

    Raises:
        ModelError: the graph does not fit the input shape, or a shape depends on data.
    """
    found = inferred_shapes(graph, batch, input_shape)
    for node in graph.nodes:
        for name in filter(None, node.outputs):
            if name not in found:
                raise ModelError(
                    "shape is not known before running", where=f"{node.name}: {name}", fix="Export with fixed sizes"
                )
    return found


def inferred_shapes(graph: Graph, batch: int, input_shape: tuple[int, ...] | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes as far as they are known before running; a tensor with an empty or unknown axis is left out.

    Raises:
        ModelError: the graph does not fit the input shape, or a tensor would be impossibly large.
    """
    sample = input_shape or graph.input_shape
    inputs: dict[str, tuple[type[np.generic], tuple[int | str, ...]]] = {graph.input: (np.float32, (batch, *sample))}
    # Only what a shape may depend on goes along as values: weights would be copied some times over.
    values = {name: value for name, value in graph.initializers.items() if value.size <= MAX_SHAPE_VALUES}
    weights = {
        name: (value.dtype.type, value.shape) for name, value in graph.initializers.items() if name not in values
    }
    model = model_proto(graph.nodes, values, inputs | weights, {graph.output: None}, opset=graph.opset)
    try:
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, ValueError) as error:
        raise ModelError(
            f"the model does not accept samples of shape {list(sample)}", where=str(error).splitlines()[0][:200]
        ) from error
    found = {name: tuple(value.shape) for name, value in graph.initializers.items()}
    found[graph.input] = (batch, *sample)
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        if value.type.tensor_type.HasField("shape"):
            size = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
            if any(axis > MAX_DIMENSION for axis in size):
                raise ModelError(f"impossible shape {list(size)}", where=value.name)
            if all(axis > 0 for axis in size):
                found[value.name] = size
    return found
