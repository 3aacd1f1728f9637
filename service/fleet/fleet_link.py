"""A console's side of MQTT for many boards: what all of them say, and signed commands to any of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Self

from agent.errors import CommandError, NetworkError
from service.commands import MAX_ENVELOPE_BYTES
from service.config import Mqtt
from service.console_link import read_body
from service.device_link import Address
from service.link import Connection, Message

CONNECT_S = 10.0
SEND_S = 30.0  # for the broker to confirm one command, over lost connections
QUIET_S = 0.5  # retained messages come in one stream: after half a second without one they are all here
MOST_LOOK_S = 30.0  # for those of thousands of boards
RECEIVE_MAXIMUM = 1000  # retained messages of thousands of boards come without waiting for us at each twentieth
ALL = "+"  # any board
EVERYTHING = ("conn", "birth", "cmd/+", "cmd/+/+/sts", "a/+", "m/+")
COMMANDS = ("conn", "cmd/+/+/sts")

Take = Callable[[str, "Mapping[str, object] | None", bool], None]


class FleetLink:
    """An asynchronous context manager: connected inside the block, as far as there is a broker.

    Args:
        settings: broker, credentials and TLS.
        tenant: whose boards.
        client_id: of this console; must differ from every other client's.
        take: called for each message that can be read, on the loop: topic, body (`None` for an empty payload) and
            whether it was retained.
        boards: names to listen to; `ALL` for every board of the tenant.
        topics: below a board's root.
    """

    def __init__(
        self,
        settings: Mqtt,
        tenant: str,
        client_id: str,
        take: Take,
        *,
        boards: Iterable[str] = (ALL,),
        topics: tuple[str, ...] = EVERYTHING,
    ) -> None:
        self._tenant, self._give = tenant, take
        self._filters = dict.fromkeys(f"temper/v1/{tenant}/{board}/{topic}" for board in boards for topic in topics)
        self._up = asyncio.Event()
        self._latest = self._connect_s = 0.0
        self._begun = time.monotonic()
        self.connections = 0
        """Made so far; a broker may have lost what an earlier one gave it."""
        self.refused = 0
        """Messages that could not be read."""
        self._connection = Connection(
            replace(settings, receive_maximum=RECEIVE_MAXIMUM),
            client_id,
            keep_session=False,
            on_up=self._connected,
            on_down=lambda _reason: self._up.clear(),
            on_message=self._take,
        )

    async def __aenter__(self) -> Self:
        self._begun = time.monotonic()
        self._connection.start()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._connection.stop()

    @property
    def connected(self) -> bool:
        """Whether the broker is there right now."""
        return self._connection.connected

    async def wait_connected(self, timeout_s: float = CONNECT_S) -> None:
        """Return once the broker is there.

        Raises:
            NetworkError: it was not there within `timeout_s`.
        """
        try:
            await asyncio.wait_for(self._up.wait(), timeout_s)
        except TimeoutError:
            raise NetworkError(f"no broker within {timeout_s:g} s", fix="Check host, port and credentials") from None

    def listen(self, board: str, topic: str) -> None:
        """Also take a topic below a board's root, from now on and after each connect."""
        topic_filter = f"temper/v1/{self._tenant}/{board}/{topic}"
        if topic_filter not in self._filters:
            self._filters[topic_filter] = None
            if self._up.is_set():
                self._connection.subscribe(topic_filter)

    async def wait_quiet(self, least_s: float = 0.0, most_s: float = MOST_LOOK_S) -> None:
        """Return once the retained messages are here: none came for `QUIET_S` and what connecting took.

        Args:
            least_s: not before.
            most_s: not after, whatever comes.
        """
        start = self._latest = time.monotonic()
        quiet = QUIET_S + self._connect_s  # connecting took two round trips or more: the first message takes one
        while (now := time.monotonic()) < start + most_s:
            if now >= start + least_s and now >= self._latest + quiet:
                return
            await asyncio.sleep(QUIET_S / 10)

    async def send(
        self,
        device: str,
        command_type: str,
        command_id: str,
        envelope: bytes,
        *,
        expires_s: int,
        timeout_s: float = SEND_S,
    ) -> None:
        """Publish a command, retained until it expires; tried again over lost connections until confirmed.

        Raises:
            CommandError: the envelope is longer than a device reads.
            NetworkError: the broker did not confirm within `timeout_s`. The command may have arrived; sending the
                same bytes again is harmless.
        """
        if len(envelope) > MAX_ENVELOPE_BYTES:
            raise CommandError(f"a command of {len(envelope)} bytes, devices read {MAX_ENVELOPE_BYTES}")
        topic = Address(self._tenant, device).topic("cmd", command_type, command_id, "req")
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
                while not await self._connection.publish(topic, envelope, expires_s=expires_s):
                    await asyncio.sleep(0.1)
                    await self._up.wait()
        except TimeoutError:
            raise NetworkError(f"the broker did not confirm the command within {timeout_s:g} s", where=topic) from None

    async def clear(self, device: str, command_type: str, command_id: str) -> bool:
        """Remove a retained request; True once the broker confirmed."""
        topic = Address(self._tenant, device).topic("cmd", command_type, command_id, "req")
        return await self._connection.publish(topic, b"")

    def _connected(self, _session_present: bool) -> None:  # noqa: FBT001 - a callback
        self.connections += 1
        if self.connections == 1:
            self._connect_s = time.monotonic() - self._begun
        for topic_filter in self._filters:
            self._connection.subscribe(topic_filter)
        self._up.set()

    def _take(self, message: Message) -> None:
        self._connection.ack(message)
        if message.retained:
            self._latest = time.monotonic()
        if not message.payload:
            self._give(message.topic, None, message.retained)
            return
        body = read_body(message)
        if body is None:
            self.refused += 1
        else:
            self._give(message.topic, body, message.retained)
