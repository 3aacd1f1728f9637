"""The launcher, as the process that it is. Releases here are programs of a few lines that say how they were started."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import __version__
from agent.agent_slots import fill_slot, read_standing, site_of, stage_folder, write_standing
from policies.trial import MAX_STARTS, Launch, begin, committed, leaving, ready, staged
from policies.trial_standing import INSTALLED, Moment, Standing, Trial
from service import launch as launcher
from service import terminal
from service.kernel_clock import boot_id, since_boot_s
from service.launch import environment, state_folder
from service.launched import Launched
from service.state_lock import state_lock
from service.state_owner import owner_of
from tests.simulators.fleet import ROOT
from tests.simulators.installed import PACKAGES, list_files
from tests.simulators.kill_matrix import kill_matrix

SAYS = """
import json, os, sys
print(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ), "path": sys.path, "uid": os.geteuid()}))
"""
CRASHES_THEN_HANGS = """
import pathlib, sys, time
mark = pathlib.Path(sys.argv[-1] + ".started")
if not mark.exists():
    mark.touch()
    sys.exit(1)
time.sleep(600)
"""
TYPES = """
import errno, fcntl, json, os, subprocess, sys, termios
def type_x():
    try:
        fcntl.ioctl(0, termios.TIOCSTI, b"x")
    except OSError as error:
        return errno.errorcode[error.errno]
if sys.argv[-1] == "child":
    sys.exit(print(type_x()))
