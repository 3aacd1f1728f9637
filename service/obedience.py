"""How soon the worker does as it is told: from the Reading behind an order to the worker obeying it."""

from __future__ import annotations

from bisect import insort
from dataclasses import replace

from agent.messages import Progress, Steer

MOST_OPEN = 64  # orders that nobody obeyed yet; one a second, and a step takes less than a minute
MOST_DELAYS = 1000  # of which the median is taken; beyond, the largest still counts


class Obedience:
    """Numbers the orders of one job and hears which are obeyed."""

    def __init__(self) -> None:
        self._number = 0
        self._open: dict[int, float] = {}
        self._delays: list[float] = []
        self._longest_s: float | None = None
        self._longest_step_s = 0.0

    def numbered(self, order: Steer, read_mono_s: float | None) -> Steer:
        """The order with a number of its own.

        Args:
            order: about to be sent.
            read_mono_s: when the board was read that led to it; `None`: its delay is not measured, because no step is
                under way or an operator gave it.
        """
        self._number += 1
        if read_mono_s is not None:
            self._open[self._number] = read_mono_s
            while len(self._open) > MOST_OPEN:
                del self._open[min(self._open)]
        return replace(order, number=self._number)

    def hear(self, message: Progress) -> None:
        """What training follows; orders that a later one overtook never were obeyed and do not count."""
        self._longest_step_s = max(self._longest_step_s, message.step_ms / 1e3)
        read_s = self._open.get(message.obeyed)
        if read_s is not None:
            delay = max(0.0, message.obeyed_mono_s - read_s)
            self._longest_s = max(delay, self._longest_s or 0.0)
            if len(self._delays) < MOST_DELAYS:
                insort(self._delays, delay)
        self._open = {number: read for number, read in self._open.items() if number > message.obeyed}

    def told(self) -> dict[str, object]:
        """As JSON values; `None` while no order was obeyed during training."""
        delays = self._delays
        return {
            "orders": self._number,
            "obey_s_median": delays[len(delays) // 2] if delays else None,
            "obey_s_max": self._longest_s,
            "longest_step_s": self._longest_step_s,
        }
