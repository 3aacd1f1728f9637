from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.fleet import metric_names
from service.fleet.ingest_read import (
    MAX_BACKFILL,
    MAX_BYTES,
    MAX_VALUES,
    REASONS,
    Reader,
    RefusedError,
)
from service.fleet.metric_names import MAX_NAMES, MetricNames, TooManyError
from service.fleet.store import Alarm, Birth, Presence, Sample, Status

ROOT = "temper/v1/acme/pi-7"
ID = "01990000-0000-7000-8000-000000000001"
TS = 1_790_000_000.125


def message(**changes: object) -> dict[str, Any]:
    whole = {"seq": 7, "boot_id": "b", "ts": TS, "mono_ms": 99, "dropped_total": 0, "values": {"a": 1, "p": {"q": 2.5}}}
    return {**whole, **changes}


def refused(topic: str, payload: bytes | dict[str, Any], content_type: str = "", reader: Reader | None = None) -> str:
    data = json.dumps(payload).encode() if isinstance(payload, dict) else payload
    with pytest.raises(RefusedError) as caught:
        (reader or Reader()).read(f"{ROOT}/{topic}", data, content_type)
    assert caught.value.reason in REASONS
    return caught.value.reason


def test_json_and_cbor_say_the_same() -> None:
    told = Sample("acme", "pi-7", "board", "b", 7, 1_790_000_000_125, 99, '{"a":1,"p":{"q":2.5}}')
    body = message()
    assert Reader().read(f"{ROOT}/m/board", json.dumps(body).encode(), "") == [told]
    assert Reader().read(f"{ROOT}/m/board", json.dumps(body).encode(), "application/json") == [told]
    assert Reader().read(f"{ROOT}/m/board", cbor2.dumps(body), "application/cbor") == [told]


def test_a_backfill_is_many_messages_with_their_own_times() -> None:
    messages = [{"group": "board", **message(seq=n, ts=TS + n)} for n in range(3)]
    body = {"historical": True, "boot_id": "now", "dropped_total": 0, "messages": messages}
    found = Reader().read(f"{ROOT}/m/backfill", json.dumps(body).encode(), "")
    live = Reader().read(f"{ROOT}/m/board", json.dumps(message(seq=2, ts=TS + 2)).encode(), "")
    assert len(found) == 3
    assert found[2] == live[0]


def test_what_is_retained() -> None:
    read = Reader().read
    conn = {"online": True, "session": 3, "connection": 9, "boot_id": "b", "ts": TS}
    assert read(f"{ROOT}/conn", json.dumps(conn).encode(), "") == [Presence("acme", "pi-7", True, 3, 9, TS)]
    birth = {
        "schema": 1,
        "agent": "0.9",
        "board": {"model": "x", "profile": "raspberry-pi-4"},
        "active_model": {"name": "lite0", "version": "1.2", "epochs": 3},
        "state_version": 4,
    }
    born = read(f"{ROOT}/birth", json.dumps(birth).encode(), "")[0]
    assert isinstance(born, Birth)
    assert born[2:6] == (4, "0.9", "raspberry-pi-4", "lite0 1.2")
    status = {"id": ID, "status": "running", "version": 4, "ts": TS}
    told = read(f"{ROOT}/cmd/fine-tune/{ID}/sts", json.dumps(status).encode(), "")[0]
    assert isinstance(told, Status)
    assert told[2:7] == (ID, "fine-tune", 4, "running", TS)
    alarm = {"type": "overheated", "severity": "critical", "since": TS, "ts": TS, "reason": "hot", "evidence": {}}
    raised = read(f"{ROOT}/a/overheated", json.dumps(alarm).encode(), "")[0]
    assert isinstance(raised, Alarm)
    assert raised[2:5] == ("overheated", "critical", TS)
    assert read(f"{ROOT}/a/overheated", b"", "") == [Alarm("acme", "pi-7", "overheated", "", 0.0, "")]
    for topic in ("conn", "birth", f"cmd/fine-tune/{ID}/sts"):
        assert read(f"{ROOT}/{topic}", b"", "") == []


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "temper/v1/acme",
        "temper/v2/acme/pi/m/board",
        "temper/v1/A/pi/m/board",
        "temper/v1/acme/p_i/m/board",
        "temper/v1/acme/pi",
        f"{ROOT}/m",
        f"{ROOT}/m/Board",
        f"{ROOT}/m/a/b",
        f"{ROOT}/a/../x",
        f"{ROOT}/x",
        f"{ROOT}/cmd/scrub/nobody/sts",
        f"{ROOT}/cmd/scrub/{ID}/req",
        f"{ROOT}/cmd/fine-tune",
    ],
)
def test_topics_that_are_not_kept(topic: str) -> None:
    with pytest.raises(RefusedError) as caught:
        Reader().read(topic, b"{}", "")
    assert caught.value.reason == "topic"


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": -1},
        {"seq": 1.5},
        {"seq": True},
        {"seq": 1 << 63},
        {"seq": "7"},
        {"seq": None},
        {"boot_id": ""},
        {"boot_id": "x" * 129},
        {"boot_id": 7},
        {"ts": -1},
        {"ts": 4_200_000_000},
        {"ts": 10**400},
        {"ts": "now"},
        {"mono_ms": None},
        {"values": []},
        {"values": None},
        {"values": {"x" * 200: 1}},
        {"values": {"a": "zero \0 inside"}},
    ],
)
def test_fields_that_do_not_fit(changes: dict[str, object]) -> None:
    assert refused("m/board", message(**changes)) == "malformed"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"{",
        b'{"a":1,"a":2}',
        b'{"values":NaN}',
        b'{"values":1e999}',
        b"[" * 60_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
    ],
    ids=range(10),
)
def test_payloads_that_are_no_json_of_ours(payload: bytes) -> None:
    assert refused("m/board", payload) == "malformed"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x81" * 60_000,
        cbor2.dumps(message(ts=math.nan)),
        cbor2.dumps(message(values={1: 2})),
        b"\xa1\x61",
        cbor2.dumps(message()) + b"\x00",
        cbor2.dumps(message(values={"a": b"bytes"})),
        cbor2.dumps([1]),
    ],
    ids=range(8),
)
def test_payloads_that_are_no_cbor_of_ours(payload: bytes) -> None:
    assert refused("m/board", payload, "application/cbor") == "malformed"


