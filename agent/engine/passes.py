"""Graph passes: each takes a graph and returns another, with its pre- and postcondition stated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from agent.engine.base import UpdatePlan
from agent.engine.ir import Array, Graph, Layer, Node
from agent.errors import ModelError

BATCH_NORM_INPUTS = 5
Float64 = npt.NDArray[np.float64]


def fold_batch_norm(graph: Graph) -> Graph:
    """Fold each BatchNormalization into the Conv, ConvTranspose or Gemm before it, where that can be.

    With frozen statistics, gamma (w x + b - mean) / sqrt(var + eps) + beta is the same layer with weights scaled by
    gamma / sqrt(var + eps) and the bias beta + (b - mean) gamma / sqrt(var + eps).

    Postcondition: a BatchNormalization is left only where it is not the one reader of such a layer with constant
    parameters; the function computed is the same up to rounding.

    Raises:
        ModelError: statistics that are none.
    """
    makers = {node.outputs[0]: node for node in graph.nodes}
    readers = _reader_counts(graph)
    constants = dict(graph.initializers)
    folded: dict[str, Node] = {}
    dropped: set[int] = set()
    for node in graph.nodes:
        if node.op != "BatchNormalization" or len(node.outputs) > 1:
            continue
        layer = makers.get(node.inputs[0])
        if layer is None or readers[node.inputs[0]] != 1 or not _takes_scale(layer):
            continue
        if all(name in constants for name in (*node.inputs[1:], *_given(layer)[1:])):
            _check_statistics(node, constants)
            try:
                folded[layer.outputs[0]] = _folded(layer, node, constants)
            except ValueError as error:  # NumPy's word for shapes that do not fit
                raise ModelError("batch normalization does not fit the layer before it", where=node.name) from error
            dropped.add(id(node))
    nodes = [folded.get(node.outputs[0], node) for node in graph.nodes if id(node) not in dropped]
    used = {name for node in nodes for name in node.inputs}
    return replace(graph, nodes=tuple(nodes), initializers={k: v for k, v in constants.items() if k in used})


def _check_statistics(norm: Node, constants: Mapping[str, Array]) -> None:
    """Refuse statistics of several sizes and variances that have no root."""
    parts = [constants[name] for name in norm.inputs[1:BATCH_NORM_INPUTS]]
    if len({part.shape for part in parts}) > 1 or parts[0].ndim != 1:
        raise ModelError("batch normalization with parameters of several sizes", where=norm.name)
    if float(parts[3].astype(np.float64).min()) + norm.number("epsilon", 1e-5) <= 0:
        raise ModelError("batch normalization with a negative variance", where=norm.name, fix="The file is broken")


def _takes_scale(layer: Node) -> bool:
    """Whether a factor and a shift for each output channel can go into the layer's own parameters."""
    if layer.op == "Gemm":
        return layer.number("alpha", 1) == layer.number("beta", 1) == 1
    return layer.op in ("Conv", "ConvTranspose")


def _folded(layer: Node, norm: Node, constants: dict[str, Array]) -> Node:
    gamma, beta, mean, variance = (constants[name].astype(np.float64) for name in norm.inputs[1:BATCH_NORM_INPUTS])
    scale = gamma / np.sqrt(variance + norm.number("epsilon", 1e-5))
    weight = constants[layer.inputs[1]].astype(np.float64)
    given = _given(layer)
    bias = constants[given[2]].astype(np.float64) if len(given) > 2 else np.zeros_like(mean)  # noqa: PLR2004 - X, W, B
    # named after the output: several layers may share one weight, each with a normalization of its own
    weight_name, bias_name = f"{norm.outputs[0]}.folded", f"{norm.outputs[0]}.folded_bias"
    constants[weight_name] = _scaled(layer, weight, scale).astype(np.float32)
    constants[bias_name] = (beta + (bias - mean) * scale).astype(np.float32)
    return replace(layer, inputs=(layer.inputs[0], weight_name, bias_name), outputs=(norm.outputs[0],))


