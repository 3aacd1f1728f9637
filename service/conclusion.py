"""What the end of a worker means for its job. Pure: the last word in, an event of the job machine out."""

from __future__ import annotations

import signal
from typing import NamedTuple

from agent.messages import (
    CLOCK_WRONG,
    MEMORY_CORRUPT,
    METERED,
    OUT_OF_MEMORY,
    WORKER_KILLED,
    Failed,
    Finished,
    Message,
    can_shrink,
)
from service.endings import STOPPING, Ending
from service.job import MAX_ATTEMPTS, Event, State
from service.journal import JobRecord
from service.until import Hour, Until, put_aside

PATIENT = frozenset({METERED, CLOCK_WRONG})  # why even a job without a plan waits: it would only be sent again
SHRINKABLE = (State.COMPILING, State.TRAINING, State.PAUSED)  # where a smaller micro-batch takes less memory
GOES_ON = "The job goes on from its last verified checkpoint"
SELF_TEST = "self-test"


class Conclusion(NamedTuple):
    """What happens to the job; without an event it stays where it is."""

    event: Event | None
    code: str = ""
    reason: str = ""
    until: Until | None = None

    @property
    def goes_on(self) -> bool:
        """Whether there will be another worker, so that no result is due."""
        return self.event in (None, Event.RESTART, Event.SUSPEND)


def conclude(
    record: JobRecord, last: Message | None, code: int, ending: Ending | None, hour: Hour, *, starved: bool = False
) -> Conclusion:
    """Judge the end of a worker.

    Args:
        record: the job as journaled.
        last: what the worker said last.
        code: exit code of the process, negative for a signal.
        ending: the order to end that was given to it.
        hour: the time.
        starved: whether the kernel killed it for want of memory.
    """
    ordered = ending if record.standing.state is not State.PROMOTING else None
    if ordered is not None and _obeyed(last, ordered):
        return Conclusion(ordered.event, ordered.code, ordered.why, ordered.until)
    if isinstance(last, Finished):
        succeeded = last.outcome == "SUCCEEDED"
        return Conclusion(Event.SUCCEED) if succeeded else Conclusion(Event.ROLL_BACK, SELF_TEST, last.reason)
    if isinstance(last, Failed):
        return _failed(record, last, hour)
    if ending is not None and ending.rule == STOPPING:
        return Conclusion(None)  # killed by the stop: the next start counts it as an interrupted attempt
    if starved:
        return _starved(record)
    ended = WORKER_KILLED if code == -signal.SIGKILL else "worker-crashed"
    return Conclusion(Event.RESTART, ended, f"the worker ended with code {code}")


def _obeyed(last: Message | None, ending: Ending) -> bool:
    """Whether the worker ended for the order; what an operator canceled is canceled however its worker went."""
    if isinstance(last, Failed):
        return ending.event is Event.CANCEL or last.code == ending.rule
    return not isinstance(last, Finished) and ending.rule != STOPPING


def _failed(record: JobRecord, last: Failed, hour: Hour) -> Conclusion:
    """A worker that could say how it ended: put aside, try again smaller, or end the job."""
    promoting = record.standing.state is State.PROMOTING
    if last.code in PATIENT or (last.code == "network" and record.plan):
        return Conclusion(Event.SUSPEND, *put_aside(last.code, last.message, hour))
    if last.code == OUT_OF_MEMORY and _can_shrink(record):
        return Conclusion(Event.RESTART, OUT_OF_MEMORY, "goes on with a smaller micro-batch")
    if last.code == MEMORY_CORRUPT and record.standing.attempt < MAX_ATTEMPTS and not promoting:
        return Conclusion(Event.RESTART, MEMORY_CORRUPT, f"{last.message}. {GOES_ON}")
    event = Event.CANCEL if last.outcome == "CANCELED" else Event.FAIL
    return Conclusion(event, last.code, last.message)


def _starved(record: JobRecord) -> Conclusion:
    """Killed for want of memory: tried again, for other programs may have taken it, and smaller where that is possible.

    The worker of the next attempt shrinks the plan, or ends the job itself where that was done before.
    """
    said = "the kernel killed the worker for want of memory"
    if record.standing.attempt < MAX_ATTEMPTS:
        return Conclusion(Event.RESTART, OUT_OF_MEMORY, said)
    return Conclusion(Event.FAIL, OUT_OF_MEMORY, f"{said} in the last of {MAX_ATTEMPTS} attempts")


def _can_shrink(record: JobRecord) -> bool:
    """Whether there is an attempt left, and a plan that it can shrink."""
    plan = (record.plan or {}).get("plan")
    left = record.standing.attempt < MAX_ATTEMPTS and record.standing.state in SHRINKABLE
    return left and isinstance(plan, dict) and can_shrink(plan)
