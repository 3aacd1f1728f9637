"""What is refused of a model before it is trained or published: every fine-tune begins here.

A model is input from outside even when its signature holds. `check_file` judges the file as it was read, before a
constant is copied; `check_base` the graph that is to be trained. Nothing here opens another file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from agent.engine.nodes import Array, Layer, Node
from agent.errors import ModelError

OLDEST_OPSET, NEWEST_OPSET = 13, 21
MAX_MODEL_BYTES = 256 << 20  # boards hold weights, gradients and optimizer state in memory at once
MAX_NODES = 20_000  # EfficientNet-B7 has about 1,000
MAX_CONSTANTS = 2 * MAX_NODES  # a weight and a bias for each node
MAX_DIMENSION = 1 << 24
MAX_RANK = 8  # what numpy and the runtime both take is more; weights of 3-D convolutions have 5
MAX_MAGNITUDE = 1e6  # trained weights stay below 1e3; a folded batch norm of variance 0 multiplies by about 300
CONSTANT_BYTES: dict[int, int] = {
    TensorProto.FLOAT: 4,
    TensorProto.INT64: 8,
    TensorProto.INT32: 4,
    TensorProto.INT8: 1,
    TensorProto.UINT8: 1,
    TensorProto.BOOL: 1,
}
STANDARD = ("", "ai.onnx")
NODE_FIELDS = frozenset(NodeProto.DESCRIPTOR.fields_by_name) | {"inputs", "outputs"}  # names no attribute may have
PLAIN = "Export a plain graph, without control flow or functions"
AGAIN = "The file is broken: export it again"
RANDOM = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
)
TENSOR_TYPE = "tensor("  # how the operator set writes a type that is a plain tensor
TEXT_TYPE = "tensor(string)"

# Reasons, stable: fleets sort refusals by them.
EXTERNAL_DATA = "model-external-data"
OPERATOR = "model-operator"
TOO_LARGE = "model-too-large"
TYPE = "model-type"
BROKEN = "model-broken"
NOT_FINITE = "model-not-finite"
MAGNITUDE = "model-magnitude"
OUTPUT = "model-output"


def check_file(model: onnx.ModelProto) -> None:
    """Refuse what no part of the agent reads, whatever the task.

    Raises:
        ModelError: operator domain or set, control flow, functions, sparse or external data, a type that is not
            trained, a name that is double or not UTF-8, or more than one of the bounds above.
    """
    _check_header(model)
    _check_names(model)
    _check_counts(model.graph)
    constants = list(_constants(model.graph))
    for name, tensor in constants:
        check_constant(tensor, name)
    declared = sum(prod(tensor.dims) * CONSTANT_BYTES[tensor.data_type] for _, tensor in constants)
    if declared > MAX_MODEL_BYTES:  # an int64 may take one byte in the file and always takes eight in memory
        raise ModelError(f"constants of {declared} bytes, at most {MAX_MODEL_BYTES} are read", reason=TOO_LARGE)
    _check_made_once(model.graph)


def check_base(nodes: Sequence[Node], layers: Iterable[Layer], constants: Mapping[str, Array], opset: int) -> None:
    """Refuse operators that are not standard, plain and repeatable, and weights beyond any trained one.

    Bounds of Clip and other constants are no weights and may have any finite value.

    Raises:
        ModelError: names the node or the tensor.
    """
    for node in nodes:
        _check_operator(node, opset)
    for layer in layers:
        for name in layer.parameters:
            value = constants[name]
            largest = max(float(value.max(initial=0)), -float(value.min(initial=0)))
            if largest > MAX_MAGNITUDE:
                raise ModelError(
                    f"a weight of magnitude {largest:.3g}, at most {MAX_MAGNITUDE:g} is trained",
                    where=name,
                    fix="The file is broken or poisoned: publish it again from its source",
                    reason=MAGNITUDE,
                )


def check_constant(tensor: TensorProto, where: str = "") -> None:
    """Refuse a tensor by what it declares, before its values are copied.

    Raises:
        ModelError: external data, an impossible shape, a type that is not trained, or other data than it declares.
    """
    name = where or tensor.name
    if tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data):
        raise ModelError(
            "external data is refused",
            where=name,
            fix="Save the model as one file (save_as_external_data=False)",
            reason=EXTERNAL_DATA,
        )
    if len(tensor.dims) > MAX_RANK:
        raise ModelError(f"constant of {len(tensor.dims)} axes, at most {MAX_RANK} are read", where=name, reason=BROKEN)
    if any(not 0 <= size <= MAX_DIMENSION for size in tensor.dims):
        raise ModelError(f"impossible shape {list(tensor.dims)}", where=name, fix=AGAIN, reason=BROKEN)
    if tensor.data_type not in CONSTANT_BYTES:
        known = tensor.data_type in TensorProto.DataType.values()
        kind = TensorProto.DataType.Name(tensor.data_type).lower() if known else f"type {tensor.data_type}"
        raise ModelError(f"{kind} weights are not trained", where=name, fix="Export the model as float32", reason=TYPE)
    if _held(tensor) != prod(tensor.dims):
        raise ModelError("constant does not match its declared shape", where=name, fix=AGAIN, reason=BROKEN)


def constant(tensor: TensorProto) -> Array:
    """Values of a tensor that `check_constant` lets pass.

    Raises:
        ModelError: as `check_constant`; or a value is not finite.
    """
    check_constant(tensor)
    try:
        value: Array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ModelError(
            "constant does not match its declared shape", where=tensor.name, fix=AGAIN, reason=BROKEN
        ) from error
    return finite(value, tensor.name)


def finite(value: Array, name: str) -> Array:
    """The same values.

    Raises:
        ModelError: says how many are not finite.
    """
    if np.issubdtype(value.dtype, np.floating) and (bad := value.size - int(np.isfinite(value).sum())):
        raise ModelError(
            f"weights are not finite: {bad} of {value.size}",
            where=name,
            fix="The file is broken or poisoned: publish it again from its source",
            reason=NOT_FINITE,
        )
    return value


def _held(tensor: TensorProto) -> float:
    """How many values the tensor holds; no whole number where bytes are missing."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data) / CONSTANT_BYTES[tensor.data_type]
    if tensor.data_type == TensorProto.FLOAT:
        return len(tensor.float_data)
    return len(tensor.int64_data if tensor.data_type == TensorProto.INT64 else tensor.int32_data)


