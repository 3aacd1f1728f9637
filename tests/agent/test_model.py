from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agent.card import ModelCard, Preprocess
from agent.engine.ir import Graph, Node, serialize
from agent.errors import ModelError, SpecError
from agent.model import choose_head, load_base, with_head
from tests.simulators.small_models import mobile_block_net

LABELS = ("red", "green", "blue")


def card(model: bytes, **more: Any) -> ModelCard:
    fields: dict[str, Any] = {
        "name": "net",
        "version": "1",
        "security_floor": 0,
        "task": "image-classification",
        "preprocess": Preprocess(1 / 127.5, -1.0),
        "input_shape": (3, 12, 12),
        "plaintext_sha256": hashlib.sha256(model).hexdigest(),
        "plaintext_length": len(model),
        "labels": LABELS,
    }
    return ModelCard(**fields | more)


NET = mobile_block_net()
MODEL = serialize(NET)


def with_norm() -> Graph:
    """The small net with a batch normalization behind its stem."""
    names = ("scale", "shift", "mean", "variance")
    stem, *rest = NET.nodes
    norm = Node("BatchNormalization", ("raw", *names), stem.outputs, {}, "norm")
    constants = {name: np.full(8, 0.5, np.float32) for name in names}
    return replace(NET, nodes=(replace(stem, outputs=("raw",)), norm, *rest), initializers=NET.initializers | constants)


def test_a_base_is_set_to_the_size_asked_for() -> None:
    base = load_base(MODEL, card(MODEL), 20)
    assert base.graph.input_shape == (3, 20, 20)
    assert base.card.labels == LABELS
    assert len(base.graph.layers()) == 8


def test_batch_normalization_is_folded() -> None:
    model = serialize(with_norm())
    base = load_base(model, card(model), 12)
    assert "BatchNormalization" not in {node.op for node in base.graph.nodes}
    assert len(base.graph.nodes) == len(NET.nodes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input_shape": (3, 14, 14)}, r"takes \[3, 12, 12\], its card says \[3, 14, 14\]"),
        ({"labels": LABELS[:2]}, r"outputs \[1, 3\], its card names 2 labels"),
    ],
)
def test_a_model_that_is_not_its_cards_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        load_base(MODEL, card(MODEL, **change), 12)
    assert caught.value.where == "net"


def test_a_card_without_labels_is_enough() -> None:
    assert load_base(MODEL, card(MODEL, labels=()), 12).card.labels == ()


def test_a_model_of_other_things_than_colour_images_is_refused() -> None:
    dense = Graph((Node("Gemm", ("x", "w"), ("y",), {}, "d"),), {"w": np.ones((8, 3), np.float32)}, "x", (8,), "y")
    with pytest.raises(ModelError, match="does not take images"):
        load_base(serialize(dense), card(b"x", input_shape=(8,)), 12)
    grey = Graph(
        (Node("Conv", ("x", "w"), ("y",), {}, "c"),), {"w": np.ones((2, 1, 3, 3), np.float32)}, "x", (1, 9, 9), "y"
    )
    with pytest.raises(ModelError, match="takes 1 channels, images have 3"):
        load_base(serialize(grey), card(b"x", input_shape=(1, 9, 9), labels=()), 9)


def test_a_size_that_the_model_cannot_take_is_refused() -> None:
    """A classifier without pooling takes one size only."""
    flat = Graph(
        (Node("Flatten", ("x",), ("f",), {"axis": 1}, "flat"), Node("Gemm", ("f", "w"), ("y",), {}, "head")),
        {"w": np.ones((27, 3), np.float32)}, "x", (3, 3, 3), "y",
    )  # fmt: skip
    assert load_base(serialize(flat), card(b"x", input_shape=(3, 3, 3)), 3).graph.output == "y"
    with pytest.raises(ModelError, match=r"does not accept samples of shape \[3, 4, 4\]"):
        load_base(serialize(flat), card(b"x", input_shape=(3, 3, 3)), 4)


@pytest.mark.parametrize(
    ("wanted", "classes", "known", "chosen"),
    [
        ("auto", ("red", "blue"), LABELS, "keep"),
        ("auto", ("red", "pink"), LABELS, "replace"),
        ("auto", ("red", "blue"), (), "replace"),
        ("keep", ("red", "blue"), LABELS, "keep"),
        ("replace", ("red", "blue"), LABELS, "replace"),
        ("replace", ("red", "pink"), LABELS, "replace"),
    ],
)
def test_the_head(wanted: str, classes: tuple[str, ...], known: tuple[str, ...], chosen: str) -> None:
    assert choose_head(wanted, classes, known) == chosen


def test_keeping_a_head_that_lacks_classes_is_refused_by_name() -> None:
    unknown = tuple(f"new{i}" for i in range(7))
    with pytest.raises(SpecError, match="new0, new1, new2, new3, new4") as caught:
        choose_head("keep", ("red", *unknown), LABELS)
    assert caught.value.where == "7 of 8 classes"
    assert "new5" not in str(caught.value)


def test_a_kept_head_answers_in_the_cards_order_a_new_one_in_the_datas() -> None:
    base = load_base(MODEL, card(MODEL), 12)
    graph, classes = with_head(base, "keep", ("blue", "red"), 0)
    assert graph is base.graph
    assert classes == LABELS
    graph, classes = with_head(base, "replace", ("a", "b", "c", "d"), 0)
    assert graph.initializers["head.w"].shape == (4, 8)
    assert classes == ("a", "b", "c", "d")
