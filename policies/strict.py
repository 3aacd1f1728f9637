"""Strict reading of tables (TOML, JSON) into frozen dataclasses.

Unknown keys, wrong types and values out of range are refused. One parser serves the policy, the configuration, job
specifications and worker messages, so all refuse in the same words.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class TableError(ValueError):
    """A table does not fit: `key` is the dotted path, the message says what is wrong and what would fit."""

    def __init__(self, key: str, what: str) -> None:
        self.key, self.what = key, what
        super().__init__(f"{key}: {what}" if key else what)


def limits(
    least: float | None = None, most: float | None = None, choices: tuple[object, ...] = (), longest: int = 4096
) -> dict[str, Any]:
    """Metadata for a dataclass field: inclusive range, allowed values, longest string or list."""
    return {"least": least, "most": most, "choices": choices, "longest": longest}


def build(cls: type[T], table: Mapping[str, object], path: str = "") -> T:
    """Make a `cls` from `table`.

    Args:
        cls: a dataclass whose fields are bool, int, float, str, object, tuples of those, dicts by str, dataclasses, or
            an optional of one.
        table: keys are field names; a dash may stand for an underscore.
        path: dotted prefix for error messages.

    Raises:
        TableError: unknown or missing key (with the nearest known one), wrong type, value out of range.
    """
    hints = typing.get_type_hints(cls)
    known = {item.name: item for item in dataclasses.fields(cls) if item.init}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for raw, value in table.items():
        key = str(raw).replace("-", "_")
        if key not in known:
            import difflib  # noqa: PLC0415 - a daemon without mistakes in its tables never needs it

            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(known))}"
            raise TableError(_join(path, str(raw)), f"unknown key{hint}")
        if key in values:
            raise TableError(_join(path, key), "given twice")
        values[key] = _convert(hints[key], value, _join(path, key), known[key].metadata)
    for name, item in known.items():
        if name not in values and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise TableError(_join(path, name), "missing")
    try:
        return cls(**values)
    except TableError as error:
        raise TableError(_join(path, error.key), error.what) from error


def build_known(cls: type[T], table: Mapping[str, object], path: str = "") -> T:
    """Make a `cls` from what a later version of this program may have written: keys that it added are passed over.

    For state on the disk alone: after a rollback the release before has to go on from it. What people and consoles
    write is read by `build`, which refuses a typing error.

    Raises:
        TableError: missing key, wrong type, value out of range.
    """
    known = {item.name for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return build(cls, {key: value for key, value in table.items() if key in known}, path)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key else path or key


def _convert(hint: Any, value: object, path: str, meta: Mapping[str, Any]) -> object:  # noqa: ANN401 - a type annotation is any object
    if hint is object:
        return value
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(hint, value, path, meta)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise TableError(path, f"must be a table, not {_kind(value)}")
        return build(typing.cast("type[object]", hint), value, path)
    if origin is tuple:
        return _convert_list(hint, value, path, meta)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TableError(path, f"must be a table, not {_kind(value)}")
        inner = typing.get_args(hint)[1]
        return {str(key): _convert(inner, item, _join(path, str(key)), meta) for key, item in value.items()}
    return _scalar(hint, value, path, meta)


def _convert_union(hint: Any, value: object, path: str, meta: Mapping[str, Any]) -> object:  # noqa: ANN401 - see _convert
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if value is None and len(options) < len(typing.get_args(hint)):
        return None
    for option in options[:-1]:
        if isinstance(option, type) and type(value) is option:
            return _convert(option, value, path, meta)
    return _convert(options[-1], value, path, meta)


def _convert_list(hint: Any, value: object, path: str, meta: Mapping[str, Any]) -> object:  # noqa: ANN401 - see _convert
    longest = meta.get("longest", 4096)
    if not isinstance(value, list | tuple):
        raise TableError(path, f"must be a list, not {_kind(value)}")
    if len(value) > longest:
        raise TableError(path, f"has {len(value)} entries, at most {longest}")
    inner = typing.get_args(hint)[0]
    return tuple(_convert(inner, item, f"{path}[{i}]", meta) for i, item in enumerate(value))


def _scalar(hint: Any, value: object, path: str, meta: Mapping[str, Any]) -> object:  # noqa: ANN401 - see _convert
    if hint is float and type(value) is int:
        value = _as_float(value, path)
    if type(value) is not hint:
        raise TableError(path, f"must be {_NAMES.get(hint, hint)}, not {_kind(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise TableError(path, "must be finite")
    choices = meta.get("choices") or ()
    if choices and value not in choices:
        raise TableError(path, f"{value!r} is not one of {', '.join(map(str, choices))}")
    least, most = meta.get("least"), meta.get("most")
    if isinstance(value, int | float) and not isinstance(value, bool) and not _within(value, least, most):
        raise TableError(path, f"{value} is outside {_range(least, most)}")
    if isinstance(value, str) and len(value) > meta.get("longest", 4096):
        raise TableError(path, f"has {len(value)} characters, at most {meta.get('longest', 4096)}")
    return value


def _as_float(value: int, path: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise TableError(path, "must be finite") from error


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    return _NAMES.get(type(value), type(value).__name__)


def _within(value: float, least: float | None, most: float | None) -> bool:
    return (least is None or value >= least) and (most is None or value <= most)


def _range(least: float | None, most: float | None) -> str:
    return f"{'' if least is None else least}..{'' if most is None else most}"
