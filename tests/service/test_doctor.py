"""What the doctor finds: each check against a board on the disk that has, or lacks, what it looks at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from agent.agent_slots import agent_folder, write_standing
from agent.board.files import BoardRoots
from agent.board.inspection import Helper, Lever
from agent.errors import BoardError
from agent.keys_consoles import create_console_key
from agent.keys_identity import create_identity
from policies.trial_standing import Outcome, Standing
from service import cli, doctor_board, doctor_service, doctor_trust
from service.config import Board, Commands, Config, Device, Policy, Repository
from service.doctor import Check, Finding, Grade, Scene, bad, examine, lines, ok, table, worst
from service.doctor_outside import Probe, collect
from tests.simulators.board_trees import CPUFREQ, PI4_THROTTLED, THERMAL, BoardTree, raspberry_pi_4, unknown_board

NOW = 1_800_000_000.0
LOADED = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled", "WatchdogUSec": "30s"}


def scene(folder: Path, files: Mapping[str, str] | None = None, **changes: object) -> Scene:
    """A board that is well, and not set up."""
    tree = BoardTree(folder / "tree", files or raspberry_pi_4())
    config = Config(
        Device("board-1", state_dir=str(folder / "state")),
        Repository("https://models.example.org/", root=str(folder / "root.json")),
        board=Board(powerd=""),
        commands=Commands(str(folder / "consoles")),
    )
    found = Scene(
        config, folder / "temperd.toml", BoardRoots.of_tree(tree.folder), False, None, NOW, time.monotonic(), "temperd"
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def found(check: Check, at: Scene) -> dict[str, Finding]:
    """By the name of the check; the last one of a name."""
    return {one.check: one for one in examine(at, {"check": check})}


# --- keys and trust --------------------------------------------------------------------------------------------------


def test_the_identity_must_be_there_alone_and_of_the_configured_name(tmp_path: Path) -> None:
    at = scene(tmp_path)
    missing = found(doctor_trust.identity, at)["identity"]
    assert (missing.grade, missing.mend) == (Grade.BAD, "temperd keys init")
    create_identity(at.state / "keys", "board-1")
    assert found(doctor_trust.identity, at)["identity"].grade is Grade.OK
    other = replace(at, config=replace(at.config, device=replace(at.config.device, name="board-2")))
    assert "board-2" in found(doctor_trust.identity, other)["identity"].what
    (at.state / "keys" / "identity.json").chmod(0o644)
    opened = found(doctor_trust.identity, at)["identity"]
    assert (opened.grade, opened.mend) == (Grade.BAD, f"chmod 0600 {at.state}/keys/identity.json")


def test_a_credential_counts_where_it_was_seen_or_the_daemon_runs_with_it(tmp_path: Path) -> None:
    unit = {**LOADED, "LoadCredential": "temperd-identity"}
    asked = scene(tmp_path, unit=unit)
    assert found(doctor_trust.identity, asked)["identity"].grade is Grade.BAD, "the unit asks for it, and it may lack"
    assert found(doctor_trust.identity, replace(asked, credential=True))["identity"].grade is Grade.OK
    assert found(doctor_trust.identity, replace(asked, live={}))["identity"].grade is Grade.OK
    assert found(doctor_trust.identity, asked)["identity"].mend == "sudo temperd keys init"


def test_consoles_are_named_with_their_roles_and_none_is_a_warning(tmp_path: Path) -> None:
    at = scene(tmp_path)
    assert found(doctor_trust.consoles, at)["consoles"].grade is Grade.WARN
    public = create_console_key(tmp_path / "console", "alice")
    (tmp_path / "consoles").mkdir(mode=0o755)
    (tmp_path / "consoles" / public.name).write_bytes(public.read_bytes())
    assert found(doctor_trust.consoles, at)["consoles"].what.startswith("alice (owner, ")
    (tmp_path / "consoles" / "half.json").write_text("{")
    assert found(doctor_trust.consoles, at)["consoles"].grade is Grade.BAD


def test_no_pinned_root_is_bad_and_says_how_to_pin_one(tmp_path: Path) -> None:
    root = found(doctor_trust.repository_root, scene(tmp_path))["root"]
    assert root.grade is Grade.BAD
    assert "temperd keys trust-repository" in root.mend


def test_a_state_that_others_may_write_is_bad_and_one_that_they_may_enter_a_warning(tmp_path: Path) -> None:
    at = scene(tmp_path)
    assert found(doctor_trust.state_files, at)["state"].grade is Grade.WARN
    for mode, grade in ((0o777, Grade.BAD), (0o755, Grade.WARN)):
        at.state.mkdir(exist_ok=True)
        at.state.chmod(mode)
        told = found(doctor_trust.state_files, at)["state"]
        assert (told.grade, told.mend) == (grade, f"chmod 0700 {at.state}")
    at.state.chmod(0o700)
    assert found(doctor_trust.state_files, at)["state"].grade is Grade.OK


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_that_root_left_in_the_state_is_found(tmp_path: Path) -> None:
    at = scene(tmp_path)
    (at.state / "store").mkdir(parents=True, mode=0o700)
    at.state.chmod(0o700)
    (at.state / "store" / "left").write_text("")
    os.chown(at.state / "store" / "left", 12345, 12345)
    state = found(doctor_trust.state_files, at)["state"]
    assert state.grade is Grade.BAD
    assert str(at.state / "store" / "left") in state.what
    assert state.mend.startswith("sudo chown -R root: ")


# --- the board -------------------------------------------------------------------------------------------------------


def test_a_known_board_that_is_well(tmp_path: Path) -> None:
    told = found(doctor_board.board, scene(tmp_path))
    assert told["board"].what.endswith("profile raspberry-pi-4")
    assert {one.grade for one in told.values()} == {Grade.OK}


def test_an_unknown_board_and_a_lost_sensor(tmp_path: Path) -> None:
    assert found(doctor_board.board, scene(tmp_path, unknown_board()))["board"].grade is Grade.WARN
    files = raspberry_pi_4()
    for name in [name for name in files if name.startswith(f"{THERMAL}/thermal_zone")]:
        del files[name]
    told = found(doctor_board.board, scene(tmp_path / "blind", files))
    assert told["temperature"].grade is Grade.BAD


def test_heat_and_a_weak_supply_are_told(tmp_path: Path) -> None:
    at = scene(tmp_path)
    tree = BoardTree(tmp_path / "tree", {})
    tree.set(f"{THERMAL}/thermal_zone0/temp", "83000")
    tree.set(PI4_THROTTLED, "50005")
    told = found(doctor_board.board, at)
    assert told["temperature"].grade is Grade.WARN
    assert told["supply"].grade is Grade.BAD
    assert "undervoltage" in found(doctor_board.control, at)["history"].what
    tree.set(PI4_THROTTLED, "0")
    assert found(doctor_board.control, at)["history"].grade is Grade.OK


def test_levers_may_be_moved_by_us_by_the_helper_or_not_at_all() -> None:
    cap = f"{CPUFREQ.removeprefix('sys/')}/policy0/scaling_max_freq"
    shut = (Lever(cap, writable=False), Lever("class/thermal/cooling_device0/cur_state", writable=True))
    told = [
        next(iter(doctor_board.levers_told(levers, helper)))
        for levers, helper in (
            ((replace(shut[0], writable=True),), None),
            (shut, Helper()),
            (shut, Helper("temperd-powerd is not there")),
            (shut, None),
            ((), None),
        )
    ]
    assert [one.grade for one in told] == [Grade.OK, Grade.OK, Grade.WARN, Grade.WARN, Grade.WARN]
    assert "temperd-powerd is not there" in told[2].what
    assert told[2].mend == "sudo systemctl enable --now temperd-powerd.socket"


def test_swap_on_a_disk_matters_unless_the_unit_forbids_it(tmp_path: Path) -> None:
    at = scene(tmp_path)
    tree = BoardTree(tmp_path / "tree", {})
    tree.set("proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 1 0 100")
    assert found(doctor_board.memory, at)["swap"].grade is Grade.OK
    tree.set("proc/swaps", "Filename Type Size Used Priority\n/var/swap file 1 0 -2")
    assert found(doctor_board.memory, at)["swap"].grade is Grade.WARN
    assert found(doctor_board.memory, replace(at, unit={"MemorySwapMax": "0"}))["swap"].grade is Grade.OK


def test_a_clock_that_was_never_set_and_a_policy_that_is_none(tmp_path: Path) -> None:
    at = scene(tmp_path)
    assert found(doctor_board.clock, replace(at, now=0.0))["clock"].grade is Grade.BAD
    assert found(doctor_board.clock, at)["clock"].grade is not Grade.BAD
    (tmp_path / "mine.toml").write_text("no such = key")
    chosen = replace(at, config=replace(at.config, policy=Policy(str(tmp_path / "mine.toml"))))
    assert found(doctor_board.policy, chosen)["policy"].grade is Grade.BAD
    assert found(doctor_board.policy, at)["policy"].what.startswith("raspberry-pi-4")


# --- the service -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "grade", "word"),
    [
        ({}, Grade.OK, "not here"),
        (LOADED, Grade.OK, "active, enabled"),
        ({"LoadState": "not-found"}, Grade.WARN, "not-found"),
        ({**LOADED, "UnitFileState": "disabled"}, Grade.WARN, "disabled"),
        ({**LOADED, "NRestarts": "4"}, Grade.WARN, "4 times"),
        ({**LOADED, "ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "78"}, Grade.BAD, "78"),
    ],
)
def test_what_systemd_says(tmp_path: Path, unit: Mapping[str, str], grade: Grade, word: str) -> None:
    told = found(doctor_service.unit, scene(tmp_path, unit=unit))["systemd"]
    assert told.grade is grade
    assert word in told.what


def test_the_daemons_own_complaints_are_told(tmp_path: Path) -> None:
    assert found(doctor_service.daemon, scene(tmp_path))["daemon"].grade is Grade.BAD
    live = {
        "pid": 7,
        "connected": False,
        "link": {"why": "nobody listens"},
        "alarms": [{"type": "overheated", "severity": "critical"}],
    }
    told = found(doctor_service.daemon, scene(tmp_path, live=live))
    assert [told[name].grade for name in ("daemon", "link", "alarm")] == [Grade.OK, Grade.WARN, Grade.BAD]


def test_releases_that_were_left_and_safe_mode_are_told(tmp_path: Path) -> None:
    at = scene(tmp_path)
    assert "free for the next release: a" in found(doctor_service.updates, at)["updates"].what
    last = Outcome("", "1.2.0", "1.1.0", "rolled_back", "trial-heat", "it ran hotter")
    write_standing(at.state, Standing(last=last))
    assert found(doctor_service.updates, at)["updates"].what == "1.2.0 was rolled back: trial-heat"
    write_standing(at.state, Standing(safe_mode="restart-loop"))
    assert found(doctor_service.updates, at)["updates"].grade is Grade.BAD
    (agent_folder(at.state) / "standing.json").write_text("{")
    assert found(doctor_service.updates, at)["updates"].grade is Grade.WARN


# --- the whole -------------------------------------------------------------------------------------------------------


def test_a_check_that_breaks_off_is_a_finding_and_ends_no_other(tmp_path: Path) -> None:
    def breaks(_scene: Scene) -> list[Finding]:
        raise PermissionError(13, "Permission denied", "/secret")

    def fails(_scene: Scene) -> list[Finding]:
        raise BoardError("the disk fails", where="/disk")

    told = examine(scene(tmp_path), {"a": breaks, "b": fails, "c": lambda _scene: [ok("c", "well")]})
    assert [(one.check, one.grade) for one in told] == [("a", Grade.WARN), ("b", Grade.BAD), ("c", Grade.OK)]
    assert worst(told) is Grade.BAD
    assert worst([]) is Grade.OK
    assert table(told)["bad"] == 1


def test_foreign_words_move_no_cursor() -> None:
    told = "\n".join(lines([bad("broker", "\x1b[2J\rgone", "why\x07", "m\x9b")]))
    assert all(c.isprintable() or c == "\n" for c in told)


def test_a_probe_that_hangs_is_ended_and_one_that_breaks_off_is_bad() -> None:
    def started(program: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE)

    hangs, breaks = started("import time; time.sleep(600)"), started("print('[{}]'); raise SystemExit(7)")
    breaks.wait(60)
    probes = [Probe("repository", breaks), Probe("broker", hangs), Probe("runtime", None, "Permission denied")]
    told = collect(probes, time.monotonic, limit_s=0.2)
    assert [(one.check, one.grade) for one in told] == [
        ("repository", Grade.BAD), ("broker", Grade.WARN), ("runtime", Grade.BAD),
    ]  # fmt: skip
    assert hangs.returncode is not None


def test_without_a_configuration_that_alone_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json", "--config", str(tmp_path / "none.toml")]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [one["check"] for one in told["findings"]] == ["config"]
