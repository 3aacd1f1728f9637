"""The console on a demo's fleet: a port that is free, the demo's key, and what the demo heard before it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import select
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from agent.errors import BoardError
from service.broker import LOOPBACK
from service.cli_console import DEFAULT_PORT, EXTRA
from service.config import Mqtt
from service.console_link import Seen
from service.fleet.ingest_read import Reader, RefusedError
from service.fleet.store import Batch, open_store

if TYPE_CHECKING:
    from service.console.room import Settings

ANSWER_S = 30.0  # who looks at the terminal has answered by then; a script that cannot answer goes on
STORE, FLEET, STATE, TENANT = "store.sqlite", "fleet.sqlite", "console-state", "default"
WHO = "demo"  # in the audit trail: not one of the console's users
MAX_HEARD = 20_000  # messages of a demo that are kept for the charts: three a second for an hour and a half


class Heard(NamedTuple):
    """A message of a board."""

    board: str
    topic: str
    """Below the board's root."""
    body: Mapping[str, object]
    at: float
    """When it came, seconds since 1970."""


def installed() -> bool:
    """Whether what the console needs is there."""
    return all(importlib.util.find_spec(name) for name in EXTRA)


def wants_to_look() -> bool:
    """Ask at the terminal; no answer within `ANSWER_S` seconds, or none at all, is a no."""
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        return False
    print("look at it in a browser? [y/N] ", end="", flush=True)
    ready, _, _ = select.select([sys.stdin], [], [], ANSWER_S)
    if not ready:
        print()
        return False
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def heard_of(board: str, seen: Seen) -> Heard | None:
    """What a demo heard, as it came; `None`: nothing that a store keeps."""
    topics = {"conn": "conn", "birth": "birth", "metrics": f"m/{seen.name}", "backfill": "m/backfill"}
    topic = f"cmd/{seen.name}/{seen.command_id}/sts" if seen.kind == "status" else topics.get(seen.kind, "")
    return Heard(board, topic, seen.body, time.time()) if topic else None


def keep(folder: Path, heard: Iterable[Heard]) -> None:
    """Write what was heard into the demo's store, in the order in which it came.

    Raises:
        BoardError: the disk fails.
    """
    reader, batch = Reader(), Batch()
    for message in heard:
        payload = json.dumps(message.body).encode()
        try:
            for fact in reader.read(f"temper/v1/{TENANT}/{message.board}/{message.topic}", payload, "application/json"):
                batch.add(fact)
        except RefusedError:
            continue  # nothing that a store takes
    store = open_store(str(folder / STORE))
    try:
        store.write(batch, time.time())
    finally:
        store.close()


def record(folder: Path, kind: str, board: str, command: str, args: Mapping[str, object]) -> None:
    """Tell the audit trail of a command that the demo sent, before it is sent.

    Raises:
        BoardError: the disk fails.
    """
    from service.console.audit import Audit  # noqa: PLC0415 - extra `console`

    audit = Audit(folder / STATE, time.time)
    try:
        audit.write(WHO, kind, boards=(board,), commands=(command,), details={"args": dict(args)})
    finally:
        audit.close()


def settings_of(folder: Path, broker_port: int, key: Path) -> Settings:
    """What the console is started with: all it keeps lies in the demo's folder."""
    from service.console.room import Settings  # noqa: PLC0415 - extra `console`

    broker = Mqtt(host=LOOPBACK, port=broker_port)
    return Settings(broker, TENANT, str(folder / STORE), folder / STATE, folder / FLEET, str(key))


async def serve_console(settings: Settings, say: Callable[[str], None], until: asyncio.Event | None = None) -> None:
    """Serve the console on loopback until Ctrl-C, SIGTERM or an event.

    Args:
        settings: see `settings_of`.
        say: tells a line: where it is, and the set-up link.
        until: ends it.

    Raises:
        BoardError: a file cannot be used.
    """
    from service.console.serve import Listening, serve  # noqa: PLC0415 - extra `console`

    for port in (DEFAULT_PORT, 0):
        try:
            await serve(
                settings, Listening(LOOPBACK, port), now=time.time, monotonic=time.monotonic, say=say, until=until
            )
        except BoardError as error:
            if port and error.code == "port-taken":
                say(f"port {DEFAULT_PORT} is taken, so another one is used")
                continue
            raise
        return
