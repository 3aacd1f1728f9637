from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.physics import CONSTANTS
from policies.power_model import PRIOR, PowerModel, fan_share, leaking, learn, switching
from policies.predictive import PredictiveState
from policies.reading import OperatingPoint, Reading

POINTS = (OperatingPoint(1_000_000_000, 0.8), OperatingPoint(2_000_000_000, 1.0))
TOP = Reading(
    mono_s=0.0,
    temperature_celsius=50.0,
    ambient_celsius=25.0,
    frequency_hz=2_000_000_000,
    operating_points=POINTS,
    cooling_max=4,
    cooling_level=0,
    power_watts=8.0,
    power_source="hwmon",
    utilisation=1.0,
)


def after(*readings: Reading) -> PowerModel:
    model = PowerModel()
    for second, reading in enumerate(readings):
        model = learn(model, replace(reading, mono_s=float(second)))
    return model


@pytest.mark.parametrize("ambient", [10.0, 25.0, 40.0])
@pytest.mark.parametrize("name", CONSTANTS)
def test_learns_a_board_whose_constants_are_hidden_from_it(
    name: str, ambient: float, learnt: Callable[..., PredictiveState]
) -> None:
    model, parts = learnt(name, ambient).power, CONSTANTS[name]
    for point in parts.points:
        for busy in (0.0, 0.5, 1.0):
            for level in range(parts.fan_levels + 1):
                share, celsius = level / parts.fan_levels, ambient + 20.0
                truth = parts.power.watts(point, busy, celsius) + parts.fan_watts * level
                watts, error = model.watts(switching(parts.points, point.frequency_hz, busy), share, celsius)
                assert watts == pytest.approx(truth, rel=0.10)
                assert abs(watts - truth) < 4 * error + 0.02 * truth


def test_prior_is_no_board() -> None:
    for parts in CONSTANTS.values():
        power = parts.power
        true = (power.rest_watts, power.switched_farads * 1e9, power.leakage_watts, parts.fan_watts * parts.fan_levels)
        assert all(abs(a - b) > 0.02 * b for a, b in zip(PRIOR.mean, true, strict=True))
        assert all(abs(a - b) < 2 * d for a, b, d in zip(PRIOR.mean, true, PRIOR.deviation, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"power_source": "model"},
        {"power_source": ""},
        {"power_watts": None},
        {"power_watts": math.nan},
        {"power_watts": -3.0},
        {"power_watts": 1e9},
        {"utilisation": None},
        {"utilisation": math.nan},
        {"frequency_hz": None},
        {"temperature_celsius": None},
        {"temperature_celsius": math.nan},
    ],
    ids=str,
)
def test_teaches_nothing(change: dict[str, object]) -> None:
    assert after(*[replace(TOP, **change)] * 30).estimate == PRIOR.start()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [replace(TOP, frequency_hz=1_000_000_000), replace(TOP, cooling_level=1), replace(TOP, utilisation=0.5)],
    ids=["clock", "fan", "load"],
)
def test_learns_only_from_steady_windows(other: Reading) -> None:
    assert after(*[TOP, TOP, TOP, other, other, other] * 10).estimate.samples == 0
    assert after(*[TOP] * 60).estimate.samples > 10


def test_a_gap_ends_a_window() -> None:
    model = PowerModel()
    for second in range(0, 600, 6):
        model = learn(model, replace(TOP, mono_s=float(second)))
    assert model.estimate.samples == 0


def test_volts_are_those_of_the_point_at_or_above_the_clock() -> None:
    assert switching(POINTS, 1_000_000_000, 1.0) == pytest.approx(0.64)
    assert switching(POINTS, 1_500_000_000, 0.5) == pytest.approx(0.75)
    assert switching(POINTS, 3_000_000_000, 1.0) == pytest.approx(3.0)
    assert switching((), 3_000_000_000, 1.0) == pytest.approx(3.0)
    assert switching((OperatingPoint(2_000_000_000, 0.0),), 1_000_000_000, 1.0) == pytest.approx(1.0)


def test_leakage_doubles_every_30_kelvin_within_what_silicon_survives() -> None:
    assert leaking(25.0) == 1.0
    assert leaking(55.0) == pytest.approx(2.0)
    assert leaking(1e9) == leaking(125.0)


@pytest.mark.parametrize(
    ("level", "most", "share"), [(None, 4, 0.0), (2, 4, 0.5), (9, 4, 1.0), (-1, 4, 0.0), (3, 0, 0.0)]
)
def test_fan_share(level: int | None, most: int, share: float) -> None:
    assert fan_share(replace(TOP, cooling_level=level, cooling_max=most)) == share


@given(
    st.lists(
        st.builds(
            replace,
            st.just(TOP),
            power_watts=st.none() | st.floats(allow_subnormal=False),
            utilisation=st.none() | st.floats(allow_subnormal=False),
            temperature_celsius=st.none() | st.floats(allow_subnormal=False),
            frequency_hz=st.none() | st.integers(-1, 10**12),
            cooling_level=st.none() | st.integers(-1, 10),
        ),
        max_size=20,
    )
)
def test_absurd_readings_leave_it_sound(readings: list[Reading]) -> None:
    rows = [row for reading in readings for row in [reading] * 8]
    assert after(*rows).estimate.fits(PRIOR)
