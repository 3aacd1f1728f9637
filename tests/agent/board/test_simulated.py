from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.board.board import Board
from agent.board.injection import Injection
from agent.board.physics import CONSTANTS
from agent.board.simulated import SimulatedBoard
from agent.errors import ConfigError
from policies.reading import Decision, Health, Reading

NAMES = sorted(CONSTANTS)


def health(reading: Reading, what: str) -> Health:
    return dict(reading.health)[what]


def after(board: SimulatedBoard, seconds: float = 1.0, utilisation: float = 0.0) -> Reading:
    board.advance(seconds, utilisation)
    return board.read(board.elapsed_s)


@pytest.mark.parametrize("name", NAMES)
def test_a_board_begins_at_rest_and_says_so(name: str) -> None:
    simulated = SimulatedBoard(name, ambient_celsius=10.0)
    board: Board = simulated
    rest = board.read(0.0)
    assert rest.delta_t_celsius is not None
    assert 0.5 < rest.delta_t_celsius < 14.0
    assert simulated.clock_share == 1.0
    assert (rest.charge, rest.on_mains, rest.power_source, rest.power_is_modelled) == (1.0, True, "hwmon", True)
    before = simulated.truth.die_celsius
    simulated.advance(600.0, 0.0)
    assert simulated.truth.die_celsius == pytest.approx(before, abs=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_sensors_stay_near_the_truth_and_never_rest(name: str) -> None:
    board = SimulatedBoard(name)
    board.advance(900.0, 0.7)
    readings = [after(board, 1.0, 0.7) for _ in range(200)]
    die = [r.temperature_celsius or 0.0 for r in readings]
    assert sum(die) / len(die) == pytest.approx(board.truth.die_celsius, abs=0.15)
    assert max(die) - min(die) < 4.0
    assert len(set(die)) > 1
    watts = [r.power_watts or 0.0 for r in readings]
    assert sum(watts) / len(watts) == pytest.approx(board.truth.watts, rel=0.006)
    assert {r.utilisation for r in readings} == {0.7}


def test_a_pi_4_measures_in_steps_of_its_converter() -> None:
    board = SimulatedBoard("raspberry-pi-4")
    for _ in range(50):
        celsius = after(board).temperature_celsius
        assert celsius is not None
        steps = (410.04 - celsius) / 0.487
        assert steps == pytest.approx(round(steps), abs=1e-6)


def test_the_same_seed_is_the_same_day() -> None:
    one, same, other = (SimulatedBoard("raspberry-pi-5", seed=seed) for seed in (1, 1, 2))
    assert [after(one) for _ in range(9)] == [after(same) for _ in range(9)]
    assert after(one).temperature_celsius != after(other).temperature_celsius or one.read(1.0) != other.read(1.0)


@pytest.mark.parametrize("name", NAMES)
def test_levers_work_and_are_put_back(name: str) -> None:
    board = SimulatedBoard(name)
    points = board.constants.points
    assert board.apply(Decision(frequency_cap_hz=points[2].frequency_hz + 1, cooling_level=3)) == ()
    reading = after(board)
    assert (reading.frequency_hz, reading.cooling_level) == (points[2].frequency_hz, 3)
    assert board.clock_share == points[2].frequency_hz / points[-1].frequency_hz
    assert board.restore() == ()
    reading = after(board)
    assert (reading.frequency_hz, reading.cooling_level) == (points[-1].frequency_hz, board.constants.resting_fan_level)


def test_full_load_heats_and_the_firmware_takes_the_clock_down() -> None:
    board = SimulatedBoard("raspberry-pi-4", ambient_celsius=50.0, start_fan=0)
    shares = []
    for _ in range(1800):
        board.advance(1.0, 1.0)
        shares.append(board.clock_share)
    assert board.read(1800.0).throttled
    assert min(shares) < 1.0
    assert 79.0 < board.truth.die_celsius < 85.0


def test_what_the_kernel_asks_for_adds_to_the_decision() -> None:
    board = SimulatedBoard("raspberry-pi-4")
    board.apply(Decision(frequency_cap_hz=1_500_000_000, cooling_level=2))
    board.kernel_asks(cooling_state=5, fan_level=3)
    reading = after(board)
    assert (reading.frequency_hz, reading.cooling_level, reading.throttled) == (1_300_000_000, 3, True)
    board.kernel_asks(cooling_state=0, clock_index=0, fan_level=0)
    reading = after(board)
    assert (reading.frequency_hz, reading.cooling_level, reading.throttled) == (600_000_000, 2, False)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("missing", Health.MISSING),
        ("unreadable", Health.MISSING),
        ("zero", Health.IMPOSSIBLE),
        ("impossible", Health.IMPOSSIBLE),
        ("jump", Health.IMPOSSIBLE),
    ],
)
def test_temperature_faults_are_seen_and_end(fault: str, expected: Health) -> None:
    board = SimulatedBoard("raspberry-pi-4")
    after(board)
    board.inject(Injection(temperature=fault, seconds=2.0))
    reading = after(board)
    assert (reading.temperature_celsius, health(reading, "temperature")) == (None, expected)
    reading = after(board, 3.0)
    assert health(reading, "temperature") is Health.OK
    assert reading.temperature_celsius is not None


