from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.freezing import HEAD_ONLY_PERCENT
from policies.governor import GovernorState, decide
from policies.outlook import DepthCost, Outlook
from policies.policy import DEPTH_LADDER, Policy, PolicyError, parse_policy
from policies.policy_predictive import PredictivePolicy
from policies.progress import DEEP, HALF, RULE, least_depth, samples_to_go
from policies.reading import Action, Reading

COSTS = tuple(
    DepthCost(depth, seconds, measured=True)
    for depth, seconds in ((0, 0.004), (25, 0.003), (50, 0.002), (75, 0.001), (100, 0.0001))
)
POLICY = PredictivePolicy(head_first_share=0.1, settled_share=0.4, late_share=0.7)


def depth_at(done: int, plan: int = 0, policy: PredictivePolicy = POLICY, costs: tuple[DepthCost, ...] = COSTS) -> int:
    bound = least_depth(policy, Outlook(plan, costs, samples_left=1000 - done, samples_done=done))
    return 0 if bound is None else bound.depth


@pytest.mark.parametrize(
    ("plan", "depths"),
    [
        (0, [HEAD_ONLY_PERCENT, 0, HALF, HEAD_ONLY_PERCENT]),
        (25, [HEAD_ONLY_PERCENT, 0, HALF, HEAD_ONLY_PERCENT]),
        (50, [HEAD_ONLY_PERCENT, 0, DEEP, HEAD_ONLY_PERCENT]),
        (75, [0, 0, 0, 0]),
        (100, [0, 0, 0, 0]),
    ],
)
def test_the_head_first_then_the_plan_then_deeper_and_the_head_last(plan: int, depths: list[int]) -> None:
    for (first, last), depth in zip(((0, 99), (100, 399), (400, 699), (700, 1000)), depths, strict=True):
        assert (depth_at(first, plan), depth_at(last, plan)) == (depth, depth)


def test_it_names_its_rule_and_slows_nothing() -> None:
    bound = least_depth(POLICY, Outlook(50, COSTS, samples_left=1000))
    assert bound is not None
    assert (bound.rule, bound.action, bound.ratio, bound.duty, bound.cooling) == (RULE, Action.RUN, 1.0, 1.0, 0.0)


def test_every_stage_can_be_switched_off() -> None:
    never = PredictivePolicy(head_first_share=0.0, settled_share=1.0, late_share=1.0)
    assert [depth_at(done, policy=never) for done in (0, 400, 999)] == [0, 0, 0]


def test_nothing_is_asked_for_without_the_length_of_the_job_or_its_costs() -> None:
    assert least_depth(POLICY, Outlook(0, COSTS)) is None
    assert least_depth(POLICY, Outlook(0, COSTS, samples_left=0)) is None
    assert depth_at(900, costs=()) == 0


def test_a_depth_that_saves_too_little_is_not_asked_for() -> None:
    flat = tuple(dataclasses.replace(cost, sample_s=0.004 - cost.depth_percent * 1e-6) for cost in COSTS)
    assert [depth_at(done, costs=flat) for done in (0, 900)] == [0, 0]


@given(
    done=st.integers(0, 10_000),
    left=st.one_of(st.none(), st.integers(0, 10_000)),
    plan=st.sampled_from(DEPTH_LADDER),
    seconds=st.lists(st.floats(1e-6, 10.0, allow_subnormal=False), min_size=0, max_size=5),
    head=st.floats(0.0, 0.5, allow_subnormal=False),
    shares=st.tuples(st.floats(0.0, 1.0, allow_subnormal=False), st.floats(0.0, 1.0, allow_subnormal=False)),
)
def test_it_never_asks_for_less_than_the_plan_nor_for_a_depth_off_the_ladder(
    done: int, left: int | None, plan: int, seconds: list[float], head: float, shares: tuple[float, float]
) -> None:
    costs = tuple(DepthCost(depth, cost) for depth, cost in zip(DEPTH_LADDER, seconds, strict=False))
    policy = PredictivePolicy(head_first_share=head, settled_share=min(shares), late_share=max(shares))
    bound = least_depth(policy, Outlook(plan, costs, left, done))
    assert bound is None or (bound.depth > plan and bound.depth in DEPTH_LADDER)
    assert bound == least_depth(policy, Outlook(plan, costs, left, done))


def test_the_head_learns_alone_until_a_sample_that_is_named_before_its_steps_begin() -> None:
    bound = least_depth(POLICY, Outlook(0, COSTS, samples_left=1000))
    assert bound is not None
    assert bound.depth_until_samples == 100
    settled = least_depth(POLICY, Outlook(0, COSTS, samples_left=400, samples_done=600))
    assert settled is not None
    assert settled.depth_until_samples == 0


@pytest.mark.parametrize(("celsius", "after"), [(30.0, 0), (57.0, 50)])
def test_a_decision_says_which_depth_holds_once_the_head_has_learnt(celsius: float, after: int) -> None:
    reading = Reading(0.0, temperature_celsius=celsius, ambient_celsius=25.0)
    policy = dataclasses.replace(Policy(), predictive=POLICY)
    _, decision = decide(policy, GovernorState(), reading, Outlook(0, COSTS, samples_left=1000))
    assert (decision.least_depth_percent, decision.depth_rule) == (HEAD_ONLY_PERCENT, RULE)
    assert decision.depth_until_samples == 100
    assert decision.depth_after_percent == after  # what heat asks for stays


def test_fixed_rules_train_as_planned() -> None:
    policy = dataclasses.replace(Policy(), predictive=PredictivePolicy(enabled=False))
    reading = Reading(0.0, temperature_celsius=30.0, ambient_celsius=25.0)
    _, decision = decide(policy, GovernorState(), reading, Outlook(0, COSTS, samples_left=1000))
    assert (decision.least_depth_percent, decision.depth_until_samples) == (0, 0)


def test_a_schedule_that_goes_back_is_refused_with_the_key() -> None:
    with pytest.raises(PolicyError, match="late_share"):
        parse_policy("[predictive]\nsettled_share = 0.8\n")


def test_what_is_to_go_counts_each_stage_at_its_own_cost() -> None:
    whole = Outlook(0, COSTS, samples_left=1000)
    planned, half, late, head = 300 * 0.004, 300 * 0.002, 300 * 0.0001, 100 * 0.0001
    assert samples_to_go(POLICY, whole, 0) == pytest.approx((head + planned + half + late) / 0.004)
    assert samples_to_go(POLICY, whole, 75) == pytest.approx((head + 600 * 0.001 + late) / 0.001)
    last = Outlook(0, COSTS, samples_left=200, samples_done=800)
    assert samples_to_go(POLICY, last, HEAD_ONLY_PERCENT) == pytest.approx(200)


def test_what_is_to_go_without_costs_or_length() -> None:
    assert samples_to_go(POLICY, Outlook(0, samples_left=70), 0) == 70
    assert samples_to_go(POLICY, Outlook(0, COSTS), 0) is None
    assert samples_to_go(POLICY, Outlook(0, COSTS, samples_left=0, samples_done=9), 0) == 0


@given(done=st.integers(0, 5000), left=st.integers(0, 5000), plan=st.sampled_from(DEPTH_LADDER))
def test_the_schedule_never_takes_longer_than_training_as_planned(done: int, left: int, plan: int) -> None:
    to_go = samples_to_go(POLICY, Outlook(plan, COSTS, left, done), plan)
    assert to_go is not None
    assert 0 <= to_go <= left * (1 + 1e-9)
