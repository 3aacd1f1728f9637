"""What a command type takes, as JSON Schema (draft 7): made from the limits by which its arguments are read.

Consoles find it on `cmd/<type>`, and docs/asyncapi.yaml has the same. It is made when it is told, and not kept.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from agent.card import LATEST, NAME, VERSION
from agent.spec import LEAST_LIMIT_CELSIUS, EvaluateSpec, FineTuneSpec
from agent.switch import BASE
from service.commands import (
    CANCEL,
    COMMAND_ID,
    EVALUATE,
    FINE_TUNE,
    KNOWN,
    MAX_ENVELOPE_BYTES,
    MAX_LIFETIME_S,
    MAX_SKEW_S,
    PAUSE,
    PERMITTED,
    PROMOTE,
    QUALIFY,
    RESUME,
    ROLLBACK,
    SET_POLICY,
    SUPPORTED,
    UPDATE_AGENT,
    UPDATE_SYSTEM,
    WITHOUT_CLOCK,
    JobArguments,
    NoArguments,
    PolicyArguments,
    QualifyArguments,
    RollbackArguments,
)
from service.update_arguments import AgentArguments, SystemArguments

WINDOW = r"^(?!(.{5})-\1$)([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$"
"""`22:00-06:00`, and not twice the same."""
_TYPES: Mapping[object, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}


def schema_of(cls: type[object], refined: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """The schema of what `policies.strict.build` reads as `cls`.

    Args:
        cls: a dataclass with limits.
        refined: by key, what its limits cannot say and its own checks do.

    Raises:
        TypeError: a field of a kind that commands have not had so far.
    """
    hints = typing.get_type_hints(cls)
    items = dataclasses.fields(cls)  # type: ignore[arg-type]  # any dataclass
    properties = {
        item.name: {**_value(hints[item.name], item.metadata), **_default(item), **refined.get(item.name, {})}
        for item in items
    }
    needed = [item.name for item in items if item.default is item.default_factory is dataclasses.MISSING]
    return {"type": "object", "additionalProperties": False, "required": needed, "properties": properties}


def _value(hint: Any, meta: Mapping[str, Any]) -> dict[str, object]:  # noqa: ANN401 - a type annotation is any object
    if typing.get_origin(hint) is tuple:
        inner = _value(typing.get_args(hint)[0], meta)
        return {"type": "array", "maxItems": meta["longest"], "items": inner}
    if isinstance(hint, types.UnionType) or hint not in _TYPES:
        raise TypeError(f"no schema is known for {hint}")
    found: dict[str, object] = {"type": _TYPES[hint]}
    if meta.get("choices"):
        return found | {"enum": list(meta["choices"])}
    if hint is str:
        return found | {"maxLength": meta["longest"]}
    bounds = {"minimum": meta.get("least"), "maximum": meta.get("most")}
    return found | {name: bound for name, bound in bounds.items() if bound is not None}


def _default(item: dataclasses.Field[Any]) -> dict[str, object]:
    if item.default is dataclasses.MISSING:
        return {}
    return {"default": list(item.default) if isinstance(item.default, tuple) else item.default}


def _fine_tune() -> dict[str, object]:
    window: dict[str, object] = {"anyOf": [{"const": ""}, {"pattern": WINDOW}]}
    temperature: dict[str, object] = {"anyOf": [{"const": 0}, {"minimum": LEAST_LIMIT_CELSIUS}]}
    return schema_of(FineTuneSpec, {"window": window, "most_temperature_celsius": temperature})


def _job() -> dict[str, object]:
    return schema_of(JobArguments, {"job": {"pattern": f"^{COMMAND_ID.pattern}$"}})


def _policy() -> dict[str, object]:
    given: Mapping[str, object] = {"text": {"minLength": 1}, "name": {"minLength": 1}, "reset": {"const": True}}
    one = [{"required": [key], "properties": {key: schema}} for key, schema in given.items()]
    return schema_of(PolicyArguments, {}) | {"oneOf": one}


def _rollback() -> dict[str, object]:
    to: dict[str, object] = {"anyOf": [{"enum": ["", BASE]}, {"pattern": "^[0-9a-f]{64}$"}]}
    return schema_of(RollbackArguments, {"to": to})


def _update() -> dict[str, object]:
    version: dict[str, object] = {"anyOf": [{"const": LATEST}, {"pattern": f"^{VERSION.pattern}$"}]}
    return schema_of(AgentArguments, {"version": version})


def _system() -> dict[str, object]:
    version: dict[str, object] = {"anyOf": [{"const": LATEST}, {"pattern": f"^{VERSION.pattern}$"}]}
    return schema_of(SystemArguments, {"name": {"pattern": f"^{NAME.pattern}$"}, "version": version})


_ARGUMENTS: Mapping[str, Callable[[], dict[str, object]]] = {
    FINE_TUNE: _fine_tune,
    **dict.fromkeys((CANCEL, PAUSE, RESUME, PROMOTE), _job),
    EVALUATE: lambda: schema_of(EvaluateSpec, {}),
    ROLLBACK: _rollback,
    SET_POLICY: _policy,
    QUALIFY: lambda: schema_of(QualifyArguments, {}),
    UPDATE_AGENT: _update,
    UPDATE_SYSTEM: _system,
}


def arguments(kind: str) -> dict[str, object] | None:
    """The schema of the arguments of a command type; nothing of one that this version does not carry out."""
    if kind not in SUPPORTED:
        return None
    return _ARGUMENTS[kind]() if kind in _ARGUMENTS else schema_of(NoArguments, {})


def capability(kind: str) -> dict[str, object]:
    """What `cmd/<kind>` says, see docs/mqtt.md."""
    return {
        "type": kind,
        "schema": f"temperd-{kind}-1",
        "supported": kind in SUPPORTED,
        "roles": [str(role) for role, types in PERMITTED.items() if kind in types],
        "without_clock": kind in WITHOUT_CLOCK,
        "args": arguments(kind),
        "limits": {"envelope_bytes": MAX_ENVELOPE_BYTES, "lifetime_s": MAX_LIFETIME_S, "skew_s": MAX_SKEW_S},
    }


class Capabilities(Mapping[str, Mapping[str, object]]):
    """`capability` by command type, each made anew when it is looked at."""

    def __getitem__(self, kind: str) -> Mapping[str, object]:
        if kind not in KNOWN:
            raise KeyError(kind)
        return capability(kind)

    def __iter__(self) -> Iterator[str]:
        return iter(KNOWN)

    def __len__(self) -> int:
        return len(KNOWN)
