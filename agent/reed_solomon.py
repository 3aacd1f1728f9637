"""Reed-Solomon erasure code over whole blocks of bytes: the library's mathematics, numpy's speed.

The code is linear, so the library is asked for unit messages and unit erasures only; what it answers is applied to
strips of blocks with table look-ups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import reedsolo

POLYNOMIAL = 0x11D
LANES = 8  # symbols in one 64-bit word
MAX_WIDTH = 32 << 10  # bytes of a strip; with its sums it stays in the processor's cache

Bytes2D: TypeAlias = npt.NDArray[np.uint8]


class Combiner:
    """Sums of products over GF(2^8): line r is the sum over n of `matrix[r, n]` times input n.

    Eight lines share a 64-bit word, so one look-up of an input byte multiplies it for eight of them.

    Args:
        matrix: [R, N], of bytes.
    """

    def __init__(self, matrix: Bytes2D) -> None:
        self._rows, inputs = matrix.shape
        words = -(-self._rows // LANES)
        tables = np.zeros((inputs, words, 256, LANES), np.uint8)
        for row in range(self._rows):
            tables[:, row // LANES, :, row % LANES] = _products()[matrix[row]]
        self._tables = tables.view(np.uint64)[..., 0]
        self._sums = np.zeros((words, MAX_WIDTH), np.uint64)
        self._term = np.empty(MAX_WIDTH, np.uint64)
        self._width = 0

    def begin(self, width: int) -> None:
        """Start with lines of `width` bytes (at most `MAX_WIDTH`), all zero."""
        self._width = width
        self._sums[:, :width] = 0

    def add(self, index: int, piece: npt.NDArray[np.uint8]) -> None:
        """Add the products of input `index`, [width]."""
        places = piece.astype(np.intp)
        term = self._term[: self._width]
        for table, total in zip(self._tables[index], self._sums, strict=True):
            np.take(table, places, out=term, mode="clip")  # no index can be out of range; this mode needs no buffer
            total[: self._width] ^= term

    def lines(self) -> Iterator[npt.NDArray[np.uint8]]:
        """The R lines, each [width]."""
        for row in range(self._rows):
            words = self._sums[row // LANES, : self._width]
            yield np.ascontiguousarray(words.view(np.uint8)[row % LANES :: LANES])


@cache
def _products() -> Bytes2D:
    """All products of two bytes in the library's field, [256, 256]."""
    logarithms, powers, _ = reedsolo.init_tables(POLYNOMIAL)
    logs = np.array(list(logarithms), np.intp)
    table: Bytes2D = np.array(list(powers), np.uint8)[logs[:, None] + logs[None, :]]
    table[0, :] = table[:, 0] = 0
    return table


def _codec(data: int, parity: int) -> reedsolo.RSCodec:
    return reedsolo.RSCodec(parity, nsize=data + parity, prim=POLYNOMIAL)


@cache
def generator(data: int, parity: int) -> Bytes2D:
    """Parity of each unit message, [parity, data], for a code of so many symbols."""
    codec = _codec(data, parity)
    columns = []
    for block in range(data):
        message = bytearray(data)
        message[block] = 1
        columns.append(np.frombuffer(bytes(codec.encode(message)[data:]), np.uint8))
    return np.stack(columns, axis=1)


def solution(data: int, parity: int, lost: Sequence[int], rows: Sequence[int]) -> Bytes2D:
    """The symbols of the `lost` data for each unit vector in the parity `rows`, all other data being zero: [E, E]."""
    codec = _codec(data, parity)
    unused = [data + row for row in range(parity) if row not in set(rows)]
    columns = []
    for row in rows:
        word = bytearray(data + parity)
        word[data + row] = 1
        # As many erasures as parity symbols: every vector of the others belongs to exactly one code word.
        message, _, _ = codec.decode(word, erase_pos=[*lost, *unused], only_erasures=True)
        columns.append([message[block] for block in lost])
    return np.array(columns, np.uint8).T
