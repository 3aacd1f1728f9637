from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.agent_slots import agent_folder, read_standing, write_standing
from policies.trial import failed, leaving, staged
from policies.trial_standing import Moment, Standing, Trial
from service.cli import main
from service.launched import LEAVE_SAFE_MODE
from service.state_lock import state_lock

AT = Moment("boot-1", 1.0)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "temperd.toml").write_text(
        '[device]\nname = "b"\nstate_dir = "state"\n[repository]\nurl = "http://127.0.0.1"\nroot = "r.json"\n'
    )
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def launch(state: Path, *words: str) -> int:
    return main(["launch", "--config", str(state.parent / "temperd.toml"), *words])


def test_it_shows_what_starts_what_failed_and_why(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = leaving(staged(Standing(installed="0.1.0"), Trial("a", "0.2.0", "d")), AT, {})
    write_standing(state, failed(left, "trial-heat", "idle: too hot"))
    assert launch(state) == 0
    said = capsys.readouterr().out
    assert "starts     installed (0.1.0)" in said
    assert "ended      0.2.0 rolled_back: trial-heat, idle: too hot" in said
    assert "refused    0.2.0 trial-heat" in said
    assert launch(state, "--json") == 0
    assert json.loads(capsys.readouterr().out)["active"] == "installed"


def test_what_a_release_said_of_its_end_moves_no_cursor(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = leaving(staged(Standing(installed="0.1.0"), Trial("a", "0.2.0", "d")), AT, {})
    write_standing(state, failed(left, "trial-gate", "\x1b]0;root\x07 it\nended"))
    assert launch(state) == 0
    said = capsys.readouterr().out
    assert "ended      0.2.0 rolled_back: trial-gate, ?]0;root? it?ended" in said


def test_a_board_that_was_never_updated_has_nothing_to_hide(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(state) == 0
    assert capsys.readouterr().out.startswith("starts     installed")
    assert list(state.iterdir()) == []


def test_without_a_daemon_safe_mode_is_left_at_once_and_beside_one_it_is_asked_to(state: Path) -> None:
    write_standing(state, Standing(safe_mode="restart-loop"))
    with state_lock(state, ""):
        assert launch(state, "--leave-safe-mode") == 0
    assert read_standing(state)[0].safe_mode, "the daemon writes, nobody else while it runs"
    assert (agent_folder(state) / LEAVE_SAFE_MODE).exists()
    assert launch(state, "--leave-safe-mode") == 0
    assert not read_standing(state)[0].safe_mode


def test_a_broken_standing_is_said(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agent_folder(state).mkdir()
    (agent_folder(state) / "standing.json").write_text("{")
    assert launch(state) == 0
    assert "what was known is lost" in capsys.readouterr().out
