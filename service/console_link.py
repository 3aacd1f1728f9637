"""A console's side of MQTT: send signed commands to one device and watch what it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from agent.errors import CommandError, NetworkError
from service.commands import MAX_ENVELOPE_BYTES
from service.config import Mqtt
from service.device_link import Address
from service.link import Connection, Message
from service.logs import logger
from service.payload import decode

MAX_SEEN_BYTES = 256 << 10  # the longest message a device sends
MAX_QUEUED_SEEN = 1000  # a watcher that does not keep up loses the newest rather than memory

log = logger("console")


@dataclass(frozen=True, slots=True)
class Seen:
    """One message of the device."""

    kind: str
    """`conn`, `birth`, `status`, `metrics`, `backfill` or `capability`."""
    name: str
    """Command type of a status or capability, group of metrics, else empty."""
    command_id: str
    """Of a status, else empty."""
    body: dict[str, object]
    retained: bool
    """It was there before we looked."""


class ConsoleLink:
    """An asynchronous context manager: connected inside the block, as far as there is a broker.

    Args:
        settings: broker, credentials and TLS.
        address: the device to talk to.
        client_id: of this console; must differ from every other client's.
    """

    def __init__(self, settings: Mqtt, address: Address, client_id: str) -> None:
        self._address = address
        self._up = asyncio.Event()
        self._seen: asyncio.Queue[Seen] = asyncio.Queue(MAX_QUEUED_SEEN)
        self._connection = Connection(
            settings,
            client_id,
            keep_session=False,
            on_up=self._connected,
            on_down=lambda _reason: self._up.clear(),
            on_message=self._take,
        )

    async def __aenter__(self) -> Self:
        self._connection.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._connection.stop()

    async def wait_connected(self, timeout_s: float) -> None:
        """Return once the broker is there.

        Raises:
            NetworkError: it was not there within `timeout_s`.
        """
        try:
            await asyncio.wait_for(self._up.wait(), timeout_s)
        except TimeoutError:
            raise NetworkError(f"no broker within {timeout_s:g} s", fix="Check host, port and credentials") from None

    async def send(
        self, command_type: str, command_id: str, envelope: bytes, *, expires_s: int, timeout_s: float = 30.0
    ) -> None:
        """Publish a command, retained until it expires; tried again over lost connections until confirmed.

        Raises:
            CommandError: the envelope is longer than a device reads.
            NetworkError: the broker did not confirm within `timeout_s`. The command may have arrived; sending the
                same bytes again is harmless.
        """
        if len(envelope) > MAX_ENVELOPE_BYTES:
            raise CommandError(f"a command of {len(envelope)} bytes, devices read {MAX_ENVELOPE_BYTES}")
        topic = self._address.topic("cmd", command_type, command_id, "req")
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
                while not await self._connection.publish(topic, envelope, expires_s=expires_s):
                    await asyncio.sleep(0.1)
                    await self._up.wait()
        except TimeoutError:
            raise NetworkError(f"the broker did not confirm the command within {timeout_s:g} s", where=topic) from None

    async def clear(self, command_type: str, command_id: str) -> bool:
        """Remove a retained request; True once the broker confirmed."""
        return await self._connection.publish(self._address.topic("cmd", command_type, command_id, "req"), b"")

    async def watch(self) -> AsyncIterator[Seen]:
        """What the device says, retained messages first; ends only with the caller."""
        while True:
            yield await self._seen.get()

    def _connected(self, _session_present: bool) -> None:  # noqa: FBT001 - a callback
        for levels in (("conn",), ("birth",), ("cmd", "+"), ("cmd", "+", "+", "sts"), ("m", "+")):
            self._connection.subscribe(self._address.topic(*levels))
        self._up.set()

    def _take(self, message: Message) -> None:
        self._connection.ack(message)
        seen = _read(message, len(self._address.topic()) + 1)
        if seen is not None:
            with contextlib.suppress(asyncio.QueueFull):
                self._seen.put_nowait(seen)


def _read(message: Message, prefix: int) -> Seen | None:
    levels = message.topic[prefix:].split("/")
    kind, name, command_id = "", "", ""
    match levels:
        case ["conn" | "birth" as kind]:
            pass
        case ["m", "backfill" as kind]:
            pass
        case ["m", name]:
            kind = "metrics"
        case ["cmd", name]:
            kind = "capability"
        case ["cmd", name, command_id, "sts"]:
            kind = "status"
    if not kind or not message.payload:
        return None
    body = read_body(message)
    return None if body is None else Seen(kind, name, command_id, body, message.retained)


def read_body(message: Message) -> dict[str, object] | None:
    """What a message of a device says; `None`, and a warning, where it cannot be read."""
    try:
        body = decode(message.payload, message.content_type, what=message.topic, max_bytes=MAX_SEEN_BYTES)
    except CommandError as error:
        log.warning("message refused", fault=str(error), topic=message.topic)
        return None
    return body if isinstance(body, dict) else None
