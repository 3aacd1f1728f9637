"""The step loop with the real graph engine, on a clock that only moves when told to."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.card import Preprocess
from agent.checkpoint import BASE, Position, read_checkpoint, write_checkpoint
from agent.classification import Classification
from agent.cost import cost_table
from agent.engine import choose_engine
from agent.engine.base import Float32, LossSpec, StepResult, Targets, TrainingRun, UpdatePlan
from agent.engine.ir import Graph
from agent.errors import BoardError, EngineError
from agent.features import FeatureCache
from agent.finetune import training_setup
from agent.frozen_guard import FrozenGuard
from agent.images import Images
from agent.messages import Steer
from agent.plan import Plan, make_plan
from agent.spec import FineTuneSpec
from agent.trainer import (
    CHECKPOINT_EVERY_S,
    FREE,
    MAX_DROPPED_IN_A_ROW,
    MAX_DROPPED_STEPS,
    MAX_NAP_S,
    JobEndedError,
    Seen,
    Trainer,
    World,
)
from policies.policy import Policy
from tests.simulators.small_models import colour_images, mobile_block_net

RULE = Preprocess(1 / 127.5, -1.0)
HAS_ORT_TRAINING = importlib.util.find_spec("onnxruntime.training") is not None
SPEC = FineTuneSpec("net", "/data", depth="25", epochs=2, batch=6, learning_rate=0.02, seed=3)
STEPS = 4  # an epoch: 22 samples in batches of 6, the last one filled up


def images() -> Classification:
    pixels, labels = colour_images(34)
    parts = Images(pixels[:22], labels[:22], pixels[22:], labels[22:], ("red", "green", "blue"))
    return Classification(parts, RULE, LossSpec())


DATA = images()


@dataclass
class TimedRun:
    """A real run whose steps take simulated time; notes the learning rates and frozen layers of its steps."""

    inner: TrainingRun
    scene: Scene
    rates: list[float] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    crossed: int = 0
    whole_steps: int = 0

    @property
    def frozen_layers(self) -> int:
        return self.inner.frozen_layers

    @property
    def trainable(self) -> tuple[str, ...]:
        return self.inner.trainable

    @property
    def boundary_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.inner.boundary_shapes

    @property
    def prefix_digest(self) -> bytes:
        return self.inner.prefix_digest

    def boundary(self, samples: Float32) -> tuple[Float32, ...]:
        self.crossed += len(samples)
        return self.inner.boundary(samples)

    def step_from_boundary(self, activations: Sequence[Float32], targets: Targets, learning_rate: float) -> StepResult:
        return self._timed(learning_rate, lambda: self.inner.step_from_boundary(activations, targets, learning_rate))

    def outputs_from_boundary(self, activations: Sequence[Float32]) -> Float32:
        return self.inner.outputs_from_boundary(activations)

    def step(self, samples: Float32, targets: Targets, learning_rate: float) -> StepResult:
        self.whole_steps += 1
        return self._timed(learning_rate, lambda: self.inner.step(samples, targets, learning_rate))

    def _timed(self, learning_rate: float, step: Callable[[], StepResult]) -> StepResult:
        self.rates.append(learning_rate)
        self.depths.append(self.inner.frozen_layers)
        self.scene.now += self.scene.step_s
        self.scene.steps += 1
        if self.scene.steps in self.scene.spoilt:  # as an engine tells of a batch with a broken gradient
            return StepResult(math.nan, math.inf, kept=False)
        return step()

    def set_plan(self, plan: UpdatePlan) -> None:
        self.inner.set_plan(plan)

    def set_frozen_layers(self, count: int) -> None:
        self.inner.set_frozen_layers(count)

    @property
    def micro_batch(self) -> int:
        return self.inner.micro_batch

    def set_micro_batch_share(self, share: float) -> None:
        self.inner.set_micro_batch_share(share)

    def outputs(self, samples: Float32) -> Float32:
        return self.inner.outputs(samples)

    def parameters(self) -> Mapping[str, Float32]:
        return self.inner.parameters()

    def use_float32(self) -> None:
        self.inner.use_float32()

    def frozen_memory(self) -> Mapping[str, np.ndarray]:
        return self.inner.frozen_memory()

    @property
    def form(self) -> int:
        return self.inner.form

    @property
    def probe_samples(self) -> int:
        return self.inner.probe_samples

    def probe(self, samples: Float32) -> bytes:
        self.scene.probes += 1
        return self.inner.probe(samples)

    def renew(self) -> None:
        self.inner.renew()

    def state(self) -> dict[str, np.ndarray]:
        return self.inner.state()

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.inner.load_state(state)

    def close(self) -> None:
        self.inner.close()


@dataclass
class Scene:
    """A world: a clock, the governor's orders as a function of the scene, a disk, and what was told."""

    orders: Callable[[Scene], Steer] = lambda _: FREE
    step_s: float = 1.0
    full_disk: bool = False
    verify_every_s: float = 3600.0
    spoilt: tuple[int, ...] = ()
    now: float = 100.0
    steps: int = 0
    probes: int = 0
    struck: bool = False
    naps: list[float] = field(default_factory=list)
    saved: list[bytes] = field(default_factory=list)
    told: list[Seen] = field(default_factory=list)

    def save(self, data: bytes) -> None:
        if self.full_disk:
            raise BoardError("the disk is full", reason="disk-full")
        self.saved.append(data)

    def nap(self, seconds: float) -> None:
        assert seconds > 0
        self.naps.append(seconds)
        self.now += seconds

    def events(self) -> list[str]:
        return [seen.event for seen in self.told if seen.event != "step"]


