from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.energy import EnergyMeter, gops_per_watt, joules_per_sample


def test_constant_power_is_power_times_time() -> None:
    meter = EnergyMeter()
    for second in range(11):
        meter.add(100.0 + second, 4.0, modelled=False)
    assert (meter.joules, meter.seconds, meter.gaps, meter.modelled) == (40.0, 10.0, 0, False)


def test_ramp_is_integrated_by_trapezoids() -> None:
    meter = EnergyMeter()
    for second in (0.0, 1.0, 3.0):
        meter.add(second, 2.0 * second, modelled=False)
    assert meter.joules == pytest.approx(9.0)


def test_a_gap_is_counted_and_not_integrated() -> None:
    meter = EnergyMeter(longest_gap_s=5.0)
    for second in (0.0, 5.0, 10.5, 11.5):
        meter.add(second, 2.0, modelled=False)
    assert (meter.joules, meter.seconds, meter.gap_s, meter.gaps) == (12.0, 6.0, 5.5, 1)


def test_unknown_power_is_a_gap_on_both_sides() -> None:
    meter = EnergyMeter()
    for second, watts in ((0.0, 2.0), (1.0, None), (2.0, 2.0), (3.0, 2.0)):
        meter.add(second, watts, modelled=False)
    assert (meter.joules, meter.gap_s, meter.gaps) == (2.0, 2.0, 2)


def test_one_modelled_part_marks_the_whole() -> None:
    meter = EnergyMeter()
    meter.add(0.0, 2.0, modelled=False)
    meter.add(1.0, 2.0, modelled=True)
    meter.add(2.0, 2.0, modelled=False)
    meter.add(3.0, 2.0, modelled=False)
    assert meter.modelled


def test_a_modelled_reading_inside_a_gap_marks_nothing() -> None:
    meter = EnergyMeter()
    meter.add(0.0, 2.0, modelled=True)
    meter.add(60.0, 2.0, modelled=False)
    meter.add(61.0, 2.0, modelled=False)
    assert not meter.modelled
    assert meter.joules == 2.0


def test_time_going_back_is_refused_and_changes_nothing() -> None:
    meter = EnergyMeter()
    meter.add(10.0, 2.0, modelled=False)
    with pytest.raises(ValueError, match="went back"):
        meter.add(9.0, 2.0, modelled=False)
    meter.add(11.0, 2.0, modelled=False)
    assert meter.joules == 2.0


@given(
    st.lists(
        st.tuples(st.floats(0.0, 10.0, allow_subnormal=False), st.none() | st.floats(0, 50, allow_subnormal=False)),
        max_size=40,
    )
)
def test_every_second_is_either_covered_or_a_gap(steps: list[tuple[float, float | None]]) -> None:
    meter = EnergyMeter()
    now = 0.0
    meter.add(now, 1.0, modelled=False)
    for span, watts in steps:
        now += span
        meter.add(now, watts, modelled=False)
    assert meter.seconds + meter.gap_s == pytest.approx(now)
    assert 0.0 <= meter.joules <= 50.0 * meter.seconds


def test_figures_of_merit() -> None:
    assert joules_per_sample(120.0, 480) == 0.25
    assert joules_per_sample(120.0, 0) is None
    assert gops_per_watt(24e9, 10.0) == pytest.approx(2.4)
    assert gops_per_watt(24e9, 0.0) is None
