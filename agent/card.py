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
LATEST = "latest"
"""In the place of a version: the highest that fits the board."""
SHA256 = re.compile(r"[0-9a-f]{64}")

MAX_PLAINTEXT_BYTES = 256 << 20  # the largest model the trainer reads: a board holds it several times over in memory
MAX_LABELS = 10_000  # the largest public classifiers have some thousands
MAX_LABEL_CHARACTERS = 128  # a label is a line on a screen
MAX_FEATURES = 4096  # widest feature vector among common backbones is 2048
MAX_DIMENSION = 4096  # pixels, channels or time steps
MAX_RANK = 4  # channels, height, width; a margin of one
MAX_BOARDS = 64
MAX_COLUMNS = 1024  # sensors of one machine; spectra come as columns too
IMAGE_CLASSIFICATION, ANOMALY_DETECTION, FORECASTING = "image-classification", "anomaly-detection", "forecasting"
TASKS = (IMAGE_CLASSIFICATION, ANOMALY_DETECTION, FORECASTING)


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a sample becomes the model's input: x * scale + offset on values 0..255."""

    scale: float = field(metadata=limits(-1e6, 1e6))
    offset: float = field(metadata=limits(-1e6, 1e6))
    layout: str = field(default="NCHW", metadata=limits(choices=("NCHW",)))
    color: str = field(default="RGB", metadata=limits(choices=("RGB",)))


@dataclass(frozen=True, slots=True)
class WindowRule:
    """How rows of a series become a model's input, and what it forecasts of them.

    The statistics are those of the data the base was trained on. They belong to its weights: a job uses them as they
    are, whatever its own data look like.

    Attributes:
        columns: names of the F features, in input order.
        mean: of each column.
        deviation: of each column; a value enters the model as (x - mean) / deviation.
        window: rows T of one sample.
        layout: shape of one sample: `TF` [T, F], `FT` [F, T], `flat` [T F].
        horizon: rows forecast after the window; 0 where nothing is forecast.
        target: the column forecast; empty where nothing is.
        season: rows of one season (24 for hourly data with a daily rhythm); 0: none known.

    Raises:
        TableError: the parts do not fit each other; `key` names the one at fault.
    """

    columns: tuple[str, ...] = field(metadata=limits(longest=MAX_COLUMNS))
    mean: tuple[float, ...] = field(metadata=limits(-1e12, 1e12, longest=MAX_COLUMNS))
    deviation: tuple[float, ...] = field(metadata=limits(1e-12, 1e12, longest=MAX_COLUMNS))
    window: int = field(metadata=limits(1, MAX_DIMENSION))
    layout: str = field(metadata=limits(choices=("TF", "FT", "flat")))
    horizon: int = field(default=0, metadata=limits(0, MAX_DIMENSION))
    target: str = field(default="", metadata=limits(longest=MAX_LABEL_CHARACTERS))
    season: int = field(default=0, metadata=limits(0, MAX_DIMENSION))

    def __post_init__(self) -> None:
        _check_texts("columns", self.columns)
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise TableError("columns", "is empty or names a column twice")
        for key in ("mean", "deviation"):
            if len(getattr(self, key)) != len(self.columns):
                raise TableError(key, f"has {len(getattr(self, key))} numbers for {len(self.columns)} columns")
        if (self.horizon > 0) != (self.target in self.columns):
            raise TableError("target", "must be one of the columns where a horizon is given, and only there")

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the model takes it."""
        rows, columns = self.window, len(self.columns)
        return {"TF": (rows, columns), "FT": (columns, rows), "flat": (rows * columns,)}[self.layout]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the device must know of a model before and after unsealing it.

    Attributes:
        name: of the model, matches `NAME`.
        version: matches `VERSION`.
        security_floor: versions of this name whose floor is lower than the highest one published are withdrawn.
        task: one of `TASKS`.
        labels: class names in output order; empty where the task has none.
        preprocess: what images need to become the input; `None` where the model takes windows.
        input_shape: shape of one sample, e.g. [3, 224, 224].
        plaintext_sha256: of the model file, in hexadecimal.
        plaintext_length: of the model file, in bytes.
        boards: board names this version is for; empty: any.
        signature_of_source_features: mean feature vector [C] of the data the base was trained on; empty: unknown.
        signature_origin: where that vector comes from, for people.
        windows: what rows of a series need to become the input; `None` where the model takes images.

    Raises:
        TableError: a value that is out of bounds; `key` names it.
    """

    name: str = field(metadata=limits(longest=64))
    version: str = field(metadata=limits(longest=64))
    security_floor: int = field(metadata=limits(0, 2**31 - 1))
    task: str = field(metadata=limits(choices=TASKS))
    preprocess: Preprocess | None
    input_shape: tuple[int, ...] = field(metadata=limits(1, MAX_DIMENSION, longest=MAX_RANK))
    plaintext_sha256: str = field(metadata=limits(longest=64))
    plaintext_length: int = field(metadata=limits(1, MAX_PLAINTEXT_BYTES))
    labels: tuple[str, ...] = field(default=(), metadata=limits(longest=MAX_LABELS))
    boards: tuple[str, ...] = field(default=(), metadata=limits(longest=MAX_BOARDS))
    signature_of_source_features: tuple[float, ...] = field(
        default=(), metadata=limits(-1e9, 1e9, longest=MAX_FEATURES)
    )
    signature_origin: str = field(default="", metadata=limits(longest=512))
    windows: WindowRule | None = None

    def __post_init__(self) -> None:
        for key, pattern in (("name", NAME), ("version", VERSION), ("plaintext_sha256", SHA256)):
            if not pattern.fullmatch(getattr(self, key)):
                raise TableError(key, f"{getattr(self, key)[:80]!r} does not match {pattern.pattern}")
        if not self.input_shape:
            raise TableError("input_shape", "is empty")
        _check_texts("labels", self.labels)
        _check_texts("boards", self.boards)
        if not self.signature_origin.isprintable():
            raise TableError("signature_origin", "holds unprintable characters")
        self._check_input()

    def _check_input(self) -> None:
        """The task decides which of the two input rules there must be."""
        if self.task == IMAGE_CLASSIFICATION:
            if self.preprocess is None or self.windows is not None:
                raise TableError("preprocess", f"{self.task} needs `preprocess` and no `windows`")
            return
        if self.windows is None or self.preprocess is not None:
            raise TableError("windows", f"{self.task} needs `windows` and no `preprocess`")
        if tuple(self.input_shape) != self.windows.sample_shape:
            raise TableError("input_shape", f"is not the {list(self.windows.sample_shape)} of `windows`")
        if (self.windows.horizon > 0) != (self.task == FORECASTING):
            raise TableError("windows.horizon", f"{self.windows.horizon} does not fit {self.task}")

    def to_table(self) -> dict[str, object]:
        """The card as JSON values. Numbers with a fraction become texts: TUF's canonical JSON has none."""
        table = cast("dict[str, object]", _plain(dataclasses.asdict(self)))
        parse(table)  # a card built by hand is checked as strictly as one that was read
        return table


