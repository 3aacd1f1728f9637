"""A console's side of MQTT for one device: what it says, in order, and signed commands to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Self

from service.config import Mqtt
from service.device_link import Address
from service.fleet.fleet_link import CONNECT_S, SEND_S, STATUSES, FleetLink

MAX_QUEUED_SEEN = 1000  # a watcher that does not keep up loses the newest rather than memory
TOPICS = ("conn", "birth", "cmd/+", STATUSES, "m/+")


@dataclass(frozen=True, slots=True)
class Seen:
    """One message of the device."""

    kind: str
    """`conn`, `birth`, `status`, `metrics`, `backfill` or `capability`."""
    name: str
    """Command type of a status or capability, group of metrics, else empty."""
    command_id: str
    """Of a status, else empty."""
    body: Mapping[str, object]
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
        self._device = address.device
        self._seen: asyncio.Queue[Seen] = asyncio.Queue(MAX_QUEUED_SEEN)
        self._link = FleetLink(settings, address.tenant, client_id, self._take, boards=(address.device,), topics=TOPICS)

    async def __aenter__(self) -> Self:
        await self._link.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._link.__aexit__(*error)

    async def wait_connected(self, timeout_s: float = CONNECT_S) -> None:
        """See `FleetLink`."""
        await self._link.wait_connected(timeout_s)

    async def send(
        self, command_type: str, command_id: str, envelope: bytes, *, expires_s: int, timeout_s: float = SEND_S
    ) -> None:
        """See `FleetLink`."""
        await self._link.send(
            self._device, command_type, command_id, envelope, expires_s=expires_s, timeout_s=timeout_s
        )

    async def clear(self, command_type: str, command_id: str) -> None:
        """See `FleetLink`."""
        await self._link.clear(self._device, command_type, command_id)

    async def watch(self) -> AsyncIterator[Seen]:
        """What the device says, retained messages first; ends only with the caller."""
        while True:
            yield await self._seen.get()

    def _take(self, topic: str, body: Mapping[str, object] | None, retained: bool) -> None:  # noqa: FBT001 - a callback
        seen = None if body is None else _seen(topic.split("/")[4:], body, retained=retained)
        if seen is not None:
            with contextlib.suppress(asyncio.QueueFull):
                self._seen.put_nowait(seen)


def _seen(levels: list[str], body: Mapping[str, object], *, retained: bool) -> Seen | None:
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
    return Seen(kind, name, command_id, body, retained) if kind else None
