from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.evaluate import (
    Baseline,
    Score,
    auc,
    gate,
    majority_share,
    score_errors,
    score_forecast,
    score_logits,
)

steady = settings(derandomize=True, deadline=None)


def at(accuracy: float, loss: float = 0.5, *, finite: bool = True) -> Score:
    return Score("accuracy", accuracy, loss, 100, finite)


def largest_class(share: float) -> Baseline:
    return Baseline("majority", share, "the largest class alone")


@pytest.mark.parametrize(
    ("tuned", "before", "running", "floor", "gain", "reason", "evidence"),
    [
        (at(0.9), at(0.5), None, 0.6, 0.0, "", "held-out accuracy 0.9000 on 100 samples"),
        (at(0.9), at(0.5), at(0.8), 0.6, 0.0, "", "0.9000"),
        (at(0.9), at(0.5), at(0.75), 0.6, 0.125, "", "0.9000"),
        (at(0.75), at(0.5), at(0.875), 0.6, -0.25, "", "0.7500"),  # a negative gain allows a loss
        # as accurate as the other: the lower loss decides
        (at(0.9, 0.4), at(0.9, 0.5), None, 0.6, 0.0, "", "0.9000"),
        (at(0.9, 0.5), at(0.9, 0.5), None, 0.6, 0.0, "gate-base", "0.9000 at loss 0.5000, least_gain is 0"),
        (at(0.9, 0.4), at(0.5), at(0.9, 0.5), 0.6, 0.0, "", "0.9000"),
        (at(0.9, 0.5), at(0.5), at(0.9, 0.4), 0.6, 0.0, "gate-running", "running model has 0.9000 at loss 0.4000"),
        # each reason
        (at(0.9, finite=False), at(0.5), None, 0.6, 0.0, "gate-not-finite", "not finite"),
        (at(0.6), at(0.1), None, 0.6, 0.0, "gate-majority", "the largest class alone gives 0.6000"),
        (at(0.7), at(0.7001), None, 0.6, 0.0, "gate-base", "base model has 0.7001"),
        (at(0.75), at(0.7), None, 0.6, 0.1, "gate-base", "least_gain is 0.1"),
        (at(0.7), at(0.5), at(0.71), 0.6, 0.0, "gate-running", "running model has 0.7100"),
        (at(0.75), at(0.5), at(0.7), 0.6, 0.1, "gate-running", "least_gain is 0.1"),
        # several at once: the graver one is told
        (at(0.0, finite=False), at(0.9), at(0.9), 0.6, 0.0, "gate-not-finite", ""),
        (at(0.5), at(0.9), at(0.9), 0.6, 0.0, "gate-majority", ""),
        (at(0.7), at(0.9), at(0.9), 0.6, 0.0, "gate-base", ""),
    ],
)
def test_the_gate(
    tuned: Score, before: Score, running: Score | None, floor: float, gain: float, reason: str, evidence: str
) -> None:
    verdict = gate(tuned, before, running, largest_class(floor), gain)
    assert verdict.reason == reason
    assert verdict.accepted == (reason == "")
    assert evidence in verdict.evidence


quarters = st.integers(0, 16).map(lambda k: k / 16)  # differences are exact
scores = st.builds(at, quarters, st.sampled_from([0.25, 0.5]))


@steady
@given(scores, scores, st.none() | scores, quarters, quarters.map(lambda gain: gain - 0.5), st.booleans())
def test_only_what_is_finite_useful_and_better_passes(
    tuned: Score,
    before: Score,
    running: Score | None,
    floor: float,
    gain: float,
    finite: bool,
) -> None:
    verdict = gate(at(tuned.value, tuned.loss, finite=finite), before, running, largest_class(floor), gain)
    beaten = [(tuned.value, -tuned.loss) > (other.value + gain, -other.loss) for other in (before, running) if other]
    assert verdict.accepted == (finite and tuned.value > floor and all(beaten))
    assert verdict.accepted == (verdict.reason == "")
    assert verdict.evidence


def test_a_score_by_hand() -> None:
    logits = np.log(np.asarray([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25]], np.float32))
    found = score_logits(logits, np.asarray([0, 1, 2]))
    assert found.value == pytest.approx(2 / 3)
    assert found.loss == pytest.approx(-np.log([0.7, 0.6, 0.25]).mean(), rel=1e-6)
    assert (found.samples, found.finite) == (3, True)


