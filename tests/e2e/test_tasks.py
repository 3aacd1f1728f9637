"""Anomaly detection and forecasting from a user's first file to an answer: make-base, publish, fine-tune, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.simulators.fleet import World, as_json
from tests.simulators.small_series import SEASON, machine, with_faults, write_csv

pytestmark = pytest.mark.e2e
SOURCE = machine(900, seed=1)
TARGET = machine(600, seed=2, level=22.0, swing=7.0)
"""Another machine of the kind: other level, wider swing."""


def base(world: World, kind: str, *options: str, labels: np.ndarray | None = None) -> dict[str, Any]:
    """Make and publish a base called `pump`."""
    data = write_csv(world.folder / "source.csv", SOURCE, labels)
    made = world.cli("make-base", kind, str(data), "--out", "pump.onnx", "--json", "--threads", "1", *options)
    assert made.returncode == 0, made.stderr
    where = ("--repo", "repository", "--keys", "publisher-keys", "--card", "pump.card.json")
    done = world.cli("publish", "pump.onnx", *where, "--for", str(world.device_document()))
    assert done.returncode == 0, done.stderr
    return as_json(made.stdout)


def job(path: Path, **more: object) -> dict[str, object]:
    fields: dict[str, object] = {"model": "pump", "data": str(path), "epochs": 15, "optimizer": "adamw", "batch": 32}
    return {**fields, "learning_rate": 0.003, "depth": "0", "clip_norm": 1.0, **more}


def test_a_forecaster_learns_a_machine_of_its_own(fleet: World) -> None:
    base(fleet, "forecast", "--window", "24", "--horizon", "4", "--target", "temperature", "--season", str(SEASON))
    data = write_csv(fleet.folder / "target.csv", TARGET)
    status = fleet.send("fine-tune", job(data))
    result = status["result"]
    assert status["status"] == "succeeded", status
    assert (result["task"], result["metric"]) == ("forecasting", "mae")
    assert result["mae_after"] < min(result["mae_before"], result["baselines"]["naive_last"])
    assert result["baselines"]["seasonal_naive"] > 0
    assert result["dropped_steps"] == 0
    recent = write_csv(fleet.folder / "recent.csv", TARGET[:-4])
    said = fleet.cli("predict", "--json", str(recent))
    (forecast,) = as_json(said.stdout)["predictions"]
    assert (forecast["target"], forecast["last_row"]) == ("temperature", 596)
    off = np.abs(np.asarray(forecast["values"]) - TARGET[-4:, 1]).mean()
    assert off < 4 * result["mae_after"]
    again = fleet.send("fine-tune", job(data, epochs=1, learning_rate=1e-6, seed=1))
    assert again["status"] == "failed"
    assert again["reason_code"] in ("gate-running", "gate-base")
    assert again["result"]["mae_running"] == pytest.approx(result["mae_after"], rel=1e-3)


def test_an_autoencoder_learns_a_machine_of_its_own(fleet: World) -> None:
    _, source_labels = with_faults(SOURCE, ())
    base(fleet, "anomaly", "--window", "12", labels=source_labels)
    values, labels = with_faults(TARGET, (120, 500, 530, 560))
    values[200, 0] = np.nan
    data = write_csv(fleet.folder / "target.csv", values, labels)
    status = fleet.send("fine-tune", job(data, least_gain=-0.02))
    result = status["result"]
    assert status["status"] == "succeeded", status
    assert (result["task"], result["metric"]) == ("anomaly-detection", "auc")
    assert result["auc_after"] > 0.9
    assert result["skipped"] == 1
    assert any("row 201" in warning for warning in result["warnings"])
    said = fleet.cli("predict", "--json", str(write_csv(fleet.folder / "today.csv", values[480:552])))
    found = {item["first_row"]: item["anomaly"] for item in as_json(said.stdout)["predictions"]}
    assert found == {1: False, 13: True, 25: True, 37: False, 49: True, 61: False}, "faults in rows 21-26 and 51-56"
    plain = fleet.cli("predict", str(fleet.folder / "today.csv"))
    assert plain.stdout.count("ANOMALY") == 3


def test_data_that_do_not_fit_end_the_job_with_advice(fleet: World) -> None:
    base(fleet, "forecast", "--window", "12", "--target", "temperature", "--epochs", "1")
    data = write_csv(fleet.folder / "target.csv", TARGET)
    broken = TARGET.copy()
    broken[100:200, 1] = np.inf
    for change, code, says in (
        ({"data": str(write_csv(fleet.folder / "broken.csv", broken))}, "bad-data", "100 of 600 rows"),
        ({"columns": ["load", "pressure"]}, "bad-data", "no column 'pressure'"),
        ({"loss": "cross-entropy"}, "bad-spec", "does not fit forecasting"),
        ({"data": str(fleet.images())}, "bad-data", "no such data"),
    ):
        status = fleet.send("fine-tune", job(data, **change))
        assert (status["status"], status["reason_code"]) == ("failed", code), status
        assert says in status["reason"]
