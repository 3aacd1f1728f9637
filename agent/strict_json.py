"""JSON from outside, read strictly, and the one canonical form that is hashed, signed and bound.

Python's own reader keeps the last of two equal keys, takes NaN and recurses as deep as the input asks: three ways for
two readers of one signed text to see different things, or for one of them to fall over.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import NoReturn

from agent.errors import ArtifactError, TemperdError

MAX_DEPTH = 32  # our deepest document (repository metadata with a card) nests 8 levels
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def loads(
    data: bytes, *, what: str, max_bytes: int, max_depth: int = MAX_DEPTH, error: type[TemperdError] = ArtifactError
) -> object:
    """Read one JSON text.

    Args:
        data: the text as UTF-8, without a byte order mark.
        what: what is being read, for messages.
        max_bytes: longest text read.
        max_depth: deepest nesting of objects and lists.
        error: class of the error raised.

    Returns:
        dict, list, str, int, float, bool or None; every float is finite, every string can be written as UTF-8.

    Raises:
        error: too long, not UTF-8, not JSON, nested too deep, a key given twice, NaN, Infinity or a number that
            overflows. The message never quotes a value.
    """
    if len(data) > max_bytes:
        raise error(f"{what} has {len(data)} bytes, at most {max_bytes} are read")
    # `from None` throughout: the repr of the cause would carry the text, which may hold a secret.
    try:
        text = data.decode()
    except UnicodeDecodeError as cause:
        raise error(f"{what} is not UTF-8", where=f"byte {cause.start}") from None
    _check_depth(text, what, max_depth, error)
    try:
        value: object = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite
        )
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as cause:
        raise error(f"{what} is not JSON: {cause.msg}", where=f"line {cause.lineno} column {cause.colno}") from None
    except _RefusedError as cause:
        raise error(f"{what} is refused: {cause}") from None
    except UnicodeEncodeError:
        raise error(f"{what} is refused: half of a surrogate pair") from None
    except ValueError:
        raise error(f"{what} is refused: a number has too many digits") from None
    return value


def canonical(value: object) -> bytes:
    """The one encoding of a JSON value: keys sorted, no spaces, ASCII with escapes, no NaN.

    Raises:
        ValueError: NaN or Infinity.
        TypeError: not a JSON value.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


class _RefusedError(ValueError):
    """Valid for Python's reader, refused by ours."""


def _check_depth(text: str, what: str, max_depth: int, error: type[TemperdError]) -> None:
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        mark = text[found.start()]
        depth += (mark in "[{") - (mark in "]}")
        if depth > max_depth:
            raise error(f"{what} is nested deeper than {max_depth} levels", where=f"character {found.start()}")


def _unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    table: dict[str, object] = {}
    for key, value in pairs:
        if key in table:
            raise _RefusedError(f"key {key[:64]!r} is given twice")
        table[key] = value
    return table


def _refuse_constant(name: str) -> NoReturn:
    raise _RefusedError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError("a number overflows")
    return value
