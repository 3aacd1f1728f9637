"""The store, read on threads: no query stands in the way of other pages."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any, TypeVar

from agent.errors import BoardError
from service.fleet.store import Store, open_store

T = TypeVar("T")
READERS = 2  # connections: a chart of a day does not hold up a list
MAX_WAITING = (
    200  # questions: fifty pages that ask anew at once. Whoever asked is often gone when a longer line is done
)


class Reads:
    """A few connections to one store; each does one thing at a time.

    Args:
        place: path or URL, see `open_store`.
    """

    def __init__(self, place: str) -> None:
        self._stores = [open_store(place) for _ in range(READERS)]
        self._free: asyncio.Queue[Store] = asyncio.Queue()
        self._at_work: set[asyncio.Future[Any]] = set()
        for store in self._stores:
            self._free.put_nowait(store)
        self._waiting = 0

    async def __call__(self, ask: Callable[[Store], T]) -> T:
        """What `ask` makes of the store, on a thread.

        Raises:
            BoardError: `busy`: too much is asked at once; and as the methods of `Store`.
            NetworkError: as those.
        """
        if self._waiting >= MAX_WAITING:
            what = "more is asked of the store at once than it answers"
            raise BoardError(what, fix="Try again in some seconds", reason="busy")
        self._waiting += 1
        try:
            store = await self._free.get()
        finally:
            self._waiting -= 1
        work = asyncio.ensure_future(asyncio.to_thread(ask, store))
        self._at_work.add(work)
        work.add_done_callback(functools.partial(self._give_back, store))
        return await asyncio.shield(work)  # who asked may leave: the thread goes on, and has the connection till then

    def _give_back(self, store: Store, work: asyncio.Future[Any]) -> None:
        self._at_work.discard(work)
        self._free.put_nowait(store)

    async def rest(self) -> None:
        """Return once no thread is at work on a connection."""
        if self._at_work:
            await asyncio.wait(self._at_work)

    def close(self) -> None:
        """Let go of the connections; after `rest`, where somebody may have left a question."""
        for store in self._stores:
            store.close()
