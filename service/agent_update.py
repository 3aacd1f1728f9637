"""The command `update-agent`: another release of temperd into the free slot, then the launcher tries it.

It is fetched beside the work: a download and some seconds of one core. Once the slot is whole and the standing says so,
`service.agent_trial` ends the daemon, which puts a job aside, and holds the trial; its end is told here, by whichever
release runs then. Each step is in the journal before its effect, and done twice it is done once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import __version__
from agent.agent_slots import KeptStanding, read_standing, write_standing
from agent.agent_stage import clear_leftovers
from agent.errors import BoardError, CommandError
from agent.messages import Finished, Go, Message, ReleaseOrder, Stage, Warned
from policies.strict import build_known
from policies.trial import TrialError, emptied, staged
from policies.trial_standing import Standing, Trial
from service.asked import INSTALLING, RESTARTING, RUNNING, TRIAL, WAITING
from service.command_types import UPDATE_AGENT, Command
from service.endings import CANCELED
from service.job import MAX_ATTEMPTS
from service.journal import Journal
from service.launched import Launched
from service.logs import logger
from service.statuses import Clock, Statuses
from service.update_arguments import AgentArguments
from service.update_ledger import UpdateAsked, UpdateLedger
from service.update_room import CANCELED_REASON, UpdateRoom
from service.update_shown import release_told
from service.worker_process import StartWorker, WorkerProcess

NOT_UPDATABLE = "not-updatable"
TRIAL_LOST = "trial-lost"
REPOSITORY_BUSY = "busy"  # a job pulls a model

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

    def __post_init__(self) -> None:
        """Refuse arguments that this release cannot read: a later one may have taken the command."""
        _ = self.wanted

    @property
    def wanted(self) -> AgentArguments:
        """The arguments, which were checked when the command came."""
        return build_known(AgentArguments, self.args)


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


class AgentUpdates(UpdateRoom[AgentAsked]):
    """See the module.

    Args:
        journal: remembers the command.
        statuses: publishes.
        clock: see `Clock`.
        shop: see `UpdateShop`.
    """

    def __init__(self, journal: Journal, statuses: Statuses, clock: Clock, shop: UpdateShop) -> None:
        ledger = UpdateLedger(journal, statuses, UPDATE_AGENT, AgentAsked)
        super().__init__(ledger, clock, shop.start, shop.nice, REPOSITORY_BUSY)
        self._shop, self._kept = shop, KeptStanding(shop.state)

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
        asked = AgentAsked(digest=command.digest, id=command.id, args=dict(command.args), before=__version__)
        self._ledger.begin(asked)

    def recover(self) -> None:
        """After what cut it short: a trial's end is told, and an attempt is due once more, so many times.

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
                self._ledger.advance(status=WAITING, stage="", code="restarted", reason="the attempt was cut short")

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
        told = release_told(self._kept, self._shop.launched)
        return {"version": __version__, **told, "update": update}

    # --- the work ----------------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Begin what is due, and tell how a trial goes."""
        now = self._ledger.open
        if now is None or self._stopping or (now.stage != TRIAL and self._shop.busy()):
            return
        if now.stage in (RESTARTING, TRIAL):
            self._follow(now)
        elif now.status == RUNNING:  # the disk took no end, or there was no process
            self.recover()
        elif self._is_due(now):
            self._working = True
            try:
                await self._fetch(now)
            finally:
                self._working = False

    async def _fetch(self, now: AgentAsked) -> None:
        """A release into the free slot, or why there is none."""
        now = self._begun(now)
        standing = self._standing()
        slot = standing.free_slot
        last = await self._work(self._order(now, standing, slot), "agent.release_worker")
        if self._canceled:
            self._end(CANCELED, CANCELED, CANCELED_REASON)
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

    async def _hear(self, message: Message, worker: WorkerProcess) -> None:
        if isinstance(message, Warned):
            log.warning("release worker warns", what=message.what)
        elif isinstance(message, Stage) and not self._canceled and not self._stopping:
            self._grant(message)
            await worker.send(Go(message.stage))

    def _grant(self, stage: Stage) -> None:
        """Before the slot is touched nothing is to start from it any more."""
        if stage.stage.lower() == INSTALLING:
            self._change(lambda standing: emptied(standing, standing.free_slot))
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

    # --- the disk ----------------------------------------------------------------------------------------------------

    def _standing(self) -> Standing:
        try:
            return self._kept.read()
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
        super()._end(status, code, reason, result)
        self._shop.told()
        with contextlib.suppress(BoardError):  # rubbish hinders nobody: the next start clears it
            clear_leftovers(self._shop.state)
