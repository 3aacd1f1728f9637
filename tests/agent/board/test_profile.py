from __future__ import annotations

import pytest

from agent.board.physics import CONSTANTS
from agent.board.profile import GENERIC, PROFILES, named_policy_text, named_profile, pick_profile, policy_names
from agent.errors import ConfigError
from policies.policy import parse_policy


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Raspberry Pi 4 Model B Rev 1.4\0", "raspberry-pi-4"),
        ("Raspberry Pi Compute Module 4 Rev 1.0", "raspberry-pi-4"),
        ("Raspberry Pi 5 Model B Rev 1.0\0", "raspberry-pi-5"),
        ("NVIDIA Jetson Orin Nano Developer Kit", "jetson-orin-nano"),
        ("Edge 22 W reference part", "edge-22w"),
        ("Raspberry Pi 3 Model B", "generic"),
        ("", "generic"),
    ],
)
def test_profile_by_device_tree(model: str, name: str) -> None:
    profile = pick_profile(model)
    assert (profile.name, profile.emulated) == (name, False)


def test_emulated_board_is_marked_and_has_its_own_policy() -> None:
    profile = pick_profile("Emulated Raspberry Pi 4\0")
    assert (profile.name, profile.emulated, profile.policy_name) == ("raspberry-pi-4", True, "emulated")


def test_unknown_board_is_generic_with_the_default_policy() -> None:
    assert pick_profile("Some Board") is GENERIC
    assert GENERIC.policy_name == "default"


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_every_profile_names_a_policy_that_parses_and_a_rising_table(profile) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001 - a parameter of the table above
    assert parse_policy(named_policy_text(profile.policy_name)).name == profile.policy_name
    assert list(profile.points) == sorted(profile.points)
    assert [p.volts for p in profile.points] == sorted(p.volts for p in profile.points)


def test_every_emulated_board_is_a_profile() -> None:
    assert set(CONSTANTS) <= set(PROFILES)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="raspberry-pi-4"):
        named_profile("raspberry-pi-3")
    for name in ("x", "../policies/default"):
        with pytest.raises(ConfigError, match="jetson-orin-nano"):
            named_policy_text(name)
    assert "default" in policy_names()
