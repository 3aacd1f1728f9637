"""The command desk: judges what comes in, keeps the journal ahead of every effect, acknowledges last.

What a trusted console signed for this board is answered for good: the answer is in the ledger, also a refusal, and the
same command never gets another. What anybody can send, see `STRANGERS`, leaves no trace on the disk or on the broker:
its answer is not retained, and there are only so many a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.errors import BoardError, CommandError, TemperdError
from agent.keys_consoles import TrustedConsole
from agent.spec import FineTuneSpec
from service.agent_update import AgentUpdates
from service.answers import Answers
from service.commands import (
    CANCEL,
    COLLECT_REPORT,
    EVALUATE,
    FINE_TUNE,
    PROMOTE,
    QUALIFY,
    ROLLBACK,
    SCRUB,
    SET_POLICY,
    UPDATE_AGENT,
    UPDATE_SYSTEM,
    Command,
    Refusal,
    check_command,
    read_command,
    refuse,
)
from service.device_link import Incoming
from service.job import TERMINAL, State
from service.journal import JobRecord, Journal, Verdict
from service.logs import logger
from service.model_commands import ModelCommands
from service.policy_commands import PolicyCommands
from service.qualify_command import Qualifications
from service.scrub import Scrubs
from service.state_version import BoardState
from service.statuses import Clock, Statuses
from service.system_update import SystemUpdates

MAX_UNFINISHED = 100  # jobs; more than a board works off in weeks
WORK = frozenset({FINE_TUNE, EVALUATE, PROMOTE, ROLLBACK, QUALIFY, SCRUB})
"""Types of command that start a worker, and are refused in safe mode."""
STRANGERS_PER_S = 10.0  # answers to what was not signed for this board; a person who tries things sends one
MAX_UNTAKEN = 100  # commands that wait here for the disk, 6 MB at most; a broker hands over 20 unless configured
STRANGERS_AT_ONCE = 100  # saved up in quiet times: a fleet console with a wrong key may try many commands at once

log = logger("commands")


class Jobs(Protocol):
    """What commands do to jobs."""

    def accept(self, job_id: str, digest: str, spec: FineTuneSpec) -> JobRecord:
        """Enter a job, durably."""

    def canceling(self, job_id: str) -> dict[str, str]:
        """What the journal is to remember so that a job ends."""

    def superseded_by(self, command: Command) -> str:
        """The id of a later pause or resume of the same job that is obeyed; empty: there is none."""

    def holding(self, command: Command) -> dict[str, str]:
        """What the journal is to remember so that a job rests or goes on."""

    def obey(self) -> None:
        """Do what the journal remembers."""

    def wake(self) -> None:
        """Something changed that may let a waiting job run."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """Who carries commands out."""

    jobs: Jobs
    scrubs: Scrubs
    qualifications: Qualifications
    models: ModelCommands
    policies: PolicyCommands
    updates: AgentUpdates
    system: SystemUpdates
    report: Callable[[Command], dict[str, str]]
    """What the journal is to remember of the report that a command asks for."""
    safe_mode: Callable[[], str] = str
    """Why no work is done; empty: it is."""

    def told_later(self) -> tuple[Scrubs | Qualifications | ModelCommands | AgentUpdates | SystemUpdates, ...]:
        """Those whose commands are answered when something has ended."""
        return (self.scrubs, self.qualifications, self.models, self.updates, self.system)


class CommandDesk:
    """See the module.

    Args:
        journal: the ledger of commands.
        statuses: publishes.
        answers: keeps and tells what came of commands that are no jobs.
        clock: see `Clock`.
        trusted: reads the consoles that are obeyed, by key id.
        device: this board's name.
        rooms: see `Rooms`.
        state: reads what expectations are held against.
    """

    def __init__(
        self,
        journal: Journal,
        statuses: Statuses,
        answers: Answers,
        clock: Clock,
        trusted: Callable[[], Mapping[str, TrustedConsole]],
        device: str,
        rooms: Rooms,
        state: Callable[[], BoardState],
    ) -> None:
        self._journal, self._statuses, self.answers, self._clock = journal, statuses, answers, clock
        self._trusted, self._device, self._rooms, self._state = trusted, device, rooms, state
        self._strangers = _Allowance(STRANGERS_PER_S, STRANGERS_AT_ONCE, clock.mono)
        self.refused_total = 0
        """Commands refused since the start, whoever sent them."""
        self._untaken: dict[tuple[str, str, bytes], Incoming] = {}
        self._hindrance = ""

    def take(self, incoming: Incoming) -> None:
        """Judge a command, journal it, act on it, acknowledge it: in this order.

        One that cannot be judged or journaled now is not acknowledged, and waits for `retry`.
        """
        key = (incoming.type, incoming.id, incoming.envelope)
        if not self._taken(incoming) and (key in self._untaken or len(self._untaken) < MAX_UNTAKEN):
            self._untaken[key] = incoming  # of the same command the latest: an earlier connection takes no answer

    def retry(self) -> None:
        """Take what could not be taken; call about once a second.

        The broker repeats a command with the next connection only, and once it has handed over as many as it may
        nothing more comes at all.
        """
        for key, incoming in list(self._untaken.items()):
            if not self._taken(incoming):
                return
            del self._untaken[key]

    def _taken(self, incoming: Incoming) -> bool:
        try:
            self._take(incoming, self._read_trusted())
        except BoardError as error:
            if str(error) != self._hindrance:  # once a reason, not once a second
                log.error("commands wait", id=incoming.id, why=str(error))  # noqa: TRY400 - said whole
            self._hindrance = str(error)
            return False
        self._hindrance = ""
        incoming.ack()
        return True

    def _read_trusted(self) -> Mapping[str, TrustedConsole]:
        try:
            return self._trusted()
        except TemperdError as error:  # a broken key file is the owner's to mend
            raise BoardError(f"the trusted consoles cannot be read: {error}") from error

    def _take(self, incoming: Incoming, trusted: Mapping[str, TrustedConsole]) -> None:
        try:
            command = read_command(
                incoming.envelope, topic_type=incoming.type, topic_id=incoming.id, trusted=trusted, device=self._device
            )
            verdict = self._journal.judge(command.id, command.digest)
            if verdict is Verdict.REPLAY:
                raise refuse(Refusal.REPLAY, "this id was used before, or is older than all that is remembered")
        except CommandError as error:
            self._answer_stranger(incoming, error)
            return
        if verdict is Verdict.REPEAT:
            self._repeat(command)
            return
        try:
            self._check(command)
            self._carry_out(command)
        except CommandError as error:
            self.refused_total += 1
            told = {"keyid": command.keyid[:16], "reason": error.code, "why": str(error)}
            log.warning("command refused", id=command.id, type=command.type, **told)
            self.answers.give(command, "rejected", error.code, str(error))

    def _answer_stranger(self, incoming: Incoming, error: CommandError) -> None:
        """Say why, unless the id is that of a command in the ledger: its status is not for a stranger to replace."""
        self.refused_total += 1
        held_back = self._strangers.ask()
        if held_back is None:
            return
        also = {"held_back": held_back} if held_back else {}
        log.warning("command refused", id=incoming.id, type=incoming.type, reason=error.code, why=str(error), **also)
        if self._journal.outcome(incoming.id) is None and self._journal.job(incoming.id) is None:
            self._statuses.publish_plain(incoming.type, incoming.id, "rejected", error.code, str(error), retained=False)

    def _check(self, command: Command) -> None:
        """Whether a command that is new here is to be carried out.

        Raises:
            CommandError: it is refused.
        """
        if command.type == SET_POLICY and self._rooms.policies.begun(command):
            return  # it was judged, and may be in force: a state that it changed itself must not refuse it now
        check_command(command, now=self._clock.now(), clock_synchronised=self._clock.synchronised())
        if command.expect and (unmet := self._state().unmet(command.expectation)):
            raise refuse(Refusal.EXPECTATION_FAILED, unmet, "expect", "Look at the board's birth message")
        if command.type in WORK and (why := self._rooms.safe_mode()):
            what = f"temperd does no work, it is in safe mode: {why}"
            raise refuse(Refusal.SAFE_MODE, what, fix="Send another release, or look at the board")
        if command.type == FINE_TUNE and len(self._journal.unfinished()) >= MAX_UNFINISHED:
            what = f"{MAX_UNFINISHED} jobs have not ended"
            raise refuse(Refusal.QUEUE_FULL, what, fix="Cancel some, or send it again when some have ended")

    def _carry_out(self, command: Command) -> None:
        """Do it, and journal its answer with what it changes.

        Raises:
            CommandError: refused after all, by the state that something else is in; nothing changed.
        """
        rooms = self._rooms
        if command.type == FINE_TUNE:
            rooms.jobs.accept(command.id, command.digest, command.spec)
        elif command.type == SCRUB:
            rooms.scrubs.ask(command)
            rooms.jobs.wake()
        elif command.type == QUALIFY:
            rooms.qualifications.ask(command)
            rooms.jobs.wake()
        elif command.type in (EVALUATE, PROMOTE, ROLLBACK):
            rooms.models.ask(command)
            rooms.scrubs.hurry()
            rooms.jobs.obey()
        elif command.type == UPDATE_AGENT:
            rooms.updates.ask(command)
        elif command.type == UPDATE_SYSTEM:
            rooms.system.ask(command)
            rooms.jobs.wake()
        elif command.type == SET_POLICY:
            rooms.policies.take(command)
        elif command.type == COLLECT_REPORT:
            self.answers.give(command, "succeeded", marks=rooms.report(command))
        elif command.type == CANCEL:
            self._cancel(command)
        else:
            self._hold_or_release(command)

    def _repeat(self, command: Command) -> None:
        log.info("command repeated, nothing runs again", id=command.id)
        record = self._journal.job(command.id)
        if record is not None:
            self._statuses.publish(record)
        elif not any(room.repeat(command.id) for room in self._rooms.told_later()):
            self.answers.repeat(command.id, command.type)

    def _cancel(self, command: Command) -> None:
        """End a job, a stress run, an evaluation or an update."""
        record, jobs = self._journal.job(command.job), self._rooms.jobs
        is_canceled = record is not None and record.standing.state is State.CANCELED
        others = (self._rooms.qualifications, self._rooms.models, self._rooms.updates, self._rooms.system)
        if is_canceled or (record is None and any(room.cancel(command.job) for room in others)):
            self.answers.give(command, "succeeded")
            return
        if record is None and self._journal.outcome(command.job) is not None:
            raise CommandError(f"{command.job} has ended, or is too far to be canceled", reason="wrong-state")
        self.answers.give(command, "succeeded", marks=jobs.canceling(_open(record, command.job).id))
        jobs.obey()

    def _hold_or_release(self, command: Command) -> None:
        """Pause or resume a job."""
        jobs = self._rooms.jobs
        _open(self._journal.job(command.job), command.job)
        if later := jobs.superseded_by(command):
            raise CommandError(f"{later} was issued later and is obeyed", reason="superseded")
        self.answers.give(command, "succeeded", marks=jobs.holding(command))
        jobs.obey()


def _open(record: JobRecord | None, job_id: str) -> JobRecord:
    """A job that may still be told something.

    Raises:
        CommandError: `wrong-state`.
    """
    if record is None:
        raise CommandError(f"job {job_id} is unknown", reason="wrong-state")
    if record.standing.state in TERMINAL or record.standing.state is State.PROMOTING:
        raise CommandError(f"job {job_id} is {record.standing.state.lower()}", reason="wrong-state")
    return record


class _Allowance:
    """So many a second, and some more that were saved up.

    Args:
        per_s: how many.
        most: how many are saved up.
        mono: monotonic clock, seconds.
    """

    def __init__(self, per_s: float, most: int, mono: Callable[[], float]) -> None:
        self._per_s, self._most, self._mono = per_s, most, mono
        self._left, self._at, self._held_back = float(most), mono(), 0

    def ask(self) -> int | None:
        """How many were held back since the last that was allowed; `None`: this one is held back too."""
        now = self._mono()
        self._left, self._at = min(self._most, self._left + (now - self._at) * self._per_s), now
        if self._left < 1.0:
            self._held_back += 1
            return None
        self._left -= 1.0
        told, self._held_back = self._held_back, 0
        return told
