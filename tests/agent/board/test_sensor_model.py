from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.physics import CONSTANTS
from agent.board.plausible import judge_millidegrees
from agent.board.profile import PROFILES, pick_profile
from agent.board.sensor_model import SENSORS, SensorModel
from policies.reading import Health

NAMES = sorted(SENSORS)


def test_every_emulated_board_has_sensors() -> None:
    assert set(SENSORS) == set(CONSTANTS)


@pytest.mark.parametrize("name", NAMES)
def test_a_resting_die_never_looks_stuck(name: str) -> None:
    """Looks a second apart: the longest run of one value stays below the time after which a sensor counts as stuck."""
    stuck_s = pick_profile(f"Emulated {PROFILES[name].models[0]}").frozen_after_s
    assert stuck_s is not None
    model = SensorModel(SENSORS[name], seed=3)
    said = [
        model.die_millidegrees(SENSORS[name].celsius_offset - 360.0 * SENSORS[name].celsius_step) for _ in range(20000)
    ]
    longest = max(sum(1 for _ in run) for _, run in itertools.groupby(said))
    assert longest < stuck_s


@given(st.sampled_from(NAMES), st.floats(-30, 120, allow_subnormal=False), st.integers(0, 2**32))
def test_what_a_healthy_sensor_says_is_near_and_in_its_steps(name: str, celsius: float, seed: int) -> None:
    parts, said = SENSORS[name], SensorModel(SENSORS[name], seed).die_millidegrees(celsius)
    assert said is not None
    assert abs(said / 1000 - celsius) < 6 * parts.celsius_noise + parts.celsius_step
    steps = (said / 1000 - parts.celsius_offset) / parts.celsius_step
    assert steps == pytest.approx(round(steps), abs=0.001 / parts.celsius_step)


@given(st.sampled_from(NAMES), st.floats(0, 40, allow_subnormal=False), st.integers(0, 2**32))
def test_a_meter_is_near_in_its_steps_and_never_negative(name: str, watts: float, seed: int) -> None:
    parts, said = SENSORS[name], SensorModel(SENSORS[name], seed).watts(watts)
    assert said >= 0.0
    assert said == pytest.approx(watts, rel=parts.gain_error + 6 * parts.watt_noise, abs=parts.watt_step)
    assert said / parts.watt_step == pytest.approx(round(said / parts.watt_step), abs=1e-6)


def test_faults_say_what_broken_sensors_say() -> None:
    model = SensorModel(SENSORS["raspberry-pi-4"], seed=0)
    before = model.die_millidegrees(50.0)
    assert model.die_millidegrees(90.0, "frozen") == before
    for fault, health in (("missing", Health.MISSING), ("unreadable", Health.MISSING), ("zero", Health.IMPOSSIBLE)):
        assert judge_millidegrees(model.die_millidegrees(50.0, fault)).health is health
    jumped = model.die_millidegrees(50.0, "jump")
    assert jumped is not None
    assert jumped == pytest.approx(110_000, abs=2000)
