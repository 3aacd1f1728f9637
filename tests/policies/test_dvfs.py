from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.dvfs import TABLE_TOLERANCE, cap_hz, ratio_for_depth
from policies.policy import DvfsPolicy
from policies.reading import OperatingPoint

PI4 = tuple(OperatingPoint(mhz * 1_000_000, 0.8) for mhz in range(600, 1801, 100))


@pytest.mark.parametrize(
    ("ratio", "mhz"), [(1.0, 1800), (0.8, 1400), (0.72, 1300), (0.6, 1000), (0.333, 600), (0.1, 600), (0.0, 600)]
)
def test_cap_on_the_table_of_a_pi_4(ratio: float, mhz: int) -> None:
    assert cap_hz(PI4, ratio) == mhz * 1_000_000


def test_reference_figure_2500_to_1800() -> None:
    points = tuple(OperatingPoint(mhz * 1_000_000, 0.8) for mhz in (600, 1200, 1800, 2500))
    assert cap_hz(points, ratio_for_depth(DvfsPolicy(), 75)) == 1_800_000_000


def test_no_table_no_cap() -> None:
    assert cap_hz((), 0.5) is None


@pytest.mark.parametrize(("percent", "ratio"), [(0, 1.0), (50, 1.0), (51, 0.72), (75, 0.72), (100, 0.72)])
def test_clock_follows_the_freezing_level(percent: int, ratio: float) -> None:
    assert ratio_for_depth(DvfsPolicy(), percent) == ratio


@given(
    st.lists(st.integers(1, 10**10), min_size=1, max_size=40),
    st.floats(0, 1, allow_subnormal=False),
    st.floats(0, 1, allow_subnormal=False),
)
def test_cap_is_a_point_of_the_table_within_the_ratio_and_grows_with_it(
    frequencies: list[int], one: float, other: float
) -> None:
    points = tuple(OperatingPoint(hz, 0.8) for hz in frequencies)
    low, high = sorted((one, other))
    slow, fast = cap_hz(points, low), cap_hz(points, high)
    assert slow is not None
    assert fast is not None
    assert slow in frequencies
    assert slow <= fast
    assert slow <= (low + TABLE_TOLERANCE) * max(frequencies) or slow == min(frequencies)
