"""When to try again: the clock and the dice are handed in."""

from __future__ import annotations

import os
from collections.abc import Callable

FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 60.0  # a fleet coming back after a broker restart spreads over a minute
FIRST_YIELD_S, LONGEST_YIELD_S = 60.0, 900.0  # two boards with one name: each works for a while, and both are seen
STEADY_S = 10.0  # a connection that ends sooner is no success: a broker, or a second client with our id, ends it again
_MOST_DOUBLINGS = 16  # beyond every bound above
_DRAW_BYTES = 7  # more than a float's 53 bits


def uniform(least: float, most: float) -> float:
    """Any delay between two bounds, each as likely. The module `random` would cost an idle daemon 0.2 MB."""
    return least + (most - least) * (int.from_bytes(os.urandom(_DRAW_BYTES)) / (1 << 8 * _DRAW_BYTES))


class Pace:
    """Delays between attempts.

    Args:
        jitter: draws a delay between two bounds, seconds.
    """

    def __init__(self, jitter: Callable[[float, float], float]) -> None:
        self._jitter = jitter
        self._failures, self._yields = 0, 0
        self._up_since: float | None = None

    def connected(self, now: float) -> None:
        """The broker let us in."""
        self._up_since = now

    def after_loss(self, now: float) -> float:
        """Full jitter (AWS Architecture Blog, 2015): uniform between 0 and a bound that doubles to its limit."""
        self._forget(now)
        bound = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**self._failures)
        self._failures = min(self._failures + 1, _MOST_DOUBLINGS)
        return self._jitter(0.0, bound)

    def after_takeover(self, now: float) -> float:
        """Another client has our name, and to come back throws it out: the longer it goes on, the longer we wait."""
        self._forget(now)
        bound = min(LONGEST_YIELD_S, FIRST_YIELD_S * 2**self._yields)
        self._yields = min(self._yields + 1, _MOST_DOUBLINGS)
        return self._jitter(bound / 2, bound)

    def _forget(self, now: float) -> None:
        """A connection that lasted says that what ended the ones before is gone."""
        lasted = 0.0 if self._up_since is None else now - self._up_since
        self._up_since = None
        if lasted >= STEADY_S:
            self._failures = 0
        if lasted >= LONGEST_YIELD_S:
            self._yields = 0
