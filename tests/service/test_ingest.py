"""The consumer against a real broker: what is said is stored once, also by several, also over a crash of anybody."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.errors import BoardError
from service.config import Mqtt
from service.fleet import ingest
from service.fleet import store_sqlite_sql as statements
from service.fleet.ingest import MAX_WAITING, RECEIVE_MAXIMUM, Ingest, Plan
from service.fleet.store import Alarm, Batch, Filter, Sample, Store, Written, open_store
from service.link import Connection
from service.link_client import PACKETS_IN_A_ROW
from tests.simulators.mosquitto import Mosquitto, find_mosquitto
from tests.simulators.scripted_broker import EndlessTalk

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed (make tools)")

LIMIT_S = 60.0
ROOT = "temper/v1/acme"
SETTINGS = "max_queued_messages 100000\nset_tcp_nodelay true\n"
TS = 1_790_000_000.0


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path, SETTINGS)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(str(tmp_path / "fleet.sqlite"))
    yield made
    made.close()


class Device:
    """What publishes; any number of boards by one connection."""

    def __init__(self, port: int) -> None:
        self._up = asyncio.Event()
        self.connection = Connection(
            Mqtt(host="127.0.0.1", port=port),
            f"devices-{time.monotonic_ns()}",
            keep_session=False,
            on_up=lambda _present: self._up.set(),
            on_down=lambda _why: self._up.clear(),
            on_message=lambda _message: None,
            jitter=lambda low, _high: low,
        )

    async def say(self, topic: str, body: object, *, retain: bool = False) -> None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        await self._up.wait()
        told = self.connection.publish(f"{ROOT}/{topic}", payload, retain=retain)
        assert await asyncio.wait_for(told, LIMIT_S)

    async def telemetry(self, device: str, seqs: range) -> None:
        for seq in seqs:
            await self.say(f"{device}/m/board", message(seq))


def message(seq: int) -> dict[str, Any]:
    return {"seq": seq, "boot_id": "b", "ts": TS + seq, "mono_ms": seq, "dropped_total": 0, "values": {"n": seq}}


@asynccontextmanager
async def device(port: int) -> AsyncIterator[Device]:
    made = Device(port)
    made.connection.start()
    try:
        yield made
    finally:
        await made.connection.stop()


def consumer(
    port: int, store: Store, name: str = "one", *, leaving: bool = False, now: Callable[[], float] = lambda: TS
) -> Ingest:
    return Ingest(
        Mqtt(host="127.0.0.1", port=port, receive_maximum=RECEIVE_MAXIMUM),
        store,
        Plan(group="g", name=name, tenant="acme", keep_s=86400.0 * 90, keep_bytes=1 << 40, leaving=leaving),
        now=now,
        monotonic=time.monotonic,
        told=lambda _counts: None,
        every_s=0.05,
    )


@asynccontextmanager
async def running(made: Ingest) -> AsyncIterator[Ingest]:
    task = asyncio.ensure_future(made.run())
    try:
        await until(lambda: made.snapshot().connected)
        yield made
    finally:
        made.stop()
        await asyncio.wait_for(task, LIMIT_S)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():  # noqa: ASYNC110 - what is waited for is elsewhere: a broker, a database, a process
            await asyncio.sleep(0.02)


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(story(), 2 * LIMIT_S)

    asyncio.run(limited())


def test_all_that_a_device_says_is_in_the_store(broker: Mosquitto, store: Store) -> None:
    async def story() -> None:
        conn = {"online": True, "session": 1, "connection": 1, "boot_id": "b", "ts": TS}
        alarm = {"type": "hot", "severity": "warning", "since": TS, "ts": TS, "reason": "x", "evidence": {}}
        async with device(broker.port) as boards:
            await boards.say("pi-1/conn", conn, retain=True)  # before there is a consumer
            await boards.say("pi-1/a/hot", alarm, retain=True)
            async with running(consumer(broker.port, store)) as made:
                await boards.telemetry("pi-1", range(1, 6))
                backfill = [{"group": "board", **message(n)} for n in range(4, 9)]
                await boards.say("pi-1/m/backfill", {"historical": True, "messages": backfill})
                await boards.say("pi-1/m/board", b"{")
                await until(lambda: made.counts.acknowledged >= 9)
                assert made.counts.stored == 8
                assert made.counts.duplicates == 2
                assert dict(made.counts.refused) == {"malformed": 1}
                assert made.counts.truths == 2

    play(story)
    assert store.count() == 8
    assert [row.name for row in store.devices(Filter(online=True, alarmed=True), TS)] == ["pi-1"]
    assert [value for _, value in store.series("acme", "pi-1", "board", "n", TS, TS + 99)] == list(range(1, 9))


def test_two_consumers_share_the_telemetry_and_both_know_who_is_online(broker: Mosquitto, store: Store) -> None:
    other = open_store(str(store._path))  # type: ignore[attr-defined]

    async def story() -> None:
        async with (
            device(broker.port) as boards,
            running(consumer(broker.port, store, "one")) as one,
            running(consumer(broker.port, other, "two")) as two,
        ):
            await boards.telemetry("pi-1", range(200))
            conn = {"online": True, "session": 1, "connection": 1, "boot_id": "b", "ts": TS}
            await boards.say("pi-1/conn", conn, retain=True)
            await until(lambda: one.counts.stored + two.counts.stored == 200)
            await until(lambda: one.counts.truths == two.counts.truths == 1)
            assert min(one.counts.stored, two.counts.stored) >= 60
            assert one.counts.duplicates + two.counts.duplicates == 0

    play(story)
    other.close()
    assert store.count() == 200


def test_what_comes_while_no_consumer_is_there_waits_at_the_broker(broker: Mosquitto, store: Store) -> None:
    async def story() -> None:
        async with device(broker.port) as boards:
            async with running(consumer(broker.port, store)) as made:
                await boards.telemetry("pi-1", range(10))
                await until(lambda: made.counts.stored == 10)
            await boards.telemetry("pi-1", range(10, 400))
            async with running(consumer(broker.port, store)) as made:
                await until(lambda: made.counts.stored == 390)

    play(story)
    assert store.count() == 400


def test_a_consumer_that_leaves_takes_its_queue_along_and_leaves_the_rest_to_the_others(
    broker: Mosquitto, store: Store
) -> None:
    other = open_store(str(store._path))  # type: ignore[attr-defined]

    async def story() -> None:
        async with device(broker.port) as boards, running(consumer(broker.port, store, "one")) as one:
            async with running(consumer(broker.port, other, "two")):
                pass
            await boards.telemetry("pi-1", range(40))  # half of it for the one that is away
            await until(lambda: one.counts.stored)
            leaving = consumer(broker.port, other, "two", leaving=True)
            await asyncio.wait_for(leaving.run(), LIMIT_S)
            await until(lambda: one.counts.stored + leaving.counts.stored == 40)
            assert leaving.counts.stored >= 10
            await boards.telemetry("pi-1", range(40, 80))
            await until(lambda: one.counts.stored + leaving.counts.stored == 80)

    play(story)
    other.close()


def test_what_is_retained_is_read_once_a_session_not_once_a_connection(broker: Mosquitto, store: Store) -> None:
    async def story() -> None:
        conn = {"online": True, "session": 1, "connection": 1, "boot_id": "b", "ts": TS}
        async with device(broker.port) as boards:
            await boards.say("pi-1/conn", conn, retain=True)
            for number in range(3):
                command_id = f"01990000-0000-7000-8000-00000000000{number}"
                status = {"id": command_id, "status": "succeeded", "version": 3, "ts": TS}
                await boards.say(f"pi-1/cmd/scrub/{command_id}/sts", status, retain=True)
            async with running(consumer(broker.port, store)) as made:
                await until(lambda: made._truth.whole)
                assert made.counts.truths == 4
                assert len(store.statuses("acme", "pi-1")) == 3
                live = {"id": command_id, "status": "succeeded", "version": 4, "ts": TS}
                await boards.say(f"pi-1/cmd/scrub/{command_id}/sts", live, retain=True)
                await until(lambda: made.counts.truths == 5)
            async with running(consumer(broker.port, store)) as made:
                await boards.telemetry("pi-1", range(5))
                await until(lambda: made.counts.stored == 5)
                assert made.counts.truths == 0
            async with running(consumer(broker.port, store, "another")) as made:
                await until(lambda: made.counts.truths == 4)

    play(story)


def test_what_is_retained_is_read_beside_telemetry_that_never_rests(broker: Mosquitto, store: Store) -> None:
    async def story() -> None:
        async with device(broker.port) as boards, device(broker.port) as busy:
            await retain_all(boards, "pi-1")

            async def without_end() -> None:
                for start in range(0, 10**9, 10):
                    await busy.telemetry("pi-2", range(start, start + 10))

            flood = asyncio.ensure_future(without_end())
            async with running(consumer(broker.port, store)) as made:
                await until(lambda: made.counts.stored)
                await until(lambda: made._truth.whole)
                assert made.counts.truths == 3
                assert not flood.done()
            flood.cancel()

    play(story)
    assert len(store.statuses("acme", "pi-1")) == 1
    assert len(store.alarms("acme", "pi-1")) == 1


def test_what_was_being_read_when_the_connection_broke_is_read_with_the_next(broker: Mosquitto, store: Store) -> None:
    async def story() -> None:
        async with device(broker.port) as boards:
            await retain_all(boards, "pi-1")
            async with running(consumer(broker.port, store)) as made:
                await until(lambda: made.counts.truths)
                assert not made._truth.whole
                made._connection._client.abort()
                await until(lambda: made._connection.connections == 2)
                await until(lambda: made._truth.whole)

    play(story)
    assert len(store.statuses("acme", "pi-1")) == 1
    assert len(store.alarms("acme", "pi-1")) == 1


def test_a_consumer_that_ended_while_it_read_reads_on_and_one_with_another_store_reads_again(
    broker: Mosquitto, store: Store, tmp_path: Path
) -> None:
    other = open_store(str(tmp_path / "other.sqlite"))

    async def story() -> None:
        async with device(broker.port) as boards:
            await retain_all(boards, "pi-1")
            async with running(consumer(broker.port, store)) as made:
                await until(lambda: made.counts.truths)
                assert not made._truth.whole
            for place in (store, other):
                async with running(consumer(broker.port, place)) as made:
                    await until(lambda: made._truth.whole)

    play(story)
    for place in (store, other):
        assert [row.name for row in place.devices(Filter(online=True, alarmed=True), TS)] == ["pi-1"]
        assert len(place.statuses("acme", "pi-1")) == 1
    other.close()


async def retain_all(boards: Device, name: str) -> None:
    """A presence, an alarm and a status."""
    await boards.say(f"{name}/conn", {"online": True, "session": 1, "connection": 1, "ts": TS}, retain=True)
    await boards.say(f"{name}/a/hot", {"type": "hot", "severity": "warning", "since": TS, "ts": TS}, retain=True)
    command_id = "01990000-0000-7000-8000-000000000000"
    status = {"id": command_id, "status": "succeeded", "version": 3, "ts": TS}
    await boards.say(f"{name}/cmd/scrub/{command_id}/sts", status, retain=True)


def test_a_broker_that_is_killed_costs_nothing_that_a_device_says_again(broker: Mosquitto, store: Store) -> None:
    async def story() -> None:
        async with device(broker.port) as boards, running(consumer(broker.port, store)) as made:
            await boards.telemetry("pi-1", range(20))
            await until(lambda: made.counts.stored == 20)
            broker.kill()
            await until(lambda: not made.snapshot().connected and not boards.connection.connected)
            broker.start()
            await until(lambda: made.snapshot().connected)
            await boards.telemetry("pi-1", range(10, 40))
            await until(lambda: made.counts.stored == 40)
            assert made.counts.duplicates == 10

    play(story)


class Refusing:
    """A store that is full until told otherwise."""

    def __init__(self, store: Store) -> None:
        self._store, self.full, self.asked, self.failed = store, True, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write(self, batch: Batch, received: float) -> Written:
        self.asked += 1
        if self.full:
            self.failed += 1
            raise BoardError("the store has no room", reason="no-space")
        return self._store.write(batch, received)


def test_a_store_that_is_full_holds_the_broker_back_and_gets_all_of_it_later(broker: Mosquitto, store: Store) -> None:
    refusing = Refusing(store)
    many = RECEIVE_MAXIMUM + 500

    async def story() -> None:
        async with device(broker.port) as boards, running(consumer(broker.port, refusing)) as made:  # type: ignore[arg-type]
            sending = [boards.telemetry(f"pi-{n}", range(many // 10)) for n in range(10)]
            await asyncio.gather(*sending)
            await until(lambda: made.snapshot().waiting == RECEIVE_MAXIMUM)
            await until(lambda: refusing.asked >= 2)
            assert made.counts.received == RECEIVE_MAXIMUM
            assert made.counts.acknowledged == 0
            refusing.full = False
            await until(lambda: made.counts.stored == many)
            assert made.counts.waiting <= RECEIVE_MAXIMUM

    play(story)
    assert store.count() == many


def test_a_consumer_that_is_stopped_while_its_store_is_full_leaves_all_to_the_next(
    broker: Mosquitto, store: Store
) -> None:
    refusing = Refusing(store)

    async def story() -> None:
        async with device(broker.port) as boards:
            async with running(consumer(broker.port, refusing)) as made:  # type: ignore[arg-type]
                await boards.telemetry("pi-1", range(30))
                await until(lambda: refusing.asked)
            assert made.counts.acknowledged == 0
            async with running(consumer(broker.port, store)) as made:
                await until(lambda: made.counts.stored == 30)

    play(story)


def test_an_alarm_that_was_cleared_while_nobody_listened_is_forgotten_once_all_is_read(
    broker: Mosquitto, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "TRIM_EVERY_S", 0.2)
    old = Alarm("acme", "pi-1", "cleared", "warning", TS - 99, "{}")
    batch = Batch(alarms=[old, old._replace(type="hot")])
    store.write(batch, TS - 99)
    began = time.monotonic()

    async def story() -> None:
        hot = {"type": "hot", "severity": "warning", "since": TS, "ts": TS, "reason": "x", "evidence": {}}
        async with device(broker.port) as boards:
            await boards.say("pi-1/a/hot", hot, retain=True)
            made = consumer(broker.port, store, now=lambda: TS + time.monotonic() - began)
            async with running(made):
                await until(lambda: len(store.alarms("acme", "pi-1")) == 1)
                assert json.loads(store.alarms("acme", "pi-1")[0])["type"] == "hot"

    play(story)


def test_old_telemetry_is_forgotten_beside_what_comes(
    broker: Mosquitto, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "TRIM_EVERY_S", 0.1)
    monkeypatch.setattr(statements, "TRIM", statements.TRIM.replace(str(statements.TRIM_ROWS), "10"))
    old = [Sample("acme", "pi-1", "board", "before", seq, seq, seq, "{}") for seq in range(95)]
    store.write(Batch(samples=old), TS - 91 * 86400)

    async def story() -> None:
        async with device(broker.port) as boards, running(consumer(broker.port, store)) as made:
            await boards.telemetry("pi-1", range(1, 40))
            await until(lambda: made.counts.stored == 39 and store.count() == 39)

    play(story)


def test_digests_are_made_beside_what_comes(
    broker: Mosquitto, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "TRIM_EVERY_S", 0.1)
    begin = (round(TS) - 7200) // 900 * 900
    rested = [Sample("acme", "pi-1", "board", "before", n, (begin + n) * 1000, n, '{"a":1}') for n in range(300)]
    store.write(Batch(samples=rested), TS - 7200)

    def digests() -> int:
        with contextlib.closing(sqlite3.connect(tmp_path / "fleet.sqlite")) as database:
            return int(database.execute("SELECT count(*) FROM digests").fetchone()[0])

    async def story() -> None:
        async with device(broker.port) as boards, running(consumer(broker.port, store)) as made:
            await boards.telemetry("pi-1", range(1, 40))
            await until(lambda: made.counts.stored == 39 and digests() == 1)

    play(story)


def test_a_session_is_that_of_its_filters() -> None:
    one = Plan("g", "n", "acme", 1, 1)
    plans = (one, replace(one, tenant="+"), replace(one, group="h"), replace(one, name="m"))
    assert len({plan.client_id for plan in plans}) == 4
    assert one.shared == "$share/g/temper/v1/acme/+/m/#"


def test_a_broker_that_sends_more_than_was_asked_for_is_not_read_until_there_is_room(
    broker: Mosquitto, store: Store
) -> None:
    """mosquitto 2.0.11 sends its whole queue once the first acknowledgements came."""
    refusing = Refusing(store)
    many = 3 * MAX_WAITING

    async def story() -> None:
        async with device(broker.port) as boards:
            async with running(consumer(broker.port, store)):
                pass
            await asyncio.gather(*(boards.telemetry(f"pi-{n}", range(many // 20)) for n in range(20)))
            refusing.full = False
            async with running(consumer(broker.port, refusing)) as made:  # type: ignore[arg-type]
                await until(lambda: made.counts.stored)
                refusing.full = True
                await until(lambda: refusing.failed >= 2)
                assert made.snapshot().waiting <= MAX_WAITING + 4 * PACKETS_IN_A_ROW
                refusing.full = False
                await until(lambda: made.counts.stored == many)
                assert made.counts.duplicates == 0

    play(story)
    assert store.count() == many


def test_large_messages_wait_with_the_broker_too(
    broker: Mosquitto, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, most = 60_000, 20
    monkeypatch.setattr(ingest, "MAX_WAITING_BYTES", most * large)
    monkeypatch.setattr(ingest, "BATCH_BYTES", 2 * large)
    refusing = Refusing(store)
    refusing.full = True

    async def story() -> None:
        async with device(broker.port) as boards, running(consumer(broker.port, refusing)) as made:  # type: ignore[arg-type]
            for seq in range(300):
                body = {**message(seq), "values": {"text": "x" * large}}
                await boards.say("pi-1/m/board", body)
            await until(lambda: refusing.failed >= 2)
            assert made.snapshot().waiting <= most + 4 * PACKETS_IN_A_ROW
            refusing.full = False
            await until(lambda: made.counts.stored == 300)
            assert made.counts.batches >= 300 // 2  # also: none waited for more to come

    play(story)
    assert store.count() == 300


class Slow(Refusing):
    """A store that takes longer for a batch than a broker for the next."""

    def write(self, batch: Batch, received: float) -> Written:
        time.sleep(0.02)
        return self._store.write(batch, received)


def test_a_broker_that_never_ends_does_not_keep_a_consumer_from_ending(store: Store) -> None:
    async def story() -> None:
        talk = EndlessTalk(f"{ROOT}/pi-1/conn", b'{"online":true,"session":1,"connection":1,"ts":1}')
        async with talk.serving() as hostile:
            made = consumer(hostile.port, Slow(store))  # type: ignore[arg-type]
            async with running(made):
                await until(lambda: made.counts.received > MAX_WAITING)
        assert made.counts.acknowledged == made.counts.received

    play(story)


def test_a_presence_from_the_far_future_does_not_outlast_those_that_are_true(broker: Mosquitto, store: Store) -> None:
    lie = {"online": False, "session": 2**63 - 1, "connection": 2**63 - 1, "boot_id": "x", "ts": 4_102_444_800}
    true = {"online": True, "session": 1, "connection": 1, "boot_id": "b", "ts": TS + 1}

    async def story() -> None:
        async with device(broker.port) as boards, running(consumer(broker.port, store)) as made:
            await boards.say("pi-1/conn", lie)
            await boards.say("pi-1/conn", true)
            await until(lambda: made.counts.truths == 2)

    play(story)
    assert [row.online for row in store.devices(Filter(), TS)] == [True]


def start(port: int, store: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "service.cli", "ingest", "--broker", f"127.0.0.1:{port}", "--tenant", "acme"]
    return subprocess.Popen(
        [*command, "--store", str(store), "--name", "one", "--json", "--every", "0.1", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "XDG_CONFIG_HOME": str(store.parent)},
    )


class Watched:
    """The last line of a process, read by a thread: a wait for a line must have an end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.last: dict[str, Any] = {"connected": False, "stored": 0}
        self._stream = process.stdout
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._stream is not None
        with self._stream:
            for line in self._stream:
                self.last = json.loads(line)

    def join(self) -> None:
        self._thread.join(LIMIT_S)


