"""Which release of temperd starts next: a new one on trial, the one before, or the installed one in safe mode. Pure.

What is known stands in a `Standing`, which lies on the disk between starts; each function takes one and gives the next.
Laws: there is always something to start; a release that failed is never tried again; between two healthy runs the
board falls back once, then it starts the installed release in safe mode, and never stops trying.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from policies.trial_standing import (
    INSTALLED,
    MAX_KEPT_STARTS,
    MAX_NAME,
    MAX_REFUSED,
    MAX_TEXT,
    MAX_TRIES,
    Content,
    Moment,
    Outcome,
    Refused,
    Stage,
    Standing,
    Trial,
)

MAX_UNREADY = 2  # starts in one boot that were never ready: one may have been stopped by a person, two are a pattern
MAX_STARTS = 4  # in one boot without a healthy run between: then the breaker falls back
WINDOW_S = 3600.0  # starts that lie further back are no loop
PAUSES_S = (0.0, 0.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0)  # before a start, by recent starts: the last for all others


class TrialError(ValueError):
    """A transition that this standing does not allow.

    Args:
        code: `trial-under-way`, `release-refused`, `slot-in-use` or `no-trial`.
    """

    def __init__(self, code: str, what: str) -> None:
        self.code = code
        super().__init__(what)


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start.

    Attributes:
        place: a slot, or `installed`.
        pause_s: to wait before.
        ready_s: when it must be ready; `None`: nothing is on trial.
        said: what was decided on the way, for the log.
    """

    place: str
    pause_s: float = 0.0
    ready_s: float | None = None
    safe_mode: str = ""
    said: tuple[str, ...] = ()


# --- what the daemon does --------------------------------------------------------------------------------------------


def emptied(standing: Standing, slot: str) -> Standing:
    """Before a slot is written: nothing is to start from it any more.

    Raises:
        TrialError: `slot-in-use` or `trial-under-way`.
    """
    if standing.active == slot:
        raise TrialError("slot-in-use", f"slot {slot} is active")
    if standing.trial is not None:
        raise TrialError("trial-under-way", f"{standing.trial.version} is on trial")
    contents = {name: held for name, held in standing.contents.items() if name != slot}
    previous = INSTALLED if standing.previous == slot else standing.previous
    return replace(standing, contents=contents, previous=previous)


def staged(standing: Standing, trial: Trial) -> Standing:
    """The slot holds a whole release that is to be tried.

    Raises:
        TrialError: `trial-under-way`, `slot-in-use`, or `release-refused`: it failed before.
    """
    if standing.is_refused(trial.digest):
        raise TrialError("release-refused", f"{trial.version} failed on this board before")
    after = emptied(standing, trial.slot)
    contents = {**after.contents, trial.slot: Content(trial.version, trial.digest)}
    return replace(after, contents=contents, trial=replace(trial, stage=Stage.STAGED, tries=0, unready=0))


def leaving(standing: Standing, at: Moment, baseline: Mapping[str, object]) -> Standing:
    """The release that runs is about to end so that the trial can begin.

    Args:
        standing: with a trial that is staged.
        at: the last tick.
        baseline: see `Trial`.

    Raises:
        TrialError: `no-trial`.
    """
    trial = _trial(standing)
    if trial.stage != Stage.STAGED:
        raise TrialError("no-trial", "nothing is staged")
    left = replace(trial, stage=Stage.LEAVING, left_s=at.at_s, left_boot=at.boot, baseline=dict(baseline))
    return replace(standing, trial=left)


def ready(standing: Standing, at: Moment) -> Standing:
    """The trial is ready: its window begins.

    Raises:
        TrialError: `no-trial`.
    """
    trial = _trial(standing)
    downtime = trial.downtime_s
    if downtime is None and trial.left_s is not None and trial.left_boot == at.boot and trial.tries <= 1:
        downtime = max(0.0, at.at_s - trial.left_s)
    return replace(standing, trial=replace(trial, stage=Stage.READY, unready=0, downtime_s=downtime))


def committed(standing: Standing, result: Mapping[str, object]) -> Standing:
    """The trial was healthy for its whole window: it is the active release from here on.

    Raises:
        TrialError: `no-trial`.
    """
    trial = _trial(standing)
    outcome = Outcome(
        trial.command_id,
        trial.version,
        standing.version_of(standing.active),
        "succeeded",
        result=_result(trial, result),
    )
    return replace(
        standing, active=trial.slot, previous=standing.active, trial=None, safe_mode="", fell=False, starts=(),
        last=outcome,
        left=None,
    )  # fmt: skip


def failed(standing: Standing, code: str, reason: str, result: Mapping[str, object] | None = None) -> Standing:
    """The trial failed: the release before starts next, and this one never again. Another call finds no trial.

    Raises:
        TrialError: `no-trial`.
    """
    trial = _trial(standing)
    outcome = Outcome(
        trial.command_id, trial.version, standing.version_of(standing.active), "rolled_back", code[:MAX_NAME],
        reason[:MAX_TEXT], _result(trial, result or {}),
    )  # fmt: skip
    refused = _refuse(standing, Refused(trial.digest, trial.version, code[:MAX_NAME]))
    return replace(standing, trial=None, refused=refused, fell=True, starts=(), last=outcome)


def healthy(standing: Standing) -> Standing:
    """The active release ran well for a while: what was before is no loop, and it may fall back again."""
    return standing if standing.trial else replace(standing, starts=(), fell=False)


