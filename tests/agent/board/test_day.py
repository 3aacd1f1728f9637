from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from agent.board.day import DAY_S, SLOWER, DayPlan, lines_of, main, measured_costs, simulate_day
from agent.board.physics import CONSTANTS
from agent.board.profile import named_policy_text, named_profile
from policies.policy import Policy, parse_policy

NAMES = sorted(CONSTANTS)
HOUR = 3600


def policy_of(name: str) -> Policy:
    return parse_policy(named_policy_text(named_profile(name).policy_name))


def busy(name: str, **changes: Any) -> DayPlan:
    """An hour that begins hot, with more jobs than the board can do, the second half on battery."""
    plan = DayPlan(name, 40.0, 0.0, off_mains=(HOUR // 2, HOUR), jobs_a_day=400.0, seconds=HOUR)
    return dataclasses.replace(plan, **changes)


def test_weather_and_jobs_are_the_same_for_the_same_seed() -> None:
    plan = DayPlan("raspberry-pi-4")
    air = [plan.air_celsius(hour * HOUR) for hour in range(24)]
    assert air.index(max(air)) == 15
    assert air.index(min(air)) == 3
    assert sum(air) / 24 == pytest.approx(25.0)
    assert plan.jobs() == DayPlan("raspberry-pi-4").jobs()
    assert plan.jobs() != DayPlan("raspberry-pi-4", seed=1).jobs()
    assert all(0 <= job.arrives_s < DAY_S and job.samples >= 1 for job in plan.jobs())


def test_deeper_is_cheaper_on_every_board() -> None:
    assert set(SLOWER) == set(CONSTANTS)
    for name in NAMES:
        costs = [cost.sample_s for cost in measured_costs(name)]
        assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("name", NAMES)
def test_hot_and_busy_hours_stay_within_the_bounds_and_leave_more_charge_than_the_kernel(name: str) -> None:
    plan = busy(name)
    ours, kernel = (simulate_day(plan, policy) for policy in (policy_of(name), None))
    assert ours.highest_delta_kelvin < 35.0
    assert ours.seconds_over_30_kelvin < 0.02 * plan.seconds
    assert ours.seconds_over_80_celsius == 0
    assert ours.seconds_working + ours.seconds_off <= plan.seconds
    assert sum(ours.seconds_by_action.values()) == ours.seconds_working
    assert ours.samples > 0
    assert ours.jobs_done <= ours.jobs
    assert (kernel.steered_by, set(kernel.seconds_by_action)) == ("kernel", {"run"})
    assert ours.lowest_charge > kernel.lowest_charge


def test_a_day_without_jobs_trains_nothing_and_draws_the_resting_power() -> None:
    report = simulate_day(busy("raspberry-pi-4", jobs_a_day=1e-9), policy_of("raspberry-pi-4"))
    assert (report.jobs, report.samples, report.seconds_working) == (0, 0, 0)
    assert report.joules / HOUR == pytest.approx(2.2, abs=0.2)
    assert "0 of 0 done" in "\n".join(lines_of(report))


def test_every_second_of_a_lost_battery_is_counted() -> None:
    plan = busy("raspberry-pi-5", off_mains=(0, 2 * HOUR), seconds=2 * HOUR)
    report = simulate_day(plan, None)
    assert 0 < report.seconds_off < plan.seconds
    assert report.seconds_working <= plan.seconds - report.seconds_off


def test_the_program_says_it_in_words_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--profile", "edge-22w", "--ambient", "10", "--hours", "0.1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["profile"], said["steered_by"]) == ("edge-22w", "default")
    assert 0 < said["highest_celsius"] < 30
    assert main(["--steered-by", "kernel", "--hours", "0.1"]) == 0
    assert "modelled" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong", [["--ambient", "80"], ["--ambient", "nan"], ["--policy", "x"], ["--hours", "25"], ["--profile", "generic"]]
)
def test_bad_words_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
    assert "error" in capsys.readouterr().err
