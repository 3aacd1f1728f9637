"""Thirty days without a broker, then backfill through a real one."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.board.simulated import SimulatedBoard
from policies.outlook import Outlook
from policies.policy import Policy
from service.backfill import Backfill
from service.config import Mqtt
from service.config import Telemetry as Settings
from service.device_link import Address, Link
from service.link import Connection, Message
from service.outbox import DAY_S, Outbox
from service.outbox_segment import Record
from service.statuses import Clock
from service.steering import Steering
from service.telemetry import OFFLINE_ACTIVE_S, Telemetry
from tests.simulators.mosquitto import Mosquitto, find_mosquitto

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
HANG_S = 120.0  # ends a test that would wait for ever
DAYS = 30
MB = 1_000_000
PI = Address("default", "pi-7")


class Days:
    """A board that trains an hour a day, and a clock that is turned by hand."""

    def __init__(self, folder: Path, broker: Mosquitto, **settings: Any) -> None:
        self.folder, self.settings = folder / "outbox", Settings(**settings)
        self.mono_s = 1000.0
        self.link = Link(
            Mqtt(host="127.0.0.1", port=broker.port),
            PI, session=1, boot_id="boot", capabilities={}, birth={}, now=lambda: self.mono_s,
            jitter=lambda _low, _high: 0.05,
        )  # fmt: skip
        self.outbox = Outbox(self.folder, self.settings.outbox_mib << 20, 30 * DAY_S, self.mono_s)
        self.clock = clock = Clock(lambda: 1.8e9 + self.mono_s, lambda: self.mono_s, lambda: True)
        self.telemetry = Telemetry(self.settings, self.link, self.outbox, "boot", clock)
        self.telemetry.begin()
        steering = Steering(SimulatedBoard("raspberry-pi-4"), Policy())
        steering.tick(1.0, working=True, phase="training", outlook=Outlook())
        self.board, self.energy = steering.board_metrics(), steering.energy_metrics(1000)
        self.random = random.Random(36)
        self.made = 0

    def running(self) -> Clock:
        """A clock that goes by itself."""
        return Clock(time.time, lambda: self.mono_s + time.monotonic(), lambda: True)

    def noisy(self, values: dict[str, object]) -> dict[str, object]:
        """A reading's numbers, none like the one before: what compresses badly."""
        return {
            key: self.random.uniform(0, 1e6) if isinstance(value, float) else value for key, value in values.items()
        }

    def tell(self, group: str, values: dict[str, object], *, working: bool) -> None:
        if self.telemetry.due(group, working=working):
            self.telemetry.publish(group, self.noisy(values))
            self.made += 1

    def pass_day(self) -> None:
        end = self.mono_s + DAY_S
        while self.mono_s < end:
            working = self.mono_s < end - 23 * 3600
            self.mono_s += OFFLINE_ACTIVE_S if working else 60.0
            self.tell("board", self.board, working=working)
            if working:
                self.tell("energy", self.energy, working=True)
                self.tell("training", self.board, working=True)
            self.outbox.tick(self.mono_s)
            assert self.outbox.disk_bytes <= 64 * MB

    def on_disk(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in self.folder.iterdir())


@asynccontextmanager
async def heard(broker: Mosquitto) -> AsyncIterator[list[dict[str, Any]]]:
    """Every message of telemetry, from here on."""
    bodies: list[dict[str, Any]] = []
    ready = asyncio.Event()

    def take(message: Message) -> None:
        connection.ack(message)
        if message.topic == PI.topic("probe"):
            ready.set()
        else:
            assert message.content_type == "application/json"
            assert len(message.payload) <= 64 << 10
            bodies.append(json.loads(message.payload))

    def up(_session_present: bool) -> None:
        connection.subscribe(PI.topic("m", "+"))
        connection.subscribe(PI.topic("probe"))
        connection.publish(PI.topic("probe"), b"{}", retain=False)

    connection = Connection(
        Mqtt(host="127.0.0.1", port=broker.port), "listener",
        keep_session=False, on_up=up, on_down=lambda _why: None, on_message=take,
    )  # fmt: skip
    connection.start()
    try:
        await ready.wait()
        yield bodies
    finally:
        await connection.stop()


async def until(true: Callable[[], object], each: Callable[[], None] = lambda: None) -> None:
    while not true():
        each()
        await asyncio.sleep(0.01)


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    made = Mosquitto(tmp_path, "max_queued_messages 0\n")
    made.start()
    yield made
    made.stop()


