"""A network that breaks on demand, between a client and a broker.

By hand: python -m tests.simulators.bad_network PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Self

PIECE = 64 << 10


class BadNetwork:
    """Forwards a loopback port to another; an asynchronous context manager.

    Args:
        target: the port where the broker listens.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._open: set[asyncio.StreamWriter] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections = 0
        """Made so far."""
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def swallow(self) -> None:
        """From now on nothing passes and nobody is told: both sides think that the connection lives."""
        self._passing.clear()

    def heal(self) -> None:
        """What waited passes, and what comes passes too."""
        self._passing.set()

    def cut(self) -> None:
        """End every connection with a reset, on both sides."""
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, far_writer}
        for pair in ((reader, far_writer), (far_reader, writer)):
            task = asyncio.ensure_future(self._forward(*pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(PIECE):
                await self._passing.wait()
                writer.write(piece)
                await writer.drain()
        await self._passing.wait()  # an end is swallowed too
        writer.close()
        self._open.discard(writer)


async def _by_hand(target: int) -> None:
    async with BadNetwork(target) as network:
        print(f"127.0.0.1:{network.port} leads to {target}; s swallow, h heal, c cut")  # noqa: T201 - run by hand
        while line := await asyncio.to_thread(input, "> "):
            {"s": network.swallow, "h": network.heal, "c": network.cut}.get(line.strip(), lambda: None)()


if __name__ == "__main__":
    asyncio.run(_by_hand(int(sys.argv[1])))
