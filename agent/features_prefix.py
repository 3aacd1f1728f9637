"""The frozen part of a run, run once a sample: steps and held-out outputs from the cache where that pays.

Where the cache is used, every activation passes through its number format, whether it was stored before or made just
now. So hits, misses, evictions and a disk that fails change how long a job takes and never what it learns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agent.engine.base import Float32, Int64, StepResult, TrainingRun
from agent.engine.identity import runs_nothing
from agent.features import Counts, FeatureCache, GenerationKey, record_key, sample_digest
from agent.features_blocks import DIGEST_BYTES, MAX_RECORD_BYTES
from agent.features_codec import AUTO_STORAGE, Codec
from agent.plan import Plan
from agent.spec import FineTuneSpec
from agent.task import Task

MAX_RECORDS = 200_000  # the index of each takes about 250 bytes of memory
READ_BYTES_PER_S = 40e6  # a good memory card in a Raspberry Pi 4; what the page cache still holds comes faster
MACS_PER_S = 5e9  # float32 convolutions of MobileNets on its four cores


@dataclass(frozen=True, slots=True)
class Demand:
    """What caching a boundary would take.

    Attributes:
        records: samples times views, held-out samples included.
        record_bytes: of each.
        values: numbers that cross the boundary for one sample.
        input_values: numbers in the model's input for one sample.
        prefix_macs: multiply-accumulates of the frozen part for one sample.
    """

    records: int
    record_bytes: int
    values: int
    input_values: int
    prefix_macs: int


def refusal(demand: Demand, room: int) -> str:
    """Why a boundary is not cached, in words; empty when it is.

    All records must fit: a cache that holds a part of what is read round and round evicts each record just before it is
    wanted. And where more crosses than came in, reading must be faster than running the frozen part again.
    """
    if demand.record_bytes > MAX_RECORD_BYTES:
        return f"one sample takes {demand.record_bytes} bytes, at most {MAX_RECORD_BYTES} are stored"
    if demand.records > MAX_RECORDS:
        return f"{demand.records} records, at most {MAX_RECORDS} are kept"
    if demand.records * demand.record_bytes > room:
        return f"{demand.records * demand.record_bytes} bytes are needed, there is room for {room}"
    slower = demand.record_bytes / READ_BYTES_PER_S > demand.prefix_macs / MACS_PER_S
    if demand.values > demand.input_values and slower:
        return "reading would take longer than running the frozen part again"
    return ""


def prefix_macs(plan: Plan, frozen_layers: int) -> int:
    """Multiply-accumulates of the first layers for one sample, from the plan's ladder; 0 where it has no such rung.

    A step costs the forward pass and twice that of what learns (`CostTable.step_macs`), so half of what freezing saves
    is the forward pass of what was frozen, but for the input gradient of the first layer that learns.
    """
    costs = {rung.frozen_layers: rung.step_macs for rung in plan.ladder}
    whole = plan.rung(0).step_macs
    return max(0, whole - costs.get(frozen_layers, whole)) // 2


class _Digests:
    """Digests of one part of the data; each is found once."""

    def __init__(self, samples: int, inputs: Callable[[Int64], Float32]) -> None:
        self._inputs = inputs
        self._known = np.zeros(samples, np.bool_)
        self._digests = np.zeros((samples, DIGEST_BYTES), np.uint8)

    def of(self, chosen: Int64) -> list[bytes]:
        new = np.unique(chosen[~self._known[chosen]])
        if len(new):
            for number, sample in zip(new, self._inputs(new), strict=True):
                self._digests[number] = np.frombuffer(sample_digest(sample), np.uint8)
            self._known[new] = True
        return [self._digests[number].tobytes() for number in chosen]


class FrozenPrefix:
    """Feeds a run: from the cache where there is one and it pays, else from the samples.

    Attributes:
        refused: why the present boundary is not cached; empty when it is.
        reused: samples of training steps for which the frozen part did not run.
    """

    def __init__(
        self, run: TrainingRun, task: Task, spec: FineTuneSpec, plan: Plan, cache: FeatureCache | None
    ) -> None:
        self._run, self._task, self._spec, self._plan, self._cache = run, task, spec, plan, cache
        self._storage = AUTO_STORAGE if spec.cache == "auto" else spec.cache
        self._train = _Digests(task.train_samples, task.inputs)
        self._test = _Digests(task.test_samples, self._held_out)
        self._bound_to: bytes | None = None
        self._codec: Codec | None = None
        self.refused = ""
        self.reused = 0

    def step(self, chosen: Int64, epoch: int, learning_rate: float) -> StepResult:
        """One step on training samples by number [N], in the view that is their turn in `epoch`."""
        view, targets = epoch % self._spec.views, self._task.targets(chosen)
        codec = self._bound()
        if codec is None:
            return self._run.step(self._task.view(chosen, view), targets, learning_rate)
        keys = [record_key(digest, view, self._spec.seed) for digest in self._train.of(chosen)]
        activations, found = self._activations(codec, keys, lambda rows: self._task.view(chosen[rows], view))
        self.reused += found
        return self._run.step_from_boundary(activations, targets, learning_rate)

    def outputs(self, start: int, stop: int) -> Float32:
        """The model's outputs for a run of held-out samples [M, ...]."""
        codec = self._bound()
        if codec is None:
            return self._run.outputs(self._task.test_inputs(start, stop))
        chosen = np.arange(start, min(stop, self._task.test_samples), dtype=np.int64)
        keys = [record_key(digest, 0, self._spec.seed) for digest in self._test.of(chosen)]
        activations, _ = self._activations(codec, keys, lambda rows: self._held_out(chosen[rows]))
        return self._run.outputs_from_boundary(activations)

    def told(self) -> dict[str, object]:
        """Storage (`off` where nothing is cached, with the reason), and what the cache did, in records and bytes."""
        cache = self._cache
        if cache is None or self._codec is None or cache.off:
            why = self.refused or (cache.off if cache else "") or "nothing is frozen, or the job asks for none"
            return {"storage": "off", "why": why}
        counts = {name: getattr(cache.counts, name) for name in Counts.__slots__}
        return {"storage": self._storage, "record_bytes": self._codec.record_bytes, "corrupt": cache.corrupt, **counts}

    def flush(self) -> None:
        """Put on disk what was made since the last time."""
        if self._cache is not None:
            self._cache.flush()

    def _held_out(self, chosen: Int64) -> Float32:
        """Held-out samples by number, in rising order."""
        first = int(chosen[0])
        samples: Float32 = self._task.test_inputs(first, int(chosen[-1]) + 1)[chosen - first]
        return samples

    def _bound(self) -> Codec | None:
        """The codec of the present boundary, or `None` when samples go all the way.

        The digest of the frozen part is asked for each time: whatever moves the boundary or changes a frozen weight
        brings another generation.
        """
        if self._cache is None or self._run.frozen_layers == 0:
            return None
        digest = self._run.prefix_digest
        if digest != self._bound_to:
            self._bound_to, self._codec = digest, self._bind(self._cache, digest)
        return self._codec

    def _bind(self, cache: FeatureCache, digest: bytes) -> Codec | None:
        shapes = self._run.boundary_shapes
        codec = Codec(self._storage, tuple(shapes.values()))
        self.refused = self._refusal(cache, digest, shapes, codec.record_bytes)
        if self.refused:
            return None
        rule = repr(self._task.rule).encode()
        cache.select(GenerationKey(digest, tuple(shapes.items()), rule, self._storage), codec.record_bytes)
        return codec

    def _refusal(
        self, cache: FeatureCache, digest: bytes, shapes: Mapping[str, tuple[int, ...]], record_bytes: int
    ) -> str:
        spec, task = self._spec, self._task
        if runs_nothing(digest, shapes):
            return "this engine runs the frozen part in every step"
        if spec.epochs <= spec.views:
            return "no view of a sample is seen twice"
        values = sum(math.prod(shape) for shape in shapes.values())
        records = task.train_samples * spec.views + task.test_samples
        macs = prefix_macs(self._plan, self._run.frozen_layers)
        return refusal(Demand(records, record_bytes, values, task.test_inputs(0, 1).size, macs), cache.room())

    def _activations(
        self, codec: Codec, keys: list[bytes], inputs: Callable[[npt.NDArray[np.intp]], Float32]
    ) -> tuple[tuple[Float32, ...], int]:
        """Boundary activations of samples by key, each array [M, ...], and for how many the cache had them.

        `inputs` gives the samples of some rows.
        """
        assert self._cache is not None
        records = np.empty((len(keys), codec.record_bytes), np.uint8)
        missing = np.flatnonzero(~self._cache.get(keys, records))
        if not len(missing):
            return codec.decode(records), len(keys)
        made = self._run.boundary(inputs(missing))
        records[missing], fits = codec.encode(made)
        stored = missing[fits]
        self._cache.put([keys[row] for row in stored], records[stored])
        activations = codec.decode(records)
        for values, fresh in zip(activations, made, strict=True):
            values[missing[~fits]] = fresh[~fits]
        return activations, len(keys) - len(missing)
