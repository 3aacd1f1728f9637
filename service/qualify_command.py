"""The command `qualify`: a stress run between two jobs, asked for by a console.

At most one is asked for at a time. One that a crash or a stop cut short is not run again by itself: a board that stress
brings down would be brought down again and again.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from agent.errors import CommandError, TemperdError
from policies.policy import Policy
from policies.reading import Action
from policies.strict import TableError
from service.asked import RUNNING, WAITING
from service.asked_told import Teller
from service.commands import QUALIFY, Command
from service.journal import Journal
from service.logs import logger
from service.qualify_asked import ENDED, LAST, MAX_ENDED, StressAsked, recall, text, texts
from service.qualify_load import StressLoad
from service.qualify_plan import Drill, Place
from service.statuses import Clock, Statuses
from service.steering import Steering

if TYPE_CHECKING:
    from service.qualify import Outcome

LOOK_S = 0.5  # the governor makes the steps, once a second; the load follows them
CANCELED = "canceled"

log = logger("qualify")


class QualifyShop(NamedTuple):
    """What a run needs of the board."""

    place: Place
    cores: int


class Qualifications:
    """See the module.

    Args:
        journal: remembers the latest commands.
        statuses: publishes.
        steering: reads the board, and follows the drill while there is one.
        clock: see `Clock`.
        shop: see `QualifyShop`.
        policy: gives the policy in force.
    """

    def __init__(
        self,
        journal: Journal,
        statuses: Statuses,
        steering: Steering,
        clock: Clock,
        shop: QualifyShop,
        policy: Callable[[], Policy],
    ) -> None:
        self._journal, self._steering = journal, steering
        self._clock, self._shop, self._policy = clock, shop, policy
        self._asked: StressAsked | None = next(iter(recall(journal, LAST)), None)
        self._ended = {ended.id: ended for ended in recall(journal, ENDED)}
        if self._asked is not None:  # a crash may have left it in both places
            self._ended.pop(self._asked.id, None)
        self._teller = Teller(statuses)
        self._canceled = False
        self._owed: StressAsked | None = None
        """An end that the disk did not take."""

    # --- commands ----------------------------------------------------------------------------------------------------

    def ask(self, command: Command) -> None:
        """Take a command: journaled first, answered when the run has ended; refused while another is at hand.

        Raises:
            CommandError: `busy`; nothing changed.
            BoardError: the disk refuses: not to be acknowledged.
        """
        now = self._asked
        if now is not None and not now.ended:
            raise CommandError(f"{now.id} is {now.status}", reason="busy")
        if now is not None:
            self._set_aside(now)
        asked = StressAsked(digest=command.digest, id=command.id, minutes=command.minutes)
        self._remember(asked)
        self._publish(asked)

    def cancel(self, command_id: str) -> bool:
        """End a run that waits or is at work; its status follows, of one at work within a second.

        Returns:
            Whether the run is canceled, now or before; false where it has ended otherwise or is not known.

        Raises:
            BoardError: the disk refuses: not to be acknowledged.
        """
        now = self._asked
        if now is None or now.id != command_id or now.ended or self._owed is not None:
            return (self._journal.outcome(command_id) or "").startswith(CANCELED)
        if now.status == WAITING:
            self._end_canceled()
        else:
            self._canceled = True
        return True

    def repeat(self, command_id: str) -> bool:
        """Publish the status of the command once more; false where it is not known here."""
        known = [asked for asked in self._all() if asked.id == command_id]
        for asked in known:
            self._publish(asked)
        return bool(known)

    def publish_pending(self) -> None:
        """Publish what the broker has not confirmed; before it write down an end that the disk did not take.

        Raises:
            BoardError: the disk refuses still.
        """
        self._write_owed()
        self._teller.tell_new({asked.id: (QUALIFY, asked) for asked in self._all()})

    def broker_lost(self) -> None:
        """The broker lost what it kept: an open command is told once more."""
        self._teller.broker_lost()

    def recover(self) -> None:
        """After a start: a run that was cut short has failed.

        Raises:
            BoardError: the disk refuses.
        """
        if self._asked is not None and self._asked.status == RUNNING:
            self._end("failed", "restarted", "the daemon ended during the run", None)

    # --- a run -------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a run is at work: the drill's limits are written to the board."""
        return self._steering.drill is not None

    def due(self) -> bool:
        """Whether a run that was asked for may begin."""
        waiting = self._asked is not None and self._asked.status == WAITING
        return waiting and self._steering.decision.action < Action.PAUSE

    async def run(self) -> None:
        """The run that was asked for; whatever happens is told and logged. When it is canceled, `recover` tells.

        Raises:
            BoardError: the journal cannot be written; `publish_pending` writes the end.
        """
        assert self._asked is not None
        minutes, self._canceled = self._asked.minutes, False
        self._advance(dataclasses.replace(self._asked, status=RUNNING))
        log.info("stress run begins", minutes=minutes)
        from service.qualify import keep  # noqa: PLC0415 - a board that is never stressed does not pay for the arithmetic

        try:
            outcome = await self._driven(minutes * 60.0)
            models = {} if self._canceled else keep(outcome, self._shop.place, self._clock.now())
        except TemperdError as error:
            log.error("stress run failed", reason=error.code, why=str(error))  # noqa: TRY400 - said whole
            self._end("failed", error.code, str(error), None)
            return
        if self._canceled:
            self._end_canceled()
            return
        self._teach(models)
        self._conclude(outcome)

    def _teach(self, models: dict[str, object]) -> None:
        """Let the governor go on from the models of the run; it has seen the same readings, so none is lost without."""
        if not models:
            return
        try:
            self._steering.take_learnt(models)
        except TableError as error:
            log.warning("what the stress run taught is not used", why=str(error))

    async def _driven(self, seconds: float) -> Outcome:
        from service.qualify import conclude, drive  # noqa: PLC0415 - see `run`

        load = await StressLoad.start(self._shop.cores)
        drill = Drill(self._policy(), seconds, self._clock.mono())
        self._steering.drill = lambda reading, decision: drill.step(reading, decision, load.products)

        async def wait() -> bool:
            await asyncio.sleep(LOOK_S)
            return not self._canceled

        try:
            await drive(drill, load, wait, lambda _drill: None)
            lost = load.lost
        finally:
            self._steering.drill = None
            await load.stop()
        return conclude(drill, wrong=load.wrong, lost=lost)

    def _conclude(self, outcome: Outcome) -> None:
        from service.qualify import report  # noqa: PLC0415 - see `run`

        verdict = outcome.verdict
        log.info("stress run ended", passed=verdict.passed, delta_t_kelvin=verdict.delta_t_kelvin)
        told = "; ".join(f"{reason.code}: {reason.text}" for reason in verdict.reasons)
        code = "" if verdict.passed else "not-qualified"
        self._end("succeeded" if verdict.passed else "failed", code, told, report(outcome, self._shop.place))

    # --- what is remembered ------------------------------------------------------------------------------------------

    def _all(self) -> list[StressAsked]:
        return [*self._ended.values(), *([self._asked] if self._asked else [])]

    def _end(self, status: str, code: str, reason: str, result: dict[str, object] | None) -> None:
        assert self._asked is not None
        before = self._asked
        self._owed = dataclasses.replace(before, status=status, code=code, reason=reason[:4096], result=result)
        self._write_owed()

    def _write_owed(self) -> None:
        if self._owed is not None:
            self._advance(self._owed)
            self._owed = None

    def _end_canceled(self) -> None:
        log.info("stress run canceled")
        self._end(CANCELED, CANCELED, "canceled by an operator", None)

    def _advance(self, changed: StressAsked) -> None:
        changed = dataclasses.replace(changed, version=changed.version + 1)
        self._remember(changed)
        self._publish(changed)

    def _remember(self, asked: StressAsked) -> None:
        """Keep it, and in the same commit what the ledger has of it."""
        self._journal.record(asked.id, asked.digest, asked.outcome, {LAST: text(asked)})
        self._asked = asked

    def _set_aside(self, ended: StressAsked) -> None:
        """Keep an end, while another command takes its place."""
        kept = [*self._ended.values(), ended]
        for lost in kept[:-MAX_ENDED]:
            if not self._teller.has(lost.id, lost):
                log.warning("an end that the broker never confirmed is not told", id=lost.id, status=lost.status)
        kept = kept[-MAX_ENDED:]
        self._journal.remember(ENDED, texts(kept))
        self._ended = {one.id: one for one in kept}

    def _publish(self, now: StressAsked) -> None:
        self._teller.tell(QUALIFY, now.id, now)
