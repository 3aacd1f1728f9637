"""What a broker retains, asked for in pieces: all at once would overflow its queue, which drops in silence.

10,000 boards leave 10,000 presences, births and some alarms, and up to a hundred statuses each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from service.link import Connection

AT_A_TIME = 200  # boards whose statuses are asked for in one go: 20,000 at most
QUIET_S = 0.3  # a broker sends what it retains in one stream
STATUSES = "cmd/+/+/sts"
WHOLE = ("conn", "birth", "a/+")


class Truth:
    """Asks a new session's broker for what it retains.

    Args:
        connection: of the consumer.
        root: `temper/v1/<tenant or +>/+`.
        boards: tenant and name of all boards heard of so far.
        progress: changes with every retained message that came, and is -1 while some of them are not stored.
    """

    def __init__(
        self,
        connection: Connection,
        root: str,
        boards: Callable[[], Iterable[tuple[str, str]]],
        progress: Callable[[], int],
    ) -> None:
        self._connection, self._root, self._boards, self._progress = connection, root, boards, progress
        self._task: asyncio.Task[None] | None = None
        self.whole = False
        """Everything that was retained has come since `ask`."""

    def listen(self) -> None:
        """Filters of every session; call after each connect. Old statuses come with `ask` alone."""
        self._connection.subscribe(f"{self._root}/{STATUSES}", retained="never")
        for levels in WHOLE:
            self._connection.subscribe(f"{self._root}/{levels}", retained="once")

    def leave(self) -> None:
        """Ask for nothing any more."""
        self.stop()
        for levels in (STATUSES, *WHOLE):
            self._connection.unsubscribe(f"{self._root}/{levels}")

    def ask(self) -> None:
        """Begin, also anew: one kind after the other, then statuses board by board."""
        self.stop()
        self.whole = False
        self._connection.subscribe(f"{self._root}/{STATUSES}", retained="never")
        self._task = asyncio.get_running_loop().create_task(self._ask())

    def stop(self) -> None:
        """Leave off, as the connection is gone."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _ask(self) -> None:
        for levels in WHOLE:
            self._connection.subscribe(f"{self._root}/{levels}")
            await self._quiet()
        boards = sorted(self._boards())
        for place in range(0, len(boards), AT_A_TIME):
            filters = [f"temper/v1/{tenant}/{name}/{STATUSES}" for tenant, name in boards[place : place + AT_A_TIME]]
            for topic_filter in filters:
                self._connection.subscribe(topic_filter)
            await self._quiet()
            for topic_filter in filters:
                self._connection.unsubscribe(topic_filter)
        self.whole = True

    async def _quiet(self) -> None:
        """Until nothing came for a moment, and all that came is stored."""
        before = -2
        while (now := self._progress()) != before or now < 0:
            before = now
            await asyncio.sleep(QUIET_S)
