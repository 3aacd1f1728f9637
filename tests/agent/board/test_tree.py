from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from agent.board.files import BoardRoots
from agent.board.injection import Injection
from agent.board.physics import CONSTANTS
from agent.board.profile import pick_profile
from agent.board.sysfs import SysfsBoard, read_model
from agent.board.tree import READ_ONLY, BoardTree, Shown
from policies.reading import Decision, Health, Reading

NAMES = sorted(CONSTANTS)
PLAIN = Shown(
    die_celsius=50.0,
    ambient_celsius=22.0,
    frequency_hz=1_500_000_000,
    watts=6.0,
    charge=0.8,
    cell_volts=4.0,
    cell_amperes=0.0,
    on_mains=True,
    firmware_throttles=False,
    cooling_state=0,
    busy_s=0.0,
    passed_s=0.0,
    injection=Injection(),
)


class Board:
    """A tree, and what the daemon's own reader makes of it, a second a look."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.tree = BoardTree(folder, name, CONSTANTS[name])
        self.tree.show(PLAIN)
        roots = BoardRoots.of_tree(folder)
        self.sysfs = SysfsBoard(roots, pick_profile(read_model(roots)))
        self.second = 0
        self.look()

    def look(self, **changes: Any) -> Reading:
        self.second += 1
        now = dataclasses.replace(PLAIN, busy_s=self.second * 0.5, passed_s=float(self.second))
        self.tree.show(dataclasses.replace(now, **changes))
        return self.sysfs.read(float(self.second))

    def faulty(self, **asked: Any) -> Reading:
        return self.look(injection=Injection(**asked))


@pytest.fixture
def pi(tmp_path: Path) -> Board:
    return Board(tmp_path, "raspberry-pi-4")


def health(reading: Reading, what: str) -> Health:
    return dict(reading.health)[what]


@pytest.mark.parametrize("name", NAMES)
def test_every_tree_reads_as_the_whole_board(tmp_path: Path, name: str) -> None:
    board = Board(tmp_path, name)
    reading = board.look()
    assert (board.sysfs.profile.name, board.sysfs.profile.emulated) == (name, True)
    assert reading.temperature_celsius == pytest.approx(50.0, abs=2.0)
    assert reading.ambient_celsius == 22.0
    assert reading.operating_points == CONSTANTS[name].points
    assert (reading.charge, reading.on_mains, reading.throttled, reading.undervoltage) == (0.8, True, False, False)
    assert (reading.cooling_max, reading.cooling_level) == (4, 1)
    assert reading.power_watts == pytest.approx(6.0, rel=0.03)
    assert (reading.power_source, reading.power_is_modelled) == ("hwmon", True)
    assert reading.utilisation == pytest.approx(0.5, abs=0.01)
    assert reading.memory_available_bytes is not None
    assert {state for _, state in reading.health} == {Health.OK}


@pytest.mark.parametrize("name", NAMES)
def test_kernel_throttling_shows(tmp_path: Path, name: str) -> None:
    board = Board(tmp_path, name)
    assert board.look(cooling_state=2).throttled
    assert not board.look().throttled


def test_firmware_throttling_and_undervoltage_show_where_a_board_has_a_sign_of_them(tmp_path: Path) -> None:
    for name in ("raspberry-pi-4", "raspberry-pi-5"):
        board = Board(tmp_path / name, name)
        assert board.look(firmware_throttles=True).throttled
        reading = board.faulty(undervoltage=True)
        assert (reading.undervoltage, reading.throttled) == (True, False)
        reading = board.look()
        assert (reading.undervoltage, reading.throttled) == (False, False)
    jetson = Board(tmp_path / "jetson", "jetson-orin-nano")
    assert jetson.faulty(undervoltage=True).throttled  # counted as an over-current event
    assert not jetson.look().throttled


def test_temperature_faults(pi: Board) -> None:
    for fault, expected in (
        ("jump", Health.IMPOSSIBLE),
        ("missing", Health.MISSING),
        ("unreadable", Health.MISSING),
        ("zero", Health.IMPOSSIBLE),
        ("unreadable", Health.MISSING),
        ("impossible", Health.IMPOSSIBLE),
    ):
        reading = pi.faulty(temperature=fault)
        assert (reading.temperature_celsius, health(reading, "temperature")) == (None, expected), fault
        assert (pi.folder / "sys/class/thermal/thermal_zone0/temp").exists() == (fault != "missing")
    assert health(pi.look(), "temperature") is Health.OK
    seen = [health(pi.faulty(temperature="frozen"), "temperature") for _ in range(40)]
    assert (seen[20], seen[-1]) == (Health.OK, Health.FROZEN)
    assert health(pi.look(), "temperature") is Health.OK


@pytest.mark.parametrize("name", NAMES)
def test_renumbered_zones_change_nothing(tmp_path: Path, name: str) -> None:
    board = Board(tmp_path, name)
    first = board.folder / "sys/class/thermal/thermal_zone0/type"
    for renumbered, kind in ((True, "ambient-thermal"), (False, "cpu-thermal"), (True, "ambient-thermal")):
        reading = board.faulty(renumbers_zones=renumbered)
        assert first.read_text().strip() == kind
        assert reading.temperature_celsius == pytest.approx(50.0, abs=2.0)
        assert reading.ambient_celsius == 22.0


def test_battery_faults(pi: Board) -> None:
    reading = pi.faulty(battery="unknown")
    assert (reading.charge, health(reading, "charge")) == (None, Health.MISSING)
    reading = pi.faulty(battery="over-full")
    assert (reading.charge, health(reading, "charge")) == (None, Health.IMPOSSIBLE)
    reading = pi.faulty(battery="undervolted")
    assert (health(reading, "charge"), reading.undervoltage) == (Health.IMPOSSIBLE, True)
    reading = pi.look()
    assert (reading.charge, health(reading, "charge"), reading.undervoltage) == (0.8, Health.OK, False)


def test_a_refused_cap_is_said_and_one_that_works_again_is_obeyed(pi: Board) -> None:
    slow = Decision(frequency_cap_hz=600_000_000)
    path = pi.folder / "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq"
    said: list[str] = []
    for _ in range(3):
        pi.tree.release_cap(READ_ONLY)
        assert path.stat().st_mode & 0o222 == 0
        said.extend(pi.sysfs.apply(slow))
    assert len(said) == 1
    assert "scaling_max_freq" in said[0]
    pi.tree.release_cap()
    pi.sysfs.apply(slow)
    assert pi.tree.asked()[0] == 600_000


def test_pressure_is_the_machines_own(pi: Board) -> None:
    pi.tree.show_machine()
    real = Path("/proc/pressure/cpu").exists()
    assert (pi.folder / "proc/pressure/cpu").exists() == real


def test_memory_runs_short_on_demand_and_comes_back(pi: Board) -> None:
    pi.tree.show_machine(Injection(memory_mib=50.0, memory_pressure=0.25))
    reading = pi.look()
    assert reading.memory_available_bytes == 50 << 20
    assert dict(reading.pressure)["memory"] == 0.25
    pi.tree.show_machine()
    after = pi.look()
    assert (after.memory_available_bytes or 0) > 50 << 20
    real = Path("/proc/pressure/memory").exists()
    assert (pi.folder / "proc/pressure/memory").exists() == real


def test_what_stands_in_the_levers_is_kept(tmp_path: Path) -> None:
    board = Board(tmp_path, "edge-22w")
    board.sysfs.apply(Decision(frequency_cap_hz=800_000_000, cooling_level=3))
    assert BoardTree(tmp_path, "edge-22w", CONSTANTS["edge-22w"]).asked() == (800_000, 3)
