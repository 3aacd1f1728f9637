"""A command through a real broker: recorded before it goes out, its outcome recorded after it came back."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.config import Mqtt
from service.console.audit import Wanted
from service.console.room import Settings
from service.console.serve import open_room
from tests.simulators.answering_boards import answering_boards
from tests.simulators.mosquitto import Mosquitto, find_mosquitto

WAIT_S = 60.0

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    made.start()
    yield made
    made.stop()


def test_how_a_command_ended_is_on_record(tmp_path: Path, broker: Mosquitto, console_key: Path) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir(mode=0o755)
    shutil.copy(console_key.with_name("alice.pub.json"), trusted)
    settings = Settings(
        mqtt=Mqtt(host="127.0.0.1", port=broker.port),
        tenant="default",
        store=str(tmp_path / "store.sqlite"),
        state=tmp_path / "state",
        fleet_state=tmp_path / "fleet.sqlite",
        key=str(console_key),
    )

    async def talk() -> None:
        async with open_room(settings, now=time.time, monotonic=time.monotonic) as room, asyncio.timeout(WAIT_S):
            while (board := room.hub.board("pi-1")) is None or not board.online:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
            ids = {}
            for name in ("pi-1", "pi-2"):
                request, envelope = room.signer.request(name, "scrub", {}, {}, time.time(), 600)
                await room.audit.record("owner", "scrub", boards=(name,), why="a try", commands=(request.id,))
                await room.hub.send(name, "scrub", request.id, envelope, valid_s=600)
                ids[name] = request.id
            while room.audit.open_commands():  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.1)
            found = {record.boards[0]: record for record in room.audit.page(Wanted(action="outcome"))}
            assert {name: record.commands for name, record in found.items()} == {n: (i,) for n, i in ids.items()}
            assert found["pi-1"].details["status"] == "succeeded"
            assert (found["pi-2"].details["status"], found["pi-2"].details["reason_code"]) == (
                "rejected",
                "not-permitted",
            )
            assert room.audit.verify() == 4

    with answering_boards(broker.port, trusted, tmp_path / "log", "pi-1", "pi-2=refuse"):
        asyncio.run(talk())
