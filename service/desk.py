"""The job desk: takes commands, keeps the journal ahead of every effect, runs one job at a time."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from agent.errors import BoardError, CommandError, TemperdError
from agent.messages import Failed, Finished, Go, Message, Order, Planned, Progress, Stage, Steer, Warned
from agent.spec import FineTuneSpec, spec_table
from policies.freezing import order_jobs
from policies.policy import Policy
from policies.reading import Action
from service.commands import CANCEL, FINE_TUNE, PAUSE, Command, Refusal, open_command
from service.device_link import Incoming
from service.job import STAGE_EVENTS, TERMINAL, WORKING, Event, Standing, State, TransitionError, advance
from service.journal import JobRecord, Journal, Verdict
from service.logs import bind, logger
from service.steering import Steering
from service.worker_process import WorkerProcess

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PROGRESS_EVERY_S = 1.0  # a status a second is live to a person and light for a fleet
RETRY_DISK_S = 5.0  # a full disk is usually emptied by a person or a log rotation
MAX_WARNINGS = 20  # kept with the result
OPERATIONS_PER_MAC = 2

log = logger("jobs")


class Uplink(Protocol):
    """Where statuses go: the MQTT link, or nowhere for a job without a broker."""

    def publish_status(
        self, command_type: str, command_id: str, status: Mapping[str, object]
    ) -> asyncio.Future[bool] | None:
        """Publish a retained status; a future that gives True once confirmed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Surroundings:
    """What the desk needs of the daemon.

    Attributes:
        make_order: the worker's order for a job.
        nice: scheduling priority of the worker.
        now: wall clock, seconds since 1970.
        mono: monotonic clock, seconds.
        clock_synchronised: whether `now` can be believed.
        watch: called with (message, record) for everything the worker says.
    """

    make_order: Callable[[JobRecord], Order]
    nice: int
    now: Callable[[], float]
    mono: Callable[[], float]
    clock_synchronised: Callable[[], bool]
    watch: Callable[[Message, JobRecord], None]


