"""What all sides of a bench read: one folder with the network, its weights and its batches, written once a case.

`graph.json` and `weights.npz` are the network for a peer that knows no ONNX; `model.onnx` is the same network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from agent.cost import CostTable, cost_table
from agent.engine.ir import Graph, serialize
from agent.engine.passes import fold_batch_norm, replace_head
from agent.publish import read_model
from policies.freezing import snap

CLASSES = 10
DISTINCT_BATCHES = 4  # enough that no side learns one batch by heart, few enough to lie in memory on all sides
GRAPH, WEIGHTS, MODEL = "graph.json", "weights.npz", "model.onnx"


@dataclass(frozen=True, slots=True)
class Case:
    """One network at one input size, in a folder that every side reads.

    Attributes:
        folder: where the files lie.
        graph: the network as all sides run it: batch normalization folded, a fresh head of `CLASSES` outputs.
        costs: its cost table.
    """

    folder: Path
    graph: Graph
    costs: CostTable

    def frozen_layers(self, depth_percent: int) -> int:
        """Layers to freeze for a nominal depth, as a job would."""
        return layers_at(self.costs, depth_percent)


def layers_at(costs: CostTable, depth_percent: int) -> int:
    """Layers to freeze for a nominal depth, snapped to the cheapest boundary near it."""
    return snap((*costs.crossing_bytes, 0), depth_percent)


def bench_graph(source: str, size: int, classes: int, seed: int) -> Graph:
    """A model as the benches run it: for images [3, size, size], folded, with a fresh head.

    Raises:
        ModelError, BoardError, CallerError: see `agent.publish.read_model`.
    """
    graph, _ = read_model(source)
    graph = replace(graph, input_shape=(graph.input_shape[0], size, size))
    return replace_head(fold_batch_norm(graph), classes, seed)


def write_case(folder: Path, graph: Graph) -> Case:
    """Write the network for all sides."""
    form = {
        "input": graph.input,
        "output": graph.output,
        "parameters": [list(layer.parameters) for layer in graph.layers()],
        "nodes": [
            {"op": node.op, "inputs": node.inputs, "outputs": node.outputs, "attrs": dict(node.attrs)}
            for node in graph.nodes
        ],
    }
    (folder / GRAPH).write_text(json.dumps(form), "utf-8")
    with (folder / WEIGHTS).open("wb") as stream:
        np.savez(stream, **dict(graph.initializers))  # type: ignore[arg-type]  # its stub takes arrays for flags
    (folder / MODEL).write_bytes(serialize(graph))
    return Case(folder, graph, cost_table(graph))


def write_batches(case: Case, batch: int) -> Path:
    """Seeded noise in the range of preprocessed images, samples [B, N, C, H, W] and labels [B, N].

    Step times and memory do not depend on what is in a picture.
    """
    rng = np.random.default_rng(batch)
    shape = (DISTINCT_BATCHES, batch, *case.graph.input_shape)
    file = case.folder / f"batches-{batch}.npz"
    np.savez(
        file,
        samples=rng.uniform(-1, 1, shape).astype(np.float32),
        labels=rng.integers(0, CLASSES, shape[:2]),
    )
    return file
