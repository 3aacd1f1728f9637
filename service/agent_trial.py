"""A release on trial as the daemon sees it from inside: the window that it must be healthy for, and what follows.

The launcher (`service.launch`) decides what starts; here the release that runs says how it is. On trial it is committed
after its window, or falls back at once; the one before the trial leaves for it, and measures what it is held against.
Whatever is decided is on the disk before it is done; `service.agent_update` tells it from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent import __version__
from agent.agent_slots import KeptStanding, agent_folder, write_standing
from agent.durable import remove
from agent.energy import TRAINING as TRAINS
from agent.errors import BoardError
from agent.messages import SelfTestOrder
from policies.trial import TrialError, committed, failed, healthy, leaving, opened, ready, stopped
from policies.trial_health import (
    IDLE,
    LEAST_SHARE,
    TRAINING,
    Baseline,
    HeatBook,
    HeatMargins,
    baseline_of,
    compared,
    settle_s,
    too_hot,
)
from policies.trial_standing import Moment, Stage, Standing, Trial
from service.launched import LEAVE_SAFE_MODE, Launched
from service.logs import logger
from service.self_test import self_test
from service.statuses import Clock
from service.steering import Steering
from service.worker_process import StartWorker, WorkerProcess

HEALTHY_S = 120.0  # a release that ran for so long after it was ready does not end at each start
AGAIN_S = 60.0  # after a start that should have been the trial's: the disk refused, and a loop helps nobody
GATE_S = 300.0  # after the window: a self-test waits for what is at work, and takes seconds
CRITICAL = "thermal.critical"

log = logger("trial")


@dataclass(frozen=True, slots=True)
class TrialShop:
    """What the trial is held with.

    Attributes:
        state: the daemon's state folder.
        launched: how this process was started.
        threads: of a worker.
        nice: scheduling priority of a worker.
        moment: boot id and seconds since boot.
        connected: whether there is a broker.
        busy: something is at work that a restart would spoil: a release that is staged waits.
        start: starts a worker.
    """

    state: Path
    launched: Launched
    threads: int
    nice: int
    moment: Callable[[], Moment]
    connected: Callable[[], bool]
    busy: Callable[[], bool] = lambda: False
    start: StartWorker = WorkerProcess.start


class AgentTrial:
    """See the module. Without the launcher it only measures.

    Args:
        shop: see `TrialShop`.
        steering: reads the board.
        clock: see `Clock`.

    Attributes:
        standing: as it is on the disk; the default without the launcher.
        leaves: the daemon is to end, for the launcher to decide anew.
    """

    def __init__(self, shop: TrialShop, steering: Steering, clock: Clock) -> None:
        self._shop, self._steering, self._clock = shop, steering, clock
        self.standing, self._kept = Standing(), KeptStanding(shop.state)
        self._reload()
        self._missed = self._due
        trial = self._trial
        self._book = HeatBook(settle_s(trial.window_s)) if trial else HeatBook()
        self._linked = self._connected = self._critical = self._healthy = self._stopping = False
        self.leaves = False
        self._began_s: float | None = None
        self._last_tick = shop.moment()
        self._gate, self._tested = "", False
        self._testing = False

    @property
    def safe_mode(self) -> str:
        """Why no work is done; empty: it is."""
        return self._shop.launched.safe_mode

    def in_safe_mode(self) -> dict[str, object]:
        """`code` and `version` of this release where it does no work; else empty."""
        return {"code": self.safe_mode, "version": __version__} if self.safe_mode else {}

    def rolled_back(self) -> dict[str, object]:
        """`code` and `version` of the release that was left last; empty where another has stayed since."""
        ends = (self.standing.left, self.standing.last)
        found = [one for one in ends if one is not None and one.status == "rolled_back"]
        return {"code": found[0].code, "version": found[0].version} if found else {}

    @property
    def on_trial(self) -> bool:
        """Whether this very release is on trial."""
        return self._trial is not None

    @property
    def _trial(self) -> Trial | None:
        trial = self.standing.trial
        return trial if trial is not None and trial.slot == self._shop.launched.place else None

    @property
    def _due(self) -> Trial | None:
        """A trial that another release is to begin."""
        return self.standing.trial if self._trial is None else None

    # --- the daemon's life -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The daemon is ready."""
        signal.setitimer(signal.ITIMER_REAL, 0)  # set by the launcher: this start did not hang
        self._began_s = self._clock.mono()
        trial = self._trial
        if trial is None:
            return
        with contextlib.suppress(BoardError, TrialError):  # then a later start counts as one that was not ready
            self._change(lambda standing: ready(standing, self._shop.moment()))
        downtime = self.standing.trial.downtime_s if self.standing.trial else None
        log.info("on trial", version=trial.version, window_s=trial.window_s, downtime_s=downtime)

    def staged(self) -> None:
        """A release waits in a slot: the daemon ends, and the launcher begins its trial."""
        self._reload()
        if self._due is not None:
            log.info("leaves for the release on trial", version=self._due.version)
            self.leaves = True

    def tick(self, *, working: bool, phase: str) -> None:
        """Measure and judge; call once a second.

        Args:
            working: a job or anything else is at work.
            phase: what a job does, as `agent.energy` names it; empty without one.
        """
        self._last_tick = self._shop.moment()
        reading = self._steering.reading
        load = TRAINING if phase == TRAINS else "" if working else IDLE
        over_air = None if reading.ambient_is_baseline else reading.delta_t_celsius
        self._book.add(self._clock.mono(), load, reading.temperature_celsius, over_air)
        self._linked = self._shop.connected()
        self._connected = self._connected or self._linked
        rules = (self._steering.decision.rule, *self._steering.decision.notes)
        self._critical = self._critical or CRITICAL in rules
        if self._shop.launched.place and self._began_s is not None and not self.leaves:
            with contextlib.suppress(BoardError, TrialError):  # a full disk is asked again in a second
                self._reload()
                self._judge(self._clock.mono() - self._began_s)

    def baseline(self) -> Baseline:
        """What another release will be held against, as of the last tick."""
        return Baseline(self._book.heats(), self._linked, self._critical)

    def close(self, *, told: bool) -> None:
        """The daemon has ended everything.

        Args:
            told: by the service manager or a person, and so for good.

        Raises:
            BoardError: the disk refuses: the next start is counted, or the trial begins later.
        """
        due = self._due
        if not self._shop.launched.place:
            return
        if self.leaves and due is not None and due.stage == Stage.STAGED and not told:
            self._change(lambda standing: leaving(standing, self._last_tick, self.baseline().table()))
        elif told:
            self._change(stopped)

    # --- judging -----------------------------------------------------------------------------------------------------

    def _judge(self, for_s: float) -> None:
        """What is to be done after so many seconds of being ready."""
        trial = self._trial
        if trial is not None:
            self._judge_trial(trial, for_s)
        elif self._due is not None and (self._due != self._missed or for_s >= AGAIN_S) and not self._shop.busy():
            self.staged()
        elif not self._healthy and for_s >= HEALTHY_S:
            if self.standing.starts or self.standing.fell:
                self._change(healthy)
            self._healthy = True
        elif self.safe_mode and (agent_folder(self._shop.state) / LEAVE_SAFE_MODE).exists():
            remove(agent_folder(self._shop.state) / LEAVE_SAFE_MODE)
            self._change(opened)
            log.info("the owner leaves safe mode")
            self.leaves = True

    def _judge_trial(self, trial: Trial, for_s: float) -> None:
        before = baseline_of(trial.baseline)
        over = for_s >= trial.window_s
        heat = too_hot(HeatMargins(), before.heat, self._book.heats(), self._least(trial))
        if self._gate:
            self._fail("trial-gate", self._gate)
        elif heat:
            self._fail("trial-heat", heat)
        elif self._critical and not before.critical:
            self._fail("trial-heat", "the die came above the abort trip, as it did not before")
        elif over and before.had_link and not self._connected:
            self._fail("trial-link", f"no connection to the broker in {trial.window_s:g} s; there was one before")
        elif over and self._tested:
            self._commit()
        elif for_s >= trial.window_s + GATE_S:
            self._fail("trial-gate", "the active model could not be tried")

    def _least(self, trial: Trial) -> int:
        """Readings of a load, one a second, below which it is not compared."""
        return int(LEAST_SHARE * trial.window_s)

    def _commit(self) -> None:
        result = self._result()
        self._change(lambda standing: committed(standing, result))
        log.info("the release stays", **result)

    def _fail(self, code: str, why: str) -> None:
        result = self._result()
        self._change(lambda standing: failed(standing, code, why, result))
        log.error("the release is left, the one before it starts", reason=code, why=why)
        self.leaves = True  # what became of it, the one before tells: this one is not to be believed

    def _result(self) -> dict[str, object]:
        trial = self._trial
        assert trial is not None
        before, now = baseline_of(trial.baseline), self._book.heats()
        loads = compared(before.heat, now, self._least(trial))
        heat = {
            load: {"before": dataclasses.asdict(before.heat[load]), "now": dataclasses.asdict(now[load])}
            for load in loads
        }
        return {"window_s": trial.window_s, "heat": heat, "link": self._connected}

    # --- the gate ----------------------------------------------------------------------------------------------------

    def due(self) -> bool:
        """Whether the active model is to be tried, between two jobs and before the next."""
        return self._trial is not None and self._began_s is not None and not self._tested and not self._stopping

    @property
    def running(self) -> bool:
        """Whether it is being tried."""
        return self._testing

    async def run(self) -> None:
        """See whether the active model opens and answers under this release; `tick` acts on it."""
        self._testing = True
        try:
            order = SelfTestOrder(str(self._shop.state), self._shop.threads)
            wrong = await self_test(order, self._shop.nice, self._shop.start)
            if not self._stopping:  # else the worker may have been told to stop too
                self._gate, self._tested = wrong, True
        finally:
            self._testing = False

    def stop(self) -> None:
        """The daemon goes: no test begins, and one at work ends with its task."""
        self._stopping = True

    # --- the disk ----------------------------------------------------------------------------------------------------

    def _reload(self) -> None:
        """Take what is on the disk: a program beside the daemon may have staged a release."""
        if self._shop.launched.place:
            self.standing = self._kept.read()

    def _change(self, step: Callable[[Standing], Standing]) -> None:
        """Make a step on the disk; others of this process may have written since the last.

        Raises:
            BoardError: the disk refuses; nothing changed.
        """
        self._reload()
        after = step(self.standing)
        write_standing(self._shop.state, after)
        self.standing = after