def test_memory_runs_short_on_demand() -> None:
    board = SimulatedBoard("raspberry-pi-4")
    board.inject(Injection(memory_mib=50.0, memory_pressure=0.25, seconds=2.0))
    short, later = after(board), after(board, 3.0)
    assert (short.memory_available_bytes, short.pressure) == (50 << 20, (("memory", 0.25),))
    assert later.pressure == ()
    assert (later.memory_available_bytes or 0) > 1 << 30


def test_a_frozen_sensor_is_seen_after_its_time() -> None:
    board = SimulatedBoard("raspberry-pi-4")
    after(board)
    board.inject(Injection(temperature="frozen"))
    seen = [health(after(board), "temperature") for _ in range(150)]
    assert seen[:100] == [Health.OK] * 100
    assert seen[-1] is Health.FROZEN


def test_supply_and_cap_faults() -> None:
    board = SimulatedBoard("raspberry-pi-4")
    board.inject(Injection(unplug=True, undervoltage=True, charge=0.15, refuses_cap=True))
    reading = after(board)
    assert (reading.on_mains, reading.undervoltage, reading.charge) == (False, True, 0.15)
    slow = Decision(frequency_cap_hz=600_000_000)
    assert board.apply(slow) == ("clock cap refused",)
    assert board.apply(slow) == ()
    reading = after(board)
    assert reading.frequency_hz == 1_800_000_000
    assert not reading.steerable
    board.inject(Injection(overrides_cap=True, battery="over-full"))
    assert board.apply(slow) == ("clock cap overridden",)
    reading = after(board)
    assert (reading.frequency_hz, reading.charge, reading.on_mains) == (1_800_000_000, None, True)
    assert health(reading, "charge") is Health.IMPOSSIBLE
    board.inject(Injection(battery="unknown"))
    assert health(after(board), "charge") is Health.MISSING


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_battery_takes_the_board_off_until_the_mains_is_back(name: str) -> None:
    board = SimulatedBoard(name, charge=0.2, on_mains=False)
    lived = board.advance(4 * 3600.0, 1.0)
    assert 60.0 < lived < 4 * 3600.0
    assert (board.alive, board.clock_share, board.truth.watts) == (False, 0.0, 0.0)
    assert board.read(1.0) == Reading(1.0)
    drawn = board.joules
    board.advance(3600.0, 1.0)
    assert board.joules == drawn
    assert board.truth.die_celsius == pytest.approx(25.0, abs=0.5)
    board.on_mains = True
    assert board.advance(60.0, 0.0) == 60.0
    assert board.read(2.0).on_mains


def test_energy_is_the_sum_of_power() -> None:
    board, joules = SimulatedBoard("jetson-orin-nano"), 0.0
    for second in range(300):
        board.advance(1.0, second % 2)
        joules += board.truth.watts
    assert board.joules == pytest.approx(joules, rel=1e-9)


def test_without_an_ambient_sensor_the_coolest_die_stands_for_it() -> None:
    board = SimulatedBoard("raspberry-pi-4", ambient_sensor=False)
    rest = after(board)
    assert rest.ambient_celsius == rest.temperature_celsius
    assert (after(board, 300.0, 1.0).delta_t_celsius or 0.0) > 10.0


def test_an_unknown_board_is_refused() -> None:
    with pytest.raises(ConfigError, match="edge-22w"):
        SimulatedBoard("generic")


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(0, 2**32),
    st.lists(st.tuples(st.floats(0, 30, allow_subnormal=False), st.floats(-1, 2, allow_subnormal=False)), max_size=5),
)
def test_any_load_gives_a_possible_board(name: str, seed: int, loads: list[tuple[float, float]]) -> None:
    board = SimulatedBoard(name, seed=seed, on_mains=False)
    for seconds, utilisation in loads:
        reading = after(board, seconds, utilisation)
        assert 0.0 <= board.truth.charge <= 1.0
        assert 20.0 < board.truth.die_celsius < 125.0
        assert reading.utilisation is None or 0.0 <= reading.utilisation <= 1.0
