"""The cache between a real run and the trainer: what it saves, and that it changes nothing that is learnt."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent.card import ANOMALY_DETECTION, ModelCard, WindowRule
from agent.cost import cost_table
from agent.errors import SpecError
from agent.features import FeatureCache, Limits
from agent.features_blocks import MAX_RECORD_BYTES
from agent.features_prefix import MACS_PER_S, MAX_RECORDS, READ_BYTES_PER_S, Demand, prefix_macs, refusal
from agent.messages import Steer
from agent.spec import FineTuneSpec
from agent.task import load_task
from tests.agent.test_trainer import DATA, SPEC, STEPS, Scene, TimedRun, assert_same, plan_for, steer, trainer_in
from tests.simulators.small_models import mobile_block_net

HALF = replace(SPEC, depth="50", epochs=3)
TRAIN, TEST = DATA.train_samples, DATA.test_samples
SEEN = STEPS * 6  # samples of an epoch's steps: the last batch is filled up
ROOMY = Limits(least_free_share=0.0)
HAS_ORT_TRAINING = importlib.util.find_spec("onnxruntime.training") is not None


def cache_in(folder: Path, limits: Limits = ROOMY, warnings: list[str] | None = None) -> FeatureCache:
    return FeatureCache(folder, ([] if warnings is None else warnings).append, limits)


def trained(
    spec: FineTuneSpec, cache: FeatureCache | None, scene: Scene | None = None
) -> tuple[dict[str, np.ndarray], TimedRun, Mapping[str, object]]:
    trainer, run = trainer_in(scene or Scene(), spec, cache=cache)
    trainer.train()
    return dict(run.parameters()), run, trainer.cache_told()


def test_the_frozen_part_runs_once_a_sample(tmp_path: Path) -> None:
    _, run, told = trained(HALF, cache_in(tmp_path))
    assert (run.whole_steps, run.crossed) == (0, TRAIN + TEST)
    hits = 3 * (SEEN + TEST) - run.crossed
    assert told == {
        "storage": "float16", "record_bytes": 2 * 288, "corrupt": 0, "hits": hits, "misses": run.crossed,
        "stored": run.crossed, "evicted_blocks": 0, "evicted_generations": 0,
    }  # fmt: skip


def test_an_exact_cache_changes_nothing_that_is_learnt(tmp_path: Path) -> None:
    spec = replace(HALF, cache="float32")
    plain, run, told = trained(spec, None)
    assert (run.crossed, told["storage"]) == (0, "off")
    cached, run, told = trained(spec, cache_in(tmp_path))
    assert (run.whole_steps, told["storage"]) == (0, "float32")
    assert_same(cached, plain)


@pytest.mark.parametrize("storage", ["auto", "int8"])
@pytest.mark.parametrize("views", [1, 2])
def test_hits_misses_and_a_lost_disk_give_the_same_weights(tmp_path: Path, storage: str, views: int) -> None:
    spec = replace(HALF, cache=storage, views=views)
    weights, run, _ = trained(spec, cache_in(tmp_path / "good"))
    again, rerun, _ = trained(spec, cache_in(tmp_path / "good"))
    assert rerun.crossed == 0 < run.crossed
    assert_same(again, weights)

    (tmp_path / "lost").mkdir()
    warnings: list[str] = []
    cache = cache_in(tmp_path / "lost", warnings=warnings)

    def orders(scene: Scene) -> Steer:
        if scene.steps == 2:
            cache.remove()
        return steer(rule="run")

    after_loss, run, told = trained(spec, cache, Scene(orders))
    assert run.crossed > 2 * SEEN
    assert told["storage"] == "off"
    assert_same(after_loss, weights)
    plain, _, _ = trained(spec, None)
    for name, value in weights.items():
        np.testing.assert_allclose(value, plain[name], atol=2e-2 if storage == "int8" else 1e-3)


def test_a_few_views_take_turns_and_are_all_served_from_the_second_round(tmp_path: Path) -> None:
    crossed = []
    for epochs in (3, 4, 7):
        spec = replace(HALF, epochs=epochs, views=3)
        _, run, told = trained(spec, cache_in(tmp_path / str(epochs)))
        crossed.append((run.crossed, told["storage"]))
    assert crossed[0] == (0, "off")  # no view would be seen twice
    assert crossed[1] == crossed[2]
    assert crossed[1][0] == 3 * TRAIN + TEST


def test_views_are_drawn_by_the_seed_and_used_without_a_cache_too() -> None:
    weights = [trained(replace(HALF, views=views), None)[0] for views in (1, 2)]
    assert not np.array_equal(weights[0]["head.w"], weights[1]["head.w"])
    for view in (1, 2):
        np.testing.assert_array_equal(DATA.view(np.arange(3), 0), DATA.inputs(np.arange(3)))
        assert (replace(DATA, seed=1).view(np.arange(9), view) != replace(DATA, seed=2).view(np.arange(9), view)).any()


def test_each_boundary_has_its_own_activations_and_old_ones_hold_while_the_frozen_weights_do(tmp_path: Path) -> None:
    def orders(scene: Scene) -> Steer:
        return steer("SLOW", depth=75 if scene.steps in range(STEPS, 2 * STEPS) else 0)

    spec = replace(HALF, cache="float32", epochs=4)
    cached, run, _ = trained(spec, cache_in(tmp_path), Scene(orders))
    plain, _, _ = trained(spec, None, Scene(orders))
    assert_same(cached, plain)
    assert len(set(run.depths)) == 2
    assert len(list(tmp_path.iterdir())) == 2  # back at the planned depth the first generation is found again
    assert run.crossed <= 2 * (SEEN + TEST)


def test_layers_that_learnt_in_between_are_never_served_stale(tmp_path: Path) -> None:
    """Deep, then shallow so that layers learn, then deep again: same names and shapes, other activations."""

    def orders(scene: Scene) -> Steer:
        return steer("SLOW", depth=0 if scene.steps in range(STEPS, 2 * STEPS) else 75)

    spec = replace(HALF, cache="float32", epochs=3, depth="25")
    cached, run, _ = trained(spec, cache_in(tmp_path), Scene(orders))
    plain, _, _ = trained(spec, None, Scene(orders))
    assert run.depths[0] == run.depths[-1] != run.depths[STEPS]
    assert_same(cached, plain)
    assert run.crossed >= 2 * TRAIN


def test_a_state_with_other_frozen_weights_is_another_prefix(tmp_path: Path) -> None:
    trainer, run = trainer_in(Scene(), HALF, cache=cache_in(tmp_path))
    trainer.evaluate()
    crossed, digest = run.crossed, run.prefix_digest
    state = run.state()
    state["weight/stem.w"] = state["weight/stem.w"] * np.float32(1.5)
    run.load_state(state)
    assert run.prefix_digest != digest
    told = trainer.evaluate()
    assert run.crossed == 2 * crossed
    other, _ = trainer_in(Scene(), HALF)
    other._run.load_state(state)
    assert told.value == other.evaluate().value


def test_no_room_no_frozen_layer_or_another_engine_mean_no_cache(tmp_path: Path) -> None:
    need = (TRAIN + TEST) * 2 * 288
    for name, most, storage in (("tight", need, "float16"), ("full", need - 1, "off")):
        _, run, told = trained(HALF, cache_in(tmp_path / name, replace(ROOMY, max_bytes=most)))
        assert (told["storage"], run.whole_steps) == (storage, 0 if storage != "off" else 3 * STEPS)
    assert told["why"] == f"{need} bytes are needed, there is room for {need - 1}"
    assert trained(replace(HALF, depth="0"), cache_in(tmp_path / "none"))[2]["storage"] == "off"
    assert not (tmp_path / "none").exists()
    if HAS_ORT_TRAINING:
        trainer, run = trainer_in(Scene(), HALF, engine="ort-training", cache=cache_in(tmp_path / "other"))
        trainer.train()
        assert run.whole_steps == 3 * STEPS
        assert trainer.cache_told()["why"] == "this engine runs the frozen part in every step"


# --- the rule ---------------------------------------------------------------------------------------------------------

GOOD = Demand(records=100, record_bytes=1000, values=400, input_values=500, prefix_macs=0)
MACS = int(1000 / READ_BYTES_PER_S * MACS_PER_S)


@pytest.mark.parametrize(
    ("change", "room", "says"),
    [
        ({}, 100_000, ""),
        ({}, 99_999, "there is room for 99999"),
        ({"records": MAX_RECORDS}, 1 << 40, ""),
        ({"records": MAX_RECORDS + 1}, 1 << 40, "records, at most"),
        ({"record_bytes": MAX_RECORD_BYTES}, 1 << 40, ""),
        ({"record_bytes": MAX_RECORD_BYTES + 1}, 1 << 40, "one sample takes"),
        ({"values": 500}, 100_000, ""),
        ({"values": 501}, 100_000, "reading would take longer"),
        ({"values": 501, "prefix_macs": MACS - 1}, 100_000, "reading would take longer"),
        ({"values": 501, "prefix_macs": MACS}, 100_000, ""),
    ],
)
def test_what_is_cached(change: dict[str, int], room: int, says: str) -> None:
    said = refusal(replace(GOOD, **change), room)
    assert says in said
    assert bool(said) == bool(says)


def test_the_cost_of_the_frozen_part_is_read_off_the_ladder() -> None:
    plan, layers = plan_for(SPEC), cost_table(mobile_block_net()).layers
    for rung in plan.ladder:
        exact = sum(layer.macs for layer in layers[: rung.frozen_layers])
        assert abs(prefix_macs(plan, rung.frozen_layers) - exact) <= max(layer.macs for layer in layers) / 2
    missing = next(k for k in itertools.count() if k not in {rung.frozen_layers for rung in plan.ladder})
    assert prefix_macs(plan, missing) == 0


def test_views_of_what_is_no_picture_are_refused() -> None:
    rule = WindowRule(("x",), (0.0,), (1.0,), 4, "TF")
    card = ModelCard("net", "1", 0, ANOMALY_DETECTION, None, rule.sample_shape, "ab" * 32, 10, windows=rule)
    with pytest.raises(SpecError, match="views are for pictures") as caught:
        load_task(replace(SPEC, views=2), card)
    assert caught.value.where == "views"
