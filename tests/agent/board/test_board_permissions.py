"""A board whose files belong to root, read by somebody else."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.board.profile import pick_profile
from agent.board.sysfs import BoardRoots, SysfsBoard, read_model
from policies.reading import Decision, Health
from tests.simulators.board_trees import BOARDS, CPUFREQ, POWERCAP, THERMAL, BoardTree

NOBODY = 65_534


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root reads whatever its mode: with root's rights the test becomes somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Below a folder that anybody may enter, unlike pytest's own."""
    made = Path(tempfile.mkdtemp(prefix="temperd-board-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def board_of(folder: Path, name: str) -> tuple[BoardTree, SysfsBoard]:
    tree = BoardTree(folder / name, BOARDS[name]())
    roots = BoardRoots.of_tree(tree.folder)
    return tree, SysfsBoard(roots, pick_profile(read_model(roots)))


def lock(tree: BoardTree, name: str, mode: int) -> None:
    (tree.folder / name).chmod(mode)


def test_sensors_that_may_not_be_read_are_missing_and_the_others_serve(folder: Path) -> None:
    tree, board = board_of(folder, "mini-pc")
    lock(tree, f"{THERMAL}/thermal_zone1/temp", 0o000)
    lock(tree, f"{POWERCAP}/intel-rapl:0/energy_uj", 0o000)  # as most kernels have it
    with as_nobody():
        reading = board.read(0.0)
    assert reading.temperature_celsius is None
    assert (dict(reading.health)["temperature"], dict(reading.health)["power"]) == (Health.MISSING, Health.MISSING)
    assert reading.frequency_hz == 1_187_435_000


def test_folders_that_may_not_be_entered_are_a_board_without_sensors(folder: Path) -> None:
    tree, board = board_of(folder, "raspberry-pi-5")
    for name in ("sys", "proc"):
        lock(tree, name, 0o000)
    try:
        with as_nobody():
            reading = board.read(0.0)
            complaints = board.apply(Decision(frequency_cap_hz=1_500_000_000, cooling_level=4))
    finally:
        for name in ("sys", "proc"):
            lock(tree, name, 0o755)
    assert reading.temperature_celsius is None
    assert dict(reading.health) == {"temperature": Health.MISSING, "frequency-cap": Health.MISSING}
    assert (reading.operating_points, reading.cooling_max, reading.pressure) == ((), 0, ())
    assert complaints == ()


def test_levers_that_may_not_be_written_are_refused_and_told_once(folder: Path) -> None:
    tree, board = board_of(folder, "raspberry-pi-5")
    cap, fan = f"{CPUFREQ}/policy0/scaling_max_freq", f"{THERMAL}/cooling_device0/cur_state"
    lock(tree, cap, 0o444)
    lock(tree, fan, 0o444)
    decision = Decision(frequency_cap_hz=1_500_000_000, cooling_level=4)
    with as_nobody():
        board.read(0.0)
        told = board.apply(decision)
        again = board.apply(decision)
        reading = board.read(1.0)
    assert sorted("Permission denied" in one for one in told) == [True, True]
    assert again == ()
    health = dict(reading.health)
    assert (health["frequency-cap"], health["cooling"]) == (Health.REFUSED, Health.REFUSED)
    assert not reading.steerable
    assert (tree.get(cap), tree.get(fan)) == ("2400000", "1")
