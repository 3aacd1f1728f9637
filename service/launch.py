"""Starts temperd: picks the release, checks its files, and becomes it. `python -I -m service.launch run`.

This program always comes from the installed release. It is short, imports little, and ends by turning into what it
starts, in the same process: systemd sees one daemon, and a worker inherits where its code lies.

As root it first becomes the owner of the state folder, for every verb, so that nobody's code runs but by its own
rights; and what it starts cannot type at the terminal that it is started from. docs/updates.md tells what it decides,
`policies.trial` decides it.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent import __version__
from agent.agent_slots import agent_folder, read_standing, site_of, verify_slot, write_standing
from agent.durable import make_folder, only_holder
from agent.errors import ArtifactError, BoardError
from policies.trial import Launch, begin, damaged
from policies.trial_standing import INSTALLED, PLACES, Moment, Stage, Standing
from service.kernel_clock import boot_id, since_boot_s
from service.launched import DEFAULT_CONFIG, LAUNCHER, SAFE_MODE, SLOT, TRIAL
from service.state_lock import LOCK_FILE
from service.state_owner import become_owner
from service.systemd import Notifier
from service.terminal import forbid_typing, has_terminal

DEFAULT_STATE = "/var/lib/temperd"
_NO_START = {"-h", "--help", "--example"}  # with which `run` only says something
MAX_CONFIG_BYTES = 256 << 10  # what `service.config` reads
OPEN_TO_WRITERS = stat.S_IWGRP | stat.S_IWOTH
PAUSE_STEP_S = 5.0  # shorter than any watchdog that makes sense
EXTEND_USEC = 30_000_000  # of the time that systemd gives a start, asked for anew each step

ENVIRONMENT = {"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
"""Of what is started, and of its workers: no code from the folder it happens to stand in, none that nobody checked."""


def main(argv: Sequence[str] | None = None) -> int:
    """Never returns where the chosen release can be started."""
    words = list(sys.argv[1:] if argv is None else argv)
    state = state_folder(words, os.environ)
    if state is None:  # the installed release says what is wrong with the configuration
        return _become(None, words, Launch(INSTALLED))
    become_owner(state)
    if words[:1] == ["run"] and not _NO_START & set(words):
        launch = start(state, Moment(boot_id(), since_boot_s()))
        _pause(launch)
    else:
        launch = Launch(beside(state))
    if launch.place != INSTALLED and has_terminal() and not forbid_typing():
        _say("the installed release is used: nothing keeps another from typing at this terminal")
        launch = Launch(INSTALLED)
    return _become(state, words, launch)


def relaunch(words: Sequence[str]) -> None:
    """Become the launcher again, in the same process; everything must be closed.

    Raises:
        OSError: the system refuses.
    """
    os.execv(sys.executable, [sys.executable, "-I", "-m", LAUNCHER, *words])  # noqa: S606 - no shell


def state_folder(words: Sequence[str], environ: Mapping[str, str]) -> Path | None:
    """The state folder that the configuration names; `None` where it cannot be read.

    Nothing else of the configuration is looked at: the release that is started may know keys that this one does not.
    """
    path = Path(_option(words, "--config") or environ.get("TEMPERD_CONFIG", "") or DEFAULT_CONFIG)
    try:
        with path.open("rb") as stream:
            device = tomllib.loads(stream.read(MAX_CONFIG_BYTES).decode()).get("device", {})
        return path.absolute().parent / str(device.get("state_dir", DEFAULT_STATE))
    except (OSError, ValueError, AttributeError, RecursionError):  # ValueError: no TOML, not UTF-8
        return None


def _option(words: Sequence[str], name: str) -> str:
    for here, word in enumerate(words):
        if word == name and here + 1 < len(words):
            return words[here + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


# --- what is started -------------------------------------------------------------------------------------------------


def start(state: Path, at: Moment) -> Launch:
    """The release that this start of the daemon is for; the start is counted on the disk.

    Where the disk takes nothing the active release starts uncounted: a full disk must not end the board.
    """
    try:
        make_folder(agent_folder(state))
        with only_holder(state / LOCK_FILE, BoardError("another temperd runs")):
            return _counted(state, at)
    except BoardError as error:
        _say(f"this start is not counted: {error}")
        return Launch(beside(state, trials=False))


def _counted(state: Path, at: Moment) -> Launch:
    standing, complaint = read_standing(state)
    if complaint:
        _say(f"what was known of releases is lost, the installed one starts: {complaint}")
    for _ in PLACES:
        after, launch = begin(standing, at, __version__)
        fault = _fault(state, after, launch.place)
        for sentence in launch.said:
            _say(sentence)
        if not fault:
            write_standing(state, after)
            return launch
        _say(f"slot {launch.place} is left: {fault}")
        standing = damaged(after, launch.place, fault)
    raise BoardError("no release can be started")  # not reached: the installed one has no fault to be found


def beside(state: Path, *, trials: bool = True) -> str:
    """The place of the release that runs, for a program beside the daemon."""
    try:
        standing, _ = read_standing(state)
    except BoardError:
        return INSTALLED
    trial = standing.trial
    runs = trials and trial is not None and trial.stage in (Stage.STARTED, Stage.READY)
    place = trial.slot if trial is not None and runs else standing.active
    fault = _fault(state, standing, place)
    if fault:
        _say(f"slot {place} is not used: {fault}")
    return INSTALLED if fault else place


def _fault(state: Path, standing: Standing, place: str) -> str:
    """Why nothing can be started from a place; empty: it can."""
    if place == INSTALLED:
        return ""
    try:
        if foreign := _foreign(state, place):
            return foreign
        release = verify_slot(state, place, standing.contents[place].digest)
    except (ArtifactError, BoardError, OSError) as error:
        return str(error)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    return "" if release.python in (here, "any") else f"it is for Python {release.python}, here is {here}"


def _foreign(state: Path, slot: str) -> str:
    """Who else could have put something into a slot: root with a state in /tmp must not run what lies there."""
    folders = (state.resolve(), agent_folder(state), agent_folder(state) / slot)
    for folder in folders:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            return f"{folder} is no folder"
        if found.st_uid != os.geteuid():
            return f"{folder} belongs to another user"
        if found.st_mode & OPEN_TO_WRITERS:
            return f"others may write into {folder}: chmod go-w"
    return ""


# --- starting it -----------------------------------------------------------------------------------------------------


def _pause(launch: Launch) -> None:
    """Wait before another start of what keeps ending, and let the service manager know."""
    if not launch.pause_s:
        return
    notifier, left = Notifier(), launch.pause_s
    _say(f"started too often, waits {left:g} s")
    while left > 0:
        notifier.status(f"started too often, waits {left:.0f} s more")
        notifier.extend(EXTEND_USEC)
        notifier.watchdog()
        time.sleep(min(PAUSE_STEP_S, left))
        left -= PAUSE_STEP_S
    notifier.extend(EXTEND_USEC)
    notifier.watchdog()


def _become(state: Path | None, words: Sequence[str], launch: Launch) -> int:
    """Turn into the release; returns an exit code only where the system refuses."""
    environ = environment(os.environ, state, launch)
    if launch.ready_s is not None:
        # The kernel's own timer outlives this program: a release that hangs at its start cannot put it off. It has no
        # handler there, so it ends the process; who is ready takes it away.
        signal.setitimer(signal.ITIMER_REAL, launch.ready_s)
    program = [sys.executable, "-P", "-s", "-m", "service", *words]
    try:
        os.execve(sys.executable, program, environ)  # noqa: S606 - no shell
    except OSError as error:
        _say(f"{sys.executable} cannot be started: {error.strerror}")
    return 1


def environment(environ: Mapping[str, str], state: Path | None, launch: Launch) -> dict[str, str]:
    """What the release is started with."""
    made = {name: value for name, value in environ.items() if name not in _OURS} | ENVIRONMENT
    if state is not None:
        made[SLOT] = launch.place
        if launch.safe_mode:
            made[SAFE_MODE] = launch.safe_mode
        if launch.ready_s is not None:
            made[TRIAL] = "1"
        if launch.place != INSTALLED:
            made["PYTHONPATH"] = str(site_of(state, launch.place))
    return made


_OURS = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", SLOT, SAFE_MODE, TRIAL})


def _say(what: str) -> None:
    sys.stderr.write(f"temperd: {what}\n")


if __name__ == "__main__":
    sys.exit(main())
