"""The 8-bit frozen part of a run: tried, checked, kept or given up, and gone when it must be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.card import Preprocess
from agent.classification import Classification
from agent.engine import quantize
from agent.engine.base import LossSpec, OptimizerSpec, TrainingSetup
from agent.engine.graph import GraphEngine, GraphRun
from agent.errors import ModelError
from agent.images import Images
from agent.int8 import WORTH_RUNS, choose_form, class_means_score, expected_runs
from agent.spec import FineTuneSpec
from tests.simulators.small_models import colour_images, mobile_block_net

SPEC = FineTuneSpec("net", "/data", prefix="int8", batch=8)


def task(samples: int = 120) -> Classification:
    pixels, labels = colour_images(samples + 30)
    parts = Images(pixels[:samples], labels[:samples], pixels[samples:], labels[samples:], ("red", "green", "blue"))
    return Classification(parts, Preprocess(1 / 127.5, -1.0), LossSpec())


def run_at(frozen: int) -> GraphRun:
    net = mobile_block_net()
    run = GraphEngine().start(TrainingSetup(net, 8, net.input_shape, frozen, OptimizerSpec(), threads=1))
    assert isinstance(run, GraphRun)
    return run


def samples(count: int) -> np.ndarray:
    return task().inputs(np.arange(count))


@pytest.mark.parametrize("faster", [True, False])
def test_what_is_kept_gives_nearly_the_same_and_another_digest(
    monkeypatch: pytest.MonkeyPatch, *, faster: bool
) -> None:
    times = {"float": 2.0, "int8": 1.0 if faster else 3.0}  # which it is on this processor is its own affair
    monkeypatch.setattr(quantize, "median_seconds", lambda runs, **_: {name: times[name] for name in runs})
    run = run_at(5)
    exact, digest = run.boundary(samples(16)), run.prefix_digest
    check = run.use_int8(samples(64), samples(32), lambda _: 1.0)
    assert check.keep == faster
    assert check.float_score == check.int8_score == 1.0
    rough = run.boundary(samples(16))
    assert np.array_equal(rough[0], exact[0]) != faster
    assert (run.prefix_digest == digest) != faster
    assert np.linalg.norm(rough[0] - exact[0]) < 0.1 * np.linalg.norm(exact[0])
    run.use_float32()
    np.testing.assert_array_equal(run.boundary(samples(16))[0], exact[0])
    assert run.prefix_digest == digest


def test_a_lower_score_gives_it_up() -> None:
    run = run_at(5)
    scores = iter((0.9, 0.89))
    check = run.use_int8(samples(64), samples(32), lambda _: next(scores))
    assert not check.keep
    assert "0.0100 lower" in check.reason
    np.testing.assert_array_equal(run.boundary(samples(3))[0], run_at(5).boundary(samples(3))[0])


def test_a_smaller_micro_batch_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "median_seconds", lambda _, **__: {"float": 2.0, "int8": 1.0})
    run = run_at(5)
    assert run.use_int8(samples(64), samples(32), lambda _: 1.0).keep
    before, digest = run.boundary(samples(16))[0], run.prefix_digest
    run.set_micro_batch_share(0.25)
    assert (run.micro_batch, run.prefix_digest) == (2, digest)
    np.testing.assert_allclose(run.boundary(samples(16))[0], before, rtol=1e-4, atol=1e-5)
    run.use_float32()
    np.testing.assert_allclose(run.boundary(samples(3))[0], run_at(5).boundary(samples(3))[0], rtol=1e-4, atol=1e-5)


def test_it_never_outlives_a_change_of_what_is_frozen() -> None:
    run, straight = run_at(5), run_at(3)
    run.use_int8(samples(64), samples(32), lambda _: 1.0)
    run.set_frozen_layers(3)
    np.testing.assert_array_equal(run.boundary(samples(4))[0], straight.boundary(samples(4))[0])


def test_with_nothing_frozen_there_is_nothing_to_run_in_8_bits() -> None:
    with pytest.raises(ModelError, match="nothing is frozen"):
        run_at(0).use_int8(samples(8), samples(8), lambda _: 1.0)


def test_class_means_tell_classes_apart_only_by_what_activations_say() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    clear = rng.standard_normal((90, 4, 2, 2)).astype(np.float32)
    clear[np.arange(90), labels] += 5
    score = class_means_score([clear[:60]], labels[:60], labels[60:])
    assert score([clear[60:]]) > 0.95
    assert score([rng.permutation(clear[60:])]) < 0.7


@pytest.mark.parametrize(
    ("changes", "frozen", "reason"),
    [
        ({"prefix": "float32"}, 5, "asked for"),
        ({}, 0, "nothing is frozen"),
        ({"prefix": "auto"}, 5, "not worth trying"),
    ],
)
def test_why_it_is_not_tried_is_told(changes: dict[str, str], frozen: int, reason: str) -> None:
    told = choose_form(run_at(frozen), replace(SPEC, **changes), task())
    assert told["form"] == "float32"
    assert reason in str(told["reason"])


def test_too_few_samples_are_not_tried() -> None:
    assert "too few" in str(choose_form(run_at(5), SPEC, task(30))["reason"])


def test_where_it_is_tried_both_times_and_scores_are_told() -> None:
    told = choose_form(run_at(5), SPEC, task())
    assert told["form"] in ("float32", "int8")
    assert all(isinstance(told[key], float) for key in ("float_ms", "int8_ms", "float_score", "int8_score"))


def test_a_cache_makes_fewer_runs_to_expect() -> None:
    spec = replace(SPEC, epochs=10, views=3)
    assert expected_runs(spec, task()) == 3 * 120
    assert expected_runs(replace(spec, cache="off"), task()) == 10 * 120
    assert expected_runs(replace(spec, epochs=2), task()) == 2 * 120 < WORTH_RUNS
