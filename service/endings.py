"""Why a worker is ended before its job is done, and what becomes of the job. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from service.job import Event
from service.until import DAEMON_STOPPED, QUEUED, Hour, Until, Why, put_aside, queued, window_closed

STOPPING = "stopping"  # rule of the order with which a stopped daemon ends its worker
CANCELED, MOST_TIME, MOST_ENERGY, MOST_WAIT = "canceled", "most-time", "most-energy", "most-wait"
END_GRACE_S = 5.0  # for a worker to obey: what it does not finish by then is lost with the job anyway
STOP_GRACE_S = 20.0  # for a worker to write the checkpoint from which the job goes on


class Ending(NamedTuple):
    """An order that ends a worker."""

    rule: str
    """Of the order, and the code of the last word that obeys it."""
    event: Event
    why: str
    code: str
    until: Until | None = None

    @property
    def grace_s(self) -> float:
        """How long the worker may take to obey before it is killed."""
        return STOP_GRACE_S if self.event is Event.SUSPEND else END_GRACE_S


def canceled() -> Ending:
    """An operator wants the job no more."""
    return Ending(CANCELED, Event.CANCEL, "canceled by an operator", CANCELED)


def stopped(hour: Hour) -> Ending:
    """The daemon goes."""
    return _aside(STOPPING, put_aside(DAEMON_STOPPED, "goes on when the daemon runs again", hour))


def gives_way() -> Ending:
    """The active model is to be another first."""
    return _aside(QUEUED, queued())


def of_spec(spec: Mapping[str, object], worked_s: float, drawn_j: float, hour: Hour) -> Ending | None:
    """What the job's own bounds say now.

    Args:
        spec: of the job.
        worked_s: seconds in which a worker was at work.
        drawn_j: joules that the board drew meanwhile.
        hour: for the window.
    """
    most_s, most_j = _bound(spec, "most_time_s"), _bound(spec, "most_energy_j")
    if most_j and drawn_j >= most_j:
        return Ending(MOST_ENERGY, Event.FAIL, f"{drawn_j:.0f} J are spent, of {most_j:g} J at most", MOST_ENERGY)
    if most_s and worked_s >= most_s:
        return Ending(MOST_TIME, Event.TIME_OUT, f"{worked_s:.0f} s of work, {most_s:g} s at most", MOST_TIME)
    closed = window_closed(spec, hour)
    return None if closed is None else _aside(closed.code, closed)


def _aside(rule: str, why: Why) -> Ending:
    return Ending(rule, Event.SUSPEND, why.reason, why.code, why.until)


def _bound(spec: Mapping[str, object], name: str) -> float:
    value = spec.get(name)
    return value if isinstance(value, int | float) else 0.0
