"""The stress run with real processes: an emulated board slows a real load, Ctrl-C puts the limits back."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.board.files import read_int
from agent.board.profile import pick_profile
from agent.board.record import FILE_NAME, BoardRecord, Qualification, read_record, write_record
from agent.board.sysfs import SysfsBoard, read_model
from agent.errors import BoardError
from agent.worker_stress import share_of
from policies.policy import Policy
from policies.reading import Decision, Reading
from service import cli
from service.cli_qualify import PLAIN_EVERY, _shown, _write, exit_code
from service.emulation import EmulatedBoardProcess
from service.live import runtime_folder
from service.qualify import Outcome, Trial, conclude, drive, keep
from service.qualify_fit import Fit
from service.qualify_judge import Verdict
from service.qualify_load import StressLoad
from service.qualify_plan import COOLED, LOWEST, STAGES, Drill, Place
from service.state_lock import state_lock

ROOT = Path(__file__).parents[2]
CONFIG = """
[device]
name = "board-1"
state_dir = "state"
[repository]
url = "http://localhost:1"
[board]
emulated = "raspberry-pi-4"
emulated_speed = 20.0
"""
CAP = "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq"
FAN = "sys/class/thermal/cooling_device0/cur_state"
READY_S = 60.0
PROGRAM = """
import asyncio, pathlib, sys
from service.cli_qualify import exit_code, run
from service.config import load_config
outcome, _, _ = asyncio.run(run(load_config(pathlib.Path(sys.argv[1])), 12.0, quiet=True))
sys.exit(exit_code(outcome))
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "temperd.toml"
    path.write_text(CONFIG)
    return path


async def short_run(folder: Path, seconds: float) -> Outcome:
    """A run of some seconds against an emulated board whose heat flows 30 times as fast."""
    emulated = await EmulatedBoardProcess.start(folder / "board", "raspberry-pi-4", 30.0)
    load = await StressLoad.start(len(os.sched_getaffinity(0)))
    try:
        # Ten looks a second meet the same digits twice: that is no stuck sensor here.
        profile = dataclasses.replace(pick_profile(read_model(emulated.roots)), frozen_after_s=None)
        board = SysfsBoard(emulated.roots, profile)
        drill = Drill(Policy(), seconds, time.monotonic())
        trial = Trial(board, drill, load)

        async def wait() -> bool:
            trial.tick(time.monotonic())
            await asyncio.sleep(0.1)
            return True

        await drive(drill, load, wait, lambda _drill: None)
        board.restore()
        outcome = conclude(drill, wrong=load.wrong, lost=load.lost)
        keep(outcome, Place(folder, read_model(emulated.roots), profile.name, profile.emulated), time.time())
        return outcome
    finally:
        await load.stop()
        await emulated.stop()


def test_an_emulated_board_is_tried_in_seconds(tmp_path: Path) -> None:
    outcome = asyncio.run(short_run(tmp_path, 8.0))
    drill, verdict = outcome.drill, outcome.verdict
    assert drill.ended == "done"
    assert not {"cap-not-obeyed", "cap-without-effect", "wrong-results", "load-lost"} & {
        r.code for r in verdict.reasons
    }
    lowest = [tick for tick in drill.ticks if STAGES[tick.stage].name == LOWEST]
    assert lowest[-1].reading.frequency_hz == 600_000_000
    cooled = [tick for tick in drill.ticks if STAGES[tick.stage].name == COOLED]
    assert cooled[-1].reading.cooling_level == cooled[-1].reading.cooling_max
    assert cooled[-1].products > cooled[0].products
    tree = tmp_path / "board"
    assert read_int(tree / CAP) == 1_800_000
    assert read_int(tree / FAN) == 1
    record = read_record(tmp_path, "Emulated Raspberry Pi 4").record
    assert record is not None
    assert record.qualification is not None
    assert record.qualification.passed == verdict.passed
    assert record.qualification.modelled


def test_ctrl_c_puts_the_limits_back_and_leaves_no_load_and_no_record(config: Path) -> None:
    state = config.parent / "state"
    tree = runtime_folder(state, {}) / "board"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("RUNTIME_DIRECTORY", None)
    run = subprocess.Popen(
        (sys.executable, "-c", PROGRAM, str(config)), stderr=subprocess.PIPE, env=environment, cwd=ROOT
    )
    try:
        patience = time.monotonic() + READY_S
        while read_int(tree / FAN) != 4 and time.monotonic() < patience:  # the stage with full cooling
            time.sleep(0.05)
        assert read_int(tree / FAN) == 4
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=READY_S)
    finally:
        run.kill()
    assert run.returncode == 130, err
    assert read_int(tree / FAN) == 1
    assert read_int(tree / CAP) == 1_800_000
    assert not (state / FILE_NAME).exists()


