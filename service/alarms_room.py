"""Alarms as the daemon keeps them: looked for once a second, remembered, told to the fleet until the broker confirms.

An alarm that ended while the broker was away, or while the daemon was down, is cleared with the next connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from agent.errors import BoardError
from policies.strict import TableError, build_known
from service.alarms import AlarmState, Raised, body, judge
from service.alarms_kinds import KINDS, MAX_LISTED, MAX_TEXT, Facts
from service.job import TERMINAL, State
from service.journal import Journal
from service.logs import logger
from service.statuses import UNSAVED_S, Clock
from service.steering import Steering

KEPT = "alarms"
"""Name in the journal's memory."""
LOOK_S = 60.0  # how often the disk is looked at: it fills slowly, and the look costs two system calls
RETRY_S = 30.0  # a journal that refused is asked again by the alarms themselves: nobody else may write on an idle board
JOBS_LOOKED_AT = 20  # the newest; more than those that fail in a row before it is said

log = logger("alarms")


class AlarmUplink(Protocol):
    """Where alarms go."""

    def publish_alarm(self, kind: str, alarm: Mapping[str, object] | None) -> asyncio.Future[bool] | None:
        """Publish an alarm, or clear it (`None`); a future that gives True once confirmed, `None` without a broker."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What is asked for the facts.

    Attributes:
        state: the daemon's folder, where its disk is looked at.
        store: counts of the last scrub.
        takeovers: times that another client took our id since the daemon started.
        policy_complaint: why the policy that should be in force is not; or empty.
        outbox_fault: why telemetry cannot be kept on the disk; or empty.
        told: called when another set of alarms is raised.
        unusable: `code` and `model` of one that was to run by command and cannot; or empty.
        rolled_back: `code` and `version` of the release of temperd that was left last; or empty.
        safe_mode: the same of the installed release where it does no work; or empty.
    """

    state: Path
    steering: Steering
    store: Callable[[], Mapping[str, object]]
    takeovers: Callable[[], int]
    policy_complaint: Callable[[], str]
    outbox_fault: Callable[[], str]
    told: Callable[[], None]
    unusable: Callable[[], Mapping[str, object]] = dict
    rolled_back: Callable[[], Mapping[str, object]] = dict
    safe_mode: Callable[[], Mapping[str, object]] = dict


