"""How boundary activations are stored: one record a sample, of one length, in one of three number formats.

| storage | bytes a value | error of a value x that comes back |
|---|---|---|
| `float32` | 4 | none: bit for bit |
| `float16` | 2 | at most max(2^-11 abs(x), 2^-25): IEEE 754 rounding to nearest |
| `int8` | 1 | at most (high - low) / 510 + 2^-20 max(abs(low), abs(high)) + 2^-140 |

`int8` keeps 256 levels between the lowest and the highest value of each tensor of each sample (affine quantization with
one scale a tensor: Jacob et al. 2018); half a step is the first term, float32 arithmetic the rest. The lowest value
comes back exactly, so the zeros of a rectified tensor stay zeros.

A sample with a value that a format cannot hold does not `fit` and must not be stored.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from agent.engine.base import Float32

Records = npt.NDArray[np.uint8]
"""Stored samples [M, record_bytes]."""
Fits = npt.NDArray[np.bool_]

AUTO_STORAGE = "float16"  # its error is far below that of the weights' own last steps; int8 halves the disk once more
STORAGES = ("float32", "float16", "int8")
MOST_FLOAT16 = 65504.0  # the largest finite one
MOST_INT8 = 1e37  # spans and sums of values up to this stay finite in float32
LEVELS = 255
_SCALE_BYTES = 8  # the lowest value and the step, float32 each


class _Format(Protocol):
    def length(self, count: int) -> int:
        """Bytes of `count` values."""

    def pack(self, values: Float32) -> tuple[Records, Fits]:
        """Values [M, count] as bytes, and which rows the format can hold."""

    def unpack(self, records: Records) -> Float32:
        """The values again [M, count]."""


class _Float32:
    def length(self, count: int) -> int:
        return 4 * count

    def pack(self, values: Float32) -> tuple[Records, Fits]:
        return values.astype("<f4").view(np.uint8), np.ones(len(values), np.bool_)

    def unpack(self, records: Records) -> Float32:
        return np.ascontiguousarray(records).view("<f4").astype(np.float32)


class _Float16:
    def length(self, count: int) -> int:
        return 2 * count

    def pack(self, values: Float32) -> tuple[Records, Fits]:
        with np.errstate(over="ignore", invalid="ignore"):  # rows that overflow do not fit
            return values.astype("<f2").view(np.uint8), _within(values, MOST_FLOAT16)

    def unpack(self, records: Records) -> Float32:
        return np.ascontiguousarray(records).view("<f2").astype(np.float32)


class _Int8:
    def length(self, count: int) -> int:
        return _SCALE_BYTES + count

    def pack(self, values: Float32) -> tuple[Records, Fits]:
        fits = _within(values, MOST_INT8)
        safe = np.where(fits[:, None], values, np.float32(0))
        low = safe.min(axis=1, keepdims=True)
        step = (safe.max(axis=1, keepdims=True) - low) / np.float32(LEVELS)
        levels = (safe - low) / np.where(step > 0, step, np.float32(1))
        codes = np.clip(np.rint(levels), 0, LEVELS).astype(np.uint8)
        scales = np.concatenate([low, step], axis=1).astype("<f4").view(np.uint8)
        return np.concatenate([scales, codes], axis=1), fits

    def unpack(self, records: Records) -> Float32:
        scales = np.ascontiguousarray(records[:, :_SCALE_BYTES]).view("<f4").astype(np.float32)
        values: Float32 = records[:, _SCALE_BYTES:].astype(np.float32)
        values *= scales[:, 1:]
        values += scales[:, :1]
        return values


def _within(values: Float32, most: float) -> Fits:
    """Rows whose values are numbers of at most this size."""
    largest = np.maximum(values.max(axis=1), -values.min(axis=1))  # NaN in a row: NaN, which is within nothing
    fits: Fits = largest <= most
    return fits


_FORMATS: dict[str, _Format] = {"float32": _Float32(), "float16": _Float16(), "int8": _Int8()}


class Codec:
    """Turns the activations of a batch into records and back.

    Attributes:
        record_bytes: length of one sample's record.
    """

    def __init__(self, storage: str, shapes: Sequence[tuple[int, ...]]) -> None:
        """For tensors whose shapes for one sample are `shapes`; `storage` is one of `STORAGES`."""
        self._format = _FORMATS[storage]
        self._shapes = tuple(shapes)
        ends = [0]
        for shape in self._shapes:
            ends.append(ends[-1] + self._format.length(math.prod(shape)))
        self._slices = [slice(start, end) for start, end in itertools.pairwise(ends)]
        self.record_bytes = ends[-1]

    def encode(self, activations: Sequence[Float32]) -> tuple[Records, Fits]:
        """Arrays [M, ...] as records [M, record_bytes], and which of them may be stored [M]."""
        count = len(activations[0])
        records = np.empty((count, self.record_bytes), np.uint8)
        fits = np.ones(count, np.bool_)
        for values, place in zip(activations, self._slices, strict=True):
            flat = np.ascontiguousarray(values, np.float32).reshape(count, -1)
            records[:, place], fit = self._format.pack(flat)
            fits &= fit
        return records, fits

    def decode(self, records: Records) -> tuple[Float32, ...]:
        """Records [M, record_bytes] as arrays [M, ...]."""
        return tuple(
            self._format.unpack(records[:, place]).reshape(len(records), *shape)
            for shape, place in zip(self._shapes, self._slices, strict=True)
        )
