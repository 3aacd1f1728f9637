"""What a message of a device says, or why it is refused. Bytes in, facts out: nothing here connects or stores.

A broker's word is no proof: whoever may publish may write anything. So all is bounded, and what is refused is counted
by a reason of a closed list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from agent.errors import CommandError
from service.commands import COMMAND_ID
from service.config import NAME
from service.fleet.metric_names import MetricNames, TooManyError
from service.fleet.store import Alarm, Birth, Fact, Presence, Sample, Status
from service.payload import CBOR, JSON, decode
from service.statuses import UNSYNCHRONISED

MAX_BYTES = 128 << 10  # the longest of a device: backfill has at most 64 KiB, a status with its result some tens
MAX_BACKFILL = 1000  # messages in one `m/backfill`: 64 KiB hold some hundreds
MAX_VALUES = 256  # keys of one telemetry message, nested ones too; the longest group has about 60
MAX_TEXT = 128  # of a name or a boot id
LAST_MS = 4_102_444_800_000  # the year 2100: later is no clock
LARGEST = (1 << 63) - 1  # what a database's integer holds
_ROOT = "temper/v1/"
_LEVELS = 5  # temper, v1, tenant, device, and at least one of the device's own
REASONS = (
    "topic",
    "too-large",
    "content-type",
    "malformed",
    "schema",
    "too-many-values",
    "too-many-metrics",
    "too-many-devices",
)


class RefusedError(ValueError):
    """Not a message of docs/mqtt.md.

    Args:
        reason: one of `REASONS`.
        what: a sentence for the log.
    """

    def __init__(self, reason: str, what: str) -> None:
        self.reason = reason
        super().__init__(what)


class Reader:
    """Reads messages, and remembers which metrics each device has named."""

    def __init__(self) -> None:
        self._named = MetricNames()

    def read(self, topic: str, payload: bytes, content_type: str) -> list[Fact]:
        """The facts of one message; none of a message that says nothing, such as one that clears a status.

        Raises:
            RefusedError: unknown topic, too long, of another content type, or not what docs/mqtt.md describes.
        """
        levels = topic.split("/")
        if not topic.startswith(_ROOT) or len(levels) < _LEVELS or not all(map(NAME.fullmatch, levels[2:4])):
            raise RefusedError("topic", "not a topic of a device")
        if len(payload) > MAX_BYTES:
            raise RefusedError("too-large", f"{len(payload)} bytes, at most {MAX_BYTES} are read")
        tenant, device = levels[2], levels[3]
        match levels[4:]:
            case ["m", "backfill"]:
                return self._backfill(tenant, device, _table(payload, content_type))
            case ["m", group] if NAME.fullmatch(group):
                return [self._sample(tenant, device, group, _table(payload, content_type))]
            case ["conn"]:
                return [_presence(tenant, device, _table(payload, content_type))] if payload else []
            case ["birth"]:
                return [_birth(tenant, device, _table(payload, content_type))] if payload else []
            case ["cmd", kind, command_id, "sts"] if NAME.fullmatch(kind) and COMMAND_ID.fullmatch(command_id):
                return [_status(tenant, device, kind, command_id, _table(payload, content_type))] if payload else []
            case ["a", kind] if NAME.fullmatch(kind):
                return [_alarm(tenant, device, kind, _table(payload, content_type) if payload else None)]
        raise RefusedError("topic", "not a topic that is kept")

    def _backfill(self, tenant: str, device: str, body: Mapping[str, object]) -> list[Fact]:
        messages = body.get("messages")
        if not isinstance(messages, list) or len(messages) > MAX_BACKFILL:
            raise RefusedError("malformed", f"messages: not a list of at most {MAX_BACKFILL}")
        facts: list[Fact] = []
        for message in messages:
            if not isinstance(message, dict):
                raise RefusedError("malformed", "messages: holds what is no object")
            group = _text(message, "group", longest=63)
            if not NAME.fullmatch(group):
                raise RefusedError("malformed", "group: no name")
            facts.append(self._sample(tenant, device, group, message))
        return facts

    def _sample(self, tenant: str, device: str, group: str, body: Mapping[str, object]) -> Sample:
        values = body.get("values")
        if not isinstance(values, dict):
            raise RefusedError("malformed", "values: not an object")
        try:
            self._named.admit((tenant, device), _names(values, f"{group}."))
        except TooManyError as error:
            raise RefusedError("too-many-devices" if error.devices else "too-many-metrics", str(error)) from None
        return Sample(
            tenant=tenant,
            device=device,
            group=group,
            boot_id=_text(body, "boot_id"),
            seq=_whole(body, "seq"),
            ts_ms=round(_time(body, "ts") * 1000),
            mono_ms=_whole(body, "mono_ms"),
            values=_dump(values),
            dated=body.get("clock") != UNSYNCHRONISED,
        )


def _names(values: Mapping[str, object], group: str) -> list[str]:
    found: list[str] = []
    todo: list[tuple[str, Mapping[str, object]]] = [(group, values)]
    while todo:
        prefix, table = todo.pop()
        for key, value in table.items():
            if len(key) > MAX_TEXT:
                raise RefusedError("malformed", f"values: a name longer than {MAX_TEXT}")
            found.append(prefix + key)
            if isinstance(value, dict):
                todo.append((f"{prefix}{key}.", value))
        if len(found) > MAX_VALUES:
            raise RefusedError("too-many-values", f"more than {MAX_VALUES} values in one message")
    return found


def _table(payload: bytes, content_type: str) -> dict[str, object]:
    if content_type not in ("", JSON, CBOR):
        raise RefusedError("content-type", f"{content_type[:MAX_TEXT]!r} is neither JSON nor CBOR")
    try:
        value = decode(payload, content_type, what="message", max_bytes=MAX_BYTES)
    except CommandError as error:
        raise RefusedError("malformed", str(error)) from None
    if not isinstance(value, dict):
        raise RefusedError("malformed", "not an object")
    return value


def _presence(tenant: str, device: str, body: Mapping[str, object]) -> Presence:
    online = body.get("online")
    if not isinstance(online, bool):
        raise RefusedError("malformed", "online: neither true nor false")
    return Presence(tenant, device, online, _whole(body, "session"), _whole(body, "connection"), _time(body, "ts"))


def _birth(tenant: str, device: str, body: Mapping[str, object]) -> Birth:
    if body.get("schema") != 1:
        raise RefusedError("schema", "birth of a schema that this version does not know")
    board, model = body.get("board"), body.get("active_model")
    profile = board.get("profile") if isinstance(board, dict) else ""
    named = [model.get(key) for key in ("name", "version")] if isinstance(model, dict) else []
    return Birth(
        tenant=tenant,
        device=device,
        state_version=_whole(body, "state_version") if "state_version" in body else 0,
        agent=_text(body, "agent"),
        board=profile[:MAX_TEXT] if isinstance(profile, str) else "",
        model=" ".join(part[:MAX_TEXT] for part in named if isinstance(part, str)),
        body=_dump(body),
    )


def _status(tenant: str, device: str, kind: str, command_id: str, body: Mapping[str, object]) -> Status:
    if body.get("id") != command_id:
        raise RefusedError("malformed", "id: not that of the topic")
    status, ts = _text(body, "status", longest=32), _time(body, "ts")
    return Status(tenant, device, command_id, kind, _whole(body, "version"), status, ts, _dump(body))


def _alarm(tenant: str, device: str, kind: str, body: Mapping[str, object] | None) -> Alarm:
    if body is None:
        return Alarm(tenant, device, kind, "", 0.0, "")
    return Alarm(tenant, device, kind, _text(body, "severity", longest=32), _time(body, "ts"), _dump(body))


def _dump(value: object) -> str:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    if "\\u0000" in text:
        raise RefusedError("malformed", "a text holds a zero character, which databases do not keep")
    return text


def _text(body: Mapping[str, object], key: str, longest: int = MAX_TEXT) -> str:
    value = body.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise RefusedError("malformed", f"{key}: not a text of 1 to {longest} characters")
    return value


def _whole(body: Mapping[str, object], key: str) -> int:
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
        raise RefusedError("malformed", f"{key}: not a whole number from 0")
    return value


def _time(body: Mapping[str, object], key: str) -> float:
    value = body.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value * 1000 <= LAST_MS:
        raise RefusedError("malformed", f"{key}: not a time from 1970 to 2100")
    return float(value)
