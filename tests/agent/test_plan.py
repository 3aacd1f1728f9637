from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cost import cost_table
from agent.engine.ir import shapes
from agent.errors import EngineError
from agent.messages import OUT_OF_MEMORY, Planned, can_shrink, decode, encode
from agent.plan import Plan, Rung, make_plan, parse_plan, plan_table, shrink
from agent.spec import DEPTH_CHOICES, FineTuneSpec
from policies.policy import DEPTH_LADDER, Policy
from tests.simulators.small_models import mobile_block_net

steady = settings(derandomize=True, deadline=None)
COSTS = cost_table(mobile_block_net())
SPEC = FineTuneSpec("net", "/data")


def plan(spec: FineTuneSpec = SPEC, similarity: float | None = None, samples: int = 100, **more: Any) -> Plan:
    given = {"engine": "graph", "classes": ("a", "b"), "head": "replace", "data_sha256": "0" * 64} | more
    return make_plan(spec, Policy(), COSTS, similarity, samples=samples, **given)


def test_the_ladder_holds_every_depth_with_its_boundary_and_cost() -> None:
    ladder = plan().ladder
    assert tuple(rung.percent for rung in ladder) == DEPTH_LADDER
    assert ladder[0].frozen_layers == 0
    assert ladder[-1].frozen_layers == 7
    for rung in ladder:
        assert rung.step_macs == COSTS.step_macs(rung.frozen_layers)
        assert rung.crossing_bytes == COSTS.crossing_bytes[rung.frozen_layers]
    assert [rung.frozen_layers for rung in ladder] == sorted(rung.frozen_layers for rung in ladder)


def test_each_micro_batch_passes_over_the_parameters_once() -> None:
    whole, halves = plan(), plan(dataclasses.replace(SPEC, micro_batch=8))
    assert (whole.batch, whole.steps, halves.micro_batch) == (16, 7, 8)
    assert (whole.passes(3), halves.passes(3)) == (3 * 7, 3 * 7 * 2)
    assert whole.model_bytes == COSTS.weight_bytes()


@pytest.mark.parametrize(
    ("similarity", "percent", "rule"),
    [
        (0.86, 75, "freezing.similarity-75"),
        (0.71, 50, "freezing.similarity-50"),
        (0.51, 25, "freezing.similarity-25"),
        (0.50, 0, "freezing.similarity-0"),
        (None, 50, "freezing.similarity-unknown"),
    ],
)
def test_auto_depth_follows_the_policy(similarity: float | None, percent: int, rule: str) -> None:
    made = plan(similarity=similarity)
    assert (made.depth_percent, made.rule, made.similarity) == (percent, rule, similarity)


@pytest.mark.parametrize(("depth", "percent"), [("0", 0), ("25", 25), ("50", 50), ("75", 75), ("head", 100)])
def test_a_depth_that_was_asked_for_is_kept(depth: str, percent: int) -> None:
    made = plan(dataclasses.replace(SPEC, depth=depth), similarity=0.99)
    assert (made.depth_percent, made.rule) == (percent, "spec")


@pytest.mark.parametrize(
    ("batch", "samples", "expected"), [(16, 100, (16, 7)), (16, 16, (16, 1)), (16, 5, (5, 1)), (1, 3, (1, 3))]
)
def test_batch_and_steps(batch: int, samples: int, expected: tuple[int, int]) -> None:
    made = plan(dataclasses.replace(SPEC, batch=batch), samples=samples)
    assert (made.batch, made.steps) == expected


@pytest.mark.parametrize(
    ("batch", "micro_batch", "samples", "expected"),
    [
        (16, 0, 100, 0),
        (16, 8, 100, 8),
        (16, 7, 100, 4),
        (16, 99, 100, 16),
        (16, 16, 15, 15),
        (15, 4, 100, 3),
        (7, 5, 9, 1),
    ],
)
def test_a_micro_batch_divides_the_batch(batch: int, micro_batch: int, samples: int, expected: int) -> None:
    made = plan(dataclasses.replace(SPEC, batch=batch, micro_batch=micro_batch), samples=samples)
    assert made.micro_batch == expected


