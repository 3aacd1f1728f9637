"""What the broker keeps for us, and what happens when it does not: the device's journal is the truth."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.command_types import new_id
from service.config import Mqtt
from service.device_link import (
    MAX_QUEUED_EVENTS,
    MAX_REPAIRS,
    Address,
    Connected,
    Disconnected,
    Incoming,
    Link,
    LinkEvent,
    Wiped,
)
from service.link import Connection
from service.link_client import PACKETS_IN_A_ROW
from tests.simulators.fleet import DEVICE, world
from tests.simulators.mosquitto import Mosquitto, find_mosquitto
from tests.simulators.one_connection import Heard, connected, run, soon

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
PI = Address("default", "pi-7")
Brokers = Callable[..., Mosquitto]


def keeps(folder: Path) -> str:
    """Lines for a broker that keeps on the disk what it has when it is told to save."""
    return f"persistence true\npersistence_location {folder}/\nautosave_interval 0\n"


@pytest.fixture
def brokers(tmp_path: Path) -> Iterator[Brokers]:
    """Makes brokers; without `extra` one that keeps nothing over a kill."""
    made: list[Mosquitto] = []

    def make(extra: str = "") -> Mosquitto:
        made.append(Mosquitto(tmp_path, extra))
        made[-1].start()
        return made[-1]

    yield make
    for broker in made:
        broker.stop()


def at(broker: Mosquitto) -> Mqtt:
    return Mqtt(host="127.0.0.1", port=broker.port, keepalive_s=5)


def a_link(broker: Mosquitto, session: int = 4) -> Link:
    about = {"session": session, "boot_id": "boot", "capabilities": {"pause": {"type": "pause"}}, "birth": {"a": 1}}
    return Link(at(broker), PI, now=lambda: 1000.0, jitter=soon, **about)  # type: ignore[arg-type]


async def until(link: Link, wanted: LinkEvent) -> None:
    """The next event but losses is `wanted`."""
    while isinstance(event := await link.receive(), Disconnected):
        pass
    assert event == wanted


async def nothing_more(link: Link) -> None:
    """Whatever is judged at a connect is judged once the broker confirmed what was published after it."""
    assert await link.publish_status("pause", "an-id", {})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(link.receive(), 0.1)


@asynccontextmanager
async def an_onlooker(broker: Mosquitto) -> AsyncIterator[tuple[Connection, Heard]]:
    async with connected(at(broker), "onlooker") as (connection, heard):
        yield connection, heard


async def wipe(broker: Mosquitto, *topics: str) -> None:
    async with an_onlooker(broker) as (connection, _):
        for topic in topics:
            assert await connection.publish(PI.topic(topic), b"")


async def kept(broker: Mosquitto, *topics: str) -> dict[str, dict[str, object]]:
    """The retained messages."""
    found: dict[str, dict[str, object]] = {}
    async with an_onlooker(broker) as (connection, heard):
        connection.subscribe(PI.topic("#"))
        while len(found) < len(topics):
            message = await heard.messages.get()
            found[message.topic.removeprefix(PI.topic() + "/")] = json.loads(message.payload)
            connection.ack(message)
    assert set(found) == set(topics)
    return found


def test_a_broker_that_kept_all_is_told_presence_birth_and_capabilities_alone(brokers: Brokers) -> None:
    broker = brokers()

    async def story() -> None:
        link = a_link(broker)
        link.start()
        await until(link, Connected(session_present=False))
        for _ in range(2):
            assert await link.publish_status("pause", "an-id", {})
            link._connection._client.abort()
            await until(link, Connected(session_present=True))
            await nothing_more(link)
        await link.stop()
        later = a_link(broker, session=5)  # the daemon was restarted
        later.start()
        await until(later, Connected(session_present=True))
        await nothing_more(later)
        await later.stop()

    run(story)


def test_a_broker_that_lost_what_it_kept_but_not_our_session_is_noticed(brokers: Brokers) -> None:
    broker = brokers()

    async def story() -> None:
        link = a_link(broker)
        link.start()
        await until(link, Connected(session_present=False))
        await link.stop()
        await wipe(broker, "conn", "birth", "cmd/pause")
        later = a_link(broker, session=5)
        later.start()
        await until(later, Connected(session_present=True))
        await until(later, Wiped())
        await kept(broker, "conn", "birth", "cmd/pause")
        await later.stop()

    run(story)


@pytest.mark.parametrize("connections", [1, 2])
def test_a_broker_that_comes_back_with_an_old_save_is_noticed_where_it_shows(
    brokers: Brokers, tmp_path: Path, connections: int
) -> None:
    """Killed in the connection of the save, only what was told since is lost: the daemon tells an hour of it again."""
    broker = brokers(keeps(tmp_path))

    async def story() -> None:
        link = a_link(broker)
        link.start()
        await until(link, Connected(session_present=False))
        assert await link.publish_status("pause", "an-id", {})
        await asyncio.to_thread(broker.save)
        for _ in range(connections - 1):
            link._connection._client.abort()
            await until(link, Connected(session_present=True))
        await nothing_more(link)
        broker.kill()
        broker.start()
        await until(link, Connected(session_present=True))
        if connections == 1:
            await nothing_more(link)
        else:
            await until(link, Wiped())
        await link.stop()

    run(story)


def test_a_last_will_that_comes_late_does_not_stay(brokers: Brokers) -> None:
    broker = brokers()
    late = {"online": False, "session": 3, "connection": 1, "boot_id": "before", "ts": 900.0}

    async def story() -> None:
        link = a_link(broker)
        link.start()
        await until(link, Connected(session_present=False))
        async with an_onlooker(broker) as (connection, heard):
            connection.subscribe(PI.topic("conn"))
            for number in range(MAX_REPAIRS + 2):
                assert await connection.publish(PI.topic("conn"), json.dumps(late).encode())
                while json.loads((await heard.messages.get()).payload)["online"]:
                    pass
                if number < MAX_REPAIRS:
                    repaired = json.loads((await heard.messages.get()).payload)
                    assert (repaired["online"], repaired["session"]) == (True, 4)
        assert not (
            await kept(
                broker,
                "conn",
                "birth",
                "cmd/pause",
            )
        )["conn"]["online"]  # who goes on is not fought
        await link.stop()

    run(story)


@pytest.mark.parametrize("payload", [b"", b"\xff", b"[]", b"{}", b'{"session": "4"}', b"{" * 2000, b"x" * 100_000])
def test_a_presence_that_is_none_is_taken_for_a_wiped_one(brokers: Brokers, payload: bytes) -> None:
    broker = brokers()

    async def story() -> None:
        link = a_link(broker)
        link.start()
        await until(link, Connected(session_present=False))
        await link.stop()
        async with an_onlooker(broker) as (connection, _):
            assert await connection.publish(PI.topic("conn"), payload)
        later = a_link(broker, session=5)
        later.start()
        await until(later, Connected(session_present=True))
        await until(later, Wiped())
        await later.stop()

    run(story)


async def commands(link: Link, wanted: set[str], least: int) -> set[str]:
    """Ids of commands that arrive, each acknowledged, until `least` of those `wanted` have."""
    seen: set[str] = set()
    while len(seen & wanted) < least:
        event = await link.receive()
        if isinstance(event, Incoming):
            seen.add(event.id)
            event.ack()
    return seen


@pytest.mark.parametrize(("limit", "count"), [("", 300), ("max_queued_messages 20", 60)])
def test_commands_beyond_the_queue_of_the_broker_are_not_lost(brokers: Brokers, limit: str, count: int) -> None:
    """Requests are retained, and who sees no status repeats his: a queue that overflowed loses nothing."""
    broker = brokers(limit)
    ids = [new_id(1_772_366_400_000 + number, lambda length: b"\0" * length) for number in range(count)]

    async def send(console: Connection, wanted: Iterable[str]) -> None:
        for command_id in wanted:
            topic = PI.topic("cmd", "pause", command_id, "req")
            assert await console.publish(topic, b"x", expires_s=600)

    async def story() -> None:
        link = a_link(broker)
        link.start()
        await until(link, Connected(session_present=False))
        await link.stop()
        async with an_onlooker(broker) as (console, _):
            await send(console, ids)
            later = a_link(broker, session=5)
            later.start()
            first = await commands(later, set(ids), 20)
            await asyncio.sleep(0.3)  # mosquitto sends all once the first are acknowledged: the daemon may be slow
            assert later._events.qsize() <= MAX_QUEUED_EVENTS + 4 * PACKETS_IN_A_ROW  # of 580 that come without limit
            first |= await commands(later, set(ids) - first, 0 if limit else count - 20)
            missing = set(ids) - first
            repeated = asyncio.ensure_future(send(console, sorted(missing)))
            await commands(later, missing, len(missing))
            await repeated
            await later.stop()

    run(story)


async def statuses(broker: Mosquitto) -> dict[str, dict[str, object]]:
    """Bodies of the retained statuses of the daemon's board, by id."""
    found: dict[str, dict[str, object]] = {}
    async with an_onlooker(broker) as (connection, heard):
        connection.subscribe(Address("default", DEVICE).topic("cmd", "+", "+", "sts"))
        connection.subscribe("marker")
        assert await connection.publish("marker", b"", retain=False)  # the broker works in order
        while (message := await heard.messages.get()).topic != "marker":
            body = json.loads(message.payload)
            found[body["id"]] = body
            connection.ack(message)
    return found


