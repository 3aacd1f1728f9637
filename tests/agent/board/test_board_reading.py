"""What holds of every reading, whatever the files say: bounds, no memory of devices that changed, no side effects."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.board.devices import RESCAN_S
from agent.board.profile import pick_profile
from agent.board.sysfs import BoardRoots, SysfsBoard, read_model
from policies.governor import GovernorState, decide
from policies.outlook import Outlook
from policies.policy import Policy
from policies.reading import Action, Health, Reading
from tests.simulators.board_trees import (
    BOARDS,
    HWMON,
    PI4_THROTTLED,
    POWERCAP,
    SUPPLY,
    THERMAL,
    UNREADABLE,
    BoardTree,
    Files,
)

WORDS = ("", "0", "-1", "1", "53000", "-256000", "101", "9" * 30, "junk", "Battery", "Unknown", "\u00e9")
Change = tuple[str, str]
"""(file, what happens to it): a word of `WORDS`, or one of the accidents."""
ACCIDENTS = ("removed", "folder", "loop", "dangling", "unreadable")


UNREAD = (
    "mode",
    "policy",
    "_policies",
    "_driver",
    "_governor",
    "_cpus",
    "scaling_min_freq",
    "boot_id",
    "rpm",
    "pwm1",
    "fan1_input",
)
"""Endings of files that are there, and that no reading looks at."""


def everything() -> Files:
    """A board that has every kind of sensor at once."""
    others = {**BOARDS["battery-board"](), **BOARDS["raspberry-pi-4"]()}
    files = {name: text for name, text in others.items() if name.startswith((SUPPLY, POWERCAP, PI4_THROTTLED))}
    air = {f"{THERMAL}/thermal_zone20/type": "ambient-thermal", f"{THERMAL}/thermal_zone20/temp": "22500"}
    alarm = {f"{HWMON}/hwmon20/name": "rpi_volt", f"{HWMON}/hwmon20/in0_lcrit_alarm": "0"}
    return {**BOARDS["jetson-orin-nano"](), **files, **air, **alarm}


MADE: Mapping[str, Callable[[], Files]] = {**BOARDS, "everything": everything}


@cache
def read_files(name: str) -> Mapping[str, list[str]]:
    """The files of a board that a reading looks at, by the last part of their names."""
    found: dict[str, list[str]] = {}
    for file in sorted(MADE[name]()):
        if not file.endswith(UNREAD) and "trip_point" not in file:
            found.setdefault(Path(file).name, []).append(file)
    return found


VALUES = (
    *("temp", "capacity", "cur_state", "max_state", "in1_input", "curr1_input", "energy_uj", "voltage_now", "status"),
    *(
        "scaling_cur_freq",
        "scaling_max_freq",
        "scaling_available_frequencies",
        "cpuinfo_max_freq",
        "stat",
        "meminfo",
        "cpu",
    ),
)
NUMBERS = ("0", "-1", "1", "101", "53000", "-256000", "150000", "999999999", "9" * 18, "9" * 30)


def changes(name: str) -> st.SearchStrategy[list[Change]]:
    """Numbers where numbers are, and anything anywhere."""
    files = read_files(name)

    def in_a_file(lasts: list[str], what: tuple[str, ...]) -> st.SearchStrategy[Change]:
        file = st.sampled_from(lasts).flatmap(lambda last: st.sampled_from(files[last]))
        return st.tuples(file, st.sampled_from(what))

    numbers = in_a_file([last for last in VALUES if last in files], NUMBERS)
    anything = in_a_file(sorted(files), (*WORDS, *ACCIDENTS))
    return st.lists(st.one_of(numbers, numbers, anything), min_size=4, max_size=16)


def happen(tree: BoardTree, file: str, what: str) -> None:
    if what == "removed":
        tree.remove(file)
    elif what == "folder":
        tree.make_folder(file)
    elif what in ("loop", "dangling", "unreadable"):
        tree.link(file, {"loop": Path(file).name, "dangling": "nowhere", "unreadable": UNREADABLE}[what])
    else:
        tree.set(file, what)


@cache
def _kept_trees() -> tuple[tempfile.TemporaryDirectory[str], dict[str, BoardTree]]:
    folder = tempfile.TemporaryDirectory(prefix="temperd-boards-")
    return folder, {name: BoardTree(Path(folder.name, name), files()) for name, files in MADE.items()}


@contextmanager
def changing(name: str) -> Iterator[tuple[BoardTree, Callable[[list[Change]], None]]]:
    """A tree that is laid out once, and a way to let things happen to it, which are undone at the end."""
    tree, touched = _kept_trees()[1][name], set[str]()

    def change(row: list[Change]) -> None:
        for file, what in row:
            touched.add(file)
            happen(tree, file, what)

    yield tree, change
    whole = MADE[name]()
    for file in touched:
        tree.set(file, whole[file])


def board_of(tree: BoardTree) -> SysfsBoard:
    roots = BoardRoots.of_tree(tree.folder)
    return SysfsBoard(roots, pick_profile(read_model(roots)))


NAMES = st.sampled_from(sorted(MADE))


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_a_reading_is_always_given_and_its_values_are_in_their_bounds(data: st.DataObject) -> None:
    name = "everything"
    with changing(name) as (tree, change):
        board = board_of(tree)
        board.read(0.0)
        change(data.draw(changes(name)))
        state = GovernorState()
        for second in (1.0, 2.0, 2.0, 30.0):
            reading = board.read(second)
            in_bounds(reading)
            state, decision = decide(Policy(), state, reading, Outlook())
            assert reading.temperature_celsius is not None or decision.action >= Action.SLOW
        board.restore()


def in_bounds(reading: Reading) -> None:
    shares = (reading.charge, reading.utilisation, *dict(reading.pressure).values())
    assert all(share is None or 0.0 <= share <= 1.0 for share in shares)
    assert reading.temperature_celsius is None or -40.0 < reading.temperature_celsius < 150.0
    assert reading.power_watts is None or 0.0 <= reading.power_watts <= 1000.0
    assert reading.cooling_max >= 0
    points = reading.operating_points
    assert all(slower < faster for slower, faster in itertools.pairwise(points))
    assert len(points) <= 128
    health = dict(reading.health)
    assert len(health) == len(reading.health)
    assert (reading.temperature_celsius is None) == (health["temperature"] is not Health.OK)
    assert dataclasses.asdict(reading)


UNREMEMBERED = (
    "frequency_hz",
    "frequency_cap_hz",
    "gpu_frequency_hz",
    "operating_points",
    "cooling_max",
    "cooling_level",
    "memory_available_bytes",
    "pressure",
)
"""Values that depend on the files of now alone."""


@settings(max_examples=120, deadline=None)
@given(NAMES, st.data())
def test_what_a_board_keeps_of_its_folders_does_not_change_what_it_reads_later(name: str, data: st.DataObject) -> None:
    with changing(name) as (tree, change):
        board = board_of(tree)
        board.read(0.0)
        change(data.draw(changes(name)))
        board.read(1.0)
        reading = board.read(1.0 + RESCAN_S)
        expected = SysfsBoard(BoardRoots.of_tree(tree.folder), board.profile).read(1.0 + RESCAN_S)
        assert {key: getattr(reading, key) for key in UNREMEMBERED} == {
            key: getattr(expected, key) for key in UNREMEMBERED
        }


WATCHED = """
import os, sys
from pathlib import Path
from agent.board.profile import pick_profile
from agent.board.sysfs import BoardRoots, SysfsBoard, read_model

