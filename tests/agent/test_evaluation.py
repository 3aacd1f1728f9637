"""Scoring one model for a console: tuned ones of every task, published ones, and what cannot be scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent import publish as publishing
from agent.card import WindowRule, window_table
from agent.engine.ir import Graph, Node, serialize
from agent.errors import BoardError, DataError, SpecError, TemperdError
from agent.evaluation import Evaluation
from agent.keys import create_identity
from agent.messages import EvaluateOrder, Message, Steer, Waits
from agent.repository import Publisher
from agent.store import Store
from agent.trainer import FREE, JobEndedError
from tests.simulators.publication import now, serving
from tests.simulators.small_models import SIZE, colour_images, mobile_block_net

CLASSES = ("red", "green", "blue")
PLAIN = WindowRule(("a", "b"), (0.0, 0.0), (1.0, 1.0), 2, "FT", horizon=2, target="b")
FLAT = WindowRule(("a", "b"), (0.0, 0.0), (1.0, 1.0), window=2, layout="flat")


class Board:
    """A state folder with an identity, a store and a repository to ask."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        self.identity = create_identity(self.state / "keys", "press-07")
        self.store = Store(self.state / "store", *self.identity.storage_keys)
        self.said: list[Message] = []
        self.orders: list[Steer] = []
        self.url = ""

    def tune(self, graph: Graph, **manifest: object) -> str:
        """A model that a job left active; its hash."""
        about = {"name": "net", "base_version": "1.0", **manifest}
        model = serialize(graph)
        digest = hashlib.sha256(model).hexdigest()
        self.store.activate(self.store.stage(model, {**about, "model_sha256": digest}))
        self.store.mark_good()
        return digest

    def images(self, classes: tuple[str, ...] = CLASSES) -> str:
        pixels, labels = colour_images(60, seed=5)
        half = {"x_train": pixels[:30], "y_train": labels[:30], "x_test": pixels[30:], "y_test": labels[30:]}
        np.savez(self.folder / "data.npz", classes=np.asarray(classes), **half)
        return str(self.folder / "data.npz")

    def publish(self, labels: tuple[str, ...]) -> None:
        path = self.folder / "net.onnx"
        path.write_bytes(serialize(colour_net()))
        publisher = Publisher.create(self.folder / "repository", self.folder / "publisher", now)
        about = publishing.Description("net", "1.0", labels=labels)
        publishing.publish(publisher, str(path), about, [self.identity.public])
        (self.folder / "root.json").write_bytes(publisher.root_path.read_bytes())

    def score(self, data: str, **spec: object) -> dict[str, Any]:
        root = str(self.folder / "root.json")
        order = EvaluateOrder(str(self.state), self.url, root, {"data": data, **spec}, 1)
        return Evaluation(order, self.said.append, self).execute().result

    def steer(self) -> Steer:
        return self.orders.pop(0) if self.orders else FREE

    def verified(self) -> None:
        raise AssertionError("nobody asked for that")


def colour_net() -> Graph:
    """Mean of each colour channel: the brighter one is the class, so every answer is right."""
    nodes = (
        Node("Conv", ("image", "w"), ("y",), {}, "conv"),
        Node("GlobalAveragePool", ("y",), ("pooled",), {}, "pool"),
        Node("Flatten", ("pooled",), ("logits",), {"axis": 1}, "flatten"),
    )
    return Graph(nodes, {"w": np.eye(3, dtype=np.float32)[:, :, None, None]}, "image", (3, SIZE, SIZE), "logits")


def last_value() -> Graph:
    """A forecaster that repeats the last row of the target."""
    nodes = (
        Node("Slice", ("x", "one", "two", "axis"), ("last",), {}, "s"),
        Node("Flatten", ("last",), ("flat",), {"axis": 1}, "f"),
        Node("Gemm", ("flat", "w"), ("y",), {"transB": 1}, "g"),
    )
    whole = {name: np.asarray([value], np.int64) for name, value in (("one", 1), ("two", 2), ("axis", 2))}
    return Graph(nodes, {**whole, "w": np.asarray([[0, 1], [0, 1]], np.float32)}, "x", (2, 2), "y")


