"""A console's side of MQTT for many boards: what all of them say, and signed commands to any of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Self

from agent.errors import CommandError, NetworkError
from service.commands import MAX_ENVELOPE_BYTES
from service.config import NAME, Mqtt
from service.device_link import Address
from service.fleet.boards import MAX_BOARDS
from service.fleet.pace import Pace
from service.link import MAX_PACKET_BYTES, Connection, Message
from service.logs import logger
from service.payload import decode

CONNECT_S = 10.0
SEND_S = 30.0  # for the broker to confirm one command, over lost connections
RETRY_S = 0.1  # after a broker that refused one
QUIET_S = 0.5  # retained messages come in one stream: after half a second without one they are all here
MOST_LOOK_S = 120.0  # for those of 20,000 boards on a busy laptop
RECEIVE_MAXIMUM = 65535  # retained messages come in one burst; what may not be sent at once is queued, or dropped
ALL = "+"  # any board
STATUSES = "cmd/+/+/sts"
BY_BOARD = ("birth", STATUSES)  # long or many: asked for board by board on a paced link
EVERYTHING = ("conn", "birth", "cmd/+", STATUSES, "a/+", "m/+")
FOR_A_LIST = ("conn", "birth", STATUSES, "a/+", "m/board")

log = logger("console")

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
        paced: ask for one topic after the other, and for what is long or many board by board as boards are found, so
            that no broker's queue overflows with what thousands of boards left; else for all at once.
    """

    def __init__(
        self,
        settings: Mqtt,
        tenant: str,
        client_id: str,
        take: Take,
        *,
        boards: Collection[str] = (ALL,),
        topics: tuple[str, ...] = EVERYTHING,
        paced: bool = False,
    ) -> None:
        self._tenant, self._give = tenant, take
        self._pace = Pace(self._subscribe) if paced else None
        self._found: set[str] = set()
        if paced:
            topics = tuple(topic for topic in topics if topic not in BY_BOARD)
        self._filters = dict.fromkeys(f"temper/v1/{tenant}/{board}/{topic}" for board in boards for topic in topics)
        self._up = asyncio.Event()
        self._latest = self._connect_s = 0.0
        self._begun = time.monotonic()
        for board in boards:
            self._find(board)
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
        if self._pace is not None:
            self._pace.stop()
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
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError:
            what = f"no broker within {timeout_s:g} s: {self._connection.why}"
            raise NetworkError(what, fix="Check host, port and credentials; --help has the options") from None

    def listen(self, board: str, topic: str) -> None:
        """Also take a topic below a board's root, from now on and after each connect."""
        topic_filter = f"temper/v1/{self._tenant}/{board}/{topic}"
        if topic_filter not in self._filters:
            self._filters[topic_filter] = None
            if self._up.is_set():
                self._connection.subscribe(topic_filter)

    def unlisten(self, board: str, topic: str) -> None:
        """Take a topic that `listen` was told of no more; what is on its way still comes."""
        topic_filter = f"temper/v1/{self._tenant}/{board}/{topic}"
        if topic_filter in self._filters:
            del self._filters[topic_filter]
            if self._up.is_set():
                self._connection.unsubscribe(topic_filter)

    def ask_again(self, board: str, topic: str) -> None:
        """Have the broker send again what it retains below a board's root; without effect while there is no broker."""
        if self._up.is_set():
            self._connection.subscribe(f"temper/v1/{self._tenant}/{board}/{topic}")

    async def wait_quiet(self, least_s: float = 0.0, most_s: float = MOST_LOOK_S) -> bool:
        """Return once the retained messages are here: connected, none came for `QUIET_S` and what connecting took.

        Args:
            least_s: not before.
            most_s: not after, whatever comes.

        Returns:
            False where messages still came after `most_s`, or the broker was gone.
        """
        start = self._latest = time.monotonic()
        quiet = QUIET_S + self._connect_s  # connecting took two round trips or more: the first message takes one
        while (now := time.monotonic()) < start + most_s:
            asked = self._up.is_set() and (self._pace is None or not self._pace.asks)
            if now >= start + least_s and now >= self._latest + quiet and asked:
                return True
            await asyncio.sleep(QUIET_S / 10)
        return False

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
        await self._request(device, command_type, command_id, envelope, expires_s, timeout_s)

    async def clear(self, device: str, command_type: str, command_id: str, *, timeout_s: float = SEND_S) -> None:
        """Remove a retained request; tried again over lost connections until confirmed.

        Raises:
            NetworkError: the broker did not confirm within `timeout_s`: the request may still be there.
        """
        await self._request(device, command_type, command_id, b"", 0, timeout_s)

    async def _request(
        self, device: str, command_type: str, command_id: str, payload: bytes, expires_s: int, timeout_s: float
    ) -> None:
        topic = Address(self._tenant, device).topic("cmd", command_type, command_id, "req")
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
                while not await self._connection.publish(topic, payload, expires_s=expires_s):
                    await asyncio.sleep(RETRY_S)
                    await self._up.wait()
        except TimeoutError:
            raise NetworkError(f"the broker did not confirm the command within {timeout_s:g} s", where=topic) from None

    def _connected(self, _session_present: bool) -> None:  # noqa: FBT001 - a callback
        self.connections += 1
        if self.connections == 1:
            self._connect_s = time.monotonic() - self._begun
        if self._pace is not None:
            self._pace.begin(self._filters, self._connect_s)
        else:
            for topic_filter in self._filters:
                self._connection.subscribe(topic_filter)
        self._up.set()

    def _subscribe(self, topic_filter: str) -> None:
        if self._connection.connected:
            self._connection.subscribe(topic_filter)

    def _find(self, board: str) -> None:
        """On a paced link: a board was heard of; ask for what is asked board by board."""
        if self._pace is None or board in self._found or len(self._found) >= MAX_BOARDS or not NAME.fullmatch(board):
            return
        self._found.add(board)
        fresh = [f"temper/v1/{self._tenant}/{board}/{topic}" for topic in BY_BOARD]
        self._filters.update(dict.fromkeys(fresh))
        if self._up.is_set():
            self._pace.add(fresh)

    def _take(self, message: Message) -> None:
        self._connection.ack(message)
        if self._pace is not None:
            self._find(message.topic.removeprefix(f"temper/v1/{self._tenant}/").partition("/")[0])
        if message.retained:
            self._latest = time.monotonic()
            if self._pace is not None:
                self._pace.came(self._latest)
        if not message.payload:
            self._give(message.topic, None, message.retained)
            return
        body = _read(message)
        if body is None:
            self.refused += 1
        else:
            self._give(message.topic, body, message.retained)


def _read(message: Message) -> dict[str, object] | None:
    """What a message of a device says; `None`, and a warning, where it cannot be read."""
    try:
        body = decode(message.payload, message.content_type, what=message.topic, max_bytes=MAX_PACKET_BYTES)
    except CommandError as error:
        log.warning("message refused", fault=str(error), topic=message.topic)
        return None
    return body if isinstance(body, dict) else None
