"""Asking a broker what it retains of one board, and waiting for the answer, which nobody marks as its end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from service.fleet.fleet_link import FleetLink

ANSWER_S = 3.0  # for what a broker retains of one board
LINGER_S = 0.3  # after the last message of an answer
CAPABILITIES, BIRTH = "cmd/+", "birth"


class Questions:
    """Those that are open.

    Args:
        link: to the broker; without one no question is asked.
        monotonic: clock, seconds.
    """

    def __init__(self, link: FleetLink, monotonic: Callable[[], float]) -> None:
        self._link, self._monotonic = link, monotonic
        self._open: Counter[str] = Counter()
        self._came: dict[str, float] = {}

    def came(self, name: str) -> None:
        """Something of what a board may have been asked for came."""
        if name in self._open:
            self._came[name] = self._monotonic()

    async def ask(self, name: str, topic: str) -> None:
        """Have the broker tell again `CAPABILITIES` or `BIRTH` of a board, and wait for it, not for long."""
        if not self._link.connected:
            return
        begun = self._monotonic()
        self._open[name] += 1
        if topic == BIRTH:
            self._link.ask_again(name, topic)  # it is listened to anyway
        else:
            self._link.listen(name, topic)
        try:
            while (now := self._monotonic()) < begun + ANSWER_S:
                await asyncio.sleep(LINGER_S / 10)
                if now > self._came.get(name, now) + LINGER_S:
                    return
        finally:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]
                self._came.pop(name, None)
                self._link.unlisten(name, CAPABILITIES)
