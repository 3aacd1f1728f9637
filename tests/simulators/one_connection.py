"""A `Connection` whose calls can be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from service.config import Mqtt
from service.link import CONNECT_LIMIT_S, Connection, Message

HANG_S = 60.0  # ends a test that would wait for ever; nothing is asserted about time
T = TypeVar("T")


def run(story: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def guarded() -> T:
        async with asyncio.timeout(HANG_S):
            return await story()

    return asyncio.run(guarded())


def soon(_low: float, high: float) -> float:
    return min(high, 0.05)


@dataclass
class Heard:
    """What a connection told, each kind in order."""

    ups: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)
    downs: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    troubles: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    messages: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)


def a_connection(
    mqtt: Mqtt,
    client_id: str = "one",
    *,
    keep_session: bool = False,
    jitter: Callable[[float, float], float] = soon,
    limit_s: float = CONNECT_LIMIT_S,
) -> tuple[Connection, Heard]:
    heard = Heard()
    connection = Connection(
        mqtt,
        client_id,
        keep_session=keep_session,
        on_up=heard.ups.put_nowait,
        on_down=heard.downs.put_nowait,
        on_message=heard.messages.put_nowait,
        on_trouble=heard.troubles.put_nowait,
        jitter=jitter,
        limit_s=limit_s,
    )
    return connection, heard


@asynccontextmanager
async def connected(
    mqtt: Mqtt,
    client_id: str = "one",
    *,
    keep_session: bool = False,
    jitter: Callable[[float, float], float] = soon,
) -> AsyncIterator[tuple[Connection, Heard]]:
    connection, heard = a_connection(mqtt, client_id, keep_session=keep_session, jitter=jitter)
    connection.start()
    try:
        await heard.ups.get()
        yield connection, heard
    finally:
        await connection.stop()


async def first_trouble(mqtt: Mqtt, limit_s: float = CONNECT_LIMIT_S) -> str:
    """Why there is no connection."""
    connection, heard = a_connection(mqtt, limit_s=limit_s)
    connection.start()
    try:
        return await heard.troubles.get()
    finally:
        await connection.stop()
