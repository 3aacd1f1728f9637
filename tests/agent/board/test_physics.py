from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.board.physics import CONSTANTS, CONVERTER_EFFICIENCY, BoardPhysics, PhysicsState
from agent.board.profile import named_policy_text
from policies.governor import GovernorState, decide
from policies.outlook import Outlook
from policies.policy import parse_policy
from policies.reading import Action, Decision, Reading

PI4 = CONSTANTS["raspberry-pi-4"]
TOP = len(PI4.points) - 1
HOUR = 3600.0


def settled(utilisation: float, index: int, fan: int, heat: float = 0.0) -> PhysicsState:
    return BoardPhysics(PI4).step(HOUR, utilisation, index, fan, heat)


def delta(state: PhysicsState) -> float:
    return state.die_celsius - state.ambient_celsius


def test_a_pi_4_at_rest_and_at_full_load_draws_the_published_power() -> None:
    assert settled(0.0, 0, 0).watts == pytest.approx(2.1, abs=0.1)
    assert settled(1.0, TOP, 0).watts == pytest.approx(6.4, abs=0.15)


def test_full_load_without_fan_ends_far_over_ambient_and_the_resting_fan_keeps_it_below_30() -> None:
    assert 35.0 < delta(settled(1.0, TOP, 0)) < 45.0
    assert 24.0 < delta(settled(1.0, TOP, PI4.resting_fan_level)) < 29.0


def test_temperatures_settle_where_power_and_resistances_say() -> None:
    state = settled(1.0, TOP, 2)
    watts = state.watts - 2 * PI4.fan_watts
    air = PI4.air_kelvin_per_watt / (1 + 2 * PI4.fan_gain)
    assert delta(state) == pytest.approx(watts * (PI4.die_kelvin_per_watt + air), rel=1e-3)


def test_heat_from_outside_warms_but_draws_no_power() -> None:
    warm, plain = settled(0.5, TOP, 1, heat=5.0), settled(0.5, TOP, 1)
    assert delta(warm) > delta(plain) + 10.0
    assert warm.watts - plain.watts < 0.3  # only leakage grows


def fine(name: str, state: PhysicsState, seconds: float, utilisation: float, fan: int, heat: float) -> PhysicsState:
    """The two nodes by explicit Euler in steps of 10 ms: short against the die's time constant of about a second."""
    parts, dt_s = CONSTANTS[name], 0.01
    die, board, point = state.die_celsius, state.board_celsius, CONSTANTS[name].points[-1]
    for _ in range(round(seconds / dt_s)):
        watts = parts.power.watts(point, utilisation, die)
        inner = (die - board) / parts.die_kelvin_per_watt
        outer = (board - state.ambient_celsius) * (1 + parts.fan_gain * fan) / parts.air_kelvin_per_watt
        die += dt_s * (watts - inner) / parts.die_joules_per_kelvin
        board += dt_s * (inner + heat - outer) / parts.board_joules_per_kelvin
    return dataclasses.replace(state, die_celsius=die, board_celsius=board)


@pytest.mark.parametrize("name", sorted(CONSTANTS))
@pytest.mark.parametrize(
    ("step_s", "steps", "utilisation", "fan", "heat"),
    [(0.1, 30, 1.0, 0, 0.0), (1.0, 120, 1.0, 1, 0.0), (2.0, 60, 0.3, 4, 8.0), (240.0, 1, 1.0, 0, 3.0)],
)
def test_large_steps_agree_with_fine_integration(
    name: str, step_s: float, steps: int, utilisation: float, fan: int, heat: float
) -> None:
    begin = PhysicsState(die_celsius=30.0, board_celsius=28.0)
    physics = BoardPhysics(CONSTANTS[name], begin)
    for _ in range(steps):
        physics.step(step_s, utilisation, len(CONSTANTS[name].points) - 1, fan, heat)
    true = fine(name, begin, step_s * steps, utilisation, fan, heat)
    assert physics.state.die_celsius == pytest.approx(true.die_celsius, abs=0.02)
    assert physics.state.board_celsius == pytest.approx(true.board_celsius, abs=0.02)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(CONSTANTS)),
    st.floats(0, 1, allow_subnormal=False),
    st.floats(0, 1, allow_subnormal=False),
    st.integers(0, TOP),
    st.integers(0, 4),
    st.floats(0, 20, allow_subnormal=False),
)
def test_more_load_is_hotter_and_more_fan_cooler(
    name: str, one: float, other: float, index: int, fan: int, heat: float
) -> None:
    low, high = sorted((one, other))
    slack, parts = 1e-6, CONSTANTS[name]
    hot, cool = (BoardPhysics(parts).step(300.0, load, index, fan, heat) for load in (high, low))
    assert hot.die_celsius >= cool.die_celsius - slack
    aired = BoardPhysics(parts).step(300.0, high, index, 4, heat)
    assert aired.die_celsius <= hot.die_celsius + slack


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(CONSTANTS)),
    st.floats(0.05, 1, allow_subnormal=False),
    st.floats(0, 1, allow_subnormal=False),
    st.integers(0, TOP),
    st.integers(0, 4),
)
def test_what_flows_out_of_the_cells_is_what_the_board_draws(
    name: str, charge: float, load: float, index: int, fan: int
) -> None:
    physics = BoardPhysics(CONSTANTS[name], PhysicsState(charge=charge))
    now = physics.step(1.0, load, index, fan, on_mains=False)
    if now.alive:
        out = physics.cell_volts() * physics.cell_amperes() * CONVERTER_EFFICIENCY
        assert out == pytest.approx(now.watts, rel=1e-6)
        assert 2.9 < physics.cell_volts() / CONSTANTS[name].cells < 4.2
    assert now.charge <= charge


