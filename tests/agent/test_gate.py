"""The gate's bounds on classes, weights and the owner's held-out data, one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.card import IMAGE_CLASSIFICATION, ModelCard, Preprocess
from agent.engine.passes import replace_head
from agent.errors import ConfigError
from agent.evaluate import Baseline, Score, score_logits
from agent.gate import Bounds, Gate, Judged
from agent.gate_classes import class_table, class_verdict, wilson_upper
from agent.gate_held_out import owners_data
from agent.gate_weights import moved, start_of, weight_verdict
from agent.spec import FineTuneSpec
from agent.task import Task
from policies.policy import GatePolicy, PolicyError, parse_policy
from tests.simulators.small_models import mobile_block_net

POLICY = GatePolicy()
NAMES = ("cat", "dog", "owl")


def score(*by_class: tuple[int, int]) -> Score:
    right, samples = (sum(column) for column in zip(*by_class, strict=True))
    return Score("accuracy", right / samples, 0.1, samples, finite=True, by_class=by_class)


# --- classes ----------------------------------------------------------------------------------------------------------


def test_the_upper_end_of_an_interval_is_wilsons() -> None:
    """Nothing right of n leaves z^2 / (n + z^2); 5 of 10 by hand: (0.5 + 0.3318 + 0.5251) / 1.6636."""
    assert wilson_upper(0, 10) == pytest.approx(2.576**2 / (10 + 2.576**2))
    assert wilson_upper(5, 10) == pytest.approx(0.8157, abs=1e-4)


@given(st.integers(1, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_upper_end_is_above_the_share_and_never_above_all(case: tuple[int, int]) -> None:
    right, samples = case
    assert right / samples - 1e-12 <= wilson_upper(right, samples) <= 1.0
    if right < samples:
        assert wilson_upper(right, samples) <= wilson_upper(right + 1, samples) + 1e-12


def test_a_class_given_up_for_the_others_is_refused_with_its_name() -> None:
    refused = class_verdict(score((40, 40), (3, 40), (40, 40)), [score((20, 40), (30, 40), (20, 40))], NAMES, POLICY)
    assert refused is not None
    assert refused.reason == "gate-class-floor"
    assert refused.evidence == "class dog: 3 of 40 held-out samples right, 30 before; the floor is 65%"


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=3, max_size=3))
def test_a_model_with_no_fewer_right_answers_passes_every_floor(pairs: list[tuple[int, int]]) -> None:
    old = score(*[(min(pair), 60) for pair in pairs])
    new = score(*[(max(pair), 60) for pair in pairs])
    assert class_verdict(new, [old], NAMES, POLICY) is None


def test_the_better_of_the_others_sets_the_floor() -> None:
    tuned, base, running = score((5, 40)), score((6, 40)), score((39, 40))
    assert class_verdict(tuned, [base], NAMES, POLICY) is None
    assert class_verdict(tuned, [base, running], NAMES, POLICY) is not None
    assert class_verdict(tuned, [base, None], NAMES, POLICY) is None
    assert class_verdict(tuned, [replace(running, finite=False)], NAMES, POLICY) is None


def test_few_samples_prove_nothing_and_an_owner_may_ask_for_a_least_share() -> None:
    assert class_verdict(score((0, 9)), [score((9, 9))], NAMES, POLICY) is None
    refused = class_verdict(score((0, 40)), [], NAMES, replace(POLICY, class_least=0.5))
    assert refused is not None
    assert "cat: 0 of 40" in refused.evidence


def test_counts_by_class_come_from_the_logits() -> None:
    logits = np.asarray([[2, 1, 0], [2, 1, 0], [0, 1, 2]], np.float32)
    found = score_logits(logits, np.asarray([0, 1, 2]))
    assert found.by_class == ((1, 1), (0, 1), (1, 1))
    assert class_table(found, [], NAMES) == {"dog": [0, 0, 1], "cat": [1, 0, 1], "owl": [1, 0, 1]}


# --- weights ----------------------------------------------------------------------------------------------------------


def weights_after(change: str, factor: float) -> str:
    base = mobile_block_net()
    start = start_of(base, base, 0)
    tuned = dict(base.initializers)
    tuned[change] = (tuned[change] * factor).astype(np.float32)
    refused = weight_verdict(moved(start, tuned), replace(POLICY, weight_update=1.0))
    return refused.reason + ": " + refused.evidence if refused else ""


@pytest.mark.parametrize("layer", ["stem.w", "depthwise2.w", "head.w"])
def test_a_layer_that_grew_or_shrank_or_turned_round_is_named(layer: str) -> None:
    assert weights_after(layer, 1.4) == ""
    assert weights_after(layer, 40.0).startswith(f"gate-weight-norm: norm of {layer}, factor ")
    assert weights_after(layer, 0.001).startswith(f"gate-weight-norm: norm of {layer}, factor")
    assert weights_after(layer, -1.0).startswith(f"gate-update-norm: change of {layer} ")
    assert weights_after(layer, float("nan")) == f"gate-not-finite: weights of {layer} are not finite"


def test_distances_are_those_of_whole_layers() -> None:
    base = mobile_block_net()
    tuned = dict(base.initializers) | {"stem.b": base.initializers["stem.b"] + np.float32(0.5)}
    norm = float(np.hypot(np.linalg.norm(base.initializers["stem.w"]), np.linalg.norm(base.initializers["stem.b"])))
    found = moved(start_of(base, base, 0), tuned)
    assert found.update_at == "stem.w"
    assert found.update == pytest.approx(0.5 * 8**0.5 / norm, rel=2e-3)


def test_only_what_learns_is_kept_and_a_new_head_is_judged_by_itself() -> None:
    base = mobile_block_net()
    graph = replace_head(base, 3, seed=1)
    start = start_of(graph, base, 6)
    assert set(start.layers) == {"project2.w"}
    assert start.fresh == {"head.w", "head.b"}
    tuned = dict(graph.initializers) | {"head.w": np.full((3, 8), -16, np.float32)}
    refused = weight_verdict(moved(start, tuned), POLICY)
    assert refused is not None
    assert (refused.reason, "16, gate.head_rms allows 15" in refused.evidence) == ("gate-weight-norm", True)


# --- the owner's part -------------------------------------------------------------------------------------------------


def test_a_job_may_tighten_and_never_loosen() -> None:
    base = mobile_block_net()
    own = score((36, 40), (36, 40))
    named = SimpleNamespace(classes=NAMES, baselines=(Baseline("majority", 0.5, "the largest class alone"),))
    task = cast("Task", named)
    for policy, job, accepted in ((0.05, -1.0, False), (-1.0, 0.05, False), (-1.0, -1.0, True), (-0.1, -1.0, True)):
        bounds = Bounds.of(replace(POLICY, least_gain=policy), job, keeps_head=True)
        gate = Gate(bounds, start_of(base, base, 0), Judged(task, own, own))
        assert gate.verdict(base.initializers).accepted is accepted


def owners(folder: Path, labels: tuple[str, ...]) -> Task | None:
    card = cast("ModelCard", SimpleNamespace(name="pets", task=IMAGE_CLASSIFICATION, preprocess=Preprocess(1.0, 0.0)))
    return owners_data(str(folder), FineTuneSpec("pets", "unused", image_size=8), card, labels)


def test_every_sample_of_the_owner_is_held_out_and_labelled_as_the_model_answers(tmp_path: Path) -> None:
    pixels = np.zeros((12, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "pets.npz", x_train=pixels, y_train=np.arange(12) % 2, classes=np.asarray(NAMES[1:]))
    task = owners(tmp_path, NAMES)
    assert task is not None
    assert (task.train_samples, task.test_samples) == (0, 12)
    assert task.score(np.eye(3, dtype=np.float32)[[1] * 12]).by_class == ((0, 0), (6, 6), (0, 6))
    with pytest.raises(ConfigError, match="have the class 'owl'"):
        owners(tmp_path, NAMES[:2])


def test_a_missing_folder_or_broken_data_close_the_gate(tmp_path: Path) -> None:
    assert owners(tmp_path, NAMES) is None, "the owner has no data for this model"
    (tmp_path / "pets.npz").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="cannot be used"):
        owners(tmp_path, NAMES)
    with pytest.raises(ConfigError, match="not there"):
        owners(tmp_path / "unmounted", NAMES)


def test_policies_without_a_gate_get_its_defaults() -> None:
    assert parse_policy('name = "old"\n').gate == POLICY
    with pytest.raises(PolicyError):
        parse_policy('name = "new"\n[gate]\nclass_drop = 2.0\n')
