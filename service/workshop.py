"""How workers of jobs are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from agent.messages import Message, Order
from service.journal import JobRecord
from service.worker_process import StartWorker, WorkerProcess


@dataclasses.dataclass(frozen=True, slots=True)
class Workshop:
    """How workers are made.

    Attributes:
        make_order: the worker's order for a job.
        nice: scheduling priority of the worker.
        watch: called with (message, record) for everything the worker says.
        ended: called with the id of a job that has ended for good.
        start: starts a worker.
    """

    make_order: Callable[[JobRecord], Order]
    nice: int
    watch: Callable[[Message, JobRecord], None]
    ended: Callable[[str], None]
    start: StartWorker = WorkerProcess.start
