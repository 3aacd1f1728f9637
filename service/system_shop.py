"""What an update of the system image is made of: a board's own, or a test's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.messages import SystemOrder
from policies.trial_health import Baseline
from service.rauc import System
from service.worker_process import StartWorker, WorkerProcess


@dataclass(frozen=True, slots=True)
class SystemShop:
    """What an update is made of.

    Attributes:
        state: the daemon's state folder.
        boot_id: of the kernel.
        nice: scheduling priority of a worker.
        make_order: the order for a worker, from name, version, compatible, installed version, allow_downgrade.
        system: RAUC and logind.
        baseline: what this system measured of itself, for the next one to be held against.
        is_there: why there is no RAUC, asked without waiting for long; empty: there is one.
        busy: a release of temperd is on trial: one thing at a time.
        start: starts a worker.
    """

    state: Path
    boot_id: str
    nice: int
    make_order: Callable[[str, str, str, str, bool], SystemOrder]
    system: System
    baseline: Callable[[], Baseline]
    is_there: Callable[[], str]
    busy: Callable[[], bool] = lambda: False
    start: StartWorker = WorkerProcess.start
