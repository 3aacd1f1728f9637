"""Load for a stress run: one core kept busy with matrix products, each compared bit for bit with the first.

    python -m agent.worker_stress

Reads the share of time to work, 0..1, a number a line, from standard input; works not at all before the first line and
ends with the input. About twice a second it writes a line `PRODUCTS WRONG`: products made, and those that differed.
"""

from __future__ import annotations

import math
import os
import select
import sys
import time

SIDE = 256
"""Three matrices of 256 KiB: beyond the first cache of any core, a millisecond or a few a product."""
PERIOD_S = 0.05  # one turn of work and rest: far below a second, in which the board is read
TELL_S = 0.5
MAX_LINE_BYTES = 64  # a number


class Products:
    """The same product again and again.

    Attributes:
        made: products so far.
        wrong: products that differed from the first: the core, the cache or the memory erred.
    """

    def __init__(self) -> None:
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = "1"  # one process a core: more threads would only get in each other's way
        import numpy as np  # noqa: PLC0415 - reads the settings above when it is loaded

        draw = np.random.default_rng(0)
        self._left = draw.standard_normal((SIDE, SIDE), dtype=np.float32)
        self._right = draw.standard_normal((SIDE, SIDE), dtype=np.float32)
        self._out = np.empty((SIDE, SIDE), dtype=np.float32)
        self._multiply = np.matmul
        self._multiply(self._left, self._right, out=self._out)
        self._first = self._out.tobytes()
        self.made, self.wrong = 0, 0

    def make(self) -> None:
        """One more."""
        self._multiply(self._left, self._right, out=self._out)
        self.made += 1
        self.wrong += self._out.tobytes() != self._first


def share_of(line: bytes) -> float:
    """The share that a line asks for; 0 for what is no number of 0..1."""
    try:
        share = float(line[:MAX_LINE_BYTES])
    except ValueError:
        return 0.0
    return share if math.isfinite(share) and 0.0 <= share <= 1.0 else 0.0


def main() -> int:
    """The program."""
    work, share, told_s, pending = Products(), 0.0, time.monotonic(), b""
    source = sys.stdin.fileno()
    while True:
        began = time.monotonic()
        while time.monotonic() - began < share * PERIOD_S:
            work.make()
        rest = max(0.0, PERIOD_S * (1.0 - share)) if share < 1.0 else 0.0
        if select.select([source], [], [], rest)[0]:
            data = os.read(source, MAX_LINE_BYTES)
            if not data:
                return 0
            *lines, pending = (pending + data)[-2 * MAX_LINE_BYTES :].split(b"\n")
            share = share_of(lines[-1]) if lines else share
        if time.monotonic() - told_s >= TELL_S:
            told_s = time.monotonic()
            try:
                sys.stdout.write(f"{work.made} {work.wrong}\n")
                sys.stdout.flush()
            except BrokenPipeError:
                return 0


if __name__ == "__main__":
    sys.exit(main())
