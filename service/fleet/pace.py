"""Asking a broker for retained messages no faster than it can send them.

A broker sends all that a topic filter fits in one burst, and drops what neither the connection nor its queue takes:
mosquitto beyond 1000 messages, in silence. So filters go out in portions, each when what the one before brought has
come, and portions are as large as their yield allows.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable

TARGET = 500  # retained messages of one portion: half of mosquitto's queue
FIRST, MOST = 20, 200  # filters of a portion
STEP_S = 0.02  # between two portions, beside what connecting took
ANY, BOARD_LEVEL = "+", 3  # a filter for all boards goes alone: nobody knows what it brings


class Pace:
    """Portions of topic filters.

    Args:
        subscribe: asks for one; without effect while there is no broker.
    """

    def __init__(self, subscribe: Callable[[str], None]) -> None:
        self._subscribe = subscribe
        self._todo: deque[str] = deque()
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._latest, self._yield = 0.0, 0
        self.asks = True
        """Whether something is still to be asked for."""

    def begin(self, filters: Iterable[str], round_trip_s: float) -> None:
        """Ask for all, anew, on a new connection."""
        self.stop()
        self._todo = deque(filters)
        self._go_on()
        self._task = asyncio.get_running_loop().create_task(self._ask(STEP_S + round_trip_s))

    def add(self, filters: Iterable[str]) -> None:
        """Ask for more."""
        self._todo.extend(filters)
        self._go_on()

    def came(self, mono_s: float) -> None:
        """A retained message came."""
        self._latest = mono_s
        self._yield += 1

    def stop(self) -> None:
        """Ask for nothing more."""
        if self._task is not None:
            self._task.cancel()

    def _go_on(self) -> None:
        self.asks = True
        self._more.set()

    async def _ask(self, step_s: float) -> None:
        size = FIRST
        while True:
            await self._more.wait()
            chosen = self._portion(size)
            self._latest, self._yield = time.monotonic(), 0
            for topic_filter in chosen:
                self._subscribe(topic_filter)
            while True:
                left = self._latest + step_s - time.monotonic()
                if left <= 0.0:
                    break
                await asyncio.sleep(left)
            size = next_size(size, self._yield, len(chosen))
            if not self._todo:
                self._more.clear()
                self.asks = False

    def _portion(self, size: int) -> list[str]:
        chosen: list[str] = []
        while self._todo and len(chosen) < size:
            wide = self._todo[0].split("/")[BOARD_LEVEL] == ANY
            if wide and chosen:
                break
            chosen.append(self._todo.popleft())
            if wide:
                break
        return chosen


def next_size(size: int, came: int, asked: int) -> int:
    """How many filters go next: what `TARGET` messages come to by the portion before, at most twice as many."""
    return max(1, min(MOST, 2 * size, TARGET * max(1, asked) // max(came, 1)))
