from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.engine.ir import serialize
from agent.errors import EngineError
from agent.images import load
from service.bench_chart import Bars, bar_chart
from service.bench_freeze import ARTICLE, DEPTHS, Study, change, points_lost, rate_share, spread, tuned_accuracy
from service.cli import main
from tests.simulators.small_models import colour_images, mobile_block_net

SVG = "{http://www.w3.org/2000/svg}"
SIZE = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("model") / "small.onnx"
    file.write_bytes(serialize(mobile_block_net(size=SIZE)))
    return str(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("data") / "colours.npz"
    x_train, y_train = colour_images(48, size=SIZE)
    x_test, y_test = colour_images(24, seed=1, size=SIZE)
    np.savez(file, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return str(file)


def study(model: str, **changes: Any) -> Study:
    values: dict[str, Any] = {
        "model": model, "seeds": (0,), "batch": 8, "size": SIZE, "epochs": 6, "learning_rate": 0.05, "threads": 1
    }  # fmt: skip
    return Study(**values | changes)


@pytest.mark.parametrize("depth", [0, 50])
def test_what_can_be_learnt_is_learnt_and_the_same_seed_gives_the_same(model: str, data: str, depth: int) -> None:
    images = load(data, SIZE, 0.25, 0, 100)
    found = tuned_accuracy(study(model), images, depth, seed=0)
    assert found > 0.6  # three classes
    assert tuned_accuracy(study(model), images, depth, seed=0) == found


def test_the_table_as_a_command(model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chart = tmp_path / "chart.svg"
    command = ["bench", "freeze", "--model", model, "--data", data, "--seeds=0,1", "--epochs=1", "--batch=8"]
    command += [f"--size={SIZE}", "--threads=1"]
    assert main([*command, "--json", "--chart", str(chart)]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = report["rows"]
    assert [row["depth_percent"] for row in rows] == list(DEPTHS)
    assert rows[0]["work_percent"] == rows[0]["memory_percent"] == 0
    work = [row["step_million_macs"] for row in rows]
    assert work == sorted(work, reverse=True)
    assert rows[2]["article"] == dict(zip(("work_percent", "memory_percent", "points"), ARTICLE[50], strict=True))
    assert rows[4]["article"] is None
    assert rows[0]["accuracy_points"]["colours"] == {"mean": 0, "deviation": 0}
    ET.fromstring(chart.read_text("utf-8"))  # noqa: S314 - our own text


def test_the_table_for_people(model: str, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "freeze", "--model", model, "--data", data, "--seeds=0", "--epochs=1", "--batch=8"]
    assert main([*command, f"--size={SIZE}", "--threads=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "(-55 %)" in next(text for text in lines if text.strip().startswith("50 %"))
    assert any(text.strip().startswith("head") for text in lines)


@pytest.mark.parametrize("option", ["--epochs=0", "--learning-rate=0", "--learning-rate=nan", "--seeds=a"])
def test_wrong_options_are_refused(option: str, model: str, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "freeze", "--model", model, "--data", data, option]) == 2
    assert option.partition("=")[0] in capsys.readouterr().err


def test_a_rate_far_too_high_is_said_and_gives_no_accuracy(model: str, data: str) -> None:
    images = load(data, SIZE, 0.25, 0, 100)
    with pytest.raises(EngineError, match=r"training diverged.*--learning-rate"):
        tuned_accuracy(study(model, learning_rate=1e30), images, 0, seed=0)


def test_one_name_for_two_data_sets_is_refused(model: str, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "freeze", "--model", model, "--data", data, data]) == 2
    assert "same name" in capsys.readouterr().err


def test_depths_that_learnt_nothing_are_pointed_out(model: str, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "freeze", "--model", model, "--data", data, "--seeds=0", "--epochs=1", "--batch=8"]
    assert main([*command, f"--size={SIZE}", "--threads=1", "--learning-rate=1e-9"]) == 0
    assert "colours: some depths learnt nothing" in capsys.readouterr().out


def test_points_are_taken_seed_by_seed() -> None:
    assert points_lost([0.9, 0.7], [0.88, 0.68]) == pytest.approx({"mean": -2, "deviation": 0}, abs=1e-9)
    assert spread([1.0, 3.0]) == pytest.approx({"mean": 2, "deviation": 2**0.5})
    assert spread([1.0]) == {"mean": 1, "deviation": 0}
    assert change(45, 100) == pytest.approx(-55)


@settings(derandomize=True)
@given(st.integers(1, 500))
def test_the_rate_warms_up_and_falls_to_next_to_nothing(total: int) -> None:
    shares = [rate_share(done, total) for done in range(total)]
    top = shares.index(max(shares))
    assert max(shares) == 1
    assert shares[: top + 1] == sorted(shares[: top + 1])
    assert shares[top:] == sorted(shares[top:], reverse=True)
    assert min(shares) > 0


def bars(svg: str) -> list[tuple[float, float, float]]:
    """Left edge, top and height of every bar (the first rectangle is the paper)."""
    found = list(ET.fromstring(svg).iter(f"{SVG}rect"))[1:]  # noqa: S314 - our own text
    return [(float(item.attrib["x"]), float(item.attrib["y"]), float(item.attrib["height"])) for item in found]


def test_bars_are_as_tall_as_their_values_and_stand_on_one_line() -> None:
    panel = Bars("ms", ["a", "b"], [("x", "red"), ("y", "blue")], [[2.0, 1.0], [0.5, None]])
    drawn = bars(bar_chart("title", [panel]))
    heights = [height for _, _, height in drawn]
    assert [height / heights[0] for height in heights] == pytest.approx([1, 0.5, 0.25], abs=0.01)
    assert [top + height for _, top, height in drawn] == pytest.approx([drawn[0][1] + heights[0]] * 3)
    assert [x for x, _, _ in drawn] == sorted(x for x, _, _ in drawn)


def test_texts_are_escaped_and_nothing_to_draw_is_drawn() -> None:
    bad = '<b>"&'
    svg = bar_chart(bad, [Bars(bad, [bad], [(bad, "red")], [[None]]), Bars("none", [], [], [])])
    texts = [item.text for item in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314 - our own text
    assert texts.count(bad) == 4
    assert bars(svg) == []
