from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.board.profile import PROFILES, named_policy_text
from policies.fits_board import clocks, complaints, unlisted
from policies.policy import Policy, parse_policy
from policies.reading import OperatingPoint


def table(*mhz: int) -> tuple[OperatingPoint, ...]:
    return tuple(OperatingPoint(value * 1_000_000, 0.8) for value in mhz)


PI4, PI5 = table(*range(600, 1801, 100)), table(*range(1500, 2401, 100))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_every_shipped_policy_fits_its_board(profile: object) -> None:
    points, name = getattr(profile, "points", ()), getattr(profile, "policy_name", "")
    assert complaints(parse_policy(named_policy_text(name)), points) == ()


def test_a_ratio_below_the_slowest_point_is_said_with_what_serves() -> None:
    (told,) = complaints(Policy(), PI5)
    assert told.startswith("thermal.hot.frequency_ratio 0.6 asks for at most 1440 MHz: ")
    assert told.endswith(": the slowest operating point, 1500 MHz, serves instead")


def test_two_stages_that_come_to_one_clock_are_said() -> None:
    policy = parse_policy("[thermal.slow]\nfrequency_ratio = 0.6\n[thermal.hot]\nfrequency_ratio = 0.58")
    (told,) = complaints(policy, table(600, 900, 1800))
    assert "no slower here than thermal.slow.frequency_ratio 0.6: both come to 900 MHz" in told


def test_quiet_hours_count_only_where_there_are_some() -> None:
    quiet = parse_policy('[schedule]\nquiet = "22:00-07:00"\nquiet_frequency_ratio = 0.1')
    key = "schedule.quiet_frequency_ratio"
    assert key in {clock.key for clock in clocks(quiet, PI4)}
    assert key not in {clock.key for clock in clocks(Policy(), PI4)}
    assert complaints(quiet, PI4)[0].startswith(f"{key} 0.1 asks for at most 180 MHz")


def test_clocks_say_what_every_ratio_comes_to() -> None:
    assert "thermal.slow.frequency_ratio 0.8: 1400 of 1800 MHz" in {str(clock) for clock in clocks(Policy(), PI4)}
    assert {clock.key for clock in clocks(Policy(), PI4)} == {
        "thermal.slow.frequency_ratio",
        "thermal.hot.frequency_ratio",
        "battery.low_frequency_ratio",
        "battery.undervoltage_frequency_ratio",
        "battery.lost_frequency_ratio",
        "dvfs.frozen_frequency_ratio",
    }


def test_a_board_without_a_clock_table_has_nothing_to_fit() -> None:
    assert clocks(Policy(), ()) == ()
    assert complaints(Policy(), ()) == ()


@pytest.mark.parametrize(
    ("profile", "kernel", "says"),
    [
        (PI4, PI4, ""),
        (PI4, (), ""),
        ((), PI4, ""),
        (table(729, 1510), table(729, 883, 1510), ""),
        (table(729, 1510), (OperatingPoint(729_600_000, 0.8), OperatingPoint(1_510_400_000, 0.8)), ""),
        (PI4, table(600, 1500), "700, 800, 900, 1000, 1100 and 6 more MHz"),
        (table(600, 1800), table(600, 1500), "does not list 1800 MHz"),
    ],
)
def test_points_that_the_kernel_does_not_list(
    profile: tuple[OperatingPoint, ...], kernel: tuple[OperatingPoint, ...], says: str
) -> None:
    told = unlisted(profile, kernel)
    assert bool(told) is bool(says)
    assert says in told


@given(st.lists(st.integers(1, 6000), min_size=1, max_size=20), st.floats(0.05, 1.0, allow_subnormal=False))
def test_a_clock_that_is_reached_is_at_or_below_its_ratio_and_all_others_are_said(mhz: list[int], ratio: float) -> None:
    policy = dataclasses.replace(Policy(), dvfs=dataclasses.replace(Policy().dvfs, frozen_frequency_ratio=ratio))
    points = table(*mhz)
    told = " ".join(complaints(policy, points))
    for clock in clocks(policy, points):
        assert clock.frequency_hz in {point.frequency_hz for point in points}
        assert clock.reached or f"{clock.key} {clock.ratio:g} asks" in told
        assert clock.reached is (clock.frequency_hz <= (clock.ratio + 0.01) * clock.top_hz)


def test_every_profile_has_a_policy_that_ships() -> None:
    shipped = {path.stem for path in (Path(__file__).parents[2] / "policies").glob("*.toml")}
    assert {profile.policy_name for profile in PROFILES.values()} <= shipped
