"""A board and docs/asyncapi.yaml agree on what is a command: what one refuses, the other refuses too."""

from __future__ import annotations

import base64
import binascii
import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import CommandError
from agent.keys_consoles import Role, TrustedConsole, keyid
from service.capabilities import Capabilities
from service.commands import PAYLOAD_TYPE, SUPPORTED, Command, Refusal, open_command, pre_authentication
from tests.simulators.schemas import document, faults

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
CONSOLE = TrustedConsole("alice", keyid(KEY.public_key()), PUBLIC, Path("alice.json"), Role.OWNER)
DEVICE, ID, NOW = "board-1", "019c1f00-0000-7000-8000-000000000000", 1_796_000_000
LONGEST_TRIED = 5000  # a text that fills the envelope is refused for that, which no schema says
FORM = {
    Refusal.MALFORMED,
    Refusal.UNKNOWN_SCHEMA,
    Refusal.UNKNOWN_TYPE,
    Refusal.UNKNOWN_EXPECTATION,
    Refusal.BAD_ARGUMENTS,
}
"""Refusals for what a schema can say; the others need the time, the ledger, the board or the console."""
JUNK = (None, True, False, 0, 1, -1, 1.5, 5.0, 2**53, 1e300, "", "text", "\n", [], {}, ["x"], {"x": 1})
EXAMPLES = (
    "22:00-06:00",
    "22:00-22:00",
    "24:00-06:00",
    "22:00-06:60",
    "٢٢:00-06:00",
    "a" * 64,
    "A" * 64,
    ID,
    ID.upper(),
)
ARGUMENTS: Mapping[str, dict[str, Any]] = {
    "fine-tune": {"model": "colours", "data": "/data"},
    **{kind: {"job": ID} for kind in ("cancel", "pause", "resume", "promote")},
    "evaluate": {"data": "/data"},
    "set-policy": {"name": "quiet"},
    "update-system": {"name": "plant-image"},
}


def request(kind: str) -> dict[str, Any]:
    """A command that is in order."""
    made = {"id": ID, "device": DEVICE, "type": kind, "issued_at": NOW, "not_after": NOW + 600}
    return made | {"args": copy.deepcopy(ARGUMENTS.get(kind, {})), "expect": {}}


def seal(payload: bytes, **changes: object) -> dict[str, Any]:
    """An envelope that is in order, changed."""
    sig = base64.b64encode(KEY.sign(pre_authentication(PAYLOAD_TYPE, payload))).decode()
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE}
    return {**envelope, "signatures": [{"keyid": CONSOLE.keyid, "sig": sig}], **changes}


def ask(envelope: object, kind: object, command_id: object) -> Command | CommandError:
    """What the board makes of it."""
    try:
        return open_command(
            json.dumps(envelope).encode(),
            topic_type=str(kind),
            topic_id=str(command_id),
            trusted={CONSOLE.keyid: CONSOLE},
            device=DEVICE,
            now=NOW,
            clock_synchronised=True,
        )
    except CommandError as error:
        return error


def agree(body: dict[str, Any]) -> None:
    """Board and schema say the same of a signed request."""
    found = faults("SignedRequest", body)
    answer = ask(seal(json.dumps(body).encode()), body.get("type"), body.get("id"))
    if found:
        assert isinstance(answer, CommandError), (found, body)
    if isinstance(answer, CommandError) and answer.code in FORM:
        assert found, (str(answer), body)


def borders(schema: Mapping[str, Any]) -> Iterator[object]:
    """Values on both sides of what a schema allows."""
    yield from schema.get("enum", ())
    for bound in ("minimum", "maximum"):
        if bound in schema:
            yield from (schema[bound], schema[bound] - 1, schema[bound] + 1, int(schema[bound]))
    if "maxLength" in schema:
        yield from ("x" * size for size in (schema["maxLength"], schema["maxLength"] + 1) if size <= LONGEST_TRIED)
    if "maxItems" in schema:
        inner = schema["items"].get("maxLength", 1)
        yield from (
            ["x"] * schema["maxItems"],
            ["x"] * (schema["maxItems"] + 1),
            ["x" * inner],
            ["x" * (inner + 1)],
            [1],
        )