def test_a_score_does_not_overflow() -> None:
    logits = np.asarray([[3e38, -3e38], [-3e38, 3e38]], np.float32)
    assert score_logits(logits, np.asarray([0, 1])) == Score("accuracy", 1.0, 0.0, 2, finite=True)
    assert np.isfinite(score_logits(logits, np.asarray([1, 0])).loss)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_score_nothing(bad: float) -> None:
    logits = np.ones((2, 3), np.float32)
    logits[1, 2] = bad
    assert score_logits(logits, np.asarray([0, 0])) == Score("accuracy", 0.0, float("inf"), 2, finite=False)


@steady
@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 99), st.floats(-50, 50, allow_subnormal=False))
def test_a_constant_added_to_all_logits_changes_nothing(n: int, k: int, seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.standard_normal((n, k)).astype(np.float32), rng.integers(0, k, n)
    a, b = score_logits(logits, labels), score_logits((logits + np.float32(shift)).astype(np.float32), labels)
    assert a.loss == pytest.approx(b.loss, abs=1e-4)
    assert a.loss >= 0


def test_the_largest_class_alone() -> None:
    assert majority_share(np.asarray([2, 2, 0, 2])) == 0.75
    assert majority_share(np.asarray([1])) == 1.0


# --- anomalies --------------------------------------------------------------------------------------------------------


@steady
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_the_auc_is_the_share_of_pairs_in_the_right_order(samples: list[tuple[int, bool]]) -> None:
    positive = [value for value, mark in samples if mark]
    negative = [value for value, mark in samples if not mark]
    if not (positive and negative):
        return
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    scores = np.asarray([value for value, _ in samples], np.float64)
    found = auc(scores, np.asarray([mark for _, mark in samples]))
    assert found == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@steady
@given(st.integers(0, 999), st.integers(2, 30))
def test_the_auc_sees_only_the_order(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    scores, marks = rng.integers(0, 9, count).astype(np.float64), np.arange(count) % 2 == 0
    assert auc(np.exp(scores), marks) == auc(scores, marks)
    assert auc(-scores, marks) == pytest.approx(1 - auc(scores, marks))


def test_errors_are_judged_by_labels_or_by_themselves() -> None:
    errors = np.asarray([0.1, 0.4, 0.2, 0.9])
    found = score_errors(errors, np.asarray([False, False, False, True]))
    assert (found.metric, found.value, found.higher_is_better) == ("auc", 1.0, True)
    assert found.loss == pytest.approx(0.7 / 3)
    plain = score_errors(errors, None)
    assert (plain.metric, plain.higher_is_better) == ("reconstruction_error", False)
    assert plain.value == plain.loss == pytest.approx(0.4)
    assert score_errors(np.asarray([0.1, np.inf]), None) == Score(
        "reconstruction_error", float("inf"), float("inf"), 2, finite=False
    )


# --- forecasts --------------------------------------------------------------------------------------------------------


def test_a_forecast_is_scored_in_the_units_of_the_data() -> None:
    actual = np.asarray([[1.0, 2.0], [3.0, 4.0]])
    found = score_forecast(actual + np.asarray([[1, -1], [0, 2]]), actual)
    assert (found.metric, found.value, found.samples, found.higher_is_better) == ("mae", 1.0, 2, False)
    assert found.loss == pytest.approx(np.sqrt(6 / 4))
    assert not score_forecast(actual * np.nan, actual).finite


def error(value: float, loss: float = 0.5) -> Score:
    return Score("mae", value, loss, 100, finite=True)


@pytest.mark.parametrize(
    ("tuned", "before", "running", "naive", "gain", "reason"),
    [
        (error(8.0), error(10.0), None, 12.0, 0.0, ""),
        (error(8.0), error(10.0), error(9.0), 12.0, 0.1, ""),
        (error(8.0), error(10.0), error(8.5), 12.0, 0.1, "gate-running"),
        (error(9.5), error(10.0), None, 12.0, 0.1, "gate-base"),
        (error(9.5), error(10.0), None, 9.5, 0.0, "gate-naive-last"),
        (error(10.0), error(10.0), None, 12.0, 0.0, "gate-base"),
        (error(10.0, 0.4), error(10.0), None, 12.0, 0.0, ""),
        (error(10.5), error(10.0), None, 12.0, -0.1, ""),
        (error(8.0), Score("mae", float("inf"), float("inf"), 100, finite=False), None, 12.0, 0.5, ""),
    ],
)
def test_the_gate_on_errors(
    tuned: Score, before: Score, running: Score | None, naive: float, gain: float, reason: str
) -> None:
    verdict = gate(tuned, before, running, Baseline("naive_last", naive, "the last value alone"), gain)
    assert verdict.reason == reason
    assert "MAE" in verdict.evidence
