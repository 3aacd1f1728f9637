"""Scoring a model on held-out data of the board, beside any job."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from agent.anomaly import anomaly_detection
from agent.card import ANOMALY_DETECTION, IMAGE_CLASSIFICATION, Preprocess, parse_window_rule
from agent.classification import classification
from agent.engine.infer import Inference
from agent.engine.ir import Graph, parse
from agent.engine.sessions import FORWARD_CHUNK
from agent.errors import BoardError, SpecError
from agent.evaluate import Score
from agent.forecasting import forecasting
from agent.gate import told_score
from agent.keys import load_identity
from agent.messages import EvaluateOrder, Finished, Message, Warned
from agent.model import MOST_NAMED, load_base
from agent.orders import Obedience, Orders
from agent.pull import pull
from agent.slots import read_status
from agent.spec import EvaluateSpec, FineTuneSpec
from agent.store import Store
from agent.switch import BASE, slot_of
from agent.task import Task, load_task
from agent.trust import ModelRepository
from policies.strict import build

MOST_REST_S = 10.0  # between two pieces: a board that was hot for long is soon asked again
LEAST_DUTY = 0.01
_SHA256 = re.compile(r"[0-9a-f]{64}")

Emit = Callable[[Message], None]


class _Subject(NamedTuple):
    """A model and the held-out samples as it takes them."""

    name: str
    version: str
    sha256: str
    """Of its plaintext."""
    graph: Graph
    task: Task


class Evaluation:
    """Scores one model.

    Args:
        order: what is asked for.
        emit: sends a message to the daemon.
        orders: where its orders arrive.
    """

    def __init__(self, order: EvaluateOrder, emit: Emit, orders: Orders) -> None:
        self._order, self._emit, self._orders = order, emit, orders
        self._spec = build(EvaluateSpec, order.spec)
        self._state = Path(order.state_dir)
        self._obedience = Obedience(orders, emit, lambda _stage, _detail: None)

    def execute(self) -> Finished:
        """Load, score, tell.

        Raises:
            TemperdError: the model or the data cannot be used, or an order ends it. Nothing on the disk changes but
                that a base may have been downloaded.
        """
        began = time.monotonic()
        subject = self._subject()
        count, told = subject.task.skipped()
        if count:
            self._emit(Warned(told))
        score = self._score(subject)
        return Finished(
            "SUCCEEDED",
            "",
            {
                "metric": score.metric,
                "score": told_score(score),
                "samples": score.samples,
                "model": subject.sha256,
                "name": subject.name,
                "base_version": subject.version,
                "baselines": {line.name: line.value for line in subject.task.baselines},
                "skipped": count,
                "wall_s": time.monotonic() - began,
            },
        )

    def _subject(self) -> _Subject:
        wanted = self._spec.model
        store = _open_store(self._state)
        if not wanted:
            return self._tuned(*store.load_active())
        if _SHA256.fullmatch(wanted):
            slot = slot_of(self._state / "store", wanted, read_status(self._state / "store").in_use())
            return self._tuned(*store.load(slot))
        if wanted != BASE:
            return self._published(wanted, "latest", 0)
        active = store.active()
        if active is None:
            raise BoardError(
                "no tuned model is active, so which base is meant is not known",
                fix="Give the name of a published model", reason="no-active-model",
            )  # fmt: skip
        manifest = active.manifest
        size = manifest.get("image_size", 0)
        return self._published(str(manifest["name"]), str(manifest["base_version"]), cast("int", size))

    def _tuned(self, model: bytes, manifest: dict[str, Any]) -> _Subject:
        """A model from a slot; what its manifest says was written by a job and is bound to it."""
        name, kind = str(manifest["name"]), manifest.get("task", IMAGE_CLASSIFICATION)
        if kind == IMAGE_CLASSIFICATION:
            rule = Preprocess(manifest["scale"], manifest["offset"])
            pictures = classification(self._job(name, manifest["image_size"]), rule, self._obedience.obey)
            task = _labelled(pictures, tuple(manifest["classes"]))
        else:
            read = anomaly_detection if kind == ANOMALY_DETECTION else forecasting
            task = read(self._job(name, 0), parse_window_rule(manifest.get("windows")))
        return _Subject(name, str(manifest["base_version"]), str(manifest["model_sha256"]), parse(model), task)

    def _published(self, name: str, version: str, image_size: int) -> _Subject:
        order = self._order
        repository = ModelRepository(
            order.repository_url, Path(order.repository_root), self._state / "repository",
            pause=self._obedience.nap, obey=self._obedience.obey,
        )  # fmt: skip
        target, plaintext = pull(
            repository, load_identity(self._state / "keys"), (name, version, order.board), self._obedience.enter,
            lambda what: self._emit(Warned(what)), metered=order.metered, obey=self._obedience.obey,
        )  # fmt: skip
        card = target.card
        size = image_size or card.input_shape[-1]
        base = load_base(plaintext, card, size)
        task = load_task(self._job(name, size), card, self._obedience.obey)
        return _Subject(name, card.version, card.plaintext_sha256, base.graph, _labelled(task, card.labels))

    def _job(self, name: str, image_size: int) -> FineTuneSpec:
        """The job whose held-out samples these are."""
        spec = self._spec
        job = FineTuneSpec(
            name, spec.data, held_out=spec.held_out, seed=spec.seed, most_samples=spec.most_samples,
            columns=spec.columns, label=spec.label, missing=spec.missing, stride=spec.stride, season=spec.season,
        )  # fmt: skip
        return replace(job, image_size=image_size) if image_size else job

    def _score(self, subject: _Subject) -> Score:
        run, task, parts = Inference(subject.graph, self._order.threads).run, subject.task, []
        for start in range(0, task.test_samples, FORWARD_CHUNK):
            self._obedience.obey()
            began = time.monotonic()
            parts.append(task.measured(run(task.test_inputs(start, start + FORWARD_CHUNK)), start))
            self._rest(time.monotonic() - began)
        return task.score(np.concatenate(parts))

    def _rest(self, busy_s: float) -> None:
        """Keep the share of time that the governor allows."""
        duty = max(self._orders.steer().duty, LEAST_DUTY)
        if duty < 1.0:
            self._obedience.nap(min(busy_s * (1.0 / duty - 1.0), MOST_REST_S))


def _labelled(task: Task, classes: tuple[str, ...]) -> Task:
    """The samples by the classes of the model's outputs.

    Raises:
        SpecError: they have others.
    """
    if not task.classes:
        return task
    if not classes:
        raise SpecError("the model names no classes, so labels cannot be judged by its outputs", where="model")
    if unknown := sorted(set(task.classes) - set(classes)):
        raise SpecError(
            f"classes unknown to the model: {', '.join(unknown[:MOST_NAMED])}",
            where=f"{len(unknown)} of {len(task.classes)}", fix="Take data with classes of the model",
        )  # fmt: skip
    return task.with_classes(classes)


def _open_store(state: Path) -> Store:
    return Store(state / "store", *load_identity(state / "keys").storage_keys)
