"""The job desk: keeps the journal ahead of every effect and decides which job is next."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping

from agent.errors import BoardError
from agent.keys_consoles import TrustedConsole
from agent.messages import Scrubbed
from agent.spec import FineTuneSpec, spec_table
from service.agent_trial import AgentTrial
from service.agent_update import AgentUpdates, UpdateShop
from service.answers import Answers
from service.command_desk import CommandDesk, Rooms
from service.commands import FINE_TUNE, Command
from service.conclusion import PATIENT
from service.holds import Holds
from service.job import TERMINAL, WORKING, Event
from service.journal import JobRecord, Journal
from service.kept import recall_names
from service.logs import bind, logger
from service.model_commands import ModelCommands, ModelShop
from service.policy_commands import PolicyCommands
from service.policy_file import PolicyFile
from service.qualify_command import Qualifications, QualifyShop
from service.report import no_report, report_of
from service.runner import Runner
from service.scrub import Scrubs, ScrubShop
from service.state_version import BoardState
from service.statuses import UNSAVED_S, Clock, Statuses, Uplink
from service.steering import Steering
from service.system_shop import SystemShop
from service.system_trial import Sight
from service.system_update import SystemUpdates
from service.until import RETRY_DISK_S
from service.waiting import WaitingLine
from service.workshop import Workshop

UNSAVED_ANSWERS = 5  # told once more after each connect: 2 KB

log = logger("jobs")


class Desk:
    """See the module.

    Args:
        journal: the daemon's memory.
        steering: the governor's present decision.
        policies: what is in force.
        uplink: where statuses go.
        trusted: reads the consoles that are obeyed, by key id.
        device: this board's name.
        clock: see `Clock`.
        shop: how workers are made.
        scrub_shop: how scrubs are made.
        qualify_shop: how stress runs are made.
        model_shop: how models are scored and exchanged.
        update_shop: how temperd itself is updated.
        system_shop: how the system is updated.
        sight: what the trial of a new system looks at.
        state: reads what a command's expectations are held against.
        policy_by_command: whether consoles may set the policy.
        report: what the journal is to remember of the report that a command asks for.
        trial: of the release that runs; `None`: it is on none.
    """

    def __init__(
        self,
        journal: Journal,
        steering: Steering,
        policies: PolicyFile,
        uplink: Uplink,
        trusted: Callable[[], Mapping[str, TrustedConsole]],
        device: str,
        clock: Clock,
        shop: Workshop,
        *,
        scrub_shop: ScrubShop,
        qualify_shop: QualifyShop,
        model_shop: ModelShop,
        update_shop: UpdateShop,
        system_shop: SystemShop,
        sight: Sight,
        state: Callable[[], BoardState],
        policy_by_command: bool = True,
        report: Callable[[Command], dict[str, str]] = no_report,
        trial: AgentTrial | None = None,
    ) -> None:
        self._journal, self._steering, self._policies = journal, steering, policies
        self._clock, self._ended, self._trial = clock, shop.ended, trial
        self._statuses = Statuses(journal, uplink, clock)
        self._held, self._canceled = Holds(journal), _Names(journal, "canceled")
        self._news = asyncio.Event()
        self._again_from: float | None = None
        """Statuses of jobs that changed since then are to be told once more, seconds since 1970; `None`: none are."""
        self.models = ModelCommands(journal, self._statuses, steering, clock, model_shop)
        self.updates = AgentUpdates(journal, self._statuses, clock, update_shop)
        self.system = SystemUpdates(journal, self._statuses, clock, system_shop, sight)
        self.runner = Runner(
            *(journal, self._statuses, steering, clock, shop, self._held, self._canceled),
            lambda: self.models.urgent or self.system.urgent,
        )
        self.line = WaitingLine(
            journal, self._statuses, steering, clock, self._held, self.runner.waited_too_long, self._settle
        )
        self.scrubs = Scrubs(journal, self._statuses, steering, policies.policy, clock, scrub_shop)
        self.qualifications = Qualifications(
            journal, self._statuses, steering, clock, qualify_shop, lambda: policies.policy
        )
        answers = Answers(journal, self._statuses, lambda command_id: report_of(journal, command_id))
        policy_commands = PolicyCommands(
            journal, answers, policies, allowed=policy_by_command, changed=self.policy_changed
        )
        rooms = Rooms(
            *(self, self.scrubs, self.qualifications, self.models),
            *(policy_commands, self.updates, self.system),
            *(report, self._safe_mode),
        )
        self.commands = CommandDesk(journal, self._statuses, answers, clock, trusted, device, rooms, state)

    # --- what commands do ---------------------------------------------------------------------------------------------

    def accept(self, job_id: str, digest: str, spec: FineTuneSpec) -> JobRecord:
        """Enter a fine-tune job; RECEIVED, then ACCEPTED."""
        record = self._journal.add_job(job_id, digest, FINE_TUNE, spec_table(spec), self._clock.now())
        self._statuses.publish(record)
        record = self._statuses.move(record, Event.ACCEPT)
        self.runner.accepted(record)
        log.info("job accepted", job_id=job_id, model=spec.model, data=spec.data)
        self.scrubs.hurry()
        self.wake()
        return record

    def canceling(self, job_id: str) -> dict[str, str]:
        """What the journal is to remember so that a job ends; `obey` once it does."""
        return self._canceled.with_name(job_id)

    def superseded_by(self, command: Command) -> str:
        """See `Holds`."""
        return self._held.superseded_by(command)

    def holding(self, command: Command) -> dict[str, str]:
        """What the journal is to remember so that a job rests or goes on; `obey` once it does."""
        return self._held.after(command)

    def obey(self) -> None:
        """Do what the journal remembers: end what is canceled and has no worker; the others end when their worker does.

        Raises:
            BoardError: the disk refuses; it is done at the next `obey` or when the next job is looked for.
        """
        self._held.reload()
        self._canceled.reload()
        self._end_canceled()
        self.runner.steer()
        self.wake()

    def policy_changed(self) -> None:
        """Another policy is in force: the governor and the scrubs take it, and waiting jobs may run."""
        self._steering.set_policy(self._policies.policy)
        self.scrubs.set_policy(self._policies.policy)
        self.wake()

    def catch_up(self) -> None:
        """While there is a broker, call once a second: what disk or broker did not take before is done now.

        Raises:
            BoardError: the disk refuses still.
        """
        self._tell_again()
        self.commands.retry()
        self.publish_pending()

    def publish_pending(self) -> None:
        """Publish some of the statuses that the broker has not confirmed; call again until none is left."""
        self._statuses.publish_pending()
        self.commands.answers.publish_pending()
        self.scrubs.publish_pending()
        self.qualifications.publish_pending()
        self.models.publish_pending()
        self.updates.publish_pending()
        self.system.publish_pending()

    def broker_lost(self) -> None:
        """The broker lost what it kept: statuses are told once more.

        Raises:
            BoardError: the disk refuses; it is done with the next `catch_up`.
        """
        self._again_from = 0.0
        self.commands.answers.broker_lost()
        self.scrubs.broker_lost()
        self.qualifications.broker_lost()
        self.models.broker_lost()
        self.updates.broker_lost()
        self.system.broker_lost()
        self._tell_again()

    def broker_was_away(self) -> None:
        """It may have crashed, and then lost what it was told last and had not saved: that is told once more.

        Raises:
            BoardError: the disk refuses; it is done with the next `catch_up`.
        """
        since = self._clock.now() - UNSAVED_S
        self._again_from = since if self._again_from is None else min(since, self._again_from)
        self.commands.answers.broker_lost(UNSAVED_ANSWERS)
        self.scrubs.broker_lost()
        self.qualifications.broker_lost()
        self.models.broker_lost()
        self.updates.broker_lost()
        self.system.broker_lost()
        self._tell_again()

    def _tell_again(self) -> None:
        if self._again_from is not None:
            self._journal.forget_published(self._again_from)
            self._again_from = None

    @property
    def at_work(self) -> bool:
        """Whether anything heats the board, be it a job, a room's work or the test of a release on trial."""
        rooms = (self.scrubs, self.qualifications, self.models, self.updates, self.system)
        testing = self._trial is not None and self._trial.running
        return testing or self.runner.current is not None or any(room.running for room in rooms)

    # --- jobs --------------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """After a start: jobs that had a worker are due another attempt; a stress run that was cut short has failed."""
        self.qualifications.recover()
        self.models.recover()
        self.updates.recover()
        self.system.recover()
        unfinished = {record.id for record in self._journal.unfinished()}
        for job_id in {*self._held, *self._canceled} - unfinished:
            self._held.discard(job_id)
            self._canceled.discard(job_id)
        for record in self._journal.interrupted():
            moved = self._statuses.move(record, Event.RESTART, "restarted", "the daemon was restarted")
            log.warning("job interrupted", job_id=record.id, was=record.standing.state, now=moved.standing.state)
            self._settle(moved)
        self.wake()

    def wake(self) -> None:
        """Something changed, or may have: a waiting job may run, and those that may not are told what they wait for."""
        self._news.set()
        running = self.runner.current
        if running is None and not any(room.running for room in (self.qualifications, self.models, self.system)):
            return  # whoever looks for the next job tells them
        with contextlib.suppress(BoardError):  # on a full disk it is done a second later
            self._end_canceled()
            self.line.review("" if running is None else running.id)

    async def work(self) -> None:
        """Run jobs, scrubs, stress runs and what is done with models, one at a time, until the runner is stopped."""
        while not self.runner.stopping:
            try:
                if self._safe_mode():  # what waits stays where it is; another system may be the cure
                    self._end_canceled()
                    if self.system.due():
                        await self.system.run()
                        continue
                elif await self._work_once():
                    continue
            except BoardError as error:
                log.error("jobs wait for the disk", why=str(error))  # noqa: TRY400 - said whole
                await asyncio.sleep(RETRY_DISK_S)
            self._news.clear()
            await self._news.wait()

    def _safe_mode(self) -> str:
        return self._trial.safe_mode if self._trial is not None else ""

    async def _work_once(self) -> bool:
        """Do what is due next; false where nothing is."""
        if self._trial is not None and self._trial.due():
            await self._trial.run()
        elif self.system.due():
            await self.system.run()
        elif self.qualifications.due():
            await self.qualifications.run()
        elif self.models.due():
            await self.models.run()
        elif (record := self._next()) is None:
            if not self.scrubs.due():
                return False
            await self.scrubs.run(awaited=False)
        elif self.scrubs.due_before_job():
            await self.scrub_first()  # the board may be another afterwards
        else:
            with bind(job_id=record.id):
                await self.run(record)
        return True

    async def scrub_first(self) -> None:
        """Scrub before a job, unless it was done just now; the job runs whatever is found, and warns of it."""
        if self.scrubs.due_before_job() and isinstance(await self.scrubs.run(awaited=True), Scrubbed):
            self.runner.told_before = self.scrubs.sentences()

    async def run(self, record: JobRecord) -> JobRecord:
        """Run one job; on a full disk wait until the journal takes writes again."""
        try:
            record = await self.runner.run(record)
        except BoardError as error:
            log.error("the journal cannot be written, the job waits", why=str(error))  # noqa: TRY400 - said whole
            return await self._regain(record)
        self._settle(record)
        self.scrubs.job_ended()
        self.models.job_ended()
        if record.standing.reason_code in {"network", *PATIENT}:
            self.line.retry_later(record.id)
        return record

    def _settle(self, record: JobRecord) -> None:
        """Forget what an ended job needs no more."""
        if record.standing.state in TERMINAL:
            self._ended(record.id)
            self.runner.forget(record.id)
            self.line.forget(record.id)
            with contextlib.suppress(BoardError):  # on a full disk the next start does it
                self._held.discard(record.id)
                self._canceled.discard(record.id)

    async def _regain(self, record: JobRecord) -> JobRecord:
        """The journal takes writes again: the job starts over from its checkpoint."""
        while True:
            await asyncio.sleep(RETRY_DISK_S)
            with contextlib.suppress(BoardError):
                kept = self._journal.job(record.id) or record
                if kept.standing.state in WORKING:
                    kept = self._statuses.move(kept, Event.RESTART, "no-space", "the journal could not be written")
                self._settle(kept)
                return kept

    def _end_canceled(self) -> None:
        """Canceled jobs without a worker end here; the others when their worker does."""
        if not self._canceled:
            return
        busy = self.runner.current.id if self.runner.current else ""
        for record in self._journal.unfinished():
            if record.id in self._canceled and record.id != busy:
                self._settle(self._statuses.move(record, Event.CANCEL, "canceled", "canceled by an operator"))

    def _next(self) -> JobRecord | None:
        """The job to run now."""
        self._end_canceled()
        return self.line.next()


class _Names:
    """A set of job ids that outlives the daemon."""

    def __init__(self, journal: Journal, name: str) -> None:
        self._journal, self._name = journal, name
        self.reload()

    def __bool__(self) -> bool:
        return bool(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._names

    def with_name(self, job_id: str) -> dict[str, str]:
        """What the journal is to remember so that `job_id` is one of them."""
        return {self._name: json.dumps(sorted(self._names | {job_id}))}

    def reload(self) -> None:
        """Take what the journal remembers."""
        self._names = recall_names(self._journal, self._name)

    def discard(self, job_id: str) -> None:
        if job_id in self._names:
            self._journal.remember(self._name, json.dumps(sorted(self._names - {job_id})))
            self._names.discard(job_id)
