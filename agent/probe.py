"""Short trials on a job's training samples, before it is planned: what each parameter is worth, how deep to freeze.

The held-out samples are never looked at: they judge the job's result, so nothing may be chosen by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from agent.dataset import epoch_batches
from agent.engine.base import Float32, Int64, TrainingEngine, TrainingRun, TrainingSetup, UpdatePlan
from agent.engine.optimizers import gradient_norm
from agent.engine.sessions import FORWARD_CHUNK
from agent.errors import EngineError
from agent.task import Task

GAIN_SAMPLES = 512  # the head is warmed on so many at most: their features cost one forward pass each
GAIN_HEAD_EPOCHS = 3
GAIN_BATCHES = 8

Obey = Callable[[], object]
"""Called before every piece of work: waits out a pause, raises where the job was ended."""


def parameter_gains(
    engine: TrainingEngine, setup: TrainingSetup, task: Task, learning_rate: float, seed: int, obey: Obey
) -> dict[str, float]:
    """How much one small step of each parameter alone would lower the loss, per unit of learning rate.

    To first order a step w <- w - r g lowers the loss by r |g|^2, so a parameter is worth the sum of its squared
    gradients: the diagonal of the empirical Fisher information, summed over the parameter. A fresh head passes back
    noise, so it learns first, on features that are made once; then the squares of a few batches are averaged.

    Args:
        engine: makes the run, which is closed again.
        setup: of the job; its boundary is not used.
        task: gives the training samples.
        learning_rate: of the head's steps.
        seed: draws the samples.
        obey: see `Obey`.

    Raises:
        EngineError: a gradient is not finite, or the runtime failed.
    """
    layers = setup.graph.layers()
    chosen = np.random.default_rng((seed, len(layers))).permutation(task.train_samples)[:GAIN_SAMPLES]
    run = engine.start(replace(setup, frozen_layers=len(layers) - 1, learning=None))
    try:
        for _ in _fitted(run, task, chosen, setup.batch, GAIN_HEAD_EPOCHS, learning_rate, seed, obey):
            pass
        run.set_plan(UpdatePlan(0))
        gains = dict.fromkeys(run.trainable, 0.0)
        batches = list(epoch_batches(len(chosen), setup.batch, seed, GAIN_HEAD_EPOCHS))[:GAIN_BATCHES]
        for batch in batches:
            obey()
            for name, value in run.gradients(task.inputs(chosen[batch]), task.targets(chosen[batch])).items():
                gains[name] += gradient_norm([value]) ** 2 / len(batches)
    finally:
        run.close()
    if not np.isfinite(list(gains.values())).all():
        raise EngineError(
            "gradients of the trial are not finite", fix="Lower learning_rate, or set `update` to `prefix`"
        )
    return gains


def _fitted(
    run: TrainingRun, task: Task, chosen: Int64, batch: int, epochs: int, learning_rate: float, seed: int, obey: Obey
) -> Iterator[int]:
    """Train on chosen samples from what crosses the boundary, made once; yields the number of each epoch done.

    The rate is constant: a trial is too short for a schedule to be worth its choice.
    """
    kept = _crossed(run, task, chosen, obey)
    for epoch in range(epochs):
        for rows in epoch_batches(len(chosen), batch, seed, epoch):
            obey()
            run.step_from_boundary([part[rows] for part in kept], task.targets(chosen[rows]), learning_rate)
        yield epoch


def _crossed(run: TrainingRun, task: Task, chosen: Int64, obey: Obey) -> Sequence[Float32]:
    """What crosses the boundary for chosen samples, a few at a time: one array [M, ...] a tensor."""
    parts = []
    for start in range(0, len(chosen), FORWARD_CHUNK):
        obey()
        parts.append(run.boundary(task.inputs(chosen[start : start + FORWARD_CHUNK])))
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
