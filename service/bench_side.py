"""temperd's own side of a bench: an engine behind the same requests that the peers answer (docs/bench.md).

A program of its own (`python -m service.bench_side graph`), so that its memory is that of training and nothing else.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from agent.engine import choose_engine
from agent.engine.base import Float32, Int64, OptimizerSpec, TrainingRun, TrainingSetup
from agent.engine.ir import parse
from agent.errors import EngineError, TemperdError
from agent.features import FeatureCache, GenerationKey, record_key
from agent.features_codec import AUTO_STORAGE, Codec
from agent.memory import peak_resident_bytes, resident_bytes, restart_peak, return_memory

Request = dict[str, Any]
Reply = dict[str, object]
RUNTIMES = ("onnxruntime", "onnxruntime-training-cpu")


class Kept:
    """What crossed the boundary, in the files and the number format in which a job keeps it."""

    def __init__(self, folder: Path, run: TrainingRun) -> None:
        self._codec = Codec(AUTO_STORAGE, tuple(run.boundary_shapes.values()))
        self._cache = FeatureCache(folder, _refuse)
        key = GenerationKey(run.prefix_digest, tuple(run.boundary_shapes.items()), b"bench", AUTO_STORAGE)
        self._cache.select(key, self._codec.record_bytes)

    def put(self, numbers: Iterable[int], crossing: Sequence[Float32]) -> None:
        """Keep the activations [N, ...] of samples by number."""
        self._cache.put(_keys(numbers), self._codec.encode(crossing)[0])

    def get(self, numbers: Iterable[int]) -> tuple[Float32, ...]:
        """The activations of samples by number."""
        keys = _keys(numbers)
        records = np.empty((len(keys), self._codec.record_bytes), np.uint8)
        if not self._cache.get(keys, records).all():
            raise EngineError("the feature cache has lost samples")
        return self._codec.decode(records)

    def flush(self) -> None:
        """Put on disk what waits, as at the end of an epoch."""
        self._cache.flush()


def _keys(numbers: Iterable[int]) -> list[bytes]:
    return [record_key(str(number).encode(), 0, 0) for number in numbers]


def _refuse(message: str) -> None:
    raise EngineError("activations cannot be kept", where=message)


class Side:
    """Answers requests for one engine."""

    _run: TrainingRun
    _samples: Float32
    _labels: Int64
    _kept: Kept
    _peak_kib = 0  # up to the last copy of the weights

    def __init__(self, engine: str) -> None:
        self._engine = choose_engine(engine)

    def answer(self, request: Request) -> Reply:
        """One reply to one request; `error` holds what an engine refuses."""
        try:
            reply: Reply = getattr(self, f"do_{request['do']}")(request)
        except TemperdError as error:
            return {"error": str(error)}
        return reply

    def do_open(self, request: Request) -> Reply:
        """Compile for a boundary."""
        return_memory()  # as the worker does
        with np.load(request["batches"]) as arrays:
            self._samples, self._labels = arrays["samples"], arrays["labels"]
        self._folder = Path(request["folder"])
        graph = parse((self._folder / "model.onnx").read_bytes())
        optimizer = OptimizerSpec(request["optimizer"])
        shape = tuple(self._samples.shape[2:])
        frozen = int(request["frozen_layers"])
        setup = TrainingSetup(graph, self._samples.shape[1], shape, frozen, optimizer, int(request["threads"]))
        began = time.perf_counter()
        self._run = self._engine.start(setup)
        return {"ready_s": time.perf_counter() - began, "version": runtime()}

    def do_steps(self, request: Request) -> Reply:
        """Steps over the batches in turn; milliseconds and loss of each."""
        times, losses = [], []
        for index in self._turns(request):
            began = time.perf_counter()
            losses.append(self._run.step(self._samples[index], self._labels[index], request["learning_rate"]).loss)
            times.append(1e3 * (time.perf_counter() - began))
        return {"ms": times, "losses": losses}

    def do_first_epoch(self, request: Request) -> Reply:
        """An epoch that keeps what crosses the boundary of every sample; milliseconds of each step."""
        batch, times = self._samples.shape[1], []
        for step in range(request["count"]):
            index = step % len(self._labels)
            began = time.perf_counter()
            if step == 0:
                self._kept = Kept(self._folder / "features", self._run)
            crossing = self._run.boundary(self._samples[index])
            self._kept.put(range(step * batch, (step + 1) * batch), crossing)
            self._run.step_from_boundary(crossing, self._labels[index], request["learning_rate"])
            if step == request["count"] - 1:
                self._kept.flush()
            times.append(1e3 * (time.perf_counter() - began))
        self._kept_steps = int(request["count"])
        return {"ms": times}

    def do_cached_steps(self, request: Request) -> Reply:
        """Steps of a later epoch: kept activations, picked by sample in an order that is new every time."""
        batch, times = self._samples.shape[1], []
        draw = random.Random(request["first"])  # noqa: S311 - an order, not a secret; NumPy's takes 5 MiB of memory
        for _ in range(request["count"]):
            chosen = draw.randrange(self._kept_steps)
            rows = draw.sample(range(batch), batch)
            labels = self._labels[chosen % len(self._labels)][rows]  # labels of the batch stay its own
            began = time.perf_counter()
            self._run.step_from_boundary(
                self._kept.get([row + chosen * batch for row in rows]), labels, request["learning_rate"]
            )
            times.append(1e3 * (time.perf_counter() - began))
        return {"ms": times}

    def do_parameters(self, request: Request) -> Reply:
        """Write the learning weights to a file.

        The copy that this takes is the check's, not training's, and is left out of the peak; PyTorch's side needs none.
        """
        self._peak_kib = peak_resident_bytes() >> 10
        found = self._run.parameters()
        arrays: dict[str, Any] = {name: found[name] for name in self._run.trainable}
        np.savez(request["file"], **arrays)
        del found, arrays
        restart_peak()
        return {}

    def do_memory(self, _: Request) -> Reply:
        """Peak and present resident memory of this process, in KiB."""
        peak_kib = max(self._peak_kib, peak_resident_bytes() >> 10)
        return {"peak_kib": peak_kib, "resident_kib": resident_bytes() >> 10}

    def _turns(self, request: Request) -> list[int]:
        return [step % len(self._labels) for step in range(request["first"], request["first"] + request["count"])]


def runtime() -> str:
    """Name and version of the runtime in this environment."""
    for package in RUNTIMES:
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return "unknown"


def main() -> None:
    """Serve until standard input ends."""
    side = Side(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(side.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
