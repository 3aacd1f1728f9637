"""What the outbox holds goes to the broker: oldest first, confirmed, paced, after everything that is new."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Protocol

from service.config import Telemetry
from service.outbox import Outbox
from service.outbox_segment import Record
from service.payload import CBOR, CONTENT_TYPES, encode, encode_json
from service.statuses import UNSYNCHRONISED, Clock

GROUP = "backfill"
MOST_BYTES = 64 << 10  # of one message
LEAST_BYTES = 4 << 10  # a slow connection is not kept busy for long: what is new would wait behind it
HEAD_BYTES = 512  # room for what stands around the messages
QUICK_S, SLOW_S = 0.5, 2.0  # confirmed within: the next one is larger; not within: smaller
MOST_BESIDE = 5  # publications on their way; with more, the backfill waits: statuses and what is new come first
SETTLE_S = 2.0  # after a connect: statuses of a time without a broker are told first
RETRY_S, LONGEST_RETRY_S = 5.0, 300.0  # after a message that was not confirmed; a broker may refuse it for ever
_UNDATED = f'"clock":"{UNSYNCHRONISED}"'.encode()  # as it stands in a record


class Wire(Protocol):
    """The link, as far as the backfill needs it."""

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""

    @property
    def unconfirmed(self) -> int:
        """Publications that the broker has not confirmed, or that have not left."""

    @property
    def most_bytes(self) -> int:
        """The longest payload that the broker takes."""

    def publish_telemetry(self, group: str, payload: bytes, content_type: str) -> asyncio.Future[bool]:
        """Publish `m/<group>` at QoS 1; a future that gives True once confirmed."""


class Backfill:
    """See the module.

    Args:
        outbox: what waits.
        wire: the link.
        boot_id: of the running kernel.
        settings: form and pace.
        clock: see `Clock`.
        sleep: waits so many of its seconds.
    """

    def __init__(
        self,
        outbox: Outbox,
        wire: Wire,
        boot_id: str,
        settings: Telemetry,
        clock: Clock,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._outbox, self._wire, self._boot_id = outbox, wire, boot_id
        self._content_type, self._period_s = CONTENT_TYPES[settings.format], 1 / settings.backfill_per_s
        self._clock, self._mono, self._sleep = clock, clock.mono, sleep
        self._size = LEAST_BYTES
        self._retry_s = RETRY_S
        self._asked = asyncio.Event()
        self._since_s: float | None = None

    def tick(self) -> None:
        """Look whether there is something to send; call about once a second."""
        if not self._wire.connected:
            self._since_s = None
            return
        now = self._mono()
        self._since_s = now if self._since_s is None else self._since_s
        if now - self._since_s >= SETTLE_S and self._outbox.records:
            self._asked.set()

    async def run(self) -> None:
        """Send whenever there is something to send; ends only by being canceled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            while self._wire.connected and self._outbox.records:
                await self._turn()

    async def _turn(self) -> None:
        """One message, and the pause after it."""
        began = self._mono()
        busy = self._wire.unconfirmed > MOST_BESIDE
        room = max(1, min(self._size, self._wire.most_bytes) - HEAD_BYTES)
        records = [] if busy else self._outbox.take(room)
        if not records:
            await self._sleep(self._period_s)
            return
        arrived = await self._send(records)
        took = self._mono() - began
        self._resize(took if arrived else SLOW_S)
        pause_s = max(0.0, self._period_s - took) if arrived else self._retry_s
        self._retry_s = RETRY_S if arrived else min(LONGEST_RETRY_S, self._retry_s * 2)
        await self._sleep(pause_s)

    async def _send(self, records: list[Record]) -> bool:
        """Whether the broker confirmed them. Canceled, they count as not arrived."""
        arrived, lost = 0, 0
        try:
            payload = self._message(records)
            if len(payload) > min(MOST_BYTES, self._wire.most_bytes):
                lost = int(len(records) == 1)  # this broker takes no message that could hold it
            elif await self._wire.publish_telemetry(GROUP, payload, self._content_type):
                arrived = len(records)
        finally:
            self._outbox.settle(arrived=arrived, lost=lost)
        return arrived > 0

    def _message(self, records: list[Record]) -> bytes:
        head = {
            "historical": True,
            "boot_id": self._boot_id,
            "dropped_total": self._outbox.counters.dropped_total,
        }
        if self._content_type == CBOR:
            return encode({**head, "messages": [json.loads(self._dated(record)) for record in records]}, CBOR)
        texts = b",".join(map(self._dated, records))  # they are JSON already
        return encode_json(head)[:-1] + b',"messages":[' + texts + b"]}"

    def _dated(self, record: Record) -> bytes:
        """The record; one of a time at which this boot did not know the hour gets the right one now, if it is known."""
        if _UNDATED not in record.text or not self._clock.synchronised():
            return record.text
        message = json.loads(record.text)
        if message["boot_id"] != self._boot_id or message.get("clock") != UNSYNCHRONISED:
            return record.text
        del message["clock"]
        ago_s = self._clock.mono() - message["mono_ms"] / 1000
        return encode_json({**message, "ts": self._clock.now() - ago_s})

    def _resize(self, took_s: float) -> None:
        if took_s <= QUICK_S:
            self._size = min(MOST_BYTES, self._size * 2)
        elif took_s >= SLOW_S:
            self._size = max(LEAST_BYTES, self._size // 2)