def _constants(graph: onnx.GraphProto) -> Iterable[tuple[str, TensorProto]]:
    """Every tensor of the file with the name that finds it: its own, or that of the node that carries it."""
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            tensors = [attribute.t] if attribute.type == AttributeProto.TENSOR else list(attribute.tensors)
            yield from ((tensor.name or node.name or ", ".join(node.output), tensor) for tensor in tensors)


def _check_header(model: onnx.ModelProto) -> None:
    fix = "Export with standard operators"
    if not any(entry.domain in STANDARD for entry in model.opset_import):
        raise ModelError("the model names no operator set", fix=fix, reason=OPERATOR)
    for entry in model.opset_import:
        if entry.domain not in STANDARD:
            raise ModelError(f"operator domain {entry.domain!r} is not allowed", fix=fix, reason=OPERATOR)
        if not OLDEST_OPSET <= entry.version <= NEWEST_OPSET:
            raise ModelError(
                f"opset {entry.version} is outside {OLDEST_OPSET}..{NEWEST_OPSET}",
                fix="Convert with onnx.version_converter",
                reason=OPERATOR,
            )
    if len(model.functions) or len(model.graph.sparse_initializer):
        raise ModelError("model-local functions and sparse initializers are not read", fix=PLAIN, reason=OPERATOR)


def _check_names(model: onnx.ModelProto) -> None:
    """What is not UTF-8 comes out of protobuf as bytes, to fail later and elsewhere."""
    values = (*model.graph.initializer, *model.graph.input, *model.graph.output)
    names: list[object] = [value.name for value in values]
    for entry in model.metadata_props:
        names += [entry.key, entry.value]
    for node in model.graph.node:
        names += [node.op_type, node.name, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
        if reserved := NODE_FIELDS.intersection(a.name for a in node.attribute):
            raise ModelError(f"attribute named {min(reserved)!r}", where=str(node.name), fix=AGAIN, reason=BROKEN)
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise ModelError(
                f"{node.op_type} has an attribute of a kind that is not read: a graph",
                where=str(node.name),
                fix=PLAIN,
                reason=OPERATOR,
            )
    if not all(isinstance(name, str) for name in names):
        raise ModelError("a name is not UTF-8", fix=AGAIN, reason=BROKEN)


def _check_counts(graph: onnx.GraphProto) -> None:
    for kind, count, most in (
        ("nodes", len(graph.node), MAX_NODES),
        ("constants", len(graph.initializer), MAX_CONSTANTS),
    ):
        if count > most:
            raise ModelError(f"model has {count} {kind}, at most {most} are read", reason=TOO_LARGE)


def _check_made_once(graph: onnx.GraphProto) -> None:
    """A second tensor of a name would silently take the place of the first."""
    made: set[str] = set()
    constants = [("", tensor.name) for tensor in graph.initializer]
    for where, name in (*constants, *((node.name, name) for node in graph.node for name in node.output if name)):
        if name in made or not name:
            what = f"{name!r} is made twice" if name else "a constant has no name"
            raise ModelError(what, where=where or name, fix=AGAIN, reason=BROKEN)
        made.add(name)


def _check_operator(node: Node, opset: int) -> None:
    fix = "Export without it: only standard, repeatable operators on plain tensors are trained"
    try:
        schema = onnx.defs.get_schema(node.op, opset, "")
    except onnx.defs.SchemaError as error:
        what = f"{node.op} is no operator of opset {opset}"
        raise ModelError(what, where=node.name, fix=fix, reason=OPERATOR) from error
    plain = all(
        any(kind.startswith(TENSOR_TYPE) and kind != TEXT_TYPE for kind in value.types)
        for value in (*schema.inputs, *schema.outputs)
    )
    branches = any(attribute.type == onnx.defs.OpSchema.AttrType.GRAPH for attribute in schema.attributes.values())
    if schema.deprecated or branches or not plain or node.op in RANDOM:
        raise ModelError(f"operator {node.op} is not allowed", where=node.name, fix=fix, reason=OPERATOR)