def test_3000_mah_last_as_long_as_energy_says_and_then_the_board_is_off() -> None:
    physics = BoardPhysics(PI4, PhysicsState(charge=1.0))
    hours = 0.0
    while physics.state.alive and hours < 24:
        physics.step(36.0, 0.0, 0, 0, on_mains=False)
        hours += 0.01
    assert 4.5 < hours < 5.5  # 11.1 Wh x 0.9 at 2.1 W is 4.8 h
    assert (physics.state.watts, physics.cell_amperes()) == (0.0, 0.0)
    assert physics.state.charge < 0.05
    assert physics.step(1.0, 0.0, 0, 0, on_mains=True).alive


def test_the_part_of_r6_draws_22_and_12_watts_at_clocks_1_to_1_18() -> None:
    parts = CONSTANTS["edge-22w"]
    fast, slow = len(parts.points) - 1, len(parts.points) - 3
    full, less = (BoardPhysics(parts).step(HOUR, 1.0, index, 1).watts for index in (fast, slow))
    longer = parts.points[fast].frequency_hz / parts.points[slow].frequency_hz
    assert full == pytest.approx(22.0, abs=0.2)
    assert less == pytest.approx(12.0, abs=0.2)
    assert longer == 1.18
    assert less * longer / full == pytest.approx(0.65, abs=0.01)  # energy of an inference


def test_mains_charges_and_the_voltage_sags_under_load() -> None:
    physics = BoardPhysics(PI4, PhysicsState(charge=0.5))
    physics.step(60.0, 1.0, TOP, 1, on_mains=False)
    loaded, discharging = physics.cell_volts(), physics.cell_amperes()
    physics.step(60.0, 1.0, TOP, 1, on_mains=True)
    assert discharging > 0.0 > physics.cell_amperes()
    assert physics.cell_volts() > loaded
    assert physics.state.charge > 0.49


def test_firmware_takes_the_clock_down_between_80_and_85() -> None:
    physics = BoardPhysics(PI4)
    seen = []
    for celsius in (79.9, 82.5, 86.0):
        physics.state = dataclasses.replace(physics.state, die_celsius=celsius)
        seen.append(physics.firmware_index())
    assert seen == [TOP, 6, 0]


def test_governed_board_crosses_30_k_in_a_heat_pulse_and_comes_back() -> None:
    """The closed loop without processes: normal training, 20 s of heat from outside, normal training again."""
    policy = parse_policy(named_policy_text("emulated"))
    physics, state, decision = BoardPhysics(PI4), GovernorState(), Decision()
    rules: dict[str, list[str]] = {"before": [], "pulse": [], "after": []}
    highest = dict.fromkeys(rules, 0.0)
    for second in range(160):
        part = "before" if second < 60 else "pulse" if second < 80 else "after"
        cap = decision.frequency_cap_hz
        index = max(i for i, p in enumerate(PI4.points) if cap is None or p.frequency_hz <= cap)
        heat = 8.0 if part == "pulse" else 0.0
        now = physics.step(8.0, decision.duty, index, max(1, decision.cooling_level), heat)
        reading = Reading(
            mono_s=float(second),
            temperature_celsius=now.die_celsius,
            ambient_celsius=now.ambient_celsius,
            operating_points=PI4.points,
            charge=now.charge,
            on_mains=True,
            cooling_max=PI4.fan_levels,
        )
        state, decision = decide(policy, state, reading, Outlook(50))
        assert decision.action < Action.PAUSE
        rules[part].append(decision.rule)
        highest[part] = max(highest[part], delta(now))
    assert set(rules["before"]) == {"run"}
    assert highest["before"] < 30.0
    assert "thermal.delta-t-slow" in rules["pulse"]
    assert 30.0 < highest["pulse"] < 35.0
    assert rules["after"][-60:] == ["run"] * 60