PROGRAMS = ("subprocess.", "os.fork", "os.posix_spawn", "os.exec", "os.system", "pty.")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
tree, watching, opened, wrong = Path(sys.argv[1]), False, 0, []

def watch(event, arguments):
    global opened
    if not watching:
        return
    if event.startswith(PROGRAMS):
        wrong.append(event)
    elif event == "open":
        opened += 1
        if not Path(arguments[0]).is_relative_to(tree) or arguments[2] & WRITING:
            wrong.append(arguments[0])

sys.addaudithook(watch)
roots = BoardRoots.of_tree(tree)
board = SysfsBoard(roots, pick_profile(read_model(roots)))
watching = True
board.read(0.0), board.read(1.0)
if len(sys.argv) > 2:
    os.system("true")
watching = False
print(opened > 10, wrong)
"""


@pytest.mark.parametrize("name", ["jetson-orin-nano", "battery-board"])
def test_a_reading_starts_no_program_and_opens_files_of_the_board_for_reading_only(tmp_path: Path, name: str) -> None:
    tree = BoardTree(tmp_path / name, BOARDS[name]())
    assert watched(tree) == "True []"


def test_the_watch_on_programs_sees_one(tmp_path: Path) -> None:
    assert watched(BoardTree(tmp_path, BOARDS["raspberry-pi-4"]()), "start one") == "True ['os.system']"


def watched(tree: BoardTree, *more: str) -> str:
    """What a reading opened and started, by the interpreter's own audit events."""
    command = [sys.executable, "-c", WATCHED, str(tree.folder), *more]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
