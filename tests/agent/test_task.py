"""The three tasks: inputs, targets, scores, baselines, and who may be compared with whom."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.anomaly import THRESHOLD_QUANTILE, AnomalyDetection, window_errors
from agent.card import ModelCard, Preprocess, WindowRule
from agent.classification import Classification
from agent.engine.base import LossSpec
from agent.errors import DataError, SpecError
from agent.forecasting import Forecasting
from agent.images import Images
from agent.series import Series
from agent.spec import FineTuneSpec, parse_spec
from agent.task import load_task
from agent.windows import cut
from tests.simulators.small_models import colour_images

ROWS = 120
BORDER = 96  # a fifth is held out
ANOMALY = WindowRule(("a", "b"), (50.0, 10.0), (30.0, 5.0), window=4, layout="flat")
FORECAST = WindowRule(("a", "b"), (50.0, 10.0), (30.0, 5.0), 6, "FT", horizon=3, target="b", season=4)


def rows(labels: tuple[int, ...] | None = (100, 101)) -> Series:
    """Column a rises, column b has a season of four rows."""
    r = np.arange(ROWS)
    values = np.stack([r, 10 + 5 * (r % 4)], axis=1).astype(np.float32)
    marks = None if labels is None else np.isin(r, labels)
    return Series(values, np.ones(ROWS, bool), marks)


def anomalies(labels: tuple[int, ...] | None = (100, 101), rule: WindowRule = ANOMALY) -> AnomalyDetection:
    return AnomalyDetection(cut(rows(labels), rule, 0.2, 1, 1000, ""), rule, LossSpec("mse"))


def forecasts(rule: WindowRule = FORECAST, season: int = 4) -> Forecasting:
    return Forecasting(cut(rows(), rule, 0.2, 1, 1000, ""), rule, LossSpec("huber"), season)


def pictures(loss: str = "cross-entropy", smoothing: float = 0.0) -> Classification:
    pixels, labels = colour_images(12)
    images = Images(pixels[:8], labels[:8], pixels[8:], labels[8:], ("red", "green", "blue"))
    return Classification(images, Preprocess(1 / 127.5, -1.0), LossSpec(loss), smoothing)


# --- anomaly detection ------------------------------------------------------------------------------------------------


def test_the_autoencoders_target_is_its_input() -> None:
    task = anomalies()
    chosen = np.asarray([3, 0, 7])
    np.testing.assert_array_equal(task.inputs(chosen), task.targets(chosen))
    assert task.inputs(chosen).shape == (3, 8)
    assert task.inputs(chosen)[1, 0] == np.float32((0 - 50) / 30)


def test_held_out_labels_of_both_kinds_give_an_auc_and_else_the_error_counts() -> None:
    task = anomalies()
    outputs = task.test_inputs(0, task.test_samples).copy()
    assert task.anomalous is not None
    outputs[task.anomalous] += 1
    found = task.score(np.concatenate([task.measured(outputs[:5], 0), task.measured(outputs[5:], 5)]))
    assert (found.metric, found.value, found.loss) == ("auc", 1.0, 0.0)
    assert task.baselines[0].value == 0.5
    for labels in (None, (), (3,), tuple(range(BORDER, ROWS))):
        assert anomalies(labels).anomalous is None
        assert anomalies(labels).score(np.full(task.test_samples, 0.25)).metric == "reconstruction_error"


def test_without_labels_the_mean_window_is_the_least_to_beat() -> None:
    task = anomalies(None)
    mean = task.inputs(np.arange(task.train_samples)).astype(np.float64).mean(axis=0)
    inputs = task.test_inputs(0, task.test_samples)
    (line,) = task.baselines
    assert line.name == "mean"
    assert line.value == pytest.approx(((inputs - mean) ** 2).mean(), rel=1e-6)


def test_the_threshold_lies_above_nearly_all_training_windows() -> None:
    task = anomalies()
    noise = np.random.default_rng(0).standard_normal((task.train_samples, 8)).astype(np.float32)
    place = iter(range(0, 1000, 16))

    def forward(x: np.ndarray) -> np.ndarray:
        start = next(place)
        return x + noise[start : start + len(x)]

    threshold = task.decision(forward)["threshold"]
    errors = window_errors(noise, np.zeros_like(noise))
    assert threshold == pytest.approx(np.quantile(errors, THRESHOLD_QUANTILE), rel=1e-4)


def spec_for(path: Path, **more: Any) -> FineTuneSpec:
    return parse_spec({"model": "net", "data": str(path), **more})


def csv(folder: Path, series: Series) -> Path:
    assert series.labels is not None
    lines = [f"{a},{b},{int(m)}" for (a, b), m in zip(series.values, series.labels, strict=True)]
    (folder / "rows.csv").write_text("a,b,label\n" + "\n".join(lines) + "\n")
    return folder / "rows.csv"


def card_of(rule: WindowRule, task: str) -> ModelCard:
    return ModelCard("net", "1", 0, task, None, rule.sample_shape, "ab" * 32, 10, windows=rule)


def test_windows_with_a_labelled_row_are_not_learnt_from(tmp_path: Path) -> None:
    path = csv(tmp_path, rows((20, 100)))
    task = load_task(spec_for(path), card_of(ANOMALY, "anomaly-detection"))
    assert isinstance(task, AnomalyDetection)
    assert not {17, 18, 19, 20} & set(task.windows.train.tolist())
    assert task.train_samples == BORDER - 3 - 4
    assert task.anomalous is not None
    all_marked = csv(tmp_path, rows(tuple(range(BORDER))))
    with pytest.raises(DataError, match="only 0 training windows hold no labelled anomaly"):
        load_task(spec_for(all_marked), card_of(ANOMALY, "anomaly-detection"))


def test_anomaly_models_are_compared_over_the_same_columns_and_window() -> None:
    task, other = anomalies(), dataclasses.replace(ANOMALY, mean=(0.0, 0.0))
    judging = task.judging(anomalies(rule=other).manifest())
    assert judging is not None
    assert judging.rule == other
    assert judging.test_inputs(0, 1)[0, 0] == np.float32(BORDER / 30)
    assert task.judging(anomalies(rule=dataclasses.replace(ANOMALY, window=5)).manifest()) is None
    assert anomalies(None).judging({"windows": anomalies(rule=other).manifest()["windows"]}) is None, "other units"
    assert anomalies(None).judging(anomalies(None).manifest()) is not None


# --- forecasting ------------------------------------------------------------------------------------------------------


def test_a_forecasts_target_is_what_followed_normalized_as_its_column() -> None:
    task = forecasts()
    np.testing.assert_allclose(task.targets(np.asarray([0]))[0], ((10 + 5 * np.asarray([2, 3, 0])) - 10) / 5)
    assert task.inputs(np.asarray([0, 1])).shape == (2, 2, 6)


def test_the_score_is_in_the_units_of_the_data() -> None:
    task = forecasts()
    exact = ((task.actual - 10) / 5).astype(np.float32)
    assert task.score(task.measured(exact, 0)).value == pytest.approx(0, abs=1e-5)
    assert task.score(task.measured(exact + np.float32(0.2), 0)).value == pytest.approx(1.0, rel=1e-5)


def test_the_naive_forecasts() -> None:
    task = forecasts()
    last, season = task.baselines
    first = task.windows.test + FORECAST.window
    b = rows().values[:, 1].astype(np.float64)
    expected = [abs(b[f - 1] - b[f + k]) for f in first for k in range(3)]
    assert (last.name, season.name) == ("naive_last", "seasonal_naive")
    assert last.value == pytest.approx(np.mean(expected))
    assert season.value == 0.0, "the season is exact"
    assert len(forecasts(season=0).baselines) == 1


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
def test_the_seasonal_forecast_repeats_the_last_season_seen(season: int, horizon: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((ROWS, 1)).astype(np.float32)
    rule = WindowRule(("a",), (0.0,), (1.0,), 6, "FT", horizon, "a")
    data = Series(values, np.ones(ROWS, bool), None)
    task = Forecasting(cut(data, rule, 0.3, 1, 1000, ""), rule, LossSpec("l1"), season)
    errors = []
    for start in task.windows.test:
        window = values[start : start + 6, 0]
        forecast = [window[len(window) - season + k % season] for k in range(horizon)]
        errors += list(np.abs(forecast - values[start + 6 : start + 6 + horizon, 0]))
    assert task.baselines[1].value == pytest.approx(np.mean(errors), rel=1e-5)


def test_forecasters_are_compared_when_they_forecast_the_same() -> None:
    task = forecasts()
    other = dataclasses.replace(FORECAST, mean=(0.0, 0.0), season=0)
    judging = task.judging(forecasts(other).manifest())
    assert judging is not None
    assert judging.rule == other
    for change in ({"target": "a"}, {"horizon": 2}, {"window": 5}, {"columns": ("a", "c"), "target": "c"}):
        changed = dataclasses.replace(FORECAST, **change)
        assert (
            task.judging({"windows": Forecasting(task.windows, changed, LossSpec(), 0).manifest()["windows"]}) is None
        )


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"loss": "cross-entropy"}, "loss"),
        ({"loss": "bce"}, "loss"),
        ({"season": 7}, "season"),
        ({"columns": ["a"]}, "columns"),
    ],
)
def test_what_does_not_fit_a_forecast_is_refused(tmp_path: Path, change: dict[str, Any], where: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_task(spec_for(csv(tmp_path, rows()), **change), card_of(FORECAST, "forecasting"))
    assert caught.value.where == where
    assert caught.value.fix or where == "season"


def test_columns_of_the_data_may_have_other_names(tmp_path: Path) -> None:
    path = csv(tmp_path, rows())
    path.write_text(path.read_text().replace("a,b,label", "x,y,label"))
    with pytest.raises(DataError, match="no column 'a'"):
        load_task(spec_for(path), card_of(FORECAST, "forecasting"))
    task = load_task(spec_for(path, columns=["x", "y"]), card_of(FORECAST, "forecasting"))
    np.testing.assert_array_equal(task.inputs(np.arange(5)), forecasts().inputs(np.arange(5)))


# --- image classification ---------------------------------------------------------------------------------------------


def test_labels_are_indices_or_for_binary_cross_entropy_columns() -> None:
    chosen = np.asarray([0, 1, 5])
    assert pictures().targets(chosen).tolist() == [0, 1, 2]
    np.testing.assert_allclose(pictures("bce", 0.3).targets(chosen)[0], [0.8, 0.1, 0.1], rtol=1e-6)


def test_the_majority_is_the_least_to_beat() -> None:
    task = pictures()
    (line,) = task.baselines
    assert (line.name, line.value) == ("majority", 0.5)  # of the labels 2, 0, 1, 2
    logits = np.eye(3, dtype=np.float32)[[2, 0, 1, 0]]
    assert task.score(task.measured(logits, 0)).value == 0.75


def test_labels_follow_the_models_classes() -> None:
    task = pictures().with_classes(("blue", "grey", "green", "red"))
    assert task.targets(np.arange(3)).tolist() == [3, 2, 0]
    assert task.classes == ("blue", "grey", "green", "red")


def test_classifiers_are_compared_over_the_same_classes_and_size() -> None:
    task = pictures()
    manifest = task.manifest() | {"scale": 0.5, "offset": 0.0}
    judging = task.judging(manifest)
    assert judging is not None
    assert judging.test_inputs(0, 1).max() == task.images.x_test[0].max() / 2
    assert task.judging(manifest | {"image_size": 96}) is None
    assert task.judging(manifest | {"classes": ["red"]}) is None
