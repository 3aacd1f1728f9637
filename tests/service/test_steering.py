from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
import structlog

from agent.energy import Energy, Spent
from policies.outlook import Outlook
from policies.policy import Policy, parse_policy
from policies.reading import Action, Decision, Health, OperatingPoint, Reading
from service.steering import RESTORE_EVERY_S, Steering

CALM = Reading(
    0.0, temperature_celsius=45.0, ambient_celsius=30.0, power_watts=4.0, power_is_modelled=False, power_source="hwmon",
    frequency_hz=2_000, operating_points=(OperatingPoint(1_000, 0.7), OperatingPoint(2_000, 0.9)),
)  # fmt: skip
HOT = replace(CALM, temperature_celsius=66.0)


@dataclass
class Shown:
    """A board that shows what it is told to, and takes every limit."""

    reading: Reading = CALM
    applied: list[Decision] = field(default_factory=list)
    restored: int = 0

    def read(self, mono_s: float) -> Reading:
        return replace(self.reading, mono_s=mono_s)

    def apply(self, decision: Decision) -> tuple[str, ...]:
        self.applied.append(decision)
        return ()

    def restore(self) -> tuple[str, ...]:
        self.restored += 1
        return ()


def ticks(steering: Steering, first: int, last: int, phase: str = "training") -> None:
    for second in range(first, last + 1):
        steering.tick(float(second), working=bool(phase), phase=phase, outlook=Outlook())


@pytest.fixture
def logged() -> Iterator[list[dict[str, object]]]:
    with structlog.testing.capture_logs() as found:
        yield found  # type: ignore[misc]


def test_energy_is_told_by_state_and_source_and_training_alone_is_the_samples() -> None:
    board = Shown()
    steering = Steering(board, Policy())
    steering.start_energy(Energy())
    ticks(steering, 0, 9, "other")
    ticks(steering, 10, 19, "training")
    board.reading = replace(CALM, power_watts=2.0, power_source="model", power_is_modelled=True)
    ticks(steering, 20, 30, "paused")
    told = steering.energy_metrics(100)
    assert told["states"] == {
        "other": {"joules": 40.0, "seconds": 10.0},
        "training": {"joules": 39.0, "seconds": 10.0},
        "paused": {"joules": 20.0, "seconds": 10.0},
    }
    assert told["sources"] == {"hwmon": 76.0, "model": 23.0}
    assert (told["joules"], told["joules_per_sample"], told["source"], told["modelled"]) == (59.0, 0.59, "hwmon", True)
    assert steering.joules == 59.0


def test_training_that_falls_between_two_readings_counts_for_what_it_took() -> None:
    steering = Steering(Shown(), Policy())
    steering.start_energy(Energy())
    ticks(steering, 0, 1, "other")
    steering.enter(1.25, "training")
    steering.enter(1.75, "other")
    ticks(steering, 2, 2, "other")
    assert steering.energy.states == {"other": Spent(6.0, 1.5), "training": Spent(2.0, 0.5)}


def test_a_power_that_nobody_read_for_long_is_not_believed_between_readings() -> None:
    steering = Steering(Shown(), Policy())
    steering.start_energy(Energy())
    ticks(steering, 0, 0)
    for tenth in range(1, 100):
        steering.enter(tenth / 10, "training")
    assert steering.energy.spent().seconds == pytest.approx(5.0, abs=0.1)
    assert steering.energy.gap_s == pytest.approx(4.9, abs=0.1)


def test_what_earlier_attempts_spent_counts_and_their_time_is_none_of_the_governors() -> None:
    steering = Steering(Shown(), Policy(), iter(range(1000)).__next__)
    steering.start_energy(Energy({"training": Spent(100.0, 25.0)}, {"hwmon": 100.0}))
    ticks(steering, 0, 10)
    assert steering.joules == 140.0
    assert steering.governor_told() == {"ticks": 11, "seconds": 11, "share": 1.1}


def test_the_governors_own_time_is_told_as_a_share_of_training() -> None:
    now = [0.0]

    class Slow(Shown):
        def read(self, mono_s: float) -> Reading:
            now[0] += 0.002
            return super().read(mono_s)

        def apply(self, decision: Decision) -> tuple[str, ...]:
            now[0] += 0.001
            return super().apply(decision)

    steering = Steering(Slow(), Policy(), lambda: now[0])
    steering.start_energy(Energy())
    ticks(steering, 0, 4, "other")
    ticks(steering, 5, 15, "training")
    ticks(steering, 16, 16, "paused")
    told = steering.governor_told()
    assert told["ticks"] == 11
    assert told["seconds"] == pytest.approx(0.033)
    assert told["share"] == pytest.approx(0.003)


