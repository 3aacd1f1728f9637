"""Runs one job: a worker at a time, followed to its last word, through crashes and stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Container

from agent.energy import OTHER, PAUSED, TRAINING
from agent.errors import BoardError, TemperdError
from agent.messages import (
    MEMORY_CORRUPT,
    Failed,
    Finished,
    Go,
    Message,
    Planned,
    Progress,
    Stage,
    Steer,
    Waits,
    Warned,
)
from policies.outlook import Outlook
from service.conclusion import Conclusion, conclude
from service.endings import STOP_GRACE_S
from service.job import STAGE_EVENTS, TABLE, TERMINAL, WORKING, Event, State
from service.job_books import JobBooks
from service.job_orders import PAUSE, WORKS, JobOrders
from service.journal import JobRecord, Journal
from service.logs import logger
from service.obedience import Obedience
from service.outlook import Outlooks
from service.statuses import Clock, Statuses
from service.steering import Steering
from service.until import HELD, JOB_HOT, Until, board_waits, held, too_hot
from service.worker_process import WorkerProcess
from service.workshop import Workshop

PROGRESS_EVERY_S = 1.0  # a status a second is live to a person and light for a fleet
BOOK_EVERY_S = 60.0  # of energy that `kill -9` may lose where no checkpoint keeps it, as in a pause
MAX_WARNINGS = 20  # kept with the result
PHASES = {State.TRAINING: TRAINING, State.PAUSED: PAUSED}

log = logger("jobs")


class Runner:
    """At most one job at a time.

    Args:
        journal: written before each effect.
        statuses: moves and publishes.
        steering: the governor's present decision, and the job's energy.
        clock: see `Clock`.
        shop: see `Workshop`.
        held: ids of jobs that an operator paused.
        canceled: ids of jobs that an operator canceled.
        gives_way: whether a job is to be put aside for a while.
    """

    def __init__(
        self,
        journal: Journal,
        statuses: Statuses,
        steering: Steering,
        clock: Clock,
        shop: Workshop,
        held: Container[str],
        canceled: Container[str],
        gives_way: Callable[[], bool] = lambda: False,
    ) -> None:
        self._journal, self._statuses, self._steering = journal, statuses, steering
        self._clock, self._shop = clock, shop
        self._worker: WorkerProcess | None = None
        self._sent: Steer | None = None
        self._books, self._outlooks = JobBooks(journal, steering, clock), Outlooks(journal, clock)
        self._obedience, self._told_at = Obedience(), 0.0
        self._orders = JobOrders(steering, clock, self._books, held, canceled, gives_way)
        self._rests_in: State | None = None
        self._warnings: list[str] = []
        self._memory_faults, self._waits_to_promote = 0, False
        self.stopping, self._at_work = False, asyncio.Lock()
        self.told_before: tuple[str, ...] = ()
        """What the next job warns of from its beginning: what a scrub found before it."""
        self.current: JobRecord | None = None
        self.progress: Progress | None = None

    @property
    def phase(self) -> str:
        """What the energy is spent on now, as `agent.energy` names it; empty without a job."""
        if self.current is None:
            return ""
        elsewhere = self._rests_in not in (None, State.TRAINING)
        return OTHER if elsewhere else PHASES.get(self.current.standing.state, OTHER)

    @property
    def training(self) -> bool:
        """Whether the job trains, or would if it were not paused."""
        return self.phase in (TRAINING, PAUSED)

    @property
    def outlook(self) -> Outlook:
        """The current job, as the governor sees it."""
        return self._outlooks.outlook()

    def deadline_told(self) -> dict[str, object] | None:
        """How the current job stands to its deadline, as JSON values; `None` without one."""
        return None if self.current is None else self._outlooks.deadline_told(self.current)

    def energy_metrics(self, bandwidth: object = None) -> dict[str, object]:
        """The `energy` group of the telemetry; `bandwidth` as a worker's last word has it, else as journaled."""
        figures = bandwidth if isinstance(bandwidth, dict) else self._planned("bandwidth")
        return self._books.energy_metrics(self.progress.samples if self.progress else 0, figures)

    @property
    def eta_s(self) -> float | None:
        """Seconds of training that are left; `None` while the job does not train, or nothing is known yet."""
        trains = self.current is not None and self.current.standing.state is State.TRAINING
        return self._books.eta_s(self._outlooks.samples_left) if trains else None

    async def run(self, record: JobRecord) -> JobRecord:
        """Run a job to its end, or to the daemon's.

        Raises:
            BoardError: the journal cannot be written; the worker was ended.
        """
        async with self._at_work:
            return await self._run(record)

    async def _run(self, record: JobRecord) -> JobRecord:
        self._books.open(record)
        self._obedience = Obedience()
        self._warnings, self._memory_faults = list(self.told_before), 0
        self.told_before = ()
        if record.spec.get("most_energy_j") and self._steering.reading.power_watts is None:
            self._warn("most_energy_j cannot be kept: nothing tells what the board draws")
        try:
            if record.standing.state not in WORKING and not self.stopping:
                record = self._statuses.move(record, Event.PULL)
            while record.standing.state in WORKING and not self.stopping:
                self._begin(record)
                record = await self._attempt(record)
        finally:
            self.current, self.progress = None, None
            with contextlib.suppress(BoardError):  # costs that were measured can be measured again
                self._outlooks.end()
        stands = record.standing
        said = "job ended" if stands.state in TERMINAL else "job put aside"
        log.info(said, job_id=record.id, state=stands.state, reason=stands.reason_code, why=stands.reason)
        return record

    def _begin(self, record: JobRecord) -> None:
        self.current, self.progress, self._sent = record, None, None
        self._rests_in, self._waits_to_promote = None, False
        self._orders.begin()
        self._books.attempt(record)
        self._outlooks.begin(record)
        self._books.enter(self.phase, working=True)

    async def _attempt(self, record: JobRecord) -> JobRecord:
        """One worker: follow it until it says the last word or vanishes."""
        order = self._shop.make_order(record)
        worker = self._worker = await self._shop.start(
            order, self._shop.nice, lambda line: log.info("worker", line=line)
        )
        log.info("worker started", pid=worker.pid, attempt=record.standing.attempt)
        last: Message | None = None
        try:
            self.steer()
            async for message in worker.messages():
                last = await self._hear(message)
        except BoardError:
            raise
        except TemperdError as error:
            log.warning("worker misbehaved", why=str(error))
        finally:
            self._worker = None
            code = await worker.end(0.0 if last is None else STOP_GRACE_S)
        assert self.current is not None
        return self._conclude(self.current, last, code, starved=worker.starved)

    def _conclude(self, record: JobRecord, last: Message | None, code: int, *, starved: bool = False) -> JobRecord:
        """What the end of a worker means for its job."""
        ending = self._orders.ending(record, stopping=self.stopping)
        if isinstance(last, Failed) and last.code == MEMORY_CORRUPT:
            self._memory_faults += 1
            self._steering.memory_faults += 1
            self._warn(f"attempt {record.standing.attempt}: {last.message}")
        found = conclude(record, last, code, ending, self._clock.hour(), starved=starved)
        concluded = self._apply(record, found, last)
        if concluded.standing.state in TERMINAL:
            self.forget(concluded.id)
        return concluded

    def _apply(self, record: JobRecord, found: Conclusion, last: Message | None) -> JobRecord:
        if found.event is None:
            return record
        until = None if found.until is None else found.until.table()
        result: dict[str, object] | None = None
        if found.goes_on:
            energy_j = self._books.keep(record.id, self.phase)
        else:
            said = last.result if isinstance(last, Finished | Failed) else {}
            result = {**said, **self._told(record, said.get("bandwidth"))}
            energy_j = self._steering.joules
        return self._statuses.move(
            record, found.event, found.code, found.reason,
            until=until, result=result, energy_j=energy_j, worked_s=self._books.worked_s,
        )  # fmt: skip

    def _told(self, record: JobRecord, bandwidth: object) -> dict[str, object]:
        """What the daemon knows of a job that ends, beside the worker's result."""
        self._books.enter(OTHER, working=False)
        energy = self.energy_metrics(bandwidth)
        told = {"energy": energy, "warnings": self._warnings, "memory_faults": self._memory_faults}
        governor = self._steering.governor_told() | self._obedience.told()
        told |= {"governor": governor, "sample_costs": self._outlooks.costs_told()}
        told |= self._books.told(self.progress)
        deadline = self._outlooks.deadline_told(record)
        return told if deadline is None else told | {"deadline": deadline}

    async def _hear(self, message: Message) -> Message:
        assert self.current is not None
        match message:
            case Stage(stage=stage):
                log.info("stage", stage=stage, detail=message.detail)
                await self._asked(State(stage))
            case Planned(plan=plan):
                self.current = self._journal.update(self.current.id, self._clock.now(), plan=plan)
                self._outlooks.planned(self.current)
            case Progress():
                self._follow(message)
            case Waits(resting=True, rule=rule):
                self._rest(rule)
            case Waits():
                self._go_on()
            case Warned(what=what):
                self._warn(what)
        self._shop.watch(message, self.current)
        return message

    async def _asked(self, stage: State) -> None:
        """The worker asks for a stage: it is journaled, then granted. What is to end or to rest is not promoted."""
        self._go_on()
        order = self._order()
        if stage is State.PROMOTING and order is not None and order.action not in WORKS:
            self._waits_to_promote = True
            if order.action == PAUSE:
                self._rest(order.rule)
            return
        self._enter(stage)
        if self._worker is not None:
            await self._worker.send(Go(stage))

    def _enter(self, stage: State) -> None:
        assert self.current is not None
        if stage is not self.current.standing.state:
            self._move(STAGE_EVENTS[stage])

    def _move(self, event: Event, code: str = "", reason: str = "", until: Until | None = None) -> None:
        """Advance the current job while its worker lives."""
        assert self.current is not None
        table = None if until is None else until.table()
        worked_s = self._books.worked_s
        self.current = self._statuses.move(self.current, event, code, reason, until=table, worked_s=worked_s)
        self._books.enter(self.phase, working=self.current.standing.state is not State.PAUSED)

    def _rest(self, rule: str) -> None:
        """The worker rests, or has another reason for it."""
        assert self.current is not None
        state = self.current.standing.state
        if (state, Event.PAUSE) not in TABLE:
            return
        if state is not State.PAUSED:
            self._rests_in = state
        stage = "training is paused" if self._rests_in is State.TRAINING else f"rests in {str(self._rests_in).lower()}"
        self._move(Event.PAUSE, rule, stage, self._released(rule))

    def _released(self, rule: str) -> Until:
        """What lets a job go on that rests by `rule`."""
        assert self.current is not None
        if rule == HELD:
            return held().until
        if rule == JOB_HOT and (hot := too_hot(self.current.spec, None, before=True)):
            return hot.until
        return board_waits(self._steering.policy, rule, self._clock.hour()).until

    def _go_on(self) -> None:
        """The worker goes on in the stage in which it rested."""
        assert self.current is not None
        if self.current.standing.state is State.PAUSED and self._rests_in is not None:
            self._move(STAGE_EVENTS[self._rests_in])
            self._rests_in = None

    def _warn(self, what: str) -> None:
        log.warning("job warns", what=what)
        self._warnings = [*self._warnings, what][:MAX_WARNINGS]

    def _follow(self, message: Progress) -> None:
        assert self.current is not None
        self._books.follow(message, self._planned("plan"))
        self._outlooks.follow(message, self._steering.reading)
        self._obedience.hear(message)
        self.progress = message
        if message.event == "paused":
            self._rest(message.rule)
        elif message.event == "resumed":
            self._go_on()
        elif message.event == "checkpoint":
            self._book()
        elif self._clock.mono() - self._told_at >= PROGRESS_EVERY_S:
            self._told_at = self._clock.mono()
            done = message.epoch * message.steps + message.step
            share = min(1.0, done / max(1, message.epochs * message.steps))
            self._statuses.publish(self.current, share, self.eta_s)

    def _book(self) -> None:
        """Keep what the job spent, for another attempt."""
        assert self.current is not None
        energy_j = self._books.keep(self.current.id, self.phase)
        self.current = self._journal.update(
            self.current.id, self._clock.now(), energy_j=energy_j, worked_s=self._books.worked_s
        )

    def accepted(self, record: JobRecord) -> None:
        """A job was entered just now."""
        self._outlooks.accepted(record)

    def waited_too_long(self, record: JobRecord) -> bool:
        """Whether a job that was never begun should have been by now."""
        due = None if record.plan else self._outlooks.due_mono_s(record, "most_wait_s")
        return due is not None and self._clock.mono() >= due

    def forget(self, job_id: str) -> None:
        """The job has ended for good: its record has all that is worth keeping."""
        self._outlooks.forget(job_id)
        self._books.forget(job_id)

    def tick(self) -> None:
        """Call once a second: passes the present decision on, and keeps the energy of a long pause."""
        self.steer()
        if self.current is None:
            return
        with contextlib.suppress(BoardError):  # a full disk is asked again in a second
            if self._clock.mono() - self._books.booked_s >= BOOK_EVERY_S:
                self._book()
            stands, order = self.current.standing, self._sent
            if stands.state is State.PAUSED and order and order.action == PAUSE and order.rule != stands.reason_code:
                self._rest(order.rule)
        if self._worker is not None and self._orders.overdue():
            log.warning("the worker did not end as ordered, it is killed")
            self._worker.kill()

    def steer(self) -> None:
        """Pass the present decision on, unless the worker has it already."""
        order = self._order()
        if self._worker is None or order is None:
            return
        if order != self._sent or order.reverify:
            # Only a worker at its steps can obey at once, and only the governor's orders follow from a reading.
            timed = self.progress is not None and self.training and order == self._steering.steer()
            read_s = self._steering.reading.mono_s if timed else None
            sent = self._worker.offer(self._obedience.numbered(order, read_s))
            self._sent = order if sent else None
        if self._waits_to_promote and order.action in WORKS:
            with contextlib.suppress(BoardError):  # a full disk is asked again in a second
                self._go_on()
                self._enter(State.PROMOTING)
                self._waits_to_promote = not self._worker.offer(Go(State.PROMOTING))

    def _order(self) -> Steer | None:
        return None if self.current is None else self._orders.order(self.current, stopping=self.stopping)

    async def stop(self) -> None:
        """The daemon goes: the worker writes its checkpoint and leaves, or is killed after `STOP_GRACE_S`.

        Returns once the journal has what became of its job: whoever is canceled before that leaves an attempt behind
        that looks interrupted.
        """
        self.stopping = True
        if (worker := self._worker) is not None:
            self.steer()
            await worker.end(STOP_GRACE_S)
        async with self._at_work:
            pass

    def _planned(self, part: str) -> dict[str, object]:
        """A part of what the worker planned."""
        told = self.current.plan.get(part) if self.current and self.current.plan else None
        return told if isinstance(told, dict) else {}
