"""A job as one SVG picture: temperature, frequency, freeze depth and accuracy over time, one axis."""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, LEFT, RIGHT, TOP = 920, 64, 150, 46
PANEL, GAP = 96, 26
POINTS = 600  # drawn a line at most: more is finer than a pixel
TICKS = 6


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: points (seconds, value), drawn as steps where values are levels."""

    label: str
    points: Sequence[tuple[float, float]]
    color: str
    steps: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share a scale; `marks` are dashed levels with a name."""

    title: str
    lines: Sequence[Line]
    low: float
    high: float
    marks: Sequence[tuple[float, str]] = ()


def chart(title: str, panels: Sequence[Panel], bands: Sequence[tuple[float, float, str]] = ()) -> str:
    """An SVG document.

    Args:
        title: above the panels.
        panels: top to bottom.
        bands: (from, to, name) spans of time, in seconds, shaded behind all panels.
    """
    end = max([1.0, *(t for panel in panels for line in panel.lines for t, _ in line.points)])
    height = TOP + len(panels) * (PANEL + GAP) + 28
    view = f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {view}>',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="16" fill="#222">{html.escape(title)}</text>',
    ]
    bottom = TOP + len(panels) * (PANEL + GAP) - GAP
    for start, stop, name in bands:
        x, width = _x(start, end), max(2.0, _x(min(stop, end), end) - _x(start, end))
        parts.append(f'<rect x="{x:.1f}" y="{TOP}" width="{width:.1f}" height="{bottom - TOP}" fill="#fde8d7"/>')
        parts.append(f'<text x="{x + 3:.1f}" y="{TOP - 5}" fill="#b45309">{html.escape(name)}</text>')
    for index, panel in enumerate(panels):
        parts += _panel(panel, TOP + index * (PANEL + GAP), end)
    for tick in range(TICKS + 1):
        seconds = end * tick / TICKS
        parts.append(_text(_x(seconds, end), bottom + 18, f"{seconds:.0f} s", "#555", "middle"))
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, top: float, end: float) -> list[str]:
    span = (panel.high - panel.low) or 1.0

    def y(value: float) -> float:
        return top + PANEL * (1 - (min(max(value, panel.low), panel.high) - panel.low) / span)

    right = WIDTH - RIGHT
    parts = [
        f'<rect x="{LEFT}" y="{top}" width="{right - LEFT}" height="{PANEL}" fill="none" stroke="#ccc"/>',
        f'<text x="{LEFT - 6}" y="{top + 10}" text-anchor="end" fill="#555">{panel.high:g}</text>',
        f'<text x="{LEFT - 6}" y="{top + PANEL}" text-anchor="end" fill="#555">{panel.low:g}</text>',
        f'<text x="{right + 8}" y="{top + 12}" fill="#222">{html.escape(panel.title)}</text>',
    ]
    for value, name in panel.marks:
        level = f'y1="{y(value):.1f}" y2="{y(value):.1f}"'
        parts.append(f'<line x1="{LEFT}" x2="{right}" {level} stroke="#999" stroke-dasharray="4 4"/>')
        parts.append(_text(right - 4, y(value) - 3, name, "#999", "end"))
    for index, line in enumerate(panel.lines):
        parts.append(_text(right + 8, top + 30 + 16 * index, line.label, line.color))
        points = _thinned(line.points)
        if not points:
            continue
        if line.steps:
            corners = [(later, value) for (_, value), (later, _) in itertools.pairwise(points)]
            points = [point for pair in zip(points, [*corners, points[-1]], strict=True) for point in pair]
        path = " ".join(f"{_x(t, end):.1f},{y(v):.1f}" for t, v in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.color}" stroke-width="1.6"/>')
    return parts


def _text(x: float, y: float, text: str, color: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{html.escape(text)}</text>'


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = -(-len(points) // (POINTS - 1))  # the last point is always drawn
    return [*points[::stride], *points[-1:]] if stride > 1 else list(points)


def _x(seconds: float, end: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * seconds / end