class Desk:
    """See the module."""

    def __init__(
        self,
        journal: Journal,
        steering: Steering,
        policy: Policy,
        uplink: Uplink,
        trusted: Callable[[], Mapping[str, Ed25519PublicKey]],
        device: str,
        around: Surroundings,
    ) -> None:
        self._journal, self._steering, self._policy = journal, steering, policy
        self._uplink, self._trusted, self._device, self._around = uplink, trusted, device, around
        self._news = asyncio.Event()
        self._worker: WorkerProcess | None = None
        self._sent: Steer | None = None
        self._held: set[str] = set()
        self._canceled: set[str] = set()
        self.current: JobRecord | None = None
        self.progress: Progress | None = None
        self._told_at = 0.0
        self._operations = 0.0
        self._warnings: list[str] = []

    # --- state the daemon asks for -----------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether energy counts for the job now."""
        return self.current is not None and self.current.standing.state in (State.TRAINING, State.PAUSED)

    @property
    def plan_depth_percent(self) -> int:
        """Freeze depth the current job planned; 0 without one."""
        plan = self._plan()
        return int(plan.get("depth_percent", 0)) if plan else 0  # type: ignore[call-overload]  # a number by `Plan`

    def energy_metrics(self) -> dict[str, object]:
        """The `energy` group of the telemetry for the current job."""
        return self._steering.energy_metrics(self.progress.samples if self.progress else 0, self._operations)

    def _count_operations(self, message: Progress) -> None:
        """Arithmetic operations of the steps since the last message, by the plan's cost table."""
        ladder = (self._plan() or {}).get("ladder")
        macs = {rung["percent"]: rung["step_macs"] for rung in ladder} if isinstance(ladder, list) else {}
        new = message.samples - (self.progress.samples if self.progress else 0)
        self._operations += max(0, new) * macs.get(message.depth_percent, 0) * OPERATIONS_PER_MAC

    def _plan(self) -> dict[str, object] | None:
        plan = self.current.plan if self.current and self.current.plan else None
        inner = plan.get("plan") if plan else None
        return inner if isinstance(inner, dict) else None

    # --- commands ----------------------------------------------------------------------------------------------------

    def take(self, incoming: Incoming) -> None:
        """Judge a command, journal it, acknowledge it, act on it: in this order."""
        try:
            command = open_command(
                incoming.envelope,
                topic_type=incoming.type,
                topic_id=incoming.id,
                trusted=self._trusted(),
                device=self._device,
                now=self._around.now(),
                clock_synchronised=self._around.clock_synchronised(),
            )
            self._carry_out(command)
        except BoardError as error:  # not acknowledged: the broker keeps the command until the disk takes it
            log.error("a command could not be journaled", id=incoming.id, why=str(error))  # noqa: TRY400 - said whole
            return
        except CommandError as error:
            log.warning("command refused", id=incoming.id, type=incoming.type, reason=error.code, why=str(error))
            self._answer_refusal(incoming, error)
        incoming.ack()

    def _answer_refusal(self, incoming: Incoming, error: CommandError) -> None:
        """Say why, unless the id is that of an accepted command: its status is not for a stranger to replace."""
        if self._journal.outcome(incoming.id) is None and self._journal.job(incoming.id) is None:
            self._publish_plain(incoming.type, incoming.id, "rejected", error.code, str(error))

    def _carry_out(self, command: Command) -> None:
        verdict = self._journal.judge(command.id, command.digest)
        if verdict is Verdict.REPLAY:
            raise CommandError("this id was used before", where=command.id, reason=Refusal.REPLAY)
        if verdict is Verdict.REPEAT:
            self._repeat(command)
        elif command.type == FINE_TUNE:
            self.accept(command.id, command.digest, command.spec)
        else:
            self._control(command)

    def _repeat(self, command: Command) -> None:
        log.info("command repeated, nothing runs again", id=command.id)
        record = self._journal.job(command.id)
        if record is not None:
            self._publish(record)
        else:
            status, _, reason = (self._journal.outcome(command.id) or "succeeded").partition(":")
            self._publish_plain(command.type, command.id, status, reason, "")

    def accept(self, job_id: str, digest: str, spec: FineTuneSpec) -> JobRecord:
        """Enter a fine-tune job; RECEIVED, then ACCEPTED."""
        record = self._journal.add_job(job_id, digest, FINE_TUNE, spec_table(spec), self._around.now())
        self._publish(record)
        record = self._move(record, Event.ACCEPT)
        log.info("job accepted", job_id=job_id, model=spec.model, data=spec.data)
        self._news.set()
        return record

    def _control(self, command: Command) -> None:
        """Cancel, pause or resume a job."""
        record = self._journal.job(command.job)
        if record is None or record.standing.state in TERMINAL or record.standing.state is State.PROMOTING:
            stands = "unknown" if record is None else record.standing.state.lower()
            self._journal.record(command.id, command.digest, "rejected:wrong-state")
            self._publish_plain(command.type, command.id, "rejected", "wrong-state", f"job {command.job} is {stands}")
            return
        self._journal.record(command.id, command.digest, "succeeded")
        if command.type == CANCEL:
            self._canceled.add(record.id)
            if record.standing.state not in WORKING:
                self._move(record, Event.CANCEL, "canceled", "canceled by an operator")
        elif command.type == PAUSE:
            self._held.add(record.id)
        else:
            self._held.discard(record.id)
        self._publish_plain(command.type, command.id, "succeeded", "", "")
        self._news.set()

    # --- jobs --------------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """After a start: jobs that had a worker are due another attempt."""
        for record in self._journal.interrupted():
            moved = self._move(record, Event.RESTART, "restarted", "the daemon was restarted")
            log.warning("job interrupted", job_id=record.id, was=record.standing.state, now=moved.standing.state)
        self._news.set()

    async def work(self) -> None:
        """Run jobs for ever, one at a time."""
        while True:
            record = self._next()
            if record is None:
                self._news.clear()
                await self._news.wait()
                continue
            with bind(job_id=record.id):
                try:
                    await self.run(record)
                except BoardError as error:
                    log.error("the journal cannot be written, the job waits", why=str(error))  # noqa: TRY400 - said whole
                    await self._regain(record)

    async def _regain(self, record: JobRecord) -> None:
        """Wait until the journal takes writes again; the job then starts over from its checkpoint."""
        self.current, self.progress = None, None
        while True:
            await asyncio.sleep(RETRY_DISK_S)
            with contextlib.suppress(BoardError):
                kept = self._journal.job(record.id)
                if kept is not None and kept.standing.state in WORKING:
                    self._move(kept, Event.RESTART, "no-space", "the journal could not be written")
                return

    def _next(self) -> JobRecord | None:
        """The job to run now: an interrupted one first, then by the order of R11."""
        waiting = {record.id: record for record in self._journal.unfinished() if record.id not in self._held}
        interrupted = [record for record in waiting.values() if record.standing.state in WORKING]
        if interrupted:
            return interrupted[0]
        if self._steering.decision.action >= Action.PAUSE:
            for record in waiting.values():
                if record.standing.reason_code != self._steering.decision.rule:
                    self._move(record, Event.DEFER, self._steering.decision.rule, "waits until the board allows it")
            return None
        depths = [(record.id, _asked_depth(record, self._policy)) for record in waiting.values()]
        order = order_jobs(self._policy.battery, self._steering.reading.charge, depths)
        return waiting[order[0]] if order else None

    async def run(self, record: JobRecord) -> JobRecord:
        """Run one job to its end, through crashes of the worker."""
        self._steering.start_energy(record.energy_j or 0.0)
        self._warnings, self._operations = [], 0.0
        while record.standing.state not in TERMINAL:
            if record.standing.state not in WORKING:
                record = self._move(record, Event.PULL)
            self.current, self.progress, self._sent = record, None, None
            record = await self._attempt(record)
        self.current, self.progress = None, None
        self._canceled.discard(record.id)
        self._held.discard(record.id)
        ended = record.standing
        log.info("job ended", job_id=record.id, state=ended.state, reason=ended.reason_code, why=ended.reason)
        return record

    async def _attempt(self, record: JobRecord) -> JobRecord:
        """One worker: follow it until it says the last word or vanishes."""
        order = self._around.make_order(record)
        self._worker = await WorkerProcess.start(order, self._around.nice, lambda line: log.info("worker", line=line))
        log.info("worker started", pid=self._worker.pid, attempt=record.standing.attempt)
        last: Message | None = None
        try:
            await self.steer()
            async for message in self._worker.messages():
                last = await self._hear(message)
            code = await self._worker.end()
        except BoardError:
            raise
        except TemperdError as error:
            code = await self._worker.end(0.0)
            log.warning("worker misbehaved", why=str(error))
        finally:
            worker, self._worker = self._worker, None
            await worker.end(0.0)
        assert self.current is not None
        record = self.current
        if isinstance(last, Finished | Failed):
            return self._finish(record, last)
        if record.id in self._canceled and record.standing.state is not State.PROMOTING:
            return self._move(record, Event.CANCEL, "canceled", "canceled by an operator")
        return self._move(record, Event.RESTART, "worker-crashed", f"the worker ended with code {code}")

    async def _hear(self, message: Message) -> Message:
        assert self.current is not None
        assert self._worker is not None
        match message:
            case Stage(stage=stage):
                state = State(stage)
                if state is not self.current.standing.state:
                    self.current = self._move(self.current, STAGE_EVENTS[state])
                log.info("stage", stage=stage, detail=message.detail)
                await self._worker.send(Go(stage))
            case Planned(plan=plan):
                self.current = self._journal.update(self.current.id, self._around.now(), plan=plan)
            case Progress():
                self._follow(message)
            case Warned(what=what):
                log.warning("job warns", what=what)
                self._warnings = [*self._warnings, what][:MAX_WARNINGS]
        self._around.watch(message, self.current)
        return message

    def _follow(self, message: Progress) -> None:
        assert self.current is not None
        self._count_operations(message)
        self.progress = message
        state = self.current.standing.state
        if message.event == "paused" and state is State.TRAINING:
            self.current = self._move(self.current, Event.PAUSE, message.rule, "training is paused")
        elif message.event == "resumed" and state is State.PAUSED:
            self.current = self._move(self.current, Event.RESUME)
        elif message.event == "checkpoint":
            self.current = self._journal.update(self.current.id, self._around.now(), energy_j=self._steering.joules)
        elif self._around.mono() - self._told_at >= PROGRESS_EVERY_S:
            self._publish(self.current)

    def _finish(self, record: JobRecord, last: Finished | Failed) -> JobRecord:
        result = {**last.result, "energy": self.energy_metrics(), "warnings": self._warnings}
        if isinstance(last, Finished):
            event = Event.SUCCEED if last.outcome == "SUCCEEDED" else Event.ROLL_BACK
            code, reason = ("", "") if event is Event.SUCCEED else ("self-test", last.reason)
        else:
            event = Event.CANCEL if last.outcome == "CANCELED" else Event.FAIL
            code, reason = last.code, last.message
        standing = advance(record.standing, event, code, reason)
        record = self._journal.update(
            record.id, self._around.now(), standing=standing, result=result, energy_j=self._steering.joules
        )
        self._publish(record)
        return record

    # --- orders to the worker ----------------------------------------------------------------------------------------

    async def steer(self) -> None:
        """Pass the present decision on, unless the worker has it already; also wakes deferred jobs."""
        self._news.set()
        if self._worker is None or self.current is None:
            return
        order = self._steering.steer()
        if self.current.id in self._canceled:
            order = dataclasses.replace(order, action="ABORT", rule="canceled")
        elif self.current.id in self._held and order.action != "ABORT":
            order = dataclasses.replace(order, action="PAUSE", rule="held")
        if order != self._sent or order.reverify:
            self._sent = order
            await self._worker.send(order)

    async def stop(self) -> None:
        """End the worker; its job goes on at the next start."""
        if self._worker is not None:
            await self._worker.end(0.0)

    # --- statuses ----------------------------------------------------------------------------------------------------

    def _move(self, record: JobRecord, event: Event, code: str = "", reason: str = "") -> JobRecord:
        try:
            standing: Standing = advance(record.standing, event, code, reason)
        except TransitionError as error:
            log.warning("wrong transition", job_id=record.id, why=str(error))
            return record
        record = self._journal.update(record.id, self._around.now(), standing=standing)
        self._publish(record)
        return record

    def publish_pending(self) -> None:
        """Publish every status that the broker has not confirmed."""
        for record in self._journal.unpublished():
            self._publish(record)

    def _publish(self, record: JobRecord) -> None:
        self._told_at = self._around.mono()
        status = record.status(ts=self._around.now(), clock=self._clock(), progress=self._share(record))
        done = self._uplink.publish_status(record.type, record.id, status)
        if done is not None:
            done.add_done_callback(lambda future: self._confirmed(record) if future.result() else None)

    def _confirmed(self, record: JobRecord) -> None:
        with contextlib.suppress(BoardError):  # on a full disk it stays unconfirmed and is published once more
            self._journal.mark_published(record.id, record.version)

    def _share(self, record: JobRecord) -> float | None:
        """Progress of training, 0..1."""
        seen = self.progress
        if seen is None or self.current is None or record.id != self.current.id:
            return None
        return min(1.0, (seen.epoch * seen.steps + seen.step) / max(1, seen.epochs * seen.steps))

    def _publish_plain(self, kind: str, command_id: str, status: str, code: str, reason: str) -> None:
        body = {"id": command_id, "status": status, "step": "", "version": 1, "attempt": 1, "reason_code": code}
        rest = {"reason": reason[:500], "progress": None, "energy_j": None, "result": None}
        self._uplink.publish_status(
            kind, command_id, {**body, **rest, "ts": self._around.now(), "clock": self._clock()}
        )

    def _clock(self) -> str:
        return "synchronised" if self._around.clock_synchronised() else "unsynchronised"


def _asked_depth(record: JobRecord, policy: Policy) -> int:
    """Depth a waiting job asked for, in percent; unknown depths count as the policy's default."""
    asked = str(record.spec.get("depth", "auto"))
    return {"auto": policy.freezing.unknown_percent, "head": 100}.get(asked) or int(asked if asked.isdigit() else 0)
