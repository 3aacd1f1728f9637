"""The commands `evaluate`, `promote` and `rollback`: what is done with models that are there, between two jobs.

One is at work at a time, and never beside a job, a scrub or a stress run: the store has one writer. A job does not
keep an operator from the model before: it is put aside for a promotion or a rollback, and goes on from its checkpoint.
What a crash cut short is done again; every step of it is whole, and done twice it is done once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import ArtifactError, BoardError, CommandError, ModelError, SealedFileError, SpecError, TemperdError
from agent.messages import EvaluateOrder, Failed, Finished, Message, Steer, SwitchOrder, Warned
from agent.slots import read_status
from agent.spec import EvaluateSpec
from agent.switch import Way, slot_of, way_back, way_on
from policies.reading import Action
from policies.strict import build
from service.asked import RUNNING, WAITING
from service.asked_told import Teller
from service.commands import EVALUATE, PROMOTE, ROLLBACK, Command
from service.conclusion import SELF_TEST
from service.endings import CANCELED, END_GRACE_S, MOST_TIME, STOPPING
from service.job import MAX_ATTEMPTS, State
from service.journal import Journal
from service.kept import recall_table
from service.logs import logger
from service.model_asked import KEPT, ModelAsked, recall, text
from service.statuses import MAX_REASON, Clock, Statuses
from service.steering import Steering
from service.worker_process import STOP_GRACE_S, StartWorker, WorkerProcess

MAX_OPEN = 16  # evaluations that wait; a fleet has a few consoles
MAX_ENDED = 16  # ends that are remembered: a result has 500 bytes
SWITCHES = (PROMOTE, ROLLBACK)
UNUSABLE = "models-unusable"
"""Name in the journal's memory."""
BAD_MODEL = (ArtifactError.exit_code, ModelError.exit_code)
WAY_IS_GONE = ("wrong-state", "no-such-slot")
"""The slots changed before it was its turn: nothing is wrong with the model."""

log = logger("models")


@dataclass(frozen=True, slots=True)
class ModelShop:
    """What the work is made of.

    Attributes:
        state: the daemon's state folder.
        threads: of a worker.
        nice: scheduling priority of a worker.
        make_order: the order for the arguments of an evaluate command.
        told: called when another model may be active.
        start: starts a worker.
    """

    state: Path
    threads: int
    nice: int
    make_order: Callable[[Mapping[str, object]], EvaluateOrder]
    told: Callable[[], None]
    start: StartWorker = WorkerProcess.start