@pytest.mark.parametrize(
    ("batch", "micro_batch", "expected"), [(16, 0, 8), (16, 4, 2), (15, 0, 5), (7, 0, 1), (2, 0, 1), (22, 11, 2)]
)
def test_a_plan_shrinks_once_and_keeps_its_batch(batch: int, micro_batch: int, expected: int) -> None:
    made = plan(dataclasses.replace(SPEC, batch=batch, micro_batch=micro_batch))
    small = shrink(made)
    assert (small.micro_batch, small.shrunk) == (expected, True)
    assert dataclasses.replace(small, micro_batch=made.micro_batch, shrunk=False) == made
    assert batch % small.micro_batch == 0
    with pytest.raises(EngineError, match="not enough memory") as caught:
        shrink(small)
    assert caught.value.code == OUT_OF_MEMORY
    assert "Lower batch" in caught.value.fix


@pytest.mark.parametrize(("batch", "micro_batch", "engine"), [(1, 0, "graph"), (8, 1, "graph"), (8, 0, "ort-training")])
def test_a_step_of_one_sample_and_an_engine_of_whole_batches_do_not_shrink(
    batch: int, micro_batch: int, engine: str
) -> None:
    made = plan(dataclasses.replace(SPEC, batch=batch, micro_batch=micro_batch), engine=engine)
    assert shrink(made) == made
    assert not can_shrink(plan_table(made))


@steady
@given(st.sampled_from(DEPTH_CHOICES), st.sampled_from(DEPTH_LADDER))
def test_an_order_only_ever_deepens(depth: str, least: int) -> None:
    made = plan(dataclasses.replace(SPEC, depth=depth), similarity=0.6)
    percent, boundary = made.frozen_layers(least)
    assert percent == max(made.depth_percent, least)
    assert boundary >= made.frozen_layers(0)[1]
    assert boundary == next(rung.frozen_layers for rung in made.ladder if rung.percent == percent)


def test_a_depth_between_two_rungs_takes_the_deeper_and_beyond_the_last_the_last() -> None:
    made = plan(dataclasses.replace(SPEC, depth="0"))
    assert made.rung(30).percent == 50
    assert made.rung(1000).percent == 100


numbers = st.integers(0, 2**62)
plans = st.builds(
    Plan,
    engine=st.text(max_size=20),
    depth_percent=st.sampled_from(DEPTH_LADDER),
    rule=st.text(max_size=40),
    similarity=st.none() | st.floats(-1, 1, allow_subnormal=False),
    ladder=st.lists(st.builds(Rung, numbers, numbers, numbers, numbers), max_size=6).map(tuple),
    layers=numbers,
    classes=st.lists(st.text(max_size=20), max_size=8).map(tuple),
    head=st.sampled_from(["keep", "replace"]),
    batch=numbers,
    steps=numbers,
)


@steady
@given(plans)
def test_a_plan_survives_json_and_the_message_it_travels_in(made: Plan) -> None:
    assert parse_plan(json.loads(json.dumps(plan_table(made)))) == made
    message = decode(encode(Planned({"plan": plan_table(made)})))
    assert isinstance(message, Planned)
    assert parse_plan(message.plan["plan"]) == made  # type: ignore[arg-type]


def test_a_plan_with_as_many_labels_as_a_card_may_have_can_be_resumed() -> None:
    made = plan(classes=tuple(f"class {i}" for i in range(10_000)), head="keep")
    assert parse_plan(json.loads(json.dumps(plan_table(made)))) == made


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"depth": 3}, "depth"),
        ({"ladder": [{"percent": 0}]}, "ladder[0].frozen_layers"),
        ({"batch": "many"}, "batch"),
        ({"similarity": float("nan")}, "similarity"),
    ],
)
def test_a_plan_of_another_version_is_an_engine_error(change: dict[str, Any], where: str) -> None:
    with pytest.raises(EngineError, match="journal's plan cannot be read") as caught:
        parse_plan(plan_table(plan()) | change)
    assert caught.value.where == where


def test_boundaries_exist_in_the_graph() -> None:
    assert {rung.frozen_layers for rung in plan().ladder} <= set(range(8))
    assert shapes(mobile_block_net(), 1)["logits"] == (1, 3)
