"""What the daemon does each second leaves nothing behind, against a real broker."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agent.board.simulated import SimulatedBoard
from agent.energy import TRAINING
from policies.outlook import DepthCost, Outlook
from policies.policy import Policy
from service.config import Mqtt
from service.config import Telemetry as Settings
from service.device_link import Address, Connected, Link
from service.live import write_live
from service.outbox import DAY_S, Outbox
from service.statuses import Clock
from service.steering import Steering
from service.telemetry import Telemetry
from tests.simulators.mosquitto import Mosquitto, find_mosquitto

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
HANG_S = 60.0  # ends a test that would wait for ever; nothing is asserted about time
WARM_TICKS = 600  # after which windows of readings and caches are full
TICKS = 400
SPARE_BLOCKS = TICKS // 2  # what is left behind each tick, or each other one, is more
ON_THEIR_WAY = 10  # publications that are waited for: a stalled link would drop metrics, and hide what they leave


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    made.start()
    yield made
    made.stop()


@asynccontextmanager
async def a_link(broker: Mosquitto) -> AsyncIterator[Link]:
    link = Link(
        Mqtt(host="127.0.0.1", port=broker.port),
        Address("default", "pi-7"),
        session=1,
        boot_id="boot",
        capabilities={},
        birth={},
        now=lambda: 1000.0,
    )
    link.start()
    try:
        assert isinstance(await link.receive(), Connected)
        yield link
    finally:
        await link.stop()


class Day:
    """The daemon's second, as often as asked: board, governor, metrics, a status, the live view."""

    def __init__(self, link: Link, folder: Path) -> None:
        self.link, self.folder, self.mono_s = link, folder, 0.0
        self.board = SimulatedBoard("raspberry-pi-4")
        clock = Clock(lambda: 1000.0, lambda: self.mono_s, lambda: True)
        self.outbox = Outbox(folder / "outbox", 1 << 20, DAY_S, 0.0)
        self.telemetry = Telemetry(Settings(), link, self.outbox, "boot", clock)
        self.telemetry.begin()
        self.steering = Steering(self.board, Policy())

    async def pass_seconds(self, ticks: int) -> None:
        for _ in range(ticks):
            self.tick()
            await self.drain(ON_THEIR_WAY)
        await self.drain(0)

    def tick(self) -> None:
        self.mono_s += 1.0
        costs = (DepthCost(0, 0.02, measured=True), DepthCost(50, 0.01), DepthCost(100, 0.005))
        ahead = Outlook(costs=costs, samples_left=10**6, samples_done=int(self.mono_s), deadline_mono_s=10**6)
        self.steering.tick(self.mono_s, working=True, phase=TRAINING, outlook=ahead)
        told = self.steering.board_metrics()
        assert self.telemetry.due("board", working=True)
        self.telemetry.publish("board", told)
        self.telemetry.publish("energy", self.steering.energy_metrics(int(self.mono_s)))
        self.outbox.tick(self.mono_s)
        self.link.publish_status("fine-tune", "a-job", {"status": "running", "progress": 0.5})
        write_live(self.folder, {"mono_s": self.mono_s, "board": told})
        self.board.advance(1.0, 1.0)

    async def drain(self, most: int) -> None:
        connection = self.link._connection
        while len(connection._unsent) + len(connection._unconfirmed) > most:  # noqa: ASYNC110 - the link tells nobody
            await asyncio.sleep(0.001)


def blocks() -> int:
    """Blocks of memory that Python holds; a collection empties its free lists too."""
    gc.collect()
    return sys.getallocatedblocks()


def test_a_tick_leaves_nothing_behind(broker: Mosquitto, tmp_path: Path) -> None:
    async def story() -> None:
        async with asyncio.timeout(HANG_S), a_link(broker) as link:
            day = Day(link, tmp_path)
            await day.pass_seconds(WARM_TICKS)
            before = blocks()
            await day.pass_seconds(TICKS)
            assert blocks() - before < SPARE_BLOCKS
            assert day.telemetry.figures()["outbox_messages"] == 0
            assert day.steering.energy.spent(TRAINING).seconds == WARM_TICKS + TICKS - 1

    asyncio.run(story())
