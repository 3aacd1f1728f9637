"""docs/asyncapi.yaml, docs/mqtt.md and docs/reason-codes.md say what the code does: names, bounds, codes and keys."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from policies.governor import RULES
from policies.reading import Health
from service.alarms_kinds import KINDS, Severity
from service.asked import UPDATE_STEPS
from service.capabilities import Capabilities
from service.commands import (
    KNOWN,
    MAX_ENVELOPE_BYTES,
    MAX_LIFETIME_S,
    MAX_SIGNATURES,
    PAYLOAD_TYPE,
    PERMITTED,
    STRANGERS,
    SUPPORTED,
    Refusal,
)
from service.config import Mqtt
from service.device_link import Address
from service.job import MAX_ATTEMPTS, MAX_REASON_CHARACTERS, State, wire_status
from service.link import MAX_PACKET_BYTES
from service.metric_units import described_metrics
from service.policy_file import Source
from tests.simulators.reason_scan import codes, literals
from tests.simulators.schemas import channel_of, document, faults, result_schema

DOCS = Path(__file__).parents[2] / "docs"
SCHEMAS = document()["components"]["schemas"]
ELSEWHERE = {
    "ambiguous-console",
    "no-such-console",
    "key-exists",
    "no-rotation",
    "rotation-open",
    "stale",
    "powerd-waiting",
}
"""Codes in the modules of a daemon that no status has: of verbs at the board, and of its helper with the levers."""
CODE = re.compile(r"`([a-z]+(?:[.-][a-z]+)*)`")
FLOORS = {"majority", "chance", "mean", "naive_last", "seasonal_naive"}


def listed(page: str) -> list[str]:
    """Codes in the first column of a page's tables."""
    return [code for line in page.splitlines() if line.startswith("| `") for code in CODE.findall(line.split("|")[1])]


def pages() -> list[str]:
    mqtt = (DOCS / "mqtt.md").read_text(encoding="utf-8")
    refusals = mqtt[mqtt.index("### Why a command is refused") : mqtt.index("## Status:")]
    return [*listed(refusals), *listed((DOCS / "reason-codes.md").read_text(encoding="utf-8"))]


def test_the_list_of_reason_codes_is_that_of_the_pages() -> None:
    assert set(SCHEMAS["ReasonCode"]["enum"]) == {"", *pages()}


def test_every_reason_code_of_the_sources_is_listed() -> None:
    floors = {f"gate-{name.replace('_', '-')}" for name in FLOORS}
    assert (codes() | set(Refusal) | set(RULES) | floors) - ELSEWHERE - set(SCHEMAS["ReasonCode"]["enum"]) == set()


def test_every_listed_reason_code_is_one_of_the_sources() -> None:
    floors = {f"gate-{name.replace('_', '-')}" for name in FLOORS}
    assert literals() >= FLOORS
    assert set(pages()) - literals() - floors == set()


def test_the_scan_sees_codes_of_every_kind() -> None:
    """A keyword, a class, a place in a call, a constant, and a choice of two."""
    assert {"slot-broken", "bad-spec", "internal", "metered-link", "restarted", "not-qualified"} <= codes()


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("CommandType", set(KNOWN)),
        ("Health", set(Health)),
        ("Role", set(PERMITTED)),
    ],
)
def test_closed_lists_are_those_of_the_code(schema: str, words: set[str]) -> None:
    assert set(SCHEMAS[schema]["enum"]) == words


def test_words_of_a_status_are_those_of_the_job_machine() -> None:
    told = [wire_status(state) for state in State]
    status = SCHEMAS["Status"]["properties"]
    assert set(status["status"]["enum"]) == {wire.status for wire in told}
    assert set(status["step"]["enum"]) == {wire.step for wire in told} | set(UPDATE_STEPS)
    assert status["attempt"]["maximum"] == MAX_ATTEMPTS
    assert status["reason"]["maxLength"] == MAX_REASON_CHARACTERS


def test_sources_of_a_policy_are_those_of_the_code() -> None:
    assert set(SCHEMAS["Birth"]["properties"]["policy"]["properties"]["source"]["enum"]) == set(Source)


def test_strangers_are_refused_in_passing() -> None:
    assert set(SCHEMAS["ToStrangers"]["properties"]["reason_code"]["enum"]) == STRANGERS


def test_alarms_are_those_of_the_table() -> None:
    alarm = SCHEMAS["Alarm"]["properties"]
    assert alarm["type"]["enum"] == list(KINDS)
    assert set(alarm["severity"]["enum"]) == set(Severity)


