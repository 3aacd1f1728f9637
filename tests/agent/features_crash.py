"""Fills a feature cache until it is killed; run as a program by test_features.py.

    python features_crash.py FOLDER NUMBER

With NUMBER > 0 the process kills itself (SIGKILL) just before its NUMBER-th file operation below FOLDER. With 0 it
writes a line for each record that `put` took, and goes on for ever.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from agent.features import FeatureCache, GenerationKey, Limits, record_key

RECORD_BYTES = 1000
LIMITS = Limits(max_bytes=40_000, least_free_share=0.0, block_bytes=8000)
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "mmap.__new__"}
RECORDS = 60  # eight a block: the bound is met and the oldest blocks go


def generation(number: int) -> GenerationKey:
    return GenerationKey(bytes([number]) * 32, (("x", (RECORD_BYTES,)),), b"rule", "int8")


def key_of(number: int) -> bytes:
    return record_key(number.to_bytes(32, "big"), 0, 0)


def record_of(number: int) -> np.ndarray:
    """What belongs to a key: nothing else may ever be read for it."""
    return np.random.default_rng(number).integers(0, 256, RECORD_BYTES, np.uint8)


def kill_before(folder: Path, number: int) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        below = event == "mmap.__new__" or str(arguments[0] if arguments else "").startswith(str(folder))
        if event in EVENTS and below:
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def fill(folder: Path, first: int, count: int) -> None:
    cache = FeatureCache(folder, sys.exit, LIMITS)
    cache.select(generation(first % 2), RECORD_BYTES)
    for number in range(first, first + count):
        cache.put([key_of(number)], record_of(number)[None])
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
    cache.select(generation(1), RECORD_BYTES)
    cache.put([key_of(first)], record_of(first)[None])
    cache.flush()


if __name__ == "__main__":
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    if number:
        kill_before(folder, number)
        fill(folder, 0, RECORDS)
    else:
        for start in range(1 << 30):
            fill(folder, start * RECORDS, RECORDS)
