"""Ways to a broker, and what is said when one is closed."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from service.config import Mqtt
from service.device_link import Address, Connected, Incoming, Link
from service.link import Message
from service.link_secrets import tls_context
from tests.simulators.certificates import HOUR, certificate, listener_lines
from tests.simulators.mosquitto import Mosquitto, find_mosquitto, free_port
from tests.simulators.one_connection import a_connection, connected, first_trouble, run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed"),
]
ROOT = Path(__file__).parents[2]
ID = "01a22c9f-6dd9-7cf1-86fb-2ab4c0be8330"


@contextmanager
def a_broker(folder: Path, extra: str = "", *, anonymous: bool = True) -> Iterator[Mosquitto]:
    broker = Mosquitto(folder, extra, anonymous=anonymous)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def at(broker: Mosquitto, **changes: object) -> Mqtt:
    # No ping helps a packet on that is stuck: it would come too late for the test.
    return replace(Mqtt(host="127.0.0.1", port=broker.port, keepalive_s=3600), **changes)  # type: ignore[arg-type]


async def goes_there_and_back(mqtt: Mqtt, payload: bytes = b"there and back") -> None:
    async with connected(mqtt) as (connection, heard):
        connection.subscribe("a/b")
        assert await connection.publish("a/b", payload, retain=False, content_type="text/plain")
        message = await heard.messages.get()
        assert (message.topic, message.payload, message.content_type) == ("a/b", payload, "text/plain")
        connection.ack(message)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, certificates of it, and strangers."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = certificate(folder, "authority", None)
    stranger = certificate(folder, "stranger", None)
    certificate(folder, "broker", authority)
    certificate(folder, "expired", authority, starts=-3 * HOUR, ends=-HOUR)
    certificate(folder, "early", authority, starts=dt.timedelta(hours=5), ends=dt.timedelta(hours=6))
    certificate(folder, "elsewhere", authority, address="127.0.0.2")
    certificate(folder, "board", authority)
    certificate(folder, "old-board", authority, starts=-3 * HOUR, ends=-HOUR)
    certificate(folder, "impostor", stranger)
    return folder


def own(place: Path, name: str) -> dict[str, object]:
    return {"cert_file": str(place / f"{name}.crt"), "key_file": str(place / f"{name}.key")}


# A payload longer than one TLS record and than one reading: what waits inside the TLS layer is read too.
LONG = bytes(range(256)) * 160
PROTOCOL = {"tcp": "mqtt", "websockets": "websockets"}  # a broker with a listener for websockets alone does not start


@pytest.mark.parametrize("transport", ["tcp", "websockets"])
def test_encrypted_with_a_certificate_of_the_board(tmp_path: Path, place: Path, transport: str) -> None:
    port = free_port()
    lines = listener_lines(place, "broker") + "require_certificate true\nuse_identity_as_username true\n"
    with a_broker(tmp_path, f"listener {port} 127.0.0.1\nprotocol {PROTOCOL[transport]}\n{lines}") as broker:
        ca = str(place / "authority.crt")
        mqtt = at(broker, port=port, ca_file=ca, transport=transport, **own(place, "board"))
        run(lambda: goes_there_and_back(mqtt, LONG))


def test_websockets_without_tls(tmp_path: Path) -> None:
    port = free_port()
    with a_broker(tmp_path, f"listener {port} 127.0.0.1\nprotocol websockets") as broker:
        # So long that the socket takes it in parts.
        run(lambda: goes_there_and_back(at(broker, port=port, transport="websockets"), bytes(100_000)))


@pytest.mark.parametrize("kept_as", ["file", "folder"])
def test_authorities_of_the_system(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch, kept_as: str) -> None:
    places = ssl.get_default_verify_paths()
    monkeypatch.delenv(places.openssl_cafile_env, raising=False)
    authority = (place / "authority.crt").read_bytes()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / hash_name(authority)).write_bytes(authority)
    (tmp_path / "file").write_bytes(authority)
    with a_broker(tmp_path, listener_lines(place, "broker")) as broker:
        mqtt = at(broker, tls=True)
        assert "not signed by an authority that we trust" in run(lambda: first_trouble(mqtt))
        variable = places.openssl_cafile_env if kept_as == "file" else places.openssl_capath_env
        monkeypatch.setenv(variable, str(tmp_path / kept_as))
        run(lambda: goes_there_and_back(mqtt))


def hash_name(pem: bytes) -> str:
    """As openssl-rehash(1) calls the file of an authority whose name is one short word in small letters."""
    name = x509.load_pem_x509_certificate(pem).subject.public_bytes()
    return f"{int.from_bytes(hashlib.sha1(name[2:]).digest()[:4], 'little'):08x}.0"  # noqa: S324 - OpenSSL's choice


def test_a_folder_of_authorities_is_not_read_whole(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = (place / "authority.crt").read_bytes()
    places = ssl.get_default_verify_paths()
    monkeypatch.delenv(places.openssl_cafile_env, raising=False)
    monkeypatch.setenv(places.openssl_capath_env, str(tmp_path))
    (tmp_path / hash_name(authority)).write_bytes(authority)
    context = tls_context(Mqtt(tls=True))
    assert context is not None
    assert context.cert_store_stats()["x509"] == 0
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(
    ("name", "ca", "said"),
    [
        ("expired", "authority", "has expired"),
        ("early", "authority", "not valid yet"),
        ("elsewhere", "authority", "for another address"),
        ("broker", "stranger", "not signed by an authority that we trust: check mqtt.ca_file"),
    ],
)
def test_a_certificate_of_the_broker_that_does_not_hold(
    tmp_path: Path, place: Path, name: str, ca: str, said: str
) -> None:
    with a_broker(tmp_path, listener_lines(place, name)) as broker:
        assert said in run(lambda: first_trouble(at(broker, ca_file=str(place / f"{ca}.crt"))))


def test_a_broker_that_gets_a_valid_certificate_is_found_without_a_restart(tmp_path: Path, place: Path) -> None:
    for part in ("crt", "key"):
        (tmp_path / f"mine.{part}").write_bytes((place / f"stranger.{part}").read_bytes())
    ours = tmp_path / "ca.crt"
    ours.write_bytes((place / "stranger.crt").read_bytes())

    async def story(mqtt: Mqtt) -> None:
        assert "authority" in await first_trouble(mqtt)
        ours.write_bytes((place / "authority.crt").read_bytes())
        await goes_there_and_back(mqtt)

    with a_broker(tmp_path, listener_lines(place, "broker")) as broker:
        run(lambda: story(at(broker, ca_file=str(ours))))


@pytest.mark.parametrize(
    ("name", "said"),
    [(None, "client certificate"), ("impostor", "who signed our certificate"), ("old-board", "certificate")],
)
def test_a_certificate_of_the_board_that_does_not_hold(
    tmp_path: Path, place: Path, name: str | None, said: str
) -> None:
    with a_broker(tmp_path, listener_lines(place, "broker") + "require_certificate true\n") as broker:
        shown = own(place, name) if name else {}
        assert said in run(lambda: first_trouble(at(broker, ca_file=str(place / "authority.crt"), **shown)))


def with_users(folder: Path) -> str:
    (folder / "users").write_text("pi:secret\nconsole:secret\n")
    done = subprocess.run(["mosquitto_passwd", "-U", str(folder / "users")], capture_output=True, check=False)
    assert done.returncode == 0
    return f"password_file {folder}/users\n"


def said(folder: Path, name: str, password: str) -> dict[str, object]:
    path = folder / "password"
    path.write_text(password + "\n")
    path.chmod(0o600)
    return {"username": name, "password_file": str(path)}


def test_user_and_password(tmp_path: Path) -> None:
    with a_broker(tmp_path, with_users(tmp_path), anonymous=False) as broker:
        right = at(broker, **said(tmp_path, "pi", "secret"))
        run(lambda: goes_there_and_back(right))
        (tmp_path / "password").write_text("guess\n")
        assert "not authorised" in run(lambda: first_trouble(right))
        assert "not authorised" in run(lambda: first_trouble(at(broker)))


def test_a_corrected_password_counts_without_a_restart(tmp_path: Path) -> None:
    async def story(mqtt: Mqtt) -> None:
        connection, heard = a_connection(mqtt)
        connection.start()
        assert "not authorised" in await heard.troubles.get()
        (tmp_path / "password").write_text("secret\n")
        await heard.ups.get()
        assert connection.why == ""
        await connection.stop()

    with a_broker(tmp_path, with_users(tmp_path), anonymous=False) as broker:
        run(lambda: story(at(broker, **said(tmp_path, "pi", "guess"))))


def test_a_publication_that_the_access_rules_refuse_is_counted_and_the_connection_stays(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("topic read #\ntopic write open/#\n")

    async def story(mqtt: Mqtt) -> None:
        async with connected(mqtt) as (connection, _heard):
            assert await connection.publish("closed/a", b"x") is False
            assert await connection.publish("open/a", b"x", retain=False) is True
            assert (connection.refusals.total, connection.connected) == (1, True)

    with a_broker(tmp_path, f"acl_file {tmp_path}/rules") as broker:
        run(lambda: story(at(broker)))


def test_the_access_rules_that_the_documentation_gives(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operate.md").read_text("utf-8")
    rules = [line.strip() for line in page.splitlines() if line.startswith(("    pattern ", "    user ", "    topic "))]
    assert len(rules) == 6
    (tmp_path / "rules").write_text("\n".join(rules) + "\n")
    users = with_users(tmp_path)

    async def story(board: Mqtt, console: Mqtt) -> None:
        here, there = "temper/v1/default/pi", "temper/v1/default/mute"
        link = Link(board, Address("default", "pi"), session=1, boot_id="b", capabilities={}, birth={}, now=lambda: 1.0)
        link.start()
        assert isinstance(await link.receive(), Connected)
        async with connected(console, "console") as (commands, heard), connected(board, "curious") as (curious, seen):
            commands.subscribe(f"{here}/#")
            curious.subscribe(f"{there}/#")
            curious.subscribe(f"{here}/conn")
            while not (await heard.messages.get()).topic.endswith("/birth"):
                pass
            assert (await seen.messages.get()).topic == f"{here}/conn"
            assert await commands.publish(f"{there}/cmd/pause/{ID}/req", b"x")
            assert await commands.publish(f"{here}/conn", b"x") is False
            assert await curious.publish(f"{there}/conn", b"x") is False
            assert await commands.publish(f"{here}/cmd/pause/{ID}/req", b"x")
            assert isinstance(await link.receive(), Incoming)
            assert seen.messages.empty()
            assert link._connection.refusals.total == 0
        await link.stop()

    with a_broker(tmp_path, users + f"acl_file {tmp_path}/rules", anonymous=False) as broker:
        board = at(broker, **said(tmp_path, "pi", "secret"))
        run(lambda: story(board, replace(board, username="console")))


@pytest.mark.parametrize(
    ("extra", "changes", "said"),
    [
        ("", {"tls": True}, "no TLS there"),
        ("", {"transport": "websockets"}, "does not speak websockets there"),
        ("max_qos 0", {}, "allows no QoS 1"),
        ("retain_available false", {}, "keeps no retained messages"),
    ],
)
def test_a_broker_that_is_no_place_for_us(tmp_path: Path, extra: str, changes: dict[str, object], said: str) -> None:
    with a_broker(tmp_path, extra) as broker:
        assert said in run(lambda: first_trouble(at(broker, **changes)))


def test_a_board_without_tls_at_a_port_with_tls(tmp_path: Path, place: Path) -> None:
    with a_broker(tmp_path, listener_lines(place, "broker")) as broker:
        assert "before the broker answered" in run(lambda: first_trouble(at(broker)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({}, "nobody listens"), ({"host": "no-such-host.invalid"}, "no address for no-such-host.invalid")],
)
def test_no_broker_at_all(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    assert said in run(lambda: first_trouble(at(Mosquitto(tmp_path), **changes)))


def test_a_limit_of_the_broker_on_packets_is_kept(tmp_path: Path) -> None:
    async def story(mqtt: Mqtt) -> None:
        async with connected(mqtt) as (connection, _heard):
            assert await connection.publish("a", b"x" * 4000, retain=False) is False
            assert await connection.publish("a", b"x" * 2000, retain=False) is True
            assert connection.losses == 0

    with a_broker(tmp_path, "max_packet_size 4000") as broker:
        run(lambda: story(at(broker)))


def test_a_status_whose_result_the_broker_does_not_take_is_told_without(tmp_path: Path) -> None:
    status = {"id": ID, "status": "succeeded", "reason": "", "result": {"log": "x" * 4000}}

    async def story(mqtt: Mqtt) -> Message:
        about = {"session": 1, "boot_id": "", "capabilities": {}, "birth": {}}
        link = Link(mqtt, Address("default", "pi-7"), now=lambda: 1000.0, **about)  # type: ignore[arg-type]
        async with connected(mqtt, "console") as (console, heard):
            console.subscribe("temper/v1/default/pi-7/cmd/#")
            link.start()
            try:
                assert await link.receive() == Connected(session_present=False)
                assert await link.publish_status("collect-report", ID, status) is True
                return await heard.messages.get()
            finally:
                await link.stop()

    with a_broker(tmp_path, "max_packet_size 4000") as broker:
        told = json.loads(run(lambda: story(at(broker))).payload)
    assert (told["id"], told["status"], told["result"]) == (ID, "succeeded", None)
    assert "the broker takes" in told["reason"]


def test_limits_of_the_broker_on_time_and_on_what_is_unconfirmed_are_kept(tmp_path: Path) -> None:
    async def story(mqtt: Mqtt) -> None:
        async with connected(mqtt) as (connection, _heard):
            assert (connection._client.keepalive, connection._client.max_inflight_messages) == (10, 1)
            sent = [connection.publish(f"a/{number}", b"x", retain=False) for number in range(20)]
            assert all(await asyncio.gather(*sent))
            assert connection.losses == 0

    with a_broker(tmp_path, "max_keepalive 10\nmax_inflight_messages 1") as broker:
        run(lambda: story(at(broker, keepalive_s=60)))


def test_tls_is_1_2_or_newer_and_checks_the_name(place: Path) -> None:
    context = tls_context(Mqtt(ca_file=str(place / "authority.crt")))
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert tls_context(Mqtt()) is None
