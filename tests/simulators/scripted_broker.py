"""Brokers that answer with any bytes: the hostile ones that no real broker sends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

WELCOME = b"\x20\x03\x00\x00\x00"  # CONNACK of MQTT 5: no session, success, no properties


class ScriptedBroker:
    """Answers each connection once something has come.

    Args:
        answer: what is sent.
        drip_s: seconds between two bytes of it, over and over again; 0 sends all at once, and once.
    """

    def __init__(self, answer: bytes, drip_s: float = 0.0) -> None:
        self.answer = answer
        self._drip_s = drip_s
        self.port = 0
        self.served: asyncio.Queue[None] = asyncio.Queue()
        """One for each connection."""
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[ScriptedBroker]:
        """Listen on `port` until the block ends."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(server.sockets[0].getsockname()[1])
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            self._tasks.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        self.served.put_nowait(None)
        for byte in itertools.cycle(self.answer) if self._drip_s else ():
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(self._drip_s)
        writer.write(self.answer)
        while await reader.read(1024):
            pass


class SubscriptionJudge(ScriptedBroker):
    """Lets everybody in, and answers the next SUBSCRIBE with the next of these reason codes (MQTT 5, 3.9.3)."""

    def __init__(self, *reasons: int) -> None:
        super().__init__(WELCOME)
        self._reasons = list(reasons)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(self.answer)
        while packet := await reader.read(1024):
            if packet[0] == 0x82:  # one packet at a time: our clients have nothing else to say here
                writer.write(b"\x90\x04" + packet[2:4] + b"\x00" + bytes([self._reasons.pop(0)]))
            elif packet[0] == 0xC0:
                writer.write(b"\xd0\x00")


class EndlessTalk(ScriptedBroker):
    """Lets everybody in, and then publishes (QoS 0) as fast as it is read, whatever is asked.

    Args:
        topic: of every publication.
        payload: of every publication; less than 100 bytes with the topic.
    """

    def __init__(self, topic: str, payload: bytes) -> None:
        body = len(topic).to_bytes(2) + topic.encode() + b"\x00" + payload
        super().__init__(WELCOME + (b"\x30" + bytes([len(body)]) + body) * 500)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(self.answer)
        while True:
            writer.write(self.answer[len(WELCOME) :])
            await writer.drain()


class EndlessFrame(ScriptedBroker):
    """Speaks websockets, and sends a frame of 2^40 bytes: WELCOME, then PINGRESPs, which MQTT does not refuse."""

    def __init__(self) -> None:
        super().__init__(WELCOME)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        key = next(line.split(": ")[1] for line in request.split("\r\n") if line.startswith("Sec-WebSocket-Key"))
        writer.write(_accepted(key) + b"\x82\x7f" + (1 << 40).to_bytes(8, "big") + self.answer)
        while True:
            writer.write(b"\xd0\x00" * 8192)
            await writer.drain()


def _accepted(key: str) -> bytes:
    """RFC 6455, 4.2.2."""
    proof = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()  # noqa: S324 - as the RFC says
    lines = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")
    rest = (f"Sec-WebSocket-Accept: {base64.b64encode(proof).decode()}", "Sec-WebSocket-Protocol: mqtt")
    return "\r\n".join((*lines, *rest, "", "")).encode()
