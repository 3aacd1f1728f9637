"""The telemetry consumer: messages from the broker into a store, acknowledged once the store has them.

Telemetry comes through a shared subscription: of all consumers in one group, each message goes to one. What is retained
(presence, birth, statuses, alarms) comes to every consumer in the order it was said; each writes it, and the store
keeps what is newer. So no consumer is special, and the last to go leaves nothing undone.

Nothing is lost between broker and store: a message stays with the broker until the batch it is in was committed. With
too many that wait we stop reading, so a store that is slow or away fills the broker's queue, not our memory.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import NamedTuple

from agent.errors import TemperdError
from service.config import Mqtt
from service.fleet.ingest_read import Reader, RefusedError
from service.fleet.ingest_truth import Truth
from service.fleet.store import MAX_DEVICES, Batch, Fact, Presence, Sample, Store, key
from service.link import Connection, Message
from service.logs import logger

RECEIVE_MAXIMUM = 1000  # unacknowledged messages: a second of 10,000 devices
MAX_WAITING = 2 * RECEIVE_MAXIMUM  # beyond it we do not read: brokers may send more, and QoS 0 has no maximum
MAX_WAITING_BYTES = 32 << 20  # the same for what they hold: backfills have 64 KiB, and hostile messages 128
FACT_BYTES = 600  # of one in memory, beside its text: a backfill of a thousand empty readings is mostly that
BATCH_BYTES = 4 << 20  # of one commit: a database takes them twice
BATCH_MESSAGES = 500  # one commit: half of what may be under way, so that the broker sends on meanwhile
BATCH_S = 0.2  # how long the first message of a batch waits for others
FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 30.0  # a store that is away
QUIET_S = 1.0  # a broker that has something queued sends it at once
TRIM_EVERY_S = 60.0
AHEAD_S = 86400.0  # a clock that is further ahead is wrong, or a lie

log = logger("ingest")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a consumer takes and keeps.

    Attributes:
        group: consumers of one group share the telemetry; another group gets all of it again.
        name: of this consumer, other than every other's of the group; the broker keeps its session under it.
        tenant: whose devices, or `+` for all.
        keep_s: telemetry that was received longer ago is forgotten.
        keep_bytes: a larger store forgets its oldest telemetry.
        leaving: take what the broker has queued for us, ask for nothing more, and end.
    """

    group: str
    name: str
    tenant: str
    keep_s: float
    keep_bytes: int
    leaving: bool = False

    @property
    def client_id(self) -> str:
        """Of the session, whose filters are those of the plan: with another tenant it is another one."""
        tenant = "all.tenants" if self.tenant == "+" else self.tenant  # a dot, which no tenant has
        return f"temperd-ingest-{self.group}-{tenant}-{self.name}"

    @property
    def root(self) -> str:
        """The filter of all its boards."""
        return f"temper/v1/{self.tenant}/+"

    @property
    def shared(self) -> str:
        """The filter of the telemetry."""
        return f"$share/{self.group}/{self.root}/m/#"


@dataclass(slots=True)
class Counts:
    """Since the start; `lag_s` and `waiting` are of the last moment."""

    received: int = 0
    """Messages from the broker."""
    stored: int = 0
    """Telemetry messages that are new in the store, those of backfills counted one by one."""
    duplicates: int = 0
    """Telemetry that was there already."""
    truths: int = 0
    """Presences, births, statuses and alarms that were written."""
    refused: Counter[str] = field(default_factory=Counter)
    """By reason."""
    strangers: int = 0
    """Facts of devices for which the store has no room."""
    acknowledged: int = 0
    batches: int = 0
    retries: int = 0
    """Batches that the store did not take at first."""
    waiting: int = 0
    """Messages that are not in the store yet."""
    lag_s: float = 0.0
    """From the time in the newest live telemetry to its commit, as far as both clocks agree."""
    connected: bool = False

    def table(self) -> dict[str, object]:
        """As JSON has it."""
        return asdict(self) | {"refused": dict(self.refused)}


class _Waiting(NamedTuple):
    message: Message
    """Without its payload."""
    facts: list[Fact]
    weight: int
    """Bytes that it takes, about."""


