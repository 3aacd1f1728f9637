"""How values become words on a page. Pure; whatever a board sent, the answer is a short text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from service.command_types import MAX_TIME_S
from service.fleet.boards import number
from service.fleet.plain import plain

UNKNOWN = "–"  # noqa: RUF001 - the dash of an empty cell
MAX_DIGITS = 6  # after the point; more is noise of a float
MAX_SHOWN = 1e15  # a larger number is written with an exponent: it fits its cell
SHORT_HASH = 10  # characters of a SHA-256 that people compare
_MARKS = {"en": (",", "."), "vi": (".", ",")}
"""Thousands and decimal marks by language, as `Intl.NumberFormat` has them."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_SPANS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def iso(ts: object) -> str:
    """Seconds since 1970 as `2026-12-01T09:30:00Z`; empty where that is no time."""
    value = number(ts)
    if value is None or not 0 <= value <= MAX_TIME_S:
        return ""
    return datetime.fromtimestamp(int(value), UTC).isoformat().replace("+00:00", "Z")


def utc(ts: object) -> str:
    """Seconds since 1970 as people read it where no script tells their zone."""
    text = iso(ts)
    return f"{text[:10]} {text[11:16]} UTC" if text else UNKNOWN


def figure(value: object, digits: int = 1, language: str = "en") -> str:
    """A number with so many digits after the point, in the marks of a language.

    Args:
        value: anything; what is no finite number becomes `UNKNOWN`.
        digits: 0 to `MAX_DIGITS`.
        language: one of `texts.LANGUAGES`.
    """
    found = number(value)
    if found is None or not math.isfinite(found):
        return UNKNOWN
    if abs(found) >= MAX_SHOWN:
        return f"{found:.3e}"
    thousands, point = _MARKS[language]
    digits = max(0, min(digits, MAX_DIGITS))
    # Of the shortest text that is this number, as browsers do it: the script's figure and the server's are the same.
    rounded = Decimal(repr(found)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    text = f"{rounded or abs(rounded):,.{digits}f}"  # no minus before a zero
    return text.translate({ord(","): thousands, ord("."): point})


def span(seconds: object) -> list[tuple[int, str]]:
    """A time span as its two largest units: `[(2, "h"), (5, "min")]`; empty where it is none."""
    found = number(seconds)
    if found is None or not math.isfinite(found) or found < 0:
        return []
    left = int(min(found, MAX_TIME_S))
    parts: list[tuple[int, str]] = []
    for unit, size in _SPANS:
        count, left = divmod(left, size)
        if count or parts:
            parts.append((count, unit))
    return [part for part in parts[:2] if part[0]] or [(0, "s")]


def short(digest: object) -> str:
    """The beginning of a hash."""
    return plain(digest)[:SHORT_HASH]


def no_formula(cell: str) -> str:
    """A cell of a CSV file that no program takes for a formula, and runs: boards choose reasons."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


FILTERS: Mapping[str, Callable[..., Any]] = {
    "iso": iso,
    "utc": utc,
    "figure": figure,
    "span": span,
    "plain": plain,
    "short": short,
}
"""What templates may use, beside Jinja's own."""
