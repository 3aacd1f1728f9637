"""The small charts of the fleet as rectangles. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from service.console.rows import FIRST_CELSIUS, STEP_CELSIUS, State

WIDTH, HEIGHT = 280, 72  # of the histogram's bars, in units of its picture
GAP = 2  # between two bars
LEAST = 1.5  # height of a bar that stands for one board: it must be seen
SHARES_WIDTH = 1000  # of the bar of states


class Bar(NamedTuple):
    """A rectangle, and what it stands for."""

    x: float
    y: float
    width: float
    height: float
    boards: int
    name: str


def histogram(counts: Sequence[int]) -> list[Bar]:
    """Bars of boards by temperature, the highest as high as the picture; names are `band_name`."""
    step, most = WIDTH / max(1, len(counts)), max(1, *counts)
    bars = []
    for band, count in enumerate(counts):
        height = max(LEAST, HEIGHT * count / most) if count else 0.0
        bars.append(
            Bar(
                _short(band * step), _short(HEIGHT - height), _short(step - GAP), _short(height), count, band_name(band)
            )
        )
    return bars


def band_name(band: int) -> str:
    """Where a band of `Summary.temperatures` begins, in °C; empty of the first, which is all below."""
    return f"{FIRST_CELSIUS + (band - 1) * STEP_CELSIUS:g}" if band else ""


def shares(states: Mapping[str, int]) -> list[Bar]:
    """The boards of each state side by side, together as wide as the picture; names are states."""
    total, x, bars = sum(states.values()), 0.0, []
    for state in State:
        count = states.get(state, 0)
        width = SHARES_WIDTH * count / total if total else 0.0
        bars.append(Bar(_short(x), 0.0, _short(width), 10.0, count, str(state)))
        x += width
    return bars


def _short(value: float) -> float:
    return round(value, 2)
