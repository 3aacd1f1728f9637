"""The command desk: judges what comes in, keeps the journal ahead of every effect, acknowledges last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.errors import ArtifactError, BoardError, CommandError, TemperdError
from agent.spec import FineTuneSpec
from service.commands import CANCEL, FINE_TUNE, PAUSE, QUALIFY, SCRUB, SET_POLICY, Command, Refusal, open_command
from service.device_link import Incoming
from service.job import TERMINAL, State
from service.journal import JobRecord, Journal, Verdict
from service.logs import logger
from service.policy_commands import PolicyCommands
from service.qualify_command import Qualifications
from service.scrub import Scrubs
from service.statuses import Clock, Statuses

log = logger("commands")


class Jobs(Protocol):
    """What commands do to jobs. Each method is durable when it returns, and does nothing new when called twice."""

    def accept(self, job_id: str, digest: str, spec: FineTuneSpec) -> JobRecord:
        """Enter a job."""

    def cancel(self, job_id: str) -> None:
        """End a job that has not ended."""

    def hold(self, job_id: str) -> None:
        """Let a job rest until it is released."""

    def release(self, job_id: str) -> None:
        """Let a job go on."""

    def wake(self) -> None:
        """Something changed that may let a waiting job run."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """Who carries commands out."""

    jobs: Jobs
    scrubs: Scrubs
    qualifications: Qualifications
    policies: PolicyCommands


class CommandDesk:
    """See the module.

    Args:
        journal: the ledger of commands.
        statuses: publishes.
        clock: see `Clock`.
        trusted: reads the raw keys of the consoles that are obeyed, by key id.
        device: this board's name.
        rooms: see `Rooms`.
    """

    def __init__(
        self,
        journal: Journal,
        statuses: Statuses,
        clock: Clock,
        trusted: Callable[[], Mapping[str, bytes]],
        device: str,
        rooms: Rooms,
    ) -> None:
        self._journal, self._statuses, self._clock = journal, statuses, clock
        self._trusted, self._device, self._rooms = trusted, device, rooms

    def take(self, incoming: Incoming) -> None:
        """Judge a command, journal it, act on it, acknowledge it: in this order."""
        try:
            trusted = self._trusted()
        except TemperdError as error:  # a broken key file is the owner's to mend; the command stays with the broker
            log.error("the trusted consoles cannot be read, no command is obeyed", why=str(error))  # noqa: TRY400
            return
        try:
            command = open_command(
                incoming.envelope,
                topic_type=incoming.type,
                topic_id=incoming.id,
                trusted=trusted,
                device=self._device,
                now=self._clock.now(),
                clock_synchronised=self._clock.synchronised(),
            )
            self._carry_out(command)
        except BoardError as error:  # not acknowledged: the broker keeps the command until the disk takes it
            log.error("a command could not be journaled", id=incoming.id, why=str(error))  # noqa: TRY400 - said whole
            return
        except (CommandError, ArtifactError) as error:
            log.warning("command refused", id=incoming.id, type=incoming.type, reason=error.code, why=str(error))
            self._answer_refusal(incoming, error)
        incoming.ack()

    def _answer_refusal(self, incoming: Incoming, error: TemperdError) -> None:
        """Say why, unless the id is that of an accepted command: its status is not for a stranger to replace."""
        if self._journal.outcome(incoming.id) is None and self._journal.job(incoming.id) is None:
            self._statuses.publish_plain(incoming.type, incoming.id, "rejected", error.code, str(error))

    def _carry_out(self, command: Command) -> None:
        verdict = self._journal.judge(command.id, command.digest)
        if verdict is Verdict.REPLAY:
            raise CommandError("this id was used before", where=command.id, reason=Refusal.REPLAY)
        if verdict is Verdict.REPEAT:
            self._repeat(command)
        elif command.type == FINE_TUNE:
            self._rooms.jobs.accept(command.id, command.digest, command.spec)
        elif command.type == SCRUB:
            self._rooms.scrubs.ask(command)
            self._rooms.jobs.wake()
        elif command.type == QUALIFY:
            self._rooms.qualifications.ask(command)
            self._rooms.jobs.wake()
        elif command.type == SET_POLICY:
            self._rooms.policies.take(command)
        else:
            self._control(command)

    def _repeat(self, command: Command) -> None:
        log.info("command repeated, nothing runs again", id=command.id)
        record = self._journal.job(command.id)
        rooms = (self._rooms.scrubs, self._rooms.qualifications, self._rooms.policies)
        if record is not None:
            self._statuses.publish(record)
        elif not any(room.repeat(command.id) for room in rooms):
            status, _, reason = (self._journal.outcome(command.id) or "succeeded").partition(":")
            self._statuses.publish_plain(command.type, command.id, status, reason, "")

    def _control(self, command: Command) -> None:
        """Cancel, pause or resume a job; a stress run can be canceled."""
        record, jobs = self._journal.job(command.job), self._rooms.jobs
        done = command.type == CANCEL and (
            self._rooms.qualifications.cancel(command.job)
            if record is None
            else record.standing.state is State.CANCELED
        )
        if done:  # a stress run; or a crash came between the act and its record: the answer is the same
            pass
        elif record is None or record.standing.state in TERMINAL or record.standing.state is State.PROMOTING:
            stands = "unknown" if record is None else record.standing.state.lower()
            self._journal.record(command.id, command.digest, "rejected:wrong-state")
            why = f"job {command.job} is {stands}"
            self._statuses.publish_plain(command.type, command.id, "rejected", "wrong-state", why)
            return
        elif command.type == CANCEL:
            jobs.cancel(record.id)
        elif command.type == PAUSE:
            jobs.hold(record.id)
        else:
            jobs.release(record.id)
        self._journal.record(command.id, command.digest, "succeeded")
        self._statuses.publish_plain(command.type, command.id, "succeeded", "", "")
        jobs.wake()
