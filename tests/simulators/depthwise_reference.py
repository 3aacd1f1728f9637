"""A depthwise convolution, its clip and its gradients in NumPy, float64; and the kernel library's, through a session.

Run as a program it compares both over many geometries: `python -m tests.simulators.depthwise_reference`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from agent.engine.ir import Node, model_proto
from agent.engine.native import DOMAIN, kernels
from agent.engine.sessions import session


@dataclass(frozen=True)
class Sizes:
    """One convolution of [C, N, H, W] with kernels [C, 1, kh, kw]; pads are top, left, bottom, right."""

    channels: int
    samples: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: int
    pads: tuple[int, int, int, int]

    @property
    def out(self) -> tuple[int, int]:
        """P, Q."""
        top, left, bottom, right = self.pads
        return (
            (self.height + top + bottom - self.kernel[0]) // self.stride + 1,
            (self.width + left + right - self.kernel[1]) // self.stride + 1,
        )


HAND_PICKED = [
    Sizes(5, 3, 6, 6, (3, 3), 1, (1, 1, 1, 1)),
    Sizes(5, 3, 6, 6, (3, 3), 2, (1, 1, 1, 1)),
    Sizes(5, 3, 6, 6, (3, 3), 2, (0, 0, 1, 1)),
    Sizes(5, 3, 7, 5, (3, 3), 2, (1, 1, 1, 1)),
    Sizes(4, 2, 8, 6, (3, 3), 2, (0, 0, 0, 0)),  # rows and columns left over
    Sizes(4, 2, 8, 6, (3, 3), 1, (0, 0, 0, 0)),
    Sizes(3, 2, 6, 6, (5, 5), 2, (1, 1, 2, 2)),
    Sizes(3, 2, 6, 6, (5, 5), 1, (2, 2, 2, 2)),
    Sizes(3, 2, 4, 4, (2, 2), 1, (2, 2, 2, 2)),  # more padding than kernel
    Sizes(3, 2, 9, 9, (7, 7), 3, (3, 3, 3, 3)),
    Sizes(3, 70, 3, 3, (3, 3), 1, (1, 1, 1, 1)),
    Sizes(3, 5, 1, 1, (3, 3), 1, (1, 1, 1, 1)),
    Sizes(2, 3, 5, 1, (1, 1), 2, (0, 0, 0, 0)),
    Sizes(4, 300, 6, 6, (3, 3), 1, (1, 1, 1, 1)),  # more planes than go through the buffers at once
    Sizes(4, 33, 12, 12, (3, 3), 2, (0, 0, 1, 1)),
    Sizes(2, 1, 30, 30, (3, 3), 1, (1, 1, 1, 1)),
    Sizes(1, 2, 70, 70, (3, 3), 1, (1, 1, 1, 1)),  # one plane fills the buffers
    Sizes(33, 2, 17, 35, (3, 5), 2, (1, 2, 1, 2)),
]
CLIP, X_CLIP = (0.0, 1.5), (-0.5, 1.0)


def random_sizes(rng: np.random.Generator) -> Sizes:
    """Any geometry that gives at least one output."""
    while True:
        kernel = (int(rng.integers(1, 8)), int(rng.integers(1, 8)))
        pads = tuple(int(p) for p in rng.integers(0, 4, 4))
        sizes = Sizes(
            int(rng.integers(1, 40)), int(rng.integers(1, 20)), int(rng.integers(1, 40)), int(rng.integers(1, 40)),
            kernel, int(rng.integers(1, 5)), pads,  # type: ignore[arg-type]  # four of them
        )  # fmt: skip
        top, left, bottom, right = sizes.pads
        if sizes.height + top + bottom >= kernel[0] and sizes.width + left + right >= kernel[1]:
            return sizes


def compare(sizes: Sizes, seed: int = 0, *, input_gradient: bool = True) -> None:
    """Assert that the library computes what NumPy does."""
    rng = np.random.default_rng(seed)
    c, n, (p, q) = sizes.channels, sizes.samples, sizes.out
    x = rng.standard_normal((c, n, sizes.height, sizes.width)).astype(np.float32)
    w = (rng.standard_normal((c, 1, *sizes.kernel)) / sizes.kernel[0]).astype(np.float32)
    b = rng.standard_normal(c).astype(np.float32)
    dy = rng.standard_normal((c, n, p, q)).astype(np.float32)
    y, *gradients = library_result(sizes, x, w, b, dy, input_gradient=input_gradient)
    expected, *wanted = reference(sizes, x, w, b, dy)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    for name, found, right in zip(("dx", "dw", "db", "sums"), gradients, wanted, strict=True):
        if name in ("dx", "sums") and not input_gradient:
            assert found.size == 0, name
        else:
            np.testing.assert_allclose(found, right, atol=2e-5 * max(1.0, np.abs(right).max()), err_msg=name)


def library_result(
    sizes: Sizes, x: np.ndarray, w: np.ndarray, b: np.ndarray, dy: np.ndarray, *, input_gradient: bool
) -> list[np.ndarray]:
    p, q = sizes.out
    attrs = {
        "channels": sizes.channels, "samples": sizes.samples, "height": sizes.height, "width": sizes.width,
        "kernel_height": sizes.kernel[0], "kernel_width": sizes.kernel[1], "stride": sizes.stride,
        "pad_top": sizes.pads[0], "pad_left": sizes.pads[1], "out_height": p, "out_width": q,
        "low": CLIP[0], "high": CLIP[1], "x_low": X_CLIP[0], "x_high": X_CLIP[1], "input_gradient": int(input_gradient),
    }  # fmt: skip
    nodes = [
        Node("Depthwise", ("x", "w", "b"), ("y",), attrs, "forward", DOMAIN),
        Node("DepthwiseGrad", ("x", "w", "y", "dy"), ("dx", "dw", "db", "sums"), attrs, "backward", DOMAIN),
    ]
    values = {"x": x, "w": w, "b": b, "dy": dy}
    inputs = {name: (np.float32, value.shape) for name, value in values.items()}
    outputs = dict.fromkeys(("y", "dx", "dw", "db", "sums"))
    return session(model_proto(nodes, {}, inputs, outputs), 2).run(list(outputs), values)


def reference(
    sizes: Sizes, x: np.ndarray, w: np.ndarray, b: np.ndarray, dy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tap by tap, as the definition says."""
    (top, left, bottom, right), (p, q), s = sizes.pads, sizes.out, sizes.stride
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    y = np.zeros((sizes.channels, sizes.samples, p, q)) + b[:, None, None, None]
    taps = [(i, j) for i in range(sizes.kernel[0]) for j in range(sizes.kernel[1])]
    seen = {(i, j): padded[:, :, i : i + (p - 1) * s + 1 : s, j : j + (q - 1) * s + 1 : s] for i, j in taps}
    for i, j in taps:
        y += w[:, 0, i, j][:, None, None, None] * seen[i, j]
    dz = np.where((y > CLIP[0]) & (y < CLIP[1]), dy, 0).astype(np.float64)
    dw, wide = np.zeros(w.shape), np.zeros_like(padded)
    for i, j in taps:
        dw[:, 0, i, j] = (dz * seen[i, j]).sum((1, 2, 3))
        wide[:, :, i : i + (p - 1) * s + 1 : s, j : j + (q - 1) * s + 1 : s] += w[:, 0, i, j][:, None, None, None] * dz
    dx = wide[:, :, top : top + sizes.height, left : left + sizes.width]
    dx = np.where((x > X_CLIP[0]) & (x < X_CLIP[1]), dx, 0)
    return np.clip(y, *CLIP), dx, dw, dz.sum((1, 2, 3)), dx.sum((1, 2, 3))


if __name__ == "__main__":
    found = kernels()
    if found is None:
        sys.exit("the kernel library is not there")
    chance = np.random.default_rng(0)
    for number, picked in enumerate([*HAND_PICKED, *(random_sizes(chance) for _ in range(int(sys.argv[1])))]):
        compare(picked, number)
    sys.stdout.write(found.instructions)