def test_sizes_and_forms_have_bounds() -> None:
    assert refused("m/board", b" " * (MAX_BYTES + 1)) == "too-large"
    assert refused("m/board", message(), "text/plain") == "content-type"
    assert refused("birth", {"schema": 2, "agent": "9"}) == "schema"
    assert refused("m/backfill", {"messages": [{}] * (MAX_BACKFILL + 1)}) == "malformed"
    assert refused("m/backfill", {"messages": [7]}) == "malformed"
    assert refused("m/backfill", {"messages": [{"group": "../x", **message()}]}) == "malformed"
    assert refused("m/board", message(values={f"k{n}": n for n in range(MAX_VALUES + 1)})) == "too-many-values"
    nested = {"p": {f"k{n}": n for n in range(MAX_VALUES)}}
    assert refused("m/board", message(values=nested)) == "too-many-values"


def test_a_device_that_invents_metrics_for_ever_is_refused_and_others_are_not() -> None:
    reader = Reader()

    def say(device: str, first: int) -> None:
        body = message(values={f"k{n}": n for n in range(first, first + 64)})
        reader.read(f"temper/v1/acme/{device}/m/board", json.dumps(body).encode(), "")

    for first in range(0, MAX_NAMES, 64):
        say("pi-1", first)
    with pytest.raises(RefusedError) as caught:
        say("pi-1", MAX_NAMES)
    assert caught.value.reason == "too-many-metrics"
    say("pi-1", 0)
    say("pi-2", MAX_NAMES)


def test_devices_that_a_broker_invents_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_names, "MAX_DEVICES", 2)
    reader = Reader()
    for name in ("pi-1", "pi-2"):
        reader.read(f"temper/v1/acme/{name}/m/board", json.dumps(message()).encode(), "")
    assert refused("m/board", message(), reader=reader) == "too-many-devices"


def test_metrics_that_many_boards_invent_have_an_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_names, "MAX_ALL_NAMES", 20)
    names = MetricNames()
    for count in range(1, 11):  # what a device had before it named one more is not kept
        names.admit(("acme", "pi-1"), [str(n) for n in range(count)])
    for board in range(2, 100):  # the same names cost nothing
        names.admit(("acme", f"pi-{board}"), [str(n) for n in range(10)])
    names.admit(("acme", "evil-1"), [f"x{n}" for n in range(10)])
    assert names.kept == 20
    for device, named in (("evil-1", "y"), ("evil-2", "z")):
        with pytest.raises(TooManyError):
            names.admit(("acme", device), [named])
    names.admit(("acme", "pi-100"), [str(n) for n in range(10)])
    assert names.kept == 20


@given(st.binary(max_size=300), st.sampled_from(["", "application/cbor"]))
def test_no_bytes_do_worse_than_to_be_refused(data: bytes, content_type: str) -> None:
    for topic in ("m/board", "m/backfill", "conn", "birth", f"cmd/scrub/{ID}/sts", "a/x"):
        with suppress(RefusedError):
            Reader().read(f"{ROOT}/{topic}", data, content_type)