def test_the_last_run_is_shown_beside_a_daemon(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = config.parent / "state"
    state.mkdir()
    asked = ["qualify", "--last", "--config", str(config)]
    assert cli.main(asked) == 1
    assert "not qualified yet" in capsys.readouterr().err
    write_record(
        state, BoardRecord("Emulated Raspberry Pi 4", "raspberry-pi-4", Qualification(True, 1.8e9, 600.0, 17.0))
    )
    with state_lock(state, "no matter"):
        assert cli.main(asked) == 0
    assert "2027-01-15T08:00:00+00:00: passed, delta-T 17.0 K" in capsys.readouterr().out
    failed = Qualification(False, 1.8e9, 600.0, reasons=("too-hot",), modelled=True)
    write_record(state, BoardRecord("Emulated Raspberry Pi 4", "raspberry-pi-4", failed))
    assert cli.main(asked) == 1
    assert "NOT PASSED: too-hot (modelled)" in capsys.readouterr().out
    assert cli.main([*asked, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["reasons"] == ["too-hot"]


def test_the_daemon_and_a_run_do_not_share_a_board(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = config.parent / "state"
    state.mkdir()
    with state_lock(state, "no matter"):
        assert cli.main(["qualify", "--config", str(config), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert "fleet send" in told["message"]


@pytest.mark.parametrize("minutes", ["0", "61", "-1"])
def test_lengths_out_of_bounds_are_refused(config: Path, minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["qualify", "--config", str(config), f"--minutes={minutes}"]) == 2
    assert "1..60" in capsys.readouterr().err


def test_without_a_temperature_nothing_is_stressed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sys").mkdir()
    (tmp_path / "proc").mkdir()
    text = CONFIG.partition("[board]")[0] + f'[board]\nsys_root = "{tmp_path}/sys"\nproc_root = "{tmp_path}/proc"\n'
    (tmp_path / "temperd.toml").write_text(text)
    assert cli.main(["qualify", "--config", str(tmp_path / "temperd.toml")]) == 1
    assert "no temperature can be read" in capsys.readouterr().err


def test_without_a_terminal_the_run_is_told_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    drill = Drill(Policy(), 60.0, 0.0)
    with _shown(quiet=False) as show:
        for second in range(2 * PLAIN_EVERY):
            drill.step(Reading(float(second), temperature_celsius=30.0, ambient_celsius=20.0), Decision(), 0)
            show(drill)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert "delta-T 10" in told[-1]
    with _shown(quiet=True) as show:
        show(drill)
    assert not capsys.readouterr().out


def test_a_chart_that_cannot_be_written_is_the_disks_fault(tmp_path: Path) -> None:
    with pytest.raises(BoardError, match="chart cannot be written"):
        _write(tmp_path / "missing" / "board.svg", "<svg/>")


@pytest.mark.parametrize(("ended", "reasons", "code"), [("done", 0, 0), ("done", 1, 1), ("stopped", 1, 130)])
def test_the_exit_code_tells_the_verdict(ended: str, reasons: int, code: int) -> None:
    drill = Drill(Policy(), 60.0, 0.0)
    drill.ended = ended
    verdict = Verdict()
    for number in range(reasons):
        verdict.fail(f"x{number}", "")
    assert exit_code(Outcome(drill, Fit(), verdict)) == code


@pytest.mark.parametrize(
    ("line", "share"),
    [(b"0.5", 0.5), (b"1", 1.0), (b"", 0.0), (b"nan", 0.0), (b"inf", 0.0), (b"-1", 0.0), (b"1.1", 0.0), (b"x", 0.0)],
)
def test_a_load_obeys_shares_and_nothing_else(line: bytes, share: float) -> None:
    assert share_of(line) == share


def test_a_load_whose_parent_is_gone_ends() -> None:
    load = subprocess.Popen(
        (sys.executable, "-m", "agent.worker_stress"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert load.stdin is not None
    assert load.stdout is not None
    load.stdin.write(b"0.3\n")
    load.stdin.flush()
    products, wrong = map(int, load.stdout.readline().split())
    assert wrong == 0
    load.stdin.close()
    assert load.wait(READY_S) == 0
    assert products >= 0
    load.stdout.close()
