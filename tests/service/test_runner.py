"""What the end of a worker means for its job."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from agent.board.profile import named_profile
from agent.board.sysfs import BoardRoots, SysfsBoard
from agent.energy import Energy, Spent
from agent.errors import BoardError
from agent.messages import Failed, Finished, Go, Message, Order, Progress, Stage, Steer, Waits
from policies.policy import Policy
from policies.reading import Action, Decision, Reading
from service.endings import END_GRACE_S, STOPPING
from service.energy_book import EnergyBook
from service.job import MAX_ATTEMPTS, STAGE_EVENTS, Standing, State
from service.journal import JobRecord, Journal
from service.runner import BOOK_EVERY_S, Runner
from service.statuses import Clock, Statuses, minute_of_day
from service.steering import Steering
from service.worker_process import WorkerProcess
from service.workshop import Workshop

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


def runner_in(
    folder: Path, journal: Journal, canceled: tuple[str, ...] = (), mono: Callable[[], float] = lambda: 1.0
) -> Runner:
    clock = Clock(lambda: 1.0, mono, lambda: True)
    statuses = Statuses(journal, Nowhere(), clock)
    board = SysfsBoard(BoardRoots(folder / "sys", folder / "proc"), named_profile("generic"), folder / "undo.json")
    shop = Workshop(lambda _: pytest.fail("no worker is wanted"), 0, lambda *_: None, lambda _: None)
    return Runner(journal, statuses, Steering(board, Policy()), clock, shop, (), canceled)


def concluded(
    folder: Path,
    state: State,
    plan: dict[str, object] | None,
    last: Message | None,
    code: int = 1,
    attempt: int = 1,
    *,
    starved: bool = False,
) -> JobRecord:
    journal = Journal.open(folder / "journal.sqlite", 0.0).journal
    try:
        runner = runner_in(folder, journal)
        journal.add_job("job-1", "", "fine-tune", {}, 0.0)
        record = journal.update("job-1", 0.0, standing=Standing(state, attempt), plan=plan)
        return runner._conclude(record, last, code, starved=starved)
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


@pytest.mark.parametrize("plan", [None, PLAN, SMALL, WHOLE])
def test_a_worker_that_the_kernel_killed_for_memory_is_started_again_and_in_the_end_that_is_why(
    tmp_path: Path, plan: dict[str, object] | None
) -> None:
    """Also where nothing was planned yet: other programs may have taken the memory, and give it back."""
    for attempt in range(1, MAX_ATTEMPTS):
        (folder := tmp_path / str(attempt)).mkdir()
        standing = concluded(folder, State.PULLING, plan, None, -signal.SIGKILL, attempt, starved=True).standing
        assert (standing.state, standing.attempt) == (State.PULLING, attempt + 1)
        assert standing.reason_code == "out-of-memory"
    ended = concluded(tmp_path, State.PULLING, plan, None, -signal.SIGKILL, MAX_ATTEMPTS, starved=True)
    assert (ended.standing.state, ended.standing.reason_code) == (State.FAILED, "out-of-memory")
    assert "the kernel killed the worker" in ended.standing.reason


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


# --- what the daemon adds to a job's result ---------------------------------------------------------------------------

LADDER = [{"percent": 0, "step_macs": 900}, {"percent": 50, "step_macs": 500}]
WITH_COSTS: dict[str, object] = {
    "plan": {"engine": "graph", "batch": 16, "steps": 10, "depth_percent": 50, "step_macs": 500, "ladder": LADDER},
    "version": "1.0",
    "bandwidth": {"required_bytes_per_s": 1.4e9, "measured_bytes_per_s": 5e9, "model_bytes": 7_000_000},
}
STEP = Progress(0, 4, 1, 10, 16, 0.5, None, 3, 50, 120.0, 1)


class Heard:
    """A worker that hears orders and does nothing; one that is deaf does not even read them."""

    def __init__(self) -> None:
        self.orders: list[Steer] = []
        self.deaf = False

    def offer(self, order: Steer) -> bool:
        if not self.deaf:
            self.orders.append(order)
        return not self.deaf


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "journal.sqlite", 0.0).journal
    yield opened
    opened.close()


def at_work(journal: Journal, runner: Runner, **spec: object) -> JobRecord:
    journal.add_job("job-1", "", "fine-tune", {"epochs": 4, **spec}, 0.0)
    record = journal.update("job-1", 0.0, standing=Standing(State.TRAINING), plan=WITH_COSTS)
    runner.current = record
    runner._books.attempt(record)
    runner._books._counted = (0, 0)
    runner._outlooks.begin(record)
    return record


def test_a_result_has_energy_bandwidth_costs_governor_and_deadline(tmp_path: Path, journal: Journal) -> None:
    runner = runner_in(tmp_path, journal)
    record = at_work(journal, runner, deadline_s=60.0)
    runner._steering.start_energy(Energy({"training": Spent(32.0, 8.0), "other": Spent(4.0, 2.0)}, {"hwmon": 36.0}))
    runner._follow(STEP)
    runner._follow(replace(STEP, step=2, samples=32, reused=16))
    record = journal.update(record.id, 0.0, standing=Standing(State.PROMOTING))
    result = runner._conclude(record, Finished("SUCCEEDED", "", {"slot": "a"}), 0).result or {}
    energy = result["energy"]
    assert isinstance(energy, dict)
    assert (energy["joules"], energy["joules_per_sample"], energy["source"]) == (32.0, 1.0, "hwmon")
    assert energy["operations"] == 2 * (16 * 500 + 16 * (500 - 200)), "the frozen part ran for the first batch only"
    assert (energy["required_bytes_per_s"], energy["measured_bytes_per_s"]) == (1.4e9, 5e9)
    assert result["sample_costs"] == [{"depth_percent": 50, "sample_s": 0.0075, "clocked_share": 1.0, "micro_batch": 0}]
    assert result["governor"] == {
        "ticks": 0, "seconds": None, "share": None,
        "orders": 0, "obey_s_median": None, "obey_s_max": None, "longest_step_s": 0.12,
    }  # fmt: skip
    assert result["deadline"] == {"deadline_s": 60.0, "left_s": 59.0, "met": True}
    assert result["slot"] == "a"


def test_a_job_that_is_put_aside_keeps_its_energy_and_an_ended_one_leaves_none(
    tmp_path: Path, journal: Journal
) -> None:
    spent = Energy({"training": Spent(5.0, 2.0), "paused": Spent(1.0, 1.0)}, {"model": 6.0}, modelled=True)
    runner = runner_in(tmp_path, journal)
    record = at_work(journal, runner)
    runner._steering.start_energy(spent)
    runner.stopping = True
    record = runner._conclude(record, Failed(STOPPING, ""), 0)
    assert (record.standing.state, record.energy_j) == (State.DEFERRED, 6.0)
    assert EnergyBook(journal).load(record) == spent
    record = journal.update(record.id, 0.0, standing=Standing(State.TRAINING))
    runner._conclude(record, Failed("not-finite", "10 steps were not finite"), 1)
    assert EnergyBook(journal)._all() == {}


def test_a_checkpoint_keeps_the_energy(tmp_path: Path, journal: Journal) -> None:
    runner = runner_in(tmp_path, journal)
    record = at_work(journal, runner)
    runner._steering.start_energy(Energy({"training": Spent(5.0, 2.0)}, {"hwmon": 5.0}))
    runner._follow(replace(STEP, event="checkpoint"))
    kept = journal.job(record.id)
    assert kept is not None
    assert kept.energy_j == 5.0
    assert EnergyBook(journal).load(kept).sources == {"hwmon": 5.0}


def test_a_resumed_worker_counts_no_operations_twice(tmp_path: Path, journal: Journal) -> None:
    runner = runner_in(tmp_path, journal)
    at_work(journal, runner)
    runner._books._counted = None
    runner._follow(replace(STEP, samples=800, reused=16))
    assert runner._steering.energy.operations == 0
    runner._follow(replace(STEP, samples=816, reused=32))
    assert runner._steering.energy.operations == 2 * 16 * 300


def test_orders_are_numbered_and_sent_again_only_when_they_differ(tmp_path: Path, journal: Journal) -> None:
    canceled: list[str] = []
    runner = runner_in(tmp_path, journal)
    runner._orders._canceled = canceled
    at_work(journal, runner)
    worker = Heard()
    runner._worker = worker  # type: ignore[assignment]
    for _ in range(3):
        runner.steer()
    canceled.append("job-1")
    for _ in range(3):
        runner.steer()
    assert [(order.number, order.action) for order in worker.orders] == [(1, "RUN"), (2, "ABORT")]


def test_an_order_that_could_not_be_given_is_given_later(tmp_path: Path, journal: Journal) -> None:
    runner = runner_in(tmp_path, journal)
    at_work(journal, runner)
    worker = Heard()
    runner._worker = worker  # type: ignore[assignment]
    worker.deaf = True
    runner.steer()
    worker.deaf = False
    runner.steer()
    runner.steer()
    assert [order.action for order in worker.orders] == ["RUN"]


def test_a_worker_that_reads_nothing_does_not_hold_the_governor_up() -> None:
    async def offered() -> list[bool]:
        program = (sys.executable, "-c", "import time; time.sleep(600)")
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe, stderr=pipe)
        worker = WorkerProcess(child, lambda _: None)
        try:
            return [worker.offer(Steer("RUN", 1.0, 0, reverify=False, rule="run")) for _ in range(5000)]
        finally:
            await worker.end(0.0)

    taken = asyncio.run(offered())
    assert taken[0]
    assert not taken[-1]


@pytest.mark.parametrize(
    ("attempt", "canceled"), [(1, False), (MAX_ATTEMPTS, False), (1, True)], ids=["again", "given up", "canceled"]
)
def test_the_energy_of_a_worker_that_vanished_is_not_lost(
    tmp_path: Path, journal: Journal, attempt: int, *, canceled: bool
) -> None:
    runner = runner_in(tmp_path, journal, ("job-1",) if canceled else ())
    at_work(journal, runner)
    record = journal.update("job-1", 0.0, standing=Standing(State.TRAINING, attempt))
    spent = Energy({"training": Spent(5.0, 2.0)}, {"hwmon": 5.0})
    runner._steering.start_energy(spent)
    record = runner._conclude(record, None, -signal.SIGKILL)
    assert record.energy_j == 5.0
    ended = canceled or attempt == MAX_ATTEMPTS
    assert EnergyBook(journal)._all().keys() == (set() if ended else {"job-1"})


def test_the_energy_of_a_long_pause_is_kept_without_a_checkpoint(tmp_path: Path, journal: Journal) -> None:
    now = [0.0]
    runner = runner_in(tmp_path, journal, mono=lambda: now[0])
    record = at_work(journal, runner)
    runner._worker = Heard()  # type: ignore[assignment]
    kept = []
    for now[0] in (0.0, BOOK_EVERY_S - 1.0, BOOK_EVERY_S, BOOK_EVERY_S + 1.0, 2 * BOOK_EVERY_S):
        runner._steering._meter.energy = Energy({"paused": Spent(now[0], now[0])})
        runner.tick()
        kept.append(EnergyBook(journal).load(record).spent().joules)
    assert kept == [0.0, 0.0, BOOK_EVERY_S, BOOK_EVERY_S, 2 * BOOK_EVERY_S]


def test_a_journal_that_refuses_keeps_no_governor_from_its_tick(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal.sqlite", 0.0).journal
    runner = runner_in(tmp_path, journal, mono=lambda: 2 * BOOK_EVERY_S)
    at_work(journal, runner)
    journal.close()
    runner.tick()
    runner.forget("job-1")


def test_only_the_governors_orders_to_a_worker_at_its_steps_are_timed(tmp_path: Path, journal: Journal) -> None:
    runner = runner_in(tmp_path, journal)
    at_work(journal, runner)
    runner._worker = Heard()  # type: ignore[assignment]
    runner.steer()
    runner._follow(replace(STEP, obeyed=1, obeyed_mono_s=50.0))
    assert runner._obedience.told()["obey_s_max"] is None, "it was opening the model when the order came"
    runner._sent = None
    runner._steering.reading = replace(runner._steering.reading, mono_s=60.0)
    runner.steer()
    runner._follow(replace(STEP, obeyed=2, obeyed_mono_s=60.25))
    assert runner._obedience.told()["obey_s_max"] == 0.25


def test_what_energy_is_spent_on_follows_the_state(tmp_path: Path, journal: Journal) -> None:
    runner = runner_in(tmp_path, journal)
    assert (runner.phase, runner.training) == ("", False)
    record = at_work(journal, runner)
    phases = []
    for state in (State.PULLING, State.COMPILING, State.TRAINING, State.PAUSED, State.EVALUATING):
        runner.current = replace(record, standing=Standing(state))
        phases.append((runner.phase, runner.training))
    assert phases == [
        ("other", False), ("other", False), ("training", True), ("paused", True), ("other", False),
    ]  # fmt: skip


def test_a_job_refused_for_its_bandwidth_has_the_figures_in_its_energy_too(tmp_path: Path) -> None:
    told = {"required_bytes_per_s": 2e9, "measured_bytes_per_s": 1e9}
    refused = Failed("bandwidth", "too much", result={"bandwidth": told, "exit_code": 2})
    result = concluded(tmp_path, State.PLANNING, None, refused).result or {}
    assert result["bandwidth"] == told
    energy = result["energy"]
    assert isinstance(energy, dict)
    assert (energy["required_bytes_per_s"], energy["measured_bytes_per_s"]) == (2e9, 1e9)


# --- rests, budgets and the door to promotion -------------------------------------------------------------------------


class Worker(Heard):
    """A worker that takes whatever it is sent, and can be killed."""

    def __init__(self) -> None:
        super().__init__()
        self.granted: list[str] = []
        self.killed = False

    def offer(self, order: Message) -> bool:  # type: ignore[override]
        if isinstance(order, Go):
            self.granted.append(order.stage)
            return True
        assert isinstance(order, Steer)
        return super().offer(order)

    async def send(self, message: Message) -> None:
        self.offer(message)

    def kill(self) -> None:
        self.killed = True


class Desk:
    """A job in some stage, with its worker, and a clock that is set by hand."""

    def __init__(self, folder: Path, journal: Journal, state: State = State.TRAINING, **spec: object) -> None:
        self.now = 100.0
        self.held: list[str] = []
        self.canceled: list[str] = []
        self.runner = runner_in(folder, journal, mono=lambda: self.now)
        self.runner._orders._held, self.runner._orders._canceled = self.held, self.canceled
        self.worker = Worker()
        record = at_work(journal, self.runner, **spec)
        record = journal.update(record.id, 0.0, standing=Standing(state))
        self.runner._books.open(record)
        self.runner._begin(record)
        self.runner._worker = self.worker  # type: ignore[assignment]

    def hear(self, *messages: Message) -> None:
        for message in messages:
            asyncio.run(self.runner._hear(message))  # type: ignore[arg-type]

    @property
    def standing(self) -> Standing:
        assert self.runner.current is not None
        return self.runner.current.standing

    def ordered(self) -> tuple[str, str]:
        self.runner.tick()
        last = self.worker.orders[-1]
        return last.action, last.rule


STAGES = [stage for stage in STAGE_EVENTS if stage is not State.PROMOTING]


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_a_worker_that_rests_in_a_stage_goes_back_to_it(tmp_path: Path, journal: Journal, stage: State) -> None:
    desk = Desk(tmp_path, journal, stage)
    desk.hear(Waits(resting=True, rule="held"))
    assert (desk.standing.state, desk.standing.reason_code) == (State.PAUSED, "held")
    assert desk.runner.phase == ("paused" if stage is State.TRAINING else "other")
    assert desk.runner.current is not None
    assert (desk.runner.current.until or {})["what"] == "operator"
    desk.hear(Waits(resting=False, rule="run"))
    assert desk.standing == Standing(stage)
    assert desk.runner.current.until is None


def test_a_pause_that_goes_on_for_another_reason_says_so(tmp_path: Path, journal: Journal) -> None:
    desk = Desk(tmp_path, journal)
    desk.held.append("job-1")
    assert desk.ordered() == ("PAUSE", "held")
    desk.hear(replace(STEP, event="paused", rule="held"))
    version = desk.runner.current.version if desk.runner.current else 0
    desk.ordered()
    assert desk.runner.current is not None
    assert desk.runner.current.version == version, "nothing changed"
    desk.held.clear()
    desk.runner._steering.decision = Decision(action=Action.PAUSE, rule="battery.pause")
    desk.ordered()
    assert desk.standing.reason_code == "battery.pause"
    assert desk.runner.current.until == {"what": "charge", "below": None, "above": 0.15, "ts": None}


def test_working_time_leaves_pauses_out_and_outlives_the_worker(tmp_path: Path, journal: Journal) -> None:
    desk = Desk(tmp_path, journal, most_time_s=30.0)
    desk.now += 10
    desk.hear(Waits(resting=True, rule="held"))
    desk.now += 500
    assert desk.ordered()[0] == "RUN"
    desk.hear(Waits(resting=False, rule="run"))
    desk.now += 10
    assert desk.ordered()[0] == "RUN"
    assert desk.runner.current is not None
    record = desk.runner._conclude(desk.runner.current, None, 1)
    assert (record.standing.state, record.worked_s) == (State.PULLING, 20.0)
    desk.runner._books.open(record)
    desk.runner._begin(record)
    desk.now += 9
    assert desk.ordered()[0] == "RUN"
    desk.now += 1
    assert desk.ordered() == ("ABORT", "most-time")
    record = desk.runner._conclude(record, Failed("most-time", "the job was ended"), 1)
    assert (record.standing.state, record.standing.reason_code) == (State.TIMED_OUT, "most-time")
    assert record.result is not None
    assert record.result["spent"] == {"worked_s": 30.0, "energy_j": None}


def test_a_job_that_spent_its_energy_fails_and_tells_how_far_it_came(tmp_path: Path, journal: Journal) -> None:
    desk = Desk(tmp_path, journal, most_energy_j=100.0)
    desk.hear(replace(STEP, step=7, samples=112))
    desk.runner._steering._meter.energy = Energy({"training": Spent(60.0, 9.0), "other": Spent(39.0, 3.0)})
    assert desk.ordered()[0] == "RUN"
    desk.runner._steering._meter.energy = Energy({"training": Spent(61.0, 9.0), "other": Spent(39.0, 3.0)})
    assert desk.ordered() == ("ABORT", "most-energy")
    assert desk.runner.current is not None
    record = desk.runner._conclude(desk.runner.current, Failed("most-energy", "the job was ended"), 1)
    assert (record.standing.state, record.standing.reason_code) == (State.FAILED, "most-energy")
    assert record.result is not None
    assert record.result["reached"] == {"epoch": 0, "epochs": 4, "step": 7, "steps": 10, "samples": 112}
    assert record.result["spent"]["energy_j"] == 100.0  # type: ignore[index]


def test_a_job_with_a_temperature_of_its_own_rests_and_goes_on(tmp_path: Path, journal: Journal) -> None:
    desk = Desk(tmp_path, journal, most_temperature_celsius=50.0)
    orders = []
    for celsius in (49.0, 51.0, 48.0, 47.0):
        desk.runner._steering.reading = Reading(1.0, temperature_celsius=celsius)
        orders.append(desk.ordered())
    assert orders == [("RUN", "run"), ("PAUSE", "job.temperature"), ("PAUSE", "job.temperature"), ("RUN", "run")]


@pytest.mark.parametrize("state", [State.COMPILING, State.TRAINING])
def test_a_worker_that_does_not_end_as_ordered_is_killed(tmp_path: Path, journal: Journal, state: State) -> None:
    desk = Desk(tmp_path, journal, state)
    desk.canceled.append("job-1")
    assert desk.ordered() == ("ABORT", "canceled")
    desk.now += END_GRACE_S - 0.1
    desk.runner.tick()
    assert not desk.worker.killed
    desk.now += 0.1
    desk.runner.tick()
    assert desk.worker.killed
    assert desk.runner.current is not None
    assert desk.runner._conclude(desk.runner.current, None, -signal.SIGKILL).standing.state is State.CANCELED


def test_what_is_canceled_is_never_let_into_promotion(tmp_path: Path, journal: Journal) -> None:
    desk = Desk(tmp_path, journal, State.SEALING)
    desk.canceled.append("job-1")
    desk.hear(Stage("PROMOTING"))
    desk.runner.tick()
    assert desk.worker.granted == []
    assert desk.standing.state is State.SEALING
    assert desk.worker.orders[-1].action == "ABORT"


def test_what_is_paused_at_the_door_to_promotion_is_let_in_later(tmp_path: Path, journal: Journal) -> None:
    desk = Desk(tmp_path, journal, State.SEALING)
    desk.held.append("job-1")
    desk.hear(Stage("PROMOTING"))
    desk.runner.tick()
    assert (desk.standing.state, desk.worker.granted) == (State.PAUSED, [])
    desk.held.clear()
    desk.runner.tick()
    assert (desk.standing.state, desk.worker.granted) == (State.PROMOTING, ["PROMOTING"])
    desk.held.append("job-1")
    desk.canceled.append("job-1")
    desk.runner.tick()
    assert "ABORT" not in [order.action for order in desk.worker.orders], "a promotion is not held up"


def test_a_full_disk_at_the_door_to_promotion_holds_no_governor_up(tmp_path: Path, journal: Journal) -> None:
    desk = Desk(tmp_path, journal, State.SEALING)
    desk.held.append("job-1")
    desk.hear(Stage("PROMOTING"))
    desk.held.clear()
    journal._db.execute("PRAGMA query_only = ON")
    desk.runner.tick()
    assert (desk.standing.state, desk.worker.granted) == (State.PAUSED, [])
    journal._db.execute("PRAGMA query_only = OFF")
    desk.runner.tick()
    assert (desk.standing.state, desk.worker.granted) == (State.PROMOTING, ["PROMOTING"])


def test_a_status_says_how_long_training_will_take(tmp_path: Path, journal: Journal) -> None:
    desk = Desk(tmp_path, journal)
    for step in range(1, 6):
        desk.now += 1.0
        desk.hear(replace(STEP, step=step, samples=step * 16))
    assert desk.runner.eta_s == pytest.approx(35.0), "of 40 steps 5 are done, a second each"
    desk.hear(Waits(resting=True, rule="held"))
    assert desk.runner.eta_s is None


def test_a_job_is_put_aside_at_the_end_of_its_window_and_says_when_it_goes_on(tmp_path: Path, journal: Journal) -> None:
    """The clock of `runner_in` stands at one second of 1970: the window has passed, wherever the test runs."""
    minute = minute_of_day(1.0)
    begin, end = (minute - 60) % 1440, minute
    window = f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    desk = Desk(tmp_path, journal, window=window)
    assert desk.ordered() == ("ABORT", "window")
    assert desk.runner.current is not None
    record = desk.runner._conclude(desk.runner.current, Failed("window", "the job was ended"), 1)
    assert (record.standing.state, record.standing.reason_code, record.standing.attempt) == ("DEFERRED", "window", 1)
    assert record.until == {"what": "time", "below": None, "above": None, "ts": 23 * 3600.0}
    assert record.result is None


@pytest.mark.parametrize("watts", [None, 4.0])
def test_a_bound_of_energy_that_cannot_be_kept_is_warned_of(
    tmp_path: Path, journal: Journal, watts: float | None
) -> None:
    runner = runner_in(tmp_path, journal)
    runner._steering.reading = Reading(1.0, power_watts=watts)

    def no_process(_record: JobRecord) -> Order:
        raise BoardError("no worker can be started")

    runner._shop = replace(runner._shop, make_order=no_process)
    journal.add_job("job-1", "", "fine-tune", {"most_energy_j": 5.0}, 0.0)
    record = journal.update("job-1", 0.0, standing=Standing(State.ACCEPTED))
    with pytest.raises(BoardError):
        asyncio.run(runner.run(record))
    assert bool(runner._warnings) is (watts is None)


class Leaving(Heard):
    """A worker that obeys an order to end; of its two ends one is seen later than the other."""

    pid, starved = 1, False

    def __init__(self, late: int) -> None:
        super().__init__()
        self._late, self._gone, self._ends = late, asyncio.Event(), 0

    def offer(self, order: Steer) -> bool:
        if order.action == "ABORT":
            self._gone.set()
        return super().offer(order)

    async def messages(self) -> AsyncIterator[Message]:
        await self._gone.wait()
        yield Failed("stopping", "the job was ended")

    async def end(self, _grace_s: float) -> int:
        await self._gone.wait()
        self._ends += 1
        for _ in range(self._late if self._ends == 2 else 0):
            await asyncio.sleep(0)
        return 1


@pytest.mark.parametrize("late", [0, 1, 5])
def test_a_daemon_that_goes_is_told_of_its_job_before_anybody_ends_the_runner(
    tmp_path: Path, journal: Journal, late: int
) -> None:
    worker = Leaving(late)

    async def start(*_: object) -> Leaving:
        return worker

    async def play() -> None:
        runner = runner_in(tmp_path, journal)
        runner._shop = replace(runner._shop, make_order=lambda _: None, start=start)  # type: ignore[arg-type]
        journal.add_job("job-9", "", "fine-tune", {}, 0.0)
        record = journal.update("job-9", 0.0, standing=Standing(State.TRAINING, 1), plan=PLAN)
        job = asyncio.create_task(runner.run(record))
        await asyncio.sleep(0.01)
        await runner.stop()
        job.cancel()
        await asyncio.wait([job])

    asyncio.run(play())
    stands = journal.job("job-9").standing
    assert (stands.state, stands.reason_code, stands.attempt) == (State.DEFERRED, "daemon-stopped", 1)
