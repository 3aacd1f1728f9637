"""Short trials on a job's training samples, before it is planned: what each parameter is worth, how deep to freeze.

The held-out samples are never looked at: they judge the job's result, so nothing may be chosen by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from agent.dataset import epoch_batches
from agent.engine.base import Float32, Int64, TrainingEngine, TrainingRun, TrainingSetup, UpdatePlan
from agent.engine.optimizers import gradient_norm
from agent.engine.sessions import FORWARD_CHUNK
from agent.errors import EngineError
from agent.schedule import rate_share
from agent.task import Task

GAIN_SAMPLES = 512  # the head is warmed on so many at most: their features cost one forward pass each
GAIN_HEAD_EPOCHS = 3
GAIN_BATCHES = 8
TRIAL_SAMPLES = 512  # an upper bound of what a trial costs, whatever the data
TRIAL_EPOCHS = 4  # with two, deeper boundaries look better than they are: their few layers settle sooner
TRIAL_WARM_UP = 0.05
SET_APART = 4  # one sample in so many judges the trial and does not learn

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
        kept = _crossed(run, task, chosen, obey)
        for epoch in range(GAIN_HEAD_EPOCHS):
            for rows in epoch_batches(len(chosen), setup.batch, seed, epoch):
                obey()
                run.step_from_boundary([part[rows] for part in kept], task.targets(chosen[rows]), learning_rate)
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


def trial_loss(
    engine: TrainingEngine, setup: TrainingSetup, task: Task, learning_rate: float, seed: int, obey: Obey
) -> float:
    """Loss on training samples set apart, after a short training of the others at the setup's boundary.

    Equal seeds give equal samples and batches at every depth. What crosses the boundary is made once and kept in
    memory.

    Args:
        engine: makes the run, which is closed again.
        setup: of the job, with the boundary to try.
        task: gives the training samples.
        learning_rate: peak of the schedule.
        seed: draws the samples.
        obey: see `Obey`.

    Raises:
        EngineError: the runtime failed.
    """
    chosen = np.random.default_rng((seed, setup.batch)).permutation(task.train_samples)[:TRIAL_SAMPLES]
    apart, learning = np.split(chosen, [len(chosen) // SET_APART])
    run = engine.start(setup)
    try:
        kept = _crossed(run, task, learning, obey)
        steps = -(-len(learning) // setup.batch)
        total = TRIAL_EPOCHS * steps
        for epoch in range(TRIAL_EPOCHS):
            for step, rows in enumerate(epoch_batches(len(learning), setup.batch, seed, epoch)):
                obey()
                rate = learning_rate * rate_share(epoch * steps + step, total, TRIAL_WARM_UP, falls=True)
                run.step_from_boundary([part[rows] for part in kept], task.targets(learning[rows]), rate)
        return _loss(run, task, apart, setup.batch, obey)
    finally:
        run.close()


def _loss(run: TrainingRun, task: Task, chosen: Int64, batch: int, obey: Obey) -> float:
    """Mean loss over chosen samples, by steps of rate 0: whatever the loss is, it is the one that is trained.

    They may change the optimizer's state, so the run is of no use afterwards.
    """
    losses = []
    for rows in epoch_batches(len(chosen), batch, 0, 0):
        obey()
        samples = chosen[rows]
        losses.append(run.step(task.inputs(samples), task.targets(samples), 0.0).loss)
    return float(np.mean(losses))


def _crossed(run: TrainingRun, task: Task, chosen: Int64, obey: Obey) -> Sequence[Float32]:
    """What crosses the boundary for chosen samples, a few at a time: one array [M, ...] a tensor."""
    parts = []
    for start in range(0, len(chosen), FORWARD_CHUNK):
        obey()
        parts.append(run.boundary(task.inputs(chosen[start : start + FORWARD_CHUNK])))
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
