"""One aligned block of memory that holds many tensors one behind the other.

Weights lie in execution order, so a step reads them sequentially (R17); gradients and optimizer state lie in the same
order, so an update is one pass over flat arrays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import onnxruntime as ort

from agent.engine.base import Float32

LINE_FLOATS = 16  # 64 bytes: a cache line, and the widest vector load
FLOAT_BYTES = 4


class Arena:
    """Float32 tensors in one block, zero at first.

    Attributes:
        flat: the whole block [F]; the few floats between tensors stay zero.
        views: each tensor in its own shape, on the block's memory.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self._spans: dict[str, slice] = {}
        end = 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            self._spans[name] = slice(end, end + size)
            end += -(-size // LINE_FLOATS) * LINE_FLOATS
        room = np.zeros(end + LINE_FLOATS, np.float32)  # pages that nothing writes take no memory
        first = -(room.ctypes.data // FLOAT_BYTES) % LINE_FLOATS
        self.flat: Float32 = room[first : first + end]
        self.views = {name: self.flat[span].reshape(self.shapes[name]) for name, span in self._spans.items()}

    def span(self, first: str, last: str) -> slice:
        """Where the tensors from `first` to `last` lie in `flat`, with what is between them."""
        return slice(self._spans[first].start, self._spans[last].stop)

    def fill(self, values: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]) -> None:
        """Copy in each value whose name is here."""
        for name in self.shapes.keys() & values.keys():
            self.views[name][...] = values[name]

    def runs(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """First and last name of each run of neighbours among `names`, which come in this arena's order."""
        order = {name: index for index, name in enumerate(self.shapes)}
        found: list[tuple[str, str]] = []
        for name in names:
            if found and order[found[-1][1]] + 1 == order[name]:
                found[-1] = (found[-1][0], name)
            else:
                found.append((name, name))
        return found


def bound(view: Float32, shape: tuple[int, ...] | None = None) -> ort.OrtValue:
    """A value on the memory of a contiguous array: what the runtime writes is seen in the array, without a copy."""
    return ort.OrtValue.ortvalue_from_numpy(view if shape is None else view.reshape(shape))