child = subprocess.run([sys.executable, __file__, "child"], stdout=subprocess.PIPE, text=True).stdout.strip()
print(json.dumps({"uid": os.geteuid(), "terminal": os.isatty(0), "errors": [type_x(), child]}))
"""
EXIT_CONFIG = 78


class Board:
    """A state folder, a configuration that the installed release refuses, and slots.

    So whether the installed release was started shows in its exit code, without a daemon.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.state = folder, folder / "state"
        self.state.mkdir(mode=0o700)
        self.config = folder / "temperd.toml"
        self.config.write_text('[device]\nname = "b"\nstate_dir = "state"\n[no-such-section]\n')

    def fill(self, slot: str, program: str, python: str = "") -> str:
        site = stage_folder(self.state) / "site" / "service"
        site.mkdir(parents=True)
        (site / "__init__.py").write_text("")
        (site / "__main__.py").write_text(program)
        digest = list_files(stage_folder(self.state), "2.0", python)
        fill_slot(self.state, slot, digest)
        return digest

    def keeps(self, standing: Standing) -> None:
        write_standing(self.state, standing)

    def on_trial(self, program: str, ready_s: float = 60.0) -> None:
        trial = Trial("a", "2.0", self.fill("a", program), "command-1", ready_s=ready_s)
        self.keeps(leaving(staged(Standing(), trial), self.now(), {}))

    def runs(self, program: str, python: str = "") -> None:
        """A release that has stayed."""
        trial = Trial("a", "2.0", self.fill("a", program, python))
        left = leaving(staged(Standing(), trial), self.now(), {})
        self.keeps(committed(ready(left, self.now()), {}))

    def now(self) -> Moment:
        return Moment(boot_id(), since_boot_s())

    def launch(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TEMPERD"))}
        return subprocess.run(
            [sys.executable, "-I", "-m", "service.launch", *(words or ("run", "--config", str(self.config)))],
            capture_output=True, text=True, timeout=120, env={**kept, **environ}, cwd=self.folder, check=False,
        )  # fmt: skip

    def standing(self) -> Standing:
        return read_standing(self.state)[0]


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_a_board_that_was_never_updated_starts_what_is_installed(board: Board) -> None:
    done = board.launch()
    assert done.returncode == EXIT_CONFIG
    assert "no-such-section" in done.stderr
    assert len(board.standing().starts) == 1


def test_the_active_release_starts_with_its_own_code_and_none_that_nobody_checked(board: Board) -> None:
    board.runs(SAYS)
    (board.folder / "json.py").write_text("raise SystemExit('code of the folder')")
    done = board.launch(PYTHONPATH="evil", PYTHONSTARTUP="evil.py", TEMPERD_SAFE_MODE="x", PAGER="less")
    said = json.loads(done.stdout)
    site = str(site_of(board.state, "a"))
    assert said["argv"] == ["run", "--config", str(board.config)]
    assert said["env"]["PYTHONPATH"] == site
    assert said["path"][0] == site
    assert said["env"]["TEMPERD_SLOT"] == "a"
    assert not {"TEMPERD_TRIAL", "TEMPERD_SAFE_MODE", "PYTHONSTARTUP"} & said["env"].keys()
    assert (said["env"]["PAGER"], said["env"]["PYTHONDONTWRITEBYTECODE"]) == ("less", "1")
    assert board.launch("status", "--config", str(board.config)).stdout.startswith('{"argv": ["status"')
    assert len(board.standing().starts) == 1, "a verb beside the daemon is no start of it"


@pytest.mark.parametrize("what", ["rot", "python"])
def test_a_release_that_cannot_be_started_is_left_for_the_installed_one_and_that_is_said(
    board: Board, what: str
) -> None:
    board.runs(SAYS, python="2.7" if what == "python" else "")
    if what == "rot":
        (site_of(board.state, "a") / "service" / "__main__.py").write_text(SAYS + "\n")
    done = board.launch()
    assert done.returncode == EXIT_CONFIG
    assert "slot a is left" in done.stderr
    standing = board.standing()
    assert (standing.active, standing.left and standing.left.code) == (INSTALLED, "slot-damaged")


def test_a_trial_is_told_to_the_release_and_one_that_hangs_is_ended_by_the_kernel_and_left(board: Board) -> None:
    board.on_trial(SAYS)
    assert json.loads(board.launch().stdout)["env"]["TEMPERD_TRIAL"] == "1"
    board.on_trial(CRASHES_THEN_HANGS, ready_s=2.0)
    codes = [board.launch().returncode for _ in range(3)]
    assert codes == [1, -signal.SIGALRM, EXIT_CONFIG]
    last = board.standing().last
    assert last is not None
    assert (last.status, last.code, last.command_id) == ("rolled_back", "start-failed", "command-1")


def test_a_restart_loop_ends_in_safe_mode_of_the_installed_release(board: Board) -> None:
    board.runs("raise SystemExit(1)")
    now = board.now()
    board.keeps(committed_with_starts(board.standing(), now))
    assert board.launch().returncode == EXIT_CONFIG
    standing = board.standing()
    assert (standing.active, standing.fell, standing.safe_mode) == (INSTALLED, True, "")
    board.keeps(committed_with_starts(standing, now))
    done = board.launch()
    assert "safe mode" in done.stderr
    assert board.standing().safe_mode == "restart-loop"


def committed_with_starts(standing: Standing, now: Moment) -> Standing:
    """As after so many starts that were not healthy."""
    return Standing(**{**{name: getattr(standing, name) for name in Standing.__slots__}, "starts": (now,) * MAX_STARTS})


def test_a_broken_standing_starts_the_installed_release_and_a_second_daemon_is_not_counted(board: Board) -> None:
    (board.state / "agent").mkdir()
    (board.state / "agent" / "standing.json").write_text("{")
    assert "is lost" in board.launch().stderr
    with state_lock(board.state, ""):
        assert "not counted" in board.launch().stderr
    assert len(board.standing().starts) == 1


@pytest.mark.parametrize("name", ["agent/standing.json", "lock"])
def test_a_pipe_in_a_files_place_holds_no_start_up(board: Board, name: str) -> None:
    (board.state / "agent").mkdir()
    os.mkfifo(board.state / name)
    assert board.launch().returncode == EXIT_CONFIG


def test_without_room_for_the_standing_what_is_active_starts_all_the_same(board: Board) -> None:
    (board.state / "agent").write_text("in the way")
    done = board.launch()
    assert done.returncode == EXIT_CONFIG
    assert "not counted" in done.stderr


@pytest.mark.parametrize("what", ["a trial begins", "a trial has failed", "a loop is broken"])
def test_no_kill_of_a_start_leaves_anything_but_what_was_or_what_is_decided(
    tmp_path: Path, board: Board, what: str
) -> None:
    board.on_trial(SAYS)
    if what == "a loop is broken":
        board.keeps(committed_with_starts(committed(ready(board.standing(), board.now()), {}), board.now()))
    elif what == "a trial has failed":
        for _ in range(2):
            board.keeps(begin(board.standing(), board.now(), __version__)[0])
    before, at = board.standing(), board.now()
    after, decided = begin(before, at, __version__)

    def check(state: Path) -> None:
        standing, complaint = read_standing(state)
        assert complaint == ""
        assert standing in (before, after)
        next_one = begin(standing, at, __version__)[1]
        assert next_one.place == decided.place or (what == "a trial begins" and next_one.place == INSTALLED)

    cells = kill_matrix(board.state, tmp_path, lambda state: launcher.start(state, at), check)
    sys.stdout.write(f"launcher, {what}: {cells} cells\n")


def test_a_pause_is_told_to_the_service_manager_so_that_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        launcher._pause(Launch(INSTALLED, pause_s=0.1))
        told = [heard.recv(500).decode() for _ in range(5)]
    assert told == [
        "STATUS=started too often, waits 0 s more",
        *("EXTEND_TIMEOUT_USEC=30000000", "WATCHDOG=1") * 2,
    ]


SYSTEM_PYTHON = "/usr/bin/python3"  # what every user may run; this environment's may lie in a closed folder
NOBODY = 65534


@pytest.fixture
def foreign() -> Iterator[Board]:
    """A board whose state belongs to `nobody`, and a copy of the packages, in a folder that everybody may enter."""
    asked = [SYSTEM_PYTHON, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if os.geteuid() != 0 or not Path(SYSTEM_PYTHON).exists() or subprocess.run(asked, check=False).returncode:
        pytest.skip("needs root, and the system's Python of 3.11 or later")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    yield Board(folder)
    shutil.rmtree(folder)


def started_by_root(foreign: Board, verb: str, program: str, *before: str) -> subprocess.CompletedProcess[str]:
    version = subprocess.run(
        [SYSTEM_PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    foreign.runs(program, python=version)
    for path in (foreign.state, *foreign.state.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    start = "import sys; sys.path.insert(0, sys.argv[1]); import service.launch; service.launch.main(sys.argv[2:])"
    words = [SYSTEM_PYTHON, "-I", "-c", start, str(foreign.folder), verb, "--config", str(foreign.config)]
    return subprocess.run(
        [*before, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("verb", ["run", "status"])
def test_root_becomes_the_owner_of_the_state_before_anything_of_a_slot_runs(foreign: Board, verb: str) -> None:
    done = started_by_root(foreign, verb, SAYS)
    said = json.loads(done.stdout)
    assert (said["uid"], said["env"]["TEMPERD_SLOT"]) == (NOBODY, "a"), done.stderr


def test_what_runs_from_a_slot_cannot_type_at_the_terminal_of_who_started_it(foreign: Board) -> None:
    if os.uname().machine not in terminal._IOCTL:
        pytest.skip("no filter for this machine: there the installed release runs")
    spawn = "import pty, sys; pty.spawn(sys.argv[1:])"
    done = started_by_root(foreign, "status", TYPES, SYSTEM_PYTHON, "-c", spawn)
    said = json.loads(done.stdout)
    assert said == {"uid": NOBODY, "terminal": True, "errors": ["EPERM", "EPERM"]}, done.stderr


def test_roots_group_is_not_kept_by_a_folder_that_only_changed_hands(board: Board) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.chown(board.state, NOBODY, 0)
    assert owner_of(board.state) == (NOBODY, pwd.getpwuid(NOBODY).pw_gid)


@pytest.mark.parametrize("what", ["shared", "led elsewhere"])
def test_a_slot_that_others_may_have_filled_is_not_started(board: Board, what: str) -> None:
    board.runs(SAYS)
    agent = board.state / "agent"
    if what == "shared":
        board.state.chmod(0o1777)
    else:
        agent.rename(board.folder / "elsewhere")
        agent.symlink_to(board.folder / "elsewhere")
    done = board.launch()
    assert done.returncode == EXIT_CONFIG
    assert ("others may write into" if what == "shared" else "is no folder") in done.stderr


def test_a_slot_of_another_user_is_not_started(board: Board) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    board.runs(SAYS)
    os.chown(board.state / "agent", NOBODY, NOBODY)
    done = board.launch()
    assert done.returncode == EXIT_CONFIG
    assert "another user" in done.stderr


# --- what needs no process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "environ", "name"),
    [
        (["run", "--config", "{}/one.toml"], {}, "a"),
        (["run", "--config={}/one.toml"], {"TEMPERD_CONFIG": "nowhere"}, "a"),
        (["run"], {"TEMPERD_CONFIG": "{}/one.toml"}, "a"),
        (["run", "--config"], {"TEMPERD_CONFIG": "{}/none.toml"}, None),
        (["run", "--config", "{}/bad.toml"], {}, None),
    ],
)
def test_the_state_folder_is_found_as_the_daemon_finds_it(
    tmp_path: Path, words: list[str], environ: dict[str, str], name: str | None
) -> None:
    (tmp_path / "one.toml").write_text('[device]\nstate_dir = "a"\n[later]\nkey = 1\n')
    (tmp_path / "bad.toml").write_text("[device")
    words = [word.format(tmp_path) for word in words]
    environ = {key: value.format(tmp_path) for key, value in environ.items()}
    assert state_folder(words, environ) == (tmp_path / name if name else None)


def test_what_the_launcher_says_is_read_back() -> None:
    made = environment({"TEMPERD_TRIAL": "1"}, Path("/s"), Launch(INSTALLED, safe_mode="restart-loop"))
    assert Launched.of(made) == Launched(INSTALLED, "restart-loop")
    assert Launched.of(environment({}, Path("/s"), Launch("b", ready_s=5.0))) == Launched("b", "", on_trial=True)
    assert Launched.of({"TEMPERD_SAFE_MODE": "x", "TEMPERD_SLOT": "c"}) == Launched(), "not by the launcher"
    assert "TEMPERD_SLOT" not in environment({}, None, Launch(INSTALLED))
