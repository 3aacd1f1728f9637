"""`temperd ingest`: a telemetry consumer as a process."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import platform
import re
import signal
import sys
import time

from agent.errors import SpecError
from service.config import NAME
from service.fleet.access import find_access
from service.fleet.ingest import RECEIVE_MAXIMUM, Counts, Ingest, Plan
from service.fleet.store import open_store
from service.logs import configure

DAY_S = 86400.0
MAX_DAYS, MAX_GIB = 3650, 65536


def ingest(options: argparse.Namespace) -> int:
    """Consume until interrupted."""
    configure()
    for key in ("group", "name"):
        value = getattr(options, key) or _host()
        if not NAME.fullmatch(value):
            raise SpecError(f"{value[:80]!r} is no name: 1 to 63 of a-z, 0-9 and dash", where=f"--{key}")
        setattr(options, key, value)
    for key, most in (("keep_days", MAX_DAYS), ("keep_gib", MAX_GIB), ("every", DAY_S)):
        if not 0 < getattr(options, key) <= most:
            raise SpecError(f"{getattr(options, key)} is outside 0..{most}", where=f"--{key.replace('_', '-')}")
    access = find_access(options, os.environ)
    plan = Plan(
        group=options.group,
        name=options.name,
        tenant="+" if options.all_tenants else access.tenant,
        keep_s=options.keep_days * DAY_S,
        keep_bytes=int(options.keep_gib * (1 << 30)),
        leaving=options.leave,
    )
    settings = dataclasses.replace(access.mqtt, receive_maximum=RECEIVE_MAXIMUM)
    store = open_store(options.store)
    try:
        told = _say_json if options.json else _say
        consumer = Ingest(
            settings, store, plan, now=time.time, monotonic=time.monotonic, told=told, every_s=options.every
        )
        asyncio.run(_run(consumer))
    finally:
        store.close()
    return 0


async def _run(consumer: Ingest) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, consumer.stop)
    await consumer.run()


def _host() -> str:
    """This machine's name as one of ours."""
    return re.sub("[^a-z0-9-]+", "-", platform.node().lower()).strip("-")[:63] or "consumer"


def _say_json(counts: Counts) -> None:
    print(json.dumps({"ts": round(time.time(), 3), **counts.table()}, separators=(",", ":")), flush=True)


def _say(counts: Counts) -> None:
    refused = ", ".join(f"{reason} {number}" for reason, number in sorted(counts.refused.items())) or "0"
    line = (
        f"{'connected' if counts.connected else 'no broker'}; received {counts.received}, stored {counts.stored}, "
        f"again {counts.duplicates}, refused {refused}; "
        f"waiting {counts.waiting}, lag {counts.lag_s:.2f} s"
    )
    print(line, file=sys.stdout, flush=True)
