"""A form out of what a board says that a command takes. Pure.

The schema is JSON Schema (draft 7), as `service.capabilities` makes it; but a board may be newer, older or hostile.
What is not understood becomes a field for JSON text, and the board judges: it does so anyway. Patterns are tried only
where they are our own: another's may keep a processor busy for ever.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from agent.errors import SpecError
from service.capabilities import arguments
from service.commands import KNOWN, MAX_ENVELOPE_BYTES
from service.fleet.plain import plain

MAX_FIELDS = 64  # a fine-tune has some forty
MAX_CHOICES = 64  # ours have seven at most
MAX_ALTERNATIVES = 8  # ours have two
MAX_TEXT = MAX_ENVELOPE_BYTES  # characters: no command is longer
MAX_ENTRIES = 1024  # of a list: as many columns as a model has features
MAX_TOLD = 300  # characters of a board's own words about an argument
MAX_WHOLE = 2**53  # what every JSON reader holds exactly
LINE = 1024  # characters: what may be longer, or has lines, gets a field of several
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_KEYWORDS = frozenset(
    {
        *("type", "enum", "const", "default", "minimum", "maximum", "minLength", "maxLength", "pattern", "anyOf"),
        *("items", "maxItems", "title", "description", "examples", "$comment"),
    }
)

Scalar = str | int | float | bool


class Kind(StrEnum):
    """What a field looks like."""

    TEXT = "text"
    LONG = "long"
    """A text of several lines."""
    NUMBER = "number"
    WHOLE = "whole"
    TICK = "tick"
    CHOICE = "choice"
    LIST = "list"
    """One entry a line."""
    RAW = "raw"
    """JSON, because this console does not know better."""


_KINDS = {"string": Kind.TEXT, "number": Kind.NUMBER, "integer": Kind.WHOLE, "boolean": Kind.TICK, "array": Kind.LIST}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a value must keep to; `None`: no such bound.

    Attributes:
        least: smallest number.
        most: largest number.
        shortest: fewest characters.
        longest: most characters.
        values: the value is one of these.
        pattern: one of our own, that the text fits.
    """

    least: float | None = None
    most: float | None = None
    shortest: int = 0
    longest: int = MAX_TEXT
    values: tuple[Scalar, ...] | None = None
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class Field:
    """One argument.

    Attributes:
        name: its key.
        kind: see `Kind`.
        required: the board wants it.
        default: what the board takes where it is left out; `None`: not told.
        bounds: of the value, or of each entry of a list.
        alternatives: where there are any, one of them holds too.
        entries: most entries of a list.
        entry: kind of an entry of a list: text, number or whole.
        told: the board's own words.
        unclear: the board says more about it than this console understands.
    """

    name: str
    kind: Kind
    required: bool = False
    default: Scalar | tuple[Scalar, ...] | None = None
    bounds: Bounds = Bounds()
    alternatives: tuple[Bounds, ...] = ()
    entries: int = MAX_ENTRIES
    entry: Kind = Kind.TEXT
    told: str = ""
    unclear: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """The arguments of a command type.

    Attributes:
        fields: in the board's order.
        one_of: exactly one of these is given; empty: no such rule.
        left_out: arguments that are not shown: too many, or with names that are none.
    """

    fields: tuple[Field, ...]
    one_of: tuple[str, ...] = ()
    left_out: int = 0

    def field(self, name: str) -> Field | None:
        """The field of a name."""
        return next((field for field in self.fields if field.name == name), None)


def read_schema(schema: object) -> Form:
    """The form that a schema of arguments asks for.

    Args:
        schema: anything that JSON can say.

    Raises:
        SpecError: it is no schema of an object.
    """
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise SpecError("the board's schema describes no object")
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        raise SpecError("the board's schema has no list of properties")
    required = _texts(schema.get("required"))
    named = [name for name in properties if isinstance(name, str) and NAME.fullmatch(name)]
    named.sort(key=lambda name: name not in required)  # those that must be there are never among the left out
    shown = frozenset(named[:MAX_FIELDS])
    fields = tuple(_field(name, properties[name], required) for name in properties if name in shown)
    return Form(fields, _one_of(schema.get("oneOf"), shown), len(properties) - len(fields))


@functools.cache
def own_form(kind: str) -> Form:
    """The form of a command type as this version has it.

    Raises:
        SpecError: this version knows no such type.
    """
    return read_schema(arguments(kind))


def _field(name: str, schema: object, required: frozenset[str]) -> Field:
    if not isinstance(schema, Mapping):  # `true`: any value
        return Field(name, Kind.RAW, name in required, unclear=schema is not True)
    kind, unclear = _kind(schema)
    bounds = _bounds(schema, kind)
    alternatives, strange = _alternatives(schema.get("anyOf"), kind)
    unclear = unclear or strange or not _KEYWORDS.issuperset(schema) or _strange_pattern(schema)
    entry, entries = Kind.TEXT, MAX_ENTRIES
    if kind is Kind.LIST:
        inner = schema.get("items", {"type": "string"})
        entry, doubt = _kind(inner) if isinstance(inner, Mapping) else (Kind.RAW, True)
        if entry in (Kind.CHOICE, Kind.TEXT, Kind.LONG, Kind.NUMBER, Kind.WHOLE) and isinstance(inner, Mapping):
            bounds = _bounds(inner, entry)
            entry = entry if entry in (Kind.NUMBER, Kind.WHOLE) else Kind.TEXT
            unclear = unclear or doubt or not _KEYWORDS.issuperset(inner) or _strange_pattern(inner)
            entries = _count(schema.get("maxItems"), MAX_ENTRIES)
        else:
            kind, unclear = Kind.RAW, True
    told = plain(schema.get("description"), MAX_TOLD) if isinstance(schema.get("description"), str) else ""
    default = _default(schema.get("default"), kind)
    return Field(name, kind, name in required, default, bounds, alternatives, entries, entry, told, unclear)


