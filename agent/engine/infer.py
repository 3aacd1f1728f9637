"""Plain inference: logits for prediction and the gate, pooled features for similarity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agent.engine.base import Float32
from agent.engine.ir import Graph, serialize
from agent.engine.sessions import FORWARD_CHUNK, first_line, session
from agent.errors import EngineError, ModelError


class Inference:
    """A session that computes one tensor of a model, in bounded chunks."""

    def __init__(self, graph: Graph, threads: int, output: str | None = None) -> None:
        """Compile.

        Args:
            graph: the model.
            threads: intra-op threads.
            output: tensor to compute; the model's own output by default.
        """
        self._input = graph.input
        self._session = session(serialize(replace(graph, output=output or graph.output)), threads)

    def run(self, samples: Float32) -> Float32:
        """The tensor for samples [M, ...], M >= 1, as [M, ...]."""
        parts = []
        for start in range(0, len(samples), FORWARD_CHUNK):
            chunk = np.ascontiguousarray(samples[start : start + FORWARD_CHUNK], np.float32)
            try:
                parts.append(self._session.run(None, {self._input: chunk})[0])
            except Exception as error:  # onnxruntime raises many unrelated types from C++
                raise EngineError("inference failed", where=first_line(error)) from error
        return np.concatenate(parts)


def feature_tensor(graph: Graph) -> str:
    """Name of the pooled features: what the final classifier reads, [N, F].

    Raises:
        ModelError: the model does not end in a fully connected layer.
    """
    layers = graph.layers()
    if not layers or layers[-1].node.op != "Gemm" or layers[-1].node.outputs[0] != graph.output:
        raise ModelError("the model does not end in a fully connected classifier", where=graph.output)
    return layers[-1].node.inputs[0]
