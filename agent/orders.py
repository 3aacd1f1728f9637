"""How a worker obeys between two pieces of work, in every stage that has no steps of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from agent.messages import Message, Steer, Waits
from agent.trainer import PAUSE_POLL_S, JobEndedError


class Orders(Protocol):
    """Where the daemon's orders arrive."""

    def steer(self) -> Steer:
        """The latest order."""

    def verified(self) -> None:
        """The frozen weights were verified as ordered."""


class Obedience:
    """Waits and ends as ordered; nothing is kept, because nothing would be lost.

    Args:
        orders: see `Orders`.
        emit: sends a message to the daemon.
        ask: asks the daemon for a stage.
    """

    def __init__(self, orders: Orders, emit: Callable[[Message], None], ask: Callable[[str, str], None]) -> None:
        self._orders, self._emit, self._ask = orders, emit, ask

    def enter(self, stage: str, detail: str) -> None:
        """Ask for a stage, and obey in it before anything is done.

        Raises:
            JobEndedError: an order ends the job.
        """
        self._ask(stage, detail)
        self.obey()

    def obey(self) -> float:
        """Wait out a pause, and tell of it; the seconds that it took.

        Raises:
            JobEndedError: an order ends the job.
        """
        order, rested_s = self._orders.steer(), 0.0
        if order.action == "PAUSE":
            began = time.monotonic()
            self._emit(Waits(resting=True, rule=order.rule))
            while (order := self._orders.steer()).action == "PAUSE":
                time.sleep(PAUSE_POLL_S)
            self._emit(Waits(resting=False, rule=order.rule))
            rested_s = time.monotonic() - began
        if order.action == "ABORT":
            raise JobEndedError("the job was ended", where=order.rule, reason=order.rule)
        return rested_s

    def nap(self, seconds: float) -> None:
        """Wait so many seconds, as for the next attempt at the network, and obey meanwhile.

        Raises:
            JobEndedError: an order ends the job.
        """
        end = time.monotonic() + seconds
        self.obey()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, PAUSE_POLL_S))
            self.obey()
