from __future__ import annotations

import json
from pathlib import Path

import pytest

from service import bench_board
from service.bench_board import OWN, measure
from service.cli import main
from tests.simulators.board_trees import BOARDS, BoardTree


def test_each_board_is_read_and_what_it_has_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    trees = [tmp_path / name for name in ("jetson-orin-nano", "unknown-board")]
    for tree in trees:
        BoardTree(tree, BOARDS[tree.name]())
    report = json.loads(json.dumps(measure(20, trees, said.append)))
    assert said == [OWN, "jetson-orin-nano", "unknown-board"] == [row["board"] for row in report["rows"]]
    _, jetson, unknown = report["rows"]
    assert (jetson["profile"], unknown["profile"]) == ("jetson-orin-nano", "generic")
    assert jetson["there"][:4] == ["temperature", "power", "frequency-cap", "cooling"]
    assert unknown["there"] == ["temperature", "memory", "pressure"]
    for row in report["rows"]:
        assert 0 < row["median_ms"] <= row["p99_ms"]
        assert 0 < row["processor_median_ms"] <= row["processor_p99_ms"]
        assert row["memory_errors_ms"] > 0


def test_a_dead_sensor_is_not_told_as_there(tmp_path: Path) -> None:
    tree = BoardTree(tmp_path / "pi", BOARDS["raspberry-pi-5"]())
    tree.set("sys/class/thermal/thermal_zone0/temp", "-256000")
    rows = json.loads(json.dumps(measure(10, [tree.folder], lambda _: None)))["rows"]
    assert rows[1]["there"] == ["frequency-cap", "cooling", "clock", "memory"]


def test_bench_board_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BoardTree(tmp_path / "pi", BOARDS["raspberry-pi-4"]())
    assert main(["bench", "board", "--readings=10", "--tree", str(tmp_path / "pi"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["bench"], report["readings"], len(report["rows"])) == ("board", 10, 2)
    bench_board.show(report)
    shown = capsys.readouterr().out
    assert "temperature, frequency-cap, clock, memory" in shown
    assert f"{report['rows'][1]['median_ms']:.3f}" in shown


@pytest.mark.parametrize("readings", ["9", "100001"])
def test_numbers_out_of_bounds_are_refused(readings: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "board", "--readings", readings]) == 2
    assert "--readings" in capsys.readouterr().err


def test_a_folder_that_is_no_tree_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "board", "--tree", str(tmp_path)]) > 0
    error = capsys.readouterr().err
    assert str(tmp_path) in error
    assert "no sys and proc" in error


def test_too_many_trees_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "board", "--tree", *["x"] * 13]) == 2
    assert "--tree" in capsys.readouterr().err