class ModelCommands:
    """See the module.

    Args:
        journal: remembers the latest commands.
        statuses: publishes.
        steering: the governor's present decision.
        clock: see `Clock`.
        shop: see `ModelShop`.
    """

    def __init__(self, journal: Journal, statuses: Statuses, steering: Steering, clock: Clock, shop: ModelShop) -> None:
        self._journal, self._steering = journal, steering
        self._clock, self._shop = clock, shop
        self._asked = recall(journal)
        self._teller = Teller(statuses)
        self._canceled: set[str] = set()
        self._stopping = False
        self._current: ModelAsked | None = None
        self._worker: WorkerProcess | None = None
        self._sent: Steer | None = None
        self._ending, self._ended_s, self._began_s = "", 0.0, 0.0
        self.unusable: dict[str, object] = recall_table(journal, UNUSABLE)
        """`code` and `model` (its hash) of the last change that failed by the model itself; empty: none, or since then
        another was changed to, or its slot was taken."""

    # --- commands ----------------------------------------------------------------------------------------------------

    def ask(self, command: Command) -> None:
        """Take a command: journaled first, answered when the work has ended.

        Raises:
            CommandError: refused by the state that the board is in; nothing changed.
            BoardError: the disk refuses: not to be acknowledged.
        """
        self._refuse_busy(command.type)
        asked = ModelAsked(command.digest, id=command.id, type=command.type, args=dict(command.args))
        if command.type in SWITCHES:
            job = command.job if command.type == PROMOTE else ""
            way = self._way(job, "" if job else command.back_to)
            asked = dataclasses.replace(asked, before=way.before, after=way.after)
        self._keep(asked)
        self._publish(asked)

    def _refuse_busy(self, kind: str) -> None:
        same = [one for one in self._open() if (one.type in SWITCHES) == (kind in SWITCHES)]
        if len(same) >= (1 if kind in SWITCHES else MAX_OPEN):
            raise CommandError(f"{same[0].id} is {same[0].status}", where=same[0].type, reason="busy")
        promoting = [job.id for job in self._journal.unfinished() if job.standing.state is State.PROMOTING]
        if kind in SWITCHES and promoting:
            raise CommandError(f"job {promoting[0]} is being promoted", fix="Ask again", reason="wrong-state")

    def _way(self, job: str, to: str) -> Way:
        """On to the staged model of a job; without one back."""
        store = self._shop.state / "store"
        try:
            return way_on(store, job) if job else way_back(store, to)
        except (SpecError, SealedFileError) as error:
            raise CommandError(error.what, where=error.where, fix=error.fix, reason=error.code) from error
        except BoardError as error:
            if error.code != "status-corrupt":
                raise
            raise CommandError(error.what, where=error.where, fix=error.fix, reason=error.code) from error

    def cancel(self, command_id: str) -> bool:
        """End an evaluation, or what has not begun; of one at work the status follows within seconds.

        Returns:
            Whether it is canceled, now or before; false where it has ended otherwise, is not known, or is a change of
            the model that has begun.

        Raises:
            BoardError: the disk refuses: not to be acknowledged.
        """
        now = self._asked.get(command_id)
        if now is None or now.ended:
            return (self._journal.outcome(command_id) or "").startswith(CANCELED)
        if now is not self._current:
            self._close(now, CANCELED, CANCELED, "canceled by an operator")
        elif now.type in SWITCHES:
            return False
        else:
            self._canceled.add(command_id)
            self.steer()
        return True

    def repeat(self, command_id: str) -> bool:
        """Publish the status of the command once more; false where it is not known here."""
        known = self._asked.get(command_id)
        if known is not None:
            self._publish(known)
        return known is not None

    def publish_pending(self) -> None:
        """Publish what the broker has not confirmed."""
        self._teller.tell_new({name: (asked.type, asked) for name, asked in self._asked.items()})

    def broker_lost(self) -> None:
        """The broker lost what it kept: open commands are told once more."""
        self._teller.broker_lost()

    def recover(self) -> None:
        """After a start: what was cut short is due once more, so many times.

        Raises:
            BoardError: the disk refuses.
        """
        for asked in [one for one in self._open() if one.status == RUNNING]:
            if asked.attempt < MAX_ATTEMPTS:
                self._keep(dataclasses.replace(asked, attempt=asked.attempt + 1))
            else:
                self._close(asked, "failed", "too-many-attempts", "the daemon or the board went down in each attempt")

    def job_ended(self) -> None:
        """A job may have taken the slot of the model that could not be used.

        Raises:
            BoardError: the disk refuses; it is looked at after the next job.
        """
        if not self.unusable:
            return
        store = self._shop.state / "store"
        try:
            slot_of(store, str(self.unusable.get("model")), read_status(store).in_use())
        except SpecError:
            self._journal.remember(UNUSABLE, "{}")
            self.unusable = {}

    # --- when --------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether one is at work."""
        return self._current is not None

    @property
    def urgent(self) -> bool:
        """Whether the active model is to change: a job gives way."""
        return any(one.type in SWITCHES for one in self._open())

    def due(self) -> bool:
        """Whether one may begin: a change of the model in any weather, an evaluation while the board may work."""
        return not self._stopping and self._next() is not None

    def _open(self) -> list[ModelAsked]:
        return [one for one in self._asked.values() if not one.ended]

    def _next(self) -> ModelAsked | None:
        may = SWITCHES if self._steering.decision.action >= Action.PAUSE else (*SWITCHES, EVALUATE)
        waiting = [one for one in self._open() if one.type in may]
        return min(waiting, key=lambda one: one.type not in SWITCHES, default=None)

    # --- the work ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Do the next one; whatever happens is told and logged.

        Raises:
            BoardError: the journal cannot be written; it is done again.
        """
        asked = self._next()
        assert asked is not None
        if asked.status == WAITING:
            asked = self._advance(dataclasses.replace(asked, status=RUNNING))
        self._current, self._ending, self._began_s = asked, "", self._clock.mono()
        log.info("work on a model begins", id=asked.id, type=asked.type)
        try:
            last = await self._work(self._order(asked))
            if not self._stopping or not _broke_off(last):  # else it is done at the next start
                self._conclude(asked, last)
        finally:
            self._current = None
            self._canceled.discard(asked.id)

    def _order(self, asked: ModelAsked) -> Message:
        if asked.type == EVALUATE:
            return self._shop.make_order(asked.args)
        promotes = asked.type == PROMOTE
        return SwitchOrder(str(self._shop.state), asked.before, asked.after, promotes, self._shop.threads)

    async def go_back(self, to: str) -> dict[str, object]:
        """Go back at once, without a command; the result as a command has it.

        Args:
            to: see `agent.switch.way_back`.

        Raises:
            CommandError: refused by the state that the board is in.
            BoardError: it failed; the model that was active still is.
        """
        way = self._way("", to)
        last = await self._work(SwitchOrder(str(self._shop.state), way.before, way.after, False, self._shop.threads))
        if isinstance(last, Failed):
            raise BoardError(last.message, reason=last.code)
        return {"from": way.before, "to": way.after, **last.result}

    async def _work(self, order: Message) -> Finished | Failed:
        """What a worker says last of an order; a change of the model is announced."""
        last: Message | None = None
        try:
            self._worker = await self._shop.start(
                order, self._shop.nice, lambda line: log.info("model worker", line=line), "agent.worker"
            )
            self._sent = None
            self.steer()
            if self._stopping:
                await self._worker.end(STOP_GRACE_S)
            async for last in self._worker.messages():
                if isinstance(last, Warned):
                    log.warning("model worker warns", what=last.what)
        except TemperdError as error:
            last = Failed(error.code, str(error))
        finally:
            worker, self._worker = self._worker, None
            code = 0 if worker is None else await worker.end(0.0 if last is None else STOP_GRACE_S)
        if isinstance(order, SwitchOrder):
            self._judge_model(order, last)
            self._shop.told()
        if isinstance(last, Finished | Failed):
            return last
        return Failed("worker-crashed", f"the worker ended with code {code}")

    def _judge_model(self, order: SwitchOrder, last: Message | None) -> None:
        """Remember a model that cannot be used."""
        found = self.unusable
        if isinstance(last, Finished):
            found = {}
        elif isinstance(last, Failed) and _is_of_the_model(last):
            found = {"code": last.code, "model": order.after}
        if found != self.unusable:
            self._journal.remember(UNUSABLE, json.dumps(found))
            self.unusable = found

    def _conclude(self, asked: ModelAsked, last: Finished | Failed) -> None:
        if asked.type in SWITCHES and _broke_off(last) and asked.attempt < MAX_ATTEMPTS:
            self._keep(dataclasses.replace(asked, attempt=asked.attempt + 1))
        elif asked.type == EVALUATE and self._ending == CANCELED:
            self._close(asked, CANCELED, CANCELED, "canceled by an operator")
        elif isinstance(last, Finished):
            told = {} if asked.type == EVALUATE else {"from": asked.before, "to": asked.after}
            self._close(asked, "succeeded", result={**told, **last.result})
        elif asked.type == EVALUATE and self._ending == MOST_TIME:
            self._close(asked, "timed_out", MOST_TIME, f"not done within {self._most_s(asked):g} s")
        else:
            self._close(asked, "failed", last.code, last.message)

    def steer(self) -> None:
        """Pass the present decision on, unless the worker has it already; call once a second too."""
        if self._worker is None or self._current is None or self._current.type != EVALUATE:
            return
        self._judge_end(self._current)
        order = self._steering.steer()
        if self._ending:
            order = dataclasses.replace(order, action=Action.ABORT.name, rule=self._ending)
            if self._clock.mono() - self._ended_s >= END_GRACE_S:
                self._worker.kill()
        order = dataclasses.replace(order, reverify=False)
        if order != self._sent:
            self._sent = order if self._worker.offer(order) else None

    def _judge_end(self, asked: ModelAsked) -> None:
        """Whether the evaluation is to end; what was ordered once stays."""
        if self._ending:
            return
        if asked.id in self._canceled:
            self._ending = CANCELED
        elif self._stopping:
            self._ending = STOPPING
        elif self._clock.mono() - self._began_s >= self._most_s(asked):
            self._ending = MOST_TIME
        self._ended_s = self._clock.mono()

    def _most_s(self, asked: ModelAsked) -> float:
        return build(EvaluateSpec, asked.args).most_time_s

    async def stop(self) -> None:
        """The daemon goes: an evaluation ends where it is, a change of the model is given its seconds."""
        self._stopping = True
        if self._worker is not None:
            self.steer()
            await self._worker.end(STOP_GRACE_S)

    # --- what is remembered ------------------------------------------------------------------------------------------

    def _close(
        self, asked: ModelAsked, status: str, code: str = "", reason: str = "", result: dict[str, Any] | None = None
    ) -> None:
        said = log.info if status in ("succeeded", CANCELED) else log.warning
        said("work on a model ended", id=asked.id, type=asked.type, status=status, reason=code, why=reason)
        self._advance(dataclasses.replace(asked, status=status, code=code, reason=reason[:MAX_REASON], result=result))

    def _advance(self, changed: ModelAsked) -> ModelAsked:
        changed = dataclasses.replace(changed, version=changed.version + 1)
        self._keep(changed)
        self._publish(changed)
        return changed

    def _keep(self, asked: ModelAsked) -> None:
        """Remember it, and in the same commit what the ledger has of it."""
        kept = {**self._asked, asked.id: asked}
        ended = [name for name, one in kept.items() if one.ended]
        for name in ended[:-MAX_ENDED]:
            lost = kept.pop(name)
            if not self._teller.has(name, lost):
                log.warning("an end that the broker never confirmed is not told", id=name, status=lost.status)
        self._journal.record(asked.id, asked.digest, asked.outcome, {KEPT: text(kept)})
        self._asked = kept

    def _publish(self, now: ModelAsked) -> None:
        self._teller.tell(now.type, now.id, now)


def _is_of_the_model(last: Failed) -> bool:
    """Whether a change failed because the model cannot be used."""
    bad = last.code == SELF_TEST or last.result.get("exit_code") in BAD_MODEL
    return bad and last.code not in WAY_IS_GONE


def _broke_off(last: Finished | Failed) -> bool:
    """Whether a worker ended because it was told to, or was killed: not by what it was to do."""
    return isinstance(last, Failed) and last.code in (STOPPING, "worker-crashed")