def test_without_a_stopwatch_nothing_is_claimed_of_the_governors_cost() -> None:
    steering = Steering(Shown(), Policy())
    ticks(steering, 0, 5)
    assert steering.governor_told() == {"ticks": 0, "seconds": None, "share": None}


def test_a_sensor_that_turns_ill_or_well_is_told_once(logged: list[dict[str, object]]) -> None:
    board = Shown()
    steering = Steering(board, Policy())
    for health in (Health.OK, Health.MISSING, Health.MISSING, Health.IMPOSSIBLE, Health.OK, Health.OK):
        board.reading = replace(CALM, health=(("temperature", health), ("power", Health.OK)))
        ticks(steering, 1, 1)
    told = [(line["event"], line["sensor"], line.get("health")) for line in logged if "sensor" in line]
    assert told == [
        ("sensor not believed", "temperature", "missing"),
        ("sensor not believed", "temperature", "impossible"),
        ("sensor is back", "temperature", None),
    ]


def test_a_lever_tells_for_itself(logged: list[dict[str, object]]) -> None:
    board = Shown(replace(CALM, health=(("frequency-cap", Health.REFUSED),)))
    ticks(Steering(board, Policy()), 1, 3)
    assert [line for line in logged if "sensor" in line] == []


def test_telemetry_has_health_source_load_and_the_cap_that_was_found() -> None:
    board = Shown(
        replace(
            CALM,
            utilisation=0.5,
            pressure=(("cpu", 0.2), ("io", 0.0)),
            frequency_cap_hz=1_000,
            health=(("temperature", Health.OK), ("power", Health.FROZEN)),
        )
    )
    steering = Steering(board, Policy())
    ticks(steering, 1, 1)
    told = steering.board_metrics()
    assert told["health"] == {"temperature": "ok", "power": "frozen"}
    assert (told["power_source"], told["utilisation"], told["frequency_cap_found_hz"]) == ("hwmon", 0.5, 1_000)
    assert told["pressure"] == {"cpu": 0.2, "io": 0.0}
    assert json.loads(json.dumps(told)) == told


def test_the_clock_that_training_has_is_the_cap_where_one_is_set() -> None:
    board = Shown(HOT)
    steering = Steering(board, Policy())
    assert steering.cap_share == 1.0, "nothing was read yet"
    ticks(steering, 1, 1, "")
    assert steering.cap_share == 1.0, "as it runs: no limit is written without a job"
    ticks(steering, 2, 2)
    assert board.applied[-1].frequency_cap_hz == 1_000
    assert steering.cap_share == 0.5


def test_limits_are_put_back_once_when_the_job_is_over() -> None:
    board = Shown(HOT)
    steering = Steering(board, Policy())
    ticks(steering, 1, 3)
    ticks(steering, 4, 6, "")
    assert (len(board.applied), board.restored) == (3, 1)


def test_a_lever_that_would_not_go_back_is_asked_again_while_no_job_works() -> None:
    board = Shown()
    steering = Steering(board, Policy())
    ticks(steering, 0, 9)
    ticks(steering, 10, 10, "")
    assert board.restored == 1
    ticks(steering, 11, 10 + int(2 * RESTORE_EVERY_S), "")
    assert board.restored == 3


def test_another_policy_keeps_the_levels_that_were_reached() -> None:
    thermal = Policy().thermal
    between = thermal.slow.delta_kelvin - thermal.hysteresis_kelvin / 2
    board = Shown(HOT)
    steering = Steering(board, Policy())
    ticks(steering, 0, 5)
    board.reading = replace(CALM, temperature_celsius=30.0 + between)
    steering.set_policy(replace(Policy(), name="another"))
    ticks(steering, 6, 8)
    assert steering.decision.rule == "thermal.delta-t-slow"
    fresh = Steering(board, Policy())
    ticks(fresh, 0, 8)
    assert fresh.decision.rule == "run", "only what was remembered makes it slow"


def test_a_stricter_policy_binds_with_the_next_reading() -> None:
    steering = Steering(Shown(), Policy())
    ticks(steering, 0, 5)
    assert steering.decision.action is Action.RUN
    steering.set_policy(parse_policy("[thermal.slow]\ndelta_kelvin = 10\n"))
    ticks(steering, 6, 6)
    assert (steering.decision.action, steering.decision.rule) == (Action.SLOW, "thermal.delta-t-slow")
