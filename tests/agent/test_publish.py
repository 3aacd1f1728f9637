"""Publishing and predicting with a small real model, a repository and a store on disk."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agent.card import Preprocess
from agent.engine.infer import Inference, feature_tensor
from agent.engine.ir import Graph, Node, parse, serialize
from agent.errors import BoardError, DataError, ModelError, SpecError
from agent.images import decode_one, preprocessed
from agent.keys import create_identity, open_grant
from agent.predict import predict
from agent.publish import MAX_LABELS_BYTES, Description, make_card, publish, read_labels, read_model
from agent.repository import Publisher
from agent.sealed import Binding, unseal
from agent.store import Store
from tests.simulators.small_models import colour_images, mobile_block_net

NET = mobile_block_net()
MODEL = serialize(NET)
LABELS = ("red", "green", "blue")


def now() -> datetime:
    return datetime.now(UTC)


def about(**more: Any) -> Description:
    return Description(**{"name": "net", "version": "1.0", "labels": LABELS} | more)


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher.create(tmp_path / "repository", tmp_path / "publisher-keys", now)


@pytest.fixture
def model_file(tmp_path: Path) -> str:
    path = tmp_path / "net.onnx"
    path.write_bytes(MODEL)
    return str(path)


def image_folder(folder: Path, each: int = 4) -> Path:
    pixels, labels = colour_images(3 * each)
    for index, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        (folder / LABELS[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / LABELS[label] / f"{index}.png")
    return folder


# --- publishing -------------------------------------------------------------------------------------------------------


def test_what_is_published_can_be_unsealed_by_the_devices_granted_and_is_the_model(
    tmp_path: Path, publisher: Publisher, model_file: str
) -> None:
    devices = [create_identity(tmp_path / name, name) for name in ("pi-1", "pi-2")]
    target = publish(publisher, model_file, about(), [device.public for device in devices])
    assert publisher.models() == (target,)
    assert (target.name, target.version, target.card.labels) == ("net", "1.0", LABELS)
    sealed = next((tmp_path / "repository" / "targets" / "models").rglob("*.sealed")).read_bytes()
    assert hashlib.sha256(sealed).hexdigest() == target.sealed_sha256
    assert MODEL[:200] not in sealed
    for device in devices:
        (grant,) = (tmp_path / "repository" / "targets" / "grants" / device.device).iterdir()
        key = open_grant(device, grant.read_bytes(), target.sealed_sha256)
        binding = Binding("net", "1.0", target.card.plaintext_sha256)
        assert unseal(io.BytesIO(sealed), key, binding, target.card.plaintext_length) == MODEL


def test_publishing_the_same_bytes_again_only_adds_grants(
    tmp_path: Path, publisher: Publisher, model_file: str
) -> None:
    target = publish(publisher, model_file, about(), [])
    assert publish(publisher, model_file, about(), [create_identity(tmp_path / "d", "pi-1").public]) == target
    assert len(list((tmp_path / "repository").rglob("*.sealed"))) == 1
    assert len(list((tmp_path / "repository" / "targets" / "grants").rglob("*.json"))) == 1


def test_a_published_version_never_changes(publisher: Publisher, model_file: str) -> None:
    target = publish(publisher, model_file, about(), [])
    Path(model_file).write_bytes(serialize(mobile_block_net(seed=1)))
    with pytest.raises(SpecError, match="published already") as caught:
        publish(publisher, model_file, about(), [])
    assert caught.value.code == "version-exists"
    assert publisher.models() == (target,)
    assert publish(publisher, model_file, about(version="1.1"), []).version == "1.1"


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"name": "../net"}, "name"),
        ({"version": "latest"}, "version"),
        ({"labels": ("red", "green")}, "labels"),
        ({"labels": ("red", "green", "")}, "labels[2]"),
        ({"boards": ("x\n",)}, "boards[0]"),
    ],
)
def test_a_description_out_of_bounds_is_refused_and_nothing_is_published(
    publisher: Publisher, model_file: str, change: dict[str, Any], where: str
) -> None:
    with pytest.raises(SpecError) as caught:
        publish(publisher, model_file, about(**change), [])
    assert caught.value.where == where
    assert publisher.models() == ()


def test_the_card_tells_the_model() -> None:
    card = make_card(NET, MODEL, about(scale=0.5, offset=2.0, security_floor=3, boards=("pi",)))
    assert card.preprocess == Preprocess(0.5, 2.0)
    assert (card.security_floor, card.boards, card.input_shape) == (3, ("pi",), (3, 12, 12))
    assert (card.plaintext_sha256, card.plaintext_length) == (hashlib.sha256(MODEL).hexdigest(), len(MODEL))
    assert (card.signature_of_source_features, card.signature_origin) == ((), "")  # no statistics, no images


def test_the_source_signature_is_the_mean_feature_of_sample_images(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "source", each=20)
    card = make_card(NET, MODEL, about(source_images=str(folder)))
    images = [decode_one(path, 12) for path in sorted(folder.rglob("*.png"))]
    inputs = preprocessed(np.stack(images), Preprocess(about().scale, about().offset))
    features = Inference(NET, 1, feature_tensor(NET)).run(inputs)
    assert card.signature_origin == "57 source images"  # one of twenty of each class is held out
    assert len(card.signature_of_source_features) == 8
    np.testing.assert_allclose(card.signature_of_source_features, features.mean(axis=0), atol=features.std() / 4)


def test_a_normalised_model_needs_no_source_images() -> None:
    constants = {
        "w": np.ones((4, 3, 1, 1), np.float32),
        "scale": np.zeros(4, np.float32),
        "shift": np.asarray([-1, 0, 1, 2], np.float32),
        "mean": np.zeros(4, np.float32),
        "variance": np.ones(4, np.float32),
        "head": np.ones((4, 2), np.float32),
    }
    nodes = (
        Node("Conv", ("x", "w"), ("c",), {}, "conv"),
        Node("BatchNormalization", ("c", "scale", "shift", "mean", "variance"), ("n",), {}, "bn"),
        Node("Relu", ("n",), ("r",), {}, "relu"),
        Node("GlobalAveragePool", ("r",), ("p",), {}, "pool"),
        Node("Flatten", ("p",), ("f",), {"axis": 1}, "flat"),
        Node("Gemm", ("f", "head"), ("y",), {}, "head"),
    )
    card = make_card(Graph(nodes, constants, "x", (3, 8, 8), "y"), b"model", about(labels=("a", "b")))
    assert card.signature_of_source_features == (0.0, 0.0, 1.0, 2.0)
    assert card.signature_origin == "batch-norm statistics"


def test_a_model_that_takes_no_images_is_not_published() -> None:
    dense = Graph((Node("Gemm", ("x", "w"), ("y",), {}, "d"),), {"w": np.ones((8, 3), np.float32)}, "x", (8,), "y")
    with pytest.raises(ModelError, match="does not take images"):
        make_card(dense, b"", about())


def test_reading_a_model(tmp_path: Path, model_file: str) -> None:
    graph, labels = read_model(model_file)
    assert serialize(graph) == MODEL
    assert labels == ()
    with pytest.raises(BoardError, match="cannot be read") as caught:
        read_model(str(tmp_path / "gone.onnx"))
    assert "No such file" in caught.value.where
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    with pytest.raises(ModelError, match="not an ONNX model"):
        read_model(str(tmp_path / "broken.onnx"))


def test_reading_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("tench\n  goldfish \r\n\n\ngrün\n", encoding="utf-8")
    assert read_labels(path) == ("tench", "goldfish", "grün")
    path.write_bytes(b"a" * (MAX_LABELS_BYTES - 1) + b"\n")
    assert len(read_labels(path)) == 1
    for data, says in ((b"a" * (MAX_LABELS_BYTES + 1), "longer than"), (b"\xff\xfe", "cannot be read")):
        path.write_bytes(data)
        with pytest.raises(SpecError, match=says):
            read_labels(path)
    with pytest.raises(SpecError, match="cannot be read"):
        read_labels(tmp_path / "gone.txt")


# --- predicting -------------------------------------------------------------------------------------------------------

MANIFEST: dict[str, object] = {
    "name": "net", "image_size": 12, "scale": 1 / 127.5, "offset": -1, "classes": list(LABELS), "model_sha256": "",
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", bytes(range(32)))


def activate(store: Store, manifest: dict[str, object], model: bytes = MODEL) -> None:
    store.activate(store.stage(model, manifest))
    store.mark_good()


def test_predictions_are_the_models_own_answers(tmp_path: Path, store: Store) -> None:
    activate(store, MANIFEST)
    paths = sorted(image_folder(tmp_path / "images", each=7).rglob("*.png"))
    found, manifest = predict(store, paths, threads=1)
    assert manifest["name"] == "net"
    assert [item.path for item in found] == [str(path) for path in paths]
    inputs = preprocessed(np.stack([decode_one(path, 12) for path in paths]), Preprocess(1 / 127.5, -1.0))
    logits = Inference(parse(MODEL), 1).run(inputs).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [item.label for item in found] == [LABELS[i] for i in logits.argmax(axis=1)]
    np.testing.assert_allclose([item.probability for item in found], shares.max(axis=1), rtol=1e-5)


def test_great_logits_do_not_overflow(tmp_path: Path, store: Store) -> None:
    sure = NET.with_weights({"head.b": np.asarray([-3e38, 3e38, 0], np.float32)})
    activate(store, MANIFEST, serialize(sure))
    (found,), _ = predict(store, [next(image_folder(tmp_path / "images").rglob("*.png"))], threads=1)
    assert (found.label, found.probability) == ("green", 1.0)


def test_without_an_active_model_or_a_readable_image_there_is_no_answer(tmp_path: Path, store: Store) -> None:
    paths = list(image_folder(tmp_path / "images").rglob("*.png"))
    with pytest.raises(BoardError):
        predict(store, paths, threads=1)
    activate(store, MANIFEST)
    (tmp_path / "bad.png").write_bytes(b"?")
    with pytest.raises(DataError, match="not an image") as caught:
        predict(store, [*paths, tmp_path / "bad.png"], threads=1)
    assert caught.value.where == str(tmp_path / "bad.png")
    assert predict(store, [], threads=1)[0] == []
