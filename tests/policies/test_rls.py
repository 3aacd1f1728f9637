from __future__ import annotations

import json
import math
import random
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.rls import Estimate, Prior, diagonal, quadratic, update
from policies.strict import build

FREE = -math.inf
PRIOR = Prior(mean=(1.0, 1.0), deviation=(2.0, 2.0), least=(0.0, FREE), drift=(0.0, 0.0))
NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)
SAMPLES = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=30)


def taught(samples: list[tuple[float, float, float]], prior: Prior = PRIOR, noise: float = 0.1) -> Estimate:
    estimate = prior.start()
    for one, other, value in samples:
        estimate = update(estimate, prior, (one, other), value, noise)
    return estimate


def line(slope: float, rest: float, count: int, noise: float = 0.1, seed: int = 0) -> list[tuple[float, float, float]]:
    chance = random.Random(seed)
    xs = [chance.uniform(0.0, 5.0) for _ in range(count)]
    return [(x, 1.0, slope * x + rest + chance.gauss(0.0, noise)) for x in xs]


def test_finds_a_line_and_says_how_well() -> None:
    estimate = taught(line(0.7, -2.0, 200))
    assert estimate.mean == pytest.approx((0.7, -2.0), abs=0.05)
    value, error = estimate.predict((2.0, 1.0))
    assert value == pytest.approx(-0.6, abs=4 * error)
    assert 0.0 < error < 0.02
    assert estimate.predict((50.0, 1.0))[1] > 5 * error  # far from what was seen it knows less
    assert 0.5 < estimate.surprise < 2.0


def test_same_result_as_solving_the_normal_equations() -> None:
    samples = line(0.7, 2.0, 10)
    estimate = taught(samples)
    # (X'X / s^2 + D^-1) a = X'y / s^2 + D^-1 m, for two coefficients by Cramer's rule.
    s, d = 0.1**2, 2.0**2
    a = sum(x * x for x, _, _ in samples) / s + 1 / d
    b = sum(x for x, _, _ in samples) / s
    c = len(samples) / s + 1 / d
    u = sum(x * y for x, _, y in samples) / s + 1 / d
    v = sum(y for _, _, y in samples) / s + 1 / d
    assert estimate.mean == pytest.approx(((u * c - b * v) / (a * c - b * b), (a * v - b * u) / (a * c - b * b)))


def test_without_samples_the_prior_speaks() -> None:
    assert PRIOR.start().predict((1.0, 0.0)) == (1.0, 2.0)


def test_a_bounded_coefficient_stays_in_its_bounds_and_the_other_makes_up_for_it() -> None:
    estimate = taught(line(-0.5, 3.0, 300))
    assert estimate.mean[0] == 0.0
    assert estimate.mean[1] == pytest.approx(3.0 - 0.5 * 2.5, abs=0.3)  # the best constant over 0..5


def test_what_lies_on_its_bound_comes_back_when_the_samples_do() -> None:
    estimate = taught(line(-0.5, 3.0, 20) + line(0.8, 0.0, 2000, seed=3), replace(PRIOR, drift=(0.05, 0.05)))
    assert estimate.mean == pytest.approx((0.8, 0.0), abs=0.2)


def test_two_coefficients_below_their_bounds_leave_the_third_where_it_fits_best() -> None:
    prior = Prior((1.0,) * 3, (2.0,) * 3, (0.0, 0.0, FREE), (0.0,) * 3)
    estimate, chance = prior.start(), random.Random(0)
    for _ in range(500):
        x, y = chance.uniform(0.0, 5.0), chance.uniform(0.0, 5.0)
        estimate = update(estimate, prior, (x, y, 1.0), 10.0 - 0.5 * x - 0.2 * y, 0.1)
    assert estimate.mean[:2] == (0.0, 0.0)
    assert estimate.mean[2] == pytest.approx(10.0 - 0.5 * 2.5 - 0.2 * 2.5, abs=0.3)


