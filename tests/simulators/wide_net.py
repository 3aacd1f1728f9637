"""A network with the sizes of a real one: its memory is its tensors', not the interpreter's."""

from __future__ import annotations

import numpy as np

from agent.engine.ir import Graph, Node

WIDTHS = (32, 64, 128, 256)


def wide_net(size: int = 96, classes: int = 10) -> Graph:
    """Pairs of a depthwise convolution of stride 2 and a pointwise one, each with ReLU6, and a classifier."""
    rng = np.random.default_rng(3)
    constants: dict[str, np.ndarray] = {"zero": np.float32(0).reshape(()), "six": np.float32(6).reshape(())}
    nodes: list[Node] = []

    def conv(x: str, name: str, shape: tuple[int, ...], **attrs: object) -> str:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        constants[f"{name}.w"] = (rng.standard_normal(shape) * scale).astype(np.float32)
        constants[f"{name}.b"] = np.zeros(shape[0], np.float32)
        nodes.append(Node("Conv", (x, f"{name}.w", f"{name}.b"), (name,), attrs, name))  # type: ignore[arg-type]
        nodes.append(Node("Clip", (name, "zero", "six"), (f"{name}.r",), {}, f"{name}.clip"))
        return f"{name}.r"

    x = conv("x", "stem", (WIDTHS[0], 3, 3, 3), strides=[2, 2], pads=[0, 0, 1, 1])
    channels = WIDTHS[0]
    for index, width in enumerate(WIDTHS):
        stride = 1 if index == 0 else 2
        pads = [1, 1, 1, 1] if stride == 1 else [0, 0, 1, 1]
        x = conv(x, f"dw{index}", (channels, 1, 3, 3), group=channels, strides=[stride, stride], pads=pads)
        x = conv(x, f"pw{index}", (width, channels, 1, 1))
        channels = width
    constants["head.w"] = (rng.standard_normal((classes, channels)) * 0.05).astype(np.float32)
    constants["head.b"] = np.zeros(classes, np.float32)
    nodes += [
        Node("GlobalAveragePool", (x,), ("pooled",), {}, "pool"),
        Node("Flatten", ("pooled",), ("features",), {"axis": 1}, "flatten"),
        Node("Gemm", ("features", "head.w", "head.b"), ("logits",), {"transB": 1}, "head"),
    ]
    return Graph(tuple(nodes), constants, "x", (3, size, size), "logits")
