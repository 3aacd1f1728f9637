"""Numbers of devices change, and the kernel asks for more: what is put back goes to the device it was found in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.board.lever_files import cooling_file, device_mark
from agent.board.levers import Levers
from tests.simulators.powerd_board import CAP, FAN, FOUND, LeverTree, SteppedHelper

OTHER = cooling_file(1)
CPUS = CAP.replace("scaling_max_freq", "related_cpus")


@pytest.fixture
def tree(tmp_path: Path) -> LeverTree:
    made = LeverTree(tmp_path / "t")
    made.put(_type_of(FAN), "pwm-fan")
    made.put(_type_of(OTHER), "cpufreq-cpu0")
    made.put(CPUS, "0 1 2 3")
    return made


def _type_of(key: str) -> str:
    return key.replace("cur_state", "type")


def renumbered(tree: LeverTree) -> dict[str, str]:
    """The drivers were loaded anew, the other way round; what the devices say now."""
    for key, kind, level in ((FAN, "cpufreq-cpu0", "0"), (OTHER, "pwm-fan", "3")):
        tree.put(_type_of(key), kind)
        tree.put(key, level)
    return tree.values()


def daemon(tree: LeverTree) -> Levers:
    return Levers(tree.sys, tree.run / "daemon.json", "boot-1")


@pytest.mark.parametrize("killed", [True, False])
def test_the_daemon_puts_nothing_into_another_device(tree: LeverTree, killed: bool) -> None:
    levers = daemon(tree)
    levers.hold_up(tree.sys / FAN, 3)
    assert tree.get(FAN) == "3"
    now = renumbered(tree)
    (daemon(tree) if killed else levers).restore()
    assert tree.values() == now
    assert not (tree.run / "daemon.json").exists()


@pytest.mark.parametrize("killed", [True, False])
def test_the_helper_puts_nothing_into_another_device(tree: LeverTree, killed: bool) -> None:
    helper = SteppedHelper(tree)
    assert helper.client().ask("set-cooling", device=0, level=3)["ok"]
    now = renumbered(tree)
    if killed:
        helper.crash()
        helper = SteppedHelper(tree)
    helper.close()
    assert tree.values() == now
    assert not (tree.run / "undo.json").exists()


def test_a_device_that_took_a_held_number_begins_anew(tree: LeverTree) -> None:
    levers, helper = daemon(tree), SteppedHelper(tree)
    client = helper.client()
    client.ask("set-cooling", device=1, level=2)
    levers.hold_up(tree.sys / FAN, 3)
    renumbered(tree)
    levers.hold_up(tree.sys / OTHER, 2)
    levers.hold_up(tree.sys / FAN, 1)
    assert tree.get(FAN) == "1"
    assert client.ask("set-cooling", device=1, level=2)["error"] == "range"  # found at 3 now, not at 0
    levers.restore()
    helper.close()
    assert (tree.get(FAN), tree.get(OTHER)) == ("0", "3")


def test_another_group_of_cores_keeps_its_own_cap(tree: LeverTree) -> None:
    levers, helper = daemon(tree), SteppedHelper(tree)
    levers.hold_down(tree.sys / CAP, 1_000_000)
    assert helper.client().ask("set-cap", policy=0, khz=600_000)["ok"]
    tree.put(CPUS, "2 3")
    tree.put(CAP, "1300000")
    levers.restore()
    helper.close()
    assert tree.get(CAP) == "1300000"


def test_devices_that_do_not_say_what_they_are_are_put_back_by_number(tree: LeverTree) -> None:
    levers = daemon(tree)
    (tree.sys / _type_of(FAN)).unlink()
    levers.hold_up(tree.sys / FAN, 3)
    tree.put(_type_of(FAN), "pwm-fan")
    levers.restore()
    assert tree.values() == FOUND
    assert device_mark(tree.sys, cooling_file(77)) == ""


def test_a_fan_that_the_kernel_turned_up_stays_up_when_the_helper_was_killed(tree: LeverTree) -> None:
    helper = SteppedHelper(tree)
    client = helper.client()
    for level in (3, 2):
        assert client.ask("set-cooling", device=0, level=level)["ok"]
    assert client.ask("set-cap", policy=0, khz=1_000_000)["ok"]
    tree.put(FAN, "4")
    helper.crash()
    SteppedHelper(tree).close()
    assert tree.values() == FOUND | {FAN: "4"}


def test_a_fan_that_the_kernel_turned_up_stays_up_when_the_daemon_was_killed(tree: LeverTree) -> None:
    levers = daemon(tree)
    levers.hold_up(tree.sys / FAN, 2)
    levers.hold_down(tree.sys / CAP, 1_000_000)
    tree.put(FAN, "4")
    daemon(tree).restore()
    assert tree.values() == FOUND | {FAN: "4"}


def test_what_was_asked_for_goes_although_it_was_lowered_since(tree: LeverTree) -> None:
    """Killed between the note of a lower level and its write: the higher one is ours all the same."""
    levers, helper = daemon(tree), SteppedHelper(tree)
    for level in (4, 2):
        levers.hold_up(tree.sys / FAN, level)
    tree.put(FAN, "4")
    daemon(tree).restore()
    assert tree.get(FAN) == "1"
    client = helper.client()
    for level in (4, 2):
        assert client.ask("set-cooling", device=0, level=level)["ok"]
    tree.put(FAN, "4")
    helper.crash()
    SteppedHelper(tree).close()
    assert tree.values() == FOUND


def test_a_stricter_limit_that_cannot_be_noted_is_not_set(tree: LeverTree) -> None:
    levers, away = daemon(tree), tree.folder / "away"
    levers.hold_up(tree.sys / FAN, 2)
    noted = (tree.run / "daemon.json").read_bytes()
    tree.run.rename(away)
    levers.hold_up(tree.sys / FAN, 4)
    assert tree.get(FAN) == "2"
    assert ["cannot be remembered" in text for text in levers.complaints()] == [True]
    away.rename(tree.run)
    assert (tree.run / "daemon.json").read_bytes() == noted
    levers.hold_up(tree.sys / FAN, 4)
    assert tree.get(FAN) == "4"
    assert json.loads((tree.run / "daemon.json").read_bytes())["strictest"][FAN] == 4
    levers.restore()
    assert tree.values() == FOUND


@pytest.mark.parametrize("marks", ["3", '{"a":1}', '{"KEY":7}'])
@pytest.mark.parametrize("most", ["3", '{"KEY":"x"}', '{"KEY":-1}', '{"KEY":true}', '{"KEY":2.5}'])
def test_a_damaged_note_beside_a_found_value_does_not_keep_it_from_being_put_back(
    tree: LeverTree, marks: str, most: str
) -> None:
    tree.put(FAN, "3")
    body = f'{{"boot":"boot-1","found":{{"{FAN}":1}},"marks":{marks},"strictest":{most}}}'.replace("KEY", FAN)
    (tree.run / "undo.json").write_text(body)
    SteppedHelper(tree).close()
    assert tree.values() == FOUND
