"""temperd's own side of a bench: an engine behind the same requests that the peers answer (docs/bench.md).

A program of its own (`python -m service.bench_side graph`), so that its memory is that of training and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from agent.engine import choose_engine
from agent.engine.base import Float32, Int64, OptimizerSpec, TrainingRun, TrainingSetup
from agent.engine.footprint import return_memory
from agent.engine.ir import parse
from agent.errors import TemperdError

Request = dict[str, Any]
Reply = dict[str, object]
MEMORY = {"peak_kib": "VmHWM", "resident_kib": "VmRSS"}
RUNTIMES = ("onnxruntime", "onnxruntime-training-cpu")


class Side:
    """Answers requests for one engine."""

    _run: TrainingRun
    _samples: Float32
    _labels: Int64
    _cache: list[Float32]

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
        graph = parse((Path(request["folder"]) / "model.onnx").read_bytes())
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
        shapes = self._run.boundary_shapes.values()
        self._cache = [np.empty((request["count"] * batch, *shape), np.float32) for shape in shapes]
        for step in range(request["count"]):
            index = step % len(self._labels)
            began = time.perf_counter()
            crossing = self._run.boundary(self._samples[index])
            for kept, value in zip(self._cache, crossing, strict=True):
                kept[step * batch : (step + 1) * batch] = value
            self._run.step_from_boundary(crossing, self._labels[index], request["learning_rate"])
            times.append(1e3 * (time.perf_counter() - began))
        return {"ms": times}

    def do_cached_steps(self, request: Request) -> Reply:
        """Steps of a later epoch: kept activations, picked by sample in an order that is new every time."""
        batch, count, times = self._samples.shape[1], len(self._cache[0]), []
        order = np.random.default_rng(request["first"]).integers(0, count // batch, request["count"])
        for chosen in order:
            rows = np.random.default_rng(chosen).permutation(batch) + chosen * batch  # labels of the batch stay its own
            labels = self._labels[chosen % len(self._labels)][rows - chosen * batch]
            began = time.perf_counter()
            self._run.step_from_boundary([kept[rows] for kept in self._cache], labels, request["learning_rate"])
            times.append(1e3 * (time.perf_counter() - began))
        return {"ms": times}

    def do_parameters(self, request: Request) -> Reply:
        """Write the learning weights to a file."""
        found = self._run.parameters()
        arrays: dict[str, Any] = {name: found[name] for name in self._run.trainable}
        np.savez(request["file"], **arrays)
        return {}

    def do_memory(self, _: Request) -> Reply:
        """Peak and present resident memory of this process, in KiB."""
        status = Path("/proc/self/status").read_text("ascii")
        return {key: int(status.split(f"{field}:")[1].split()[0]) for key, field in MEMORY.items()}

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
