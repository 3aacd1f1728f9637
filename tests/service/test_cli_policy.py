"""`temperd policy`, and what `fleet send` makes of a policy."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from service import cli_fleet
from service.cli import main
from service.cli_fleet import policy_lines
from service.commands import MAX_ENVELOPE_BYTES
from service.live import write_live
from service.policy_file import COPY, PolicyFile


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_a_good_policy_is_ok_and_its_differences_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, 'name = "mine"\n[thermal.hot]\nduty = 0.4\n[schedule]\nquiet = "22:00-07:00"\n')
    assert main(["policy", "check", path]) == 0
    said = capsys.readouterr().out
    assert f"{path}: ok, a policy named 'mine'" in said
    assert "thermal.hot.duty = 0.4" in said
    assert 'schedule.quiet = "22:00-07:00"' in said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[thermal.slow]\ndutty = 0.5", "thermal.slow.dutty"),
        ("[thermal.slow]\ndelta_kelvin = 34.0", "trips must rise: slow 34.0, hot 33.0, pause 35.0"),
        ("[thermal", "not TOML"),
    ],
)
def test_a_bad_policy_ends_with_2_and_says_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    assert main(["policy", "check", write(tmp_path, text)]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("args", [["nowhere.toml"], ["raspberry-pi-4", "--board", "toaster"]])
def test_what_is_not_there_ends_with_2_and_says_what_is(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert main(["policy", "check", *args]) == 2
    assert "raspberry-pi-4" in capsys.readouterr().err


def test_a_board_says_what_clocks_come_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "check", "default", "--board", "raspberry-pi-5"]) == 0
    said = capsys.readouterr().out
    assert "thermal.slow.frequency_ratio 0.8: 1900 of 2400 MHz" in said
    assert "note: thermal.hot.frequency_ratio 0.6 asks for at most 1440 MHz" in said
    assert main(["policy", "check", "raspberry-pi-5", "--board", "raspberry-pi-5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["notes"]) == (True, [])
    assert found["clocks_hz"]["thermal.hot.frequency_ratio"] == 1_500_000_000


def test_show_says_what_is_in_force(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policies = PolicyFile(state, write(state.parent, 'name = "mine"\n[thermal.hot]\nduty = 0.4\n'), "default")
    assert main(["policy", "show", "--state", str(state)]) == 0
    assert "policy 'mine', when the daemon last ran" in capsys.readouterr().out
    write(state.parent, "[thermal")
    for _ in range(2):
        policies.look()
    (state / "run").mkdir()
    write_live(state / "run", {"mono_s": time.monotonic(), "policy": policies.shown()})
    assert main(["policy", "show", "--state", str(state)]) == 0
    said = capsys.readouterr().out
    assert f"policy 'mine', from file: {state.parent / 'mine.toml'}" in said
    assert "not in force: not TOML" in said
    assert "thermal.hot.duty = 0.4" in said
    assert main(["policy", "show", "--state", str(state), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["running"], found["source"], found["policy"]["thermal"]["hot"]["duty"]) == (True, "file", 0.4)
    assert main(["policy", "show", "--state", str(state), "--toml"]) == 0
    assert capsys.readouterr().out == 'name = "mine"\n[thermal.hot]\nduty = 0.4\n'


def test_show_where_no_daemon_ever_ran_fails(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", "--state", str(state)]) == 1
    assert "no policy was ever in force here" in capsys.readouterr().err


def test_fleet_send_reads_a_file_a_name_or_reset(tmp_path: Path) -> None:
    text = 'name = "mine"\n'
    assert cli_fleet.arguments("set-policy", write(tmp_path, text)) == {"text": text}
    assert cli_fleet.arguments("set-policy", "raspberry-pi-4") == {"name": "raspberry-pi-4"}
    assert cli_fleet.arguments("set-policy", "reset") == {"reset": True}


@pytest.mark.parametrize(
    ("text", "says"),
    [("[thermal", "not TOML"), ("#" * MAX_ENVELOPE_BYTES, "boards read at most"), (None, "no such policy")],
)
def test_fleet_send_refuses_before_it_sends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, says: str
) -> None:
    assert main(["keys", "console", "alice", "--out", str(tmp_path)]) == 0
    path = str(tmp_path / "gone.toml") if text is None else write(tmp_path, text)
    send = ["fleet", "send", "board-1", "set-policy", path, "--key", str(tmp_path / "alice.key")]
    assert main(send) == 2
    assert says in capsys.readouterr().err


def test_what_a_console_changed_is_shown_key_by_key() -> None:
    changed = {"name": {"from": "a", "to": "b"}, "thermal.slow.duty": {"from": 0.75, "to": 0.6}}
    told = policy_lines({"name": "b", "source": "command", "changed": changed})
    assert told == ["policy in force: b, by command", "thermal.slow.duty: 0.75 -> 0.6"]
    assert policy_lines({"accuracy_after": 0.9}) == []


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_pipe_in_a_policys_place_is_refused_and_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    pipe = tmp_path / COPY
    os.mkfifo(pipe)
    arguments = ["check", str(pipe)] if command == "check" else ["show", "--state", str(tmp_path)]
    assert main(["policy", *arguments]) == 2
    assert "the policy file is no file" in capsys.readouterr().err
