"""Wrong commands, through a real broker to one real daemon: after each it lives, obeys, and has lost nothing."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from service.command_desk import STRANGERS_AT_ONCE
from service.commands import MAX_ENVELOPE_BYTES, PAYLOAD_TYPE, Request, new_id, pre_authentication, sign_command
from service.config import Mqtt
from service.journal import Journal
from tests.simulators.fleet import DEVICE, ROOT, World, world
from tests.simulators.mosquitto import find_mosquitto

ROOM = f"temper/v1/default/{DEVICE}/cmd"
FLOOD = 800  # mosquitto keeps a thousand messages for a client that is slower than they come
SLOWLY_S = 60.0
RECEIVE_MAXIMUM = Mqtt().receive_maximum
TEN_YEARS_S, SINCE_1970_S = 10 * 365 * 86400, -2_000_000_000

pytestmark = [
    pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto"),
    pytest.mark.skipif(shutil.which("mosquitto_pub") is None, reason="needs mosquitto-clients"),
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A running board whose clock can be set, and no other daemon for all of this."""
    folder = tmp_path_factory.mktemp("wire")
    (folder / "ahead").write_text("0")
    with world(folder, started=False) as made:
        made.start((str(ROOT / "tests" / "simulators" / "wrong_clock.py"), str(folder / "ahead")))
        yield made


def a_request(kind: str = "cancel", **changes: Any) -> Request:
    now = int(time.time())
    made = Request(an_id(), DEVICE, kind, now, now + 600, {"job": an_id()})
    return replace(made, **changes)


def an_id() -> str:
    return new_id(int(time.time() * 1000), os.urandom)


def signed(fleet: World, payload: bytes) -> bytes:
    """An envelope around any bytes, by a console that the board trusts."""
    key = fleet.console_key
    (keyid,) = (json.loads(path.read_bytes())["keyid"] for path in (fleet.folder / "trusted").glob("*.json"))
    signature = {"keyid": keyid, "sig": base64.b64encode(key.sign(pre_authentication(PAYLOAD_TYPE, payload))).decode()}
    whole = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "signatures": [signature]}
    return json.dumps(whole).encode()


def table(**changes: object) -> dict[str, object]:
    request = a_request()
    fields = {name: getattr(request, name) for name in ("id", "device", "type", "issued_at", "not_after", "args")}
    return fields | changes