def rows(folder: Path, count: int = 100) -> str:
    lines = [f"{i},{2 * i}" for i in range(count)]
    (folder / "rows.csv").write_text("\n".join(["a,b", *lines]) + "\n")
    return str(folder / "rows.csv")


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def seen(**about: object) -> dict[str, object]:
    return {"classes": list(CLASSES), "image_size": SIZE, "scale": 1 / 127.5, "offset": -1.0, **about}


def code(act: Callable[[], object]) -> str:
    with pytest.raises(TemperdError) as caught:
        act()
    return caught.value.code


def test_the_active_model_and_the_one_before(board: Board) -> None:
    before = board.tune(mobile_block_net(classes=3), **seen())
    active = board.tune(colour_net(), **seen())
    data = board.images()
    found = board.score(data)
    assert (found["metric"], found["score"], found["samples"], found["model"]) == ("accuracy", 1.0, 30, active)
    assert found["baselines"] == {"majority": pytest.approx(1 / 3)}
    other = board.score(data, model=before)
    assert other["model"] == before
    assert other["score"] < 1.0
    assert code(lambda: board.score(data, model="f" * 64)) == "no-such-slot"


def test_what_the_classes_mean_is_the_models(board: Board) -> None:
    board.tune(colour_net(), **seen(classes=["blue", "green", "red"]))
    assert board.score(board.images(("blue", "green", "red")))["score"] == 1.0
    assert board.score(board.images())["score"] == pytest.approx(1 / 3)
    with pytest.raises(SpecError, match="classes unknown to the model: mauve"):
        board.score(board.images(("red", "green", "mauve")))


def test_a_forecaster_by_the_units_of_its_rows(board: Board) -> None:
    board.tune(last_value(), task="forecasting", windows=window_table(PLAIN))
    found = board.score(rows(board.folder))
    assert (found["metric"], found["score"]) == ("mae", pytest.approx(3.0)), "b rises by two a row: 2 and 4 are missed"
    assert found["baselines"]["naive_last"] == pytest.approx(3.0)


def test_an_autoencoder_by_its_error(board: Board) -> None:
    graph = Graph((Node("Mul", ("x", "one"), ("y",), {}, "m"),), {"one": np.ones(4, np.float32)}, "x", (4,), "y")
    board.tune(graph, task="anomaly-detection", windows=window_table(FLAT), threshold=0.0)
    found = board.score(rows(board.folder))
    assert (found["metric"], found["score"]) == ("reconstruction_error", 0.0)
    assert code(lambda: board.score(str(board.folder / "nothing.csv"))) == DataError.reason


def test_a_model_without_sound_outputs_has_no_score(board: Board) -> None:
    graph = Graph(
        (Node("Mul", ("x", "huge"), ("z",), {}, "m"), Node("Mul", ("z", "huge"), ("y",), {}, "n")),
        {"huge": np.full(4, 1e30, np.float32)}, "x", (4,), "y",
    )  # fmt: skip
    board.tune(graph, task="anomaly-detection", windows=window_table(FLAT), threshold=0.0)
    assert board.score(rows(board.folder))["score"] is None


def test_a_published_model_by_name_and_as_the_base(board: Board) -> None:
    board.publish(CLASSES)
    data = board.images()
    with serving(board.folder / "repository") as board.url:
        found = board.score(data, model="net")
        assert (found["score"], found["name"], found["base_version"]) == (1.0, "net", "1.0")
        assert code(lambda: board.score(data, model="base")) == "no-active-model"
        board.tune(mobile_block_net(classes=3), **seen())
        assert board.score(data, model="base")["model"] == found["model"]
        assert code(lambda: board.score(data, model="other")) == "unknown-model"


def test_without_a_model_there_is_no_score(board: Board) -> None:
    with pytest.raises(BoardError) as caught:
        board.score(board.images())
    assert caught.value.code == "no-active-model"


def test_it_rests_and_ends_as_ordered(board: Board) -> None:
    board.tune(last_value(), task="forecasting", windows=window_table(PLAIN))
    pause = Steer("PAUSE", 0.0, 0, reverify=False, rule="thermal.absolute-pause")
    board.orders = [pause, FREE]
    assert board.score(rows(board.folder))["samples"] > 0
    assert [one.resting for one in board.said if isinstance(one, Waits)] == [True, False]
    board.orders = [Steer("ABORT", 0.0, 0, reverify=False, rule="most-time")]
    with pytest.raises(JobEndedError) as caught:
        board.score(rows(board.folder))
    assert caught.value.code == "most-time"
