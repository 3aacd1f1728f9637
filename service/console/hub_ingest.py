"""The console's own consumer: what boards say goes into its store, as `temperd ingest` does it."""

from __future__ import annotations

import asyncio
import hashlib
import platform
import re
from collections.abc import Callable
from dataclasses import replace

from agent.errors import TemperdError
from service.console.room import Settings
from service.fleet.ingest import RECEIVE_MAXIMUM, Counts, Ingest, Plan
from service.fleet.store import open_store
from service.logs import logger

AGAIN_S = 30.0  # a store that cannot be opened: somebody makes room, or starts the database
LEAVE_S = 15.0  # for what waits to be stored at the end
EVERY_S = 5.0  # between two looks at the counts
LONGEST_HOST = 40  # of a machine's name: with what is added it is one of ours

log = logger("console")


class Consumer:
    """An `Ingest` for as long as `run` runs, in a group of its own: other consumers get all they got before.

    Args:
        settings: of the console.
        now: wall clock, seconds since 1970.
        monotonic: monotonic clock, seconds.
    """

    def __init__(self, settings: Settings, *, now: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._settings, self._now, self._monotonic = settings, now, monotonic
        self._ingest: Ingest | None = None
        self._task: asyncio.Task[None] | None = None
        self.trouble = ""
        """Why nothing is being stored; empty while it is."""
        self.counts = Counts()
        """As of some seconds ago."""

    def start(self) -> None:
        """Begin, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="consumer")
        self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Store what waits, and end."""
        if self._task is None:
            return
        if self._ingest is not None:
            self._ingest.stop()
        else:
            self._task.cancel()
        _, late = await asyncio.wait([self._task], timeout=LEAVE_S)
        for task in late:  # what was not acknowledged is with the broker
            task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if fault := say_fault(task):
            self.trouble = f"nothing is stored any more: {fault}"

    async def _run(self) -> None:
        while True:
            try:
                await self._consume()
            except TemperdError as error:
                self.trouble = str(error)
                log.warning("the store cannot be opened, trying on", why=str(error))
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def _consume(self) -> None:
        store = await asyncio.to_thread(open_store, self._settings.store)
        try:
            self._ingest = Ingest(
                replace(self._settings.mqtt, receive_maximum=RECEIVE_MAXIMUM),
                store,
                plan_of(self._settings),
                now=self._now,
                monotonic=self._monotonic,
                told=self._told,
                every_s=EVERY_S,
            )
            self.trouble, self.counts = "", Counts()
            await self._ingest.run()
        finally:
            self._ingest = None
            store.close()

    def _told(self, counts: Counts) -> None:
        if counts.batches > self.counts.batches:
            self.trouble = ""
        elif self.trouble or counts.retries > self.counts.retries:  # half a minute may lie between two tries
            self.trouble = f"the store takes nothing: {counts.waiting} messages wait"
        self.counts = replace(counts)


def say_fault(task: asyncio.Task[None]) -> str:
    """Log what ended a part that was to go on; what it was, empty where nothing did."""
    fault = None if task.cancelled() else task.exception()
    if fault is None:
        return ""
    log.error("a part of the console has ended: start it again", part=task.get_name(), exc_info=fault)
    return f"{type(fault).__name__}: {fault}"[:200]


def plan_of(settings: Settings) -> Plan:
    """What the consumer takes, under a name that stays over restarts: the broker keeps its session."""
    host = re.sub("[^a-z0-9-]+", "-", platform.node().lower()).strip("-")[:LONGEST_HOST] or "host"
    own = hashlib.blake2b(str(settings.state.resolve()).encode(), digest_size=4).hexdigest()
    name = f"console-{host}-{own}"  # two consoles of one machine share nothing
    return Plan(group=name, name=name, tenant=settings.tenant, keep_s=settings.keep_s, keep_bytes=settings.keep_bytes)
