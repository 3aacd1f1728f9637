"""What the reference figures are made of: a figure, a requirement, and how numbers are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MEASURED, MODELLED, COUNTED, BY_FORM = "measured", "modelled", "counted", "by its form"

Results = Mapping[str, Any]
"""By the name of the bench: `train`, `freeze`, `seal`, `board`, `govern`, `qualify`, `quick`."""


class Figure(NamedTuple):
    """One of ours."""

    text: str
    how: str
    """`measured`, `modelled` or what it follows from."""
    source: str = ""
    """Name of the result, e.g. `freeze`."""


class Row(NamedTuple):
    """One requirement."""

    name: str
    asks: str
    reference: str
    ours: Callable[[Results], Sequence[Figure]]


def signed(value: float, digits: int = 0) -> str:
    """With its sign, but zero without."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def span(
    rows: Sequence[Mapping[str, Any]], key: str, digits: int = 0, factor: float = 1.0, *, sign: bool = True
) -> str:
    """Least to greatest of `key` over rows that have it, or the one value they share."""
    found = [factor * row[key] for row in rows if row[key] is not None]
    ends = (min(found), max(found))
    shown = [signed(value, digits) if sign else f"{value:.{digits}f}" for value in ends]
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} to {shown[1]}"
