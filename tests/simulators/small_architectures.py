"""The architectures that small boards run, each in a handful of nodes, written as PyTorch's exporter writes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from agent.engine.ir import Array, Graph, Node

CLASSES = 3


class Net:
    """Appends nodes; every method takes and gives names of tensors."""

    def __init__(self, *sample: int, seed: int = 0) -> None:
        self.sample, self.nodes = sample, list[Node]()
        self.constants: dict[str, Array] = {}
        self.width = {"x": sample[0]}
        self._rng = np.random.default_rng(seed)

    def op(self, op: str, *inputs: str, outputs: int = 1, width: int = 0, **attrs: Any) -> str:
        made = tuple(f"{op}{len(self.nodes)}{'.' * bool(i)}{i or ''}" for i in range(outputs))
        self.nodes.append(Node(op, inputs, made, attrs, made[0]))
        for name in made:
            self.width[name] = width or self.width.get(inputs[0], 0)
        return made[0]

    def weight(self, *shape: int, gain: float = 1.0, around: float = 0.0) -> str:
        name = f"w{len(self.constants)}"
        spread = gain / np.sqrt(max(int(np.prod(shape[1:])), 1))
        self.constants[name] = (around + self._rng.standard_normal(shape) * spread).astype(np.float32)
        return name

    def number(self, *values: float, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(values if len(values) > 1 else values[0], dtype)
        return name

    def ints(self, *values: int) -> str:
        name = f"i{len(self.constants)}"
        self.constants[name] = np.asarray(values, np.int64)
        return name

    def conv(
        self, x: str, out: int, kernel: int, stride: int = 1, *, group: int = 1, axes: int = 2, **more: Any
    ) -> str:
        pads = more.pop("pads", [kernel // 2] * 2 * axes)
        weight = self.weight(out, self.width[x] // group, *[kernel] * axes, gain=1.4)
        inputs = (x, weight, self.weight(out, gain=0.1)) if more.pop("bias", True) else (x, weight)
        return self.op("Conv", *inputs, width=out, group=group, strides=[stride] * axes, pads=pads, **more)

    def norm(self, x: str) -> str:
        c = self.width[x]
        parts = [self.weight(c, gain=0.2, around=1), self.weight(c, gain=0.2), self.weight(c, gain=0.2)]
        variance = self.weight(c, gain=0.1, around=1)
        return self.op("BatchNormalization", x, *parts, variance, epsilon=1e-3)

    def relu6(self, x: str) -> str:
        return self.op("Clip", x, self.number(0), self.number(6))

    def swish(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def squeeze_excite(self, x: str, reduced: int, gate: str) -> str:
        c = self.width[x]
        pooled = self.op("ReduceMean", x, axes=[2, 3], keepdims=1)
        small = self.op("Relu", self.conv(pooled, reduced, 1))
        return self.op("Mul", x, self.op(gate, self.conv(small, c, 1)))

    def inverted(
        self, x: str, expand: int, out: int, kernel: int, stride: int, act: Callable[[str], str], gate: str = ""
    ) -> str:
        h = act(self.norm(self.conv(x, expand, 1, bias=False)))
        h = act(self.norm(self.conv(h, expand, kernel, stride, group=expand, bias=False)))
        if gate:
            h = self.squeeze_excite(h, 2, gate)
        h = self.norm(self.conv(h, out, 1, bias=False))
        return self.op("Add", x, h) if stride == 1 and self.width[x] == out else h

    def classify(self, x: str) -> Graph:
        flat = self.op("Flatten", self.op("GlobalAveragePool", x), axis=1)
        return self.dense_end(flat, self.width[x], CLASSES)

    def dense_end(self, x: str, features: int, out: int) -> Graph:
        last = self.op("Gemm", x, self.weight(out, features), self.weight(out, gain=0.1), transB=1, width=out)
        return self.graph(last)

    def linear(self, x: str, features: int, out: int) -> str:
        """A Linear over the last axis of [N, T, F]: MatMul and Add."""
        product = self.op("MatMul", x, self.weight(features, out, gain=1.0), width=out)
        return self.op("Add", self.weight(out, gain=0.1), product, width=out)

    def graph(self, output: str) -> Graph:
        return Graph(tuple(self.nodes), self.constants, "x", self.sample, output)


def mobilenet_v1() -> Graph:
    net = Net(3, 8, 8, seed=1)
    x = net.op("Relu", net.norm(net.conv("x", 4, 3, 2, bias=False)))
    for out, stride in ((6, 1), (8, 2)):
        x = net.op("Relu", net.norm(net.conv(x, net.width[x], 3, stride, group=net.width[x], bias=False)))
        x = net.op("Relu", net.norm(net.conv(x, out, 1, bias=False)))
    return net.classify(x)


def mobilenet_v2() -> Graph:
    net = Net(3, 8, 8, seed=2)
    x = net.relu6(net.norm(net.conv("x", 4, 3, 2, bias=False)))
    x = net.inverted(x, 8, 4, 3, 1, net.relu6)
    x = net.inverted(x, 8, 6, 3, 2, net.relu6)
    return net.classify(x)


def mobilenet_v3() -> Graph:
    net = Net(3, 8, 8, seed=3)
    x = net.op("HardSwish", net.norm(net.conv("x", 4, 3, 2, bias=False)))
    x = net.inverted(x, 6, 4, 3, 1, lambda name: net.op("Relu", name), gate="HardSigmoid")
    x = net.inverted(x, 8, 6, 5, 2, lambda name: net.op("HardSwish", name), gate="HardSigmoid")
    return net.classify(x)


def efficientnet_b0() -> Graph:
    net = Net(3, 8, 8, seed=4)
    x = net.swish(net.norm(net.conv("x", 4, 3, 2, bias=False)))
    x = net.inverted(x, 6, 4, 3, 1, net.swish, gate="Sigmoid")
    x = net.inverted(x, 8, 6, 5, 2, net.swish, gate="Sigmoid")
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
    return net.dense_end(net.op("Dropout", pooled), 6, CLASSES)


def proxyless() -> Graph:
    """Kernels of 3, 5 and 7, as MCUNet and ProxylessNAS choose them."""
    net = Net(3, 9, 9, seed=5)
    x = net.relu6(net.conv("x", 4, 3, 2))
    for kernel, stride in ((3, 1), (7, 1), (5, 2)):
        x = net.inverted(x, 6, 4, kernel, stride, net.relu6)
    return net.classify(x)


def squeezenet() -> Graph:
    net = Net(3, 9, 9, seed=6)
    x = net.op("Relu", net.conv("x", 6, 3, 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    for squeezed, out in ((3, 4), (3, 5)):
        small = net.op("Relu", net.conv(x, squeezed, 1))
        wide = [net.op("Relu", net.conv(small, out, kernel)) for kernel in (1, 3)]
        x = net.op("Concat", *wide, axis=1, width=2 * out)
    x = net.op("Relu", net.conv(net.op("Dropout", x), CLASSES, 1))
    return net.graph(net.op("Flatten", net.op("GlobalAveragePool", x), axis=1))


def resnet() -> Graph:
    net = Net(3, 10, 10, seed=7)
    x = net.op("Relu", net.norm(net.conv("x", 4, 5, 2, bias=False)))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for out, stride in ((4, 1), (6, 2)):
        h = net.op("Relu", net.norm(net.conv(x, out, 3, stride, bias=False)))
        h = net.norm(net.conv(h, out, 3, bias=False))
        short = x if stride == 1 else net.norm(net.conv(x, out, 1, stride, pads=[0] * 4, bias=False))
        x = net.op("Relu", net.op("Add", h, short))
    return net.classify(x)


def preactivation_resnet() -> Graph:
    """Normalizations before the convolutions: none can be folded, all learn."""
    net = Net(3, 6, 6, seed=8)
    x = net.conv("x", 4, 3)
    for _ in range(2):
        h = net.conv(net.op("Relu", net.norm(x)), 4, 3)
        x = net.op("Add", x, h)
    return net.classify(net.op("Relu", net.norm(x)))


def ds_cnn() -> Graph:
    """Keyword spotting: one band of a spectrogram, a tall first kernel, average pool to one cell."""
    net = Net(1, 10, 6, seed=9)
    weight = net.weight(4, 1, 5, 2)
    x = net.op("Conv", "x", weight, net.weight(4, gain=0.1), width=4, strides=[2, 2], auto_pad="SAME_UPPER")
    for _ in range(2):
        x = net.op("Relu", net.norm(net.conv(net.op("Relu", x), 4, 3, group=4)))
        x = net.norm(net.conv(x, 4, 1))
    x = net.op("AveragePool", net.op("Relu", x), kernel_shape=[5, 3])
    return net.dense_end(net.op("Reshape", x, net.ints(-1, 4)), 4, CLASSES)


def autoencoder() -> Graph:
    net = Net(12, seed=10)
    x, features = "x", 12
    for out in (8, 3, 8):
        x = net.op("Gemm", x, net.weight(out, features), net.weight(out, gain=0.1), transB=1, width=out)
        x, features = net.op("Relu", net.norm(x)), out
    return net.dense_end(x, features, 12)


def conv_autoencoder() -> Graph:
    """Down by strides, up by a transposed convolution and by resizing."""
    net = Net(2, 8, 8, seed=11)
    x = net.op("LeakyRelu", net.conv("x", 4, 3, 2), alpha=0.1)
    x = net.op("PRelu", net.conv(x, 3, 3, 2), net.weight(3, 1, 1, around=0.25, gain=0.1))
    x = net.op("ConvTranspose", x, net.weight(3, 4, 2, 2), net.weight(4, gain=0.1), width=4, strides=[2, 2])
    scales = net.number(1, 1, 2, 2)
    x = net.op("Resize", net.op("Elu", x), "", scales, mode="nearest", coordinate_transformation_mode="asymmetric")
    return net.graph(net.op("Sigmoid", net.conv(x, 2, 3)))


def forecaster() -> Graph:
    """Dilated causal convolutions over [N, C, T]; the last time step gives the horizon."""
    net = Net(3, 12, seed=12)
    x = "x"
    for dilation in (1, 2, 4):
        padded = net.op("Pad", x, net.ints(0, 0, 2 * dilation, 0, 0, 0))
        h = net.op("Tanh", net.conv(padded, 4, 3, axes=1, pads=[0, 0], dilations=[dilation]))
        x = h if x == "x" else net.op("Add", x, h)
    last = net.op("Squeeze", net.op("Slice", x, net.ints(-1), net.ints(2**31 - 1), net.ints(2)), net.ints(2), width=4)
    return net.dense_end(last, 4, 5)


def transformer() -> Graph:
    """One encoder block over [N, T, F], its shapes computed in the graph and its Gelu written with Erf."""
    net, steps, width, heads = Net(5, 3, seed=13), 5, 8, 2
    x = net.op("Add", net.linear("x", 3, width), net.weight(1, steps, width, gain=0.3), width=width)
    h = net.op("LayerNormalization", x, net.weight(width, around=1, gain=0.2), net.weight(width, gain=0.2), axis=-1)
    joined = net.linear(h, width, 3 * width)
    shape = net.op("Shape", joined)
    sizes = [net.op("Unsqueeze", net.op("Gather", shape, net.number(i, dtype=np.int64)), net.ints(0)) for i in (0, 1)]
    target = net.op("Concat", *sizes, net.ints(heads), net.ints(width // heads), axis=0)
    parts = net.op("Split", joined, outputs=3, axis=-1)
    made = net.nodes[-1].outputs
    assert made[0] == parts
    q, k, v = (
        net.op("Transpose", net.op("Reshape", part, target), perm=perm)
        for part, perm in zip(made, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    scores = net.op("Div", net.op("MatMul", q, k), net.number(float(np.sqrt(width / heads))))
    seen = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
    back = net.op("Concat", *sizes, net.ints(width), axis=0)
    x = net.op("Add", x, net.linear(net.op("Reshape", seen, back), width, width))
    h = net.op("LayerNormalization", x, net.weight(width, around=1, gain=0.2), net.weight(width, gain=0.2), axis=-1)
    h = net.linear(h, width, 12)
    erf = net.op("Erf", net.op("Div", h, net.number(float(np.sqrt(2)))))
    h = net.op("Mul", net.op("Mul", h, net.op("Add", erf, net.number(1))), net.number(0.5))
    x = net.op("Add", x, net.linear(h, 12, width))
    return net.dense_end(net.op("ReduceMean", x, axes=[1], keepdims=0), width, CLASSES)


ARCHITECTURES: dict[str, Callable[[], Graph]] = {
    "MobileNetV1": mobilenet_v1,
    "MobileNetV2": mobilenet_v2,
    "MobileNetV3": mobilenet_v3,
    "EfficientNet-B0": efficientnet_b0,
    "ProxylessNAS": proxyless,
    "SqueezeNet": squeezenet,
    "ResNet": resnet,
    "pre-activation ResNet": preactivation_resnet,
    "DS-CNN": ds_cnn,
    "dense autoencoder": autoencoder,
    "convolutional autoencoder": conv_autoencoder,
    "1-D forecaster": forecaster,
    "Transformer": transformer,
}
"""Graphs before `prepare`, as a file would hold them."""

REBUILDS = frozenset(("dense autoencoder", "convolutional autoencoder", "1-D forecaster"))
"""Those whose output is values and not logits."""
