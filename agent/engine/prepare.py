"""From a graph as an exporter wrote it to one that the gradient rules and the layer table read easily."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from agent.engine.fold_constants import fold_constants, reaching_output
from agent.engine.gradients_conv import pads_of
from agent.engine.ir import Array, Graph, Node, model_proto, shapes
from agent.engine.passes import fold_batch_norm
from agent.errors import ModelError

Tensor = tuple[type[np.generic], tuple[int | str, ...]]
WINDOWS = ("AveragePool", "Conv", "MaxPool")
MATRIX_RANK = 2
MOST_SAID = 200  # characters of a foreign message


def prepare(graph: Graph) -> Graph:
    """All passes that a model goes through before training, in their order.

    Precondition: the sample shape is the one that will be trained with.
    Postcondition: the function computed is the same, but for `logits_output`; there is no Dropout, Split or `auto_pad`,
    no computation on shapes alone and no BatchNormalization that can be folded; a product of a matrix [N, F] with a
    constant one is a Gemm.

    Raises:
        ModelError: the graph does not fit its sample shape, or a node is not as its operator's definition says.
    """
    check_operators(graph)
    folded = fold_constants(drop_identities(logits_output(graph)))
    return fold_batch_norm(gemm_from_matmul(explicit_pads(slices_from_split(folded))))


def check_operators(graph: Graph) -> None:
    """Refuse nodes with inputs or attributes that their operator does not have, or without those that it needs."""
    inputs: dict[str, Tensor] = {graph.input: (np.float32, ("N", *graph.input_shape))}
    outputs: dict[str, Tensor | None] = {graph.output: (np.float32, ())}  # which shape it has is not checked here
    try:
        onnx.checker.check_model(model_proto(graph.nodes, graph.initializers, inputs, outputs, opset=graph.opset))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise ModelError("not a valid ONNX graph", where=" ".join(str(error).split())[:MOST_SAID]) from error


def logits_output(graph: Graph) -> Graph:
    """Let a classifier [N, K] that ends in Softmax give its logits: losses, scores and answers take the softmax.

    The order of the classes in an answer stays the same.
    """
    last = next((node for node in graph.nodes if graph.output in node.outputs), None)
    if last is None or last.op != "Softmax":
        return graph
    rank = len(shapes(graph, 1)[graph.output])
    if rank != MATRIX_RANK or int(last.number("axis", -1)) % rank != 1:
        return graph
    return reaching_output(replace(graph, output=last.inputs[0]))


def drop_identities(graph: Graph) -> Graph:
    """Remove Identity and Dropout, which is one: a model is fine-tuned as it runs, as for inference.

    One that makes the model's output stays.
    """
    same: dict[str, str] = {}
    nodes: list[Node] = []
    read = {name for node in graph.nodes for name in node.inputs}
    for node in graph.nodes:
        inputs = tuple(same.get(name, name) for name in node.inputs)
        drops = node.op in ("Identity", "Dropout") and read.isdisjoint(node.outputs[1:])
        if drops and node.outputs[0] != graph.output:
            same[node.outputs[0]] = inputs[0]
        else:
            nodes.append(replace(node, inputs=inputs))
    return reaching_output(replace(graph, nodes=tuple(nodes)))


def slices_from_split(graph: Graph) -> Graph:
    """Replace each Split by one Slice an output: every node then has one output to differentiate.

    Precondition: sizes are constant.
    """
    if not any(node.op == "Split" for node in graph.nodes):
        return graph
    known = shapes(graph, 2)
    nodes: list[Node] = []
    constants: dict[str, Array] = dict(graph.initializers)
    for node in graph.nodes:
        if node.op != "Split":
            nodes.append(node)
            continue
        axis = int(node.number("axis", 0)) % len(known[node.inputs[0]])
        start = 0
        for output in node.outputs:
            bounds = (start, start + known[output][axis], axis)
            names = tuple(f"{output}.{part}" for part in ("start", "end", "axis"))
            constants |= {name: np.asarray([value], np.int64) for name, value in zip(names, bounds, strict=True)}
            nodes.append(Node("Slice", (node.inputs[0], *names), (output,), {}, f"{node.name}.{output}"))
            start = bounds[1]
    return reaching_output(replace(graph, nodes=tuple(nodes), initializers=constants))


def explicit_pads(graph: Graph) -> Graph:
    """Resolve `auto_pad` of convolutions and pools for this sample shape."""
    if not any(node.op in WINDOWS and "auto_pad" in node.attrs for node in graph.nodes):
        return graph
    known = shapes(graph, 1)
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.op in WINDOWS and "auto_pad" in node.attrs:
            size, out = known[node.inputs[0]][2:], known[node.outputs[0]][2:]
            kernel = known[node.inputs[1]][2:] if node.op == "Conv" else node.ints("kernel_shape", ())
            attrs = {key: value for key, value in node.attrs.items() if key != "auto_pad"}
            node = replace(node, attrs=attrs | {"pads": pads_of(node, size, out, kernel)})  # noqa: PLW2901 - the same node
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes))


def gemm_from_matmul(graph: Graph) -> Graph:
    """Write MatMul [N, F] x [F, K] with a constant matrix, and the Add of its bias, as one Gemm."""
    known = shapes(graph, 2)
    biased = {layer.node.outputs[0]: layer for layer in graph.layers() if layer.node.op == "MatMul"}
    nodes: list[Node] = []
    absorbed: set[str] = set()
    constants = dict(graph.initializers)
    for node in graph.nodes:
        layer = biased.get(node.outputs[0])
        flat = len(known[node.inputs[0]]) == MATRIX_RANK if layer else False
        if layer is None or not flat or layer.weight != node.inputs[1]:
            if node.outputs[0] not in absorbed:
                nodes.append(node)
            continue
        output, inputs = node.outputs, list(node.inputs)
        if layer.bias_node is not None and layer.bias is not None:
            output, bias = layer.bias_node.outputs, layer.bias
            absorbed.add(output[0])
            if constants[bias].ndim > 1:
                bias = f"{bias}.row"
                constants[bias] = constants[layer.bias].reshape(-1)
            inputs.append(bias)
        nodes.append(Node("Gemm", tuple(inputs), output, {}, node.name))
    return reaching_output(replace(graph, nodes=tuple(nodes), initializers=constants))