class Alarms:
    """See the module.

    Args:
        journal: remembers what is raised, and what the broker has not confirmed as cleared.
        uplink: publishes.
        clock: see `Clock`.
        sources: see `Sources`.
    """

    def __init__(self, journal: Journal, uplink: AlarmUplink, clock: Clock, sources: Sources) -> None:
        self._journal, self._uplink, self._clock, self._sources = journal, uplink, clock, sources
        kept = _recall(journal)
        self._state, self._clears = AlarmState(kept.raised), set(kept.clear)
        self._unconfirmed = set(kept.raised) | self._clears
        self._in_flight: dict[str, int] = {}
        self._messages = 0
        self._ended_s: dict[str, float] = {}
        self._dirty, self._tried_s = False, clock.mono()
        self._jobs, self._jobs_known = (0, ""), False
        self._counted = (0, sources.takeovers())
        self._disk: tuple[int | None, tuple[str, ...]] = (None, ())
        self._looked_s: float | None = None

    def tick(self) -> None:
        """Look, judge, remember, tell; call once a second. What the disk does not take is told all the same."""
        before = self._state
        self._state = judge(before, self._facts(), self._clock.mono(), self._clock.now())
        changed = {
            kind
            for kind in before.raised.keys() | self._state.raised.keys()
            if before.raised.get(kind) != self._state.raised.get(kind)
        }
        if changed:
            self._note(before, changed)
        if changed or (self._dirty and not self._waits()) or (self._journal.refusal and not self._waits()):
            self._remember()
        self._publish_pending()
        names = tuple(sorted(self._state.raised))
        if names != self._sources.steering.alarms:
            self._sources.steering.alarms = names
            self._sources.told()

    def connected(self) -> None:
        """There is a broker again: another, an emptied one, or one with an old save.

        What is raised is told again, and what ended a short while ago is cleared again.
        """
        self._in_flight.clear()
        now = self._clock.mono()
        self._ended_s = {kind: ended for kind, ended in self._ended_s.items() if now - ended < UNSAVED_S}
        self._unconfirmed |= self._state.raised.keys() | self._ended_s.keys()

    def jobs_changed(self) -> None:
        """A job has ended: whether jobs fail is looked at anew."""
        self._jobs_known = False

    def shown(self) -> list[dict[str, object]]:
        """What is raised, as messages, the earliest first: for the live view and for reports."""
        ts, clock = self._clock.now(), self._clock.word()
        raised = sorted(self._state.raised.items(), key=lambda item: (item[1].since, item[0]))
        return [body(kind, alarm, ts, clock) for kind, alarm in raised]

    # --- facts -------------------------------------------------------------------------------------------------------

    def _facts(self) -> Facts:
        steering, faults = self._sources.steering, self._sources.steering.memory_faults
        takeovers = self._sources.takeovers()
        before, self._counted = self._counted, (faults, takeovers)
        self._look()
        free, quarantined = self._disk
        failed, code = self._failures()
        unrepairable = self._sources.store().get("unrepairable", 0)
        return Facts(
            reading=steering.reading,
            decision=steering.decision,
            clock_synchronised=self._clock.synchronised(),
            unusable=_texts(self._sources.unusable(), "code", "model"),
            rolled_back=_texts(self._sources.rolled_back(), "code", "version"),
            safe_mode=_texts(self._sources.safe_mode(), "code", "version"),
            unrepairable=unrepairable if isinstance(unrepairable, int) else 0,
            memory_faults=faults,
            new_memory_faults=faults - before[0],
            takeovers=takeovers,
            new_takeovers=takeovers - before[1],
            disk_refusal=self._journal.refusal or _refusal(self._sources.outbox_fault()),
            free_bytes=free,
            quarantined=quarantined,
            policy_complaint=self._sources.policy_complaint(),
            failed_jobs=failed,
            last_failure=code,
        )

    def _look(self) -> None:
        """Look at the disk now and then."""
        mono_s = self._clock.mono()
        if self._looked_s is not None and mono_s - self._looked_s < LOOK_S:
            return
        self._looked_s = mono_s
        try:
            found = os.statvfs(self._sources.state)
            names = sorted(path.name for path in self._sources.state.glob("journal.sqlite.corrupt-*"))
        except OSError:
            self._disk = (None, ())
            return
        aside = tuple(name for name in names if not name.endswith(("-wal", "-shm")))
        self._disk = (found.f_bavail * found.f_frsize, aside[:MAX_LISTED])

    def _failures(self) -> tuple[int, str]:
        """Jobs that failed in a row, the newest first, and the code of the newest; kept until another job ends."""
        if not self._jobs_known:
            with contextlib.suppress(BoardError):  # what was known stays, and is asked for again in a second
                jobs = self._journal.jobs(JOBS_LOOKED_AT)
                ended = sorted((job for job in jobs if job.standing.state in TERMINAL), key=lambda job: -job.updated)
                well = [job.standing.state not in (State.FAILED, State.ROLLED_BACK) for job in ended]
                count = well.index(True) if True in well else len(well)
                self._jobs, self._jobs_known = (count, ended[0].standing.reason_code if count else ""), True
        return self._jobs

    # --- remembering and telling -------------------------------------------------------------------------------------

    def _note(self, before: AlarmState, changed: set[str]) -> None:
        self._unconfirmed |= changed
        for kind in sorted(changed):
            self._in_flight.pop(kind, None)
            alarm = self._state.raised.get(kind)
            if alarm is None:
                self._clears.add(kind)
                self._ended_s[kind] = self._clock.mono()
                log.info("alarm cleared", type=kind)
                continue
            self._clears.discard(kind)
            self._ended_s.pop(kind, None)
            if kind not in before.raised:
                log.warning("alarm", type=kind, severity=str(KINDS[kind].severity), evidence=dict(alarm.evidence))

    def _waits(self) -> bool:
        """Whether the journal refused a short while ago."""
        return bool(self._journal.refusal) and self._clock.mono() - self._tried_s < RETRY_S

    def _remember(self) -> None:
        self._tried_s, self._dirty = self._clock.mono(), False
        raised = {
            kind: {"since": alarm.since, "evidence": dict(alarm.evidence)} for kind, alarm in self._state.raised.items()
        }
        table = {"raised": raised, "clear": sorted(self._clears)}
        try:
            self._journal.remember(KEPT, json.dumps(table, separators=(",", ":"), allow_nan=False))
        except BoardError as error:
            self._dirty = True
            log.debug("alarms cannot be remembered", why=str(error))

    def _publish_pending(self) -> None:
        for kind in sorted(self._unconfirmed - self._in_flight.keys()):
            alarm = self._state.raised.get(kind)
            told = None if alarm is None else body(kind, alarm, self._clock.now(), self._clock.word())
            done = self._uplink.publish_alarm(kind, told)
            if done is None:
                return
            self._messages += 1
            self._in_flight[kind] = self._messages
            done.add_done_callback(partial(self._answered, kind, self._messages))

    def _answered(self, kind: str, message: int, done: asyncio.Future[bool]) -> None:
        if self._in_flight.get(kind) != message:
            return  # the alarm has changed since, or there is another connection: that has a message of its own
        del self._in_flight[kind]
        if not done.result():
            return
        self._unconfirmed.discard(kind)
        if kind in self._clears:
            self._clears.discard(kind)
            self._dirty = True


def _texts(table: Mapping[str, object], *names: str) -> tuple[str, ...]:
    """Values of a table, if it has any."""
    return tuple(str(table.get(name, ""))[:MAX_TEXT] for name in names) if table else ()


def _refusal(fault: str) -> str:
    """The code of what the disk said."""
    if not fault:
        return ""
    return "no-space" if os.strerror(errno.ENOSPC) in fault else "disk"


@dataclass(frozen=True, slots=True)
class _KeptAlarm:
    since: float
    evidence: dict[str, object]


@dataclass(frozen=True, slots=True)
class _Kept:
    raised: dict[str, object]
    clear: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Recalled:
    raised: dict[str, Raised]
    clear: frozenset[str]


def _recall(journal: Journal) -> _Recalled:
    """What was raised when the daemon went. Where nothing is known, the broker may hold any alarm: all are cleared."""
    text = journal.recall(KEPT)
    if not text:
        return _Recalled({}, frozenset(KINDS))
    try:
        kept = build_known(_Kept, json.loads(text))
        alarms = {kind: build_known(_KeptAlarm, _table(table)) for kind, table in kept.raised.items()}
    except (ValueError, TypeError, AttributeError) as error:  # a TableError is a ValueError
        log.warning("alarms of before are forgotten, the journal has them in another form", why=str(error))
        return _Recalled({}, frozenset(KINDS))
    raised = {kind: Raised(alarm.since, alarm.evidence) for kind, alarm in alarms.items() if kind in KINDS}
    strange = frozenset(alarms) - frozenset(KINDS)  # of another version: nobody would ever clear them
    return _Recalled(raised, strange | frozenset(kept.clear) - frozenset(raised))


def _table(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise TableError("raised", "must hold tables")
    return value
