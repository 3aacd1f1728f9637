"""The model card: what a publisher says of one model version, and where it lies in the repository.

It travels as the `custom` table of a TUF target, so it is covered by the repository's signatures.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from agent.errors import TemperdError, TrustError
from policies.strict import TableError, build, limits

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""Names of models and devices: safe in file names, URLs and MQTT topics on every system."""
VERSION = re.compile(r"(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){0,3}")
"""One to four numbers between dots, no leading zeros; no dash, so `<name>-<version>` can be read only one way."""
SHA256 = re.compile(r"[0-9a-f]{64}")

MAX_PLAINTEXT_BYTES = 256 << 20  # the largest model the trainer reads: a board holds it several times over in memory
MAX_LABELS = 10_000  # the largest public classifiers have some thousands
MAX_LABEL_CHARACTERS = 128  # a label is a line on a screen
MAX_FEATURES = 4096  # widest feature vector among common backbones is 2048
MAX_DIMENSION = 4096  # pixels, channels or time steps
MAX_RANK = 4  # channels, height, width; a margin of one
MAX_BOARDS = 64
TASKS = ("image-classification", "anomaly-detection", "forecasting")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a sample becomes the model's input: x * scale + offset on values 0..255."""

    scale: float = field(metadata=limits(-1e6, 1e6))
    offset: float = field(metadata=limits(-1e6, 1e6))
    layout: str = field(default="NCHW", metadata=limits(choices=("NCHW",)))
    color: str = field(default="RGB", metadata=limits(choices=("RGB",)))


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the device must know of a model before and after unsealing it.

    Attributes:
        name: of the model, matches `NAME`.
        version: matches `VERSION`.
        security_floor: versions of this name whose floor is lower than the highest one published are withdrawn.
        task: one of `TASKS`.
        labels: class names in output order; empty where the task has none.
        preprocess: what the input needs.
        input_shape: shape of one sample, e.g. [3, 224, 224].
        plaintext_sha256: of the model file, in hexadecimal.
        plaintext_length: of the model file, in bytes.
        boards: board names this version is for; empty: any.
        signature_of_source_features: mean feature vector [C] of the data the base was trained on; empty: unknown.
        signature_origin: where that vector comes from, for people.

    Raises:
        TableError: a value that is out of bounds; `key` names it.
    """

    name: str = field(metadata=limits(longest=64))
    version: str = field(metadata=limits(longest=64))
    security_floor: int = field(metadata=limits(0, 2**31 - 1))
    task: str = field(metadata=limits(choices=TASKS))
    preprocess: Preprocess
    input_shape: tuple[int, ...] = field(metadata=limits(1, MAX_DIMENSION, longest=MAX_RANK))
    plaintext_sha256: str = field(metadata=limits(longest=64))
    plaintext_length: int = field(metadata=limits(1, MAX_PLAINTEXT_BYTES))
    labels: tuple[str, ...] = field(default=(), metadata=limits(longest=MAX_LABELS))
    boards: tuple[str, ...] = field(default=(), metadata=limits(longest=MAX_BOARDS))
    signature_of_source_features: tuple[float, ...] = field(
        default=(), metadata=limits(-1e9, 1e9, longest=MAX_FEATURES)
    )
    signature_origin: str = field(default="", metadata=limits(longest=512))

    def __post_init__(self) -> None:
        for key, pattern in (("name", NAME), ("version", VERSION), ("plaintext_sha256", SHA256)):
            if not pattern.fullmatch(getattr(self, key)):
                raise TableError(key, f"{getattr(self, key)[:80]!r} does not match {pattern.pattern}")
        if not self.input_shape:
            raise TableError("input_shape", "is empty")
        for key in ("labels", "boards"):
            for index, text in enumerate(getattr(self, key)):
                if not text.isprintable() or not 0 < len(text) <= MAX_LABEL_CHARACTERS:
                    raise TableError(f"{key}[{index}]", f"is not 1..{MAX_LABEL_CHARACTERS} printable characters")
        if not self.signature_origin.isprintable():
            raise TableError("signature_origin", "holds unprintable characters")

    def to_table(self) -> dict[str, object]:
        """The card as JSON values. Numbers with a fraction become texts: TUF's canonical JSON has none."""
        table = cast("dict[str, object]", _plain(dataclasses.asdict(self)))
        parse(table)  # a card built by hand is checked as strictly as one that was read
        return table


def parse(table: Mapping[str, object], *, error: type[TemperdError] = TrustError) -> ModelCard:
    """Read what `ModelCard.to_table` gave.

    Raises:
        error: names the key, what is wrong with it and, for an unknown one, the nearest known key.
    """
    try:
        return build(ModelCard, _with_floats(table))
    except TableError as cause:
        raise error(f"model card: {cause.what}", where=cause.key) from cause


def version_key(version: str) -> tuple[int, ...]:
    """Order of versions: number by number from the left; where one ends first, it is the older (1 < 1.0 < 1.0.1 < 2).

    Args:
        version: matches `VERSION`.
    """
    return tuple(int(part) for part in version.split("."))


def target_path(name: str, version: str) -> str:
    """Path of the sealed model among the repository's targets."""
    return f"models/{name}/{version}.sealed"


def grant_path(device: str, name: str, version: str) -> str:
    """Path of a device's grant among the repository's targets."""
    return f"grants/{device}/{name}-{version}.json"


@dataclass(frozen=True, slots=True)
class Target:
    """One published model version, as signed by the repository."""

    name: str
    version: str
    path: str
    sealed_sha256: str
    sealed_length: int
    card: ModelCard


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return repr(value) if isinstance(value, float) else value


def _with_floats(table: Mapping[str, object]) -> dict[str, object]:
    read = dict(table)
    preprocess = read.get("preprocess")
    if isinstance(preprocess, Mapping):
        numbers = {
            key: _number(preprocess[key], f"preprocess.{key}") for key in ("scale", "offset") if key in preprocess
        }
        read["preprocess"] = {**preprocess, **numbers}
    signature = read.get("signature_of_source_features")
    if isinstance(signature, list | tuple) and len(signature) <= MAX_FEATURES:
        read["signature_of_source_features"] = [
            _number(item, f"signature_of_source_features[{i}]") for i, item in enumerate(signature)
        ]
    return read


def _number(value: object, key: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError as cause:
        raise TableError(key, f"{value[:40]!r} is not a number") from cause
