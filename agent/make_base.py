"""Base models of our own for anomalies and forecasts: made, trained on source data, and described by a card."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.anomaly import anomaly_detection
from agent.card import MAX_DIMENSION, WindowRule, window_table
from agent.cost import cost_table
from agent.durable import write_atomic
from agent.engine import choose_engine
from agent.engine.bases import dense_autoencoder, dilated_forecaster
from agent.engine.ir import Graph, serialize
from agent.errors import DataError, SpecError
from agent.finetune import training_setup
from agent.forecasting import forecasting
from agent.frozen_guard import FrozenGuard
from agent.plan import make_plan
from agent.series import column_names, read_series
from agent.spec import LABEL, FineTuneSpec, parse_spec
from agent.task import Task
from agent.trainer import FREE, Trainer, World
from policies.policy import Policy
from policies.strict import TableError

HELD_OUT = 0.2
BATCH = 64
LEARNING_RATE = 0.002  # AdamW; twice that diverged in no trial and was no better
CONSTANT = 1e-6  # a column that deviates less than this share of its size is constant: dividing by it would be noise
MOST_WINDOWS = 1_000_000


@dataclass(frozen=True, slots=True)
class BaseRequest:
    """What base to make.

    Attributes:
        kind: `anomaly` or `forecast`.
        data: the file of rows to learn from; see `agent.series`.
        columns: features in input order; empty: all columns but the label.
        label: column of labels.
        missing: see `agent.spec`.
        window: rows of one sample.
        horizon: rows forecast.
        target: column forecast; empty: the first.
        season: rows of one season; 0: none.
        epochs: passes over the windows.
        seed: of weights and order.
        threads: intra-op threads.
    """

    kind: str
    data: str
    columns: tuple[str, ...] = ()
    label: str = LABEL
    missing: str = "skip"
    window: int = 32
    horizon: int = 1
    target: str = ""
    season: int = 0
    epochs: int = 20
    seed: int = 0
    threads: int = 2


def make_base(request: BaseRequest, out: Path) -> dict[str, object]:
    """Make, train and write a base, and its card beside it as `<out without suffix>.card.json`.

    Returns:
        Its held-out score (`metric`, `value`, `baselines`), `parameters`, `train_samples` and `epochs`.

    Raises:
        DataError: the data cannot be used.
        SpecError: a value out of bounds, or names that do not fit.
        BoardError: the files cannot be written.
    """
    spec = _spec(request)
    rule = _rule(request)
    task: Task
    if request.kind == "anomaly":
        task, graph = anomaly_detection(spec, rule), dense_autoencoder(rule.sample_shape[0], request.seed)
    else:
        task = forecasting(spec, rule)
        place = rule.columns.index(rule.target)
        graph = dilated_forecaster(len(rule.columns), rule.window, rule.horizon, place, request.seed)
    trained, made = _train(spec, task, graph, request.threads)
    card = {"task": task.name, "windows": window_table(rule)}
    write_atomic(out, serialize(trained), 0o644)
    write_atomic(out.with_suffix(".card.json"), json.dumps(card, indent=2).encode(), 0o644)
    return made


def _spec(request: BaseRequest) -> FineTuneSpec:
    return parse_spec(
        {
            "model": "base",
            "data": request.data,
            "columns": request.columns,
            "label": request.label,
            "missing": request.missing,
            "epochs": request.epochs,
            "seed": request.seed,
            "season": request.season,
            "batch": BATCH,
            "optimizer": "adamw",
            "learning_rate": LEARNING_RATE,
            "held_out": HELD_OUT,
            "most_samples": MOST_WINDOWS,
            "depth": "0",
            "clip_norm": 1.0,
        }
    )


def _rule(request: BaseRequest) -> WindowRule:
    """Columns as asked for, with the statistics of the part that is learnt from."""
    columns = request.columns or tuple(name for name in column_names(request.data) if name != request.label)
    forecast = request.kind == "forecast"
    series = read_series(request.data, columns, "", request.missing)
    known = series.values[: len(series.values) - round(len(series.values) * HELD_OUT)]
    known = known[series.sound[: len(known)]].astype(np.float64)
    if not len(known):
        raise DataError("no sound row to learn from", where=request.data)
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    deviation = np.where(deviation > CONSTANT * np.maximum(1.0, np.abs(mean)), deviation, 1.0)
    try:
        rule = WindowRule(
            columns,
            tuple(map(float, mean)),
            tuple(map(float, deviation)),
            request.window,
            "FT" if forecast else "flat",
            request.horizon if forecast else 0,
            (request.target or columns[0]) if forecast else "",
            request.season if forecast else 0,
        )
    except TableError as error:
        raise SpecError(error.what, where=error.key) from error
    for key, size in (("window", request.window), ("horizon", request.horizon), ("window", max(rule.sample_shape))):
        if not 1 <= size <= MAX_DIMENSION:
            raise SpecError(f"{size} is outside 1..{MAX_DIMENSION}", where=key, fix="Take fewer rows or columns")
    return rule


def _train(spec: FineTuneSpec, task: Task, graph: Graph, threads: int) -> tuple[Graph, dict[str, object]]:
    plan = make_plan(
        spec, Policy(), cost_table(graph), None,
        engine="graph", classes=(), head="keep", samples=task.train_samples, data_sha256="",
    )  # fmt: skip
    run = choose_engine(plan.engine).start(training_setup(spec, plan, graph, task, threads))
    world = World(
        lambda: FREE, lambda: None, lambda _: None, lambda _: None, time.monotonic, time.sleep
    )  # on a laptop nobody steers, and what is lost is made again
    try:
        guard = FrozenGuard(run, task, time.monotonic, Policy().memory.verify_every_s)
        score = Trainer(run, plan, spec, task, world, guard).train()
        trained = graph.with_weights(dict(run.parameters()))
    finally:
        run.close()
    made = {
        "task": task.name,
        "metric": score.metric,
        "value": score.value,
        "baselines": {line.name: round(line.value, 4) for line in task.baselines},
        "parameters": sum(trained.initializers[name].size for layer in trained.layers() for name in layer.parameters),
        "train_samples": task.train_samples,
        "epochs": spec.epochs,
    }
    return trained, made
