"""Running the active tuned model: on images, or on the rows of a series."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.anomaly import window_errors
from agent.card import ANOMALY_DETECTION, FORECASTING, IMAGE_CLASSIFICATION, Preprocess, WindowRule, parse_window_rule
from agent.engine.base import Float32, Int64
from agent.engine.infer import Inference
from agent.engine.ir import parse
from agent.engine.sessions import FORWARD_CHUNK
from agent.errors import DataError, SpecError
from agent.forecasting import in_units
from agent.images import decode_one, preprocessed
from agent.series import Series, read_series
from agent.store import Store
from agent.windows import arranged, whole_windows


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image's answer: the class, its probability (softmax), and the file."""

    path: str
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One window's answer: its first and last row in the file, counted from 1, and its reconstruction error."""

    path: str
    first_row: int
    last_row: int
    error: float
    anomaly: bool


@dataclass(frozen=True, slots=True)
class Forecast:
    """What follows the last whole window of a file: the row it ends at, counted from 1, and the values after it."""

    path: str
    last_row: int
    target: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """How the rows of a file are read; see the keys of the same names in `agent.spec`."""

    columns: tuple[str, ...] = ()
    missing: str = "skip"


Answers = list[Prediction] | list[Finding] | list[Forecast]


def predict(
    store: Store, files: list[Path], threads: int, reading: Reading | None = None
) -> tuple[Answers, dict[str, object]]:
    """Answers of the active model for the files, by its task; also gives the model's manifest.

    Raises:
        BoardError: no tuned model is active.
        SealedFileError: the active slot does not verify.
        DataError: a file cannot be read.
    """
    model, manifest = store.load_active()
    inference = Inference(parse(model), threads)
    task = manifest.get("task", IMAGE_CLASSIFICATION)  # models tuned before there were other tasks do not name theirs
    if task == IMAGE_CLASSIFICATION:
        return _classes(inference, manifest, files), manifest
    rule = parse_window_rule(manifest.get("windows"))
    asked = reading or Reading()
    if asked.columns and len(asked.columns) != len(rule.columns):
        raise SpecError(f"{len(asked.columns)} columns for the model's {len(rule.columns)}", where="columns")
    series = [(path, read_series(str(path), asked.columns or rule.columns, "", asked.missing)) for path in files]
    if task == ANOMALY_DETECTION:
        threshold = float(manifest["threshold"])  # type: ignore[arg-type]  # written by the job, bound to the model
        return [found for path, rows in series for found in _findings(inference, rule, path, rows, threshold)], manifest
    assert task == FORECASTING
    return [_forecast(inference, rule, path, rows) for path, rows in series], manifest


def _classes(inference: Inference, manifest: dict[str, object], images: list[Path]) -> list[Prediction]:
    size = int(manifest["image_size"])  # type: ignore[call-overload]  # written by the job, bound to the model
    rule = Preprocess(float(manifest["scale"]), float(manifest["offset"]))  # type: ignore[arg-type]  # same
    classes = [str(name) for name in manifest["classes"]]  # type: ignore[attr-defined]  # same
    found: list[Prediction] = []
    for start in range(0, len(images), FORWARD_CHUNK):  # decoded images of a whole folder may not fit into memory
        chunk = images[start : start + FORWARD_CHUNK]
        pixels = np.stack([decode_one(path, size) for path in chunk])
        found += _answers(chunk, inference.run(preprocessed(pixels, rule)), classes)
    return found


def _answers(images: list[Path], logits: Float32, classes: list[str]) -> list[Prediction]:
    wide = logits.astype(np.float64)
    weights = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares = weights / weights.sum(axis=1, keepdims=True)
    return [
        Prediction(str(path), classes[index], float(share[index]))
        for path, index, share in zip(images, shares.argmax(axis=1), shares, strict=True)
    ]


def _starts(rule: WindowRule, path: Path, series: Series) -> Int64:
    """First rows of the whole windows of a file."""
    starts = whole_windows(series, rule.window)
    if not len(starts):
        raise DataError(
            f"there is no whole window of {rule.window} rows",
            where=f"{path}: {len(series.sound)} rows, {series.bad} of them bad",
            fix="Give more rows",
        )
    return starts


def _findings(inference: Inference, rule: WindowRule, path: Path, series: Series, threshold: float) -> list[Finding]:
    """Windows one behind the other, the last one ending with the last whole window."""
    starts = _starts(rule, path, series)
    apart = starts[(starts[-1] - starts) % rule.window == 0]
    found: list[Finding] = []
    for begin in range(0, len(apart), FORWARD_CHUNK):
        chunk = apart[begin : begin + FORWARD_CHUNK]
        inputs = arranged(series.values[chunk[:, None] + np.arange(rule.window)], rule)
        errors = window_errors(inference.run(inputs), inputs)
        found += [
            Finding(str(path), int(start) + 1, int(start) + rule.window, float(error), bool(error > threshold))
            for start, error in zip(chunk, errors, strict=True)
        ]
    return found


def _forecast(inference: Inference, rule: WindowRule, path: Path, series: Series) -> Forecast:
    last = int(_starts(rule, path, series)[-1])
    inputs = arranged(series.values[None, last : last + rule.window], rule)
    values = in_units(inference.run(inputs), rule)[0]
    return Forecast(str(path), last + rule.window, rule.target, tuple(map(float, values)))