def _scaled(layer: Node, weight: Float64, scale: Float64) -> Float64:
    """The weight with each output channel multiplied: Conv [O, C/g, ...], ConvTranspose [C, O/g, ...], Gemm."""
    if layer.op == "Gemm":
        return weight * (scale[:, None] if layer.attrs.get("transB", 0) else scale)
    if layer.op == "Conv":
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    groups = int(layer.number("group", 1))
    apart = weight.reshape(groups, -1, *weight.shape[1:])
    return (apart * scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def _given(layer: Node) -> tuple[str, ...]:
    """The layer's inputs without an absent bias."""
    return tuple(name for name in layer.inputs if name)


def _reader_counts(graph: Graph) -> dict[str, int]:
    counts: dict[str, int] = {graph.output: 1}
    for node in graph.nodes:
        for name in node.inputs:
            counts[name] = counts.get(name, 0) + 1
    return counts


def unshare_parameters(graph: Graph) -> Graph:
    """Give every layer parameters of its own, so that freezing one layer never freezes or moves another.

    Postcondition: no initializer is a parameter of two layers; the function computed is the same.
    """
    constants, seen = dict(graph.initializers), set[str]()
    nodes = list(graph.nodes)
    place = {id(node): index for index, node in enumerate(nodes)}
    for layer in graph.layers():
        names = {name: f"{name}.of.{layer.node.outputs[0]}" for name in layer.parameters if name in seen}
        constants |= {fresh: constants[name].copy() for name, fresh in names.items()}
        seen.update(layer.parameters)
        for owner in filter(None, (layer.node, layer.bias_node)):
            index = place[id(owner)]
            inputs = tuple(names.get(name, name) for name in nodes[index].inputs)
            nodes[index] = replace(nodes[index], inputs=inputs)
    return replace(graph, nodes=tuple(nodes), initializers=constants)


POOLING = frozenset(("Clip", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "Relu", "Squeeze"))
"""What may stand between a convolution that gives a map a class and the output."""


def replace_head(graph: Graph, classes: int, seed: int) -> Graph:
    """Give the classifier `classes` outputs with fresh weights.

    The new weights are drawn from U(-1/sqrt(F), 1/sqrt(F)) for F features, the bias is zero (LeCun 1998 scaling).

    Precondition: the node that makes the output is a Gemm with a constant weight; or the last layer is a 1 x 1 Conv
    that gives one map a class, with nothing but pooling and clips behind it.
    Postcondition: the output is [N, classes]; every other weight is untouched.
    """
    layers = graph.layers()
    head = layers[-1] if layers else None
    if head is None or not (_is_dense_head(graph, head) or _is_map_head(graph, head)):
        raise ModelError(
            "the model does not end in a fully connected classifier",
            where=graph.output,
            fix='Ask for `head = "keep"`, or export the model with a Gemm head',
        )
    old = graph.initializers[head.weight]
    rows_are_classes = head.node.op == "Conv" or bool(head.node.attrs.get("transB", 0))
    features = old.shape[1 if rows_are_classes else 0]
    bound = 1.0 / np.sqrt(features)
    drawn = np.random.default_rng(seed).uniform(-bound, bound, (classes, features)).astype(np.float32)
    weight = drawn.reshape(classes, features, *old.shape[2:]) if rows_are_classes else np.ascontiguousarray(drawn.T)
    bias = head.bias or f"{head.weight}.bias"
    constants = dict(graph.initializers) | {head.weight: weight, bias: np.zeros(classes, np.float32)}
    node = replace(head.node, inputs=(head.node.inputs[0], head.weight, bias))
    nodes = tuple(node if item is head.node else item for item in graph.nodes)
    return replace(graph, nodes=nodes, initializers=constants)


def _is_dense_head(graph: Graph, head: Layer) -> bool:
    """A Gemm that makes the output, its weight on the right."""
    return head.node.op == "Gemm" and head.node.outputs[0] == graph.output and head.weight == head.node.inputs[1]


def _is_map_head(graph: Graph, head: Layer) -> bool:
    """A 1 x 1 Conv whose maps only get pooled to become the output."""
    kernel = graph.initializers[head.weight].shape[2:]
    if head.node.op != "Conv" or set(kernel) != {1} or head.node.number("group", 1) != 1:
        return False
    made = head.node.outputs[0]
    for node in graph.nodes[graph.nodes.index(head.node) + 1 :]:
        if made in node.inputs:
            if node.op not in POOLING:
                return False
            made = node.outputs[0]
    return made == graph.output


@dataclass(frozen=True, slots=True)
class Split:
    """A graph cut at a freeze boundary.

    Attributes:
        prefix: nodes that depend on no trainable parameter.
        suffix: the others, in order.
        crossing: tensors the suffix reads from the prefix (or the model input itself).
        learning: names of the parameters that learn, in execution order.
    """

    prefix: tuple[Node, ...]
    suffix: tuple[Node, ...]
    crossing: tuple[str, ...]
    learning: tuple[str, ...]


def check_boundary(layers: int, frozen_layers: int) -> None:
    """Refuse a freeze boundary that leaves nothing to learn, with a ModelError."""
    if not 0 <= frozen_layers < layers:
        raise ModelError(f"cannot freeze {frozen_layers} of {layers} layers: at least the last must learn")


def learning_parameters(graph: Graph, plan: UpdatePlan) -> tuple[str, ...]:
    """Names of the parameters that learn under a plan, in execution order, each once.

    Raises:
        ModelError: nothing learns, or the plan names a parameter that is not past its boundary.
    """
    layers = graph.layers()
    check_boundary(len(layers), plan.frozen_layers)
    past = dict.fromkeys(name for layer in layers[plan.frozen_layers :] for name in layer.parameters)
    if plan.learning is None:
        return tuple(past)
    unknown = sorted(plan.learning - past.keys())
    if unknown or not plan.learning:
        raise ModelError(
            "the update plan names a parameter that cannot learn" if unknown else "the update plan lets nothing learn",
            where=", ".join(unknown[:3]) or f"{plan.frozen_layers} frozen layers",
            fix="Name parameters of layers past the freeze boundary",
        )
    return tuple(name for name in past if name in plan.learning)


def split(graph: Graph, plan: UpdatePlan) -> Split:
    """Cut the graph so that what does not depend on a learning parameter is apart.

    Precondition: 0 <= frozen layers < number of parametric layers.
    Postcondition: prefix and suffix together are the graph; no prefix node depends on a suffix node.
    """
    parameters = learning_parameters(graph, plan)
    learning = set(parameters)
    prefix: list[Node] = []
    suffix: list[Node] = []
    for node in graph.nodes:
        if learning.isdisjoint(node.inputs):
            prefix.append(node)
        else:
            suffix.append(node)
            learning.update(node.outputs)
    made = {graph.input} | {name for node in prefix for name in node.outputs}
    crossing = dict.fromkeys(name for node in suffix for name in node.inputs if name in made)
    return Split(_reaching(prefix, crossing), tuple(suffix), tuple(crossing), parameters)


def _reaching(nodes: list[Node], wanted: Iterable[str]) -> tuple[Node, ...]:
    """Those nodes that something in `wanted` depends on, in their order."""
    needed = set(wanted)
    kept: list[Node] = []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return tuple(reversed(kept))
