"""Timing alternatives against each other on the board at hand, so that a choice rests on what it measured itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

WARM_UPS = 1  # the first call allocates
ROUNDS = 9


def median_seconds(
    runs: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median duration of each run, in seconds.

    The runs take turns, so that a change of clock frequency or load in between meets all of them alike.

    Args:
        runs: what to time, by name.
        rounds: timed calls of each, after WARM_UPS that do not count.
        clock: a monotonic clock in seconds.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(WARM_UPS + rounds):
        for name, run in runs.items():
            start = clock()
            run()
            if turn >= WARM_UPS:
                taken[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in taken.items()}
