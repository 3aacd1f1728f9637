"""R1's table: work, memory and held-out accuracy against the freeze depth, over seeds and data sets."""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.card import Preprocess
from agent.cost import cost_table
from agent.dataset import epoch_batches
from agent.engine import choose_engine
from agent.engine.base import Float32, OptimizerSpec, TrainingRun, TrainingSetup
from agent.errors import EngineError, SpecError
from agent.evaluate import majority_share, score_logits
from agent.images import Images, load, preprocessed
from agent.publish import IMAGENET_OFFSET, IMAGENET_SCALE
from service.bench_files import bench_graph, layers_at, write_batches, write_case
from service.bench_peers import Side, entries
from service.bench_train import BLOCK, KIB_IN_MIB, LEARNING_RATE, WARM_UP

DEPTHS = (0, 25, 50, 75, 100)  # the last: the head alone
ARTICLE = {25: (-30.0, -28.0, -0.8), 50: (-55.0, -52.0, -1.5), 75: (-78.0, -75.0, -2.8)}
"""The article's figures (R1): work and memory in percent of full fine-tuning, accuracy in points."""
HELD_OUT = 0.25
MOST_SAMPLES = 20_000
FORWARD_CHUNK = 64
WARM_UP_SHARE = 0.05  # as a job's: a fresh head's first gradients would throw the features about
RULE = Preprocess(IMAGENET_SCALE, IMAGENET_OFFSET)


@dataclass(frozen=True, slots=True)
class Study:
    """What is trained, the same at every depth."""

    model: str
    seeds: tuple[int, ...]
    batch: int
    size: int
    epochs: int
    learning_rate: float
    threads: int


def measure(study: Study, sources: Sequence[str], tell: Callable[[str], None]) -> dict[str, object]:
    """The table: one row a depth, with the accuracy on each data set.

    Raises:
        SpecError: two data sets of one name.
        DataError: a data set cannot be read.
        EngineError: training fails.
    """
    images = {Path(source).stem: source for source in sources}
    if len(images) < len(sources):
        raise SpecError("two data sets have the same name", where="--data", fix="Rename one, or name it once")
    accuracy: dict[str, dict[int, list[float]]] = {}
    floors: dict[str, float] = {}
    for name, source in images.items():
        accuracy[name] = {depth: [] for depth in DEPTHS}
        for seed in study.seeds:
            data = load(source, study.size, HELD_OUT, seed, MOST_SAMPLES)
            floors[name] = majority_share(data.y_test)
            for depth in DEPTHS:
                found = tuned_accuracy(study, data, depth, seed)
                accuracy[name][depth].append(found)
                tell(f"{name}, seed {seed}, {depth} %: {found:.4f}")
    rows = [
        {
            "depth_percent": depth,
            **costs,
            "accuracy": {name: spread(found[depth]) for name, found in accuracy.items()},
            "accuracy_points": {name: points_lost(found[0], found[depth]) for name, found in accuracy.items()},
            "article": dict(zip(("work_percent", "memory_percent", "points"), ARTICLE[depth], strict=True))
            if depth in ARTICLE
            else None,
        }
        for depth, costs in zip(DEPTHS, _costs(study), strict=True)
    ]
    return {
        "model": Path(study.model).stem,
        "batch": study.batch,
        "size": study.size,
        "epochs": study.epochs,
        "learning_rate": study.learning_rate,
        "seeds": list(study.seeds),
        "largest_class": floors,
        "rows": rows,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, and sample standard deviation where there is more than one value."""
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def points_lost(full: Sequence[float], frozen: Sequence[float]) -> dict[str, float]:
    """Accuracy against full fine-tuning of the same seed, in points: seeds differ more among each other than depths."""
    return spread([100 * (own - base) for base, own in zip(full, frozen, strict=True)])


def _costs(study: Study) -> Iterator[dict[str, object]]:
    """Work and memory of a step, a fresh process a depth."""
    (entry,) = entries((), Path())
    with tempfile.TemporaryDirectory(prefix="temperd-bench-") as folder:
        case = write_case(Path(folder), bench_graph(study.model, study.size, classes=10, seed=0))
        batches = write_batches(case, study.batch)
        full: tuple[float, float, float] | None = None
        for depth in DEPTHS:
            frozen = case.frozen_layers(depth)
            side = Side(entry, case.folder)
            try:
                start = side.ask("memory")["resident_kib"] / KIB_IN_MIB
                side.ask(
                    "open",
                    folder=folder,
                    batches=str(batches),
                    frozen_layers=frozen,
                    optimizer="sgd",
                    threads=study.threads,
                )
                times = side.ask("steps", first=0, count=WARM_UP + BLOCK, learning_rate=LEARNING_RATE)["ms"]
                peak = side.ask("memory")["peak_kib"] / KIB_IN_MIB
            finally:
                side.close()
            work = float(case.costs.step_macs(frozen))
            full = full or (work, peak, peak - start)
            yield {
                "frozen_layers": frozen,
                "step_million_macs": work / 1e6,
                "work_percent": change(work, full[0]),
                "peak_mib": peak,
                "peak_percent": change(peak, full[1]),
                "training_mib": peak - start,
                "memory_percent": change(peak - start, full[2]),
                "step_ms": statistics.median(times[WARM_UP:]),
            }


def change(value: float, full: float) -> float:
    """Difference to full fine-tuning, in percent of it."""
    return 100 * (value / full - 1)


def tuned_accuracy(study: Study, data: Images, depth: int, seed: int) -> float:
    """Fine-tune once and score on the held-out images; 0..1.

    SGD with momentum, a short warm-up and half a cosine; the seed draws the head and the order of samples. What the
    frozen part makes of an image is kept from the first epoch on.

    Raises:
        EngineError: loss or gradient were not finite.
    """
    graph = bench_graph(study.model, study.size, len(data.classes), seed)
    frozen = layers_at(cost_table(graph), depth)
    setup = TrainingSetup(graph, study.batch, graph.input_shape, frozen, OptimizerSpec("sgd"), study.threads)
    run = choose_engine("graph").start(setup)
    try:
        kept = boundary_of(run, preprocessed(data.x_train, RULE))
        steps = -(-len(data.y_train) // study.batch)
        for epoch in range(study.epochs):
            for step, chosen in enumerate(epoch_batches(len(data.y_train), study.batch, seed, epoch)):
                rate = study.learning_rate * rate_share(epoch * steps + step, study.epochs * steps)
                done = run.step_from_boundary([rows[chosen] for rows in kept], data.y_train[chosen], rate)
                if not done.kept:
                    raise EngineError(
                        "training diverged", where=f"{depth} %, epoch {epoch + 1}", fix="Lower --learning-rate"
                    )
        return score_logits(run.outputs(preprocessed(data.x_test, RULE)), data.y_test).value
    finally:
        run.close()


def boundary_of(run: TrainingRun, samples: Float32) -> list[Float32]:
    """What crosses the freeze boundary, for all samples, a chunk at a time."""
    parts = [run.boundary(samples[start : start + FORWARD_CHUNK]) for start in range(0, len(samples), FORWARD_CHUNK)]
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def rate_share(done: int, total: int) -> float:
    """Share of the learning rate at a step: linear warm-up, then half a cosine (Loshchilov and Hutter 2017)."""
    warm = max(1, int(total * WARM_UP_SHARE))
    if done < warm:
        return (done + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, total - warm)))
