"""A checkpoint as bytes: weights, optimizer state, and where the loop stands."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from agent.errors import EngineError

WEIGHT = "weight/"  # key prefix of a run's state
BASE = "base"  # key of the guard's fingerprint in a checkpoint, which leaves out what never learns


@dataclass(frozen=True, slots=True)
class Position:
    """Where the loop stands: enough, with the engine's state, to go on.

    Attributes:
        epoch: epochs done.
        step: steps done of the present epoch.
        samples: samples whose update was finite and kept (N_success of R9).
        dropped: steps whose loss or gradient was not finite; they changed nothing.
        depth_changes: how often the freeze boundary moved.
        busy_s: time spent in steps.
        head_until: steps of the whole training that were done when the head last stopped learning alone; `None`: it
            never learnt alone.
    """

    epoch: int = 0
    step: int = 0
    samples: int = 0
    dropped: int = 0
    depth_changes: int = 0
    busy_s: float = 0.0
    head_until: int | None = None


# what NumPy and zipfile raise on bytes that are no checkpoint
_UNREADABLE = (KeyError, ValueError, TypeError, IndexError, ArithmeticError, RuntimeError, OSError, EOFError)
_POSITION = ("epoch", "step", "samples", "dropped", "depth_changes", "busy_s")
_NEVER = -1  # in a file, where `head_until` is `None`
_OLD_PLACES = 7  # a checkpoint of before has no `head_until`: that job goes on with the rates it began with


def write_checkpoint(state: Mapping[str, npt.NDArray[np.generic]], position: Position, depth_percent: int) -> bytes:
    """Weights, optimizer state and position as .npz bytes (to be sealed before they touch a disk)."""
    buffer = io.BytesIO()
    head_until = _NEVER if position.head_until is None else position.head_until
    place = np.asarray([*(getattr(position, name) for name in _POSITION), depth_percent, head_until], np.float64)
    arrays: dict[str, Any] = {f"state/{name}": value for name, value in state.items()}
    np.savez(buffer, position=place, **arrays)
    return buffer.getvalue()


def read_checkpoint(data: bytes) -> tuple[dict[str, npt.NDArray[np.generic]], Position, int]:
    """What `write_checkpoint` wrote.

    Raises:
        EngineError: not such a file.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            place = archive["position"]
            state = {key.removeprefix("state/"): archive[key] for key in archive if key.startswith("state/")}
        epoch, step, samples, dropped, changes = (int(value) for value in place[:5])
        head_until = int(place[7]) if len(place) > _OLD_PLACES else _NEVER
        busy_s, joined = float(place[5]), None if head_until < 0 else head_until
        return state, Position(epoch, step, samples, dropped, changes, busy_s, joined), int(place[6])
    except (*_UNREADABLE, zipfile.BadZipFile) as error:
        raise EngineError("the checkpoint cannot be read", fix="The job starts over") from error
