"""A console's side of MQTT for many boards: what all of them say, and signed commands to any of them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Self

from agent.errors import CommandError, NetworkError
from service.commands import MAX_ENVELOPE_BYTES
from service.config import NAME, Mqtt
from service.console_link import read_body
from service.device_link import Address
from service.fleet.boards import MAX_BOARDS
from service.link import Connection, Message

CONNECT_S = 10.0
SEND_S = 30.0  # for the broker to confirm one command, over lost connections
QUIET_S = 0.5  # retained messages come in one stream: after half a second without one they are all here
MOST_LOOK_S = 30.0  # for those of thousands of boards
RECEIVE_MAXIMUM = 65535
"""Retained messages come in one burst. What mosquitto may not send at once it queues, and drops beyond 1000."""
AT_A_TIME = 200  # boards whose statuses are asked for in one go: about 100 each are retained
STEP_S = 0.02  # between two requests on a paced link, beside what connecting took
ALL = "+"  # any board
STATUSES = "cmd/+/+/sts"
EVERYTHING = ("conn", "birth", "cmd/+", STATUSES, "a/+", "m/+")
FOR_A_LIST = ("conn", "birth", STATUSES, "a/+", "m/board")

Take = Callable[[str, "Mapping[str, object] | None", bool], None]


class Pace:
    """Asks for topic filters one after the other, each when what the one before brought has come."""

    def __init__(self, subscribe: Callable[[str], None]) -> None:
        self._subscribe = subscribe
        self._todo: deque[str] = deque()
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.latest = 0.0
        """When the latest retained message came, monotonic."""
        self.asks = True
        """Whether something is still to be asked for."""

    def begin(self, filters: Iterable[str], round_trip_s: float) -> None:
        """Ask for all, anew, on a new connection."""
        self.stop()
        self._todo = deque(filters)
        self.asks = True
        self._more.set()
        self._task = asyncio.get_running_loop().create_task(self._ask(STEP_S + round_trip_s))

    def add(self, topic_filter: str) -> None:
        """Ask for one more."""
        self._todo.append(topic_filter)
        self.asks = True
        self._more.set()

    def stop(self) -> None:
        """Ask for nothing more."""
        if self._task is not None:
            self._task.cancel()

    async def _ask(self, step_s: float) -> None:
        while True:
            await self._more.wait()
            for topic_filter in self._next():
                self._subscribe(topic_filter)
            self.latest = time.monotonic()
            while True:
                left = self.latest + step_s - time.monotonic()
                if left <= 0.0:
                    break
                await asyncio.sleep(left)
            if not self._todo:
                self._more.clear()
                self.asks = False

    def _next(self) -> list[str]:
        """Some boards' own filters at a time, but only one for all boards."""
        chosen: list[str] = []
        while self._todo and len(chosen) < AT_A_TIME:
            wide = f"/{ALL}/" in self._todo[0] and not self._todo[0].endswith(STATUSES)
            if wide and chosen:
                break
            chosen.append(self._todo.popleft())
            if wide:
                break
        return chosen


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
        paced: ask for one topic after the other, and for statuses board by board as boards are found, so that no
            broker's queue overflows with what thousands of boards left; else for all at once.
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
        paced: bool = False,
    ) -> None:
        self._tenant, self._give = tenant, take
        self._pace = Pace(self._subscribe) if paced else None
        if paced:
            topics = tuple(topic for topic in topics if topic != STATUSES)
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
            asked = self._pace is None or not self._pace.asks
            if now >= start + least_s and now >= self._latest + quiet and asked:
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
        if self._pace is not None:
            self._pace.begin(self._filters, self._connect_s)
        else:
            for topic_filter in self._filters:
                self._connection.subscribe(topic_filter)
        self._up.set()

    def _subscribe(self, topic_filter: str) -> None:
        if self._connection.connected:
            self._connection.subscribe(topic_filter)

    def _found(self, topic: str) -> None:
        """A board was heard of: ask for its statuses."""
        board = topic.removeprefix(f"temper/v1/{self._tenant}/").partition("/")[0]
        topic_filter = f"temper/v1/{self._tenant}/{board}/{STATUSES}"
        if topic_filter in self._filters or not NAME.fullmatch(board) or len(self._filters) > MAX_BOARDS:
            return
        self._filters[topic_filter] = None
        if self._pace is not None:
            self._pace.add(topic_filter)

    def _take(self, message: Message) -> None:
        self._connection.ack(message)
        if self._pace is not None:
            self._found(message.topic)
        if message.retained:
            self._latest = time.monotonic()
            if self._pace is not None:
                self._pace.latest = self._latest
        if not message.payload:
            self._give(message.topic, None, message.retained)
            return
        body = read_body(message)
        if body is None:
            self.refused += 1
        else:
            self._give(message.topic, body, message.retained)