def other_hours() -> str:
    """A window that does not open soon."""
    hour = time.localtime().tm_hour
    return f"{(hour + 12) % 24:02}:00-{(hour + 13) % 24:02}:00"


@pytest.mark.parametrize("old_save", [False, True])
def test_a_real_daemon_tells_a_broker_that_was_killed_all_that_counts(tmp_path: Path, *, old_save: bool) -> None:
    """It comes back empty, or as it was before it was told anything, with our session and presence."""
    with world(tmp_path, started=False) as made:
        if old_save:
            made.broker.stop()
            with (tmp_path / "mosquitto.conf").open("a") as config:
                config.write(keeps(tmp_path))
            made.broker.start()
        made.start()
        if old_save:
            made.send("set-policy", {"reset": True})  # it is connected
            made.broker.save()
        job = made.send("fine-tune", made.job("no-such-data") | {"window": other_hours()}, until=("deferred",))
        reset = made.send("set-policy", {"reset": True})
        before = asyncio.run(statuses(made.broker))
        assert {job["id"], reset["id"]} <= set(before)
        made.broker.kill()
        made.broker.start()
        again: dict[str, dict[str, object]] = {}
        made.wait(lambda: again.update(asyncio.run(statuses(made.broker))) or set(again) == set(before))
        assert again[job["id"]] | {"ts": 0} == before[job["id"]] | {"ts": 0}
        assert again[reset["id"]]["status"] == "succeeded"