def steer(
    action: str = "RUN", rule: str = "test.rule", *, duty: float = 1.0, depth: int = 0, reverify: bool = False
) -> Steer:
    return Steer(action, duty, depth, reverify=reverify, rule=rule)


def plan_for(spec: FineTuneSpec) -> Plan:
    return make_plan(
        spec, Policy(), cost_table(mobile_block_net()), None,
        engine="graph", classes=DATA.classes, head="replace", samples=DATA.train_samples, data_sha256="",
    )  # fmt: skip


def trainer_in(
    scene: Scene,
    spec: FineTuneSpec = SPEC,
    net: Graph | None = None,
    engine: str = "graph",
    cache: FeatureCache | None = None,
) -> tuple[Trainer, TimedRun]:
    plan, graph = plan_for(spec), net or mobile_block_net()
    setup = training_setup(spec, plan, graph, DATA, threads=1)
    run = TimedRun(choose_engine(engine).start(setup), scene)
    world = World(
        lambda: scene.orders(scene), lambda: None, scene.told.append, scene.save, lambda: scene.now, scene.nap
    )
    task = replace(DATA, seed=spec.seed)
    guard = FrozenGuard(run, task, world.clock, scene.verify_every_s)
    return Trainer(run, plan, spec, task, world, guard, cache), run


def weights_after(scene: Scene, spec: FineTuneSpec = SPEC) -> dict[str, np.ndarray]:
    trainer, run = trainer_in(scene, spec)
    trainer.train()
    return dict(run.parameters())


def assert_same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> None:
    assert set(a) == set(b)
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


# --- the undisturbed job ----------------------------------------------------------------------------------------------


def test_a_job_learns_and_tells_of_itself() -> None:
    scene = Scene()
    trainer, run = trainer_in(scene, replace(SPEC, epochs=6))
    before = trainer.evaluate()
    after = trainer.train()
    assert after.value > before.value
    assert after.loss < before.loss
    assert after == trainer.evaluate()
    assert trainer.position == Position(epoch=6, samples=6 * STEPS * 6, busy_s=6.0 * STEPS)
    assert scene.events() == ["epoch"] * 6
    assert [seen.score for seen in scene.told if seen.event == "epoch"][-1] == after
    steps = [seen for seen in scene.told if seen.event == "step"]
    assert [(seen.epoch, seen.step) for seen in steps] == [(e, s + 1) for e in range(6) for s in range(STEPS)]
    assert {(seen.step_s, seen.rule, seen.depth_percent, seen.frozen_layers) for seen in steps} == {
        (1.0, "run", 25, run.frozen_layers)
    }
    assert all(math.isfinite(seen.loss) for seen in steps)
    assert scene.naps == []


def test_an_order_that_ends_with_a_sample_is_left_at_that_step_without_another_one() -> None:
    scene = Scene()
    head_first = replace(steer(depth=100), depth_until_samples=12, depth_after_percent=50)
    scene.orders = lambda _: head_first
    trainer, _ = trainer_in(scene)
    trainer.train()
    told = {seen.samples: seen.depth_percent for seen in scene.told if seen.event == "step"}
    assert {samples for samples, depth in told.items() if depth == 100} == {6, 12}
    assert {depth for samples, depth in told.items() if samples > 12} == {50}
    assert trainer.position.depth_changes == 2


