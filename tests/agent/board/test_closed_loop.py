"""Governor and board in a closed loop: the production policies on simulated boards that break (faults 46 to 49)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.board.injection import BATTERY_FAULTS, TEMPERATURE_FAULTS, Injection
from agent.board.physics import CONSTANTS
from agent.board.profile import named_policy_text, named_profile
from agent.board.simulated import SimulatedBoard
from policies.governor import GovernorState, decide
from policies.outlook import Outlook
from policies.policy import parse_policy
from policies.reading import Action, Decision, Reading

NAMES = sorted(CONSTANTS)


class Loop:
    """A board that trains as its governor allows, with a fan that rests unless asked: without a governor too hot."""

    def __init__(self, name: str, **start: Any) -> None:
        self.board = SimulatedBoard(name, start_fan=0, **start)
        self._policy = parse_policy(named_policy_text(named_profile(name).policy_name))
        self._state = GovernorState()
        self.said: list[str] = []
        self.highest_delta = 0.0

    def run(self, seconds: int) -> list[tuple[Reading, Decision]]:
        seen = []
        for _ in range(seconds):
            reading = self.board.read(self.board.elapsed_s)
            self._state, decision = decide(self._policy, self._state, reading, Outlook())
            self.said.extend(self.board.apply(decision))
            self.board.advance(1.0, decision.duty if decision.action < Action.PAUSE else 0.0)
            truth = self.board.truth
            self.highest_delta = max(self.highest_delta, truth.die_celsius - truth.ambient_celsius)
            seen.append((reading, decision))
        return seen

    def broken(self, seconds: int, **asked: Any) -> list[tuple[Reading, Decision]]:
        self.board.inject(Injection(**asked))
        return self.run(seconds)

    def healthy(self, seconds: int) -> list[tuple[Reading, Decision]]:
        return self.broken(seconds)


@pytest.mark.parametrize("name", NAMES)
def test_steered_boards_stay_below_the_pause_mark_where_unsteered_ones_would_not(name: str) -> None:
    loop, left = Loop(name, ambient_celsius=35.0), SimulatedBoard(name, ambient_celsius=35.0, start_fan=0)
    loop.run(1800)
    left.advance(1800.0, 1.0)
    assert loop.highest_delta < 35.0 < left.truth.die_celsius - 35.0


@pytest.mark.parametrize("fault", [fault for fault in TEMPERATURE_FAULTS if fault not in ("", "frozen", "jump")])
def test_46_a_lost_temperature_slows_at_once_and_pauses_soon(fault: str) -> None:
    loop = Loop("raspberry-pi-4")
    loop.run(300)
    seen = loop.broken(30, temperature=fault)
    lowest = loop.board.constants.points[0].frequency_hz
    assert {decision.frequency_cap_hz for _, decision in seen} == {lowest}
    assert {reading.temperature_celsius for reading, _ in seen} == {None}
    assert [decision.action for _, decision in seen[:4]] == [Action.SLOW] * 4
    assert {decision.action for _, decision in seen[5:]} == {Action.PAUSE}
    after = loop.healthy(120)
    assert after[-1][1].action < Action.PAUSE


def test_46_a_jump_is_disbelieved_and_a_frozen_sensor_found_out() -> None:
    loop = Loop("raspberry-pi-4")
    loop.run(300)
    jumped = loop.broken(1, temperature="jump")
    assert jumped[0][0].temperature_celsius is None
    loop.healthy(60)
    frozen = loop.broken(200, temperature="frozen")
    assert frozen[-1][1].rule == "thermal.sensor-missing-pause"
    assert loop.highest_delta < 38.5  # what it reaches by itself, at the most


def test_48_a_charge_that_cannot_be_believed_slows_off_mains_only() -> None:
    for fault in ("unknown", "over-full"):
        loop = Loop("raspberry-pi-4")
        loop.run(60)
        assert "battery.unknown" not in {decision.rule for _, decision in loop.broken(60, battery=fault)}
        assert loop.broken(60, battery=fault, unplug=True)[-1][1].rule == "battery.unknown"


def test_48_undervoltage_slows_whatever_the_charge() -> None:
    loop = Loop("raspberry-pi-4", charge=1.0)
    loop.run(60)
    _, decision = loop.broken(10, undervoltage=True)[-1]
    assert decision.rule == "supply.undervoltage"
    assert decision.duty < 1.0


@pytest.mark.parametrize("fault", ["refuses_cap", "overrides_cap"])
def test_49_without_the_clock_lever_duty_and_fan_still_keep_the_bound(fault: str) -> None:
    loop = Loop("raspberry-pi-4", ambient_celsius=35.0)
    loop.broken(1800, **{fault: True})
    assert len(loop.said) == 1
    assert loop.highest_delta < 35.0


def test_a_battery_is_never_trained_empty() -> None:
    seen = Loop("raspberry-pi-4", charge=0.15, on_mains=False).run(1500)
    paused = [decision.action >= Action.PAUSE for _, decision in seen]
    first = paused.index(True)
    assert seen[first][0].charge == pytest.approx(0.095, abs=0.006)
    assert all(paused[first:])


FAULTS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from(TEMPERATURE_FAULTS),
        "battery": st.sampled_from(BATTERY_FAULTS),
        "unplug": st.booleans(),
        "undervoltage": st.booleans(),
        "overrides_cap": st.booleans(),
        "refuses_cap": st.booleans(),
    },
)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.floats(0.0, 45.0, allow_subnormal=False),
    st.integers(0, 99),
    st.lists(st.tuples(FAULTS, st.integers(1, 90)), min_size=1, max_size=4),
)
def test_any_run_of_faults_is_survived_and_over_when_they_are(
    name: str, ambient: float, seed: int, faults: list[tuple[dict[str, Any], int]]
) -> None:
    loop = Loop(name, ambient_celsius=ambient, seed=seed)
    loop.run(30)
    for asked, seconds in faults:
        for reading, decision in loop.broken(seconds, **asked):
            if reading.temperature_celsius is None:
                assert decision.action >= Action.SLOW
                assert decision.frequency_cap_hz == loop.board.constants.points[0].frequency_hz
    after = loop.healthy(90)
    assert not any("sensor-missing" in decision.rule for _, decision in after[5:])
    assert after[-1][1].action < Action.PAUSE
    assert loop.highest_delta < 38.5
