"""From a model file to a signed, sealed version in a repository: the publisher's side, on a laptop."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent.card import IMAGE_CLASSIFICATION, TASKS, ModelCard, Preprocess, Target, WindowRule, parse_window_rule
from agent.engine.checks import check_base
from agent.engine.infer import Inference, feature_tensor
from agent.engine.ir import MAX_MODEL_BYTES, Graph, parse, serialize, shapes
from agent.engine.prepare import prepare
from agent.engine.signature import signature_from_batch_norm, signature_from_samples
from agent.errors import BoardError, ModelError, SpecError
from agent.images import load, preprocessed
from agent.keys import PublicDocument
from agent.model import CHANNELS_FIRST_RANK, check_window_outputs
from agent.repository import Publisher
from agent.strict_json import loads
from policies.strict import TableError

EFFICIENTNET_LITE0 = "efficientnet-lite0"  # the one base that comes from a package instead of a file
MAX_CARD_BYTES = 1 << 20  # a thousand columns with two numbers each
MAX_LABELS_BYTES = 1 << 20  # a thousand labels have some 20 KB
IMAGENET_SCALE, IMAGENET_OFFSET = 1 / 127.5, -1.0  # 0..255 to -1..1, as MobileNetV2 and EfficientNet-Lite were trained
SOURCE_SAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Description:
    """What the publisher says of a model beyond the file itself."""

    name: str
    version: str
    labels: tuple[str, ...] = ()
    scale: float = IMAGENET_SCALE
    offset: float = IMAGENET_OFFSET
    security_floor: int = 0
    boards: tuple[str, ...] = ()
    task: str = IMAGE_CLASSIFICATION
    windows: WindowRule | None = None
    """What a model of another task takes; see `agent.make_base`, which writes it beside the models it makes."""
    source_images: str = ""
    """Folder of class folders with images of the source data; empty: the signature comes from batch-norm statistics."""


def read_model(source: str) -> tuple[Graph, tuple[str, ...]]:
    """A model from an ONNX file, or `efficientnet-lite0` from its package; with its labels as far as it brings any.

    Raises:
        ModelError: not a model this version can train.
        BoardError: the file cannot be read.
        CallerError: the package is not installed.
    """
    if source == EFFICIENTNET_LITE0:
        from agent.engine.efficientnet import imagenet_labels, load_pretrained  # noqa: PLC0415 - an optional extra

        return load_pretrained(), imagenet_labels()
    try:
        with Path(source).open("rb") as stream:
            return parse(stream.read(MAX_MODEL_BYTES + 1)), ()  # what is longer is refused there
    except OSError as error:
        raise BoardError("the model file cannot be read", where=f"{source}: {error.strerror}") from error


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line, in output order.

    Raises:
        SpecError: no such file, too long, or not UTF-8.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_LABELS_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError("the labels cannot be read", where=str(path)) from error
    if len(data) > MAX_LABELS_BYTES:
        raise SpecError(f"the labels are longer than {MAX_LABELS_BYTES} bytes", where=str(path))
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def read_windows_card(path: Path) -> tuple[str, WindowRule]:
    """Task and window rule of a model that `make-base` made.

    Raises:
        SpecError: no such file, too long, or not such a card.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_CARD_BYTES + 1)
    except OSError as error:
        raise SpecError("the card cannot be read", where=f"{path}: {error.strerror}") from error
    table = loads(data, what="card", max_bytes=MAX_CARD_BYTES, error=SpecError)
    if not isinstance(table, dict) or set(table) != {"task", "windows"} or table["task"] not in TASKS:
        raise SpecError("the card needs `task` and `windows` and nothing else", where=str(path))
    return str(table["task"]), parse_window_rule(table["windows"], error=SpecError)


def make_card(graph: Graph, model: bytes, about: Description) -> ModelCard:
    """Describe a model; its source signature comes from sample images or, without any, from batch-norm statistics.

    Raises:
        ModelError: the model takes or gives something else than its task needs.
        SpecError: a value of the description is out of bounds.
    """
    check_base(graph.nodes, graph.layers(), graph.initializers, graph.opset)
    rule = None
    signature: tuple[float, ...] = ()
    origin = ""
    if about.task == IMAGE_CLASSIFICATION:
        if len(graph.input_shape) != CHANNELS_FIRST_RANK:
            fix = "A model of windows needs the card that says what they are: --card"
            raise ModelError("the model does not take images [N, C, H, W]", where=graph.input, fix=fix)
        outputs = shapes(graph, 1)[graph.output][-1]
        if about.labels and len(about.labels) != outputs:
            raise SpecError(f"{len(about.labels)} labels for {outputs} outputs", where="labels")
        rule = Preprocess(about.scale, about.offset)
        signature, origin = _signature(graph, rule, about.source_images)
    try:
        card = ModelCard(
            name=about.name,
            version=about.version,
            security_floor=about.security_floor,
            task=about.task,
            preprocess=rule,
            input_shape=graph.input_shape,
            plaintext_sha256=hashlib.sha256(model).hexdigest(),
            plaintext_length=len(model),
            labels=about.labels,
            boards=about.boards,
            signature_of_source_features=signature,
            signature_origin=origin,
            windows=about.windows,
        )
    except TableError as error:
        raise SpecError(error.what, where=error.key) from error
    if card.windows is not None:
        check_window_outputs(graph, card)
    return card


def _signature(graph: Graph, rule: Preprocess, source_images: str) -> tuple[tuple[float, ...], str]:
    if not source_images:
        found = signature_from_batch_norm(graph)
        return (found, "batch-norm statistics") if found else ((), "")
    data = load(source_images, graph.input_shape[-1], held_out=0.05, seed=0, most_samples=SOURCE_SAMPLES)
    prepared = prepare(graph)
    features = Inference(prepared, 2, feature_tensor(prepared)).run(preprocessed(data.x_train, rule))
    return signature_from_samples(features), f"{len(features)} source images"


def publish(publisher: Publisher, source: str, about: Description, devices: Sequence[PublicDocument]) -> Target:
    """Publish a model version and grant it to devices.

    Publishing the same bytes again adds the grants, or renews the dates where no device is named.

    Raises:
        SpecError: the version exists with other bytes, or a value is out of bounds.
        ModelError, BoardError, CallerError: see `read_model`.
    """
    graph, labels = read_model(source)
    model = serialize(graph)
    card = make_card(graph, model, replace(about, labels=about.labels or labels))
    same = [t for t in publisher.models() if (t.name, t.version) == (card.name, card.version)]
    if same and same[0].card.plaintext_sha256 == card.plaintext_sha256:
        target = same[0]
    else:
        target = publisher.publish(model, card)
    for device in devices:
        publisher.grant(device, target.name, target.version)
    if same and not devices:
        publisher.renew()
    return target
