"""The line of waiting jobs: which one runs now, and what the others wait for."""

from __future__ import annotations

from collections.abc import Callable, Container

from agent.errors import BoardError
from policies.battery import is_short
from policies.reading import Action
from service.endings import MOST_WAIT
from service.job import WORKING, Event, State
from service.journal import JobRecord, Journal
from service.logs import logger
from service.queue import Waiting, asked_depth, line, priority
from service.statuses import Clock, Statuses
from service.steering import Steering
from service.until import HELD, JOB_HOT, RETRY_S, WINDOW, Hour, Why, board_waits, held, queued, too_hot, window_closed

TOLD_AT_ONCE = 10  # jobs a second at most: each is a commit, and an SD card takes 20 ms for one while nothing else runs
SHOWN = 20  # jobs of the line in the live view: a screen, and 8 KB of the 64 it may have

log = logger("jobs")


class WaitingLine:
    """See the module.

    Args:
        journal: holds the jobs.
        statuses: moves and publishes.
        steering: the governor's present decision.
        clock: see `Clock`.
        held: ids of jobs that an operator paused.
        too_late: whether a job that was never begun should have been by now.
        settle: is told of a job that ended in the line.
    """

    def __init__(
        self,
        journal: Journal,
        statuses: Statuses,
        steering: Steering,
        clock: Clock,
        held: Container[str],
        too_late: Callable[[JobRecord], bool],
        settle: Callable[[JobRecord], None],
    ) -> None:
        self._journal, self._statuses, self._steering, self._clock = journal, statuses, steering, clock
        self._held, self._too_late, self._settle = held, too_late, settle
        self._not_before: dict[str, float] = {}

    def retry_later(self, job_id: str) -> None:
        """The job's network or clock was not there: it is asked for again after `RETRY_S`."""
        self._not_before[job_id] = self._clock.mono() + RETRY_S

    def forget(self, job_id: str) -> None:
        """The job has ended."""
        self._not_before.pop(job_id, None)

    def next(self) -> JobRecord | None:
        """The job to run now; every other one is told what it waits for.

        An interrupted one goes on first, whatever the board says: its worker rests where it has to.
        """
        records, hour = self._records(""), self._clock.hour()
        whys = {record.id: self._own(record, hour) for record in records}
        free = [record for record in records if not self._retries(record) and whys[record.id] is None]
        stopped = self._steering.decision.action >= Action.PAUSE
        able = [record for record in free if record.standing.state in WORKING or not stopped]
        chosen = able[0] if able else None
        self._tell_all({record.id: whys[record.id] for record in records if record is not chosen}, records, hour)
        return chosen

    def review(self, running: str) -> None:
        """While a job or a stress run is at work: tell the others what they wait for.

        Args:
            running: its id; the job with it is left alone.
        """
        hour, records = self._clock.hour(), self._records(running)
        self._tell_all({record.id: self._own(record, hour) for record in records}, records, hour)

    def told(self, running: str) -> list[dict[str, object]]:
        """The first `SHOWN` of the line, but for the job that runs, as JSON values for the live view."""
        try:
            unfinished = self._journal.unfinished()
        except BoardError:  # a view of the line is worth no governor
            return []
        return [
            {
                "id": record.id,
                "priority": priority(record.spec),
                "status": record.standing.state.lower(),
                "reason_code": record.standing.reason_code,
                "reason": record.standing.reason,
                "until": record.until,
            }
            for record in self._in_line([one for one in unfinished if one.id != running])[:SHOWN]
        ]

    def _records(self, running: str) -> list[JobRecord]:
        """Jobs that wait, in their order; those that waited too long end here."""
        records = []
        for found in self._journal.unfinished():
            if found.id == running:
                continue
            # A crash or a full disk may have come between a job's entry and its acceptance.
            received = found.standing.state is State.RECEIVED
            record = self._statuses.move(found, Event.ACCEPT) if received else found
            if record.standing.state not in WORKING and self._too_late(record):
                reason = f"was to begin within {record.spec['most_wait_s']} s"
                self._settle(self._statuses.move(record, Event.TIME_OUT, MOST_WAIT, reason))
            else:
                records.append(record)
        return self._in_line(records)

    def _in_line(self, records: list[JobRecord]) -> list[JobRecord]:
        policy, by_id = self._steering.policy, {record.id: record for record in records}
        waiting = [
            Waiting(
                record.id,
                priority(record.spec),
                asked_depth(record.spec, policy),
                interrupted=record.standing.state in WORKING,
            )
            for record in records
        ]
        return [by_id[name] for name in line(policy, waiting, short=is_short(self._steering.decision))]

    def _retries(self, record: JobRecord) -> bool:
        return self._not_before.get(record.id, 0.0) > self._clock.mono()

    def _own(self, record: JobRecord, hour: Hour) -> Why | None:
        """What the job itself waits for, whatever the board and the others do."""
        interrupted = record.standing.state in WORKING
        if record.id in self._held and not interrupted:  # a worker that was interrupted rests with its checkpoint
            return held()
        rested = record.standing.reason_code
        celsius = self._steering.reading.temperature_celsius
        hot = too_hot(record.spec, celsius, before=rested == JOB_HOT) if not interrupted else None
        return window_closed(record.spec, hour) or hot

    def _others(self, hour: Hour) -> Why:
        """What keeps a job that could run: the board, or who has it."""
        decision = self._steering.decision
        if decision.action >= Action.PAUSE:
            return board_waits(self._steering.policy, decision.rule, hour)
        return queued()

    def _tell_all(self, whys: dict[str, Why | None], records: list[JobRecord], hour: Hour) -> None:
        """Tell jobs, the first of the line first; those beyond `TOLD_AT_ONCE` at the next call."""
        told = 0
        for record in records:
            if record.id in whys and told < TOLD_AT_ONCE:
                told += self._tell(record, whys[record.id] or self._others(hour))

    def _tell(self, record: JobRecord, why: Why) -> bool:
        """Let the job's status say why it waits; false where it does already."""
        stands, table = record.standing, why.until.table()
        if self._retries(record) and why.code not in (HELD, WINDOW):
            return False  # it said itself what it waits for
        if stands.state is State.DEFERRED and (stands.reason_code, stands.reason, record.until) == (
            why.code, why.reason, table,
        ):  # fmt: skip
            return False
        event = Event.SUSPEND if stands.state in WORKING else Event.DEFER
        self._statuses.move(record, event, why.code, why.reason, until=table)
        return True
