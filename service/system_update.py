"""The command `update-system`: another image in the other slot by RAUC, a restart, a trial, and back where it fails.

Before the restart it has its turn in the desk's line, so nothing is at work when the board goes down; after it the
trial is watched beside the work. Each step is in the journal before its effect, and done twice it is done once.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import Any

from agent.errors import BoardError, CommandError
from agent.messages import Finished
from agent.system_card import forget
from service.asked import DEFERRED, INSTALLING, PULLING, RESTARTING, RUNNING, TRIAL, WAITING
from service.commands import UPDATE_SYSTEM, Command
from service.endings import CANCELED
from service.job import MAX_ATTEMPTS
from service.journal import Journal
from service.logs import logger
from service.rauc import NOT_UPDATABLE, RAUC_BUSY, REBOOT_NEEDED, RaucState
from service.statuses import Clock, Statuses
from service.system_asked import SystemAsked
from service.system_shop import SystemShop
from service.system_trial import Sight, SystemTrial
from service.until import Until
from service.update_ledger import UpdateLedger
from service.update_room import CANCELED_REASON, UpdateRoom

REBOOT_S = 180.0  # a board that was told to restart and is here still stands in its own way: services get 90 s to end
RAUC_BACK_S = 120.0  # after a start RAUC may come later than the daemon

log = logger("system")


class SystemUpdates(UpdateRoom[SystemAsked]):
    """See the module.

    Args:
        journal: remembers the command.
        statuses: publishes.
        clock: see `Clock`.
        shop: see `SystemShop`.
        sight: what a trial looks at.
    """

    def __init__(self, journal: Journal, statuses: Statuses, clock: Clock, shop: SystemShop, sight: Sight) -> None:
        ledger = UpdateLedger(journal, statuses, UPDATE_SYSTEM, SystemAsked)
        super().__init__(ledger, clock, shop.start, shop.nice, RAUC_BUSY)
        self._shop, self._sight = shop, sight
        self._trial: SystemTrial | None = None
        self._again = False
        self._began_s = clock.mono()

    # --- commands ----------------------------------------------------------------------------------------------------

    def ask(self, command: Command) -> None:
        """Take a command: journaled first, answered when the update has ended.

        Raises:
            CommandError: `busy`; `not-updatable`, with what to install. Nothing changed.
            BoardError: the disk refuses: not to be acknowledged.
        """
        now = self._ledger.open
        if now is not None:
            raise CommandError(f"{now.id} is {now.status}", where=now.stage, reason="busy")
        if absent := self._shop.is_there():
            raise CommandError(absent, reason=NOT_UPDATABLE)
        self._ledger.begin(SystemAsked(digest=command.digest, id=command.id, args=dict(command.args)))

    def recover(self) -> None:
        """After a start: what was cut short is due once more, so many times; a trial counts its starts.

        Raises:
            BoardError: the disk refuses.
        """
        now = self._ledger.open
        if now is None:
            return
        if now.stage in (PULLING, INSTALLING) and now.status == RUNNING:
            if now.attempt >= MAX_ATTEMPTS:
                self._end("failed", "too-many-attempts", "the daemon or the board went down in each attempt")
            else:
                self._ledger.advance(status=WAITING, stage="", code="restarted", reason="the daemon was restarted")
        elif now.stage == TRIAL:
            self._ledger.advance(starts=now.starts + 1)

    # --- when --------------------------------------------------------------------------------------------------------

    @property
    def under_way(self) -> bool:
        """Whether it has the board, or the board is to restart for it, or its trial is not over."""
        now = self._ledger.open
        return self._working or (now is not None and now.stage in (INSTALLING, RESTARTING, TRIAL))

    @property
    def urgent(self) -> bool:
        """Whether a job gives way: the board is to restart, or a trial is over but for the test of the model."""
        now = self._ledger.open
        late = self._trial is not None and self._trial.over and self._trial.untested
        return late or (now is not None and self._is_to_restart(now))

    def due(self) -> bool:
        """Whether it is its turn: to pull and install, to restart the board, or to test the model of a new system."""
        now = self._ledger.open
        if now is None or self._stopping:
            return False
        if self._trial is not None and self._trial.untested:
            return True
        if self._again or self._is_to_restart(now):
            return True
        return self._is_due(now) and not self._shop.busy()

    def _is_to_restart(self, now: SystemAsked) -> bool:
        """It was not this boot that it was to restart from: one restart for a slot, and no other."""
        return now.status == RUNNING and now.stage == RESTARTING and now.boot_id == self._shop.boot_id

    def shown(self) -> dict[str, object] | None:
        """For `temperd status`; `None`: nothing is at hand."""
        now = self._ledger.open
        if now is None:
            return None
        told = {"id": now.id, "status": now.status, "step": now.step, "reason": now.reason}
        return {**told, "name": now.wanted.name, "version": now.found or now.wanted.version}

    # --- before the restart ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Pull, install and restart, or test the model; whatever happens is told and logged.

        Raises:
            BoardError: the journal cannot be written, or there is no process; it is done again.
        """
        now, self._working, self._again = self._ledger.open, True, False
        assert now is not None
        try:
            if self._trial is not None:
                await self._trial.test()
                return
            if not self._is_to_restart(now):
                await self._install(now)
            now = self._ledger.open
            if now is not None and self._is_to_restart(now):
                await self._restart(now)
        except BoardError:
            self._again = True
            raise
        finally:
            self._working = False

    async def _install(self, now: SystemAsked) -> None:
        now = self._begun(now)
        try:
            board = await self._shop.system.state()
        except BoardError as error:
            self._put_off(error.code, str(error))
            return
        bundle = await self._pulled(now, board)
        if bundle is None:
            return
        found: dict[str, Any] = {
            "found": str(bundle["version"]),
            "length": bundle["bytes"],
            "slot_before": board.boot_slot,
        }
        if not bundle["path"]:  # it runs already
            self._end("succeeded", "", "", dataclasses.replace(now, **found).told(board.boot_slot))
            return
        kept = {"boot_id": self._shop.boot_id, "baseline": self._shop.baseline().table()}
        self._ledger.advance(stage=INSTALLING, **found, **kept)
        try:
            await self._shop.system.install(str(bundle["path"]), lambda share: log.debug("installing", share=share))
        except BoardError as error:
            self._put_off(error.code, str(error))
            return
        self._ledger.advance(stage=RESTARTING)

    async def _pulled(self, now: SystemAsked, board: RaucState) -> dict[str, object] | None:
        """What the worker says of the bundle on the board; `None`: it is not there, and that was told."""
        wanted = now.wanted
        order = self._shop.make_order(
            wanted.name, wanted.version, board.compatible, board.version, wanted.allow_downgrade
        )
        last = await self._work(order, "agent.system_worker")
        if self._canceled:
            self._end(CANCELED, CANCELED, CANCELED_REASON)
        elif self._stopping:  # nothing is installed that nobody would see the end of
            self._ledger.advance(status=WAITING, stage="", code="restarted", reason="goes on at the next start")
        elif isinstance(last, Finished):
            return last.result
        else:
            self._put_off(last.code, last.message)
        return None

    async def _restart(self, now: SystemAsked) -> None:
        """Tell the board to restart, and wait for the end; where it does not come, somebody has to see to it."""
        if now.verdict:
            try:
                await self._shop.system.mark("bad")
            except BoardError as error:  # it would come back with the same system
                self._end("failed", "fallback-failed", f"{now.why}; it cannot be marked bad: {error}")
                return
        self._ledger.advance(left_ts=self._clock.now() if self._clock.synchronised() else 0.0)
        log.warning("the board restarts for another system")
        try:
            await self._shop.system.reboot()
        except BoardError as error:
            why = str(error)
        else:
            why = f"it was told to {REBOOT_S:g} s ago and did not"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REBOOT_S):
                    await self._stopped.wait()
        if not self._stopping:
            until = Until("operator").table()
            reason = f"restart the board: {why}"
            self._ledger.advance(status=DEFERRED, code=REBOOT_NEEDED, reason=reason, waits_for=until)

    # --- after the restart -------------------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Judge this system where it is on trial."""
        now = self._ledger.open
        if now is None or self._working or now.stage not in (RESTARTING, TRIAL):
            return
        if self._trial is not None:
            if (found := self._trial.look()) is not None:
                await self._judged(self._trial, *found)
        elif now.boot_id != self._shop.boot_id:
            await self._arrived(now)

    async def _arrived(self, now: SystemAsked) -> None:
        """The board was restarted: into which slot?"""
        try:
            slot = (await self._shop.system.state()).boot_slot
        except BoardError as error:
            if self._clock.mono() - self._began_s >= RAUC_BACK_S:
                self._end("failed", error.code, f"after the restart nobody can tell which system runs: {error}")
            return
        if slot == now.slot_before:
            why = now.why or f"the board came back with the system it had, in slot {slot}"
            self._end("rolled_back", now.verdict or "boot-failed", why, now.told(slot))
        elif now.verdict:
            self._end("failed", "fallback-failed", f"{now.why}; and slot {slot} was booted again", now.told(slot))
        else:
            self._begin_trial(now, slot)

    def _begin_trial(self, now: SystemAsked, slot: str) -> None:
        known = now.left_ts and now.downtime_s is None and self._clock.synchronised()
        down_s = round(max(0.0, self._clock.now() - now.left_ts), 1) if known else now.downtime_s
        changes = {"status": RUNNING, "stage": TRIAL, "slot_after": slot, "code": "", "reason": "", "waits_for": None}
        if now.stage != TRIAL or now.status != RUNNING:
            now = self._ledger.advance(**changes, downtime_s=down_s, starts=1)
        log.info("the new system is on trial", slot=slot, seconds=now.wanted.window_s, starts=now.starts)
        self._trial = SystemTrial(now.baseline, now.wanted.window_s, now.starts, self._sight, self._clock)

    async def _judged(self, trial: SystemTrial, code: str, why: str) -> None:
        now = self._ledger.now
        assert now is not None
        if code:
            log.error("the new system is left", reason=code, why=why)
            # From here on the board restarts once: the next boot only looks where it came to.
            left = {"verdict": code, "why": why, "boot_id": self._shop.boot_id}
            self._ledger.advance(stage=RESTARTING, code=code, reason=why, **left)
        else:
            await self._stays(now, trial)
        self._trial = None

    async def _stays(self, now: SystemAsked, trial: SystemTrial) -> None:
        result = now.told(now.slot_after, round(trial.watched_s, 1))
        try:
            message = await self._shop.system.mark("good")
        except BoardError as error:
            if trial.watched_s < now.wanted.window_s + RAUC_BACK_S:
                raise  # asked again soon
            self._end("failed", error.code, f"the new system is healthy and cannot be marked good: {error}", result)
            return
        log.info("the new system stays", slot=now.slot_after, rauc=message)
        self._end("succeeded", "", "", result)

    def _end(self, status: str, code: str = "", reason: str = "", result: dict[str, object] | None = None) -> None:
        super()._end(status, code, reason, result)
        forget(self._shop.state)