def _kind(schema: Mapping[str, object]) -> tuple[Kind, bool]:
    """What a schema's field looks like, and whether that is a guess."""
    told = schema.get("type")
    values = _values(schema)
    if values is not None:
        return Kind.CHOICE, False
    if ("enum" in schema or "const" in schema) and told is None:
        return Kind.RAW, True
    kind = _KINDS.get(told) if isinstance(told, str) else None
    if kind is None:
        return Kind.RAW, told is not None
    if kind is Kind.TEXT and _count(schema.get("maxLength"), MAX_TEXT, LINE) > LINE:
        return Kind.LONG, False
    return kind, "enum" in schema or "const" in schema


def _bounds(schema: Mapping[str, object], kind: Kind) -> Bounds:
    pattern = schema.get("pattern")
    return Bounds(
        _number(schema.get("minimum")),
        _number(schema.get("maximum")),
        _count(schema.get("minLength"), MAX_TEXT, 0),
        _count(schema.get("maxLength"), MAX_TEXT),
        _values(schema) if kind in (Kind.CHOICE, Kind.LIST) else None,
        pattern if isinstance(pattern, str) and pattern in _own_patterns() else "",
    )


def _alternatives(told: object, kind: Kind) -> tuple[tuple[Bounds, ...], bool]:
    """What `anyOf` offers, and whether some of it is not understood: then all of it is left to the board."""
    if told is None:
        return (), False
    known = {"const", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength"}
    if not isinstance(told, list) or not 0 < len(told) <= MAX_ALTERNATIVES or kind in (Kind.RAW, Kind.LIST):
        return (), True
    for part in told:
        if not isinstance(part, Mapping) or not part or not known.issuperset(part) or _strange_pattern(part):
            return (), True
        if ("enum" in part or "const" in part) and _values(part) is None:
            return (), True
    return tuple(_bounds(part, Kind.CHOICE) for part in told), False


def _values(schema: Mapping[str, object]) -> tuple[Scalar, ...] | None:
    """The closed list that a schema gives, if it is one that a menu can show."""
    told = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(told, list) or not 0 < len(told) <= MAX_CHOICES:
        return None
    values = tuple(value for value in told if _is_scalar(value))
    return values if len(values) == len(told) else None


def _default(value: object, kind: Kind) -> Scalar | tuple[Scalar, ...] | None:
    if kind is Kind.LIST:
        if not isinstance(value, list) or len(value) > MAX_ENTRIES or not all(map(_is_scalar, value)):
            return None
        return tuple(value)
    if not isinstance(value, str | int | float | bool) or not _is_scalar(value):
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        Kind.TEXT: isinstance(value, str),
        Kind.LONG: isinstance(value, str),
        Kind.NUMBER: is_number,
        Kind.WHOLE: is_number and float(value).is_integer(),
        Kind.TICK: isinstance(value, bool),
        Kind.CHOICE: True,
        Kind.RAW: True,
    }
    return value if fits[kind] else None


def _one_of(told: object, shown: frozenset[str]) -> tuple[str, ...]:
    """The names of which exactly one is given, where each part of `oneOf` asks for one."""
    if not isinstance(told, list) or not 1 < len(told) <= MAX_ALTERNATIVES:
        return ()
    names = [_texts(part.get("required")) for part in told if isinstance(part, Mapping)]
    single = [next(iter(each)) for each in names if len(each) == 1]
    return tuple(single) if len(single) == len(told) and shown.issuperset(single) else ()


@functools.cache
def _own_patterns() -> frozenset[str]:
    return frozenset(_patterns([arguments(kind) for kind in KNOWN]))


def _patterns(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        if isinstance(value.get("pattern"), str):
            yield value["pattern"]
        for item in value.values():
            yield from _patterns(item)
    elif isinstance(value, list):
        for item in value:
            yield from _patterns(item)


def _strange_pattern(schema: Mapping[str, object]) -> bool:
    pattern = schema.get("pattern", "")
    return pattern != "" and not (isinstance(pattern, str) and pattern in _own_patterns())


def _is_scalar(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, bool):
        return True
    return _number(value) is not None


def _number(value: object) -> float | None:
    """The value, if it is a number that JSON readers hold; whole ones stay whole."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return value if abs(value) <= MAX_WHOLE else None
    return value if math.isfinite(value) else None


def _count(value: object, most: int, otherwise: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        return most if otherwise is None else otherwise
    return value


def _texts(value: object) -> frozenset[str]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return frozenset()
    return frozenset(item for item in value if isinstance(item, str))


def written(value: object) -> str:
    """A value as its field shows it, and as `read_field` reads it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "\n".join(map(written, value))
    if isinstance(value, float) and value == math.floor(value) and abs(value) <= MAX_WHOLE:
        return str(int(value))
    return json.dumps(value, ensure_ascii=False)