def test_what_is_waited_for_is_listed() -> None:
    tree = ast.parse((DOCS.parent / "service" / "until.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Until"]
    named = {node.args[0].value for node in calls if isinstance(node.args[0], ast.Constant)}
    assert "temperature_celsius" in named
    assert named - set(SCHEMAS["Until"]["properties"]["what"]["enum"]) == set()


def test_every_command_that_ends_with_a_result_has_its_schema() -> None:
    assert {kind for kind in KNOWN if result_schema(kind)} == set(SUPPORTED) - {"cancel", "pause", "resume"}


def test_bounds_are_those_of_the_code() -> None:
    envelope = SCHEMAS["Envelope"]["properties"]
    assert envelope["payload"]["maxLength"] == MAX_ENVELOPE_BYTES
    assert envelope["signatures"]["maxItems"] == MAX_SIGNATURES
    assert envelope["payloadType"]["const"] == envelope["payload"]["contentMediaType"] == PAYLOAD_TYPE
    expiry = document()["operations"]["takeCommand"]["bindings"]["mqtt"]["messageExpiryInterval"]
    assert expiry["maximum"] == MAX_LIFETIME_S
    server = document()["components"]["serverBindings"]["device"]["mqtt"]
    assert server["maximumPacketSize"] == MAX_PACKET_BYTES
    assert server["keepAlive"] == Mqtt().keepalive_s
    assert server["sessionExpiryInterval"] == Mqtt().session_expiry_s


def test_every_topic_has_a_channel() -> None:
    address, command = Address("default", "board-1"), "019c1f00-0000-7000-8000-000000000000"
    topics = {
        "conn": address.topic("conn"),
        "birth": address.topic("birth"),
        "capability": address.topic("cmd", "scrub"),
        "request": address.topic("cmd", "scrub", command, "req"),
        "status": address.topic("cmd", "scrub", command, "sts"),
        "alarm": address.topic("a", "overheated"),
        **{name: address.topic("m", name) for name in ("board", "training", "energy", "store", "link", "backfill")},
    }
    assert {name: (channel_of(topic) or ("",))[0] for name, topic in topics.items()} == {name: name for name in topics}
    assert set(document()["channels"]) == set(topics)
    assert channel_of(address.topic("m", "gossip")) is None


@pytest.mark.parametrize(("group", "told"), described_metrics().items())
def test_every_key_of_the_telemetry_has_a_schema_of_the_type_that_birth_tells(group: str, told: dict[str, Any]) -> None:
    """docs/telemetry.md is held against the same table, and so is what a board sends."""
    properties = SCHEMAS[f"{group.title()}Values"]["properties"]
    assert set(told) == set(properties)
    assert {key: word_of(schema) for key, schema in properties.items()} == {k: v["type"] for k, v in told.items()}


def word_of(schema: dict[str, Any]) -> str:
    """The type of a value, as birth names it."""
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rsplit("/", 1)[1]]
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    words = {"integer": "number", "string": "text", "array": "object"}
    (word,) = {words.get(name, name) for name in types if name != "null"}
    return word


def test_every_schema_is_used() -> None:
    text = (DOCS / "asyncapi.yaml").read_text(encoding="utf-8")
    alone = {"SignedRequest"}  # what an envelope carries: the standard has no place for it
    results = {name for name, schema in SCHEMAS.items() if "x-result-of" in schema}
    unused = [name for name in SCHEMAS if f'"#/components/schemas/{name}"' not in text and name not in alone | results]
    assert unused == []


def test_floors_are_those_of_the_tasks() -> None:
    """The gate makes codes of their names."""
    named = {
        node.args[0].value
        for path in (DOCS.parent / "agent").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Baseline"
        if isinstance(node.args[0], ast.Constant)
    }
    assert named == FLOORS


def argument_schema(kind: str) -> dict[str, Any]:
    """The schema to which the file's condition on the type leads."""
    for rule in SCHEMAS["SignedRequest"]["allOf"]:
        named = rule["if"]["properties"]["type"]
        if kind in named.get("enum", [named.get("const")]):
            found = SCHEMAS[rule["then"]["properties"]["args"]["$ref"].rsplit("/", 1)[1]]
            return {key: value for key, value in found.items() if key != "description"}
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", SUPPORTED)
def test_arguments_are_those_that_the_capability_tells(kind: str) -> None:
    assert argument_schema(kind) == Capabilities()[kind]["args"]


def test_capabilities_are_told_of_every_type_as_their_schema_says() -> None:
    told = Capabilities()
    assert {kind: faults("Capability", body) for kind, body in told.items()} == {kind: [] for kind in KNOWN}
    assert [kind for kind in told if told[kind]["supported"]] == list(SUPPORTED)
    with pytest.raises(KeyError):
        told["dance"]
