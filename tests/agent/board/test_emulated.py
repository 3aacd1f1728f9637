from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.board.load import read_task
from agent.board.profile import pick_profile
from agent.board.sysfs import BoardRoots, SysfsBoard, read_model
from policies.reading import Decision, Reading

PATIENCE_S = 20.0  # only a broken program waits so long


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


class Emulator:
    """The program, and the board it shows as the daemon sees it."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.start()
        roots = BoardRoots.of_tree(tree)
        self.board = SysfsBoard(roots, pick_profile(read_model(roots)), tree / "undo.json")

    def start(self) -> None:
        command = [sys.executable, "-m", "agent.board.emulated", "--tree", str(self.tree)]
        with (self.tree.parent / "said").open("ab") as said:
            arguments = [*command, "--load-of", str(os.getpid()), "--speed", "60"]
            self.process = subprocess.Popen(arguments, stderr=said)
        until(lambda: (self.tree / "ready").exists() or self.process.poll() is not None, "the board is ready")
        assert self.process.poll() is None

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_S)

    def inject(self, **what: object) -> None:
        fresh = self.tree / "inject.new"
        fresh.write_text(json.dumps(what))
        fresh.replace(self.tree / "inject.json")

    def read(self) -> Reading:
        return self.board.read(time.monotonic())

    def until(self, true: Callable[[Reading], bool], what: str) -> None:
        until(lambda: true(self.read()), what)


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulator]:
    emulator = Emulator(tmp_path / "board")
    yield emulator
    if emulator.process.poll() is None:
        emulator.stop()


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass", "agent.worker"])
    yield child
    child.kill()
    child.wait()


def state_of(pid: int) -> str:
    task = read_task(Path("/proc"), pid)
    return task.state if task else ""


def test_reads_as_a_whole_board_through_the_same_door_as_a_real_one(emulator: Emulator) -> None:
    assert emulator.board.profile.name == "raspberry-pi-4"
    assert emulator.board.profile.emulated
    reading = emulator.read()
    assert reading.temperature_celsius is not None
    assert reading.ambient_celsius == 22.0
    assert reading.frequency_hz == 1_800_000_000
    assert [p.frequency_hz // 1_000_000 for p in reading.operating_points] == list(range(600, 1801, 100))
    assert reading.charge == 0.8
    assert reading.on_mains
    assert (reading.undervoltage, reading.throttled) == (False, False)
    assert reading.cooling_max == 4
    assert reading.power_watts is not None
    assert 1.5 < reading.power_watts < 8.0
    assert reading.power_is_modelled
    assert reading.memory_available_bytes is not None


def test_heat_unplugging_and_faults_on_demand(emulator: Emulator) -> None:
    emulator.inject(heat_watts=15.0, unplug=True, undervoltage=True, charge=0.15)
    emulator.until(lambda r: (r.delta_t_celsius or 0.0) > 30.0, "delta-T above 30 K")
    reading = emulator.read()
    assert (reading.on_mains, reading.undervoltage) == (False, True)
    assert reading.charge is not None
    assert reading.charge <= 0.15
    emulator.inject(temperature="missing")
    emulator.until(lambda r: r.temperature_celsius is None and bool(r.on_mains), "no temperature, mains back")
    emulator.inject(temperature="impossible")
    raw = emulator.tree / "sys/class/thermal/thermal_zone0/temp"
    until(lambda: raw.exists() and raw.read_text() == "-256000\n", "an impossible temperature")
    assert emulator.read().temperature_celsius is None
    (emulator.tree / "inject.json").unlink()
    emulator.until(lambda r: r.temperature_celsius is not None, "the temperature is back")
    emulator.until(lambda r: (r.delta_t_celsius or 99.0) < 25.0, "the board cools")


def test_injection_ends_by_itself_and_a_broken_one_is_ignored(emulator: Emulator) -> None:
    emulator.inject(undervoltage=True, seconds=0.3)
    emulator.until(lambda r: r.undervoltage, "undervoltage")
    emulator.until(lambda r: not r.undervoltage, "its end")
    assert not (emulator.tree / "inject.json").exists()
    emulator.inject(heat_wats=3)
    until(lambda: "heat_wats" in (emulator.tree.parent / "said").read_text(), "the broken one is refused")
    emulator.inject(undervoltage=True)
    emulator.until(lambda r: r.undervoltage, "the next one is honoured")


def test_a_capped_clock_slows_the_worker_and_an_end_leaves_none_stopped(
    emulator: Emulator, worker: subprocess.Popen[bytes]
) -> None:
    assert emulator.board.apply(Decision(frequency_cap_hz=600_000_000, cooling_level=4)) == ()
    emulator.until(lambda r: r.frequency_hz == 600_000_000, "the lower clock")
    until(lambda: state_of(worker.pid) == "T", "the worker stands still")
    until(lambda: state_of(worker.pid) == "R", "and runs again")
    until(lambda: state_of(worker.pid) == "T", "the worker is stopped")
    assert emulator.stop() == 0
    assert state_of(worker.pid) != "T"
    assert emulator.board.restore() == ()


def test_at_the_top_clock_the_worker_is_left_alone(emulator: Emulator, worker: subprocess.Popen[bytes]) -> None:
    emulator.until(lambda r: (r.power_watts or 0.0) > 3.0, "the worker's load is seen")
    assert all(state_of(worker.pid) != "T" for _ in range(200))


def test_cap_overridden_by_another_program_is_said(emulator: Emulator) -> None:
    emulator.inject(overrides_cap=True)
    said: list[str] = []

    def complained() -> bool:
        said.extend(emulator.board.apply(Decision(frequency_cap_hz=600_000_000)))
        return bool(said)

    until(complained, "a complaint about the cap")
    assert "scaling_max_freq" in said[0]


def test_heat_and_charge_survive_a_restart_of_the_emulator(emulator: Emulator) -> None:
    emulator.inject(heat_watts=20.0, charge=0.5)
    emulator.until(lambda r: (r.delta_t_celsius or 0.0) > 30.0, "delta-T above 30 K")
    assert emulator.stop() == 0
    saved = json.loads((emulator.tree / "state.json").read_text())
    assert saved["charge"] == pytest.approx(0.5, abs=0.1)
    assert saved["die_celsius"] > 50.0
    emulator.start()
    reading = emulator.read()
    assert reading.temperature_celsius is not None
    assert reading.temperature_celsius > 50.0


def test_ends_when_the_load_is_gone(tmp_path: Path) -> None:
    load = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    emulator = subprocess.Popen(
        [sys.executable, "-m", "agent.board.emulated", "--tree", str(tmp_path / "b"), "--load-of", str(load.pid)]
    )
    until((tmp_path / "b/ready").exists, "the board is ready")
    load.send_signal(signal.SIGKILL)
    assert emulator.wait(PATIENCE_S) == 0
    load.wait()


def test_unknown_board_is_refused_with_the_known_ones() -> None:
    command = [sys.executable, "-m", "agent.board.emulated", "--tree", "x", "--profile", "pi", "--load-of", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert "raspberry-pi-4" in done.stderr


def test_an_empty_battery_stops_the_workers_until_the_mains_is_back(
    emulator: Emulator, worker: subprocess.Popen[bytes]
) -> None:
    emulator.inject(unplug=True, charge=0.0)
    until(lambda: "battery cut off" in (emulator.tree.parent / "said").read_text(), "the battery is cut off")
    until(lambda: state_of(worker.pid) == "T", "the worker stands still")
    emulator.until(lambda r: r.power_watts == 0.0, "no power is drawn")
    (emulator.tree / "inject.json").unlink()
    until(lambda: "on again" in (emulator.tree.parent / "said").read_text(), "the board is on again")
    until(lambda: state_of(worker.pid) == "R", "the worker goes on")


def test_load_shows_as_utilisation_and_a_refused_cap_is_said(
    emulator: Emulator, worker: subprocess.Popen[bytes]
) -> None:
    assert worker.poll() is None
    emulator.until(lambda r: (r.utilisation or 0.0) > 0.2, "the worker's load is seen")
    emulator.inject(refuses_cap=True)
    said: list[str] = []

    def complained() -> bool:
        said.extend(emulator.board.apply(Decision(frequency_cap_hz=600_000_000)))
        return bool(said)

    until(complained, "a complaint about the cap")
    assert "scaling_max_freq" in said[0]


def test_with_its_own_trips_the_kernel_switches_the_fan(tmp_path: Path) -> None:
    tree = tmp_path / "pi5"
    tree.mkdir()
    (tree / "state.json").write_text('{"die_celsius": 70, "board_celsius": 68}')
    command = [sys.executable, "-m", "agent.board.emulated", "--tree", str(tree), "--profile", "raspberry-pi-5"]
    emulator = subprocess.Popen([*command, "--load-of", str(os.getpid()), "--kernel-fan", "--ambient", "35"])
    fan = tree / "sys/class/thermal/cooling_device0/cur_state"
    until(lambda: fan.exists() and fan.read_text() == "3\n", "the third fan level at 70 °C")
    assert (tree / "sys/class/thermal/thermal_zone1/temp").read_text() == "35000\n"
    emulator.terminate()
    assert emulator.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("wrong", [["--ambient", "99"], ["--ambient", "nan"], ["--speed", "0"], ["--speed", "101"]])
def test_what_no_board_can_be_is_refused(wrong: list[str]) -> None:
    command = [sys.executable, "-m", "agent.board.emulated", "--tree", "x", "--load-of", "1", *wrong]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert "must" in done.stderr
