"""Running the active tuned model on images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.card import Preprocess
from agent.dataset import decode_one, preprocessed
from agent.engine.base import Float32
from agent.engine.infer import Inference
from agent.engine.ir import parse
from agent.engine.sessions import FORWARD_CHUNK
from agent.store import Store


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image's answer: the class, its probability (softmax), and the file."""

    path: str
    label: str
    probability: float


def predict(store: Store, images: list[Path], threads: int) -> tuple[list[Prediction], dict[str, object]]:
    """Classify images with the active model; also gives the model's manifest.

    Raises:
        BoardError: no tuned model is active.
        SealedFileError: the active slot does not verify.
        DataError: an image cannot be read.
    """
    model, manifest = store.load_active()
    size = int(manifest["image_size"])  # type: ignore[call-overload]  # written by the job, bound to the model
    rule = Preprocess(float(manifest["scale"]), float(manifest["offset"]))  # type: ignore[arg-type]  # same
    classes = [str(name) for name in manifest["classes"]]  # type: ignore[attr-defined]  # same
    inference = Inference(parse(model), threads)
    found: list[Prediction] = []
    for start in range(0, len(images), FORWARD_CHUNK):  # decoded images of a whole folder may not fit into memory
        chunk = images[start : start + FORWARD_CHUNK]
        pixels = np.stack([decode_one(path, size) for path in chunk])
        found += _answers(chunk, inference.run(preprocessed(pixels, rule)), classes)
    return found, manifest


def _answers(images: list[Path], logits: Float32, classes: list[str]) -> list[Prediction]:
    wide = logits.astype(np.float64)
    weights = np.exp(wide - wide.max(axis=1, keepdims=True))
    shares = weights / weights.sum(axis=1, keepdims=True)
    return [
        Prediction(str(path), classes[index], float(share[index]))
        for path, index, share in zip(images, shares.argmax(axis=1), shares, strict=True)
    ]
