"""What somebody typed into the form of a command, read as arguments. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent import strict_json
from agent.errors import SpecError
from service.console.schema_form import MAX_WHOLE, Bounds, Field, Form, Kind, Scalar, written

MAX_DIGITS = 40  # characters of a number: a double has 24 at most, with its exponent
MAX_RAW_BYTES, MAX_RAW_DEPTH = 8192, 5  # of JSON by hand; a command nests 8 levels in all
_WHOLE = re.compile(r"[+-]?[0-9]{1,16}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a field is not taken: the key of a text, and what the text names.

    `required`, `number`, `whole`, `range`, `least`, `most`, `shortest`, `longest`, `entries`, `choice`, `form`,
    `alternatives`, `control`, `json`, `one-of`.
    """

    key: str
    values: Mapping[str, object] = field(default_factory=dict)


class _FaultError(Exception):
    def __init__(self, key: str, **values: object) -> None:
        self.fault = Fault(key, values)
        super().__init__(key)


def read_form(form: Form, given: Mapping[str, str]) -> tuple[dict[str, object], dict[str, Fault]]:
    """The arguments, and by field what is wrong.

    Args:
        form: what the board takes.
        given: by name of argument, what was typed; others are not looked at.

    Returns:
        Arguments that differ from the default, and are not empty; faults by name, that of
        the form as a whole under an empty one. With faults nothing is to be sent.
    """
    args: dict[str, object] = {}
    faults: dict[str, Fault] = {}
    for item in form.fields:
        try:
            value = read_field(item, given.get(item.name, ""))
        except _FaultError as error:
            faults[item.name] = error.fault
            continue
        if value is not None and (item.required or not is_default(item, value)):
            args[item.name] = value
    if form.one_of and not faults and sum(name in args for name in form.one_of) != 1:
        faults[""] = Fault("one-of", {"names": ", ".join(form.one_of)})
    return args, faults


def is_default(item: Field, value: object) -> bool:
    """Whether a board takes just this where the argument is left out."""
    if item.default is None:
        return False
    if isinstance(value, list):
        return isinstance(item.default, tuple) and _same(value, list(item.default))
    return _same(value, item.default)


def _same(one: object, other: object) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def read_field(item: Field, typed: str) -> object:
    """The value of one field; `None` where it was left empty.

    Raises:
        _FaultError: it does not fit.
    """
    text = typed.replace("\r\n", "\n").strip()
    if not text:
        if item.required:
            raise _FaultError("required")
        return None
    if item.kind is Kind.RAW:
        return _raw(text)
    if item.kind is Kind.LIST:
        return _entries(item, text)
    value = _scalar(item.kind, item.bounds, text)
    if item.alternatives and not any(_fits(value, bounds) for bounds in item.alternatives):
        told = [_described(bounds) for bounds in item.alternatives]
        raise _FaultError("alternatives", what=" / ".join(told)) if all(told) else _FaultError("form")
    return value


def _entries(item: Field, text: str) -> list[Scalar]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) > item.entries:
        raise _FaultError("entries", count=len(lines), most=item.entries)
    return [_scalar(item.entry, item.bounds, line) for line in lines]


def _scalar(kind: Kind, bounds: Bounds, text: str) -> Scalar:
    if kind is Kind.TICK:
        if text not in ("true", "false"):
            raise _FaultError("choice")
        return text == "true"
    if kind is Kind.CHOICE:
        return _choice(bounds, text)
    if kind in (Kind.NUMBER, Kind.WHOLE):
        value = _number(kind, text)
        _check_range(value, bounds)
        return value
    _check_text(text, bounds, several=kind is Kind.LONG)
    return text


def _choice(bounds: Bounds, text: str) -> Scalar:
    for value in bounds.values or ():
        if written(value) == text:
            return value
    raise _FaultError("choice")


def _number(kind: Kind, text: str) -> float:
    """A number; whole ones as int, because boards take `5` and not `5.0`."""
    if kind is Kind.WHOLE:
        if not _WHOLE.fullmatch(text) or abs(int(text)) > MAX_WHOLE:
            raise _FaultError("whole")
        return int(text)
    if len(text) > MAX_DIGITS or not _NUMBER.fullmatch(text):
        raise _FaultError("number")
    value = float(text)
    if abs(value) > MAX_WHOLE:
        if value in (float("inf"), float("-inf")):
            raise _FaultError("number")
        return value
    return int(value) if value.is_integer() else value


def _check_range(value: float, bounds: Bounds) -> None:
    low = bounds.least is not None and value < bounds.least
    if not low and (bounds.most is None or value <= bounds.most):
        return
    if bounds.least is None or bounds.most is None:
        key, bound = ("most", bounds.most) if bounds.least is None else ("least", bounds.least)
        raise _FaultError(key, bound=written(bound))
    raise _FaultError("range", least=written(bounds.least), most=written(bounds.most))


def _check_text(text: str, bounds: Bounds, *, several: bool) -> None:
    if len(text) > bounds.longest:
        raise _FaultError("longest", count=len(text), most=bounds.longest)
    if len(text) < bounds.shortest:
        raise _FaultError("shortest", least=bounds.shortest)
    if _CONTROL.search(text) or (not several and ("\n" in text or "\t" in text)):
        raise _FaultError("control")
    if bounds.values is not None and text not in bounds.values:
        raise _FaultError("choice")
    if bounds.pattern and not re.search(bounds.pattern, text):
        raise _FaultError("form")


def _fits(value: Scalar, bounds: Bounds) -> bool:
    if bounds.values is not None:
        return any(_same(value, each) for each in bounds.values)
    try:
        if isinstance(value, str):
            _check_text(value, bounds, several=True)
        elif not isinstance(value, bool):
            _check_range(value, bounds)
    except _FaultError:
        return False
    return True


def _described(bounds: Bounds) -> str:
    """An alternative in signs that every language reads; empty where there are none for it."""
    if bounds.values is not None:
        return ", ".join(written(value) or '""' for value in bounds.values)
    if bounds.least is not None and bounds.most is not None:
        return f"{written(bounds.least)}…{written(bounds.most)}"
    if bounds.least is not None:
        return f"≥ {written(bounds.least)}"
    return f"≤ {written(bounds.most)}" if bounds.most is not None else ""


def _raw(text: str) -> object:
    try:
        return strict_json.loads(
            text.encode(), what="it", max_bytes=MAX_RAW_BYTES, max_depth=MAX_RAW_DEPTH, error=SpecError
        )
    except SpecError as error:
        raise _FaultError("json", why=str(error)) from error
