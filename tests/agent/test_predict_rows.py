"""Predicting on rows with small hand-made models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.card import WindowRule, window_table
from agent.engine.ir import Graph, Node, serialize
from agent.errors import DataError, SpecError
from agent.predict import Finding, Forecast, Reading, predict
from agent.store import Store

ROWS = np.asarray([[1, 10], [2, 20], [3, 30], [4, 40], [5, 50], [6, 60], [7, 70]], np.float64)
ANOMALY = WindowRule(("a", "b"), (0.0, 0.0), (1.0, 10.0), window=2, layout="flat")
FORECAST = WindowRule(("a", "b"), (0.0, 0.0), (1.0, 10.0), 2, "FT", horizon=2, target="b")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", bytes(32))


def activate(store: Store, graph: Graph, manifest: dict[str, object]) -> None:
    slot = store.stage(serialize(graph), {"name": "net", "model_sha256": "", **manifest})
    store.activate(slot)
    store.mark_good()


def zeros(store: Store, threshold: float) -> None:
    """An autoencoder that always gives zeros: the error is the mean square of the normalized window."""
    graph = Graph(
        (Node("Mul", ("x", "zero"), ("y",), {}, "m"),), {"zero": np.zeros(4, np.float32)}, "x", (4,), "y"
    )  # fmt: skip
    activate(store, graph, {"task": "anomaly-detection", "windows": window_table(ANOMALY), "threshold": threshold})


def doubles(store: Store) -> None:
    """A forecaster whose values are twice the normalized last row of each column."""
    nodes = (
        Node("Slice", ("x", "one", "two", "axis"), ("last",), {}, "s"),
        Node("Flatten", ("last",), ("flat",), {"axis": 1}, "f"),
        Node("Mul", ("flat", "factor"), ("y",), {}, "m"),
    )
    constants = {
        "one": np.asarray([1], np.int64),
        "two": np.asarray([2], np.int64),
        "axis": np.asarray([2], np.int64),
        "factor": np.asarray([2.0], np.float32),
    }
    graph = Graph(nodes, constants, "x", (2, 2), "y")
    activate(store, graph, {"task": "forecasting", "windows": window_table(FORECAST)})


def csv(folder: Path, rows: np.ndarray = ROWS, header: str = "a,b", name: str = "rows.csv") -> Path:
    lines = [",".join(map(str, row)) for row in rows]
    (folder / name).write_text("\n".join([header, *lines]) + "\n")
    return folder / name


def test_windows_that_end_with_the_last_row_are_judged_by_the_threshold(tmp_path: Path, store: Store) -> None:
    zeros(store, threshold=20.5)
    path = csv(tmp_path)
    found, manifest = predict(store, [path], threads=1)
    assert manifest["task"] == "anomaly-detection"
    mean_squares = [(4 + 9), (16 + 25), (36 + 49)]  # of rows 2-3, 4-5, 6-7: both columns are equal once normalized
    assert found == [
        Finding(str(path), 2 * i + 2, 2 * i + 3, pytest.approx(squares / 2), anomaly=squares / 2 > 20.5)
        for i, squares in enumerate(mean_squares)
    ]


def test_a_forecast_follows_the_last_whole_window_in_the_units_of_the_data(tmp_path: Path, store: Store) -> None:
    doubles(store)
    path = csv(tmp_path)
    assert predict(store, [path], threads=1)[0] == [Forecast(str(path), 7, "b", (140.0, 140.0))]
    torn = np.repeat(ROWS, 2, axis=0)
    torn[-1, 1] = np.nan
    path = csv(tmp_path, torn)
    assert predict(store, [path], threads=1)[0] == [Forecast(str(path), 13, "b", (140.0, 140.0))]
    filled = predict(store, [path], threads=1, reading=Reading(missing="fill"))[0]
    assert filled == [Forecast(str(path), 14, "b", (140.0, 140.0))]


def test_columns_may_be_named_otherwise(tmp_path: Path, store: Store) -> None:
    doubles(store)
    path = csv(tmp_path, header="b,x")
    with pytest.raises(DataError, match="no column 'a'"):
        predict(store, [path], threads=1)
    found = predict(store, [path], threads=1, reading=Reading(columns=("b", "x")))[0]
    assert found == [Forecast(str(path), 7, "b", (140.0, 140.0))]
    with pytest.raises(SpecError, match="1 columns for the model's 2"):
        predict(store, [path], threads=1, reading=Reading(columns=("b",)))


def test_too_few_rows_are_refused(tmp_path: Path, store: Store) -> None:
    doubles(store)
    with pytest.raises(DataError, match="no whole window of 2 rows"):
        predict(store, [csv(tmp_path, ROWS[:1])], threads=1)
