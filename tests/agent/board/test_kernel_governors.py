from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.kernel_governors import (
    TRIPS,
    KernelState,
    KernelSteered,
    KernelTrips,
    fan_level,
    look,
    ondemand,
    step_wise,
)
from agent.board.physics import CONSTANTS
from agent.board.simulated import SimulatedBoard

POINTS = CONSTANTS["raspberry-pi-4"].points
TOP = len(POINTS) - 1
PI5 = (50.0, 60.0, 67.5, 75.0)


@pytest.mark.parametrize(
    ("load", "mhz"), [(0.0, 600), (0.25, 900), (0.5, 1200), (0.8, 1600), (0.81, 1800), (1.0, 1800)]
)
def test_ondemand_is_proportional_up_to_its_threshold(load: float, mhz: int) -> None:
    assert POINTS[ondemand(POINTS, load)].frequency_hz == mhz * 1_000_000


@given(st.floats(0, 1, allow_subnormal=False), st.floats(0, 1, allow_subnormal=False))
def test_more_load_is_never_a_lower_clock(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert ondemand(POINTS, low) <= ondemand(POINTS, high)


def test_step_wise_takes_one_step_a_look_and_follows_the_trend() -> None:
    assert step_wise(0, 3, 85.0, 84.0, 85.0) == 1
    assert step_wise(1, 3, 86.0, 86.5, 85.0) == 1  # hot, but it falls
    assert step_wise(1, 3, 84.0, 83.0, 85.0) == 1  # cool, but it rises
    assert step_wise(1, 3, 84.0, 85.0, 85.0) == 0
    assert step_wise(3, 3, 90.0, 89.0, 85.0) == 3
    assert step_wise(0, 3, 80.0, 81.0, 85.0) == 0
    assert step_wise(1, 3, 84.0, 85.0, 85.0, hysteresis=2.0) == 1


def test_fan_of_a_pi_5_rises_at_its_trips_and_falls_5_k_below() -> None:
    level, seen = 0, []
    for celsius in (49.9, 50.0, 59.9, 60.0, 68.0, 80.0, 70.1, 69.9, 62.5, 62.0, 55.0, 54.9, 45.0, 44.9):
        level = fan_level(level, celsius, PI5, 5.0)
        seen.append(level)
    assert seen == [0, 1, 1, 2, 3, 4, 4, 3, 3, 2, 2, 1, 1, 0]


@given(st.integers(0, 4), st.floats(-40, 150, allow_subnormal=False), st.floats(-40, 150, allow_subnormal=False))
def test_a_hotter_board_never_gets_less_fan(level: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert fan_level(level, low, PI5, 5.0) <= fan_level(level, high, PI5, 5.0)


def test_a_lost_temperature_leaves_everything_as_it_was() -> None:
    state = KernelState(3, 2, 1, 60.0)
    assert look(KernelTrips(85.0), state, TOP, None) == state


def steered(name: str, ambient: float, load: float, seconds: int = 3600) -> tuple[SimulatedBoard, list[float]]:
    board = SimulatedBoard(name, ambient_celsius=ambient)
    kernel, shares = KernelSteered(board), []
    for second in range(seconds):
        kernel.step(board, float(second))
        board.advance(1.0, load)
        shares.append(board.clock_share)
    return board, shares


def test_every_emulated_board_has_trips() -> None:
    assert set(TRIPS) == set(CONSTANTS)


def test_full_load_runs_at_the_top_and_a_light_one_lower() -> None:
    _, full = steered("raspberry-pi-5", 25.0, 1.0, 60)
    _, light = steered("raspberry-pi-5", 25.0, 0.1, 60)
    assert full[-1] == 1.0
    assert light[-1] < 0.7


def test_the_fan_follows_its_trips() -> None:
    cool, _ = steered("raspberry-pi-5", 10.0, 1.0)
    warm, _ = steered("raspberry-pi-5", 40.0, 1.0)
    assert cool.fan_level < warm.fan_level


def test_at_the_passive_trip_the_clock_is_held_and_the_reading_says_so() -> None:
    board, shares = steered("edge-22w", 70.0, 1.0)
    assert min(shares) < 1.0
    assert 80.0 < board.truth.die_celsius < 90.0
    hot = KernelSteered(board)
    throttled = []
    for second in range(300):
        throttled.append(hot.step(board, float(second)).throttled)
        board.advance(1.0, 1.0)
    assert any(throttled)
