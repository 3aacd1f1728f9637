"""The store, read on threads: no query stands in the way of other pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from service.fleet.store import Store, open_store

T = TypeVar("T")
READERS = 2  # connections: a chart of a day does not hold up a list


class Reads:
    """A few connections to one store; each does one thing at a time.

    Args:
        place: path or URL, see `open_store`.
    """

    def __init__(self, place: str) -> None:
        self._stores = [open_store(place) for _ in range(READERS)]
        self._free: asyncio.Queue[Store] = asyncio.Queue()
        for store in self._stores:
            self._free.put_nowait(store)

    async def __call__(self, ask: Callable[[Store], T]) -> T:
        """What `ask` makes of the store, on a thread.

        Raises:
            BoardError, NetworkError: as the methods of `Store`.
        """
        store = await self._free.get()
        try:
            return await asyncio.to_thread(ask, store)
        finally:
            self._free.put_nowait(store)

    def close(self) -> None:
        """Let go of the connections."""
        for store in self._stores:
            store.close()
