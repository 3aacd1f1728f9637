"""Windows: where they begin, what they hold, and that time splits them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.card import WindowRule
from agent.errors import DataError
from agent.series import Series
from agent.windows import LEAST_WINDOWS, arranged, cut, whole_windows

steady = settings(derandomize=True, deadline=None, max_examples=80)
RULE = WindowRule(("a", "b"), (1.0, 10.0), (2.0, 5.0), window=3, layout="TF")


def series(rows: int, bad: tuple[int, ...] = (), labels: tuple[int, ...] | None = None) -> Series:
    """Row r holds r and 100 + r."""
    values = np.stack([np.arange(rows), 100 + np.arange(rows)], axis=1).astype(np.float32)
    sound = np.ones(rows, bool)
    for row in bad:
        values[row], sound[row] = np.nan, False
    marks = None
    if labels is not None:
        marks = np.zeros(rows, bool)
        marks[list(labels)] = True
    return Series(values, sound, marks, bad=len(bad))


@pytest.mark.parametrize(("layout", "shape"), [("TF", (3, 2)), ("FT", (2, 3)), ("flat", (6,))])
def test_a_window_is_normalized_by_the_card_and_laid_out(layout: str, shape: tuple[int, ...]) -> None:
    rule = dataclasses.replace(RULE, layout=layout)
    rows = series(5).values[None, 1:4]
    found = arranged(rows, rule)
    assert found.shape == (1, *shape)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    normal = (rows[0] - [1, 10]) / [2, 5]
    expected = normal.T if layout == "FT" else normal
    np.testing.assert_allclose(found[0].reshape(expected.shape), expected, rtol=1e-6)


@steady
@given(
    rows=st.integers(120, 200),
    window=st.integers(1, 6),
    horizon=st.integers(0, 4),
    held_out=st.floats(0.25, 0.5, allow_subnormal=False),
    bad=st.sets(st.integers(0, 59), max_size=3),
    stride=st.integers(1, 2),
)
def test_no_training_window_reaches_what_is_judged(
    rows: int, window: int, horizon: int, held_out: float, bad: set[int], stride: int
) -> None:
    rule = dataclasses.replace(RULE, window=window, horizon=horizon, target="b" if horizon else "")
    found = cut(series(rows, tuple(bad)), rule, held_out, stride, 1000, "rows.csv")
    border = rows - round(rows * held_out)
    length = window + horizon
    seen = {int(start) + k for start in found.train for k in range(length)}
    judged_from = window if horizon else 0
    judged = {int(start) + k for start in found.test for k in range(judged_from, length)}
    assert max(seen) < border <= min(judged)
    every = {int(start) for start in (*found.train, *found.test)}
    assert all(start % stride == 0 for start in every)
    assert not bad & {start + k for start in every for k in range(length)}
    for start in range(0, rows - length + 1, stride):  # and none that fits is lost
        whole = not bad & set(range(start, start + length))
        fits = start + length <= border or start + judged_from >= border
        assert (start in every) == (whole and fits)


def test_targets_follow_their_window_in_the_units_of_the_data() -> None:
    rule = dataclasses.replace(RULE, horizon=2, target="b")
    found = cut(series(80), rule, 0.25, 1, 1000, "rows.csv")
    starts = found.train[:3]
    np.testing.assert_array_equal(found.targets(starts, rule), [[103, 104], [104, 105], [105, 106]])
    np.testing.assert_array_equal(
        found.inputs(starts, rule), arranged(series(80).values[[[0, 1, 2], [1, 2, 3], [2, 3, 4]]], rule)
    )


def test_a_window_is_anomalous_when_one_of_its_rows_is() -> None:
    found = cut(series(80, labels=(5, 70)), RULE, 0.25, 1, 1000, "rows.csv")
    assert found.train[found.anomalous(found.train, 3)].tolist() == [3, 4, 5]
    assert found.test[found.anomalous(found.test, 3)].tolist() == [68, 69, 70]


def test_a_window_with_a_bad_row_is_left_out_and_counted() -> None:
    found = cut(series(80, bad=(10,)), RULE, 0.25, 1, 1000, "rows.csv")
    assert found.gap == 3
    assert not {8, 9, 10} & set(found.train.tolist())
    assert whole_windows(series(5, bad=(2,)), 2).tolist() == [0, 3]
    assert whole_windows(series(2), 3).tolist() == []


def test_too_many_windows_or_too_few_are_refused() -> None:
    assert len(cut(series(80), RULE, 0.25, 1, 76, "rows.csv").train) == 58
    with pytest.raises(DataError, match="76 windows are more than most_samples = 75"):
        cut(series(80), RULE, 0.25, 1, 75, "rows.csv")
    needed = LEAST_WINDOWS + 2  # rows of the smaller part
    assert len(cut(series(4 * needed), RULE, 0.25, 1, 1000, "rows.csv").test) == LEAST_WINDOWS
    with pytest.raises(DataError, match="held-out part holds 7 whole windows of 3 rows, at least 8"):
        cut(series(4 * needed - 4), RULE, 0.25, 1, 1000, "rows.csv")
    with pytest.raises(DataError, match="training part holds 0 whole windows"):
        cut(series(2), RULE, 0.25, 1, 1000, "rows.csv")


def test_the_fingerprint_covers_values_labels_and_the_split() -> None:
    base = cut(series(80, labels=()), RULE, 0.25, 1, 1000, "rows.csv")
    prints = {base.fingerprint()}
    values = base.series.values.copy()
    values[40, 1] += 1
    for changed in (
        cut(dataclasses.replace(base.series, values=values), RULE, 0.25, 1, 1000, ""),
        cut(series(80, labels=(4,)), RULE, 0.25, 1, 1000, ""),
        cut(series(80), RULE, 0.25, 1, 1000, ""),
        cut(series(80, labels=()), RULE, 0.3, 1, 1000, ""),
        cut(series(80, labels=()), RULE, 0.25, 2, 1000, ""),
    ):
        prints.add(changed.fingerprint())
    assert len(prints) == 6
    assert cut(series(80, labels=()), RULE, 0.25, 1, 1000, "elsewhere").fingerprint() == base.fingerprint()
