"""The console's parts, as every page finds them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.config import Mqtt
from service.console.act_sent import SentForms
from service.console.guard_rules import LOOPBACK_NAMES

if TYPE_CHECKING:
    from service.console.accounts import Accounts
    from service.console.audit import Audit
    from service.console.hub import Hub
    from service.console.reads import Reads
    from service.console.roll_outs import RollOuts
    from service.console.signer import Signer


@dataclass(frozen=True, slots=True)
class Settings:
    """What the console was started with.

    Attributes:
        mqtt: broker, credentials and TLS.
        tenant: whose boards.
        store: path or URL of the store, see `service.fleet.store.open_store`.
        state: folder of users, sessions and the audit trail.
        fleet_state: file of groups and roll-outs, shared with `temperd fleet`.
        key: file of the console key, or empty: then nothing can be sent.
        consume: write what boards say into the store; off where `temperd ingest` does.
        secure: browsers reach it over TLS only, ours or a proxy's: cookies say so.
        names: of this server in browsers' addresses; requests for others are refused.
        keep_s: telemetry older than this is forgotten, where the console consumes.
        keep_bytes: the oldest telemetry beyond it is forgotten, where the console consumes.
    """

    mqtt: Mqtt
    tenant: str
    store: str
    state: Path
    fleet_state: Path
    key: str = ""
    consume: bool = True
    secure: bool = False
    names: tuple[str, ...] = LOOPBACK_NAMES
    keep_s: float = 90 * 86400.0
    keep_bytes: int = 50 << 30


@dataclass(slots=True)
class Room:
    """The console's parts.

    Attributes:
        settings: see `Settings`.
        now: wall clock, seconds since 1970.
        monotonic: monotonic clock, seconds.
        hub: the fleet as it is now, live, and the way to the broker.
        reads: the store, read on threads.
        accounts: users and their sessions.
        audit: who did what, and why.
        signer: the console key.
        roll_outs: those at work in this process.
        sent: what forms sent, so that none sends twice.
        streams: requests that are answered without an end; they are cut when the console closes.
        closing: whether it does.
    """

    settings: Settings
    now: Callable[[], float]
    monotonic: Callable[[], float]
    hub: Hub
    reads: Reads
    accounts: Accounts
    audit: Audit
    signer: Signer
    roll_outs: RollOuts
    sent: SentForms = field(default_factory=SentForms)
    streams: set[asyncio.Task[Any]] = field(default_factory=set)
    closing: bool = False
