"""TLS and websockets over a network that drips, tears and corrupts: what arrives is whole, and a loss is noticed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from service.config import Mqtt
from tests.simulators.certificates import certificate, listener_lines
from tests.simulators.mosquitto import Mosquitto, find_mosquitto, free_port
from tests.simulators.one_connection import Heard, connected, run
from tests.simulators.proxy import Proxy, Wanted, Way

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
LONG = bytes(range(256)) * 80  # more than a TLS record, and than one reading


@pytest.fixture(scope="module", params=["tls", "websockets"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, Mqtt]]:
    """A proxy before a broker that speaks so, and how to reach it."""
    folder = tmp_path_factory.mktemp("transport")
    certificate(folder, "broker", certificate(folder, "authority", None))
    port = free_port()
    lines = f"listener {port} 127.0.0.1\n"  # beside the usual one: mosquitto needs one that is no websocket
    mqtt = Mqtt(host="127.0.0.1", keepalive_s=5)
    if request.param == "tls":
        lines += listener_lines(folder, "broker")
        mqtt = replace(mqtt, ca_file=str(folder / "authority.crt"))
    if request.param == "websockets":
        lines += "protocol websockets\n"
        mqtt = replace(mqtt, transport="websockets")
    broker = Mosquitto(folder, lines)
    broker.start()
    with Proxy(port) as proxy:
        yield proxy, replace(mqtt, port=proxy.port)
    broker.stop()


@pytest.fixture(autouse=True)
def _heals(network: tuple[Proxy, Mqtt]) -> Iterator[None]:
    yield
    network[0].heal()


async def there_and_back(mqtt: Mqtt, proxy: Proxy) -> None:
    async with connected(mqtt) as (connection, heard):
        connection.subscribe("a/b")
        made = proxy.connections
        assert await connection.publish("a/b", LONG, retain=False)
        message = await heard.messages.get()
        connection.ack(message)
        assert message.payload == LONG
        assert (connection.losses, proxy.connections) == (0, made)


def test_a_dripping_network_costs_nothing_but_time_with_any_transport(network: tuple[Proxy, Mqtt]) -> None:
    proxy, mqtt = network
    proxy.drip(1)
    run(lambda: there_and_back(mqtt, proxy))


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_piece_that_is_torn_ends_the_connection_and_the_next_one_works(network: tuple[Proxy, Mqtt], way: Way) -> None:
    proxy, mqtt = network
    run(lambda: broken_and_whole(mqtt, lambda: proxy.tear(large(way), 700), way))


@pytest.mark.parametrize("network", ["tls"], indirect=True)
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_byte_that_changes_is_found_by_tls_and_the_next_connection_works(
    network: tuple[Proxy, Mqtt], way: Way
) -> None:
    proxy, mqtt = network
    run(lambda: broken_and_whole(mqtt, lambda: proxy.corrupt(large(way), 700, 0x10), way))


def large(way: Way) -> Wanted:
    """A piece with a part of `LONG`."""
    return lambda piece: piece.way == way and len(piece.raw) > 1000


async def broken_and_whole(mqtt: Mqtt, fault: Callable[[], threading.Event], way: Way) -> None:
    async with connected(mqtt) as (connection, heard):
        connection.subscribe("a/b")
        assert await connection.publish("a/b", b"before", retain=False)
        assert (await heard.messages.get()).payload == b"before"
        done = fault()
        confirmed = await connection.publish("a/b", LONG, retain=False)
        await heard.downs.get()
        assert done.is_set()
        assert not (confirmed and way == "up"), "what did not arrive is not confirmed"
        await heard.ups.get()
        connection.subscribe("a/b")
        assert await connection.publish("a/b", b"after", retain=False)
        assert await last(heard) == b"after"


async def last(heard: Heard) -> bytes:
    """The payload of the message after which there are no others, each of them whole."""
    payload = b""
    while payload != b"after":
        payload = (await heard.messages.get()).payload
        assert payload in (b"before", LONG, b"after")
    return payload
