"""Telemetry between the daemon and the link: how often, in which form, and where it goes while the broker is away.

Live messages go out at once, or into the outbox where they cannot: without a broker, while the connection does not
drain, and with QoS 1 when the broker did not confirm. What the outbox holds goes out later (`service.backfill`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from service.config import Telemetry as Settings
from service.outbox import Outbox
from service.outbox_segment import Record
from service.payload import CONTENT_TYPES, encode, encode_json
from service.statuses import UNSYNCHRONISED, Clock

OFFLINE_ACTIVE_S = 10.0  # the least between two messages of a group for the disk: 64 MiB then hold weeks of training
LINK_S = 60.0  # between two messages of the group `link`
SLOWEST_S = 60.0  # back-pressure goes no further
BACKLOG = 20  # publications on their way; beyond it the connection does not drain, and telemetry gives way
TICK_SLACK_S = 0.05  # a tick that comes a little early counts

Values = Mapping[str, object]


class Wire(Protocol):
    """The link, as far as telemetry needs it."""

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""

    @property
    def unconfirmed(self) -> int:
        """Publications that the broker has not confirmed, or that have not left."""

    def publish_lossy(self, group: str, payload: bytes, content_type: str) -> bool:
        """Publish `m/<group>` at QoS 0; False when it did not leave."""

    def publish_telemetry(self, group: str, payload: bytes, content_type: str) -> asyncio.Future[bool]:
        """Publish `m/<group>` at QoS 1; a future that gives True once confirmed."""


class Rate:
    """When the next message is due.

    Args:
        active_s: seconds between two while something is at work.
        idle_s: seconds between two else.
    """

    def __init__(self, active_s: float, idle_s: float) -> None:
        self._active_s, self._idle_s = active_s, idle_s
        self._factor = 1.0
        self._last_s = -float("inf")

    def period_s(self, *, working: bool, online: bool) -> float:
        """Seconds between two messages now."""
        if not working:
            return self._idle_s
        base = self._active_s if online else max(self._active_s, OFFLINE_ACTIVE_S)
        return max(base, min(SLOWEST_S, base * self._factor))

    def due(self, mono_s: float, *, working: bool, online: bool, drains: bool) -> bool:
        """Whether one is due now; if so, the next one is counted from here.

        With each message that meets a connection that does not drain the period doubles; with each that meets one that
        does, it halves.
        """
        if mono_s - self._last_s < self.period_s(working=working, online=online) - TICK_SLACK_S:
            return False
        self._last_s = mono_s
        self._factor = max(1.0, self._factor / 2) if drains else min(SLOWEST_S, self._factor * 2)
        return True


class Telemetry:
    """See the module.

    Args:
        settings: the section of the configuration.
        wire: the link.
        outbox: what waits on the disk.
        boot_id: of the running kernel.
        clock: see `Clock`.
    """

    def __init__(self, settings: Settings, wire: Wire, outbox: Outbox, boot_id: str, clock: Clock) -> None:
        self._wire, self._outbox, self._boot_id, self._clock = wire, outbox, boot_id, clock
        self._confirmed = settings.qos == 1
        self._content_type = CONTENT_TYPES[settings.format]
        self._rates: dict[str, Rate] = {}
        self._settings = settings
        self._begun = False

    def begin(self) -> None:
        """There will be a broker. Before, and in a daemon that runs one job without one, nothing is sent or kept."""
        self._begun = True

    @property
    def drains(self) -> bool:
        """Whether what is published leaves."""
        return self._wire.unconfirmed < BACKLOG

    def due(self, group: str, *, working: bool) -> bool:
        """Whether a message of `group` is due."""
        rate = self._rates.get(group)
        if rate is None:
            active_s, idle_s = self._settings.active_s, self._settings.idle_s
            rate = self._rates[group] = Rate(active_s, max(LINK_S, idle_s) if group == "link" else idle_s)
        return rate.due(self._clock.mono(), working=working, online=self._wire.connected, drains=self.drains)

    def publish(self, group: str, values: Values, *, event: bool = False) -> None:
        """Send a message now, or keep it.

        Args:
            group: of docs/mqtt.md.
            values: its keys.
            event: it tells of something that happened once, so it goes last when the outbox is full.
        """
        if not self._begun:
            return
        seq = self._outbox.counters.next_seq()
        message: dict[str, object] = {
            "seq": seq,
            "boot_id": self._boot_id,
            "ts": self._clock.now(),
            "mono_ms": int(self._clock.mono() * 1000),
        }
        if not self._clock.synchronised():
            message["clock"] = UNSYNCHRONISED
        keep = partial(self._keep, seq, {"group": group, **message, "values": values}, event=event)
        if self._wire.connected and self.drains:
            whole = {**message, "dropped_total": self._outbox.counters.dropped_total, "values": values}
            self._send(group, encode(whole, self._content_type), keep)
        else:
            keep()

    def _send(self, group: str, payload: bytes, keep: Callable[[], None]) -> None:
        """Send it, or `keep` it: at once where it cannot leave, later where the broker does not confirm."""
        if not self._confirmed:
            if not self._wire.publish_lossy(group, payload, self._content_type):
                keep()
            return

        def answered(confirmed: asyncio.Future[bool]) -> None:
            if not confirmed.result():
                keep()

        self._wire.publish_telemetry(group, payload, self._content_type).add_done_callback(answered)

    def _keep(self, seq: int, message: Mapping[str, object], *, event: bool) -> None:
        self._outbox.add(Record(seq, encode_json(message)), self._clock.mono(), event=event)

    def shown(self) -> dict[str, object]:
        """For the live view: `figures`, and `fault`: why the disk does not take what cannot be sent."""
        return {**self.figures(), "fault": self._outbox.fault}

    def figures(self) -> dict[str, object]:
        """Its keys of the group `link`."""
        counters = self._outbox.counters
        return {
            "dropped_total": counters.dropped_total,
            "outbox_messages": self._outbox.records,
            "outbox_bytes": self._outbox.disk_bytes,
            "backfilled_total": counters.backfilled_total,
        }
