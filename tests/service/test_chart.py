from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.chart import LEFT, PANEL, POINTS, RIGHT, TOP, WIDTH, Line, Panel, chart

SVG = "{http://www.w3.org/2000/svg}"
values = st.floats(-1e6, 1e6, allow_subnormal=False)
times = st.lists(st.floats(0, 1e5, allow_subnormal=False), max_size=30).map(sorted)
lines = st.builds(
    lambda label, at, steps, level: Line(label, [(t, level + i) for i, t in enumerate(at)], "#123456", steps=steps),
    st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=10), times, st.booleans(), values,
)  # fmt: skip


def drawn(svg: str) -> list[list[tuple[float, float]]]:
    """Corners of every curve."""
    found = ET.fromstring(svg).iter(f"{SVG}polyline")  # noqa: S314 - our own text
    return [[(float(p.split(",")[0]), float(p.split(",")[1])) for p in item.attrib["points"].split()] for item in found]


def picture(points: list[tuple[float, float]], *, steps: bool = False, low: float = 0, high: float = 10) -> str:
    return chart("job", [Panel("panel", [Line("line", points, "red", steps=steps)], low, high)])


def test_points_lie_where_time_and_value_say() -> None:
    (curve,) = drawn(picture([(0, 0), (50, 5), (100, 10)]))
    right = WIDTH - RIGHT
    assert curve == [(LEFT, TOP + PANEL), ((LEFT + right) / 2, TOP + PANEL / 2), (right, TOP)]


def test_levels_are_drawn_as_steps() -> None:
    (curve,) = drawn(picture([(0, 0), (50, 10), (100, 5)], steps=True))
    middle, right = (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT
    assert curve == [
        (LEFT, TOP + PANEL), (middle, TOP + PANEL), (middle, TOP), (right, TOP), (right, TOP + PANEL / 2),
        (right, TOP + PANEL / 2),
    ]  # fmt: skip


def test_values_outside_the_panel_are_drawn_at_its_edge() -> None:
    (curve,) = drawn(picture([(0, -5), (1, 99)]))
    assert [y for _, y in curve] == [TOP + PANEL, TOP]


@pytest.mark.parametrize("count", [1, 2, POINTS - 1, POINTS, POINTS + 1, 2 * POINTS - 1, 10 * POINTS])
def test_long_lines_are_thinned_and_keep_their_ends(count: int) -> None:
    (curve,) = drawn(picture([(float(i), 1 + i % 3) for i in range(count)]))
    assert min(count, POINTS // 2) <= len(curve) <= POINTS
    assert curve[0][0] == LEFT
    assert count == 1 or curve[-1][0] == WIDTH - RIGHT


def test_a_line_without_points_is_named_and_not_drawn() -> None:
    svg = picture([], steps=True)
    assert drawn(svg) == []
    assert ">line<" in svg


def test_a_panel_of_one_value_and_a_chart_of_nothing_are_drawn() -> None:
    assert drawn(picture([(0, 3), (9, 3)], low=3, high=3))
    root = ET.fromstring(chart("empty", []))  # noqa: S314 - our own text
    assert "empty" in "".join(root.itertext())


def test_names_are_escaped() -> None:
    bad = '<script>"&'
    svg = chart(bad, [Panel(bad, [Line(bad, [(0, 0)], "red")], 0, 1, [(0.5, bad)])], [(0, 1, bad)])
    texts = [item.text for item in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314 - our own text
    assert texts.count(bad) == 5
    assert "<script" not in svg


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.builds(Panel, st.text("ab<&"), st.lists(lines, max_size=3), values, values), max_size=4))
def test_any_job_is_a_well_formed_picture_within_its_frame(panels: list[Panel]) -> None:
    bounded = [Panel(p.title, p.lines, min(p.low, p.high), max(p.low, p.high)) for p in panels]
    svg = chart("job", bounded, [(0, 5, "paused")])
    height = float(ET.fromstring(svg).attrib["viewBox"].split()[3])  # noqa: S314 - our own text
    for x, y in (point for curve in drawn(svg) for point in curve):
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP <= y <= height
