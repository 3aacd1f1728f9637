"""The hub without a broker: what is folded into it is asked from it. With one: what it asks a broker for."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.capabilities import capability
from service.command_types import KNOWN, new_id
from service.config import Mqtt
from service.console.hub import Hub
from service.console.hub_details import MAX_ALL_BYTES, MAX_BOARDS_KEPT, MAX_DETAIL_BYTES, Details
from service.console.hub_ingest import Consumer, plan_of, say_fault
from service.console.hub_stored import STORED_STATUSES
from service.console.hub_watch import MAX_PENDING, MAX_VALUES, Event, Look, Watcher, cut_values
from service.console.reads import Reads
from service.console.room import Room, Settings
from service.console.rows import FleetQuery, State
from service.device_link import Address, Connected, Link
from service.fleet.boards import MAX_BOARDS, MAX_GROUPS
from service.fleet.ingest import Counts
from service.fleet.state import FleetState
from service.fleet.store import Alarm, Batch, Birth, Presence, Sample, Status, open_store
from tests.console.conftest import Clock
from tests.simulators.mosquitto import Mosquitto, find_mosquitto

WAIT_S = 30.0
ROOT = "temper/v1/default/"
JOB = new_id(1_796_000_000_000, bytes)
needs_broker = pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto")


def tell(hub: Hub, levels: str, body: dict[str, Any] | None, *, retained: bool = False) -> None:
    hub._take(f"{ROOT}{levels}", body, retained=retained)


def conn(hub: Hub, name: str, *, online: bool = True) -> None:
    tell(hub, f"{name}/conn", {"online": online, "session": 1, "connection": 1})


async def until(found: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not found():  # noqa: ASYNC110 - what is looked at is no event
            await asyncio.sleep(0.02)


def test_a_row_has_a_new_revision_only_when_something_of_it_changed(room: Room, clock: Any) -> None:
    hub = room.hub
    conn(hub, "pi-1")
    first = hub.row("pi-1")
    assert first is not None
    tell(hub, "pi-1/cmd/scrub", {"type": "scrub"}, retained=True)
    same = hub.row("pi-1")
    assert same is not None
    assert same.revision == first.revision
    clock.pass_(1)
    tell(hub, "pi-1/m/board", {"values": {"temperature_celsius": 50.0}})
    later = hub.row("pi-1")
    assert later is not None
    assert later.revision == hub.revision > first.revision


def test_revisions_of_a_console_that_starts_again_are_higher(room: Room, clock: Any) -> None:
    hub = room.hub
    for place in range(2000):
        conn(hub, f"pi-{place}")
    before = hub.query(FleetQuery()).revision
    clock.pass_(1)
    assert Hub(room.settings, room.reads, now=clock, monotonic=clock).revision > before
    assert before < 2**53  # what a browser's numbers hold


def test_the_list_of_a_group_has_its_members(room: Room, clock: Any) -> None:
    for name in ("pi-1", "pi-2", "pi-3"):
        conn(room.hub, name)
    with FleetState(room.settings.fleet_state) as state:
        state.add_members("default", "plant", ["pi-3", "pi-1", "gone-1"])
    found = room.hub.query(FleetQuery(group="plant"))
    assert [row.name for row in found.rows] == ["pi-1", "pi-3"]
    assert room.hub.query(FleetQuery(group="other")).total == 0
    with FleetState(room.settings.fleet_state) as state:
        state.remove_members("default", "plant", ["pi-1"])
    clock.pass_(60)
    assert room.hub.query(FleetQuery(group="plant")).total == 1


def test_the_summary_follows(room: Room) -> None:
    conn(room.hub, "pi-1")
    conn(room.hub, "pi-2", online=False)
    assert room.hub.summary().states == {**dict.fromkeys(State, 0), "idle": 1, "offline": 1}
    tell(room.hub, "pi-1/a/overheated", {"severity": "warning"})
    assert (room.hub.summary().states["hot"], room.hub.summary().alarmed) == (1, 1)
    tell(room.hub, "pi-1/a/overheated", None)
    assert room.hub.summary().alarmed == 0


def test_events_of_the_consoles_own_reach_whoever_wants_them(room: Room) -> None:
    async def play() -> list[Event]:
        gathering = asyncio.create_task(room.hub._gather())
        found = []
        async with room.hub.subscribe(roll_outs=True) as events, room.hub.subscribe(board="pi-1") as others:
            for place in range(MAX_PENDING + 50):
                room.hub.publish("roll-out", {"id": f"r-{place}", "counts": {}})
            room.hub.publish("roll-out", {"id": "r-60", "counts": {"open": 1}})
            async for event in events:
                found.append(event)
                if len(found) == MAX_PENDING:
                    break
            del others
            pending = [watcher.made for watcher in room.hub._watchers if watcher.board]
            assert pending == [{}]
        gathering.cancel()
        return found

    found = asyncio.run(play())
    assert found[-1].data == {"id": "r-60", "counts": {"open": 1}}  # the latest of each, and of too many the latest
    assert len({event.data["id"] for event in found}) == MAX_PENDING


def test_a_tap_hears_what_the_hub_hears(room: Room) -> None:
    heard: list[tuple[str, object, bool]] = []
    with room.hub.tap(lambda *told: heard.append(told)):
        tell(room.hub, "pi-1/conn", {"online": True}, retained=True)
    conn(room.hub, "pi-2")
    assert heard == [(f"{ROOT}pi-1/conn", {"online": True}, True)]


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "/",
        "temper/v1/default",
        ROOT,
        f"{ROOT}pi-1",
        "temper/v1/other/pi-1/conn",
        "x/y/z",
        f"{ROOT}/conn",
        f"{ROOT}UP/conn",
    ],
)
def test_topics_that_nobody_asked_for_change_nothing(room: Room, topic: str) -> None:
    room.hub._take(topic, {"online": True}, retained=False)
    assert room.hub.query(FleetQuery()).total == 0


def test_strangers_who_name_boards_and_metrics_for_ever_fill_no_memory(room: Room) -> None:
    hub = room.hub
    look = hub._looks["liar-0"] = Look(users=1)
    values = {f"made-up-{place}": "x" * 1000 for place in range(2000)}
    for place in range(MAX_BOARDS):
        conn(hub, f"liar-{place}")
    tell(hub, "liar-0/m/board", {"values": values})
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for place in range(5000):
        conn(hub, f"more-{place}")
        tell(hub, f"liar-0/m/group-{place}", {"values": values})
        tell(hub, f"liar-0/m/{'g' * 40}-{place}", {"values": values})
        tell(hub, f"liar-0/cmd/type-{place}", values)
        tell(
            hub,
            f"liar-0/cmd/scrub/{new_id(1_796_000_000_000 + place, bytes)}/sts",
            {"status": "x", "reason": "y" * 900},
        )
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert hub.query(FleetQuery()).total == MAX_BOARDS
    assert len(look.metrics) == MAX_GROUPS
    assert all(len(kept) == MAX_VALUES for _, kept in look.metrics.values())
    assert grown < 8 << 20, f"{grown} bytes"
    hub._looks.clear()


def test_values_are_cut_to_a_size() -> None:
    values = {
        "deep": {"a": {"b": 1}, "c": [1]},
        "text": "x" * 9000,
        "k" * 65: 1,
        "many": list(range(100)),
        "big": 10**400,
    }
    assert cut_values(values) == {"deep": {"a": None, "c": None}, "text": "x" * 200, "many": [*range(16)], "big": None}


def test_details_of_boards_have_bounds() -> None:
    details = Details()
    for place in range(2 * MAX_BOARDS_KEPT):
        details.want(f"pi-{place}", 0.0)
        for kind in range(40):
            details.take(f"pi-{place}", ["cmd", f"kind-{kind}"], {"args": "x" * 20_000})
        details.take(f"pi-{place}", ["birth"], {"long": "x" * (MAX_DETAIL_BYTES + 1)})
        assert details.bytes <= MAX_ALL_BYTES + 33 * 20_100
    assert details.birth("pi-399") is None
    assert details.capability("pi-399", "kind-31") is not None
    assert details.capability("pi-399", "kind-32") is None
    assert details.capability("pi-0", "kind-0") is None
    for place in range(2 * MAX_BOARDS_KEPT):
        details.forget(f"pi-{place}")
    assert details.bytes == 0


def test_a_birth_that_comes_anew_makes_capabilities_void() -> None:
    details = Details()
    details.want("pi-1", 0.0)
    details.take("pi-1", ["cmd", "scrub"], {"type": "scrub"})
    details.take("pi-1", ["birth"], {"agent": "2"})
    assert details.capability("pi-1", "scrub") is None
    assert details.birth("pi-1") == {"agent": "2"}
    details.want("pi-1", 1e9)  # long ago
    assert details.birth("pi-1") is None
    assert details.bytes == 0
    assert not details.take("pi-2", ["birth"], {"agent": "2"})  # nobody asked


def test_a_watcher_keeps_the_last_of_each_and_not_more_than_so_many() -> None:
    watcher = Watcher(frozenset(), "pi-1", roll_outs=False, seen=0, connected=True)
    for place in range(1000):
        watcher.note(("metrics", f"group-{place}"))
        watcher.note(("metrics", "board"))
    assert len(watcher.news) <= MAX_PENDING


def test_consoles_of_one_machine_have_sessions_of_their_own(room: Room, make_room: Callable[..., Room]) -> None:
    one, other = plan_of(room.settings), plan_of(make_room().settings)
    assert one == plan_of(room.settings)
    assert one.client_id != other.client_id
    assert one.group != other.group


def test_a_store_that_cannot_be_read_is_said_and_not_fatal(room: Room) -> None:
    room.reads._stores[0]._database.execute("DROP TABLE devices")  # type: ignore[attr-defined]

    async def play() -> None:
        hub = Hub(room.settings, room.reads, now=room.now, monotonic=room.monotonic)
        await hub._read_devices()
        assert "no such table" in hub.trouble
        conn(hub, "pi-1")
        assert hub.query(FleetQuery()).total == 1

    asyncio.run(play())


def test_a_store_that_cannot_be_opened_is_said_by_whoever_writes_into_it(
    make_room: Callable[..., Room], tmp_path: Path
) -> None:
    room = make_room(consume=True)
    settings = dataclasses.replace(room.settings, store=str(tmp_path / "room0"))  # a folder

    async def play() -> None:
        async with Hub(settings, room.reads, now=time.time, monotonic=time.monotonic) as hub:
            await until(lambda: hub.trouble)
            assert "store cannot be used" in hub.trouble
            conn(hub, "pi-1")
            assert hub.query(FleetQuery()).total == 1

    asyncio.run(play())


def test_a_part_that_ends_by_a_fault_of_ours_is_said() -> None:
    async def fails() -> None:
        raise ZeroDivisionError("of ours")

    async def goes() -> None:
        await asyncio.sleep(60)

    async def play() -> list[str]:
        tasks = [asyncio.create_task(fails()), asyncio.create_task(goes())]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return [say_fault(task) for task in tasks]

    assert asyncio.run(play()) == ["ZeroDivisionError: of ours", ""]


def filled(place: str) -> None:
    now = time.time()
    store = open_store(place)
    batch = Batch()
    for number in range(3):
        name = f"pi-{number}"
        batch.add(Presence("default", name, online=True, session=7, connection=1, ts=now - 60))
        batch.add(
            Birth(
                "default", name, 1, "0.1.0", "raspberry-pi-4", "digits 3", json.dumps({"schema": 1, "agent": "0.1.0"})
            )
        )
        values = json.dumps({"temperature_celsius": 60.0 + number, "action": "PAUSE", "rule": "thermal.delta-t-pause"})
        batch.add(Sample("default", name, "board", "b", 1, int(now * 1000), 1, values))
    batch.add(Presence("other", "pi-9", online=True, session=7, connection=1, ts=now))
    for turn in range(STORED_STATUSES + 5):
        command_id = new_id(int(now * 1000) + turn, bytes)
        body = {"id": command_id, "status": "running", "version": 1, "ts": now}
        batch.add(Status("default", "pi-0", command_id, "fine-tune", 1, "running", now, json.dumps(body)))
    alarm = {"type": "overheated", "severity": "warning", "ts": now}
    batch.add(Alarm("default", "pi-0", "overheated", "warning", now, json.dumps(alarm)))
    store.write(batch, now)
    store.close()


def settings_with(make_room: Callable[..., Room], port: int) -> Settings:
    room = make_room(mqtt=Mqtt(host="127.0.0.1", port=port))
    filled(room.settings.store)
    return room.settings


def test_without_a_broker_the_store_tells(make_room: Callable[..., Room]) -> None:
    settings = settings_with(make_room, 1)

    async def play() -> None:
        reads = Reads(settings.store)
        async with Hub(settings, reads, now=time.time, monotonic=time.monotonic) as hub:
            assert not hub.connected
            rows = hub.query(FleetQuery(sort="temperature", descending=True)).rows
            assert [(row.name, row.state, row.temperature_celsius) for row in rows] == [
                (f"pi-{number}", State.HOT, 60.0 + number) for number in (2, 1, 0)
            ]
            assert (await hub.birth("pi-1"))["agent"] == "0.1.0"
            assert await hub.capability("pi-1", "scrub") is None
            await until(lambda: (row := hub.row("pi-0")) and row.alarms)  # after `AWAY_S`
            board = hub.board("pi-0")
            assert board is not None
            assert len(board.statuses) == STORED_STATUSES
        reads.close()

    asyncio.run(play())


@needs_broker
def test_a_broker_is_asked_for_what_a_board_can_and_is_and_forgets_its_question(
    make_room: Callable[..., Room], tmp_path: Path
) -> None:
    broker = Mosquitto(tmp_path)
    broker.start()
    settings = settings_with(make_room, broker.port)

    async def play() -> None:
        reads = Reads(settings.store)
        names = Address("default", "pi-2")
        capabilities = {kind: capability(kind) for kind in KNOWN}
        birth = {"schema": 1, "agent": "0.2.0", "state_version": 4, "metrics": {"board": {}}}
        link = Link(settings.mqtt, names, session=8, boot_id="b", capabilities=capabilities, birth=birth, now=time.time)
        link.start()
        while not isinstance(await link.receive(), Connected):
            pass
        async with Hub(settings, reads, now=time.time, monotonic=time.monotonic) as hub:
            await until(lambda: (row := hub.row("pi-2")) and row.agent == "0.2.0")
            told = await asyncio.gather(*(hub.capability("pi-2", kind) for kind in ("scrub", "fine-tune", "none")))
            assert told[0] == capability("scrub")
            assert told[1] == capability("fine-tune")
            assert told[2] is None
            assert not [name for name in hub.link._filters if name.endswith("pi-2/cmd/+")]
            hub._details.forget("pi-2")
            await hub._ask("pi-2", "birth")
            hub._details.want("pi-2", time.monotonic())
            await hub._ask("pi-2", "birth")
            assert hub._details.birth("pi-2") == birth
            await until(lambda: (row := hub.row("pi-1")) and not row.online)  # the broker has nothing of it
            async with hub.subscribe(board="pi-2"):
                assert f"{ROOT}pi-2/m/+" in hub.link._filters
            assert f"{ROOT}pi-2/m/+" not in hub.link._filters
        await link.stop()
        reads.close()

    try:
        asyncio.run(play())
    finally:
        broker.kill()


@needs_broker
def test_what_a_broker_has_not_kept_over_a_crash_is_over(make_room: Callable[..., Room], tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    broker.start()
    settings = make_room(mqtt=Mqtt(host="127.0.0.1", port=broker.port)).settings

    async def play() -> None:
        reads = Reads(settings.store)
        async with Hub(settings, reads, now=time.time, monotonic=time.monotonic) as hub:
            await until(lambda: hub._settled)
            conn(hub, "pi-1")
            tell(hub, "pi-1/a/overheated", {"severity": "warning"})
            assert hub.summary().alarmed == 1
            broker.kill()
            await until(lambda: not hub.connected)
            assert hub.summary().alarmed == 1  # until somebody knows better
            assert hub.summary().states["hot"] == 1
            broker.start()
            await until(lambda: hub.summary().alarmed == 0)
            assert hub.summary().states["offline"] == 1
            tell(hub, "pi-1/conn", {"online": True, "session": 1, "connection": 2})
            assert hub.summary().states["idle"] == 1
        reads.close()

    try:
        asyncio.run(play())
    finally:
        broker.kill()


def test_a_store_that_takes_nothing_is_said_until_it_takes_something(room: Room, clock: Clock) -> None:
    consumer = Consumer(room.settings, now=clock, monotonic=clock)
    told = []
    for retries, batches, waiting in ((0, 1, 0), (3, 1, 200), (3, 1, 900), (4, 1, 1500), (4, 2, 10), (4, 2, 10)):
        consumer._told(Counts(retries=retries, batches=batches, waiting=waiting))
        told.append(consumer.trouble)
    assert told[0] == told[4] == told[5] == ""
    assert told[1:4] == [f"the store takes nothing: {count} messages wait" for count in (200, 900, 1500)]