def args_schema(kind: str) -> dict[str, Any]:
    found = Capabilities()[kind]["args"]
    assert isinstance(found, dict)
    return found


CASES = [(kind, key) for kind in SUPPORTED for key in [*args_schema(kind)["properties"], "surprise", "image-size"]]


@pytest.mark.parametrize("kind", SUPPORTED)
def test_a_command_in_order_is_one_for_both(kind: str) -> None:
    assert faults("SignedRequest", request(kind)) == []
    assert isinstance(ask(seal(json.dumps(request(kind)).encode()), kind, ID), Command)


@pytest.mark.parametrize(("kind", "key"), CASES)
def test_both_draw_the_line_at_the_same_arguments(kind: str, key: str) -> None:
    for value in (*borders(args_schema(kind)["properties"].get(key, {})), *JUNK, *EXAMPLES):
        body = request(kind)
        body["args"][key] = value
        agree(body)


@pytest.mark.parametrize("kind", SUPPORTED)
def test_both_miss_the_same_arguments(kind: str) -> None:
    for key in ARGUMENTS.get(kind, {}):
        body = request(kind)
        del body["args"][key]
        assert faults("SignedRequest", body)
        agree(body)


@pytest.mark.parametrize(
    "key", ["id", "device", "type", "issued_at", "not_after", "args", "expect", "schema", "issued-at"]
)
def test_both_draw_the_line_at_the_same_fields(key: str) -> None:
    for value in (*JUNK, *EXAMPLES, "dance", "evaluate", NOW, -1, 253402300799, 253402300800, 2):
        agree(request("scrub") | {key: value})
    body = request("scrub")
    body.pop(key, None)
    agree(body)


@pytest.mark.parametrize("key", ["active_model", "policy", "state_version", "active-model", "weather"])
def test_both_draw_the_line_at_the_same_expectations(key: str) -> None:
    for value in (*JUNK, *EXAMPLES, 2**53 - 1, "a" * 64 + "\n", "a" * 65):
        agree(request("scrub") | {"expect": {key: value}})


@pytest.mark.parametrize("key", ["payload", "payloadType", "signatures", "surprise"])
def test_both_draw_the_line_at_the_same_envelopes(key: str) -> None:
    whole = seal(json.dumps(request("scrub")).encode())
    (signature,) = whole["signatures"]
    values = [*JUNK, "*", [signature] * 8, [signature] * 9, [{**signature, "alg": "x"}], [{"keyid": CONSOLE.keyid}]]
    values += [[{**signature, "keyid": value}] for value in (None, 1, "k" * 64, "k" * 65)]
    for value in values:
        envelope_agrees(whole | {key: value})
    whole.pop(key, None)
    envelope_agrees(whole)


def envelope_agrees(envelope: dict[str, Any]) -> None:
    found = faults("Envelope", envelope)
    answer = ask(envelope, "scrub", ID)
    if found:
        assert isinstance(answer, CommandError), (found, envelope)
    elif isinstance(answer, CommandError) and answer.code == Refusal.MALFORMED:
        with pytest.raises((binascii.Error, ValueError)):  # what it carries, which the schema does not look into
            json.loads(base64.b64decode(envelope["payload"], validate=True))["id"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_subnormal=False)
    | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """A command in order with some arguments in order and up to three changes of any kind."""
    kind = draw(st.sampled_from(SUPPORTED))
    body = request(kind)
    known = args_schema(kind)["properties"]
    for key in draw(st.lists(st.sampled_from(sorted(known) or ["surprise"]), unique=True, max_size=6)):
        choices = list(borders(known.get(key, {})))
        body["args"][key] = draw(st.sampled_from(choices)) if choices else draw(json_values)
    for _ in range(draw(st.integers(0, 3))):
        where = draw(st.sampled_from((body, body["args"], body["expect"])))
        table = where if isinstance(where, dict) else {}
        key = draw(st.sampled_from([*sorted(table), *document()["components"]["schemas"]["Expect"]["properties"], "x"]))
        if key in ("args", "expect"):
            continue  # changed inside
        if draw(st.booleans()):
            table.pop(key, None)
        else:
            table[key] = draw(json_values)
    return body


@settings(max_examples=300)
@given(requests())
def test_both_agree_on_whatever_comes(body: dict[str, Any]) -> None:
    agree(body)
