"""docs/asyncapi.yaml as a judge of messages: by topic, quality of service, retention, content type and payload."""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cbor2
import jsonschema
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

DOCUMENT = Path(__file__).parents[2] / "docs" / "asyncapi.yaml"
URI = "urn:temperd:fleet-link"
TELEMETRY = re.compile(r"temper/v1/[^/]+/[^/]+/m/[^/]+")
MAX_SHOWN = 200


@functools.cache
def document() -> dict[str, Any]:
    """The file, read."""
    return yaml.safe_load(DOCUMENT.read_bytes())


def _whole(_checker: object, value: object) -> bool:
    return type(value) is int


_Draft7 = jsonschema.validators.extend(
    jsonschema.Draft7Validator,
    type_checker=jsonschema.Draft7Validator.TYPE_CHECKER.redefine("integer", _whole),  # 5.0 is none: see docs/mqtt.md
)


@functools.cache
def validator(name: str) -> Any:
    """The judge of `components/schemas/<name>`."""
    registry = Registry().with_resource(URI, Resource(document(), DRAFT7))
    return _Draft7({"$ref": f"{URI}#/components/schemas/{name}"}, registry=registry)


def faults(name: str, value: object) -> list[str]:
    """What is wrong with a value by a schema: key and words."""
    found = sorted(validator(name).iter_errors(value), key=lambda error: error.json_path)
    return [f"{error.json_path}: {error.message[:MAX_SHOWN]}" for error in found]


class Kind(NamedTuple):
    """One message of a channel."""

    schema: str
    qos: int
    retain: bool


@functools.cache
def channels() -> tuple[tuple[str, re.Pattern[str], tuple[Kind, ...]], ...]:
    """Name, pattern of topics and messages of each channel; those without a parameter at the end come first."""
    found = []
    for name, channel in document()["channels"].items():
        pattern = re.compile(re.sub(r"\{\w+\}", "[^/]+", channel["address"]))
        found.append((name, pattern, tuple(_kinds(name, channel["messages"]))))
    return tuple(sorted(found, key=lambda item: item[1].pattern.endswith("+")))


def _kinds(channel: str, messages: Mapping[str, object]) -> Iterator[Kind]:
    for operation in document()["operations"].values():
        if operation["channel"]["$ref"] == f"#/channels/{channel}":
            bound = operation["bindings"]
            if "$ref" in bound:
                bound = document()["components"]["operationBindings"][bound["$ref"].rsplit("/", 1)[1]]
            named = [ref["$ref"].rsplit("/", 1)[1] for ref in operation.get("messages", ())]
            for message in named or messages:
                payload = document()["components"]["messages"][message]["payload"]["$ref"].rsplit("/", 1)[1]
                yield Kind(payload, bound["mqtt"]["qos"], bound["mqtt"]["retain"])


def channel_of(topic: str) -> tuple[str, tuple[Kind, ...]] | None:
    """Name and messages of the channel of a topic; nothing where there is no such channel."""
    return next(((name, kinds) for name, pattern, kinds in channels() if pattern.fullmatch(topic)), None)


def read(topic: str, payload: bytes, content_type: str | None) -> object:
    """A payload, decoded as its content type says.

    Raises:
        ValueError: it cannot be.
    """
    if TELEMETRY.fullmatch(topic) and content_type == "application/cbor":
        return cbor2.loads(payload)
    if content_type not in (None, "application/json"):
        raise ValueError(f"content type {content_type}")
    return json.loads(payload.decode(), parse_constant=_refuse)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def signed(envelope: bytes) -> object:
    """What an envelope carries.

    Raises:
        ValueError: nothing that can be read.
    """
    text = json.loads(envelope)["payload"].translate({ord("-"): "+", ord("_"): "/"})
    return json.loads(base64.b64decode(text))


@functools.cache
def result_schema(command_type: str) -> str | None:
    """The schema of the result of a command type; nothing where it has none."""
    schemas = document()["components"]["schemas"]
    return next((name for name, schema in schemas.items() if command_type in schema.get("x-result-of", ())), None)


def _result_faults(topic: str, status: object) -> list[str]:
    result = status.get("result") if isinstance(status, dict) else None
    schema = result_schema(topic.split("/")[-3])
    if result is None:
        return []
    return faults(schema, result) if schema else ["a result of a command that has none"]


def message_faults(topic: str, payload: bytes, content_type: str | None, *, qos: int, retain: bool) -> Iterator[str]:
    """All that is wrong with a publication of a device."""
    channel = channel_of(topic)
    if channel is None:
        yield "no such channel"
        return
    if not payload and retain:
        return  # cleared
    try:
        value = read(topic, payload, content_type)
    except ValueError as error:
        yield f"unreadable: {error}"
        return
    kinds = sorted(channel[1], key=lambda kind: kind.retain != retain)
    judged = ((kind, faults(kind.schema, value)) for kind in kinds)
    first = next(judged)
    kind, found = first if not first[1] else min([first, *judged], key=lambda pair: len(pair[1]))
    allowed = (0, 1) if kind.qos == 0 else (kind.qos,)  # telemetry: 0, or 1 where the owner asks for it
    if qos not in allowed or retain != kind.retain:
        yield f"QoS {qos}, retain {retain}, should be {kind.qos}, {kind.retain}"
    yield from found
    if channel[0] == "status":
        yield from _result_faults(topic, value)


def request_faults(envelope: bytes) -> list[str]:
    """All that is wrong with a command that a device accepted."""
    try:
        found = faults("Envelope", json.loads(envelope))
        return found + faults("SignedRequest", signed(envelope))
    except (ValueError, KeyError, AttributeError) as error:
        return [f"unreadable: {error}"]
