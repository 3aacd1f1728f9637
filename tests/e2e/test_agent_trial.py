"""Releases on trial on a board as installed: real launcher, real daemon, real broker. `make update-test` (minutes)."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from agent.agent_slots import write_standing
from policies.trial_health import SETTLE_S
from policies.trial_standing import INSTALLED, Standing, Trial
from service.commands import sign_command
from tests.simulators.fleet import ROOT
from tests.simulators.installed import Installed, ask_trial, fill_free, installed, stage_release

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not os.environ.get("TEMPERD_UPDATES"), reason="takes minutes: make update-test"),
]

WINDOW_S = 12.0
NEW = "9.0.0"
CRASHES = {"service/daemon.py": "raise SystemExit('broken')\n"}
HANGS = {"service/daemon.py": "import time\ntime.sleep(600)\n"}


def ended(board: Installed, version: str = NEW) -> Standing:
    """The standing once the trial of a version has ended and something else, or the same, is ready."""
    standing = board.until(lambda now: now.last and now.last.version == version and now.trial is None and now)
    board.wait(lambda: board.versions()[-1] == standing.version_of(standing.active))
    return standing


def alarms(board: Installed) -> dict[str, object]:
    """Types of alarm that are raised at the broker."""
    found: dict[str, object] = {}
    for heard in board.tap.heard if board.tap else []:
        if "/a/" in heard.topic:
            found[heard.topic.rpartition("/")[2]] = json.loads(heard.payload) if heard.payload else None
    return {kind: told for kind, told in found.items() if told}


def test_a_good_release_stays_and_the_work_goes_on(tmp_path: Path) -> None:
    with installed(tmp_path) as board:
        pid = board.manager.child and board.manager.child.pid
        board.update(NEW, window_s=WINDOW_S)
        standing = ended(board)
        assert (standing.active, standing.previous) == ("a", INSTALLED)
        assert standing.last is not None
        assert standing.last.status == "succeeded"
        assert board.manager.child is not None
        assert (board.manager.child.pid, board.manager.codes) == (pid, []), "one process for the service manager"
        assert "STOPPING=1" not in board.manager.told
        downtime = standing.last.result["downtime_s"]
        assert isinstance(downtime, float)
        sys.stdout.write(f"downtime of a good update: {downtime:.2f} s\n")
        board.manager.stop()
        assert board.standing().starts == (), "a stop is no crash"


@pytest.mark.parametrize("changes", [{}, CRASHES], ids=["stays", "is-left"])
def test_a_job_that_trains_goes_on_from_its_checkpoint_whichever_release_runs(
    tmp_path: Path, changes: dict[str, str]
) -> None:
    with installed(tmp_path) as board:
        board.publish()
        digest = stage_release(board.state, NEW, changes)
        slot = fill_free(board.state, digest)  # takes seconds, in which the job would end
        request = board.request("fine-tune", board.job(board.images(), epochs=1000))
        envelope = sign_command(request, board.console_key)
        board.send_envelope("fine-tune", request.id, envelope, until=("running",))
        board.wait(lambda: (found := board.record(request.id)) and found.standing.state == "TRAINING")
        ask_trial(board.state, Trial(slot, NEW, digest, window_s=WINDOW_S))
        assert ended(board).active == (INSTALLED if changes else "a")
        assert b"job put aside" in board.log()
        job = board.ended(request.id, 600.0)
        assert job.standing.state == "SUCCEEDED", job.standing
        assert job.standing.attempt == 1, "put aside at its checkpoint, not interrupted"


@pytest.mark.parametrize("changes", [CRASHES, HANGS], ids=["crashes", "hangs"])
def test_a_release_that_does_not_start_is_left_once(tmp_path: Path, changes: dict[str, str]) -> None:
    with installed(tmp_path) as board:
        board.update(NEW, changes, window_s=WINDOW_S, ready_s=10.0)
        standing = ended(board)
        assert standing.last is not None
        assert (standing.active, standing.last.status, standing.last.code) == (INSTALLED, "rolled_back", "start-failed")
        assert board.manager.codes == ([1, 1] if changes is CRASHES else [-signal.SIGALRM] * 2)
        board.wait(lambda: "agent-rolled-back" in alarms(board))
        assert board.versions() == ["0.1.0", "0.1.0"]


def test_a_release_that_refuses_the_configuration_is_left_and_not_the_end(tmp_path: Path) -> None:
    refuses = 'from agent.errors import ConfigError\nraise ConfigError("no such key")\n'
    with installed(tmp_path) as board:
        board.update(NEW, {"service/daemon.py": refuses}, window_s=WINDOW_S)
        standing = ended(board)
        assert standing.last is not None
        assert standing.last.code == "start-failed"
        assert 78 not in board.manager.codes


def test_a_release_that_cannot_use_the_model_is_left(tmp_path: Path) -> None:
    broken = 'raise ImportError("libonnxruntime.so: cannot open shared object file")\n'
    with installed(tmp_path) as board:
        board.update(NEW, {"agent/engine/infer.py": broken}, window_s=WINDOW_S)
        standing = ended(board)
        assert standing.last is not None
        assert (standing.last.status, standing.last.code) == ("rolled_back", "trial-gate")


def test_a_release_that_finds_no_broker_is_left(tmp_path: Path) -> None:
    deaf = "\n\ndef _deaf(*_: object, **__: object) -> None:\n    pass\n\n\nConnection._dial = _deaf\n"
    link = (ROOT / "service" / "link.py").read_text() + deaf
    with installed(tmp_path) as board:
        board.wait(lambda: b" connected " in board.log())
        board.update(NEW, {"service/link.py": link}, window_s=WINDOW_S)
        standing = ended(board)
        assert standing.last is not None
        assert (standing.last.status, standing.last.code) == ("rolled_back", "trial-link")


HEATS = """
import os, sys, threading, time
from pathlib import Path
from service.cli import main

