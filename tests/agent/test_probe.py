from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.engine.base import OptimizerSpec, TrainingSetup
from agent.engine.graph import GraphEngine
from agent.errors import EngineError
from agent.probe import GAIN_HEAD_EPOCHS, parameter_gains
from tests.agent.test_trainer import DATA, JobEndedError
from tests.simulators.small_models import mobile_block_net

NET = mobile_block_net()
SETUP = TrainingSetup(NET, 6, NET.input_shape, 0, OptimizerSpec("sgd"), threads=1)


def free() -> None:
    """Nothing holds the work up."""


def loss_after(parameter: str, rate: float) -> float:
    """Loss of the whole training part once one parameter made a step of plain SGD, everything else as it was."""
    size = DATA.train_samples
    every = np.arange(size, dtype=np.int64)
    setup = replace(SETUP, batch=size, learning=frozenset([parameter]), optimizer=OptimizerSpec("sgd", momentum=0.0))
    run = GraphEngine().start(setup)
    run.step(DATA.inputs(every), DATA.targets(every), rate)
    return run.step(DATA.inputs(every), DATA.targets(every), 0.0).loss


def test_gradients_are_those_of_a_step_and_change_nothing() -> None:
    run = GraphEngine().start(replace(SETUP, optimizer=OptimizerSpec("sgd", momentum=0.0)))
    before = run.parameters()
    samples, targets = DATA.inputs(np.arange(6)), DATA.targets(np.arange(6))
    found = run.gradients(samples, targets)
    assert list(found) == list(run.trainable)
    assert all(np.array_equal(before[name], value) for name, value in run.parameters().items())
    run.step(samples, targets, 0.5)
    for name, value in run.parameters().items():
        np.testing.assert_allclose(value, before[name] - np.float32(0.5) * found[name], rtol=1e-4, atol=1e-6)


def test_a_run_may_begin_with_a_sparse_plan() -> None:
    run = GraphEngine().start(replace(SETUP, frozen_layers=3, learning=frozenset(["project2.b", "head.w"])))
    assert run.trainable == ("project2.b", "head.w")


def test_the_gain_of_a_parameter_is_the_loss_its_own_small_step_takes_away() -> None:
    size = DATA.train_samples
    gains = parameter_gains(GraphEngine(), replace(SETUP, batch=size), DATA, 0.0, 0, free)  # a head that stays fresh
    rate = 1e-4
    start = loss_after("head.b", 0.0)
    for name in ("stem.w", "depthwise.b", "project2.w", "head.w"):
        assert start - loss_after(name, rate) == pytest.approx(rate * gains[name], rel=0.05, abs=2e-7)


def test_gains_are_the_same_again_and_the_head_learns_before() -> None:
    gains = parameter_gains(GraphEngine(), SETUP, DATA, 0.05, 3, free)
    assert gains == parameter_gains(GraphEngine(), SETUP, DATA, 0.05, 3, free)
    assert gains["head.w"] < parameter_gains(GraphEngine(), SETUP, DATA, 0.0, 3, free)["head.w"]


def test_an_order_ends_the_trial_before_the_next_step() -> None:
    asked: list[int] = []

    def obey() -> None:
        asked.append(1)
        if len(asked) == GAIN_HEAD_EPOCHS:
            raise JobEndedError("ended")

    with pytest.raises(JobEndedError):
        parameter_gains(GraphEngine(), SETUP, DATA, 0.05, 0, obey)
    assert len(asked) == GAIN_HEAD_EPOCHS


def test_gradients_that_are_not_finite_are_refused() -> None:
    graph = NET.with_weights({"head.w": np.full_like(NET.initializers["head.w"], 3e38)})
    with pytest.raises(EngineError, match="not finite"):
        parameter_gains(GraphEngine(), replace(SETUP, graph=graph), DATA, 0.05, 0, free)