class Ingest:
    """One consumer.

    Args:
        settings: broker, credentials and TLS.
        store: where facts go; used from one thread at a time.
        plan: what is taken.
        now: wall clock, seconds since 1970.
        monotonic: monotonic clock, seconds.
        told: is called every `every_s` seconds, and at the end.
        every_s: see `told`.
    """

    def __init__(
        self,
        settings: Mqtt,
        store: Store,
        plan: Plan,
        *,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        told: Callable[[Counts], None],
        every_s: float,
    ) -> None:
        self.counts, self._every_s = Counts(), every_s
        self._store, self._plan, self._now, self._monotonic, self._told = store, plan, now, monotonic, told
        self._reader = Reader()
        self._boards: set[tuple[str, str]] = set()
        """Of which presences came: whose statuses are to be asked for."""
        self._trimmed, self._trimming = monotonic(), False
        self._known = self._marked = False
        """What this session's broker retains is in the store; and the store says so."""
        self._anew_since: float | None = None
        """When we asked for all that the broker retains, until it was read."""
        self._waiting: deque[_Waiting] = deque()
        self._weight = 0
        self._retained = self._retained_stored = 0
        """Messages that were retained: came, and are in the store."""
        self._arrived = asyncio.Event()
        self._stopping = asyncio.Event()
        self._connection = Connection(
            settings,
            plan.client_id,
            keep_session=True,
            on_up=self._greet,
            on_down=self._lost,
            on_message=self._take,
        )
        self._truth = Truth(self._connection, plan.root, lambda: self._boards, self._progress)

    def stop(self) -> None:
        """End `run` once what waits is stored; no more is read, or a broker that floods us had no end."""
        self._stopping.set()
        self._connection.listen(on=False)
        self._arrived.set()

    async def run(self) -> Counts:
        """Consume until `stop`; when leaving, until nothing is left."""
        with contextlib.suppress(TemperdError):  # else it is read again, which costs time alone
            self._known = self._marked = await asyncio.to_thread(self._store.has_read, self._plan.client_id)
        self._connection.start()
        beside = [asyncio.ensure_future(self._tell())]
        if self._plan.leaving:
            beside.append(asyncio.ensure_future(self._leave()))
        try:
            while not self._stopping.is_set():
                await self._mark()
                if self._monotonic() - self._trimmed >= TRIM_EVERY_S:
                    self._trimmed, self._trimming = self._monotonic(), True
                    await self._forget_alarms()
                await self._next_batch(0.0 if self._trimming else TRIM_EVERY_S)
                if self._trimming:
                    self._trimming = await self._trim()
            await self._mark()
        finally:
            self._truth.stop()
            for task in beside:
                task.cancel()
            self._told(self.snapshot())  # before the connection ends: the last line is not to say that there is none
            await self._connection.stop()
        return self.counts

    def snapshot(self) -> Counts:
        """The counts of this moment."""
        self.counts.waiting, self.counts.connected = len(self._waiting), self._connection.connected
        return self.counts

    def _progress(self) -> int:
        """Telemetry does not count: of a large fleet some always waits."""
        return self._retained_stored if self._retained_stored == self._retained else -1

    # From the broker.

    def _greet(self, session_present: bool) -> None:  # noqa: FBT001 - a callback
        if self._stopping.is_set():
            self._connection.listen(on=False)
            return
        if self._plan.leaving:
            self._connection.unsubscribe(self._plan.shared)
            self._truth.leave()
        else:  # with a session too: the last connection may have ended before the broker read this
            self._connection.subscribe(self._plan.shared)
            self._known = session_present and (self._known or self._truth.whole)
            if self._known:
                self._truth.listen()
            else:
                if self._anew_since is None or not session_present:
                    self._anew_since = self._now()
                self._truth.ask()
        log.info("consuming", group=self._plan.group, name=self._plan.name, session_present=session_present)

    def _lost(self, _reason: str) -> None:
        # What waits is stored all the same; the broker sends it again, and the store knows it then.
        self.counts.connected = False
        self._truth.stop()

    def _take(self, message: Message) -> None:
        self.counts.received += 1
        try:
            facts = self._reader.read(message.topic, message.payload, message.content_type)
        except RefusedError as error:
            if not self.counts.refused[error.reason]:  # later ones are counted
                log.warning("message refused", reason=error.reason, why=str(error), topic=message.topic)
            self.counts.refused[error.reason] += 1
            facts = []
        facts = [self._sane(fact) for fact in facts]
        if len(self._boards) < MAX_DEVICES:
            self._boards.update(key(fact) for fact in facts if isinstance(fact, Presence))
        weight = len(message.payload) + FACT_BYTES * len(facts)
        self._waiting.append(_Waiting(replace(message, payload=b""), facts, weight))
        self._weight += weight
        self._retained += message.retained
        if len(self._waiting) >= MAX_WAITING or self._weight >= MAX_WAITING_BYTES:
            self._connection.listen(on=False)
        if len(self._waiting) == 1 or self._full:
            self._arrived.set()

    def _sane(self, fact: Fact) -> Fact:
        """A presence of the far future becomes one of now: the store would take every later one for older."""
        if isinstance(fact, Presence) and fact.ts > self._now() + AHEAD_S:
            return fact._replace(ts=self._now())
        return fact

    # Into the store.

    @property
    def _full(self) -> bool:
        """Whether what waits fills a batch."""
        return len(self._waiting) >= BATCH_MESSAGES or self._weight >= BATCH_BYTES

    async def _next_batch(self, patience_s: float) -> None:
        if not self._waiting and not self._stopping.is_set():
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._arrived.wait()
        if self._waiting and not self._full and not self._stopping.is_set():
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BATCH_S):
                    await self._arrived.wait()
        while self._waiting:
            await self._write(self._portion())
            if not self._full and not self._stopping.is_set():
                break

    def _portion(self) -> int:
        """How many of the oldest messages go into one commit."""
        number = weight = 0
        for waiting in islice(self._waiting, BATCH_MESSAGES):
            weight += waiting.weight
            if number and weight > BATCH_BYTES:
                break
            number += 1
        return number

    async def _write(self, number: int) -> None:
        """Commit the oldest `number` messages, then acknowledge them."""
        taken = list(islice(self._waiting, number))
        if not await self._commit([fact for waiting in taken for fact in waiting.facts]):
            return
        for waiting in taken:
            self._waiting.popleft()
            self._weight -= waiting.weight
            self._retained_stored += waiting.message.retained
            self._connection.ack(waiting.message)
        room = len(self._waiting) <= RECEIVE_MAXIMUM and self._weight <= MAX_WAITING_BYTES // 2
        if room and not self._stopping.is_set():
            self._connection.listen(on=True)
        self.counts.acknowledged += number
        self.counts.batches += 1
        newest = _newest_live(taken)
        if newest is not None:
            self.counts.lag_s = round(self._now() - newest.ts_ms / 1000, 3)

    async def _commit(self, facts: list[Fact]) -> bool:
        """True once the store has them; False when we are to end before."""
        batch = Batch()
        for fact in facts:
            batch.add(fact)
        delay = FIRST_RETRY_S
        while True:
            try:
                written = await asyncio.to_thread(self._store.write, batch, self._now())
            except TemperdError as error:
                self.counts.retries += 1
                log.warning("the store does not take a batch, trying on", why=str(error), facts=len(facts))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._stopping.wait()
                    self._waiting.clear()  # not acknowledged: the broker has all of it
                    self._weight = 0
                    return False
                delay = min(2 * delay, LONGEST_RETRY_S)
                continue
            counts = self.counts
            counts.stored += written.samples
            counts.duplicates += written.duplicates
            counts.strangers += written.strangers
            counts.truths += sum(not isinstance(fact, Sample) for fact in facts)
            return True

    async def _mark(self) -> None:
        """Let the store know whether all is read: a broker keeps a session also for who was killed meanwhile."""
        read = self._known or self._truth.whole
        if self._plan.leaving or read is self._marked:
            return
        try:
            await asyncio.to_thread(self._store.note_read, self._plan.client_id, whole=read)
            self._marked = read
        except TemperdError as error:
            log.warning("what was read cannot be noted", why=str(error))

    async def _forget_alarms(self) -> None:
        """What was cleared while the broker kept no session for us, once what is still raised has come again."""
        since = self._anew_since
        if since is None or not self._truth.whole or self._now() - since < TRIM_EVERY_S:
            return
        self._anew_since = None
        try:
            await asyncio.to_thread(self._store.forget_alarms, self._plan.tenant.strip("+"), since)
        except TemperdError as error:
            self._anew_since = since
            log.warning("old alarms cannot be forgotten", why=str(error))

    async def _trim(self) -> bool:
        """Forget a slice of what is too old, or make some digests, between two batches; False when nothing is left."""
        now = self._now()
        try:
            if await asyncio.to_thread(self._store.trim, now - self._plan.keep_s, self._plan.keep_bytes):
                return True
            return await asyncio.to_thread(self._store.condense, now) > 0
        except TemperdError as error:
            log.warning("old telemetry cannot be forgotten or condensed", why=str(error))
            return False

    async def _leave(self) -> None:
        """Stop once connected and quiet: what is queued comes at the pace at which we acknowledge."""
        before = -1
        while not (self._connection.connected and not self._waiting and self.counts.received == before):
            before = self.counts.received
            await asyncio.sleep(QUIET_S)
        self.stop()

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            self._told(self.snapshot())


def _newest_live(taken: list[_Waiting]) -> Sample | None:
    """The last telemetry message that is no backfill."""
    for message, facts, _ in reversed(taken):
        if len(facts) == 1 and isinstance(facts[0], Sample) and not message.topic.endswith("/backfill"):
            return facts[0]
    return None
