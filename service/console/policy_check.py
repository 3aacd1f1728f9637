"""A policy's text, judged with every mistake at once, and held against another. Pure.

The parser of the board stops at its first mistake. Here each value that does not fit is named, then taken out of the
table, until none is left; what remains is what keys say to each other, which the parser judges.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from policies.policy import Policy, PolicyError, differences, parse_policy
from policies.strict import TableError, build
from service.fleet.plain import plain

MAX_FAULTS = 20  # of one text; whoever has more mends these first
MAX_TOLD = 300  # characters of what is said of one
MAX_DIFF_LINES = 2000  # of each text: difflib takes the square of that at worst; the longest that ships has 120
CONTEXT = 3
_LINE = re.compile(r"line (\d+), column (\d+)")
_HEADER = re.compile(r"\s*\[\s*([A-Za-z0-9_\"'. -]+?)\s*\]\s*(#.*)?")
_KEY = re.compile(r"\s*([A-Za-z0-9_\"'. -]+?)\s*=")


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong: the dotted key (empty: no key is at fault), a sentence, and the line from 1 (0: none)."""

    key: str
    what: str
    line: int


@dataclass(frozen=True, slots=True)
class DiffLine:
    """A line of a difference: `mark` is `+`, `-`, `@` or a space."""

    mark: str
    text: str


def check(text: str) -> tuple[Policy | None, list[Mistake]]:
    """The policy of a text, or every mistake in it, in the order of its lines."""
    try:
        return parse_policy(text), []
    except PolicyError as error:
        first = error
    table: dict[str, Any] = {}
    if first.key:  # else it is no table at all, or one that takes too long to read
        with contextlib.suppress(ValueError, RecursionError):
            table = tomllib.loads(text)
    unfit = _unfit(table) if first.key else ()
    found = [Mistake(plain(key, MAX_TOLD), plain(what, MAX_TOLD), line_of(text, key)) for key, what in unfit]
    if not found:
        line = _LINE.search(first.what)
        number = int(line[1]) if line else line_of(text, first.key) if first.key else _last(text, first.what)
        found = [Mistake(plain(first.key, MAX_TOLD), plain(first.what, MAX_TOLD), number)]
    return None, sorted(found, key=lambda mistake: mistake.line)


def _unfit(table: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys whose values cannot be, whatever the others say; they are taken out of the table."""
    for _ in range(MAX_FAULTS):
        try:
            build(_loose_policy(), table)
        except TableError as error:
            yield error.key, error.what
            if not _take_out(table, error.key):
                return
        else:
            return


@functools.cache
def _loose_policy() -> type[Any]:
    return _loose(Policy)


def _loose(cls: type[Any]) -> type[Any]:
    """A dataclass with the same fields and limits, which compares none of them with another."""
    hints = typing.get_type_hints(cls)
    made: list[tuple[str, Any, Any]] = []
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            loose = _loose(typing.cast("type[Any]", hint))
            made.append((item.name, loose, dataclasses.field(default_factory=loose)))
        else:
            default = dataclasses.field(default=item.default, metadata=dict(item.metadata))
            made.append((item.name, hint, default))
    return dataclasses.make_dataclass(cls.__name__, made, frozen=True)


def _take_out(table: dict[str, Any], key: str) -> bool:
    """Remove a dotted key, of which the last part may have dots of its own."""
    while "." in key:
        first, _, rest = key.partition(".")
        inner = next((value for name, value in table.items() if _same(name, first)), None)
        if not isinstance(inner, dict):
            break
        table, key = inner, rest
    for name in table:
        if _same(name, key.partition("[")[0]):
            del table[name]
            return True
    return False


def _same(name: str, key: str) -> bool:
    return name == key or name.replace("-", "_") == key


def line_of(text: str, key: str) -> int:
    """The line, from 1, on which a dotted key stands, else that of its table; 0: not found."""
    wanted, found, header = _parts(key.partition("[")[0]), 0, []
    quote = ""
    for number, line in enumerate(text.split("\n"), 1):
        if quote:
            quote = "" if quote in line else quote
            continue
        if head := _HEADER.fullmatch(line):
            header = _parts(head[1])
            if header == wanted[: len(header)]:
                found = number
            continue
        if (assigned := _KEY.match(line)) is None:
            continue
        if header + _parts(assigned[1]) == wanted:
            return number
        opened = [mark for mark in ('"""', "'''") if line.count(mark) % 2]
        quote = opened[0] if opened else ""
    return found


def _parts(key: str) -> list[str]:
    return [part.strip().strip("\"'").replace("-", "_") for part in key.split(".")]


def _last(text: str, what: str) -> int:
    return text.count("\n") + 1 if "end of document" in what else 0


def text_difference(before: str, after: str) -> list[DiffLine] | None:
    """The lines in which two texts differ, with some around them; `None`: they are too long to compare."""
    old, new = before.splitlines(), after.splitlines()
    if max(len(old), len(new)) > MAX_DIFF_LINES:
        return None
    lines = list(difflib.unified_diff(old, new, lineterm="", n=CONTEXT))[2:]  # without the two names of files
    return [DiffLine(line[:1], line if line.startswith("@") else line[1:]) for line in lines]


def key_difference(before: Policy, after: Policy) -> list[tuple[str, str, str]]:
    """Dotted keys whose values differ, with both values as TOML has them."""
    return [(key, _shown(old), _shown(new)) for key, (old, new) in differences(before, after).items()]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, Mapping):
        return "{…}"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