def test_thirty_days_offline_fit_the_disk_and_come_back_whole_and_paced(tmp_path: Path, broker: Mosquitto) -> None:
    days = Days(tmp_path, broker)
    for _ in range(DAYS):
        days.pass_day()
        assert days.on_disk() <= 64 * MB
    days.outbox.close(days.mono_s)  # the board is switched off and on
    days.outbox = Outbox(days.folder, 64 << 20, 31 * DAY_S, days.mono_s)
    assert days.outbox.records == days.made
    sent: list[float] = []

    async def sleep(seconds: float) -> None:
        days.mono_s += seconds
        await asyncio.sleep(0)

    async def story() -> None:
        async with asyncio.timeout(HANG_S), heard(broker) as bodies:
            backfill = Backfill(days.outbox, days.link, "boot", days.settings, days.clock, sleep)
            publish = days.link.publish_telemetry
            days.link.publish_telemetry = lambda *about: sent.append(days.mono_s) or publish(*about)  # type: ignore[method-assign, func-returns-value]  # the wire is watched
            days.link.start()
            task = asyncio.create_task(backfill.run())
            try:
                await until(lambda: days.link.connected)
                while days.outbox.records:
                    backfill.tick()
                    await sleep(1.0 if not sent else 0.0)
                await until(lambda: sum(len(body["messages"]) for body in bodies) >= days.made)
            finally:
                task.cancel()
                await days.link.stop()
            messages = [message for body in bodies for message in body["messages"]]
            seqs = [message["seq"] for message in messages]
            assert seqs == list(range(seqs[0], seqs[0] + days.made))  # each once, in order
            assert {message["group"] for message in messages} == {"board", "energy", "training"}
            assert bodies[-1]["dropped_total"] == 0

    asyncio.run(story())
    assert all(later - earlier >= 0.1 - 1e-9 for earlier, later in itertools.pairwise(sent))
    assert days.on_disk() <= 2 * 4096


def test_backfill_by_the_real_clock_is_no_faster_than_set(tmp_path: Path, broker: Mosquitto) -> None:
    days = Days(tmp_path, broker, backfill_per_s=10)
    for seq in range(1, 22):
        days.outbox.add(Record(seq, json.dumps({"seq": seq, "pad": "x" * 40_000}).encode()), 0.0)

    async def story() -> float:
        async with asyncio.timeout(HANG_S), heard(broker) as bodies:
            backfill = Backfill(days.outbox, days.link, "boot", days.settings, days.running())
            days.link.start()
            task = asyncio.create_task(backfill.run())
            try:
                await until(lambda: bodies, backfill.tick)
                began = time.monotonic()
                await until(lambda: len(bodies) == 21)
                return time.monotonic() - began
            finally:
                task.cancel()
                await days.link.stop()

    assert asyncio.run(story()) > 1.9  # 20 pauses of 0.1 s; a loaded machine only makes it longer


def test_a_broker_that_dies_during_the_backfill_costs_nothing(tmp_path: Path, broker: Mosquitto) -> None:
    days = Days(tmp_path, broker)
    for seq in range(1, 41):
        days.outbox.add(Record(seq, json.dumps({"seq": seq, "pad": "x" * 3000}).encode()), 0.0)
    days.outbox.tick(days.mono_s + 60)

    async def story() -> None:
        async with asyncio.timeout(HANG_S):
            backfill = Backfill(days.outbox, days.link, "boot", days.settings, days.running())
            days.link.start()
            task = asyncio.create_task(backfill.run())
            try:
                async with heard(broker) as bodies:
                    await until(lambda: len(bodies) >= 3, backfill.tick)
                    broker.kill()
                    await until(lambda: not days.link.connected)
                confirmed = days.outbox.counters.backfilled_total  # the broker may have told nobody of the last ones
                broker.start()
                async with heard(broker) as bodies:
                    await until(lambda: not days.outbox.records, backfill.tick)
                    await until(lambda: any(message["seq"] == 40 for body in bodies for message in body["messages"]))
                    assert [m["seq"] for body in bodies for m in body["messages"]] == list(range(confirmed + 1, 41))
            finally:
                task.cancel()
                await days.link.stop()

    asyncio.run(story())
    assert days.outbox.counters.dropped_total == 0


def test_a_broker_that_takes_nothing_for_a_while_costs_nothing_and_is_told_later(
    tmp_path: Path, broker: Mosquitto
) -> None:
    days = Days(tmp_path, broker)
    backfill = Backfill(days.outbox, days.link, "boot", days.settings, days.running())

    async def story() -> list[int]:
        async with asyncio.timeout(HANG_S), heard(broker) as bodies:
            days.link.start()
            task = asyncio.create_task(backfill.run())
            try:
                await until(lambda: days.link.connected)
                os.kill(broker.pid, signal.SIGSTOP)
                try:
                    for count in range(400):
                        days.telemetry.publish("board", {"count": count, "pad": "x" * 1000})
                        await asyncio.sleep(0)
                    waiting = days.outbox.records
                finally:
                    os.kill(broker.pid, signal.SIGCONT)
                assert 0 < waiting < 400  # the kernel took what it may hold, the rest waits here
                await until(lambda: not days.outbox.records, backfill.tick)
                await until(lambda: len(seqs(bodies)) >= 400)
            finally:
                task.cancel()
                await days.link.stop()
            return seqs(bodies)

    found = asyncio.run(story())
    assert sorted(found) == list(range(min(found), min(found) + 400))


def seqs(bodies: list[dict[str, Any]]) -> list[int]:
    """Of live messages and of those in a backfill."""
    return [message["seq"] for body in bodies for message in body.get("messages", [body])]