def _check_texts(key: str, texts: tuple[str, ...]) -> None:
    for index, text in enumerate(texts):
        if not text.isprintable() or not 0 < len(text) <= MAX_LABEL_CHARACTERS:
            raise TableError(f"{key}[{index}]", f"is not 1..{MAX_LABEL_CHARACTERS} printable characters")


def parse_window_rule(table: object, *, error: type[TemperdError] = TrustError) -> WindowRule:
    """Read what `window_table` gave.

    Raises:
        error: names the key and what is wrong with it.
    """
    if not isinstance(table, Mapping):
        raise error("window rule: must be a table")
    try:
        return build(WindowRule, _numbers(table, ("mean", "deviation"), "windows"))
    except TableError as cause:
        raise error(f"window rule: {cause.what}", where=cause.key) from cause


def window_table(rule: WindowRule) -> dict[str, object]:
    """The rule as JSON values, numbers with a fraction as texts."""
    return cast("dict[str, object]", _plain(dataclasses.asdict(rule)))


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
    read = _numbers(table, ("signature_of_source_features",), "")
    for key, names in (("preprocess", ("scale", "offset")), ("windows", ("mean", "deviation"))):
        inner = read.get(key)
        if isinstance(inner, Mapping):
            read[key] = _numbers(inner, names, key)
    return read


def _numbers(table: Mapping[str, object], keys: tuple[str, ...], path: str) -> dict[str, object]:
    """The table with the texts under `keys`, alone or in lists, as numbers again."""
    read = dict(table)
    for key in keys:
        value, where = read.get(key), f"{path}.{key}" if path else key
        if isinstance(value, list | tuple) and len(value) <= MAX_FEATURES:
            read[key] = [_number(item, f"{where}[{i}]") for i, item in enumerate(value)]
        elif isinstance(value, str):
            read[key] = _number(value, where)
    return read


def _number(value: object, key: str) -> object:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError as cause:
        raise TableError(key, f"{value[:40]!r} is not a number") from cause
