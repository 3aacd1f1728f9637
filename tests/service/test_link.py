from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from agent.errors import CommandError, ConfigError, NetworkError
from service.commands import MAX_ENVELOPE_BYTES, new_id
from service.config import Mqtt
from service.console_link import ConsoleLink, Seen
from service.device_link import Address, Connected, Disconnected, Incoming, Link
from service.link import LONGEST_DELAY_S, MAX_PACKET_BYTES, Connection
from service.payload import CBOR, JSON
from tests.simulators.mosquitto import Mosquitto, find_mosquitto

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
ROOT = Path(__file__).parents[2]
PI = Address("default", "pi-7")
HANG_S = 20.0  # ends a test that would wait for ever; nothing is asserted about time
T = TypeVar("T")


def an_id(number: int) -> str:
    return new_id(1_772_366_400_000 + number, lambda n: b"\0" * n)


def run(story: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def guarded() -> T:
        async with asyncio.timeout(HANG_S):
            return await story()

    return asyncio.run(guarded())


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    made.start()
    yield made
    made.stop()


def soon(_low: float, high: float) -> float:
    return min(high, 0.05)


def settings(broker: Mosquitto) -> Mqtt:
    return Mqtt(host="127.0.0.1", port=broker.port, keepalive_s=5)


def a_link(mqtt: Mqtt, session: int = 1) -> Link:
    return Link(
        mqtt,
        PI,
        session=session,
        boot_id="boot",
        capabilities={"fine-tune": {"model": "text"}},
        birth={"board": "emulated"},
        now=lambda: 1000.0,
        jitter=soon,
    )


async def subscribed(connection: Connection) -> None:
    """The broker works in order: once it confirmed this, the subscriptions sent before are in force."""
    assert await connection.publish(PI.topic("probe"), b"{}", retain=False)


@asynccontextmanager
async def up(link: Link) -> AsyncIterator[Link]:
    link.start()
    try:
        assert isinstance(await link.receive(), Connected)
        await subscribed(link._connection)
        yield link
    finally:
        await link.stop()


@asynccontextmanager
async def a_console(broker: Mosquitto) -> AsyncIterator[ConsoleLink]:
    async with ConsoleLink(settings(broker), PI, "console-1") as console:
        await console.wait_connected(HANG_S)
        await subscribed(console._link._connection)
        yield console


async def command(link: Link) -> Incoming:
    event = await link.receive()
    assert isinstance(event, Incoming), event
    return event


async def see(console: ConsoleLink, wanted: Callable[[Seen], bool]) -> Seen:
    async for seen in console.watch():
        if wanted(seen):
            return seen
    raise AssertionError("watch ends only with its caller")


def test_a_command_goes_there_and_its_status_comes_back(broker: Mosquitto) -> None:
    async def story() -> None:
        async with up(a_link(settings(broker))) as link, a_console(broker) as console:
            await console.send("fine-tune", an_id(1), b"sealed with love", expires_s=60)
            got = await command(link)
            assert (got.type, got.id, got.envelope) == ("fine-tune", an_id(1), b"sealed with love")
            got.ack()
            assert await link.publish_status(got.type, got.id, {"status": "received"}) is True
            seen = await see(console, lambda item: item.kind == "status")
            assert (seen.name, seen.command_id, seen.body) == ("fine-tune", an_id(1), {"status": "received"})
            await console.clear("fine-tune", an_id(1))

    run(story)


def test_a_small_packet_does_not_wait_for_the_one_before(broker: Mosquitto) -> None:
    async def story() -> None:
        async with up(a_link(settings(broker))) as link:
            open_socket = link._connection._client.socket()
            assert isinstance(open_socket, socket.socket)
            assert open_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(story)


def test_a_console_that_comes_later_finds_presence_birth_and_capabilities(broker: Mosquitto) -> None:
    async def story() -> None:
        async with up(a_link(settings(broker), session=7)) as link:
            assert await link.publish_status("pause", an_id(1), {"status": "succeeded"})
            link.announce({"board": "another"})
            assert await link.publish_status("pause", an_id(2), {"status": "succeeded"})
            async with a_console(broker) as console:
                found: dict[str, Seen] = {}
                while len(found) < 4:
                    seen = await see(console, lambda item: item.retained)
                    found[seen.kind] = seen
        assert found["conn"].body == {"online": True, "session": 7, "connection": 1, "boot_id": "boot", "ts": 1000.0}
        assert found["birth"].body == {"board": "another"}
        assert (found["capability"].name, found["capability"].body) == ("fine-tune", {"model": "text"})

    run(story)


def test_telemetry_arrives_and_does_not_leave_while_there_is_no_broker(broker: Mosquitto) -> None:
    async def story() -> None:
        async with a_console(broker) as console:
            link = a_link(settings(broker))
            assert not link.publish_lossy("board", b'{"x":1}', JSON)
            async with up(link):
                assert link.publish_lossy("board", b'{"x":2}', JSON)
                seen = await see(console, lambda item: item.kind == "metrics")
                assert (seen.name, seen.body, seen.retained) == ("board", {"x": 2}, False)
                assert await link.publish_telemetry("energy", b"\xa1axO", CBOR) is True  # {"x": -16}, but no text key
                assert await link.publish_telemetry("energy", b"\xa1\x61x\x18\x2a", CBOR) is True
                seen = await see(console, lambda item: item.kind == "metrics")
                assert (seen.name, seen.body) == ("energy", {"x": 42})
            assert not link.publish_lossy("board", b"{}", JSON)

    run(story)


CHILD = """
import asyncio, sys
from service.config import Mqtt
from service.device_link import Address, Incoming, Link
from service.logs import configure
async def main():
    configure()
    link = Link(Mqtt(host="127.0.0.1", port=int(sys.argv[1])), Address("default", "pi-7"), session=4, boot_id="b",
                capabilities={}, birth={}, now=lambda: 1.0)
    link.start()
    while True:
        event = await link.receive()
        print(type(event).__name__, flush=True)
asyncio.run(main())
"""


async def a_killed_device(broker: Mosquitto, console: ConsoleLink, sender: Connection) -> None:
    """A device process that takes a command, is killed before it acknowledges, and leaves its last will."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(broker.port), cwd=ROOT, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"Connected\n"
    await see(console, lambda item: item.kind == "conn" and item.body["online"] is True)
    assert await sender.publish(PI.topic("cmd", "pause", an_id(1), "req"), b"first", retain=False)
    assert await child.stdout.readline() == b"Incoming\n"
    child.kill()
    await child.wait()
    gone = await see(console, lambda item: item.kind == "conn" and item.body["online"] is False)
    assert (gone.body["session"], gone.body["connection"]) == (4, 1)


@asynccontextmanager
async def a_sender(mqtt: Mqtt, client_id: str = "sender", *, keep_session: bool = False) -> AsyncIterator[Connection]:
    ready = asyncio.Event()
    sender = Connection(
        mqtt,
        client_id,
        keep_session=keep_session,
        on_up=lambda _present: ready.set(),
        on_down=lambda _reason: None,
        on_message=lambda _message: None,
    )
    sender.start()
    await ready.wait()
    yield sender
    await sender.stop()


def test_kill_9_leaves_the_will_and_an_unacknowledged_command_comes_again(broker: Mosquitto) -> None:
    async def story() -> None:
        async with a_console(broker) as console, a_sender(settings(broker)) as sender:
            await a_killed_device(broker, console, sender)
            async with up(a_link(settings(broker), session=5)) as link:
                again = await command(link)
                assert again.envelope == b"first"
                again.ack()
            async with up(a_link(settings(broker), session=6)) as link:
                assert await sender.publish(PI.topic("cmd", "pause", an_id(2), "req"), b"second", retain=False)
                assert (await command(link)).envelope == b"second"  # the first was acknowledged

    run(story)


def test_a_clean_stop_says_offline_before_it_goes(broker: Mosquitto) -> None:
    async def story() -> None:
        async with a_console(broker) as console:
            async with up(a_link(settings(broker), session=9)):
                await see(console, lambda item: item.kind == "conn" and item.body["online"] is True)
            gone = await see(console, lambda item: item.kind == "conn")
            assert gone.body["online"] is False

    run(story)


def test_the_broker_is_killed_and_comes_back_empty(broker: Mosquitto) -> None:
    async def story() -> None:
        async with up(a_link(settings(broker))) as link:
            assert await link.publish_status("pause", an_id(1), {"version": 1})
            broker.kill()
            assert isinstance(await link.receive(), Disconnected)
            assert await link.publish_status("pause", an_id(1), {"version": 2}) is False
            broker.start()
            back = await link.receive()
            assert back == Connected(session_present=False)
            assert await link.publish_status("pause", an_id(1), {"version": 3})
            async with a_console(broker) as console:
                seen = [await see(console, lambda item: item.kind != "metrics") for _ in range(4)]
                assert {item.kind for item in seen} == {"conn", "birth", "capability", "status"}
                (status,) = (item for item in seen if item.kind == "status")
                assert status.body == {"version": 3}
                await console.send("pause", an_id(2), b"x", expires_s=60)
                assert (await command(link)).id == an_id(2)

    run(story)


def test_an_old_acknowledgement_does_not_touch_the_new_connection(broker: Mosquitto) -> None:
    async def story() -> None:
        async with a_sender(settings(broker)) as sender, up(a_link(settings(broker))) as link:
            assert await sender.publish(PI.topic("cmd", "pause", an_id(1), "req"), b"x", retain=False)
            first = await command(link)
            link._connection._client.abort()  # a network that breaks; the broker keeps the session
            assert isinstance(await link.receive(), Disconnected)
            assert await link.receive() == Connected(session_present=True)
            again = await command(link)
            first.ack()  # names the old connection
            link._connection._client.abort()
            assert isinstance(await link.receive(), Disconnected)
            assert isinstance(await link.receive(), Connected)
            third = await command(link)
            assert first.envelope == again.envelope == third.envelope == b"x"

    run(story)


def test_starting_without_a_broker_is_fine(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)

    async def story() -> None:
        link = a_link(settings(broker))
        link.start()
        assert not link.connected
        assert await link.publish_status("pause", an_id(1), {}) is False
        broker.start()
        assert isinstance(await link.receive(), Connected)
        assert await link.publish_status("pause", an_id(1), {}) is True
        await link.stop()

    try:
        run(story)
    finally:
        broker.stop()


def test_stopping_without_a_broker_ends(tmp_path: Path) -> None:
    async def story() -> bool:
        link = a_link(settings(Mosquitto(tmp_path)))
        link.start()
        await link.stop()
        return link.connected

    assert run(story) is False


def test_hostile_messages_are_refused_and_the_next_command_arrives(broker: Mosquitto) -> None:
    async def story() -> None:
        async with a_sender(settings(broker)) as sender, up(a_link(settings(broker))) as link:

            async def send(*levels: str, payload: bytes = b"x") -> None:
                assert await sender.publish(PI.topic("cmd", *levels, "req"), payload, retain=False)

            await send("pause", "1")
            await send("pause", an_id(1).upper())
            await send("", an_id(1))
            await send("ü" * 10, an_id(1))
            await send("x" * 33, an_id(1))
            await send("pause", an_id(1), payload=b"x" * (MAX_ENVELOPE_BYTES + 1))
            await send("pause", an_id(1), payload=b"x" * (MAX_PACKET_BYTES + 1))  # the broker drops it for us
            assert sender.publish_lossy(PI.topic("cmd", "pause", an_id(1), "req"), b"qos 0")
            await send("pause", an_id(1), payload=b"")  # clears a request
            await send("pause", an_id(2), payload=b"\xff\xfe\x00" + b"x" * (MAX_ENVELOPE_BYTES - 3))
            got = await command(link)
            assert (got.id, len(got.envelope)) == (an_id(2), MAX_ENVELOPE_BYTES)
            assert link.refused_total == 7

    run(story)


def test_a_flood_waits_at_the_broker_and_nothing_is_lost(broker: Mosquitto) -> None:
    async def story() -> None:
        async with a_sender(settings(broker)) as sender, up(a_link(settings(broker))) as link:
            for first in range(0, 120, 40):
                sent = [
                    sender.publish(PI.topic("cmd", "pause", an_id(n), "req"), b"x", retain=False)
                    for n in range(first, first + 40)
                ]
                assert all(await asyncio.gather(*sent))
                for number in range(first, first + 40):
                    got = await command(link)
                    assert got.id == an_id(number)
                    got.ack()

    run(story)


def test_a_second_client_with_our_name_does_not_end_the_link(broker: Mosquitto) -> None:
    async def story() -> None:
        async with up(a_link(settings(broker))) as link:
            intruder = Connection(
                settings(broker),
                "temperd-default-pi-7",
                keep_session=True,
                on_up=lambda _present: None,
                on_down=lambda _reason: None,
                on_message=lambda _message: None,
                jitter=soon,
            )
            intruder.start()
            assert isinstance(await link.receive(), Disconnected)
            await intruder.stop()
            while not link.connected:
                await link.receive()
            assert await link.publish_status("pause", an_id(1), {})

    run(story)


def test_what_was_unconfirmed_is_not_sent_after_what_is_newer(broker: Mosquitto) -> None:
    async def story() -> None:
        async with up(a_link(settings(broker))) as link, a_console(broker) as console:
            link._connection._client.abort()
            stale = link.publish_status("pause", an_id(1), {"version": 1})
            assert await stale in (True, False)
            while not isinstance(await link.receive(), Connected):
                pass
            assert await link.publish_status("pause", an_id(1), {"version": 2})
            assert await link.publish_status("pause", an_id(2), {"version": 1})
            versions = []
            while True:
                seen = await see(console, lambda item: item.kind == "status")
                if seen.command_id == an_id(2):
                    break
                versions.append(seen.body["version"])
            assert versions in ([2], [1, 2])

    run(story)


def test_a_too_long_publication_is_refused_here(broker: Mosquitto) -> None:
    async def story() -> None:
        async with up(a_link(settings(broker))) as link, a_console(broker) as console:
            assert await link.publish_status("pause", an_id(1), {"reason": "x" * 300_000}) is False
            with pytest.raises(CommandError):
                await console.send("pause", an_id(1), b"x" * (MAX_ENVELOPE_BYTES + 1), expires_s=60)

    run(story)


def test_a_console_skips_what_it_cannot_read(broker: Mosquitto) -> None:
    async def story() -> None:
        async with a_console(broker) as console, a_sender(settings(broker)) as sender:
            for payload in (b"\xff", b"{", b"[1]", b'{"a":NaN}', b"", b'{"good":1}'):
                assert await sender.publish(PI.topic("m", "board"), payload, retain=False)
            assert await sender.publish(PI.topic("cmd", "a", "b", "c", "sts"), b"{}", retain=False)
            seen = await see(console, lambda _item: True)
            assert (seen.kind, seen.name, seen.body) == ("metrics", "board", {"good": 1})

    run(story)


def test_a_console_without_a_broker_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        async with ConsoleLink(settings(Mosquitto(tmp_path)), PI, "console-1") as console:
            with pytest.raises(NetworkError, match="no broker"):
                await console.wait_connected(0.05)
            with pytest.raises(NetworkError, match="did not confirm"):
                await console.send("pause", an_id(1), b"x", expires_s=60, timeout_s=0.05)

    run(story)


def test_delays_are_drawn_below_a_bound_that_doubles_to_its_limit(tmp_path: Path) -> None:
    bounds: list[float] = []

    async def story() -> None:
        enough = asyncio.Event()
        loop = asyncio.get_running_loop()

        def draw(low: float, high: float) -> float:
            assert low == 0.0
            bounds.append(high)
            if len(bounds) == 8:
                loop.call_soon_threadsafe(enough.set)
            return 0.001

        connection = Connection(
            settings(Mosquitto(tmp_path)),
            "x",
            keep_session=False,
            on_up=lambda _present: None,
            on_down=lambda _reason: None,
            on_message=lambda _message: None,
            jitter=draw,
        )
        connection.start()
        await enough.wait()
        await connection.stop()

    run(story)
    assert bounds[:8] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, LONGEST_DELAY_S, LONGEST_DELAY_S]


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"x" * 5000])
def test_a_password_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        a_link(Mqtt(username="pi", password_file=str(path)))
    assert caught.value.where == str(path)


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602])
def test_a_password_that_everybody_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "password"
    path.write_text("secret\n")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod") as caught:
        a_link(Mqtt(username="pi", password_file=str(path)))
    assert caught.value.code == "key-permissions"
    with pytest.raises(ConfigError, match="chmod"):
        a_link(Mqtt(ca_file="ca.crt", cert_file="own.crt", key_file=str(path)))


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ca.crt"
    path.write_text("rubbish")
    with pytest.raises(ConfigError) as caught:
        a_link(Mqtt(ca_file=str(path)))
    assert str(path) in caught.value.where
