from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.freezing import SNAP_LAYERS, TRIAL_DEPTHS, choose_by_trials, choose_depth, snap
from policies.policy import FreezingPolicy

FREEZING = FreezingPolicy()


@pytest.mark.parametrize(
    ("similarity", "percent", "rule"),
    [
        (1.0, 75, "freezing.similarity-75"),
        (0.8501, 75, "freezing.similarity-75"),
        (0.85, 50, "freezing.similarity-50"),
        (0.71, 50, "freezing.similarity-50"),
        (0.70, 25, "freezing.similarity-25"),
        (0.51, 25, "freezing.similarity-25"),
        (0.50, 0, "freezing.similarity-0"),
        (-1.0, 0, "freezing.similarity-0"),
        (None, 50, "freezing.similarity-unknown"),
        (math.nan, 50, "freezing.similarity-unknown"),
    ],
)
def test_depth_follows_similarity(similarity: float | None, percent: int, rule: str) -> None:
    assert choose_depth(FREEZING, similarity) == (percent, rule)


@given(st.floats(-1, 1, allow_subnormal=False), st.floats(-1, 1, allow_subnormal=False))
def test_more_similar_is_never_less_frozen(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert choose_depth(FREEZING, low)[0] <= choose_depth(FREEZING, high)[0]


def test_snap_takes_the_cheapest_boundary_near_the_nominal_one() -> None:
    crossing = [100, 90, 80, 70, 10, 60, 50, 40, 5, 30, 20]  # ten layers; nominal 50 % is 5
    assert snap(crossing, 50) == 4
    assert snap(crossing, 50, within=0) == 5
    assert snap(crossing, 50, within=3) == 8


def test_snap_keeps_the_ends() -> None:
    crossing = [9, 1, 9, 1, 9]
    assert snap(crossing, 0) == 0
    assert snap(crossing, 100) == 3
    assert snap([5, 5], 75) == 0  # one layer is the head


def test_snap_prefers_near_then_deep_among_equals() -> None:
    assert snap([7] * 11, 50) == 5
    assert snap([7, 7, 7, 7, 7, 9, 7, 7, 7, 7, 7], 50) == 6


@pytest.mark.parametrize(("crossing", "percent"), [([], 50), ([1], 50), ([1, 1], 101), ([1, 1], -1)])
def test_snap_refuses_nonsense(crossing: list[int], percent: int) -> None:
    with pytest.raises(ValueError, match="cannot freeze"):
        snap(crossing, percent)


@given(st.lists(st.integers(0, 10**9), min_size=3, max_size=80), st.integers(1, 99))
def test_snap_stays_near_and_never_costs_more_than_the_nominal_boundary(crossing: list[int], percent: int) -> None:
    layers = len(crossing) - 1
    nominal = min(max(round(layers * percent / 100), 1), layers - 1)
    chosen = snap(crossing, percent)
    assert abs(chosen - nominal) <= SNAP_LAYERS
    assert 1 <= chosen <= layers - 1
    assert crossing[chosen] <= crossing[nominal]


@pytest.mark.parametrize(
    ("losses", "percent", "tried"),
    [
        ((1.0, 0.91, 0.1), 75, 2),  # what lies behind a depth that was not worth it is not tried
        ((1.0, 0.89, 0.81), 50, 3),
        ((1.0, 0.89, 0.80), 25, 3),
        ((1.0, 0.9, 0.1), 75, 2),  # exactly the share is not enough
        ((1.0, float("inf"), 0.1), 75, 2),
        ((1.0, float("nan"), 0.1), 75, 2),
        ((float("inf"), 0.5, float("nan")), 50, 3),
        ((float("nan"), 0.5, 0.1), 75, 2),
    ],
)
def test_trials_walk_towards_the_input_while_the_loss_falls_enough(
    losses: tuple[float, ...], percent: int, tried: int
) -> None:
    asked: list[int] = []

    def loss_at(depth: int) -> float:
        asked.append(depth)
        return losses[TRIAL_DEPTHS.index(depth)]

    assert choose_by_trials(FreezingPolicy(probe_gain=0.1), loss_at) == (percent, f"freezing.probe-{percent}")
    assert asked == list(TRIAL_DEPTHS[:tried])
