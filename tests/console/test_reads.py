"""The store's connections: each serves one question at a time, also when whoever asked has left."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from service.console.reads import READERS, Reads
from service.fleet.store import Store


def test_a_connection_is_free_again_only_when_its_thread_is_done(tmp_path: Path) -> None:
    go = threading.Event()
    used: list[Store] = []
    done: list[str] = []

    def slow(store: Store) -> None:
        used.append(store)
        go.wait(30)
        done.append("slow")

    def fast(store: Store) -> None:
        used.append(store)
        done.append("fast")

    async def play() -> None:
        reads = Reads(str(tmp_path / "store.sqlite"))
        left = [asyncio.create_task(reads(slow)) for _ in range(READERS)]
        while len(used) < READERS:  # noqa: ASYNC110 - threads tell nobody
            await asyncio.sleep(0.01)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        late = asyncio.create_task(reads(fast))
        closing = asyncio.create_task(reads.rest())
        await asyncio.sleep(0.05)
        assert done == []
        assert not closing.done()
        go.set()
        await late
        await closing
        await reads.rest()
        assert done[0] == "slow"
        assert used[READERS] in used[:READERS]
        reads.close()

    asyncio.run(play())
