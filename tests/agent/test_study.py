from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.engine.base import UpdatePlan
from agent.engine.graph import GraphEngine
from agent.errors import SpecError
from agent.finetune import training_setup
from agent.images import Images
from agent.plan import DepthChoice, Plan, make_plan, parse_plan, plan_table
from agent.schedule import rate_share, rewarmed_share
from agent.spec import FineTuneSpec
from agent.study import LEAST_TRIAL_SAMPLES, Study
from agent.update_plan import Learner, learners_macs
from policies.policy import FreezingPolicy, Policy
from tests.agent.test_trainer import DATA
from tests.simulators.small_models import colour_images, mobile_block_net

NET = mobile_block_net()
SPEC = FineTuneSpec("net", "/data", batch=6, learning_rate=0.02, engine="graph")


def wide_data(samples: int = 60) -> object:
    pixels, labels = colour_images(samples + 6)
    return replace(
        DATA, images=Images(pixels[:samples], labels[:samples], pixels[samples:], labels[samples:], DATA.classes)
    )


def study(spec: FineTuneSpec = SPEC, samples: int = 60) -> Study:
    return Study(spec, NET, wide_data(samples), 1, lambda: None)


def plan(made: Study, spec: FineTuneSpec, chosen: DepthChoice | None = None) -> Plan:
    return make_plan(
        spec, Policy(), made.costs, 0.9, engine="graph", classes=DATA.classes, head="keep", samples=60,
        data_sha256="0" * 64, chosen=chosen, learners=made.learners(),
    )  # fmt: skip


def test_trials_choose_a_depth_that_the_plan_takes_with_their_losses() -> None:
    chosen = study().depth(FreezingPolicy())
    assert chosen is not None
    assert chosen == study().depth(FreezingPolicy())
    assert [trial.percent for trial in chosen.trials] == [75, 50, 25][: len(chosen.trials)]
    assert chosen.rule == f"freezing.probe-{chosen.percent}"
    made = plan(study(), SPEC, chosen)
    assert (made.depth_percent, made.rule, made.trials) == (chosen.percent, chosen.rule, chosen.trials)
    assert parse_plan(plan_table(made)) == made


def test_held_out_samples_do_not_sway_the_trials() -> None:
    data = wide_data()
    scrambled = replace(data, images=replace(data.images, x_test=255 - data.images.x_test))  # type: ignore[attr-defined,type-var]
    made = [Study(SPEC, NET, task, 1, lambda: None).depth(FreezingPolicy()) for task in (data, scrambled)]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("spec", "policy", "samples"),
    [
        (SPEC, FreezingPolicy(predictor="similarity"), 60),
        (replace(SPEC, depth="50"), FreezingPolicy(), 60),
        (replace(SPEC, update="sparse"), FreezingPolicy(), 60),
        (SPEC, FreezingPolicy(), LEAST_TRIAL_SAMPLES - 1),
    ],
    ids=["predictor", "depth-asked-for", "sparse", "too-few"],
)
def test_no_trials_where_none_are_wanted(spec: FineTuneSpec, policy: FreezingPolicy, samples: int) -> None:
    assert study(spec, samples).depth(policy) is None


def test_a_sparse_plan_learns_what_it_names_and_less_when_frozen_deeper() -> None:
    spec = replace(SPEC, update="sparse", update_budget=0.6)
    made = plan(study(spec), spec)
    assert made.rule == "update.sparse"
    assert made.step_macs == learners_macs(study(spec).costs, made.learners) < made.ladder[0].step_macs
    run = GraphEngine().start(training_setup(spec, made, NET, DATA, 1))
    assert run.trainable == tuple(learner.parameter for learner in made.learners)
    for rung in made.ladder:
        run.set_plan(made.update(rung.frozen_layers))
        kept = [learner.parameter for learner in made.learners if learner.layer >= rung.frozen_layers]
        assert run.trainable == tuple(kept)
        assert {"head.w", "head.b"} <= set(kept)
    assert parse_plan(plan_table(made)) == made


def test_a_depth_that_was_asked_for_bounds_what_learns() -> None:
    spec = replace(SPEC, update="bias", depth="50")
    made = plan(study(spec), spec)
    asked = made.rung(50).frozen_layers
    assert made.frozen_layers(0) == (50, asked)
    assert min(learner.layer for learner in made.learners) == asked
    assert Learner(7, "head.w", 24) in made.learners


def test_a_prefix_plan_names_nothing() -> None:
    spec = replace(SPEC, depth="25")
    made = plan(study(spec), spec)
    assert made.update(3) == UpdatePlan(3)
    assert made.step_macs == made.rung(25).step_macs


def test_a_budget_below_the_head_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="update_budget"):
        study(replace(SPEC, update="sparse", update_budget=0.0)).learners()


def test_the_rate_rises_then_falls_or_stays() -> None:
    falling = [rate_share(done, 20, 0.2, falls=True) for done in range(20)]
    assert falling[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert np.all(np.diff(falling[4:]) < 0)
    assert falling[12] == pytest.approx(0.5)
    assert [rate_share(done, 20, 0.2, falls=False) for done in (3, 4, 19)] == [1.0, 1.0, 1.0]


def test_the_second_warm_up_takes_as_many_steps_as_the_first() -> None:
    assert [rewarmed_share(done, 5, 20, 0.2) for done in (5, 6, 7, 8, 9)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [rewarmed_share(done, None, 20, 0.2) for done in (0, 5)] == [1.0, 1.0]
    assert rewarmed_share(5, 5, 20, 0.0) == 1.0
