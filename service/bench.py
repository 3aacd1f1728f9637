"""`temperd bench train`: step times of the engines that this environment has, side by side in one run."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.errors import SpecError
from service.cli import say_json

if TYPE_CHECKING:
    from agent.engine.base import TrainingRun, TrainingSetup

DEPTHS = (0, 50, 75)
BLOCK = 5  # steps of one engine before the other has its turn: drift of a shared machine hits both
WARM_UP = 2  # first steps of a block allocate and are not counted
CLASSES = 10
LEARNING_RATE = 1e-4


def train(options: argparse.Namespace) -> int:
    """Medians of step times by depth and engine, and their ratios."""
    from agent.engine import choose_engine  # noqa: PLC0415 - needs the numeric stack

    engines = {}
    for name in options.engines:
        try:
            engine = choose_engine(name)
            engine.start(_setup(options, 100)).close()
            engines[name] = engine
        except SpecError as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
    if not engines:
        raise SpecError("none of these engines is installed here", where=", ".join(options.engines))
    rows = []
    for depth in DEPTHS:
        runs = {name: engine.start(_setup(options, depth)) for name, engine in engines.items()}
        rows.append({"depth_percent": depth, "step_ms": _measure(options, runs)})
        for run in runs.values():
            run.close()
    report = {
        "model": options.model,
        "batch": options.batch,
        "size": options.size,
        "optimizer": options.optimizer,
        "threads": options.threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "runtime": _runtime(),
        "rows": rows,
    }
    if options.json:
        say_json(report)
    else:
        _show(report, rows)
    return 0


def _setup(options: argparse.Namespace, depth_percent: int) -> TrainingSetup:
    from agent.cost import cost_table  # noqa: PLC0415 - numeric stack
    from agent.engine import base  # noqa: PLC0415 - same
    from agent.engine.passes import fold_batch_norm, replace_head  # noqa: PLC0415 - same
    from agent.publish import read_model  # noqa: PLC0415 - same
    from policies.freezing import snap  # noqa: PLC0415 - same

    graph, _ = read_model(options.model)
    graph = replace(graph, input_shape=(graph.input_shape[0], options.size, options.size))
    graph = replace_head(fold_batch_norm(graph), CLASSES, seed=0)
    frozen = snap((*cost_table(graph).crossing_bytes, 0), depth_percent)
    optimizer = base.OptimizerSpec(options.optimizer, momentum=0.9)
    return base.TrainingSetup(graph, options.batch, graph.input_shape, frozen, optimizer, options.threads)


def _measure(options: argparse.Namespace, runs: dict[str, TrainingRun]) -> dict[str, float]:
    """Median milliseconds a step, in turns of `BLOCK` counted steps."""
    import numpy as np  # noqa: PLC0415 - numeric stack

    rng = np.random.default_rng(0)
    samples = rng.standard_normal((options.batch, 3, options.size, options.size)).astype(np.float32)
    labels = rng.integers(0, CLASSES, options.batch)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            for step in range(WARM_UP + BLOCK):
                began = time.perf_counter()
                run.step(samples, labels, LEARNING_RATE)
                if step >= WARM_UP:
                    times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(found) for name, found in times.items()}


def _runtime() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - one use

    for package in ("onnxruntime", "onnxruntime-training-cpu"):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return "unknown"


def _show(report: dict[str, object], rows: list[dict[str, object]]) -> None:
    print(f"{report['model']}, {report['batch']} x {report['size']} px, {report['optimizer']}, {report['runtime']}")
    for row in rows:
        times = row["step_ms"]
        assert isinstance(times, dict)
        shown = "  ".join(f"{name} {value:7.1f} ms" for name, value in times.items())
        first = next(iter(times.values()))
        others = list(times.items())[1:]
        ratios = "  ".join(f"{name} / {next(iter(times))} = {value / first:.2f}" for name, value in others)
        print(f"  {row['depth_percent']:3} % frozen  {shown}  {ratios}")
