"""The command `update-agent`: another release of temperd into the free slot, then the launcher tries it.

It is fetched beside the work: a download and some seconds of one core. Once the slot is whole and the standing says so,
`service.agent_trial` ends the daemon, which puts a job aside, and holds the trial; its end is told here, by whichever
release runs then. Each step is in the journal before its effect, and done twice it is done once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import __version__
from agent.agent_slots import read_standing, write_standing
from agent.agent_stage import clear_leftovers
from agent.errors import BoardError, CommandError, EngineError, NetworkError
from agent.messages import CLOCK_WRONG, METERED, Failed, Finished, Go, Message, ReleaseOrder, Stage, Warned
from policies.strict import build
from policies.trial import TrialError, emptied, staged
from policies.trial_standing import Standing, Trial
from service.asked import DEFERRED, INSTALLING, PULLING, RESTARTING, RUNNING, TRIAL, WAITING
from service.command_types import UPDATE_AGENT, Command
from service.endings import CANCELED
from service.job import MAX_ATTEMPTS
from service.journal import Journal
from service.launched import Launched
from service.logs import logger
from service.statuses import Clock, Statuses
from service.until import RETRY_S, Until
from service.update_arguments import AgentArguments
from service.update_ledger import UpdateAsked, UpdateLedger
from service.update_shown import release_told
from service.worker_process import STOP_GRACE_S, StartWorker, WorkerProcess

LOOK_S = 1.0
LATER_S = 3600.0  # a metered link is asked for again
NOT_UPDATABLE = "not-updatable"
TRIAL_LOST = "trial-lost"
PATIENT = {NetworkError.reason: RETRY_S, CLOCK_WRONG: RETRY_S, "busy": RETRY_S, METERED: LATER_S}
"""What may be over by itself: reason, and after how many seconds it is looked at again. `busy`: a job pulls a model."""

log = logger("update")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAsked(UpdateAsked):
    """A command `update-agent`.

    Attributes:
        found: version of the release; empty: not known yet.
        before: version that ran when it was asked for.
    """

    found: str = ""
    before: str = ""

    @property
    def wanted(self) -> AgentArguments:
        """The arguments, which were checked when the command came."""
        return build(AgentArguments, self.args)


@dataclass(frozen=True, slots=True)
class UpdateShop:
    """What an update is made of.

    Attributes:
        state: the daemon's state folder.
        launched: how this process was started.
        nice: scheduling priority of a worker.
        repository: address, and path of the pinned root.
        metered: bytes cost money here.
        busy: something is at work that a restart would spoil: a stress run, an update of the system.
        told: called when the fleet is to hear anew what this board is.
        start: starts a worker.
    """

    state: Path
    launched: Launched
    nice: int
    repository: tuple[str, str]
    metered: bool
    busy: Callable[[], bool] = lambda: False
    told: Callable[[], None] = lambda: None
    start: StartWorker = WorkerProcess.start


class AgentUpdates:
    """See the module.

    Args:
        journal: remembers the command.
        statuses: publishes.
        clock: see `Clock`.
        shop: see `UpdateShop`.
    """

    def __init__(self, journal: Journal, statuses: Statuses, clock: Clock, shop: UpdateShop) -> None:
        self._ledger = UpdateLedger(journal, statuses, UPDATE_AGENT, AgentAsked)
        self._clock, self._shop = clock, shop
        self._worker: WorkerProcess | None = None
        self._stopping = self._canceled = False

    # --- commands ----------------------------------------------------------------------------------------------------

    def ask(self, command: Command) -> None:
        """Take a command: journaled first, answered when the update has ended.

        Raises:
            CommandError: `not-updatable`, `busy`, `trial-under-way`. Nothing changed.
            BoardError: the disk refuses: not to be acknowledged.
        """
        if not self._shop.launched.place:
            what = "this temperd was not started by its launcher: it is part of an image or runs from a clone"
            raise CommandError(what, fix="Update the image, or the clone, and restart it", reason=NOT_UPDATABLE)
        if (now := self._ledger.open) is not None:
            raise CommandError(f"{now.id} is {now.status}", where=now.stage, reason="busy")
        if (trial := self._standing().trial) is not None:
            raise CommandError(f"{trial.version} is on trial", fix="Wait for its end", reason="trial-under-way")
        self._canceled = False
        asked = AgentAsked(digest=command.digest, id=command.id, args=dict(command.args), before=__version__)
        self._ledger.begin(asked)

    def cancel(self, command_id: str) -> bool:
        """End an update that has not touched its slot; of one that is pulled the status follows within seconds.

        Returns:
            Whether it is canceled, now or before; false where it has ended otherwise, is not known, or is too far.

        Raises:
            BoardError: the disk refuses: not to be acknowledged.
        """
        now = self._ledger.open
        if now is None or now.id != command_id:
            return self._ledger.outcome(command_id).startswith(CANCELED) and self._ledger.repeat(command_id)
        if now.stage not in ("", PULLING):
            return False
        self._canceled = True
        if self._worker is not None:
            self._worker.kill()
        else:
            self._end(CANCELED, CANCELED, "canceled by an operator")
        return True

    def repeat(self, command_id: str) -> bool:
        """Publish the status of the command once more; false where it is not known here."""
        return self._ledger.repeat(command_id)

    def publish_pending(self) -> None:
        """Publish what the broker has not confirmed."""
        self._ledger.publish_pending()

    def broker_lost(self) -> None:
        """The broker lost what it kept: all is told once more."""
        self._ledger.broker_lost()

    def recover(self) -> None:
        """After a start: a trial's end is told, and what was cut short is due once more, so many times.

        Raises:
            BoardError: the disk refuses.
        """
        now = self._ledger.open
        if now is None:
            with contextlib.suppress(BoardError):  # rubbish hinders nobody
                clear_leftovers(self._shop.state)
        elif now.status == RUNNING and not self._follow(now):
            if now.attempt >= MAX_ATTEMPTS:
                self._end("failed", "too-many-attempts", "the daemon or the board went down in each attempt")
            else:
                self._ledger.advance(status=WAITING, stage="", code="restarted", reason="the daemon was restarted")

    def _follow(self, now: AgentAsked) -> bool:
        """Tell what the standing knows of the trial; false where the release is not staged yet."""
        standing = self._standing()
        trial, last = standing.trial, standing.last
        if last is not None and last.command_id == now.id:
            result = {"changed": last.status == "succeeded", "before": last.before, **last.result}
            self._end(last.status, last.code, last.reason, result)
        elif trial is not None and trial.command_id == now.id:
            stage = TRIAL if trial.slot == self._shop.launched.place else RESTARTING
            if stage != now.stage:
                self._ledger.advance(stage=stage, found=trial.version, code="", reason="")
                self._shop.told()
        elif now.stage in (RESTARTING, TRIAL):
            self._end("failed", TRIAL_LOST, "what was known of the trial is lost; the release before runs")
        else:
            return False
        return True

    def shown(self) -> dict[str, object]:
        """For `temperd status`: what runs, from where, and what is under way."""
        now = self._ledger.open
        update = None if now is None else {"id": now.id, "status": now.status, "step": now.step, "reason": now.reason}
        told = release_told(self._shop.state, self._shop.launched)
        return {"version": __version__, **told, "update": update}

    # --- the work ----------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Beside the work: begin what is due, and tell how a trial goes."""
        while True:
            try:
                await self._look()
            except BoardError as error:
                log.error("the update waits", why=str(error))  # noqa: TRY400 - said whole
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        now = self._ledger.open
        if now is None or self._stopping or (now.stage != TRIAL and self._shop.busy()):
            return
        if now.stage in (RESTARTING, TRIAL):
            self._follow(now)
        elif now.status == WAITING or (now.status == DEFERRED and 0 < now.retry_s <= self._clock.now()):
            await self._fetch(now)

    async def _fetch(self, now: AgentAsked) -> None:
        """A release into the free slot, or why there is none."""
        fresh = {"status": RUNNING, "stage": PULLING, "code": "", "reason": "", "retry_s": 0.0, "waits_for": None}
        now = self._ledger.advance(**fresh, attempt=now.attempt + (now.status == WAITING))
        log.info("update begins", id=now.id, version=now.wanted.version, attempt=now.attempt)
        standing = self._standing()
        slot = standing.free_slot
        last = await self._work(self._order(now, standing, slot), slot)
        if self._canceled:
            self._end(CANCELED, CANCELED, "canceled by an operator")
        elif isinstance(last, Finished):
            self._stage(now, last.result, slot)
        elif not self._stopping:  # else it goes on at the next start
            self._put_off(last.code, last.message)

    def _order(self, now: AgentAsked, standing: Standing, slot: str) -> ReleaseOrder:
        held = standing.contents.get(self._shop.launched.place)
        wanted, (url, root) = now.wanted, self._shop.repository
        return ReleaseOrder(
            *(str(self._shop.state), url, root, wanted.version, slot, __version__),
            running_digest=held.digest if held else "",
            refused=tuple(one.digest for one in standing.refused),
            allow_downgrade=wanted.allow_downgrade,
            metered=self._shop.metered,
        )

    async def _work(self, order: ReleaseOrder, slot: str) -> Finished | Failed:
        """What a worker says last; before it touches the slot nothing is to start from there any more."""
        last: Message | None = None
        worker = self._worker = await self._shop.start(
            order, self._shop.nice, lambda line: log.info("release worker", line=line), "agent.release_worker"
        )
        try:
            async for last in worker.messages():
                if isinstance(last, Warned):
                    log.warning("release worker warns", what=last.what)
                elif isinstance(last, Stage):
                    self._grant(last, slot)
                    await worker.send(Go(last.stage))
        except (EngineError, BoardError) as error:
            last = Failed(error.code, str(error))
            worker.kill()
        finally:
            self._worker = None
            code = await worker.end(0.0 if last is None else STOP_GRACE_S)
        return last if isinstance(last, Finished | Failed) else Failed("worker-crashed", f"the worker ended: {code}")

    def _grant(self, stage: Stage, slot: str) -> None:
        if stage.stage.lower() != INSTALLING:
            return
        self._change(lambda standing: emptied(standing, slot))
        self._ledger.advance(stage=INSTALLING, found=stage.detail)

    def _stage(self, now: AgentAsked, result: dict[str, Any], slot: str) -> None:
        """The slot is whole: its trial is next."""
        version = str(result["version"])
        if not result["changed"]:
            self._end("succeeded", result={"changed": False, "version": version, "before": version})
            return
        trial = Trial(slot, version, str(result["digest"]), now.id, now.wanted.window_s)
        self._change(lambda standing: staged(standing, trial))
        self._ledger.advance(stage=RESTARTING, found=version)

    def _put_off(self, code: str, why: str) -> None:
        """Wait for what may be over by itself; else it has failed, and what ran runs on."""
        if code not in PATIENT:
            self._end("failed", code, why)
            return
        again = self._clock.now() + PATIENT[code]
        until = Until("clock" if code == CLOCK_WRONG else "job" if code == "busy" else "network", ts=again)
        self._ledger.advance(
            status=DEFERRED, stage="", code=code, reason=why[:500], retry_s=again, waits_for=until.table()
        )

    async def stop(self) -> None:
        """The daemon goes: what was fetched so far stays."""
        self._stopping = True
        if self._worker is not None:
            self._worker.kill()

    # --- the disk ----------------------------------------------------------------------------------------------------

    def _standing(self) -> Standing:
        try:
            return read_standing(self._shop.state)[0]
        except BoardError as error:
            log.error("what is known of releases cannot be read", why=str(error))  # noqa: TRY400 - said whole
            return Standing()

    def _change(self, step: Callable[[Standing], Standing]) -> None:
        """Make a step on the disk.

        Raises:
            BoardError: the disk refuses, or the standing does not allow it; nothing changed.
        """
        try:
            write_standing(self._shop.state, step(read_standing(self._shop.state)[0]))
        except TrialError as error:
            raise BoardError(str(error), reason=error.code) from error

    def _end(self, status: str, code: str = "", reason: str = "", result: dict[str, object] | None = None) -> None:
        self._ledger.close(status, code, reason, result)
        self._shop.told()
        with contextlib.suppress(BoardError):  # rubbish hinders nobody: the next start clears it
            clear_leftovers(self._shop.state)
