from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cost import cost_table
from agent.update_plan import (
    BUDGET_STEPS,
    Offer,
    Option,
    bias_learners,
    choose_options,
    layer_offers,
    learners_macs,
    pass_work,
    plan_cost,
    sparse_learners,
)
from tests.simulators.small_models import mobile_block_net

steady = settings(derandomize=True, deadline=None)
NET = mobile_block_net()
COSTS = cost_table(NET)
FORWARD = sum(pass_work(layer) for layer in COSTS.layers)
HEAD = pass_work(COSTS.layers[-1])
NAMES = [name for layer in NET.layers() for name in layer.parameters]
cached_or_not = pytest.mark.parametrize("cached", [True, False], ids=["cached", "not-cached"])

small_offers = st.lists(
    st.builds(
        Offer,
        st.lists(st.builds(Option, st.just(("p",)), st.integers(0, 9).map(float), st.integers(0, 12)), max_size=2).map(
            tuple
        ),
        st.integers(0, 12),
        st.integers(0, 12),
    ),
    max_size=5,
)
heads = st.builds(
    Offer,
    st.tuples(st.builds(Option, st.just(("head",)), st.just(1.0), st.integers(0, 5))),
    st.just(3),
    st.integers(0, 3),
)


def gain(chosen: tuple[Option | None, ...]) -> float:
    return sum(option.gain for option in chosen if option)


def every_choice(offers: list[Offer], first: int) -> list[tuple[Option | None, ...]]:
    """All ways in which the layers may learn; the head always does."""
    ways = [(None, *offer.options) if index >= first else (None,) for index, offer in enumerate(offers[:-1])]
    return [(*way, offers[-1].options[0]) for way in itertools.product(*ways)]


@steady
@given(small_offers, heads, st.integers(8, 90), st.integers(0, 3))
def test_no_choice_within_the_budget_gains_more(layers: list[Offer], head: Offer, budget: int, first: int) -> None:
    offers = [*layers, head]
    chosen = choose_options(offers, budget, first)
    affordable = [way for way in every_choice(offers, first) if plan_cost(offers, way) <= budget]
    assert chosen in affordable
    assert gain(chosen) == max(gain(way) for way in affordable)


@steady
@given(
    small_offers.map(lambda offers: [_scaled(offer, 991) for offer in offers]), heads, st.integers(BUDGET_STEPS, 60_000)
)
def test_rounded_costs_never_exceed_the_budget(layers: list[Offer], head: Offer, budget: int) -> None:
    offers = [*layers, head]
    chosen = choose_options(offers, budget)
    assert plan_cost(offers, chosen) <= budget
    lost = (len(offers) + 2) * -(-budget // BUDGET_STEPS)  # what rounding may waste: less than a part for each cost
    tight = [way for way in every_choice(offers, 0) if plan_cost(offers, way) <= budget - lost]
    assert gain(chosen) >= max((gain(way) for way in tight), default=0.0)


def _scaled(offer: Offer, factor: int) -> Offer:
    options = tuple(Option(option.parameters, option.gain, option.cost * factor) for option in offer.options)
    return Offer(options, offer.pass_cost * factor, offer.reach_cost * factor)


def test_a_head_beyond_the_budget_is_refused() -> None:
    offers = [Offer((), 2), Offer((Option(("head",), 1.0, 7),), 7)]
    assert choose_options(offers, 7) == (None, offers[1].options[0])
    with pytest.raises(ValueError, match="the head alone costs 7, the budget is 6"):
        choose_options(offers, 6)


def test_reaching_a_layer_costs_the_chain_behind_it() -> None:
    offers = [Offer((Option(("deep",), 5.0, 1),), 1), Offer((), 10), Offer((Option(("head",), 1.0, 1),), 1)]
    assert choose_options(offers, 12)[0] is None
    assert choose_options(offers, 13)[0] == offers[0].options[0]


@cached_or_not
def test_a_full_budget_lets_everything_learn(cached: bool) -> None:
    learners = sparse_learners(NET, COSTS, dict.fromkeys(NAMES, 1.0), 1.0, cached=cached)
    assert [learner.parameter for learner in learners] == NAMES


@cached_or_not
def test_the_least_budget_leaves_the_head_and_less_is_refused(cached: bool) -> None:
    gains = dict.fromkeys(NAMES, 1.0)
    least = 2 * HEAD if cached else HEAD + FORWARD
    learners = sparse_learners(NET, COSTS, gains, (least + 0.5) / full_step(), cached=cached)
    assert [learner.parameter for learner in learners] == ["head.w", "head.b"]
    with pytest.raises(ValueError, match="the head alone costs"):
        sparse_learners(NET, COSTS, gains, (least - 0.5) / full_step(), cached=cached)


def full_step() -> int:
    """A forward pass and both gradients of every layer, but for the first one's input gradient."""
    return 3 * FORWARD - pass_work(COSTS.layers[0])


@cached_or_not
def test_the_cost_of_all_options_is_that_of_a_full_step(cached: bool) -> None:
    offers = layer_offers(NET, COSTS, dict.fromkeys(NAMES, 1.0), cached=cached)
    whole = tuple(offer.options[-1] for offer in offers)
    assert plan_cost(offers, whole) + (0 if cached else FORWARD) == full_step()


@cached_or_not
def test_a_layer_that_gains_much_is_chosen_over_its_neighbours(cached: bool) -> None:
    gains = dict.fromkeys(NAMES, 1e-3) | {"project2.w": 50.0}
    learners = sparse_learners(NET, COSTS, gains, 0.45, cached=cached)
    assert "project2.w" in [learner.parameter for learner in learners]
    assert "expand.w" not in [learner.parameter for learner in learners]
    assert learners == sparse_learners(NET, COSTS, gains, 0.45, cached=cached)


def test_a_cache_lets_more_learn_for_the_same_share() -> None:
    gains = dict.fromkeys(NAMES, 1.0)
    cached, run_again = (len(sparse_learners(NET, COSTS, gains, 0.5, cached=cached)) for cached in (True, False))
    assert cached > run_again


def test_layers_before_the_first_stay() -> None:
    learners = sparse_learners(NET, COSTS, dict.fromkeys(NAMES, 1.0), 1.0, 4, cached=True)
    assert min(learner.layer for learner in learners) == 4


def test_biases_and_the_whole_head() -> None:
    learners = bias_learners(NET, COSTS)
    names = [learner.parameter for learner in learners]
    assert names == [name for name in NAMES if name.endswith(".b") or name == "head.w"]
    assert [learner.layer for learner in learners] == [0, 1, 2, 3, 4, 5, 6, 7, 7]
    assert [learner.layer for learner in bias_learners(NET, COSTS, first=5)] == [5, 6, 7, 7]


@pytest.mark.parametrize("frozen", range(len(COSTS.layers)))
def test_the_work_of_a_plan_in_which_all_layers_past_a_boundary_learn_is_the_tables(frozen: int) -> None:
    learners = sparse_learners(NET, COSTS, dict.fromkeys(NAMES, 1.0), 1.0, frozen, cached=True)
    assert learners_macs(COSTS, learners) == COSTS.step_macs(frozen)
    assert learners_macs(COSTS, bias_learners(NET, COSTS, frozen)) < COSTS.step_macs(frozen) or frozen == 7
