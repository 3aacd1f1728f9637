"""The owner's own held-out data: what a job's data say of themselves proves nothing when they are poisoned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from agent.card import ModelCard
from agent.classification import Classification
from agent.errors import ConfigError, DataError, SpecError
from agent.spec import FineTuneSpec
from agent.task import Task, load_task

SUFFIXES = ("", ".npz", ".csv")
HALF = 0.5  # of a series the second half is held out, the most there is


def owners_data(folder: str, spec: FineTuneSpec, card: ModelCard, classes: tuple[str, ...]) -> Task | None:
    """The task that judges beside the job's own: `<folder>/<model>`, a folder or an .npz or .csv file.

    Of the job only what decides the input's shape is taken; nothing a job says chooses samples, columns or labels.

    Args:
        folder: `gate.held_out` of the policy; empty: none.
        spec: the job.
        card: of its model.
        classes: of the model's outputs; the owner's data may have fewer.

    Raises:
        ConfigError: there are such data, and they cannot be used: without them nothing is promoted.
    """
    path = _entry(Path(folder), card.name) if folder else None
    if path is None:
        return None
    own = FineTuneSpec(card.name, str(path), image_size=spec.image_size, loss=spec.loss, held_out=HALF)
    try:
        task = load_task(own, card)
    except (DataError, SpecError) as error:
        raise ConfigError(
            f"the owner's held-out data cannot be used: {error.what}", where=error.where or str(path),
            fix="Mend them, or take the model's entry out of the folder that gate.held_out names",
        ) from error  # fmt: skip
    if not isinstance(task, Classification):
        return task
    if unknown := sorted(set(task.classes) - set(classes)):
        raise ConfigError(
            f"the owner's held-out data have the class {unknown[0]!r}, the tuned model would not know it",
            where=str(path), fix="A job's data need every class of them",
        )  # fmt: skip
    images = task.images
    x_all = np.concatenate((images.x_train, images.x_test))
    y_all = np.concatenate((images.y_train, images.y_test))
    every = replace(images, x_train=x_all[:0], y_train=y_all[:0], x_test=x_all, y_test=y_all)
    return replace(task, images=every).with_classes(classes)


def _entry(folder: Path, model: str) -> Path | None:
    """The model's entry.

    Raises:
        ConfigError: the folder itself is not there: a disk that is not mounted must not open the gate.
    """
    if not folder.is_dir():
        raise ConfigError("the folder of the owner's held-out data is not there", where=f"gate.held_out: {folder}")
    return next((path for suffix in SUFFIXES if (path := folder / f"{model}{suffix}").exists()), None)
