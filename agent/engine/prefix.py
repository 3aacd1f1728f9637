"""The frozen part of a program: from samples to what crosses the boundary, in tiles of samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import onnx

from agent.engine.arena import FLOAT_BYTES, bound
from agent.engine.base import Float32
from agent.engine.footprint import PREFIX_BUDGET, choose_micro_batch, live_peak
from agent.engine.identity import prefix_digest
from agent.engine.ir import Graph, model_proto, shapes
from agent.engine.passes import Split
from agent.engine.sessions import session


class Prefix:
    """A compiled frozen part.

    Args:
        graph: the whole model; weights of the frozen part are taken as constants, as they are now.
        cut: where it is cut.
        crossing: buffers [micro, ...] of the crossing tensors, in order; `run` fills them.
        threads: intra-op threads.
    """

    def __init__(self, graph: Graph, cut: Split, crossing: Mapping[str, Float32], threads: int) -> None:
        self._graph, self._cut, self._crossing, self._threads = graph, cut, crossing, threads
        self._micro = len(next(iter(crossing.values())))
        self._made = tuple(name for name in cut.crossing if name != graph.input)
        self.tile, self.live_bytes = self._choose_tile()
        self._input = np.zeros((self.tile, *graph.input_shape), np.float32)
        self._use(self.model(self.tile) if self._made else None)

    @cached_property
    def digest(self) -> bytes:
        """See `TrainingRun.prefix_digest`."""
        if self._integer is not None:
            return hashlib.sha256(self._integer.SerializeToString(deterministic=True)).digest()
        return prefix_digest(self._cut.prefix, self._graph.initializers, self._graph.input)

    def model(self, samples: int | str = "N") -> onnx.ModelProto:
        """The frozen part in float32, for so many samples at once; a name: for any number."""
        return model_proto(
            self._cut.prefix,
            self._graph.initializers,
            {self._graph.input: (np.float32, (samples, *self._graph.input_shape))},
            {name: (np.float32, (samples, *self._crossing[name].shape[1:])) for name in self._made},
            opset=self._graph.opset,
        )

    def use(self, integer: onnx.ModelProto | None) -> None:
        """Run another form of the same function; `None`: float32 again, with the weights as they are now."""
        if self._made:
            self._use(integer or self.model(self.tile), integer)

    def run(self, samples: Float32) -> None:
        """Fill the first M places of the crossing buffers from samples [M, ...], M <= micro."""
        if self._graph.input in self._crossing:
            self._crossing[self._graph.input][: len(samples)] = samples
        if self._session is None:
            return
        for binding, start in zip(self._bindings, range(0, len(samples), self.tile), strict=False):
            part = samples[start : start + self.tile]
            self._input[: len(part)] = part
            self._session.run_with_iobinding(binding)

    def _use(self, model: onnx.ModelProto | None, integer: onnx.ModelProto | None = None) -> None:
        self._integer = integer
        self.__dict__.pop("digest", None)
        self._session = None if model is None else session(model, self._threads)
        self._bindings = []
        if self._session is None:
            return
        given = bound(self._input)
        for start in range(0, self._micro, self.tile):
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._graph.input, given)
            for name in self._made:
                binding.bind_ortvalue_output(name, bound(self._crossing[name][start : start + self.tile]))
            self._bindings.append(binding)

    def _choose_tile(self) -> tuple[int, int]:
        """Samples that go through at once, and the live bytes then."""
        if not self._made:
            return self._micro, 0
        sizes = {name: math.prod(shape) * FLOAT_BYTES for name, shape in shapes(self._graph, self._micro).items()}
        nodes = [(node.op, node.inputs, node.outputs) for node in self._cut.prefix]
        live = live_peak(nodes, sizes, self._cut.crossing)
        tile = choose_micro_batch(self._micro, live, PREFIX_BUDGET)
        return tile, live * tile // self._micro
