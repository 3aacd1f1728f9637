"""Small networks of our own for windows of a series: a dense autoencoder and a forecaster of dilated convolutions."""

from __future__ import annotations

import math

import numpy as np

from agent.engine.ir import Array, Attribute, Graph, Node

AUTOENCODER_WIDTH, AUTOENCODER_BOTTLENECK = 128, 8  # MLPerf Tiny, anomaly detection (Banbury et al. 2021)
CODER_LAYERS = 4  # of the encoder and of the decoder each, same source
FORECASTER_CHANNELS = 32
KERNEL = 3
SUMMARY_CHANNELS = 8  # that the last layer sees of each row: a full view would hold most of the weights


class _Network:
    """Collects layers with fresh weights: He-normal (He et al. 2015), biases zero."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[Node] = []
        self.weights: dict[str, Array] = {}
        self._rng = np.random.default_rng(seed)

    def dense(self, name: str, x: str, inputs: int, outputs: int, gain: float = 2.0) -> str:
        """Fully connected: [N, inputs] to [N, outputs]; weights have variance `gain` / inputs."""
        weight = self._rng.standard_normal((outputs, inputs)) * math.sqrt(gain / inputs)
        return self._layer("Gemm", name, x, weight, {"transB": 1})

    def causal(self, name: str, x: str, inputs: int, outputs: int, dilation: int, gain: float = 2.0) -> str:
        """Convolution over time, [N, inputs, T] to [N, outputs, T], that sees only the past (Oord et al. 2016)."""
        shape = (outputs, inputs, KERNEL)
        weight = self._rng.standard_normal(shape) * math.sqrt(gain / (inputs * KERNEL))
        attrs: dict[str, Attribute] = {"dilations": [dilation], "pads": [dilation * (KERNEL - 1), 0]}
        return self._layer("Conv", name, x, weight, attrs)

    def simple(self, op: str, *inputs: str, **attrs: Attribute) -> str:
        """A node without weights; the name of its output."""
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(Node(op, inputs, (name,), attrs, f"{name}.node"))
        return name

    def _layer(self, op: str, name: str, x: str, weight: Array, attrs: dict[str, Attribute]) -> str:
        self.weights[f"{name}.weight"] = weight.astype(np.float32)
        self.weights[f"{name}.bias"] = np.zeros(weight.shape[0], np.float32)
        self.nodes.append(Node(op, (x, f"{name}.weight", f"{name}.bias"), (name,), attrs, f"{name}.node"))
        return name


def dense_autoencoder(features: int, seed: int) -> Graph:
    """Encoder, bottleneck and decoder: samples [N, features] to reconstructions of the same shape.

    The shape of MLPerf Tiny's anomaly detector, without the batch normalizations, which training would fold anyway.
    """
    net = _Network(seed)
    x, width = "window", features
    for index in range(CODER_LAYERS):
        x = net.simple("Relu", net.dense(f"encoder{index}", x, width, AUTOENCODER_WIDTH))
        width = AUTOENCODER_WIDTH
    x = net.simple("Relu", net.dense("bottleneck", x, width, AUTOENCODER_BOTTLENECK))
    width = AUTOENCODER_BOTTLENECK
    for index in range(CODER_LAYERS):
        x = net.simple("Relu", net.dense(f"decoder{index}", x, width, AUTOENCODER_WIDTH))
        width = AUTOENCODER_WIDTH
    output = net.dense("reconstruction", x, width, features, gain=1.0)
    return Graph(tuple(net.nodes), net.weights, "window", (features,), output)


def dilated_forecaster(columns: int, window: int, horizon: int, target: int, seed: int) -> Graph:
    """Samples [N, columns, window] to the next `horizon` values of column `target` [N, horizon], normalized.

    Two paths are added. Residual blocks of causal convolutions whose dilation doubles until they see the whole window
    (a temporal convolutional network, Bai et al. 2018), summed up in a few channels. And a linear one from the whole
    window (as the autoregressive part of LSTNet, Lai et al. 2018), which begins as "the last value stays", while the
    other's last layer begins at zero: the network begins as naive-last and learns what that misses.
    """
    net = _Network(seed)
    x = net.simple("Relu", net.causal("stem", "window", columns, FORECASTER_CHANNELS, 1))
    blocks, channels = _blocks(window), FORECASTER_CHANNELS
    for index in range(blocks):  # each adds its share: with the full gain the sum would double block by block
        inner = net.simple("Relu", net.causal(f"block{index}", x, channels, channels, 2 << index, 2.0 / blocks))
        x = net.simple("Add", x, inner)
    x = net.simple("Relu", net.causal("summary", x, FORECASTER_CHANNELS, SUMMARY_CHANNELS, 1))
    linear = net.dense("linear", net.simple("Flatten", "window", axis=1), columns * window, horizon, gain=0.0)
    net.weights["linear.weight"][:, target * window + window - 1] = 1.0
    learnt = net.dense("head", net.simple("Flatten", x, axis=1), SUMMARY_CHANNELS * window, horizon, gain=0.0)
    output = net.simple("Add", linear, learnt)
    return Graph(tuple(net.nodes), net.weights, "window", (columns, window), output)


def _blocks(window: int) -> int:
    """How many blocks b it takes until the last row sees the first, 2 (1 + 2 + 4 + ... + 2^b) rows before it."""
    return max(1, math.ceil(math.log2(max(2, (window - 1) / (KERNEL - 1) + 1))) - 1)