def stopped(standing: Standing) -> Standing:
    """It was told to stop and stopped: this start counts neither as a loop nor against the trial."""
    trial = standing.trial
    if trial is not None and trial.stage in (Stage.STARTED, Stage.READY):
        return replace(
            standing, trial=replace(trial, stage=Stage.LEAVING, tries=max(0, trial.tries - 1), unready=0, left_s=None)
        )
    return replace(standing, starts=standing.starts[:-1])


def opened(standing: Standing) -> Standing:
    """The owner leaves safe mode: the installed release works again."""
    return replace(standing, safe_mode="", fell=False, starts=())


# --- what the launcher does ------------------------------------------------------------------------------------------


def begin(standing: Standing, at: Moment, installed: str) -> tuple[Standing, Launch]:
    """What starts now, and the standing to be kept before it does.

    Args:
        standing: as the last start left it.
        at: now.
        installed: version of the installed release.
    """
    said: list[str] = []
    standing = _after_upgrade(standing, installed, said)
    standing = _judge_trial(standing, at, said)
    trial = standing.trial
    if trial is not None and trial.stage != Stage.STAGED:
        unready = trial.unready + 1 if trial.boot == at.boot else 1
        begun = replace(trial, stage=Stage.STARTED, tries=trial.tries + 1, unready=unready, boot=at.boot)
        launch = Launch(trial.slot, ready_s=trial.ready_s, said=tuple(said))
        return replace(standing, trial=begun), launch
    standing = _break_loop(standing, at, said)
    recent = _recent(standing, at)
    pause = PAUSES_S[min(len(recent), len(PAUSES_S) - 1)]
    starts = (*recent, at)[-MAX_KEPT_STARTS:]
    launch = Launch(standing.active, pause, safe_mode=standing.safe_mode, said=tuple(said))
    return replace(standing, starts=starts), launch


def damaged(standing: Standing, place: str, why: str) -> Standing:
    """Files of a slot are not what was signed: nothing starts from it."""
    if standing.trial is not None and standing.trial.slot == place:
        standing = failed(standing, "slot-damaged", why)
    if standing.active == place:
        held = standing.version_of(place)
        active = standing.previous if standing.previous != place else INSTALLED
        outcome = Outcome("", held, standing.version_of(active), "rolled_back", "slot-damaged", why[:MAX_TEXT])
        standing = replace(standing, active=active, previous=INSTALLED, starts=(), left=outcome)
    contents = {slot: held for slot, held in standing.contents.items() if slot != place}
    previous = INSTALLED if standing.previous == place else standing.previous
    return replace(standing, contents=contents, previous=previous)


def _after_upgrade(standing: Standing, installed: str, said: list[str]) -> Standing:
    """Somebody installed another release on the board itself: that is the one they want."""
    if standing.installed in ("", installed):
        return replace(standing, installed=installed)
    said.append(f"{installed} was installed in place of {standing.installed}: it starts")
    if standing.trial is not None:
        standing = replace(
            failed(standing, "superseded", f"{installed} was installed meanwhile"), refused=standing.refused
        )
    previous = standing.active if standing.active != INSTALLED else standing.previous
    return replace(
        standing, active=INSTALLED, previous=previous, installed=installed, safe_mode="", fell=False, starts=()
    )


def _judge_trial(standing: Standing, at: Moment, said: list[str]) -> Standing:
    trial = standing.trial
    if trial is None or trial.stage in (Stage.STAGED, Stage.LEAVING):
        return standing
    code, why = "", ""
    if trial.stage == Stage.STARTED and trial.boot == at.boot and trial.unready >= MAX_UNREADY:
        code, why = "start-failed", f"it was not ready in {trial.unready} starts"
    elif trial.tries >= MAX_TRIES:
        code, why = "crashed", f"it ended {trial.tries} times in its trial"
    if not code:
        return standing
    said.append(f"{trial.version} is left: {why}")
    return failed(standing, code, why)


def _break_loop(standing: Standing, at: Moment, said: list[str]) -> Standing:
    """A release that keeps ending is left: once for the one before it, then for the installed one in safe mode."""
    if len(_recent(standing, at)) < MAX_STARTS or standing.safe_mode:
        return standing
    active, why = standing.active, f"it was started {MAX_STARTS} times and ran healthily never"
    held = standing.contents.get(active)
    refused = standing.refused
    if held is not None:
        refused = _refuse(standing, Refused(held.digest, held.version, "restart-loop"))
    other = standing.previous if standing.previous != active else INSTALLED
    may_fall = not standing.fell and other != active
    to = other if may_fall else INSTALLED
    said.append(f"{standing.version_of(active)} is left: {why}" + ("" if may_fall else "; safe mode"))
    outcome = Outcome("", standing.version_of(active), standing.version_of(to), "rolled_back", "restart-loop", why)
    return replace(
        standing, active=to, previous=INSTALLED, refused=refused, fell=True, starts=(), left=outcome,
        safe_mode="" if may_fall else "restart-loop",
    )  # fmt: skip


def _recent(standing: Standing, at: Moment) -> tuple[Moment, ...]:
    """Starts of this boot that are no further back than the window; a power cut is nobody's crash."""
    return tuple(one for one in standing.starts if one.boot == at.boot and 0.0 <= at.at_s - one.at_s < WINDOW_S)


def _refuse(standing: Standing, one: Refused) -> tuple[Refused, ...]:
    others = [kept for kept in standing.refused if kept.digest != one.digest]
    return tuple([*others, one][-MAX_REFUSED:])


def _result(trial: Trial, result: Mapping[str, object]) -> dict[str, object]:
    return {"version": trial.version, "downtime_s": trial.downtime_s, **result}


def _trial(standing: Standing) -> Trial:
    if standing.trial is None:
        raise TrialError("no-trial", "nothing is on trial")
    return standing.trial