def publish(fleet: World, topic: str, payload: bytes, *options: str) -> None:
    """As anybody may who reaches the broker."""
    path = fleet.folder / "payload"
    path.write_bytes(payload)
    where = ["-h", "127.0.0.1", "-p", str(fleet.broker.port), "-V", "mqttv5", "-q", "1"]
    done = subprocess.run(
        ["mosquitto_pub", *where, "-t", topic, "-f", str(path), *options], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def obeys(fleet: World) -> None:
    """The daemon lives, takes a good command, and knows every one that it took before."""
    before = ledger(fleet)
    request = a_request()
    answer = fleet.send_envelope("cancel", request.id, sign_command(request, fleet.console_key))
    assert (answer["status"], answer["reason_code"]) == ("rejected", "wrong-state"), "of a job that there never was"
    assert fleet.daemon.poll() is None
    assert ledger(fleet) == before | {request.id: "rejected:wrong-state"}


def ledger(fleet: World) -> dict[str, str]:
    journal = Journal.peek(fleet.state / "journal.sqlite")
    try:
        rows = journal._db.execute("SELECT id, outcome FROM ledger").fetchall()
        return {row["id"]: ":".join(row["outcome"].split(":")[:2]) for row in rows}
    finally:
        journal.close()


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\xff\xfe\x00", "malformed"),
        (b"{}", "malformed"),
        (b"[" * 20_000 + b"]" * 20_000, "malformed"),
        (b'{"payload":' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}", "malformed"),
        (b'{"payload":NaN,"payloadType":"x","signatures":[]}', "malformed"),
    ],
    ids=["not UTF-8", "empty", "deep list", "deep table", "NaN"],
)
def test_what_is_no_envelope_is_answered(fleet: World, payload: bytes, code: str) -> None:
    answer = fleet.send_envelope("fine-tune", an_id(), payload)
    assert (answer["status"], answer["reason_code"]) == ("rejected", code)
    obeys(fleet)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"type": "format-disk"}, "unknown-type"),
        ({"args": None}, "malformed"),
        ({"issued_at": float("nan")}, "malformed"),
        ({"args": nested(30)}, "malformed"),
        ({"args": {"job": float("inf")}}, "malformed"),
        ({"schema": 2, "form": "another"}, "unknown-schema"),
        ({"device": None}, "malformed"),
        ({"device": "board-2"}, "other-device"),
        ({"args": {"job": 7}}, "bad-arguments"),
        ({"expect": {"moon": "full"}}, "unknown-expectation"),
        ({"expect": {"state_version": 0}}, "expectation-failed"),
        ({"not_after": 0}, "lifetime-too-long"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_what_a_trusted_console_signed_and_is_wrong_is_answered(
    fleet: World, changes: dict[str, object], code: str
) -> None:
    body = {key: value for key, value in table(**changes).items() if value is not None}
    answer = fleet.send_envelope(str(body["type"]), str(body["id"]), signed(fleet, json.dumps(body).encode()))
    assert (answer["status"], answer["reason_code"]) == ("rejected", code)
    obeys(fleet)


def test_what_is_no_command_at_all_is_passed_over(fleet: World) -> None:
    """A megabyte never comes as far as the board; the others are counted and acknowledged."""
    publish(fleet, f"{ROOM}/scrub/{an_id()}/req", b"x" * (1 << 20))
    publish(fleet, f"{ROOM}/scrub/{an_id()}/req", b"x" * (MAX_ENVELOPE_BYTES + 1))
    publish(fleet, f"{ROOM}/scrub/no-id/req", b"x")
    publish(fleet, f"{ROOM}/{'x' * 33}/{an_id()}/req", b"x")
    publish(fleet, f"{ROOM}/scrub/{an_id()}/req", b"")
    obeys(fleet)
    for fault in (b"fault=too-large", b"fault=id", b"fault=topic"):
        assert fault in fleet.log()


def test_an_answer_is_given_once_and_for_good(fleet: World) -> None:
    """The same bytes are answered as they were, also when they would be obeyed now; other bytes change nothing."""
    request = a_request("scrub", args={})
    envelope = sign_command(request, fleet.console_key)
    set_ahead(fleet, TEN_YEARS_S)
    assert fleet.send_envelope("scrub", request.id, envelope)["reason_code"] == "expired"
    set_ahead(fleet, 0)
    assert fleet.send_envelope("scrub", request.id, envelope)["reason_code"] == "expired"
    other = sign_command(replace(request, not_after=request.not_after - 1), fleet.console_key)
    before = fleet.log().count(b"reason=replay")
    publish(fleet, f"{ROOM}/scrub/{request.id}/req", other)
    fleet.wait(lambda: fleet.log().count(b"reason=replay") > before)
    assert ledger(fleet)[request.id] == "rejected:expired"
    obeys(fleet)


@pytest.mark.parametrize(
    ("ahead_s", "code"),
    [(SINCE_1970_S, "clock-unsynchronised"), (TEN_YEARS_S, "expired"), (-3600, "not-yet")],
    ids=["1970", "ten years ahead", "an hour back"],
)
def test_a_wrong_clock_lets_nothing_begin_and_something_end(fleet: World, ahead_s: float, code: str) -> None:
    set_ahead(fleet, ahead_s)
    try:
        request = a_request("fine-tune", args=fleet.job("/nowhere"))
        answer = fleet.send_envelope("fine-tune", request.id, sign_command(request, fleet.console_key))
        assert (answer["status"], answer["reason_code"]) == ("rejected", code)
        assert fleet.record(request.id) is None
        if code == "clock-unsynchronised":
            obeys(fleet)  # a cancel is obeyed at any time
            assert answer["clock"] == "unsynchronised"
    finally:
        set_ahead(fleet, 0)
    obeys(fleet)


def test_the_birth_message_says_when_the_board_loses_the_time_and_knows_it_again(fleet: World) -> None:
    try:
        for wrong_s, word in ((SINCE_1970_S, "unsynchronised"), (0, "synchronised")):
            set_ahead(fleet, wrong_s)
            fleet.wait(lambda word=word: [told["clock"] for told in births(fleet)[-1:]] == [word])
    finally:
        set_ahead(fleet, 0)
    obeys(fleet)


def set_ahead(fleet: World, seconds: float) -> None:
    """At once: the daemon reads the file whenever it asks for the time."""
    fresh = fleet.folder / "ahead.new"
    fresh.write_text(str(seconds))
    fresh.replace(fleet.folder / "ahead")


def births(fleet: World) -> list[dict[str, Any]]:
    topic = ROOM.replace("/cmd", "/birth")
    return [json.loads(heard.payload) for heard in list(fleet.tap.heard) if heard.topic == topic]


def test_a_viewer_may_look_only(fleet: World, tmp_path: Path) -> None:
    from agent.keys import create_console_key, load_console_key  # noqa: PLC0415 - this case only

    public = create_console_key(tmp_path, "victor")
    assert fleet.cli("keys", "trust", str(public), "--role", "viewer").returncode == 0
    request = a_request("scrub", args={})
    answer = fleet.send_envelope("scrub", request.id, sign_command(request, load_console_key(tmp_path / "victor.key")))
    assert answer["reason_code"] == "not-permitted"
    assert "viewer" in answer["reason"]
    assert "scrub" in answer["reason"]
    (fleet.folder / "trusted" / public.name).unlink()
    obeys(fleet)


def test_what_could_not_be_taken_is_taken_as_soon_as_it_can(fleet: World) -> None:
    """More than the broker hands over unacknowledged; it repeats nothing while the connection stands."""
    broken = fleet.folder / "trusted" / "broken.json"
    broken.write_text("no key")
    requests = [a_request() for _ in range(RECEIVE_MAXIMUM + 5)]
    connections = fleet.log().count(b"connected host=")
    try:
        for request in requests:
            envelope = sign_command(request, fleet.console_key)
            publish(fleet, f"{ROOM}/cancel/{request.id}/req", envelope)
        fleet.wait(lambda: b"trusted consoles cannot be read" in fleet.log())
    finally:
        broken.unlink()
    wanted = {request.id for request in requests}
    fleet.wait(lambda: wanted <= ledger(fleet).keys())
    assert fleet.log().count(b"connected host=") == connections
    obeys(fleet)


def test_a_flood_fills_neither_the_disk_nor_the_broker(fleet: World) -> None:
    """Fault 29: strangers that send as fast as they can."""
    rows, log_bytes, memory = len(ledger(fleet)), len(fleet.log()), resident_kib(fleet)
    payload = b'{"payload":"e30=","payloadType":"application/vnd.temperd.command+json","signatures":[]}'
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.max_queued_messages_set(0)
    client.connect("127.0.0.1", fleet.broker.port)
    client.loop_start()
    for info in [client.publish(f"{ROOM}/scrub/{an_id()}/req", payload, qos=1) for _ in range(FLOOD)]:
        info.wait_for_publish(SLOWLY_S)
    began = time.monotonic()
    obeys(fleet)
    took_s = time.monotonic() - began
    allowed = STRANGERS_AT_ONCE + 10 * (took_s + 60)  # of the seconds in which they came
    retained: list[str] = []
    client.on_message = lambda _client, _data, message: retained.append(json.loads(message.payload)["reason_code"])
    client.subscribe(f"{ROOM}/+/+/sts", qos=1)  # last: the thread may hear the first before the next line here is run
    fleet.wait(lambda: "wrong-state" in retained)
    client.loop_stop()
    client.disconnect()
    assert len(ledger(fleet)) == rows + 1
    assert fleet.log().count(b"reason=unsigned") < min(FLOOD, allowed)
    assert len(fleet.log()) - log_bytes < 400 * FLOOD // 2
    assert "unsigned" not in retained, "the broker keeps nothing of it"
    assert resident_kib(fleet) < memory + 8 * 1024


def resident_kib(fleet: World) -> int:
    status = Path(f"/proc/{fleet.daemon.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])
