"""Channel-major layout: the pass that turns pointwise and depthwise convolutions into what runs fastest in training.

A batch of images is kept as [C, N, H, W] instead of [N, C, H, W]. A pointwise convolution is then one matrix product
over all positions of all samples, W [O, C] times x [C, N H W]; so are its two gradients, none of which needs a
transposed copy of an activation; and a depthwise convolution finds all planes that share a kernel side by side.
Activations behind a convolution become part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.engine.ir import Array, Node
from agent.engine.native import DOMAIN

POINTWISE, DEPTHWISE, POOL = "Pointwise", "Depthwise", "Pool"
TO_CHANNELS, TO_SAMPLES = "ToChannels", "ToSamples"
SWAP = (1, 0, 2, 3)
RANK = 4
UNARY = frozenset(
    ("Relu", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Elu", "Gelu", "Erf", "Softplus")
)  # each value by itself, whatever the axes mean
BINARY = frozenset(("Add", "Sub", "Mul", "Div"))
SPATIAL = frozenset(("AveragePool", "MaxPool"))  # work on the last two axes only

Shapes = dict[str, tuple[int, ...]]


def channel_major(nodes: Sequence[Node], shapes: Shapes, constants: Mapping[str, Array], output: str) -> list[Node]:
    """Rewrite nodes so that what can run channel-major does.

    Args:
        nodes: in order; pointwise and depthwise Conv, clips and sums between them are taken over.
        shapes: static shapes; those of the tensors made here are added.
        constants: values of initializers that do not learn.
        output: name that must still be made, in its own layout.

    Returns:
        Nodes of the standard domain on tensors of either layout, and of domain `temperd`: `Pointwise` and `Depthwise`
        with attributes `low` and `high` (a clip behind them; infinite: none), `Pool`
        (the mean over positions), `ToChannels` and `ToSamples`.
    """
    writer = _Writer(shapes, constants, _reader_counts(nodes, output))
    waiting = list(nodes)
    while waiting:
        writer.write(waiting.pop(0), waiting)
    if output in writer.channels and output not in writer.samples:
        writer.to_samples(output)
    return writer.made


def in_channels(name: str) -> str:
    """Name of a tensor's channel-major form."""
    return f"{name}@channels"


def _reader_counts(nodes: Sequence[Node], output: str) -> dict[str, int]:
    counts = {output: 1}
    for node in nodes:
        for name in node.inputs:
            counts[name] = counts.get(name, 0) + 1
    return counts


@dataclass(slots=True)
class _Writer:
    shapes: Shapes
    constants: Mapping[str, Array]
    readers: dict[str, int]
    made: list[Node] = field(default_factory=list)
    channels: set[str] = field(default_factory=set)
    """Tensors whose channel-major form exists."""
    samples: set[str] = field(default_factory=set)
    """Of those, the ones whose own form was made from it."""

    def write(self, node: Node, waiting: list[Node]) -> None:
        if self._is_convolution(node):
            self._convolution(node, waiting)
        elif node.op == "GlobalAveragePool" and node.inputs[0] in self.channels:
            self._declare(node.outputs[0])
            made = (in_channels(node.outputs[0]),)
            self.made.append(Node(POOL, (in_channels(node.inputs[0]),), made, {}, node.name, DOMAIN))
        elif self._follows(node):
            self._same(node)
        else:
            for name in node.inputs:
                if name in self.channels and name not in self.samples:
                    self.to_samples(name)
            self.made.append(node)

    def to_samples(self, name: str) -> None:
        self.samples.add(name)
        self.made.append(Node(TO_SAMPLES, (in_channels(name),), (name,), {}, f"{name}.to_samples", DOMAIN))

    def _to_channels(self, name: str) -> str:
        if name not in self.channels:
            self._declare(name)
            self.samples.add(name)
            made = Node(TO_CHANNELS, (name,), (in_channels(name),), {}, f"{name}.to_channels", DOMAIN)
            self.made.append(made)
        return in_channels(name)

    def _declare(self, name: str) -> None:
        self.channels.add(name)
        shape = self.shapes[name]
        self.shapes[in_channels(name)] = tuple(shape[axis] for axis in SWAP)

    def _is_convolution(self, node: Node) -> bool:
        if node.op != "Conv" or node.domain or len(self.shapes[node.inputs[0]]) != RANK:
            return False
        return is_pointwise(node, self.shapes) or is_depthwise(node, self.shapes)

    def _convolution(self, node: Node, waiting: list[Node]) -> None:
        x, y = node.inputs[0], node.outputs[0]
        follower = next((n for n in waiting if y in n.inputs), None)
        bounds = None
        if follower is not None and self.readers.get(y) == 1:
            bounds = self._bounds(follower)
        if bounds is not None and follower is not None:
            waiting.remove(follower)
            y = follower.outputs[0]
        source = self._to_channels(x)
        self._declare(y)
        low, high = bounds or (-math.inf, math.inf)
        attrs = {**node.attrs, "low": low, "high": high}
        op = POINTWISE if is_pointwise(node, self.shapes) else DEPTHWISE
        self.made.append(Node(op, (source, *node.inputs[1:]), (in_channels(y),), attrs, node.name, DOMAIN))

    def _bounds(self, node: Node) -> tuple[float, float] | None:
        """Bounds of a Clip or Relu, or `None` for another operator or bounds that are not constant."""
        if node.op == "Relu":
            return 0.0, math.inf
        if node.op != "Clip":
            return None
        found = [-math.inf, math.inf]
        for position in (1, 2):
            if len(node.inputs) > position and node.inputs[position]:
                value = self.constants.get(node.inputs[position])
                if value is None or value.size != 1:
                    return None
                found[position - 1] = float(np.asarray(value).item())
        return found[0], found[1]

    def _follows(self, node: Node) -> bool:
        """Whether the node means the same on channel-major tensors and some input of it is one already."""
        if node.domain or node.inputs[0] not in self.shapes:
            return False
        if node.op in UNARY:
            return node.inputs[0] in self.channels
        if node.op in SPATIAL:
            return node.inputs[0] in self.channels and len(node.outputs) == 1
        if node.op in BINARY:
            computed = all(name not in self.constants and len(self.shapes[name]) == RANK for name in node.inputs)
            return computed and any(name in self.channels for name in node.inputs)
        return False

    def _same(self, node: Node) -> None:
        tensors = node.inputs if node.op in BINARY else node.inputs[:1]
        sources = tuple(self._to_channels(name) for name in tensors)
        self._declare(node.outputs[0])
        inputs = (*sources, *node.inputs[len(sources) :])
        made = Node(node.op, inputs, (in_channels(node.outputs[0]),), node.attrs, node.name)
        self.made.append(made)


def is_pointwise(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a 2-D Conv has a 1x1 kernel, stride 1, one group and no pads."""
    return (
        shapes[node.inputs[1]][2:] == (1, 1)
        and node.ints("strides", (1, 1)) == (1, 1)
        and node.number("group", 1) == 1
        and not any(node.ints("pads", (0, 0, 0, 0)))
    )


def is_depthwise(node: Node, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a 2-D Conv has one kernel a channel, one stride for both axes and no dilation."""
    channels, kernel = shapes[node.inputs[0]][1], shapes[node.inputs[1]]
    strides = node.ints("strides", (1, 1))
    return (
        int(node.number("group", 1)) == channels == kernel[0]
        and kernel[1] == 1
        and strides[0] == strides[1]
        and node.ints("dilations", (1, 1)) == (1, 1)
        and node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )
