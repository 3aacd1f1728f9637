"""What a broker keeps is there after the first look at a new connection, whenever that look comes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt import publish

from service.config import Mqtt
from service.console.hub import Hub
from service.console.reads import Reads
from service.console.room import Room
from tests.simulators.mosquitto import Mosquitto, find_mosquitto

WAIT_S = 30.0
ROOT = "temper/v1/default"
pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto")


def keep(broker: Mosquitto, topic: str, body: dict[str, Any]) -> None:
    publish.single(f"{ROOT}/{topic}", json.dumps(body), qos=1, retain=True, hostname="127.0.0.1", port=broker.port)


def test_boards_that_were_there_before_stay_online_with_their_alarms(
    make_room: Callable[..., Room], tmp_path: Path
) -> None:
    broker = Mosquitto(tmp_path)
    broker.start()
    names = [f"pi-{number}" for number in range(1, 6)]
    for name in names:
        keep(broker, f"{name}/conn", {"online": True, "session": 1, "connection": 1, "ts": time.time()})
        keep(broker, f"{name}/a/disk-full", {"type": "disk-full", "severity": "critical", "since": time.time()})
    settings = make_room(mqtt=Mqtt(host="127.0.0.1", port=broker.port)).settings
    reads = Reads(settings.store)

    async def look() -> list[tuple[bool, tuple[str, ...]]]:
        async with Hub(settings, reads, now=time.time, monotonic=time.monotonic) as hub, asyncio.timeout(WAIT_S):
            while not hub._settled:  # noqa: ASYNC110 - what is looked at is no event
                await asyncio.sleep(0.02)
            rows = [hub.row(name) for name in names]
            return [(row.online, row.alarms) for row in rows if row is not None]

    try:
        assert asyncio.run(look()) == [(True, ("disk-full",))] * len(names)
    finally:
        reads.close()
        broker.stop()
