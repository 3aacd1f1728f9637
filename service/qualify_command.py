"""The command `qualify`: a stress run between two jobs, asked for by a console.

At most one is asked for at a time. One that a crash or a stop cut short is not run again by itself: a board that stress
brings down would be brought down again and again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from agent.errors import BoardError, TemperdError
from policies.policy import Policy
from policies.reading import Action
from policies.strict import TableError, build
from service.commands import QUALIFY, Command
from service.journal import Journal
from service.logs import logger
from service.qualify_load import StressLoad
from service.qualify_plan import Drill, Place
from service.statuses import Clock, Statuses
from service.steering import Steering

if TYPE_CHECKING:
    from service.qualify import Outcome

LOOK_S = 0.5  # the governor makes the steps, once a second; the load follows them
WAITING, RUNNING = "accepted", "running"
LAST = "qualify"
"""Name in the journal's memory: the command asked for last, until its end is confirmed."""

log = logger("qualify")


class QualifyShop(NamedTuple):
    """What a run needs of the board."""

    place: Place
    cores: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Asked:
    """The command, as it is kept."""

    id: str
    digest: str
    minutes: int
    status: str = WAITING
    version: int = 1
    code: str = ""
    reason: str = ""
    result: dict[str, object] | None = None

    @property
    def ended(self) -> bool:
        return self.status not in (WAITING, RUNNING)


class Qualifications:
    """See the module.

    Args:
        journal: remembers the command until its end is confirmed.
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
        self._journal, self._statuses, self._steering = journal, statuses, steering
        self._clock, self._shop, self._policy = clock, shop, policy
        kept = json.loads(journal.recall(LAST) or "null")
        self._asked: _Asked | None = build(_Asked, kept) if kept else None
        self._in_flight = False

    # --- commands ----------------------------------------------------------------------------------------------------

    def ask(self, command: Command) -> None:
        """Take a command: journaled first, answered when the run has ended; refused while another is at hand.

        Raises:
            BoardError: the disk refuses: not to be acknowledged.
        """
        if self._asked is not None and not self._asked.ended:
            self._journal.record(command.id, command.digest, "rejected:busy")
            why = f"{self._asked.id} is {self._asked.status}"
            self._statuses.publish_plain(QUALIFY, command.id, "rejected", "busy", why)
            return
        self._remember(_Asked(command.id, command.digest, command.minutes))
        self._journal.record(command.id, command.digest, WAITING)
        self._publish()

    def repeat(self, command_id: str) -> bool:
        """Publish the status of the command once more; false where it is not known here."""
        if self._asked is None or self._asked.id != command_id:
            return False
        self._publish()
        return True

    def publish_pending(self) -> None:
        """Publish an end that the broker has not confirmed."""
        if self._asked is not None and self._asked.ended and not self._in_flight:
            self._publish()

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
            BoardError: the journal cannot be written.
        """
        assert self._asked is not None
        minutes = self._asked.minutes
        self._change(RUNNING)
        log.info("stress run begins", minutes=minutes)
        from service.qualify import keep  # noqa: PLC0415 - a board that is never stressed does not pay for the arithmetic

        try:
            outcome = await self._driven(minutes * 60.0)
            models = keep(outcome, self._shop.place, self._clock.now())
        except TemperdError as error:
            log.error("stress run failed", reason=error.code, why=str(error))  # noqa: TRY400 - said whole
            self._end("failed", error.code, str(error), None)
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
            return True

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

    def _end(self, status: str, code: str, reason: str, result: dict[str, object] | None) -> None:
        assert self._asked is not None
        outcome = f"{status}:{code}" if code else status
        self._journal.record(self._asked.id, self._asked.digest, outcome)
        self._change(status, code, reason, result)

    def _change(self, status: str, code: str = "", reason: str = "", result: dict[str, object] | None = None) -> None:
        assert self._asked is not None
        before = self._asked
        changed = dataclasses.replace(before, status=status, code=code, reason=reason[:4096], result=result)
        self._remember(dataclasses.replace(changed, version=before.version + 1))
        self._publish()

    def _remember(self, asked: _Asked) -> None:
        self._journal.remember(LAST, json.dumps(dataclasses.asdict(asked), allow_nan=False))
        self._asked = asked

    def _publish(self) -> None:
        assert self._asked is not None
        now = self._asked
        done = self._statuses.publish_plain(
            QUALIFY, now.id, now.status, now.code, now.reason, version=now.version, result=now.result
        )
        if done is not None and now.ended:
            self._in_flight = True
            done.add_done_callback(lambda future: self._answered(now.id, confirmed=future.result()))

    def _answered(self, command_id: str, *, confirmed: bool) -> None:
        self._in_flight = False
        if not confirmed or self._asked is None or self._asked.id != command_id:
            return
        try:
            self._journal.remember(LAST, "null")
            self._asked = None
        except BoardError as error:  # published once more when the disk takes writes again
            log.warning("the journal cannot be written", why=str(error))