def test_an_outlier_pulls_no_further_than_a_believable_error() -> None:
    calm = taught(line(0.7, 2.0, 50))
    shot = update(calm, PRIOR, (1.0, 1.0), 1e9, 0.1)
    assert shot.mean == pytest.approx(calm.mean, abs=0.1)


def test_drift_keeps_it_learning_and_the_prior_bounds_what_it_forgets() -> None:
    drifting = replace(PRIOR, drift=(0.05, 0.05))
    old = taught(line(0.7, 2.0, 300), drifting)
    new = old
    for one, other, value in line(1.5, 0.0, 300, seed=1):
        new = update(new, drifting, (one, other), value, 0.1)
    assert new.mean == pytest.approx((1.5, 0.0), abs=0.2)
    for _ in range(10_000):  # nothing is seen of the slope any more
        new = update(new, drifting, (0.0, 1.0), 0.0, 0.1)
    assert new.covariance[0][0] <= 2.0**2 * 1.000001
    assert new.fits(drifting)


def test_a_step_surprises_and_is_learnt_faster_for_it() -> None:
    slow = replace(PRIOR, drift=(1e-3, 1e-3))
    estimate = taught(line(0.7, 2.0, 500), slow)
    peak = 0.0
    for one, other, value in line(0.7, 4.0, 100, seed=2):
        estimate = update(estimate, slow, (one, other), value, 0.1)
        peak = max(peak, estimate.surprise)
    assert peak > 4.0
    assert estimate.mean == pytest.approx((0.7, 4.0), abs=0.3)


@given(SAMPLES)
def test_whatever_it_is_told_it_stays_sound(samples: list[tuple[float, float, float]]) -> None:
    estimate = taught(samples)
    assert estimate.fits(PRIOR)
    assert all(map(math.isfinite, estimate.mean))
    assert build(Estimate, json.loads(json.dumps(asdict(estimate)))) == estimate


@given(SAMPLES, NUMBERS, NUMBERS)
def test_more_samples_never_make_it_less_sure(
    samples: list[tuple[float, float, float]], one: float, other: float
) -> None:
    before, after = taught(samples[:-1]), taught(samples)
    assert after.predict((one, other))[1] <= before.predict((one, other))[1] * 1.001 + 1e-3 * math.hypot(one, other)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_teaches_nothing(value: float) -> None:
    start = PRIOR.start()
    assert update(start, PRIOR, (1.0, 1.0), value, 0.1) == start
    assert update(start, PRIOR, (value, 1.0), 1.0, 0.1) == start


@pytest.mark.parametrize(
    "broken",
    [
        Estimate((1.0,), diagonal((1.0,)), (1.0,)),
        Estimate((1.0, 1.0), diagonal((1.0, 1.0)), (1.0,)),
        Estimate((1.0, 1.0), ((1.0, 0.0), (0.0,)), (1.0, 1.0)),
        Estimate((-1.0, 1.0), diagonal((1.0, 1.0)), (1.0, 1.0)),
        Estimate((1.0, 1.0), diagonal((1.0, 3.0)), (1.0, 1.0)),
        Estimate((1.0, 1.0), diagonal((1.0, 0.0)), (1.0, 1.0)),
        Estimate((1.0, 1.0), ((1.0, 2.0), (2.0, 1.0)), (1.0, 1.0)),
        Estimate((1.0, 1.0), ((1.0, 0.5), (0.4, 1.0)), (1.0, 1.0)),
    ],
    ids=[
        "short",
        "short without bounds",
        "ragged",
        "below its bound",
        "less sure than its start",
        "certain",
        "no covariance",
        "not symmetric",
    ],
)
def test_an_estimate_that_no_update_leaves_does_not_fit(broken: Estimate) -> None:
    assert not broken.fits(PRIOR)


def test_quadratic_form() -> None:
    assert quadratic(((2.0, 1.0), (1.0, 3.0)), (1.0, 2.0)) == 18.0
