"""What a command type takes, as JSON Schema (draft 7): made from the limits by which its arguments are read.

Consoles find it on `cmd/<type>`, and docs/asyncapi.yaml has the same.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

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
