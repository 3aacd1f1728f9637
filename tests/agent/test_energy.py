from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.energy import (
    MOST_NAMES,
    Energy,
    EnergyMeter,
    Spent,
    energy_figures,
    energy_table,
    gops_per_watt,
    joules_per_sample,
    parse_energy,
)
from policies.strict import TableError


def test_constant_power_is_power_times_time() -> None:
    meter = EnergyMeter()
    for second in range(11):
        meter.add(100.0 + second, 4.0, modelled=False)
    assert (meter.joules, meter.seconds) == (40.0, 10.0)
    assert (meter.energy.gaps, meter.energy.modelled) == (0, False)


def test_ramp_is_integrated_by_trapezoids() -> None:
    meter = EnergyMeter()
    for second in (0.0, 1.0, 3.0):
        meter.add(second, 2.0 * second, modelled=False)
    assert meter.joules == pytest.approx(9.0)


def test_a_gap_is_counted_and_not_integrated() -> None:
    meter = EnergyMeter(longest_gap_s=5.0)
    for second in (0.0, 5.0, 10.5, 11.5):
        meter.add(second, 2.0, modelled=False)
    assert (meter.joules, meter.seconds, meter.energy.gap_s, meter.energy.gaps) == (12.0, 6.0, 5.5, 1)


def test_unknown_power_is_a_gap_on_both_sides() -> None:
    meter = EnergyMeter()
    for second, watts in ((0.0, 2.0), (1.0, None), (2.0, 2.0), (3.0, 2.0)):
        meter.add(second, watts, modelled=False)
    assert (meter.joules, meter.energy.gap_s, meter.energy.gaps) == (2.0, 2.0, 2)


def test_one_modelled_part_marks_the_whole() -> None:
    meter = EnergyMeter()
    meter.add(0.0, 2.0, modelled=False)
    meter.add(1.0, 2.0, modelled=True)
    meter.add(2.0, 2.0, modelled=False)
    meter.add(3.0, 2.0, modelled=False)
    assert meter.energy.modelled


def test_a_modelled_reading_inside_a_gap_marks_nothing() -> None:
    meter = EnergyMeter()
    meter.add(0.0, 2.0, modelled=True)
    meter.add(60.0, 2.0, modelled=False)
    meter.add(61.0, 2.0, modelled=False)
    assert not meter.energy.modelled
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
    assert meter.seconds + meter.energy.gap_s == pytest.approx(now)
    assert 0.0 <= meter.joules <= 50.0 * meter.seconds


def test_figures_of_merit() -> None:
    assert joules_per_sample(120.0, 480) == 0.25
    assert joules_per_sample(120.0, 0) is None
    assert gops_per_watt(24e9, 10.0) == pytest.approx(2.4)
    assert gops_per_watt(24e9, 0.0) is None


def test_a_span_counts_for_the_state_in_which_it_began() -> None:
    meter = EnergyMeter()
    for second, state in ((0.0, "other"), (1.0, "training"), (3.0, "paused"), (4.0, "other"), (5.0, "other")):
        meter.add(second, 2.0, modelled=False, state=state)
    spent = {name: (part.joules, part.seconds) for name, part in meter.energy.states.items()}
    assert spent == {"other": (4.0, 2.0), "training": (4.0, 2.0), "paused": (2.0, 1.0)}
    assert meter.energy.spent("training", "paused") == Spent(6.0, 3.0)
    assert energy_figures(meter.energy, 12)["joules_per_sample"] == 0.5, "opening the model is no price of a sample"


def test_sources_that_change_within_a_job_are_listed_with_their_joules() -> None:
    meter = EnergyMeter()
    for second, source in ((0.0, "hwmon"), (2.0, "hwmon"), (3.0, "model"), (4.0, "")):
        meter.add(second, 3.0, modelled=source == "model", source=source)
    assert meter.energy.sources == {"hwmon": 6.0, "model": 3.0, "unknown": 3.0}
    assert meter.energy.source == "hwmon"


def test_the_next_attempt_goes_on_from_what_was_spent() -> None:
    first = EnergyMeter()
    for second in (0.0, 1.0):
        first.add(second, 4.0, modelled=True, source="model")
    first.count(8e9)
    kept = parse_energy(json.loads(json.dumps(energy_table(first.energy))))
    second_life = EnergyMeter(before=kept)
    for second in (50.0, 51.0):
        second_life.add(second, 2.0, modelled=False, source="hwmon")
    second_life.count(4e9)
    assert second_life.joules == 6.0
    assert second_life.energy.gap_s == 0.0, "the time between two attempts is no gap of the job"
    figures = energy_figures(second_life.energy, 3)
    assert (figures["joules_per_sample"], figures["gops_per_watt"], figures["modelled"]) == (2.0, 2.0, True)
    assert figures["sources"] == {"model": 4.0, "hwmon": 2.0}


def test_nothing_is_known_before_the_first_span() -> None:
    figures = energy_figures(Energy(), 10)
    assert (figures["joules"], figures["joules_per_sample"], figures["gops_per_watt"]) == (None, None, None)
    assert figures["source"] == ""


@pytest.mark.parametrize(
    "table",
    [
        {"gap_s": -1.0},
        {"states": {"training": {"joules": -1.0, "seconds": 1.0}}},
        {"sources": {"hwmon": "much"}},
        {"joules": 1.0},
    ],
)
def test_a_table_that_is_none_is_refused(table: dict[str, object]) -> None:
    with pytest.raises(TableError):
        parse_energy(table)


@given(
    st.lists(
        st.tuples(st.text(max_size=3), st.text(max_size=3), st.floats(0.0, 50.0, allow_subnormal=False)), max_size=60
    )
)
def test_parts_make_the_whole_however_many_names_there_are(spans: list[tuple[str, str, float]]) -> None:
    meter = EnergyMeter()
    for second, (state, source, watts) in enumerate(spans):
        meter.add(float(second), watts, modelled=False, source=source, state=state)
    energy = meter.energy
    assert len(energy.states) <= MOST_NAMES + 1
    assert len(energy.sources) <= MOST_NAMES + 1
    assert sum(energy.sources.values()) == pytest.approx(meter.joules)
    assert parse_energy(json.loads(json.dumps(energy_table(energy)))) == energy
