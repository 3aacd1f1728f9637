"""What a compiled plan needs in memory, said before it runs; and how many samples may go through it at once.

The step's tensors are the part that grows with the batch. Their largest live set follows from the graph: the runtime
runs nodes one by one, gives a tensor memory when it is made and takes it back after its last reader.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import shape_inference

from agent.engine.arena import FLOAT_BYTES
from agent.memory import free_bytes

ACTIVATION_BUDGET = 48 << 20  # bytes of live tensors that a step aims at: more samples at once gain 4 to 8 % of speed
PREFIX_BUDGET = 6 << 20  # the same of the frozen part, which keeps nothing for a way back
SHARE_OF_FREE = 0.5  # of the memory that is free now; the other half is for what else a board does meanwhile
RUNTIME_BYTES = 6 << 20  # code and plans of the sessions: 2 to 7 MiB where it was measured
ARENA_GAPS = 1.1  # what the runtime's arena takes for each byte of tensors: free pieces between those in use
VIEWS = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"))  # the runtime passes the memory on
IN_PLACE = frozenset(("Add", "Sub", "Mul", "Div", "Relu", "Clip", "Sigmoid", "HardSigmoid", "Exp", "Neg", "Tanh"))


@dataclass(frozen=True, slots=True)
class Footprint:
    """Predicted memory of a run, in bytes.

    Attributes:
        before: resident set of the process when the run was compiled.
        parameters: weights, gradients and optimizer state, and what crosses the boundary.
        live: largest set of step tensors alive at once, without gaps between them.
        runtime: sessions, their code, and constants as the runtime packs them.
    """

    before: int
    parameters: int
    live: int
    runtime: int

    @property
    def peak(self) -> int:
        """Predicted peak of the resident set."""
        return self.before + self.parameters + int(self.live * ARENA_GAPS) + self.runtime


def peak_live_bytes(model: onnx.ModelProto) -> int:
    """`live_peak` of a model whose shapes are static."""
    graph = shape_inference.infer_shapes(model).graph
    sizes = {value.name: _size(value) for value in graph.value_info}
    nodes = [(node.op_type, tuple(node.input), tuple(node.output)) for node in graph.node]
    return live_peak(nodes, sizes, {value.name for value in graph.output})


def live_peak(
    nodes: Sequence[tuple[str, tuple[str, ...], tuple[str, ...]]], sizes: Mapping[str, int], kept: Collection[str]
) -> int:
    """Largest sum of sizes of the tensors that are alive at once.

    Args:
        nodes: operator, inputs and outputs, in the order in which they run.
        sizes: bytes of each tensor that a node makes; a tensor without an entry counts nothing.
        kept: tensors whose memory is somebody else's: outputs.
    """
    last = {name: index for index, (_, inputs, _) in enumerate(nodes) for name in inputs}
    owner: dict[str, str] = {}  # tensor -> the tensor whose memory it has
    ends: dict[str, int] = {}
    for op, inputs, outputs in nodes:
        for position, name in enumerate(outputs):
            passed = position == 0 and op in VIEWS and inputs[0] in owner
            owner[name] = owner[inputs[0]] if passed else name
            ends[owner[name]] = max(ends.get(owner[name], -1), last.get(name, -1))
    live = peak = 0
    for index, (op, inputs, outputs) in enumerate(nodes):
        made = [name for name in outputs if owner[name] == name and name not in kept]
        dying = {owner[name] for name in inputs if name in owner and ends[owner[name]] == index}.difference(kept)
        reused = [name for name in dying if op in IN_PLACE and made and sizes.get(name, 0) == sizes.get(made[0], 0)]
        freed = sum(sizes.get(name, 0) for name in dying)
        early = sizes.get(reused[0], 0) if reused else 0
        live += sum(sizes.get(name, 0) for name in made) - early
        peak = max(peak, live)
        live -= freed - early + sum(sizes.get(name, 0) for name in made if ends[name] < 0)
    return peak


def choose_micro_batch(batch: int, live: int, most: int = ACTIVATION_BUDGET, free: int | None = None) -> int:
    """The largest divisor of `batch` whose live tensors stay within the budget; 1 if none does.

    Args:
        batch: samples a step.
        live: largest live set in bytes with the whole batch at once; it grows in proportion to the samples.
        most: the budget where memory is plenty.
        free: bytes free now; asked from the system by default.
    """
    budget = min(most, int(SHARE_OF_FREE * (free_bytes() if free is None else free)))
    fitting = (micro for micro in range(batch, 1, -1) if batch % micro == 0 and live * micro // batch <= budget)
    return next(fitting, 1)


def micro_batch_within(batch: int, most: float) -> int:
    """The largest divisor of `batch` that is at most `most`; 1 if none is."""
    return next((micro for micro in range(batch, 1, -1) if batch % micro == 0 and micro <= most), 1)


def _size(value: onnx.ValueInfoProto) -> int:
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    width = 8 if value.type.tensor_type.elem_type == onnx.TensorProto.INT64 else FLOAT_BYTES
    return int(math.prod(dims)) * width
