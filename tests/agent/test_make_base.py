"""Making bases from small series, with the real engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.card import WindowRule, parse_window_rule
from agent.engine.ir import parse
from agent.errors import BoardError, DataError, ModelError, SpecError
from agent.make_base import BaseRequest, make_base
from agent.model import load_base
from agent.publish import Description, make_card, read_windows_card
from tests.simulators.small_series import SEASON, machine, with_faults, write_csv

ROWS = machine(600)


def series(folder: Path) -> str:
    values, labels = with_faults(ROWS, (100, 500, 550))
    return str(write_csv(folder / "pump.csv", values, labels))


def request(data: str, **more: Any) -> BaseRequest:
    fields: dict[str, Any] = {"kind": "forecast", "data": data, "window": 24, "horizon": 4, "target": "temperature"}
    return BaseRequest(**fields | {"season": SEASON, "epochs": 6, "threads": 1} | more)


def test_a_forecaster_learns_what_the_naive_forecasts_miss(tmp_path: Path) -> None:
    data = str(write_csv(tmp_path / "pump.csv", ROWS))
    made = make_base(request(data), tmp_path / "base.onnx")
    assert (made["task"], made["metric"], made["epochs"]) == ("forecasting", "mae", 6)
    baselines = made["baselines"]
    assert isinstance(baselines, dict)
    assert set(baselines) == {"naive_last", "seasonal_naive"}
    assert made["value"] < 0.7 * baselines["naive_last"]  # type: ignore[operator]
    graph = parse((tmp_path / "base.onnx").read_bytes())
    task, rule = read_windows_card(tmp_path / "base.card.json")
    assert (task, rule.columns, rule.target, rule.season) == ("forecasting", ("load", "temperature"), "temperature", 12)
    assert graph.input_shape == rule.sample_shape == (2, 24)
    assert made["parameters"] == sum(
        graph.initializers[name].size for layer in graph.layers() for name in layer.parameters
    )


def test_the_statistics_are_those_of_the_part_that_is_learnt_from(tmp_path: Path) -> None:
    values = ROWS.copy()
    values[480:] += 1000
    values[7, 1] = np.nan
    make_base(request(str(write_csv(tmp_path / "d.csv", values)), epochs=1), tmp_path / "base.onnx")
    _, rule = read_windows_card(tmp_path / "base.card.json")
    known = np.delete(values[:480], 7, axis=0)
    np.testing.assert_allclose(rule.mean, known.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(rule.deviation, known.std(axis=0), rtol=1e-3)


def test_an_autoencoder_finds_the_faults(tmp_path: Path) -> None:
    made = make_base(request(series(tmp_path), kind="anomaly", window=12, epochs=20), tmp_path / "base.onnx")
    assert (made["task"], made["metric"]) == ("anomaly-detection", "auc")
    assert made["value"] > 0.9  # type: ignore[operator]
    _, rule = read_windows_card(tmp_path / "base.card.json")
    assert (rule.columns, rule.layout, rule.horizon, rule.target) == (("load", "temperature"), "flat", 0, "")


def test_a_column_that_never_changes_is_not_divided_by_nothing(tmp_path: Path) -> None:
    values = ROWS.copy()
    values[:, 0] = 7
    make_base(request(str(write_csv(tmp_path / "d.csv", values)), epochs=1), tmp_path / "base.onnx")
    assert read_windows_card(tmp_path / "base.card.json")[1].deviation[0] == 1.0


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"data": "gone.csv"}, DataError, "no such data"),
        ({"window": 0}, SpecError, r"0 is outside 1\.\.4096"),
        ({"horizon": 0}, SpecError, "must be one of the columns where a horizon"),
        ({"target": "pressure"}, SpecError, "must be one of the columns"),
        ({"season": 30}, SpecError, "longer than the window"),
        ({"kind": "anomaly", "window": 3000}, SpecError, "6000 is outside"),
        ({"columns": ("load", "load")}, SpecError, "names a column twice"),
        ({"columns": ("pressure",)}, DataError, "no column 'pressure'"),
        ({"window": 590}, DataError, "part holds 0 whole windows"),
        ({"epochs": 0}, SpecError, "outside 1..1000"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        make_base(dataclasses.replace(request(series(tmp_path)), **change), tmp_path / "base.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pump.csv"]


def test_a_folder_that_is_not_there_is_the_boards_fault(tmp_path: Path) -> None:
    with pytest.raises(BoardError):
        make_base(request(series(tmp_path), epochs=1), tmp_path / "no" / "base.onnx")


# --- publishing them --------------------------------------------------------------------------------------------------


def written(folder: Path) -> tuple[bytes, str, WindowRule]:
    make_base(request(series(folder), epochs=1), folder / "base.onnx")
    return (folder / "base.onnx").read_bytes(), *read_windows_card(folder / "base.card.json")


def test_a_base_is_published_with_its_card_and_loaded_by_it(tmp_path: Path) -> None:
    model, task, rule = written(tmp_path)
    card = make_card(parse(model), model, Description("pump", "1.0", task=task, windows=rule))
    assert (card.task, card.windows, card.preprocess, card.input_shape) == ("forecasting", rule, None, (2, 24))
    assert len(load_base(model, card, 96).graph.layers()) == len(parse(model).layers())
    with pytest.raises(ModelError, match="does not take images") as caught:
        make_card(parse(model), model, Description("pump", "1.0"))
    assert "--card" in caught.value.fix
    longer = dataclasses.replace(rule, horizon=5)
    with pytest.raises(ModelError, match=r"outputs \[1, 4\], forecasting by its card needs \[1, 5\]"):
        make_card(parse(model), model, Description("pump", "1.0", task=task, windows=longer))
    with pytest.raises(SpecError, match=r"is not the \[2, 25\]"):
        make_card(
            parse(model), model, Description("pump", "1.0", task=task, windows=dataclasses.replace(rule, window=25))
        )


NO_CARDS = (
    "",
    "[]",
    "{}",
    '{"task": "forecasting"}',
    '{"task": "mining", "windows": {}}',
    '{"task": 1, "windows": 2}',
    '{"task": "forecasting", "windows": {"columns": []}}',
    "x" * 2_000_000,
)


@pytest.mark.parametrize("text", NO_CARDS, ids=lambda text: text[:40])
def test_what_is_no_card_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(SpecError):
        read_windows_card(tmp_path / "card.json")
    with pytest.raises(SpecError, match="cannot be read"):
        read_windows_card(tmp_path / "gone.json")


def test_the_card_is_plain_json(tmp_path: Path) -> None:
    _, task, rule = written(tmp_path)
    table = json.loads((tmp_path / "base.card.json").read_text())
    assert table["task"] == task
    assert parse_window_rule(table["windows"], error=SpecError) == rule
