"""Small real networks in the shape of the big ones, for tests that need no download."""

from __future__ import annotations

import numpy as np

from agent.engine.ir import Graph, Node

CLASSES = 3
SIZE = 12


def mobile_block_net(seed: int = 0, classes: int = CLASSES, size: int = SIZE) -> Graph:
    """Stem (stride 2, asymmetric pads), two inverted bottlenecks with a residual, a head: eight layers."""
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {"zero": np.float32(0).reshape(()), "six": np.float32(6).reshape(())}
    nodes: list[Node] = []

    def conv(name: str, x: str, shape: tuple[int, ...], *, relu: bool = True, **attrs: object) -> str:
        fan_in = int(np.prod(shape[1:]))
        constants[f"{name}.w"] = (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        constants[f"{name}.b"] = (rng.standard_normal(shape[0]) * 0.1).astype(np.float32)
        nodes.append(Node("Conv", (x, f"{name}.w", f"{name}.b"), (f"{name}.y",), attrs, name))
        if not relu:
            return f"{name}.y"
        nodes.append(Node("Clip", (f"{name}.y", "zero", "six"), (f"{name}.r",), {}, f"{name}.clip"))
        return f"{name}.r"

    x = conv("stem", "image", (8, 3, 3, 3), strides=[2, 2], pads=[0, 0, 1, 1])
    x = conv("expand", x, (24, 8, 1, 1))
    x = conv("depthwise", x, (24, 1, 3, 3), group=24, pads=[1, 1, 1, 1])
    short = conv("project", x, (8, 24, 1, 1), relu=False)
    x = conv("expand2", short, (24, 8, 1, 1))
    x = conv("depthwise2", x, (24, 1, 3, 3), group=24, pads=[1, 1, 1, 1])
    x = conv("project2", x, (8, 24, 1, 1), relu=False)
    nodes.append(Node("Add", (short, x), ("sum",), {}, "residual"))
    nodes.append(Node("GlobalAveragePool", ("sum",), ("pooled",), {}, "pool"))
    nodes.append(Node("Flatten", ("pooled",), ("features",), {"axis": 1}, "flatten"))
    constants["head.w"] = (rng.standard_normal((classes, 8)) * 0.5).astype(np.float32)
    constants["head.b"] = np.zeros(classes, np.float32)
    nodes.append(Node("Gemm", ("features", "head.w", "head.b"), ("logits",), {"transB": 1}, "head"))
    return Graph(tuple(nodes), constants, "image", (3, size, size), "logits")


def colour_images(samples: int, seed: int = 0, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Noise images [N, S, S, 3] uint8 in which one colour channel is brighter; its index is the label [N]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(samples, dtype=np.int64) % CLASSES
    pixels = rng.integers(0, 160, (samples, size, size, 3))
    pixels[np.arange(samples), :, :, labels] += 70
    return pixels.astype(np.uint8), labels
