"""The order of waiting jobs, what each waits for, and the bounds a job may set itself."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.board.profile import named_profile
from agent.board.sysfs import BoardRoots, SysfsBoard
from agent.errors import SpecError
from agent.messages import Failed, Message
from agent.spec import parse_spec, spec_table
from policies.governor import GovernorState, decide
from policies.outlook import Outlook
from policies.policy import BatteryPolicy, Policy
from policies.policy_schedule import SchedulePolicy
from policies.reading import Action, Decision, Reading
from service import endings
from service.commands import new_id
from service.conclusion import conclude
from service.endings import STOPPING, Ending, of_spec
from service.job import Event, Standing, State
from service.journal import JobRecord, Journal
from service.pace import LEAST_PACE_S, Pace, WorkClock
from service.queue import Waiting, line
from service.statuses import Clock, Statuses
from service.steering import Steering
from service.until import COOLER_KELVIN, RETRY_S, Hour, Until, board_waits, too_hot, window_closed
from service.waiting import TOLD_AT_ONCE, WaitingLine

NOON = Hour(1_800_000_000.0 - 1_800_000_000.0 % 86_400 + 43_200, 12 * 60)
POLICY = Policy()
HOT = Decision(action=Action.PAUSE, rule="thermal.delta-t-pause")

# --- the order --------------------------------------------------------------------------------------------------------

waiting_jobs = st.lists(
    st.tuples(st.integers(-2, 2), st.sampled_from((0, 25, 50, 75, 100)), st.booleans()), max_size=12
).map(lambda rows: [Waiting(f"job-{number}", *row) for number, row in enumerate(rows)])
policies = st.sampled_from(("most-frozen-first", "least-frozen-first")).map(
    lambda order: replace(POLICY, battery=BatteryPolicy(order=order))
)


@given(jobs=waiting_jobs, policy=policies, short=st.booleans())
def test_the_order_holds_every_job_once_by_interruption_priority_and_arrival(
    jobs: list[Waiting], policy: Policy, *, short: bool
) -> None:
    order = line(policy, jobs, short=short)
    assert sorted(order) == sorted(job.id for job in jobs)
    by_id, arrived = {job.id: job for job in jobs}, {job.id: number for number, job in enumerate(jobs)}
    for before, after in itertools.pairwise(by_id[name] for name in order):
        assert (not before.interrupted, -before.priority) <= (not after.interrupted, -after.priority)
        if (before.interrupted, before.priority) != (after.interrupted, after.priority):
            continue
        if short and before.depth_percent != after.depth_percent:
            deeper_first = policy.battery.order == "most-frozen-first"
            assert (before.depth_percent > after.depth_percent) is deeper_first
        else:
            assert arrived[before.id] < arrived[after.id]


@given(waiting_jobs, waiting_jobs)
def test_no_later_job_of_the_same_priority_goes_before_an_earlier_one(
    first: list[Waiting], more: list[Waiting]
) -> None:
    later = [replace(job, id=f"later-{job.id}", interrupted=False, priority=min(job.priority, 0)) for job in more]
    earlier = [replace(job, priority=max(job.priority, 0)) for job in first]
    order = line(POLICY, [*earlier, *later], short=False)
    assert order[: len(earlier)] == line(POLICY, earlier, short=False)


# --- what releases a job ----------------------------------------------------------------------------------------------


def judged(*readings: Reading, policy: Policy = POLICY, outlook: Outlook | None = None) -> Decision:
    state, decision = GovernorState(), Decision()
    for reading in readings:
        state, decision = decide(policy, state, reading, outlook or Outlook())
    return decision


@pytest.mark.parametrize(
    ("hot", "what"),
    [
        (Reading(1.0, temperature_celsius=70.0, ambient_celsius=20.0), "delta_t_celsius"),
        (Reading(1.0, temperature_celsius=90.0), "temperature_celsius"),
        (Reading(1.0, temperature_celsius=97.0), "temperature_celsius"),
        (Reading(1.0, temperature_celsius=30.0, charge=0.05, on_mains=False), "charge"),
    ],
)
def test_the_number_told_is_where_the_governor_lets_go(hot: Reading, what: str) -> None:
    """A hair on the wrong side of it the board still waits."""
    decision = judged(hot)
    assert decision.action >= Action.PAUSE
    told = board_waits(POLICY, decision.rule, NOON).until
    assert told.what == what
    for hair, waits in ((0.0, False), (0.001, True)):
        after = replace(hot, mono_s=100.0)
        if what == "charge":
            assert told.above is not None
            after = replace(after, charge=told.above - hair)
        else:
            assert told.below is not None
            over = after.ambient_celsius or 0.0 if what == "delta_t_celsius" else 0.0
            after = replace(after, temperature_celsius=told.below + over + hair)
        assert (judged(hot, after).action >= Action.PAUSE) is waits


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 59))
def test_quiet_hours_and_windows_name_the_minute_in_which_they_change(
    begin: int, end: int, minute: int, second: int
) -> None:
    if begin == end:
        return
    text = f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    policy = replace(POLICY, schedule=SchedulePolicy(quiet=text, quiet_action="pause"))
    hour = Hour(1_800_000_000.0 + minute * 60 + second, minute)  # the first is a midnight less 8 hours: a zone's offset
    quiet = judged(Reading(1.0, 30.0), policy=policy, outlook=Outlook(minute_of_day=minute)).action is Action.PAUSE
    closed = window_closed({"window": text}, hour)
    assert quiet is (closed is None)
    until = board_waits(policy, "schedule.quiet", hour).until if quiet else closed and closed.until
    assert until is not None
    assert until.ts is not None
    ahead = until.ts - hour.now
    assert 0 < ahead <= 86_400
    turns = (minute + round((ahead + second) / 60)) % 1440
    assert turns == (end if quiet else begin)


def test_a_window_waits_for_a_clock_that_is_not_set() -> None:
    why = window_closed({"window": "22:00-06:00"}, Hour(0.0, None))
    assert why is not None
    assert (why.code, why.until) == ("window", Until("clock"))
    assert window_closed({"window": ""}, Hour(0.0, None)) is None
    assert window_closed({}, NOON) is None, "a job of an older journal"


def test_a_job_with_a_temperature_of_its_own_rests_until_it_is_cooler() -> None:
    spec: dict[str, object] = {"most_temperature_celsius": 60.0}
    found, rests = [], False
    for celsius in (59.0, 60.0, 60.1, None, 58.0, 57.1, 57.0, None, 59.0):
        rests = too_hot(spec, celsius, before=rests) is not None
        found.append(rests)
    assert found == [False, False, True, True, True, True, False, False, False]
    why = too_hot(spec, 70.0, before=False)
    assert why is not None
    assert (why.code, why.until.below) == ("job.temperature", 60.0 - COOLER_KELVIN)
    assert too_hot({}, 99.0, before=False) is None


@pytest.mark.parametrize("key", ["window", "most_temperature_celsius", "priority", "most_time_s"])
@pytest.mark.parametrize("value", ["25:00-06:00", "22:00-22:00", 19.9, 126.0, 101, -101, -1.0, True])
def test_bounds_that_make_no_sense_are_refused_by_name(key: str, value: object) -> None:
    fits = {"most_time_s": (19.9, 126.0, 101), "most_temperature_celsius": (101,)}
    if value in fits.get(key, ()) and not isinstance(value, bool):
        parse_spec({"model": "m", "data": "/d", key: value})
        return
    with pytest.raises(SpecError, match=key):
        parse_spec({"model": "m", "data": "/d", key: value})


# --- budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"most_time_s": 10.0, "most_energy_j": 50.0}, None),
        ({"most_time_s": 9.9}, ("most-time", Event.TIME_OUT)),
        ({"most_energy_j": 40.0}, ("most-energy", Event.FAIL)),
        ({"most_time_s": 1.0, "most_energy_j": 1.0}, ("most-energy", Event.FAIL)),
        ({"window": "13:00-14:00"}, ("window", Event.SUSPEND)),
        ({"window": "11:00-13:00"}, None),
        ({"window": "13:00-14:00", "most_time_s": 1.0}, ("most-time", Event.TIME_OUT)),
        ({}, None),
    ],
)
def test_a_bound_that_is_reached_ends_the_worker(spec: dict[str, object], expected: object) -> None:
    found = of_spec(spec, 9.95, 40.0, NOON)
    assert (found and (found.code, found.event)) == expected


def record_in(state: State) -> JobRecord:
    return JobRecord(
        "job-1", "d", "fine-tune", {}, Standing(state), 3, {"plan": {}}, None, None, 0.0, 0.0, status_published=False
    )


WINDOW = of_spec({"window": "13:00-14:00"}, 0.0, 0.0, NOON)
TIME = of_spec({"most_time_s": 1.0}, 2.0, 0.0, NOON)
CRASHED = Failed("internal", "a fault of ours")


@pytest.mark.parametrize(
    ("ending", "last", "expected"),
    [
        (WINDOW, Failed("window", ""), (Event.SUSPEND, "window")),
        (WINDOW, None, (Event.SUSPEND, "window")),  # killed because it did not obey: no attempt is lost
        (TIME, Failed("most-time", ""), (Event.TIME_OUT, "most-time")),
        (TIME, None, (Event.TIME_OUT, "most-time")),
        (TIME, CRASHED, (Event.FAIL, "internal")),  # it ended for something else first
        (endings.canceled(), None, (Event.CANCEL, "canceled")),
        (endings.canceled(), CRASHED, (Event.CANCEL, "canceled")),
        (endings.stopped(NOON), Failed(STOPPING, ""), (Event.SUSPEND, "daemon-stopped")),
        (endings.stopped(NOON), None, (None, "")),
        (None, CRASHED, (Event.FAIL, "internal")),
        (None, None, (Event.RESTART, "worker-crashed")),
    ],
)
def test_what_the_end_of_a_worker_means_under_an_order_to_end(
    ending: Ending | None, last: Message | None, expected: object
) -> None:
    found = conclude(record_in(State.TRAINING), last, 1, ending, NOON)
    assert (found.event, found.code) == expected


@pytest.mark.parametrize("ending", [WINDOW, TIME, endings.canceled()])
def test_no_order_ends_a_promotion(ending: Ending | None) -> None:
    assert conclude(record_in(State.PROMOTING), None, 1, ending, NOON).event is Event.RESTART


# --- the line ---------------------------------------------------------------------------------------------------------


class Told:
    """An uplink that remembers statuses and confirms none."""

    def __init__(self) -> None:
        self.statuses: list[dict[str, object]] = []

    def publish_status(
        self, _type: str, _id: str, status: Mapping[str, object], *, retained: bool = True
    ) -> asyncio.Future[bool] | None:
        assert retained
        self.statuses.append(dict(status))
        return None


class LineBench:
    """A line of jobs over a real journal, with a clock that is set by hand."""

    def __init__(self, folder: Path) -> None:
        self.now, self.mono, self.synchronised = NOON.now, 1000.0, True
        self.held: set[str] = set()
        self.late: set[str] = set()
        self.settled: list[str] = []
        self.told = Told()
        self.journal = Journal.open(folder / "journal.sqlite", 0.0).journal
        board = SysfsBoard(BoardRoots(folder / "sys", folder / "proc"), named_profile("generic"))
        self.steering = Steering(board, POLICY)
        clock = Clock(lambda: self.now, lambda: self.mono, lambda: self.synchronised)
        self.minute = clock.hour().minute_of_day or 0
        self.statuses = Statuses(self.journal, self.told, clock)
        self.line = WaitingLine(
            self.journal, self.statuses, self.steering, clock, self.held,
            lambda record: record.id in self.late, lambda record: self.settled.append(record.id),
        )  # fmt: skip
        self._count = 0

    def add(self, state: State = State.ACCEPTED, **asked: object) -> str:
        self._count += 1
        job_id = new_id(1_800_000_000_000 + self._count, lambda count: b"\1" * count)
        spec = spec_table(parse_spec({"model": "m", "data": "/d", **asked}))
        self.journal.add_job(job_id, "d", "fine-tune", spec, self.now)
        self.journal.update(job_id, self.now, standing=Standing(state))
        return job_id

    def hours(self, begin: int, end: int) -> str:
        """A window by minutes from now, in local time."""
        at = [(self.minute + minutes) % 1440 for minutes in (begin, end)]
        return "-".join(f"{minute // 60:02}:{minute % 60:02}" for minute in at)

    def next(self) -> str:
        found = self.line.next()
        return found.id if found else ""

    def why(self, job_id: str) -> tuple[str, str, object]:
        record = self.journal.job(job_id)
        assert record is not None
        until = record.until or {}
        number = next((until[key] for key in ("below", "above", "ts") if until.get(key) is not None), None)
        return record.standing.reason_code, str(until.get("what", "")), number


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LineBench]:
    made = LineBench(tmp_path)
    yield made
    made.journal.close()


def test_each_waiting_job_says_what_it_waits_for(bench: LineBench) -> None:
    first, second = bench.add(), bench.add()
    held, closed, hot = bench.add(), bench.add(window=bench.hours(60, 120)), bench.add(most_temperature_celsius=40.0)
    bench.held.add(held)
    bench.steering.reading = Reading(1.0, temperature_celsius=50.0)
    assert bench.next() == first
    assert bench.why(first) == ("", "", None)
    assert bench.why(second) == ("queued", "job", None)
    assert bench.why(held) == ("held", "operator", None)
    assert bench.why(closed) == ("window", "time", bench.now + 3600)
    assert bench.why(hot) == ("job.temperature", "temperature_celsius", 40.0 - COOLER_KELVIN)
    bench.steering.decision = HOT
    assert bench.next() == ""
    assert bench.why(first) == bench.why(second) == ("thermal.delta-t-pause", "delta_t_celsius", 32.0)
    assert bench.why(held)[0] == "held", "what the job itself waits for is told first"


def test_a_reason_that_stays_is_written_once(bench: LineBench) -> None:
    for _ in range(3):
        bench.add()
    bench.next()
    told = len(bench.told.statuses)
    for _ in range(5):
        bench.now += 1
        bench.next()
        bench.line.review("")
    assert len(bench.told.statuses) == told + 1, "the first of the line waits too once another one is at work"


def test_a_long_line_is_told_a_few_at_a_time_from_its_front(bench: LineBench) -> None:
    jobs = [bench.add() for _ in range(2 * TOLD_AT_ONCE + 3)]
    bench.steering.decision = HOT
    for told in (TOLD_AT_ONCE, 2 * TOLD_AT_ONCE, len(jobs), len(jobs)):
        bench.next()
        waits = [bench.why(job_id)[0] for job_id in jobs]
        assert waits == [HOT.rule] * told + [""] * (len(jobs) - told)


def test_a_job_runs_in_its_window_and_only_there(bench: LineBench) -> None:
    job_id = bench.add(window=bench.hours(60, 120))
    for minutes, runs in ((0, False), (59, False), (60, True), (119, True), (120, False)):
        bench.now = NOON.now + minutes * 60
        assert (bench.next() == job_id) is runs
    bench.synchronised = False
    assert bench.next() == ""
    assert bench.why(job_id) == ("window", "clock", None)


def test_a_job_that_was_interrupted_outside_its_window_is_put_aside(bench: LineBench) -> None:
    job_id = bench.add(State.PULLING, window=bench.hours(60, 120))
    assert bench.next() == ""
    record = bench.journal.job(job_id)
    assert record is not None
    assert (record.standing.state, record.standing.attempt, record.standing.reason_code) == ("DEFERRED", 1, "window")


def test_an_interrupted_job_goes_on_before_a_higher_priority_whatever_the_board_says(bench: LineBench) -> None:
    urgent = bench.add(priority=100)
    interrupted = bench.add(State.PULLING, priority=-100)
    bench.steering.decision = HOT
    assert bench.next() == interrupted
    assert bench.why(urgent)[0] == "thermal.delta-t-pause"


def test_a_job_whose_network_is_away_is_left_alone_until_it_is_tried_again(bench: LineBench) -> None:
    job_id = bench.add(State.DEFERRED)
    until = Until("network", ts=bench.now + RETRY_S).table()
    bench.journal.update(job_id, 0.0, standing=Standing(State.DEFERRED, 1, "network", "unreachable"), until=until)
    bench.line.retry_later(job_id)
    assert bench.next() == ""
    assert bench.why(job_id) == ("network", "network", bench.now + RETRY_S)
    bench.mono += RETRY_S
    assert bench.next() == job_id


def test_a_job_that_waited_too_long_ends(bench: LineBench) -> None:
    late, other = bench.add(most_wait_s=60.0), bench.add()
    bench.late.add(late)
    assert bench.next() == other
    record = bench.journal.job(late)
    assert record is not None
    assert (record.standing.state, record.standing.reason_code) == ("TIMED_OUT", "most-wait")
    assert bench.settled == [late]


def test_what_a_crash_left_received_is_accepted(bench: LineBench) -> None:
    job_id = bench.add(State.RECEIVED)
    assert bench.next() == job_id


def test_the_line_shows_who_waits_in_the_order_in_which_they_run(bench: LineBench) -> None:
    running, low, high = bench.add(State.TRAINING), bench.add(priority=-1), bench.add(priority=7)
    bench.line.review(running)
    shown = bench.line.told(running)
    assert [(job["id"], job["priority"], job["reason_code"]) for job in shown] == [
        (high, 7, "queued"), (low, -1, "queued"),
    ]  # fmt: skip


@settings(max_examples=40)  # each makes a journal
@given(data=st.data())
def test_whatever_happens_in_a_line_every_waiting_job_says_why(data: st.DataObject, tmp_path_factory: object) -> None:
    assert isinstance(tmp_path_factory, pytest.TempPathFactory)
    bench = LineBench(tmp_path_factory.mktemp("line"))
    jobs: list[str] = []
    decisions = (Decision(), HOT, Decision(action=Action.PAUSE, rule="battery.pause"))
    for _ in range(data.draw(st.integers(1, 8))):
        match data.draw(st.sampled_from(("add", "hold", "release", "board", "time", "clock"))):
            case "add":
                window = data.draw(st.sampled_from(("", bench.hours(60, 120), bench.hours(-10, 10))))
                jobs.append(bench.add(window=window, priority=data.draw(st.integers(-1, 1))))
            case "hold" if jobs:
                bench.held.add(data.draw(st.sampled_from(jobs)))
            case "release" if bench.held:
                bench.held.discard(data.draw(st.sampled_from(sorted(bench.held))))
            case "board":
                bench.steering.decision = data.draw(st.sampled_from(decisions))
            case "time":
                bench.now += 60.0 * data.draw(st.integers(1, 90))
            case "clock":
                bench.synchronised = data.draw(st.booleans())
        chosen = bench.next()
        for job_id in jobs:
            record = bench.journal.job(job_id)
            assert record is not None
            if job_id == chosen:
                assert job_id not in bench.held
                assert bench.steering.decision.action < Action.PAUSE
            else:
                assert record.standing.state is State.DEFERRED
                assert record.standing.reason_code
                assert record.until is not None
    bench.journal.close()


# --- clocks of the work -----------------------------------------------------------------------------------------------


def test_pauses_are_no_work_and_no_pace() -> None:
    work, pace = WorkClock(5.0), Pace()
    work.turn(10.0, on=True)
    for step in range(11):
        pace.step(10.0 + step, step * 16)
    assert work.seconds(20.0) == 15.0
    assert pace.eta_s(160) == pytest.approx(10.0)
    work.turn(20.0, on=False)
    pace.rest()
    assert work.seconds(500.0) == 15.0
    work.turn(500.0, on=True)
    pace.step(500.0, 160)
    pace.step(501.0, 176)
    assert work.seconds(501.0) == 16.0
    assert pace.eta_s(160) == pytest.approx(10.0)


def test_nothing_is_said_of_a_pace_that_nobody_knows() -> None:
    pace = Pace()
    assert pace.eta_s(100) is None
    pace.step(0.0, 0)
    pace.step(LEAST_PACE_S / 2, 16)
    assert pace.eta_s(100) is None
    pace.step(2 * LEAST_PACE_S, 64)
    assert pace.eta_s(None) is None
    assert pace.eta_s(64) == pytest.approx(2 * LEAST_PACE_S, rel=0.1)
