"""docs/asyncapi.yaml as a judge of messages: by topic, quality of service, retention, content type and payload."""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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


@functools.cache
def channels() -> tuple[tuple[str, re.Pattern[str], str], ...]:
    """Name, pattern of topics and schema of each channel; those without a parameter at the end come first."""
    found = []
    for name, channel in document()["channels"].items():
        (message,) = channel["messages"]
        payload = document()["components"]["messages"][message]["payload"]["$ref"].rsplit("/", 1)[1]
        found.append((name, re.compile(re.sub(r"\{\w+\}", "[^/]+", channel["address"])), payload))
    return tuple(sorted(found, key=lambda item: item[1].pattern.endswith("+")))


def channel_of(topic: str) -> tuple[str, str] | None:
    """Name and schema of the channel of a topic; nothing where there is no such channel."""
    return next(((name, schema) for name, pattern, schema in channels() if pattern.fullmatch(topic)), None)


@functools.cache
def binding(channel: str) -> Mapping[str, Any]:
    """The MQTT binding of the operation on a channel."""
    wanted = f"#/channels/{channel}"
    (bound,) = (x["bindings"] for x in document()["operations"].values() if x["channel"]["$ref"] == wanted)
    if "$ref" in bound:
        bound = document()["components"]["operationBindings"][bound["$ref"].rsplit("/", 1)[1]]
    return bound["mqtt"]


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


def message_faults(topic: str, payload: bytes, content_type: str | None, *, qos: int, retain: bool) -> Iterator[str]:
    """All that is wrong with a publication of a device."""
    channel = channel_of(topic)
    if channel is None:
        yield "no such channel"
        return
    name, schema = channel
    bound = binding(name)
    allowed = (0, 1) if bound["qos"] == 0 else (bound["qos"],)  # telemetry: 0, or 1 where the owner asks for it
    if qos not in allowed or retain != bound["retain"]:
        yield f"QoS {qos}, retain {retain}, should be {bound['qos']}, {bound['retain']}"
    if not payload and bound["retain"]:
        return  # cleared
    try:
        value = read(topic, payload, content_type)
    except ValueError as error:
        yield f"unreadable: {error}"
        return
    yield from faults(schema, value)


def request_faults(envelope: bytes) -> list[str]:
    """All that is wrong with a command that a device accepted."""
    try:
        found = faults("Envelope", json.loads(envelope))
        return found + faults("SignedRequest", signed(envelope))
    except (ValueError, KeyError, AttributeError) as error:
        return [f"unreadable: {error}"]
