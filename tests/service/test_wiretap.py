"""The judge of what is said on the broker finds what is wrong, and names it."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from service.commands import Request, new_id, sign_command
from tests.simulators.fleet import world
from tests.simulators.mosquitto import Mosquitto, find_mosquitto
from tests.simulators.schemas import faults, message_faults, request_faults
from tests.simulators.wiretap import Heard, Wiretap

ROOT = "temper/v1/default/board-1"
NOW = 1_796_000_000
ID = new_id(NOW * 1000, os.urandom)
LINK = {
    "connected": True,
    "connections": 3,
    "connection_losses": 2,
    "takeovers": 0,
    "refused_total": 0,
    "dropped_total": 0,
    "outbox_messages": 4,
    "outbox_bytes": 900,
    "backfilled_total": 7,
    "unconfirmed": 1,
}
KEPT = {"seq": 7, "boot_id": "b", "ts": NOW + 0.5, "mono_ms": 12, "values": LINK}
STATUS: dict[str, Any] = {
    "id": ID,
    "status": "deferred",
    "step": "",
    "version": 2,
    "attempt": 1,
    "reason_code": "battery.pause",
    "reason": "waits for the board",
    "progress": None,
    "eta_s": None,
    "ts": NOW,
    "clock": "synchronised",
    "until": {"what": "charge", "below": None, "above": 0.25, "ts": None},
    "energy_j": None,
    "result": None,
}
SAID: dict[str, tuple[str, dict[str, Any], int, bool]] = {
    "conn": ("conn", {"online": True, "session": 1, "connection": 1, "boot_id": "b", "ts": NOW}, 1, True),
    "link": ("m/link", {**KEPT, "dropped_total": 0}, 0, False),
    "backfill": (
        "m/backfill",
        {"historical": True, "boot_id": "b", "dropped_total": 0, "messages": [{"group": "link", **KEPT}]},
        1,
        False,
    ),
    "status": (f"cmd/fine-tune/{ID}/sts", STATUS, 1, True),
    "refusal": (f"cmd/fine-tune/{ID}/sts", STATUS | {"status": "rejected", "reason_code": "unsigned"}, 1, False),
    "alarm": (
        "a/overheated",
        {
            "type": "overheated",
            "severity": "critical",
            "since": NOW,
            "ts": NOW,
            "clock": "synchronised",
            "reason": "hot",
            "evidence": {},
        },
        1,
        True,
    ),
}


def judged(name: str, body: object = None, **changes: Any) -> list[str]:
    topic, usual, qos, retain = SAID[name]
    payload = changes.pop("payload", json.dumps(usual if body is None else body).encode())
    about = {"content_type": None, "qos": qos, "retain": retain} | changes
    return list(message_faults(f"{ROOT}/{topic}", payload, about.pop("content_type"), **about))


@pytest.mark.parametrize("name", SAID)
def test_what_is_in_order_is_not_complained_of(name: str) -> None:
    assert judged(name) == []
    assert judged(name, SAID[name][1] | {"something_new": 1}) == []  # a device may add keys


@pytest.mark.parametrize("name", SAID)
def test_each_key_that_is_missing_is_named(name: str) -> None:
    for key in SAID[name][1]:
        assert any(f"'{key}' is a required property" in fault for fault in judged(name, _without(SAID[name][1], key)))


def _without(body: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != key}


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("conn", "session", -1),
        ("conn", "online", "yes"),
        ("link", "values.connections", 1.0),
        ("link", "values.connected", None),
        ("link", "mono_ms", 0.5),
        ("backfill", "historical", False),
        ("backfill", "messages", []),
        ("backfill", "messages.0.group", "gossip"),
        ("backfill", "messages.0.values.takeovers", "none"),
        ("status", "status", "done"),
        ("status", "reason_code", "tired"),
        ("status", "attempt", 4),
        ("status", "progress", 1.1),
        ("status", "until.what", "luck"),
        ("status", "reason", "x" * 501),
        ("alarm", "severity", "mild"),
        ("alarm", "clock", "late"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_path(name: str, path: str, value: object) -> None:
    body: Any = copy.deepcopy(SAID[name][1])
    *way, last = path.split(".")
    inner = body
    for step in way:
        inner = inner[int(step) if step.isdigit() else step]
    inner[last] = value
    found = judged(name, body)
    assert found
    assert any(last in fault or "until" in fault for fault in found)


def test_quality_and_retention_are_judged() -> None:
    assert judged("link", qos=1) == []  # where the owner asks for it
    assert judged("link", retain=True)
    assert judged("status", qos=0)
    assert judged("status", retain=False)
    assert judged("refusal", retain=True)
    assert judged("alarm", payload=b"") == []
    assert judged("link", payload=b"")


def test_forms_are_judged_by_their_content_type() -> None:
    body = cbor2.dumps(SAID["link"][1])
    assert judged("link", payload=body, content_type="application/cbor") == []
    assert judged("link", content_type="application/json") == []
    assert judged("link", payload=body, content_type="application/json")
    assert judged("link", content_type="text/plain")
    assert judged("conn", payload=cbor2.dumps(SAID["conn"][1]), content_type="application/cbor")  # telemetry only


@pytest.mark.parametrize("payload", [b"\xff", b"{", b'{"online": NaN}', b"[]", b"null"])
def test_what_is_no_json_object_is_complained_of(payload: bytes) -> None:
    assert judged("conn", payload=payload)


def test_a_topic_that_nobody_knows_is_complained_of() -> None:
    assert list(message_faults(f"{ROOT}/m/gossip", b"{}", None, qos=0, retain=False)) == ["no such channel"]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), st.lists, max_leaves=4))
def test_no_value_breaks_the_judge(value: object) -> None:
    assert faults("Status", value)


def command(**changes: object) -> bytes:
    made = {"id": ID, "device": "board-1", "type": "scrub", "issued_at": NOW, "not_after": NOW + 60, "args": {}}
    return sign_command(Request(**(made | changes)), Ed25519PrivateKey.generate())  # type: ignore[arg-type]


def test_only_commands_that_were_obeyed_are_judged() -> None:
    tap = Wiretap(1)
    odd = command(args={"hurry": True})
    assert request_faults(command()) == []
    assert request_faults(odd)
    tap.heard = [Heard(f"{ROOT}/cmd/scrub/{ID}/req", odd, 1, retain=True, content_type=None)]
    assert tap.faults() == []  # nobody answered
    answer = STATUS | {"status": "accepted", "reason_code": ""}
    tap.heard.append(
        Heard(f"{ROOT}/cmd/scrub/{ID}/sts", json.dumps(answer).encode(), 1, retain=True, content_type=None)
    )
    assert any("args" in fault for fault in tap.faults())
    refused = STATUS | {"status": "rejected", "reason_code": "bad-arguments"}
    tap.heard[1] = Heard(f"{ROOT}/cmd/scrub/{ID}/sts", json.dumps(refused).encode(), 1, retain=True, content_type=None)
    assert tap.faults() == []
    tap.heard[1] = Heard(f"{ROOT}/cmd/scrub/{ID}/sts", b"{", 1, retain=True, content_type=None)
    assert any("unreadable" in fault for fault in tap.faults())


@pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto")
def test_it_hears_all_of_a_real_broker_also_after_its_restart(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    tap = Wiretap(broker.port)
    tap.start()
    try:
        broker.start()
        assert tap.wait()
        publish(broker, f"{ROOT}/conn", json.dumps(SAID["conn"][1]))
        wait_for(tap, 1)
        broker.kill()
        broker.start()
        wait_for(tap, 2, lambda: publish(broker, f"{ROOT}/birth", "{}"))
    finally:
        tap.stop()
        broker.stop()
    found = tap.faults()
    assert all(fault.startswith(f"{ROOT}/birth: ") for fault in found)
    assert any("'agent' is a required property" in fault for fault in found)


@pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto")
def test_a_board_that_speaks_cbor_and_wants_confirmations_keeps_the_contract(tmp_path: Path) -> None:
    with world(tmp_path, started=False) as fleet:
        fleet.config.write_text(fleet.config.read_text() + '[telemetry]\nformat = "cbor"\nqos = 1\n')
        fleet.start()
        fleet.send("scrub", {})
        tap = fleet.tap
        assert tap is not None

        def told() -> list[Heard]:
            return [heard for heard in tap.heard if heard.topic.startswith(f"{ROOT}/m/")]

        fleet.wait(lambda: {f"{ROOT}/m/{group}" for group in ("board", "store", "link")} <= {x.topic for x in told()})
        assert {(heard.qos, heard.content_type) for heard in told()} == {(1, "application/cbor")}


def publish(broker: Mosquitto, topic: str, text: str) -> None:
    where = ["-h", "127.0.0.1", "-p", str(broker.port), "-V", "mqttv5"]
    subprocess.run(["mosquitto_pub", *where, "-q", "1", "-r", "-t", topic, "-m", text], check=True, timeout=60)


def wait_for(tap: Wiretap, count: int, again: Any = lambda: None) -> None:
    end = time.monotonic() + 60
    while len(tap.heard) < count:
        assert time.monotonic() < end
        again()
        time.sleep(0.05)
