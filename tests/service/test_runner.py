"""What the end of a worker means for its job."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent.board.profile import named_profile
from agent.board.sysfs import BoardRoots, SysfsBoard
from agent.messages import Failed, Message
from policies.policy import Policy
from service.job import MAX_ATTEMPTS, Standing, State
from service.journal import JobRecord, Journal
from service.runner import Runner, Workshop
from service.statuses import Clock, Statuses
from service.steering import Steering

PLAN = {"plan": {"engine": "graph", "batch": 16, "shrunk": False}, "version": "1.0"}
SMALL = {"plan": {"engine": "graph", "batch": 16, "micro_batch": 8, "shrunk": True}, "version": "1.0"}
WHOLE = {"plan": {"engine": "ort-training", "batch": 16, "shrunk": False}, "version": "1.0"}
SINGLE = {"plan": {"engine": "graph", "batch": 16, "micro_batch": 1, "shrunk": False}, "version": "1.0"}
FLIPPED = Failed("memory-corrupt", "frozen weights changed in memory (stem.w). If it repeats, test the board's memory")
NO_MEMORY = Failed("out-of-memory", "not enough memory")


class Nowhere:
    """An uplink for a job without a broker."""

    def publish_status(self, *_: str | Mapping[str, object]) -> asyncio.Future[bool] | None:
        return None


def concluded(
    folder: Path, state: State, plan: dict[str, object] | None, last: Message | None, code: int = 1, attempt: int = 1
) -> JobRecord:
    journal = Journal.open(folder / "journal.sqlite", 0.0).journal
    try:
        clock = Clock(lambda: 1.0, lambda: 1.0, lambda: True)
        statuses = Statuses(journal, Nowhere(), clock)
        board = SysfsBoard(BoardRoots(folder / "sys", folder / "proc"), named_profile("generic"), folder / "undo.json")
        shop = Workshop(lambda _: pytest.fail("no worker is wanted"), 0, lambda *_: None, lambda _: None)
        runner = Runner(journal, statuses, Steering(board, Policy()), clock, shop, (), ())
        journal.add_job("job-1", "", "fine-tune", {}, 0.0)
        record = journal.update("job-1", 0.0, standing=Standing(state, attempt), plan=plan)
        return runner._conclude(record, last, code)
    finally:
        journal.close()


@pytest.mark.parametrize("state", [State.COMPILING, State.TRAINING, State.PAUSED])
def test_memory_that_ran_out_is_tried_once_more(tmp_path: Path, state: State) -> None:
    standing = concluded(tmp_path, state, PLAN, NO_MEMORY).standing
    assert (standing.state, standing.attempt, standing.reason_code) == (State.PULLING, 2, "out-of-memory")


@pytest.mark.parametrize(
    ("state", "plan", "attempt"),
    [
        (State.TRAINING, SMALL, 2),
        (State.TRAINING, WHOLE, 1),
        (State.TRAINING, SINGLE, 1),
        (State.TRAINING, PLAN, MAX_ATTEMPTS),
        (State.PLANNING, None, 1),
        (State.PLANNING, PLAN, 1),  # a smaller micro-batch takes no less memory there
        (State.EVALUATING, PLAN, 1),
        (State.PROMOTING, PLAN, 1),
    ],
)
def test_memory_that_runs_out_where_nothing_is_left_to_shrink_ends_the_job(
    tmp_path: Path, state: State, plan: dict[str, object] | None, attempt: int
) -> None:
    record = concluded(tmp_path, state, plan, NO_MEMORY, attempt=attempt)
    assert (record.standing.state, record.standing.reason_code) == (State.FAILED, "out-of-memory")
    assert record.standing.reason == "not enough memory"


@pytest.mark.parametrize(
    ("code", "reason"), [(-signal.SIGKILL, "worker-killed"), (-signal.SIGSEGV, "worker-crashed"), (1, "worker-crashed")]
)
def test_a_worker_that_vanishes_is_started_again_and_its_end_is_named(tmp_path: Path, code: int, reason: str) -> None:
    standing = concluded(tmp_path, State.TRAINING, PLAN, None, code).standing
    assert (standing.state, standing.attempt, standing.reason_code) == (State.PULLING, 2, reason)


def test_any_other_last_word_ends_the_job(tmp_path: Path) -> None:
    record = concluded(tmp_path, State.TRAINING, PLAN, Failed("not-finite", "10 steps were not finite"))
    assert (record.standing.state, record.standing.reason_code) == (State.FAILED, "not-finite")


@pytest.mark.parametrize(
    "state", [State.COMPILING, State.TRAINING, State.PAUSED, State.EVALUATING, State.SEALING], ids=str
)
def test_a_job_goes_on_after_a_memory_fault_and_tells_of_it(tmp_path: Path, state: State) -> None:
    standing = concluded(tmp_path, state, PLAN, FLIPPED).standing
    assert (standing.state, standing.attempt, standing.reason_code) == (State.PULLING, 2, "memory-corrupt")
    assert standing.reason.startswith("frozen weights changed in memory (stem.w)")


@pytest.mark.parametrize(("state", "attempt"), [(State.TRAINING, MAX_ATTEMPTS), (State.PROMOTING, 1)])
def test_memory_that_stays_bad_ends_the_job_with_advice(tmp_path: Path, state: State, attempt: int) -> None:
    record = concluded(tmp_path, state, PLAN, FLIPPED, attempt=attempt)
    assert (record.standing.state, record.standing.reason_code) == (State.FAILED, "memory-corrupt")
    assert "test the board's memory" in record.standing.reason
    assert record.result is not None
    assert record.result["memory_faults"] == 1
    assert any("stem.w" in told for told in record.result["warnings"])