def split_from_step_3_to_6(scene: Scene) -> Steer:
    return replace(FREE, micro_batch_share=0.5 if 2 <= scene.steps < 6 else 1.0)


def test_a_smaller_micro_batch_is_obeyed_at_the_next_step_and_changes_no_update() -> None:
    plain, squeezed = Scene(), Scene(split_from_step_3_to_6)
    steady, run = trainer_in(plain)
    steered, other = trainer_in(squeezed)
    steady.train()
    steered.train()
    told = [seen.micro_batch for seen in squeezed.told if seen.event == "step"]
    assert told == [6, 6, 3, 3, 3, 3, 6, 6]
    assert squeezed.events() == ["batch", "epoch", "batch", "epoch"]
    losses = [[seen.loss for seen in scene.told if seen.event == "step"] for scene in (plain, squeezed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name, value in run.parameters().items():
        np.testing.assert_allclose(other.parameters()[name], value, rtol=0, atol=1e-4, err_msg=name)
    assert steered.position == steady.position


def test_a_job_that_goes_on_begins_with_the_micro_batch_ordered_then() -> None:
    squeezed = Scene(lambda scene: replace(steer("ABORT" if scene.steps == 5 else "RUN"), micro_batch_share=0.5))
    trainer, _ = trainer_in(squeezed)
    with pytest.raises(JobEndedError):
        trainer.train()
    again, run = trainer_in(Scene())
    again.resume(squeezed.saved[-1])
    assert (again.position, run.micro_batch) == (trainer.position, 6)


@pytest.mark.skipif(not HAS_ORT_TRAINING, reason="needs onnxruntime-training")
def test_an_engine_that_takes_whole_batches_only_goes_on_with_them() -> None:
    scene = Scene(split_from_step_3_to_6)
    trainer, _ = trainer_in(scene, engine="ort-training")
    trainer.train()
    assert scene.events() == ["epoch"] * 2
    assert {seen.micro_batch for seen in scene.told} == {6}


def test_the_rate_warms_up_and_falls_along_half_a_cosine() -> None:
    scene = Scene()
    trainer, run = trainer_in(scene, replace(SPEC, epochs=10))
    trainer.train()
    peak, total, warm = SPEC.learning_rate, 10 * STEPS, 2
    assert run.rates[:warm] == pytest.approx([peak / 2, peak])
    expected = [peak / 2 * (1 + math.cos(math.pi * k / (total - warm))) for k in range(total - warm)]
    assert run.rates[warm:] == pytest.approx(expected)
    assert 0 < run.rates[-1] < peak / 100


def head_for_18_samples() -> Steer:
    return replace(steer(depth=100), depth_until_samples=18, depth_after_percent=25)


def test_the_rate_warms_up_again_once_other_layers_learn_after_the_head_alone() -> None:
    scene = Scene(lambda _: head_for_18_samples())
    trainer, run = trainer_in(scene, replace(SPEC, warm_up=0.5, schedule="constant"))
    trainer.train()
    peak = SPEC.learning_rate
    assert run.rates == pytest.approx([peak * share for share in (0.25, 0.5, 0.75, 0.25, 0.5, 0.75, 1.0, 1.0)])
    assert run.depths[2] > run.depths[3]


@pytest.mark.parametrize(("first", "then"), [(50, 0), (0, 50), (0, 100)])
def test_the_rate_does_not_warm_up_again_where_the_head_did_not_learn_alone(first: int, then: int) -> None:
    scene = Scene(lambda scene: steer(depth=then if scene.steps >= 4 else first))
    trainer, run = trainer_in(scene, replace(SPEC, warm_up=0.25, schedule="constant"))
    trainer.train()
    assert run.depths[3] != run.depths[4]
    assert run.rates == pytest.approx([SPEC.learning_rate / 2, *[SPEC.learning_rate] * 7])


@pytest.mark.parametrize("ended_after", [2, 3, 4, 5, 6])
def test_a_job_that_goes_on_has_the_rates_of_one_that_was_never_ended(ended_after: int) -> None:
    spec = replace(SPEC, warm_up=0.5)
    whole, run = trainer_in(Scene(lambda _: head_for_18_samples()), spec)
    whole.train()
    scene = Scene(lambda scene: replace(head_for_18_samples(), action="ABORT" if scene.steps == ended_after else "RUN"))
    first, before = trainer_in(scene, spec)
    with pytest.raises(JobEndedError):
        first.train()
    again, after = trainer_in(Scene(lambda _: head_for_18_samples()), spec)
    again.resume(scene.saved[-1])
    again.train()
    assert before.rates + after.rates == run.rates
    assert again.position.head_until == whole.position.head_until == 3


def test_without_warm_up_and_schedule_the_rate_stays() -> None:
    trainer, run = trainer_in(Scene(), replace(SPEC, warm_up=0.0, schedule="constant"))
    trainer.train()
    assert set(run.rates) == {SPEC.learning_rate}
    trainer, run = trainer_in(Scene(), replace(SPEC, warm_up=0.5, schedule="constant"))
    trainer.train()
    assert run.rates == pytest.approx([SPEC.learning_rate * min(1, (k + 1) / 4) for k in range(8)])


def test_progress_is_told_at_most_four_times_a_second_and_work_is_saved_every_half_minute() -> None:
    quick, slow = Scene(step_s=0.1), Scene(step_s=CHECKPOINT_EVERY_S / 2)
    trainer_in(quick)[0].train()
    assert [seen.step for seen in quick.told if seen.event == "step"] == [1, 4, 3]
    trainer_in(slow)[0].train()
    assert slow.events() == (["checkpoint"] * (STEPS // 2) + ["epoch"]) * 2


def test_the_same_job_twice_gives_the_same_weights_and_another_seed_others() -> None:
    first = weights_after(Scene())
    assert_same(first, weights_after(Scene()))
    assert not np.array_equal(first["head.w"], weights_after(Scene(), replace(SPEC, seed=4))["head.w"])


# --- orders -----------------------------------------------------------------------------------------------------------


def test_a_pause_saves_waits_and_goes_on_as_if_nothing_had_been() -> None:
    scene = Scene(lambda s: steer("PAUSE", "thermal.delta-t-pause") if 103 <= s.now < 105 else FREE)
    weights = weights_after(scene)
    assert scene.events()[:3] == ["checkpoint", "paused", "resumed"]
    assert 2.0 <= sum(scene.naps) < 2.0 + MAX_NAP_S
    assert max(scene.naps) <= MAX_NAP_S
    paused, resumed = (next(seen for seen in scene.told if seen.event == name) for name in ("paused", "resumed"))
    assert (paused.step, paused.rule) == (3, "thermal.delta-t-pause")
    assert (resumed.step, resumed.rule) == (3, "run")
    assert read_checkpoint(scene.saved[0])[1].step == 3
    assert_same(weights, weights_after(Scene()))


@pytest.mark.parametrize("paused_first", [False, True])
def test_an_abort_saves_and_ends_with_its_rule(*, paused_first: bool) -> None:
    def orders(scene: Scene) -> Steer:
        if scene.now < 105:
            return FREE
        return steer("PAUSE") if paused_first and scene.now < 106 else steer("ABORT", "canceled")

    scene = Scene(orders)
    trainer, run = trainer_in(scene)
    with pytest.raises(JobEndedError) as caught:
        trainer.train()
    assert caught.value.code == "canceled"
    assert scene.steps == 5
    state, position, depth = read_checkpoint(scene.saved[-1])
    assert (position.epoch, position.step, depth) == (1, 1, 25)
    assert state.pop(BASE).shape == (32,)
    assert_same({key: v for key, v in run.state().items() if key not in ("weight/stem.w", "weight/stem.b")}, state)


@pytest.mark.parametrize("duty", [1.0, 0.75, 0.5, 0.25, 0.05, 0.0])
def test_a_duty_leaves_training_its_share_of_the_time(duty: float) -> None:
    scene = Scene(lambda _: steer("SLOW", duty=duty), step_s=0.5)
    weights = weights_after(scene)
    busy = scene.steps * 0.5
    share = max(duty, 0.01)  # a duty of nothing would never end
    assert sum(scene.naps) == pytest.approx(busy * (1 / share - 1))
    assert busy / (scene.now - 100) == pytest.approx(share)
    assert max(scene.naps, default=0) <= MAX_NAP_S
    assert_same(weights, weights_after(Scene()))


def test_a_stricter_order_ends_a_rest() -> None:
    def orders(scene: Scene) -> Steer:
        return steer("SLOW", duty=0.01) if scene.now < 103 else steer("ABORT", "canceled")

    scene = Scene(orders)
    with pytest.raises(JobEndedError):
        trainer_in(scene)[0].train()
    assert scene.naps == [MAX_NAP_S] * 4  # 2 s of 99


def test_a_rest_is_cut_short_by_a_larger_duty() -> None:
    scene = Scene(lambda s: steer("SLOW", duty=0.01) if s.now < 103 else steer("RUN", duty=0.5))
    trainer_in(scene, replace(SPEC, epochs=1))[0].train()
    # 1 s of training; of 99 s of rest two are over when the duty rises; then every step rests as long as it took
    assert sum(scene.naps) == pytest.approx(2.0 + 1.0 * (STEPS - 1))


@pytest.mark.parametrize("change", [{"duty": 0.25}, {"depth": 75}, {"action": "PAUSE"}], ids=str)
def test_an_order_is_obeyed_within_a_step_or_a_second_and_told_with_its_number(change: dict[str, Any]) -> None:
    def orders(scene: Scene) -> Steer:
        late = 104.3 <= scene.now < 110.0
        return replace(steer(**change), number=2) if late else replace(steer("SLOW", duty=0.1), number=1)

    scene = Scene(orders, step_s=0.7)
    trainer_in(scene)[0].train()
    obeyed = {seen.obeyed: seen.obeyed_s for seen in scene.told if seen.obeyed}
    assert obeyed[2] - 104.3 <= max(scene.step_s, MAX_NAP_S)
    assert next(seen.obeyed for seen in scene.told) == 1


def test_scoring_rests_by_the_duty_too() -> None:
    scene = Scene(lambda _: replace(steer("SLOW", duty=0.25), number=7))
    trainer, run = trainer_in(scene)

    def outputs(samples: Float32) -> Float32:
        scene.now += 2.0
        return run.outputs(samples)

    trainer.score_with(outputs, DATA)
    assert sum(scene.naps) == pytest.approx(6.0)


def test_depth_follows_the_orders_and_comes_back() -> None:
    def orders(scene: Scene) -> Steer:
        if 2 <= scene.steps < 4:
            return steer("SLOW", "thermal.delta-t-slow", depth=50)
        return steer("SLOW", "thermal.delta-t-hot", depth=100) if 4 <= scene.steps < 6 else FREE

    scene = Scene(orders)
    trainer, run = trainer_in(scene)
    trainer.train()
    planned, half, head = (plan_for(SPEC).frozen_layers(percent)[1] for percent in (0, 50, 100))
    assert run.depths == [planned] * 2 + [half] * 2 + [head] * 2 + [planned] * 2
    assert trainer.position.depth_changes == 3
    told = [(s.step, s.depth_percent, s.frozen_layers, s.rule) for s in scene.told if s.event == "depth"]
    assert told == [
        (2, 50, half, "thermal.delta-t-slow"),
        (0, 100, head, "thermal.delta-t-hot"),
        (2, 25, planned, "run"),
    ]


def test_an_order_never_thaws_what_the_plan_froze() -> None:
    spec = replace(SPEC, depth="75")
    trainer, run = trainer_in(Scene(lambda _: steer(depth=0)), spec)
    trainer.train()
    assert set(run.depths) == {plan_for(spec).frozen_layers(0)[1]}
    assert trainer.position.depth_changes == 0


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_is_dropped_and_its_samples_do_not_count() -> None:
    scene = Scene(spoilt=(2, 3, 7))
    trainer, _ = trainer_in(scene)
    trainer.train()
    assert scene.steps == 2 * STEPS
    assert (trainer.position.dropped, trainer.position.samples) == (3, 6 * (2 * STEPS - 3))
    assert [seen.dropped for seen in scene.told if seen.event == "epoch"] == [2, 3]
    assert all(math.isfinite(seen.loss) for seen in scene.told if seen.step != 2 or seen.epoch)
    again, _ = trainer_in(Scene())
    again.resume(write_checkpoint(again._run.state() | {BASE: again._guard.fingerprint()}, trainer.position, 25))
    assert again.position == trainer.position


@pytest.mark.parametrize(
    ("spoilt", "steps"),
    [(tuple(range(5, 5 + MAX_DROPPED_IN_A_ROW)), 4 + MAX_DROPPED_IN_A_ROW), (tuple(range(2, 99, 2)), 20)],
)
def test_too_many_dropped_steps_end_the_job(spoilt: tuple[int, ...], steps: int) -> None:
    scene = Scene(spoilt=spoilt)
    trainer, _ = trainer_in(scene, replace(SPEC, epochs=8))
    with pytest.raises(EngineError, match=r"\d+ steps were not finite and were dropped") as caught:
        trainer.train()
    assert caught.value.code == "not-finite"
    assert "active slot is untouched" in caught.value.fix
    assert scene.steps == steps
    assert trainer.position.dropped in (MAX_DROPPED_IN_A_ROW, MAX_DROPPED_STEPS)
    assert trainer.position.samples == 6 * (steps - trainer.position.dropped)


def test_a_rate_that_blows_the_weights_up_ends_the_job() -> None:
    trainer, _ = trainer_in(Scene(), replace(SPEC, learning_rate=1e30))
    with pytest.raises(EngineError) as caught:
        trainer.train()
    assert caught.value.code == "not-finite"


def test_reverification_passes_over_sound_memory_and_notices_a_flipped_bit() -> None:
    scene = Scene(lambda _: steer(reverify=True))
    trainer_in(scene)[0].train()
    assert scene.events().count("verified") == 2 * STEPS

    def orders(scene: Scene) -> Steer:
        if scene.steps == 3:
            resident = runs[0].inner._weights.views["stem.w"].view(np.uint8).reshape(-1)  # type: ignore[attr-defined]
            resident[17] = mobile_block_net().initializers["stem.w"].view(np.uint8).reshape(-1)[17] ^ 4
        return steer(reverify=scene.steps == 3)

    trainer, run = trainer_in(Scene(orders))
    runs = [run]
    with pytest.raises(EngineError, match="frozen weights changed in memory") as caught:
        trainer.train()
    assert (caught.value.code, caught.value.where) == ("memory-corrupt", "stem.w")


def test_reverification_knows_what_was_learnt_before_the_boundary_moved() -> None:
    """Weights that learnt and were frozen later are not taken for changed ones."""
    scene = Scene(lambda s: steer(depth=100 if s.steps % 4 > 1 else 0, reverify=True))
    trainer_in(scene, replace(SPEC, depth="0"))[0].train()
    assert scene.events().count("depth") == 3
    assert scene.events().count("verified") == 2 * STEPS


def test_reverification_covers_what_an_order_froze() -> None:
    def orders(scene: Scene) -> Steer:
        if scene.steps == 3:
            weights = runs[0].inner._graph.initializers["project2.w"]  # type: ignore[attr-defined]
            weights.reshape(-1)[5] = 1e-3
        return steer(depth=100, reverify=scene.steps == 3)

    trainer, run = trainer_in(Scene(orders), replace(SPEC, depth="0"))
    runs = [run]
    with pytest.raises(EngineError, match="frozen weights changed in memory") as caught:
        trainer.train()
    assert caught.value.where == "project2.w"


FAULT_STEP = 3


def struck(scene: Scene, runs: list[TimedRun], name: str = "stem.w") -> None:
    """Flip a bit once in a weight of the run before step `FAULT_STEP` + 1, as RAM does."""
    if scene.steps == FAULT_STEP and not scene.struck:
        scene.struck = True
        runs[0].inner.frozen_memory()[name].reshape(-1).view(np.uint8)[17] ^= 4


@pytest.mark.parametrize(
    ("moment", "settings", "order", "noticed_after"),
    [
        ("a checkpoint", {"step_s": CHECKPOINT_EVERY_S}, FREE, 4),
        ("a round of pieces", {"verify_every_s": 5.0}, FREE, 5),
        ("a pause", {}, steer("PAUSE", "held"), 3),
        ("an order", {}, steer(reverify=True), 3),
        ("a boundary that moves", {}, steer(depth=100), 3),
        ("the end", {}, FREE, 2 * STEPS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_flipped_bit_is_noticed_before_anything_is_kept(
    moment: str, settings: dict[str, float], order: Steer, noticed_after: int
) -> None:
    def orders(scene: Scene) -> Steer:
        struck(scene, runs)
        return order if scene.steps == FAULT_STEP else FREE

    scene = Scene(orders, **settings)  # type: ignore[arg-type]
    trainer, run = trainer_in(scene)
    runs = [run]

    def to_the_end() -> None:
        trainer.train()
        trainer.final_score()

    with pytest.raises(EngineError, match="frozen weights changed in memory") as caught:
        to_the_end()
    assert (caught.value.code, caught.value.where) == ("memory-corrupt", "stem.w"), moment
    assert scene.steps == noticed_after
    kept = [read_checkpoint(data)[1] for data in scene.saved]
    assert all(position.step <= FAULT_STEP and position.epoch == 0 for position in kept)


def test_an_attempt_after_a_fault_ends_as_if_there_had_been_none() -> None:
    def orders(scene: Scene) -> Steer:
        struck(scene, runs)
        return FREE

    first = Scene(orders, step_s=CHECKPOINT_EVERY_S / 2)
    trainer, run = trainer_in(first)
    runs = [run]
    with pytest.raises(EngineError, match="frozen weights changed in memory"):
        trainer.train()
    assert (len(first.saved), first.steps) == (1, FAULT_STEP + 1), "two steps were kept, two were made in vain"
    second = Scene()
    trainer, run = trainer_in(second)
    trainer.resume(first.saved[-1])
    trainer.train()
    assert second.steps == 2 * STEPS - 2
    assert_same(dict(run.parameters()), weights_after(Scene()))


def test_an_order_to_end_is_obeyed_in_bad_memory_and_nothing_is_saved() -> None:
    def orders(scene: Scene) -> Steer:
        struck(scene, runs)
        return steer("ABORT", "canceled") if scene.struck else FREE

    scene = Scene(orders)
    trainer, run = trainer_in(scene)
    runs = [run]
    with pytest.raises(JobEndedError) as caught:
        trainer.train()
    assert caught.value.code == "canceled"
    assert scene.saved == []
    assert [(seen.event, seen.rule) for seen in scene.told[-1:]] == [("no-checkpoint", "memory-corrupt")]


def test_a_checkpoint_holds_nothing_that_never_learns() -> None:
    """A bit that flips while it is written cannot come back with it."""
    spec = replace(SPEC, depth="50")
    scene = Scene(step_s=CHECKPOINT_EVERY_S)
    trainer, run = trainer_in(scene, spec)
    trainer.train()
    state, _, _ = read_checkpoint(scene.saved[-1])
    weights = {key.removeprefix("weight/") for key in state if key.startswith("weight/")}
    assert weights == set(run.trainable)
    assert weights < set(run.parameters())


def test_weights_that_heat_froze_are_in_a_checkpoint() -> None:
    """They have learnt: the base does not know them."""
    scene = Scene(lambda s: steer(depth=100 if s.steps >= 2 else 0), step_s=CHECKPOINT_EVERY_S)
    trainer, run = trainer_in(scene)
    trainer.train()
    state, _, _ = read_checkpoint(scene.saved[-1])
    assert set(run.trainable) == {"head.w", "head.b"}
    np.testing.assert_array_equal(state["weight/project2.w"], run.parameters()["project2.w"])
    assert not np.array_equal(state["weight/project2.w"], mobile_block_net().initializers["project2.w"])


def test_rounds_of_verification_change_nothing_that_is_learnt() -> None:
    scene = Scene(verify_every_s=1.0)
    before = Scene()
    assert_same(weights_after(scene), weights_after(before))
    assert scene.probes > before.probes


def test_a_full_disk_does_not_end_a_job() -> None:
    scene = Scene(full_disk=True, step_s=CHECKPOINT_EVERY_S)
    weights = weights_after(scene)
    assert scene.events() == (["no-checkpoint"] * STEPS + ["epoch"]) * 2
    assert {seen.rule for seen in scene.told if seen.event == "no-checkpoint"} == {"disk-full"}
    assert_same(weights, weights_after(Scene()))


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_model_changes_nothing() -> None:
    weights = weights_after(Scene())
    trainer, run = trainer_in(Scene())
    state: dict[str, np.ndarray] = {key: np.zeros(3, np.float32) for key in run.state()}
    state[BASE] = trainer._guard.fingerprint()
    with pytest.raises(EngineError, match="saved state"):
        trainer.resume(write_checkpoint(state, trainer.position, 75))
    trainer.train()
    assert trainer.position.depth_changes == 0
    assert_same(weights, dict(run.parameters()))


def interrupted(step: int, spec: FineTuneSpec, engine: str = "graph", depth: int = 0) -> dict[str, np.ndarray]:
    """Weights of a job that was ended before `step`, and resumed in a new process from its checkpoint."""
    first = Scene(lambda s: steer("ABORT") if s.steps == step else steer(depth=depth if s.steps > 2 else 0))
    with pytest.raises(JobEndedError):
        trainer_in(first, spec, engine=engine)[0].train()
    second = Scene(lambda s: steer(depth=depth if s.steps + step > 2 else 0))
    trainer, run = trainer_in(second, spec, engine=engine)
    trainer.resume(first.saved[-1])
    assert trainer.position.epoch * STEPS + trainer.position.step == step
    trainer.train()
    assert second.steps == spec.epochs * STEPS - step
    assert trainer.position.samples == spec.epochs * STEPS * 6
    return dict(run.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_job_resumed_at_any_step_ends_with_the_same_weights(optimizer: str) -> None:
    spec = replace(SPEC, optimizer=optimizer, weight_decay=0.01)
    whole = weights_after(Scene(), spec)
    for step in range(2 * STEPS):
        assert_same(interrupted(step, spec), whole)


@pytest.mark.skipif(not HAS_ORT_TRAINING, reason="needs onnxruntime-training")
@pytest.mark.parametrize("step", [0, 3, 5])
def test_the_other_engine_resumes_as_well(step: int) -> None:
    trainer, run = trainer_in(Scene(), engine="ort-training")
    trainer.train()
    assert_same(interrupted(step, SPEC, "ort-training"), dict(run.parameters()))


@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_a_job_resumed_at_another_depth_ends_with_the_same_weights(step: int) -> None:
    def orders(scene: Scene) -> Steer:
        return steer(depth=75 if scene.steps > 2 else 0)

    assert_same(interrupted(step, SPEC, depth=75), weights_after(Scene(orders)))


def test_a_job_resumed_behind_its_last_step_is_only_scored() -> None:
    scene = Scene(step_s=CHECKPOINT_EVERY_S)
    trainer, _ = trainer_in(scene)
    score = trainer.train()
    again, _ = trainer_in(Scene())
    again.resume(scene.saved[-1])
    assert again.train() == score
    assert again.position == trainer.position


def test_a_checkpoint_of_another_model_is_refused() -> None:
    scene = Scene(step_s=CHECKPOINT_EVERY_S)
    trainer_in(scene)[0].train()
    trainer, _ = trainer_in(Scene(), net=mobile_block_net(classes=4))
    with pytest.raises(EngineError, match="does not fit this model"):
        trainer.resume(scene.saved[-1])
    trainer, _ = trainer_in(Scene(), net=mobile_block_net(seed=1))
    with pytest.raises(EngineError, match="made from another base"):
        trainer.resume(scene.saved[-1])


numbers = st.integers(0, 2**40)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    st.builds(
        Position,
        *[numbers] * 5,
        st.floats(0, 1e9, allow_subnormal=False),
        st.one_of(st.none(), numbers),
    ),
    st.sampled_from([0, 25, 50, 75, 100]),
    st.dictionaries(st.text(st.characters(codec="ascii", exclude_characters="\0\\:"), min_size=1), st.integers(0, 9)),
)
def test_a_checkpoint_reads_back(position: Position, depth: int, sizes: dict[str, int]) -> None:
    state = {name: np.arange(size, dtype=np.float32) for name, size in sizes.items()}
    found, where, percent = read_checkpoint(write_checkpoint(state, position, depth))
    assert (where, percent) == (position, depth)
    assert_same(found, state)


def test_a_checkpoint_of_before_knows_no_second_warm_up() -> None:
    old = saved(position=np.asarray([1, 2, 3, 4, 5, 6.0, 50]), **{"state/a": np.ones(4, np.float32)})
    _, where, percent = read_checkpoint(old)
    assert (where, percent) == (Position(1, 2, 3, 4, 5, 6.0), 50)


def saved(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def plain_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(6))
    return stream.getvalue()


GOOD = write_checkpoint({"weight/a": np.ones(4, np.float32)}, Position(1, 2, 3, 4, 5, 6.0), 50)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        b"checkpoint",
        GOOD[:-30],
        plain_array(),
        saved(other=np.zeros(6)),
        saved(position=np.zeros(3)),
        saved(position=np.float64(1)),
        saved(position=np.full(7, np.nan)),
        saved(position=np.full(7, np.inf)),
        saved(position=np.asarray([1, 2, 3, 4, 5, 6.0, 50, np.nan])),
        saved(position=np.asarray(["x"] * 7)),
        saved(position=np.zeros((7, 2))),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_what_is_no_checkpoint_is_an_engine_error(data: bytes) -> None:
    with pytest.raises(EngineError, match="checkpoint cannot be read"):
        read_checkpoint(data)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_damaged_checkpoint_is_read_or_an_engine_error(place: int, value: int) -> None:
    raw = bytearray(GOOD)
    raw[place] = value
    try:
        state, position, depth = read_checkpoint(bytes(raw))
    except EngineError as error:
        assert error.fix  # noqa: PT017 - both ends are allowed
        return
    assert (position, depth) == (Position(1, 2, 3, 4, 5, 6.0), 50)  # archives carry check sums
    assert all(np.array_equal(array, np.ones(4)) for array in state.values())
