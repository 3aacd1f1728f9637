#!/usr/bin/env python3
"""Losses of a few training steps as JSON, to be compared between processors; run from the project's folder.

    python packaging/arm64/losses.py > here.json

Weights, samples and targets come from seeds or are published. Half frozen means that the first half of the layers runs
as a prefix with packed constants.
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the tests' small network is not installed

from agent.engine.base import Float32, Int64, OptimizerSpec, TrainingSetup  # noqa: E402 - needs the path above
from agent.engine.efficientnet import load_pretrained  # noqa: E402 - same
from agent.engine.graph import GraphEngine  # noqa: E402 - same
from agent.engine.ir import Graph  # noqa: E402 - same
from agent.engine.native import kernels  # noqa: E402 - same
from agent.engine.passes import fold_batch_norm, replace_head  # noqa: E402 - same
from tests.simulators.small_models import mobile_block_net  # noqa: E402 - same

CLASSES = 3
SIDE = 64  # of EfficientNet's images: 224 would take minutes under emulation
# Where training is chaotic a comparison measures how rounding grows. With weights changed by 1e-7 of themselves, one
# processor's own losses of EfficientNet-Lite0 moved by 1.4e-4 at the third step at rate 0.001 in 4 of 8 trials (a value
# crosses ReLU6's border), and by 9e-7 at most at this rate.
LITE_RATE = 0.0003
SGD, ADAMW = OptimizerSpec("sgd", momentum=0.9), OptimizerSpec("adamw", weight_decay=0.01)


@dataclass(frozen=True, slots=True)
class Case:
    """One run: a network, what learns how, and for how many steps of how many samples."""

    graph: Graph
    frozen_layers: int
    optimizer: OptimizerSpec
    rate: float
    steps: int
    batch: int


def cases() -> dict[str, Case]:
    """All runs, by name."""
    small = mobile_block_net(classes=CLASSES)
    lite = replace(replace_head(fold_batch_norm(load_pretrained()), CLASSES, seed=0), input_shape=(3, SIDE, SIDE))
    half = len(lite.layers()) // 2
    return {
        "small net, SGD": Case(small, 0, SGD, 0.01, 10, 6),
        "small net, AdamW": Case(small, 0, ADAMW, 0.001, 10, 6),
        "small net, half frozen": Case(small, len(small.layers()) // 2, SGD, 0.01, 10, 6),
        "EfficientNet-Lite0, half frozen": Case(lite, half, SGD, LITE_RATE, 3, 4),
    }


def losses(case: Case) -> list[float]:
    """Loss before each step; all steps see one batch, so that the losses fall and show what the updates did."""
    samples, labels = images(case.batch, case.graph.input_shape)
    setup = TrainingSetup(case.graph, case.batch, case.graph.input_shape, case.frozen_layers, case.optimizer)
    run = GraphEngine().start(setup)
    found = [run.step(samples, labels, case.rate).loss for _ in range(case.steps)]
    run.close()
    return found


def images(count: int, shape: tuple[int, ...]) -> tuple[Float32, Int64]:
    """Noise [N, C, H, W] in -1..1, drawn as integers, and labels [N] in turn."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, *shape))
    return (pixels / 127.5 - 1).astype(np.float32), np.arange(count, dtype=np.int64) % CLASSES


def main() -> int:
    """Print where it ran, which instruction set of the kernel library was used, and the losses of each case."""
    native = kernels()
    report = {
        "machine": platform.machine(),
        "library": None if native is None else native.instructions,
        "losses": {name: losses(case) for name, case in cases().items()},
    }
    sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
