"""What all data sources share: bounds, .npz archives read with care, names of bad samples, the order of an epoch."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from agent.engine.base import Int64
from agent.errors import DataError

MAX_DATA_BYTES = 1 << 30  # decoded; half of a 2 GB board
NAMED_BAD = 20  # of the unreadable samples so many are named
MAX_NAME, MAX_WHY = 100, 80  # characters of each: all that are named fit into one message


def reason(error: Exception) -> str:
    """Why something could not be read, in at most `MAX_WHY` characters."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0][:MAX_WHY] if str(error) else type(error).__name__


def read_arrays(file: Path, keys: tuple[str, ...]) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of an .npz file that are asked for, as far as it has them.

    Raises:
        DataError: no archive, broken, holding pickles, or unpacking to more than `MAX_DATA_BYTES`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            total = sum(item.file_size for item in archive.infolist() if item.filename.removesuffix(".npy") in keys)
        if total > MAX_DATA_BYTES:
            raise ValueError(f"{total >> 20} MiB unpacked, at most {MAX_DATA_BYTES >> 20} are read")  # noqa: TRY301 - told like the foreign ones
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in keys if key in arrays}
    except Exception as error:  # zipfile, zlib and NumPy raise many unrelated types on broken files
        raise DataError("the .npz file cannot be read", where=f"{file}: {reason(error)}") from error


def epoch_batches(samples: int, batch: int, seed: int, epoch: int) -> Iterator[Int64]:
    """Index batches of exactly `batch` samples in an order fixed by (seed, epoch).

    The last batch is filled from the head of the same order, so every step has one shape and every sample is used.
    """
    order = np.random.default_rng((seed, epoch)).permutation(samples)
    steps = -(-samples // batch)
    padded = np.resize(order, steps * batch)
    for step in range(steps):
        yield padded[step * batch : (step + 1) * batch].astype(np.int64)