def heat():
    board = Path(os.environ["STATE"]) / "run" / "board"
    while True:
        time.sleep(0.2)
        if board.exists():
            (board / "inject.json").write_text('{"heat_watts": 3.5}')

threading.Thread(target=heat, daemon=True).start()
sys.exit(main())
"""


def test_a_release_that_heats_the_board_is_left_exactly_once_and_says_by_how_much(tmp_path: Path) -> None:
    heats = HEATS.replace('os.environ["STATE"]', repr(str(tmp_path / "state")))
    with installed(tmp_path, speed=60.0) as board:
        # The release before has to know how warm the board is at rest: two minutes to settle after its first scrub, and
        # readings from then on.
        scrubbed = board.wait(lambda: b"scrub ended" in board.log() and time.monotonic(), 180.0)
        board.wait(lambda: time.monotonic() - scrubbed > SETTLE_S + 20.0, SETTLE_S + 60.0)
        board.update(NEW, {"service/__main__.py": heats}, window_s=40.0)
        standing = ended(board)
        assert standing.last is not None
        assert (standing.active, standing.last.code) == (INSTALLED, "trial-heat"), standing.last
        sys.stdout.write(f"left for heat: {standing.last.reason}\n")
        assert board.versions() == ["0.1.0", NEW, "0.1.0"]
        board.update("9.0.1", window_s=WINDOW_S)
        assert ended(board, "9.0.1").last.status == "succeeded"  # type: ignore[union-attr]
        assert board.versions() == ["0.1.0", NEW, "0.1.0", "9.0.1"]


def test_where_the_one_before_is_bad_too_the_board_is_in_safe_mode_and_another_release_leads_out(
    tmp_path: Path,
) -> None:
    bad = tmp_path / "bad"
    main = (ROOT / "service" / "__main__.py").read_text()
    ages = f"import sys\nfrom pathlib import Path\n\nif Path({str(bad)!r}).exists():\n    sys.exit(1)\n"
    with installed(tmp_path) as board:
        board.update("8.0.0", {"service/__main__.py": ages + main}, window_s=WINDOW_S)
        assert ended(board, "8.0.0").active == "a"
        bad.touch()
        board.update(NEW, CRASHES, window_s=WINDOW_S)
        standing = board.until(lambda now: now.safe_mode)
        assert (standing.active, standing.safe_mode) == (INSTALLED, "restart-loop")
        board.wait(lambda: board.versions()[-1] == "0.1.0")
        safe = board.wait(lambda: alarms(board).get("safe-mode"))
        assert safe["severity"] == "critical"
        refused = board.send("fine-tune", board.job("/srv"))
        assert (refused["status"], refused["reason_code"]) == ("rejected", "safe-mode")
        assert board.send("collect-report", {})["status"] == "succeeded"
        board.update("9.0.2", window_s=WINDOW_S)
        assert ended(board, "9.0.2").safe_mode == ""
        board.wait(lambda: "safe-mode" not in alarms(board))


def test_the_owner_leads_a_board_out_of_safe_mode(tmp_path: Path) -> None:
    write_standing(tmp_path / "state", Standing(safe_mode="restart-loop", installed="0.1.0"))
    with installed(tmp_path) as board:
        board.wait(lambda: "safe-mode" in alarms(board))
        assert board.cli("launch", "--leave-safe-mode").returncode == 0
        board.until(lambda now: not now.safe_mode)
        board.wait(lambda: len(board.versions()) == 2)
        board.wait(lambda: "safe-mode" not in alarms(board))


def test_a_kill_at_any_moment_of_an_update_leaves_one_release_that_runs(tmp_path: Path) -> None:
    moments = (0.0, 0.3, 0.6, 1.0, 1.5, 2.5, 4.0, 8.0)
    with installed(tmp_path) as board:
        for number, moment in enumerate(moments):
            version = f"9.{number}.0"
            board.update(version, window_s=WINDOW_S)
            board.wait(lambda: b"leaves for the release on trial" in board.log().rpartition(b"staged")[2])
            child, until = board.manager.child, time.monotonic() + moment
            board.wait(lambda until=until: time.monotonic() >= until)
            assert child is not None
            child.kill()
            standing = ended(board, version)
            assert standing.last is not None
            assert standing.last.status == "succeeded", (moment, standing.last)
            with (board.folder / "daemon.log").open("ab") as log:
                log.write(b"staged\n")
        assert board.versions()[-1] == f"9.{len(moments) - 1}.0"
