"""Second clients, dead networks, brokers that hold us or send what they must not, and many connections at once."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.config import Mqtt
from service.device_link import Address, Link
from service.link_client import ANSWER_WITHIN, MAX_UNSENT, PING_AFTER
from service.link_pace import FIRST_DELAY_S, LONGEST_DELAY_S, LONGEST_YIELD_S, STEADY_S, Pace, uniform
from tests.simulators.mosquitto import Mosquitto, find_mosquitto
from tests.simulators.one_connection import a_connection, connected, first_trouble, run, soon
from tests.simulators.proxy import Proxy
from tests.simulators.scripted_broker import WELCOME, EndlessFrame, ScriptedBroker, SubscriptionJudge

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
MANY = 150


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    made.start()
    yield made
    made.stop()


def at(port: int, keepalive_s: int = 5) -> Mqtt:
    return Mqtt(host="127.0.0.1", port=port, keepalive_s=keepalive_s)


# --- a second client with our id -------------------------------------------------------------------------------------


def test_a_broker_that_tells_of_a_second_client_with_our_id_is_believed_and_the_client_not_fought() -> None:
    drawn: list[tuple[float, float]] = []

    def draw(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    async def story() -> None:
        async with ScriptedBroker(WELCOME + b"\xe0\x01\x8e").serving() as broker:
            connection, heard = a_connection(at(broker.port), jitter=draw)
            connection.start()
            assert "another client uses our client id" in await heard.troubles.get()
            while connection.takeovers < 3:
                await broker.served.get()
            await connection.stop()
        assert drawn[:3] == [(30.0, 60.0), (60.0, 120.0), (120.0, 240.0)]

    run(story)


def test_two_boards_with_one_name_find_each_other_where_the_broker_does_not_tell(broker: Mosquitto) -> None:
    """As mosquitto 2.0.11: it only closes the older connection."""
    yields: asyncio.Queue[str] = asyncio.Queue()

    def a_link(boot_id: str) -> Link:
        def draw(low: float, _high: float) -> float:
            if low == 0:
                return 0.0
            yields.put_nowait(boot_id)
            return 3600.0  # for good, here

        about = {"session": 3, "boot_id": boot_id, "capabilities": {}, "birth": {}, "now": lambda: 1e9, "jitter": draw}
        return Link(at(broker.port), Address("default", "pi-7"), **about)  # type: ignore[arg-type]

    async def story() -> None:
        one, two = a_link("one"), a_link("two")
        one.start()
        two.start()
        yielding, other = (one, two) if await yields.get() == "one" else (two, one)
        while not other.connected:
            await other.receive()
        assert not yielding.connected
        assert yielding.figures()["takeovers"] != 0
        assert "another client uses our client id" in str(yielding.shown()["why"])
        await one.stop()
        await two.stop()

    run(story)


def test_delays_are_spread_over_all_that_is_allowed() -> None:
    drawn = [uniform(30.0, 60.0) for _ in range(1000)]
    assert all(30.0 <= one <= 60.0 for one in drawn)
    assert {int(one - 30.0) // 5 for one in drawn} >= set(range(6))


def test_the_longer_a_second_client_stays_the_longer_we_wait() -> None:
    pace = Pace(lambda low, high: high - low)
    waits = []
    for _ in range(6):
        pace.connected(0.0)
        waits.append(pace.after_takeover(1.0))
    assert waits == [30.0, 60.0, 120.0, 240.0, LONGEST_YIELD_S / 2, LONGEST_YIELD_S / 2]
    pace.connected(0.0)
    assert pace.after_takeover(LONGEST_YIELD_S - 1) == LONGEST_YIELD_S / 2
    pace.connected(0.0)
    assert pace.after_takeover(LONGEST_YIELD_S) == 30.0  # it had left us alone for so long


def test_a_connection_that_lasts_starts_the_delays_again() -> None:
    pace = Pace(lambda low, high: high - low)
    assert [pace.after_loss(0.0) for _ in range(3)] == [FIRST_DELAY_S, 2.0, 4.0]
    pace.connected(0.0)
    assert pace.after_loss(STEADY_S - 1) == 8.0  # it was ended at once
    pace.connected(0.0)
    assert pace.after_loss(STEADY_S) == FIRST_DELAY_S
    assert max(pace.after_loss(0.0) for _ in range(40)) == LONGEST_DELAY_S


# --- dead networks ---------------------------------------------------------------------------------------------------


def test_a_broker_that_answered_is_alive_however_late_we_look(broker: Mosquitto) -> None:
    async def story() -> None:
        async with connected(at(broker.port, 3)) as (connection, heard):
            asked: set[float | None] = {None}
            while len(asked) < 3:  # the second one is sent after the first was found answered
                asked.add(connection._client._pinged)
                time.sleep(0.02)  # noqa: ASYNC251 - the loop is to come late to its timers
                await asyncio.sleep(0.01)
            assert heard.downs.empty()

    run(story)


def test_a_connection_that_is_dead_without_a_word_is_found(broker: Mosquitto) -> None:
    assert PING_AFTER + ANSWER_WITHIN <= 1.5

    async def story() -> None:
        with Proxy(broker.port) as network:
            async with connected(at(network.port, 1)) as (connection, heard):
                network.swallow()
                confirmed = connection.publish("a", b"x")
                assert "silent for too long" in await heard.downs.get()
                assert await confirmed is False
                network.cut()
                network.heal()
                await heard.ups.get()
                assert await connection.publish("a", b"x")

    run(story)


def test_a_quiet_connection_that_lives_is_kept(broker: Mosquitto) -> None:
    async def story() -> None:
        with Proxy(broker.port) as network:
            async with connected(at(network.port, 2)) as (connection, _heard):
                await asyncio.sleep(3.6)  # the broker ends it after 1.5 keepalives without a packet, and so do we
                assert await connection.publish("a", b"x")
                assert (connection.losses, network.connections) == (0, 1)

    run(story)


def test_a_connection_that_does_not_drain_takes_no_more_and_recovers(broker: Mosquitto) -> None:
    async def story() -> None:
        with Proxy(broker.port) as network:
            async with connected(at(network.port, 60)) as (connection, _heard):
                network.swallow()
                large, sent = b"x" * 200_000, 0
                while connection.publish_lossy("a", large):
                    sent += 1
                    await asyncio.sleep(0)
                assert connection.unconfirmed == MAX_UNSENT
                assert sent > MAX_UNSENT
                network.heal()
                assert await connection.publish("a", b"x")  # the broker works in order
                assert connection.unconfirmed == 0
                assert connection.publish_lossy("a", large)

    run(story)


# --- hostile brokers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"\x20\x02\x00\x01", "does not speak MQTT 5"),  # as MQTT 3.1.1 refuses
        (b"\x20\x03\x00\x86\x00", "bad user name or password"),
        (b"\x20\x03\x00\x85\x00", "does not accept our client id"),
        (b"\x20\x03\x00\x97\x00", "quota"),
        (WELCOME + b"\xe0\x02\x8b\x00", "shutting down"),
        (WELCOME + b"\x32" + b"\xff\xff\xff\x7f" + b"\x00" * 100, "larger than we allow"),
        (WELCOME + b"\x34\x0a\x00\x01a\x00\x01\x00half", "no MQTT 5"),  # the first half of a message of QoS 2
        (WELCOME + b"\x32\x03\x00\x09a", "no MQTT 5"),
        (WELCOME + b"\xf0\x00", "no MQTT 5"),
    ],
)
def test_what_a_broker_must_not_send_ends_the_connection_with_its_name(answer: bytes, said: str) -> None:
    async def story() -> str:
        async with ScriptedBroker(answer).serving() as broker:
            return await first_trouble(at(broker.port))

    assert said in run(story)


@pytest.mark.parametrize("seed", range(3))
def test_noise_from_a_broker_raises_nothing_and_we_come_back(seed: int) -> None:
    noise = random.Random(seed)

    async def story() -> None:
        raised: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context))
        async with ScriptedBroker(b"").serving() as broker:
            connection, heard = a_connection(at(broker.port, 1), jitter=lambda _low, _high: 0.0)
            connection.start()
            for _ in range(30):
                kind = noise.choice((0x10, 0x20, 0x32, 0x33, 0x40, 0x50, 0x62, 0x90, 0xB0, 0xD0, 0xE0, 0xF0))
                body = noise.randbytes(noise.randrange(1, 60))
                broker.answer = WELCOME + bytes([kind, len(body)]) + body + b"\xf0\x00"
                await broker.served.get()
            broker.answer = WELCOME
            await heard.ups.get()
            await connection.stop()
        assert not raised

    run(story)


def test_a_subscription_that_is_refused_is_shown_and_asked_for_again() -> None:
    """As by brokers that say so; mosquitto withholds in silence."""

    async def story() -> None:
        async with SubscriptionJudge(0x87, 0x01).serving() as broker:
            connection, heard = a_connection(at(broker.port, 1))
            connection.start()
            await heard.ups.get()
            connection.subscribe("a/b")
            while not connection.refusals.total:  # noqa: ASYNC110 - it sets no event
                await asyncio.sleep(0.02)
            assert connection.refusals.latest == "subscription of a/b: Not authorized"
            while connection.refusals.latest:  # noqa: ASYNC110 - same
                await asyncio.sleep(0.02)
            assert (connection.refusals.total, connection.connected) == (1, True)
            await connection.stop()

    run(story)


def test_a_broker_that_never_answers_does_not_hold_us() -> None:
    async def story() -> str:
        async with ScriptedBroker(b"").serving() as broker:
            return await first_trouble(at(broker.port), limit_s=0.2)

    assert "no answer from 127.0.0.1" in run(story)


@pytest.mark.parametrize("changes", [{"transport": "websockets"}, {"tls": True}])
def test_a_handshake_that_drips_does_not_hold_us(changes: dict[str, object]) -> None:
    async def story() -> str:
        async with ScriptedBroker(b"\x16\x03\x03\x40\x00\x02", drip_s=0.02).serving() as broker:
            return await first_trouble(replace(at(broker.port), **changes), limit_s=0.5)  # type: ignore[arg-type]

    assert "no answer from 127.0.0.1" in run(story)


def test_a_websocket_frame_without_end_is_not_kept() -> None:
    """The broker alone decides how long a frame is; one may be longer than memory."""

    async def story() -> str:
        async with EndlessFrame().serving() as broker:
            return await first_trouble(replace(at(broker.port), transport="websockets"))

    assert "larger than we allow" in run(story)


# --- many ------------------------------------------------------------------------------------------------------------


def test_many_connections_share_a_few_threads(broker: Mosquitto) -> None:
    before = threading.active_count()

    async def story() -> None:
        all_of_them = [a_connection(at(broker.port), f"board-{number}") for number in range(MANY)]
        for connection, _ in all_of_them:
            connection.start()
        for _, heard in all_of_them:
            await heard.ups.get()
        confirmed = await asyncio.gather(*(connection.publish("a/b", b"x") for connection, _ in all_of_them))
        assert all(confirmed)
        assert threading.active_count() - before < MANY / 3
        await asyncio.gather(*(connection.stop() for connection, _ in all_of_them))

    run(story)


def test_stopping_while_connecting_ends() -> None:
    async def story() -> None:
        async with ScriptedBroker(b"").serving() as broker:
            for mqtt in (at(broker.port), replace(at(broker.port), transport="websockets")):
                connection, _ = a_connection(mqtt, jitter=soon)
                connection.start()
                await asyncio.sleep(0)
                await connection.stop()
                assert not connection.connected

    run(story)
