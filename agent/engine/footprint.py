"""What a compiled plan needs in memory, said before it runs; and how many samples may go through it at once.

The step's tensors are the part that grows with the batch. Their largest live set follows from the graph: the runtime
runs nodes one by one, gives a tensor memory when it is made and takes it back after its last reader.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
from onnx import shape_inference

from agent.engine.arena import FLOAT_BYTES

ACTIVATION_BUDGET = 48 << 20  # bytes of live tensors that a step aims at: more samples at once gain no speed beyond
PREFIX_BUDGET = 6 << 20  # the same of the frozen part, which keeps nothing for a way back
SHARE_OF_FREE = 0.5  # of the memory that is free now; the other half is for what else a board does meanwhile
RUNTIME_BYTES = 6 << 20  # code and plans of the sessions: 2 to 7 MiB where it was measured
ARENA_GAPS = 1.1  # what the runtime's arena takes for each byte of tensors: free pieces between those in use
RETURN_FROM = 256 << 10  # bytes of an allocation from which it is given back to the system when it is freed
VIEWS = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"))  # the runtime passes the memory on
IN_PLACE = frozenset(("Add", "Sub", "Mul", "Div", "Relu", "Clip", "Sigmoid", "HardSigmoid", "Exp", "Neg", "Tanh"))


@dataclass(frozen=True, slots=True)
class Footprint:
    """Predicted memory of a run, in bytes.

    Attributes:
        before: resident set of the process when the run was compiled.
        parameters: weights, gradients and optimizer state, and what crosses the boundary.
        live: largest set of step tensors alive at once, without gaps between them.
        runtime: sessions, their code, and the frozen part's constants as the runtime packs them.
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


def free_bytes() -> int:
    """Memory that new programs may take without swapping (MemAvailable), and within this control group's limit."""
    found = _kib("/proc/meminfo", "MemAvailable")
    available = math.inf if found is None else found << 10
    group = _control_group()
    if group is not None:
        most, now = _number(group / "memory.max"), _number(group / "memory.current")
        if most is not None and now is not None:
            available = min(available, max(0, most - now + _reclaimable(group / "memory.stat")))
    return int(min(available, 1 << 50))


def resident_bytes() -> int:
    """Resident set of this process now; 0 where the system does not tell."""
    return (_kib("/proc/self/status", "VmRSS") or 0) << 10


def peak_resident_bytes() -> int:
    """Largest resident set of this process so far (VmHWM); 0 where the system does not tell."""
    return (_kib("/proc/self/status", "VmHWM") or 0) << 10


def trim_memory() -> None:
    """Give freed pieces of the heap back to the system now: a compilation leaves some MiB of them."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@cache
def return_memory() -> None:
    """Let large allocations go back to the system when they are freed, whatever was freed before.

    glibc raises its threshold to the largest block ever freed, after which arrays of megabytes stay in the heap.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim, threshold, heaps = -1, -3, -8  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX of malloc.h
        libc.mallopt(heaps, 1)  # threads here compute and rarely allocate: a heap for each is memory unused
        libc.mallopt(threshold, RETURN_FROM)
        libc.mallopt(trim, RETURN_FROM)


def _size(value: onnx.ValueInfoProto) -> int:
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    width = 8 if value.type.tensor_type.elem_type == onnx.TensorProto.INT64 else FLOAT_BYTES
    return int(math.prod(dims)) * width


def _kib(path: str, key: str) -> int | None:
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)
    except (OSError, ValueError, IndexError):
        return None


def _control_group() -> Path | None:
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    unified = next((line.partition("::")[2] for line in lines if line.startswith("0::")), None)
    return None if unified is None else Path("/sys/fs/cgroup") / unified.lstrip("/")


def _reclaimable(statistics: Path) -> int:
    """Bytes of files that a control group has read and not looked at lately: they make room when it is needed."""
    try:
        lines = statistics.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max": no limit
        return None
