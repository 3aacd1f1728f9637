"""The frozen part of a program: from samples to what crosses the boundary, in tiles of samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import count

import numpy as np
import onnx
import onnxruntime as ort

from agent.engine.arena import FLOAT_BYTES, bound
from agent.engine.base import Float32
from agent.engine.footprint import PREFIX_BUDGET, choose_micro_batch, live_peak
from agent.engine.identity import prefix_digest
from agent.engine.ir import Array, Graph, Node, model_proto, shapes
from agent.engine.passes import Split
from agent.engine.sessions import lies_outside, session
from agent.engine.slices import SlicePlan, slice_rows
from agent.errors import EngineError

_forms = count()


class Prefix:
    """A compiled frozen part.

    Args:
        graph: the whole model; weights of the frozen part are taken as constants, as they are now.
        cut: where it is cut.
        crossing: buffers [micro, ...] of the crossing tensors, in order; `run` fills them.
        threads: intra-op threads.
        sliced: how its first stage runs in tiles of rows, if it does.

    Attributes:
        form: another number after each compilation.
    """

    def __init__(
        self,
        graph: Graph,
        cut: Split,
        crossing: Mapping[str, Float32],
        threads: int,
        sliced: SlicePlan | None = None,
    ) -> None:
        self._sliced = sliced
        self._graph, self._cut, self._crossing, self._threads = graph, cut, crossing, threads
        self._micro = len(next(iter(crossing.values())))
        self._made = tuple(name for name in cut.crossing if name != graph.input)
        self.tile, self.live_bytes = self._choose_tile()
        self._input = np.zeros((self.tile, *graph.input_shape), np.float32)
        self._use()

    @cached_property
    def digest(self) -> bytes:
        """See `TrainingRun.prefix_digest`."""
        if self._integer is not None:
            return hashlib.sha256(self._integer.SerializeToString(deterministic=True)).digest()
        return prefix_digest(self._cut.prefix, self._graph.initializers, self._graph.input)

    def model(self) -> onnx.ModelProto:
        """The frozen part in float32, for any number of samples."""
        return self._model("N", self._cut.prefix, self._graph.initializers)

    def slices(self) -> tuple[SlicePlan, ...]:
        """Its first stage in tiles of rows, in one or two ways, the one with the least memory first.

        Raises:
            ModelError: that would save no memory.
        """
        return slice_rows(self._cut.prefix, self._graph.initializers, shapes(self._graph, 1), self._made)

    def _model(self, samples: int | str, nodes: Sequence[Node], values: Mapping[str, Array]) -> onnx.ModelProto:
        return model_proto(
            nodes,
            values,
            {self._graph.input: (np.float32, (samples, *self._graph.input_shape))},
            {name: (np.float32, (samples, *self._crossing[name].shape[1:])) for name in self._made},
            opset=self._graph.opset,
        )

    def use(self, integer: onnx.ModelProto | None) -> None:
        """Run another form of the same function; `None`: float32 again, with the weights as they are now."""
        self._use(integer)

    def like(self, crossing: Mapping[str, Float32]) -> Prefix:
        """The same form for other crossing buffers; its answers may differ in their last bits, as its tile may."""
        other = Prefix(self._graph, self._cut, crossing, self._threads, self._sliced)
        if self._integer is not None:
            other.use(self._integer)
        return other

    def renew(self) -> None:
        """Compile the form that runs once more."""
        self._use(self._integer)

    def run(self, samples: Float32) -> None:
        """Fill the first M places of the crossing buffers from samples [M, ...], M <= micro."""
        if self._made and self._session is None:
            raise EngineError("the frozen part could not be opened again")
        if self._graph.input in self._crossing:
            self._crossing[self._graph.input][: len(samples)] = samples
        if self._session is None:
            return
        for binding, start in zip(self._bindings, range(0, len(samples), self.tile), strict=False):
            part = samples[start : start + self.tile]
            self._input[: len(part)] = part
            self._session.run_with_iobinding(binding)

    def _use(self, integer: onnx.ModelProto | None = None) -> None:
        self._integer, self.form = integer, next(_forms)
        self.__dict__.pop("digest", None)
        self._bindings: list[ort.IOBinding] = []
        self._session: ort.InferenceSession | None = None
        self._session = self._open() if self._made else None
        if self._session is None:
            return
        given = bound(self._input)
        for start in range(0, self._micro, self.tile):
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._graph.input, given)
            for name in self._made:
                binding.bind_ortvalue_output(name, bound(self._crossing[name][start : start + self.tile]))
            self._bindings.append(binding)

    def _open(self) -> ort.InferenceSession:
        if self._integer is not None:
            return session(self._integer, self._threads)
        read = {name for node in self._cut.prefix for name in node.inputs}
        values = {name: value for name, value in self._graph.initializers.items() if name in read}
        outside = {k: v for k, v in values.items() if lies_outside(v)}
        inside = {name: value for name, value in values.items() if name not in outside}
        nodes = self._cut.prefix
        if self._sliced is not None:
            nodes, inside = self._sliced.nodes, {**inside, **self._sliced.constants}
        return session(self._model(self.tile, nodes, inside), self._threads, outside)

    def _choose_tile(self) -> tuple[int, int]:
        """Samples that go through at once, and the live bytes then."""
        if not self._made:
            return self._micro, 0
        sizes = {name: math.prod(shape) * FLOAT_BYTES for name, shape in shapes(self._graph, self._micro).items()}
        nodes = [(node.op, node.inputs, node.outputs) for node in self._cut.prefix]
        live = live_peak(nodes, sizes, self._cut.crossing)
        tile = choose_micro_batch(self._micro, live, PREFIX_BUDGET)
        if self._sliced is not None:  # the same number, so that what tiles of rows save stays saved
            return tile, self._sliced.live_bytes * tile
        return tile, live * tile // self._micro
