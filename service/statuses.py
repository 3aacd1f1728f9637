"""Moving jobs through the table and telling the fleet: the journal first, then the broker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from agent.errors import BoardError
from service.job import Event, TransitionError, advance
from service.journal import JobRecord, Journal
from service.logs import logger
from service.until import Hour

MAX_REASON = 500
UNSAVED_S = 3600.0  # what is older, a broker that crashed has on its disk: mosquitto saves each half hour
UNSYNCHRONISED = "unsynchronised"
AT_ONCE = 50  # statuses on their way: the client queues a hundred and refuses what is beyond

log = logger("jobs")


class Uplink(Protocol):
    """Where statuses go: the MQTT link, or nowhere for a job without a broker."""

    def publish_status(
        self, command_type: str, command_id: str, status: Mapping[str, object], *, retained: bool = True
    ) -> asyncio.Future[bool] | None:
        """Publish a status; a future that gives True once confirmed."""


def minute_of_day(unix_s: float) -> int:
    """Local time of the day, 0..1439."""
    local = time.localtime(unix_s)
    return local.tm_hour * 60 + local.tm_min


@dataclass(frozen=True, slots=True)
class Clock:
    """Time as the daemon hands it out.

    Attributes:
        now: wall clock, seconds since 1970.
        mono: monotonic clock, seconds.
        synchronised: whether `now` can be believed.
    """

    now: Callable[[], float]
    mono: Callable[[], float]
    synchronised: Callable[[], bool]

    def hour(self) -> Hour:
        """The time as far as it is known."""
        now = self.now()
        return Hour(now, minute_of_day(now) if self.synchronised() else None)

    def word(self) -> str:
        """How far `ts` can be believed, as on the wire."""
        return "synchronised" if self.synchronised() else UNSYNCHRONISED


class Statuses:
    """Journal and uplink as one: a status is never published before it is journaled."""

    def __init__(self, journal: Journal, uplink: Uplink, clock: Clock) -> None:
        self._journal, self._uplink, self._clock = journal, uplink, clock
        self._in_flight: set[tuple[str, int]] = set()

    def move(
        self,
        record: JobRecord,
        event: Event,
        code: str = "",
        reason: str = "",
        *,
        until: Mapping[str, object] | None = None,
        result: Mapping[str, object] | None = None,
        energy_j: float | None = None,
        worked_s: float | None = None,
    ) -> JobRecord:
        """Advance a job and publish; an impossible event is logged and changes nothing."""
        try:
            standing = advance(record.standing, event, code, reason)
        except TransitionError as error:
            log.warning("wrong transition", job_id=record.id, why=str(error))
            return record
        record = self._journal.update(
            record.id, self._clock.now(),
            standing=standing, until=until, result=result, energy_j=energy_j, worked_s=worked_s,
        )  # fmt: skip
        self.publish(record)
        return record

    def publish(self, record: JobRecord, progress: float | None = None, eta_s: float | None = None) -> None:
        """Publish a job's status as journaled; confirmed ones are marked."""
        status = record.status(ts=self._clock.now(), clock=self._clock.word(), progress=progress, eta_s=eta_s)
        done = self._uplink.publish_status(record.type, record.id, status)
        if done is not None:
            self._in_flight.add((record.id, record.version))
            done.add_done_callback(lambda future: self._answered(record, confirmed=future.result()))

    def publish_pending(self) -> None:
        """Publish the oldest statuses that the broker has not confirmed, at most `AT_ONCE` on their way at a time."""
        room = AT_ONCE - len(self._in_flight)
        for record in self._journal.unpublished():
            if room <= 0:
                return
            if (record.id, record.version) not in self._in_flight:
                self.publish(record)
                room -= 1

    def publish_plain(
        self,
        kind: str,
        command_id: str,
        status: str,
        code: str,
        reason: str,
        *,
        version: int = 1,
        result: object = None,
        step: str = "",
        until: Mapping[str, object] | None = None,
        retained: bool = True,
    ) -> asyncio.Future[bool] | None:
        """Publish the status of a command that is no job; a future that gives True once confirmed."""
        body = {"id": command_id, "status": status, "step": step, "version": version, "attempt": 1, "reason_code": code}
        rest = {"reason": reason[:MAX_REASON], "progress": None, "energy_j": None, "result": result}
        rest |= {"eta_s": None, "until": until}
        when = {"ts": self._clock.now(), "clock": self._clock.word()}
        whole = {**body, **rest, **when}
        if retained:
            return self._uplink.publish_status(kind, command_id, whole)
        return self._uplink.publish_status(kind, command_id, whole, retained=False)

    def _answered(self, record: JobRecord, *, confirmed: bool) -> None:
        self._in_flight.discard((record.id, record.version))
        if not confirmed:
            return
        with contextlib.suppress(BoardError):  # on a full disk it stays unconfirmed and is published once more
            self._journal.mark_published(record.id, record.version)
