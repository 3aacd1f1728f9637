"""Bars for the benches, drawn like the job chart: one SVG picture, no dependency."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from service.chart import LEFT, RIGHT, TOP, WIDTH

PANEL, GAP = 130, 46
LABEL = 11  # font size of a bar's figure
FILL = 0.8  # share of a group's width that its bars take


@dataclass(frozen=True, slots=True)
class Bars:
    """Groups of bars on one scale from zero.

    Attributes:
        title: beside the panel, with the unit.
        groups: name under each group.
        series: name and colour of the bars of each place in a group.
        values: a row a group, a value a series; `None` draws nothing.
    """

    title: str
    groups: Sequence[str]
    series: Sequence[tuple[str, str]]
    values: Sequence[Sequence[float | None]]


def bar_chart(title: str, panels: Sequence[Bars]) -> str:
    """An SVG document: panels top to bottom, each with its own scale and legend."""
    height = TOP + len(panels) * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="16" fill="#222">{html.escape(title)}</text>',
    ]
    for index, panel in enumerate(panels):
        parts += _panel(panel, TOP + index * (PANEL + GAP))
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Bars, top: float) -> list[str]:
    right = WIDTH - RIGHT
    parts = [
        f'<line x1="{LEFT}" x2="{right}" y1="{top + PANEL}" y2="{top + PANEL}" stroke="#999"/>',
        f'<text font-size="12" x="{right + 8}" y="{top + 12}" fill="#222">{html.escape(panel.title)}</text>',
    ]
    for place, (name, color) in enumerate(panel.series):
        y = top + 30 + 16 * place
        parts.append(f'<text font-size="12" x="{right + 8}" y="{y}" fill="{color}">{html.escape(name)}</text>')
    highest = max([abs(value) for row in panel.values for value in row if value is not None] or [0]) or 1.0
    width = (right - LEFT) / max(len(panel.groups), 1)
    bar = width * FILL / max(len(panel.series), 1)
    for index, (group, row) in enumerate(zip(panel.groups, panel.values, strict=True)):
        left = LEFT + index * width + width * (1 - FILL) / 2
        parts.append(
            f'<text font-size="12" x="{LEFT + (index + 0.5) * width:.1f}" y="{top + PANEL + 16}" text-anchor="middle" '
            f'fill="#555">{html.escape(group)}</text>'
        )
        for place, ((_, color), value) in enumerate(zip(panel.series, row, strict=True)):
            if value is None:
                continue
            tall = (PANEL - LABEL - 3) * abs(value) / highest
            x = left + place * bar
            parts.append(
                f'<rect x="{x:.1f}" y="{top + PANEL - tall:.1f}" width="{bar * 0.92:.1f}" height="{tall:.1f}" '
                f'fill="{color}"/>'
            )
            parts.append(
                f'<text x="{x + bar * 0.46:.1f}" y="{top + PANEL - tall - 3:.1f}" text-anchor="middle" '
                f'font-size="{LABEL}" fill="#222">{value:.3g}</text>'
            )
    return parts
