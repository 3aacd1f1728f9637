"""Runs one job: a worker at a time, followed to its last word, through crashes and stops."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Container

from agent.energy import OTHER, PAUSED, TRAINING
from agent.errors import BoardError, TemperdError
from agent.messages import (
    CLOCK_WRONG,
    MEMORY_CORRUPT,
    METERED,
    OUT_OF_MEMORY,
    WORKER_KILLED,
    Failed,
    Finished,
    Go,
    Message,
    Order,
    Planned,
    Progress,
    Stage,
    Steer,
    Warned,
    can_shrink,
)
from policies.outlook import Outlook
from service.energy_book import EnergyBook
from service.job import MAX_ATTEMPTS, STAGE_EVENTS, TERMINAL, WORKING, Event, State
from service.journal import JobRecord, Journal
from service.logs import logger
from service.obedience import Obedience
from service.outlook import Outlooks
from service.sample_costs import prefix_macs, step_macs
from service.statuses import Clock, Statuses
from service.steering import Steering
from service.worker_process import WorkerProcess

PROGRESS_EVERY_S = 1.0  # a status a second is live to a person and light for a fleet
BOOK_EVERY_S = 60.0  # of energy that `kill -9` may lose where no checkpoint keeps it, as in a pause
STOP_GRACE_S = 20.0  # for the worker to write its checkpoint when the daemon is stopped
MAX_WARNINGS = 20  # kept with the result
OPERATIONS_PER_MAC = 2
BANDWIDTH_METRICS = ("required_bytes_per_s", "measured_bytes_per_s")  # of R10, as the worker found them
PHASES = {State.TRAINING: TRAINING, State.PAUSED: PAUSED}
PATIENT = frozenset({METERED, CLOCK_WRONG})  # why even a job without a plan waits: it would only be sent again
SHRINKABLE = (State.COMPILING, State.TRAINING, State.PAUSED)  # where a smaller micro-batch takes less memory
GOES_ON = "The job goes on from its last verified checkpoint"
STOPPING = "stopping"  # rule of the order with which a stopped daemon ends its worker

log = logger("jobs")


@dataclasses.dataclass(frozen=True, slots=True)
class Workshop:
    """How workers are made.

    Attributes:
        make_order: the worker's order for a job.
        nice: scheduling priority of the worker.
        watch: called with (message, record) for everything the worker says.
        ended: called with the id of a job that has ended for good.
    """

    make_order: Callable[[JobRecord], Order]
    nice: int
    watch: Callable[[Message, JobRecord], None]
    ended: Callable[[str], None]


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
    ) -> None:
        self._journal, self._statuses, self._steering = journal, statuses, steering
        self._clock, self._shop, self._held, self._canceled = clock, shop, held, canceled
        self._worker: WorkerProcess | None = None
        self._sent: Steer | None = None
        self._told_at = self._booked_s = 0.0
        self._counted: tuple[int, int] | None = None
        """Samples and reused ones whose operations count already; `None` until a resumed worker says where it is."""
        self._energies, self._outlooks, self._obedience = EnergyBook(journal), Outlooks(journal, clock), Obedience()
        self._warnings: list[str] = []
        self._memory_faults = 0
        self.stopping = False
        self.told_before: tuple[str, ...] = ()
        """What the next job warns of from its beginning: what a scrub found before it."""
        self.current: JobRecord | None = None
        self.progress: Progress | None = None

    @property
    def phase(self) -> str:
        """What the energy is spent on now, as `agent.energy` names it; empty without a job."""
        return "" if self.current is None else PHASES.get(self.current.standing.state, OTHER)

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
        told = self._steering.energy_metrics(self.progress.samples if self.progress else 0)
        figures = bandwidth if isinstance(bandwidth, dict) else self._bandwidth()
        return told | {name: figures.get(name) for name in BANDWIDTH_METRICS}

    async def run(self, record: JobRecord) -> JobRecord:
        """Run a job to its end, or to the daemon's.

        Raises:
            BoardError: the journal cannot be written; the worker was ended.
        """
        self._steering.start_energy(self._energies.load(record))
        self._obedience, self._booked_s = Obedience(), self._clock.mono()
        self._warnings, self._memory_faults = list(self.told_before), 0
        self.told_before = ()
        try:
            if record.standing.state not in WORKING:
                record = self._statuses.move(record, Event.PULL)
            while record.standing.state in WORKING and not self.stopping:
                self.current, self.progress, self._sent = record, None, None
                self._counted = None if record.plan else (0, 0)
                self._outlooks.begin(record)
                record = await self._attempt(record)
        finally:
            self.current, self.progress = None, None
            with contextlib.suppress(BoardError):  # costs that were measured can be measured again
                self._outlooks.end()
        stands = record.standing
        said = "job ended" if stands.state in TERMINAL else "job put aside"
        log.info(said, job_id=record.id, state=stands.state, reason=stands.reason_code, why=stands.reason)
        return record

    async def _attempt(self, record: JobRecord) -> JobRecord:
        """One worker: follow it until it says the last word or vanishes."""
        order = self._shop.make_order(record)
        worker = self._worker = await WorkerProcess.start(
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
        return self._conclude(self.current, last, code)

    def _conclude(self, record: JobRecord, last: Message | None, code: int) -> JobRecord:
        """What the end of a worker means for its job."""
        concluded = self._concluded(record, last, code)
        if concluded.standing.state in TERMINAL:
            self.forget(concluded.id)
        return concluded

    def _concluded(self, record: JobRecord, last: Message | None, code: int) -> JobRecord:
        if isinstance(last, Finished | Failed):
            return self._after_last_word(record, last)
        if record.id in self._canceled and record.standing.state is not State.PROMOTING:
            energy_j = self._book_energy(record)
            return self._statuses.move(record, Event.CANCEL, "canceled", "canceled by an operator", energy_j=energy_j)
        if self.stopping:
            return record  # killed by the stop: the next start counts it as an interrupted attempt
        ended = WORKER_KILLED if code == -signal.SIGKILL else "worker-crashed"
        told = f"the worker ended with code {code}"
        return self._statuses.move(record, Event.RESTART, ended, told, energy_j=self._book_energy(record))

    def _after_last_word(self, record: JobRecord, last: Finished | Failed) -> JobRecord:
        """A worker that could say how it ended: put aside, try again smaller, or end the job."""
        promoting = record.standing.state is State.PROMOTING
        if isinstance(last, Failed) and last.code == STOPPING and not promoting:
            return self._statuses.move(
                record,
                Event.SUSPEND,
                "daemon-stopped",
                "goes on when the daemon runs again",
                energy_j=self._book_energy(record),
            )
        if isinstance(last, Failed) and (last.code in PATIENT or (last.code == "network" and record.plan)):
            return self._statuses.move(
                record, Event.SUSPEND, last.code, last.message, energy_j=self._book_energy(record)
            )
        if isinstance(last, Failed) and last.code == OUT_OF_MEMORY and self._can_shrink(record):
            return self._statuses.move(record, Event.RESTART, OUT_OF_MEMORY, "goes on with a smaller micro-batch")
        if isinstance(last, Failed) and last.code == MEMORY_CORRUPT:
            self._memory_faults += 1
            self._steering.memory_faults += 1
            self._warn(f"attempt {record.standing.attempt}: {last.message}")
            if record.standing.attempt < MAX_ATTEMPTS and not promoting:
                return self._statuses.move(record, Event.RESTART, MEMORY_CORRUPT, f"{last.message}. {GOES_ON}")
        return self._finish(record, last)

    @staticmethod
    def _can_shrink(record: JobRecord) -> bool:
        """Whether there is an attempt left, and a plan that it can shrink."""
        plan = (record.plan or {}).get("plan")
        left = record.standing.attempt < MAX_ATTEMPTS and record.standing.state in SHRINKABLE
        return left and isinstance(plan, dict) and can_shrink(plan)

    async def _hear(self, message: Message) -> Message:
        assert self.current is not None
        match message:
            case Stage(stage=stage):
                state = State(stage)
                if state is not self.current.standing.state:
                    self.current = self._statuses.move(self.current, STAGE_EVENTS[state])
                    self._steering.enter(self._clock.mono(), self.phase)
                log.info("stage", stage=stage, detail=message.detail)
                if self._worker is not None:
                    await self._worker.send(Go(stage))
            case Planned(plan=plan):
                self.current = self._journal.update(self.current.id, self._clock.now(), plan=plan)
                self._outlooks.planned(self.current)
            case Progress():
                self._follow(message)
            case Warned(what=what):
                self._warn(what)
        self._shop.watch(message, self.current)
        return message

    def _warn(self, what: str) -> None:
        log.warning("job warns", what=what)
        self._warnings = [*self._warnings, what][:MAX_WARNINGS]

    def _follow(self, message: Progress) -> None:
        assert self.current is not None
        self._count_operations(message)
        self._outlooks.follow(message, self._steering.reading)
        self._obedience.hear(message)
        self.progress = message
        state = self.current.standing.state
        if message.event == "paused" and state is State.TRAINING:
            self.current = self._statuses.move(self.current, Event.PAUSE, message.rule, "training is paused")
            self._steering.enter(self._clock.mono(), self.phase)
        elif message.event == "resumed" and state is State.PAUSED:
            self.current = self._statuses.move(self.current, Event.TRAIN)
            self._steering.enter(self._clock.mono(), self.phase)
        elif message.event == "checkpoint":
            self.current = self._journal.update(
                self.current.id, self._clock.now(), energy_j=self._book_energy(self.current)
            )
        elif self._clock.mono() - self._told_at >= PROGRESS_EVERY_S:
            self._told_at = self._clock.mono()
            done = message.epoch * message.steps + message.step
            self._statuses.publish(self.current, min(1.0, done / max(1, message.epochs * message.steps)))

    def _book_energy(self, record: JobRecord) -> float:
        """Keep what the job spent, for another attempt; the joules."""
        self._booked_s = self._clock.mono()
        self._steering.enter(self._clock.mono(), self.phase or OTHER)
        self._energies.keep(record.id, self._steering.energy)
        return self._steering.joules

    def _told(self, record: JobRecord, bandwidth: object) -> dict[str, object]:
        """What the daemon knows of a job that ends, beside the worker's result."""
        self._steering.enter(self._clock.mono(), OTHER)
        energy = self.energy_metrics(bandwidth)
        told = {"energy": energy, "warnings": self._warnings, "memory_faults": self._memory_faults}
        governor = self._steering.governor_told() | self._obedience.told()
        told |= {"governor": governor, "sample_costs": self._outlooks.costs_told()}
        deadline = self._outlooks.deadline_told(record)
        return told if deadline is None else told | {"deadline": deadline}

    def _finish(self, record: JobRecord, last: Finished | Failed) -> JobRecord:
        result = {**last.result, **self._told(record, last.result.get("bandwidth"))}
        if isinstance(last, Finished):
            succeeded = last.outcome == "SUCCEEDED"
            event = Event.SUCCEED if succeeded else Event.ROLL_BACK
            code, reason = ("", "") if succeeded else ("self-test", last.reason)
        else:
            event = Event.CANCEL if last.outcome == "CANCELED" else Event.FAIL
            code, reason = last.code, last.message
        return self._statuses.move(record, event, code, reason, result=result, energy_j=self._steering.joules)

    def accepted(self, record: JobRecord) -> None:
        """A job was entered just now."""
        self._outlooks.accepted(record)

    def forget(self, job_id: str) -> None:
        """The job has ended for good: its record has all that is worth keeping."""
        self._outlooks.forget(job_id)
        with contextlib.suppress(BoardError):  # a few hundred bytes stay until newer jobs push them out
            self._energies.forget(job_id)

    def tick(self) -> None:
        """Call once a second: passes the present decision on, and keeps the energy of a long pause."""
        self.steer()
        if self.current is not None and self._clock.mono() - self._booked_s >= BOOK_EVERY_S:
            with contextlib.suppress(BoardError):  # a full disk is asked again after as long
                self._book_energy(self.current)

    def steer(self) -> None:
        """Pass the present decision on, unless the worker has it already."""
        if self._worker is None or self.current is None:
            return
        order = asked = self._steering.steer()
        if self.current.id in self._canceled:
            order = dataclasses.replace(order, action="ABORT", rule="canceled")
        elif self.stopping:
            order = dataclasses.replace(order, action="ABORT", rule=STOPPING)
        elif self.current.id in self._held and order.action != "ABORT":
            order = dataclasses.replace(order, action="PAUSE", rule="held")
        if order != self._sent or order.reverify:
            # Only a worker at its steps can obey at once, and only the governor's orders follow from a reading.
            timed = self.progress is not None and self.training and order is asked
            read_s = self._steering.reading.mono_s if timed else None
            sent = self._worker.offer(self._obedience.numbered(order, read_s))
            self._sent = order if sent else None

    async def stop(self) -> None:
        """The daemon goes: the worker writes its checkpoint and leaves, or is killed after `STOP_GRACE_S`."""
        self.stopping = True
        worker = self._worker
        if worker is not None:
            self.steer()
            await worker.end(STOP_GRACE_S)

    def _plan(self) -> dict[str, object]:
        plan = self.current.plan.get("plan") if self.current and self.current.plan else None
        return plan if isinstance(plan, dict) else {}

    def _bandwidth(self) -> dict[str, object]:
        told = self.current.plan.get("bandwidth") if self.current and self.current.plan else None
        return told if isinstance(told, dict) else {}

    def _count_operations(self, message: Progress) -> None:
        """Arithmetic operations of the steps since the last message, by the plan's cost table."""
        plan, depth = self._plan(), message.depth_percent
        samples, reused = self._counted or (message.samples, message.reused)
        self._counted = message.samples, message.reused
        macs = (message.samples - samples) * step_macs(plan).get(depth, 0)
        spared = (message.reused - reused) * prefix_macs(plan, depth)
        self._steering.count_operations(max(0, macs - spared) * OPERATIONS_PER_MAC)
