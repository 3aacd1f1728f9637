"""What the running job's worker is to do now: as the governor decided, or stricter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container

from agent.messages import Steer
from policies.reading import Action
from service import endings
from service.endings import Ending
from service.job import State
from service.job_books import JobBooks
from service.journal import JobRecord
from service.statuses import Clock
from service.steering import Steering
from service.until import HELD, too_hot

PAUSE = Action.PAUSE.name
WORKS = (Action.RUN.name, Action.SLOW.name)
"""Actions under which a worker is at work."""


class JobOrders:
    """See the module.

    Args:
        steering: the governor's present decision.
        clock: see `Clock`.
        books: what the job spent.
        held: ids of jobs that an operator paused.
        canceled: ids of jobs that an operator canceled.
        gives_way: whether a job is to be put aside for a while.
    """

    def __init__(
        self,
        steering: Steering,
        clock: Clock,
        books: JobBooks,
        held: Container[str],
        canceled: Container[str],
        gives_way: Callable[[], bool],
    ) -> None:
        self._steering, self._clock, self._books = steering, clock, books
        self._held, self._canceled, self._gives_way = held, canceled, gives_way
        self.begin()

    def begin(self) -> None:
        """Another worker starts."""
        self._ending: Ending | None = None
        self._ended_s = 0.0
        self._hot = False

    def order(self, record: JobRecord, *, stopping: bool) -> Steer:
        """For the worker of the job `record`.

        Args:
            record: the job now.
            stopping: the daemon goes.
        """
        order = self._steering.steer()
        hot = too_hot(record.spec, self._steering.reading.temperature_celsius, before=self._hot)
        self._hot = hot is not None
        if ending := self.ending(record, stopping=stopping):
            return dataclasses.replace(order, action=Action.ABORT.name, rule=ending.rule)
        if order.action != Action.ABORT.name and record.id in self._held:
            return dataclasses.replace(order, action=PAUSE, rule=HELD)
        if order.action in WORKS and hot is not None:
            return dataclasses.replace(order, action=PAUSE, rule=hot.code)
        return order

    def ending(self, record: JobRecord, *, stopping: bool) -> Ending | None:
        """The order to end that holds: what was ordered once stays, but that an operator may still cancel.

        A promotion is not ended: it takes seconds, and leaves the new model good or the old one back.
        """
        before, promotes = self._ending, record.standing.state is State.PROMOTING
        if stopping and promotes:
            return endings.stopped(self._clock.hour())
        if promotes:
            return None
        if record.id in self._canceled:
            self._ending = endings.canceled()
        elif stopping:
            self._ending = endings.stopped(self._clock.hour())
        elif before is None and self._gives_way():
            self._ending = endings.gives_way()
        elif before is None:
            hour = self._clock.hour()
            self._ending = endings.of_spec(record.spec, self._books.worked_s, self._books.drawn_j, hour)
        if self._ending is not None and (before is None or before.rule != self._ending.rule):
            self._ended_s = self._clock.mono()
        return self._ending

    def overdue(self) -> bool:
        """Whether the worker had its time to obey an order to end."""
        return self._ending is not None and self._clock.mono() - self._ended_s >= self._ending.grace_s