def test_a_consumer_that_is_killed_again_and_again_loses_nothing(broker: Mosquitto, tmp_path: Path) -> None:
    path = tmp_path / "killed.sqlite"

    async def story() -> None:
        async with device(broker.port) as boards:
            for turn in range(3):
                process = start(broker.port, path)
                watched = Watched(process)
                await until(lambda: watched.last["connected"])  # noqa: B023 - waited for in this turn
                seqs = range(turn * 300, turn * 300 + 300)
                sending = asyncio.gather(*(boards.telemetry(f"pi-{n}", seqs) for n in range(5)))
                await until(lambda: watched.last["stored"] > 0)  # noqa: B023 - same
                process.kill()  # in the middle of what comes
                process.wait()
                await sending
                watched.join()
            process = start(broker.port, path)
            watched = Watched(process)
            await until(lambda: watched.last["connected"])
            opened = open_store(str(path))
            await until(lambda: opened.count() == 4500)
            opened.close()
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, LIMIT_S) == 0
            watched.join()
            assert watched.last["waiting"] == 0

    play(story)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--group", "a/b"], "--group"),
        (["--name", "x" * 64], "--name"),
        (["--keep-days", "0"], "--keep-days"),
        (["--keep-gib", "nan"], "--keep-gib"),
        (["--every", "-1"], "--every"),
        (["--store", "mysql://x"], "--store"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path: Path, options: list[str], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "ingest", "--store", str(tmp_path / "x.sqlite"), *options],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
    )
    assert done.returncode == 2
    assert told in done.stderr


def test_the_newest_live_message_says_how_far_behind_the_store_is(broker: Mosquitto, store: Store) -> None:
    async def story() -> None:
        async with device(broker.port) as boards, running(consumer(broker.port, store)) as made:
            await boards.say("pi-1/m/board", message(0) | {"ts": TS - 5})
            await until(lambda: made.counts.stored == 1)
            assert made.counts.lag_s == 5.0
            old = [{"group": "board", **message(1), "ts": TS - 9000}]
            await boards.say("pi-1/m/backfill", {"historical": True, "messages": old})
            await until(lambda: made.counts.stored == 2)
            assert made.counts.lag_s == 5.0

    play(story)
