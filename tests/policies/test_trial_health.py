from __future__ import annotations

import json

import pytest

from policies.trial_health import (
    IDLE,
    MAX_MINUTES,
    MINUTE_S,
    SETTLE_S,
    TRAINING,
    Baseline,
    Heat,
    HeatBook,
    HeatMargins,
    baseline_of,
    compared,
    settle_s,
    too_hot,
)

MARGINS = HeatMargins()


def book(load: str, celsius: float, over_air: float | None, seconds: int = 600) -> HeatBook:
    made = HeatBook()
    for second in range(seconds):
        made.add(float(second), load, celsius, over_air)
    return made


def heat(mean: float, peak: float | None = None, *, readings: int = 300, over_air: bool = True) -> Heat:
    return Heat(mean, mean if peak is None else peak, readings, over_air)


def test_what_follows_a_change_of_load_does_not_count() -> None:
    made = HeatBook()
    for second in range(1000):
        load, kelvin = (TRAINING, 30.0) if second < 500 else (IDLE, 30.0 if second < 500 + SETTLE_S else 10.0)
        made.add(float(second), load, 50.0, kelvin)
    assert made.heats() == {TRAINING: Heat(30.0, 30.0, 380, True), IDLE: Heat(10.0, 10.0, 380, True)}


def test_one_hot_reading_is_not_the_peak() -> None:
    made = HeatBook(settle_s=0.0)
    for second in range(int(MINUTE_S)):
        made.add(float(second), IDLE, 40.0, 70.0 if second == 30 else 10.0)
    assert made.heats()[IDLE].peak == 11.0


def test_only_the_last_hour_is_kept() -> None:
    made = HeatBook(settle_s=0.0, minute_s=1.0)
    for second in range(10 * MAX_MINUTES):
        made.add(float(second), IDLE, None if second % 7 == 0 else float(second), None)
    kept = made.heats()[IDLE]
    assert kept.readings == MAX_MINUTES
    assert kept.mean > 9 * MAX_MINUTES
    assert not kept.over_air


def test_a_load_of_another_kind_is_not_compared() -> None:
    assert book("", 40.0, 10.0).heats() == {}


@pytest.mark.parametrize(
    ("before", "now", "hot"),
    [
        (heat(10.0), heat(10.0 + MARGINS.mean_kelvin), False),
        (heat(10.0), heat(10.1 + MARGINS.mean_kelvin), True),
        (heat(10.0, 20.0), heat(10.0, 20.0 + MARGINS.peak_kelvin), False),
        (heat(10.0, 20.0), heat(10.0, 20.1 + MARGINS.peak_kelvin), True),
        (heat(10.0), heat(1.0), False),
        (heat(50.0, over_air=False), heat(62.0, over_air=False), False),  # the room may have warmed
        (heat(50.0, over_air=False), heat(62.1, over_air=False), True),
        (heat(10.0), heat(90.0, over_air=False), False),  # two kinds of sensor
        (heat(10.0), heat(90.0, readings=149), False),  # seen for too short a time
        (heat(10.0, readings=149), heat(90.0), False),
    ],
)
@pytest.mark.parametrize("load", [IDLE, TRAINING])
def test_hotter_is_hotter_by_more_than_the_margin_under_the_same_load(
    load: str, before: Heat, now: Heat, *, hot: bool
) -> None:
    assert bool(too_hot(MARGINS, {load: before}, {load: now}, 150)) is hot
    other = TRAINING if load == IDLE else IDLE
    assert not too_hot(MARGINS, {load: before}, {other: now}, 150)


def test_the_sentence_names_load_and_figures() -> None:
    said = too_hot(MARGINS, {TRAINING: heat(20.0)}, {TRAINING: heat(31.5)}, 5)
    assert said == "training: 31.5 K over the air on average, 20.0 before; 5 K more are allowed"
    assert compared({TRAINING: heat(20.0)}, {TRAINING: heat(31.5), IDLE: heat(1.0)}, 5) == (TRAINING,)


def test_a_baseline_comes_back_and_of_a_broken_one_nothing_counts() -> None:
    whole = Baseline({IDLE: heat(9.0)}, had_link=True, critical=False)
    table = json.loads(json.dumps(whole.table()))
    assert baseline_of(table) == whole
    table["heat"][IDLE]["mood"] = 1
    assert baseline_of({**table, "mood": 2}) == whole, "a later release may add keys"
    for broken in ({}, {"heat": 3}, {"heat": {IDLE: 4}}, {"heat": {IDLE: {"mean": "hot"}}}, {"had_link": "yes"}):
        assert baseline_of(broken) == Baseline()


def test_a_short_window_settles_sooner() -> None:
    assert (settle_s(600.0), settle_s(20.0)) == (SETTLE_S, 5.0)
