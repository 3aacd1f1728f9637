"""The window of a release on trial, second by second, on a clock that the test holds."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from agent.agent_slots import agent_folder, read_standing, write_standing
from agent.energy import TRAINING as TRAINS
from agent.errors import BoardError
from agent.messages import Failed, Finished, Message, SelfTestOrder
from policies.reading import Decision, Reading
from policies.trial import begin, committed, leaving, ready, staged
from policies.trial_health import IDLE, TRAINING, Baseline, Heat
from policies.trial_standing import INSTALLED, Moment, Outcome, Stage, Standing, Trial
from service.agent_trial import AGAIN_S, GATE_S, HEALTHY_S, AgentTrial, TrialShop
from service.launched import LEAVE_SAFE_MODE, Launched
from service.statuses import Clock
from service.steering import Steering
from service.worker_process import StartWorker

WINDOW_S = 100.0
WELL = Finished("SUCCEEDED", "", {"model": "ab"})
KNOWN = Baseline({IDLE: Heat(10.0, 12.0, 500, True), TRAINING: Heat(20.0, 22.0, 500, True)}, had_link=True)


@dataclass
class Board:
    """What the governor knows."""

    reading: Reading = field(default_factory=lambda: Reading(0.0, temperature_celsius=35.0, ambient_celsius=25.0))
    decision: Decision = field(default_factory=Decision)


@dataclass
class Worker:
    """Says one thing and ends."""

    last: Message | None
    ended: bool = False

    async def messages(self) -> AsyncIterator[Message]:
        if self.last is not None:
            yield self.last

    async def end(self, _grace_s: float = 0.0) -> int:
        self.ended = True
        return 0 if isinstance(self.last, Finished) else 1


class Bench:
    """A daemon that lives as long as its test wants."""

    def __init__(self, state: Path) -> None:
        self.state, self.now, self.board, self.connected = state, 1000.0, Board(), True
        self.busy = False
        self.answer: Message | None = WELL
        self.orders: list[Message] = []

    def moment(self) -> Moment:
        return Moment("boot-1", self.now)

    def starts(self, place: str = "a", safe_mode: str = "") -> AgentTrial:
        async def start(order: Message, *_: object) -> Worker:
            self.orders.append(order)
            return Worker(self.answer)

        shop = TrialShop(
            *(self.state, Launched(place, safe_mode), 1, 0),
            moment=self.moment,
            connected=lambda: self.connected,
            busy=lambda: self.busy,
            start=cast("StartWorker", start),
        )
        clock = Clock(lambda: 0.0, lambda: self.now, lambda: True)
        self.trial = AgentTrial(shop, cast("Steering", self.board), clock)
        self.trial.begin()
        return self.trial

    def lives(self, seconds: float, *, working: bool = False, phase: str = "", tests: bool = True) -> None:
        for _ in range(int(seconds)):
            self.now += 1
            if tests and self.trial.due():
                asyncio.run(self.trial.run())
            self.trial.tick(working=working, phase=phase)
            if self.trial.leaves:
                return

    def put(self, standing: Standing) -> None:
        write_standing(self.state, standing)

    def on_trial(self, baseline: Baseline = KNOWN) -> None:
        trial = Trial("a", "2.0", "d2", "command-1", window_s=WINDOW_S)
        left = leaving(staged(Standing(), trial), self.moment(), baseline.table())
        self.put(begin(left, self.moment(), "1.0")[0])

    def standing(self) -> Standing:
        return read_standing(self.state)[0]

    def end(self) -> Outcome:
        found = self.standing().last
        assert found is not None
        return found


def on_full_disk(*_: object) -> None:
    raise BoardError("no space left", reason="no-space")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_release_that_is_well_stays_after_its_window_and_says_what_was_compared(bench: Bench) -> None:
    bench.on_trial()
    bench.now += 2.5
    bench.starts()
    bench.lives(WINDOW_S - 1)
    assert bench.standing().trial is not None
    bench.lives(2)
    end = bench.end()
    assert (end.status, bench.trial.leaves) == ("succeeded", False)
    assert end.result["downtime_s"] == 2.5
    assert end.result["link"] is True
    assert isinstance(end.result["heat"], dict)
    assert list(end.result["heat"]) == [IDLE]
    assert bench.orders == [SelfTestOrder(str(bench.state), 1)]
    assert bench.standing().active == "a"


def unwell(bench: Bench, what: str) -> None:
    reading = bench.board.reading
    match what:
        case "mean":
            bench.board.reading = Reading(0.0, temperature_celsius=reading.temperature_celsius, ambient_celsius=15.0)
        case "critical":
            bench.board.decision = Decision(rule="schedule.quiet", notes=("thermal.critical",))
        case "link":
            bench.connected = False
        case "gate":
            bench.answer = Failed("self-test", "the model's outputs are not finite")
        case "gone":
            bench.answer = None


@pytest.mark.parametrize(
    ("what", "code", "within"),
    [
        ("mean", "trial-heat", WINDOW_S / 2),
        ("critical", "trial-heat", 2),
        ("link", "trial-link", WINDOW_S + 1),
        ("gate", "trial-gate", 2),
        ("gone", "trial-gate", 2),
    ],
)
def test_a_release_that_is_unwell_is_left_at_once_and_exactly_once(
    bench: Bench, what: str, code: str, within: float
) -> None:
    bench.on_trial()
    unwell(bench, what)
    bench.starts()
    bench.lives(within)
    assert bench.trial.leaves
    end = bench.end()
    assert (end.status, end.code, end.command_id) == ("rolled_back", code, "command-1")
    standing = bench.standing()
    assert standing.is_refused("d2")
    bench.trial.close(told=False)
    bench.lives(3)
    assert bench.standing() == standing
    assert begin(standing, bench.moment(), "1.0")[1].place == INSTALLED


def test_where_the_release_before_knew_no_heat_and_had_no_broker_neither_is_asked_for(bench: Bench) -> None:
    bench.on_trial(Baseline())
    unwell(bench, "mean")
    unwell(bench, "link")
    bench.starts()
    bench.lives(WINDOW_S + 1)
    assert (bench.end().status, bench.end().result["heat"], bench.end().result["link"]) == ("succeeded", {}, False)


def test_training_is_held_against_training(bench: Bench) -> None:
    bench.on_trial()
    bench.board.reading = Reading(0.0, temperature_celsius=46.0, ambient_celsius=25.0)  # 21 K: hot for a board at rest
    bench.starts()
    bench.lives(WINDOW_S + 1, working=True, phase=TRAINS)
    heat = bench.end().result["heat"]
    assert (bench.end().status, isinstance(heat, dict) and list(heat)) == ("succeeded", [TRAINING])


def test_a_resting_baseline_is_no_measured_air(bench: Bench) -> None:
    bench.on_trial(Baseline({IDLE: Heat(35.0, 36.0, 500, False)}))
    bench.board.reading = Reading(0.0, temperature_celsius=60.0, ambient_celsius=59.0, ambient_is_baseline=True)
    bench.starts()
    bench.lives(WINDOW_S)
    assert bench.end().code == "trial-heat"
    assert "°C" in bench.end().reason


def test_a_model_that_is_never_tried_is_no_model_that_answers(bench: Bench) -> None:
    bench.on_trial()
    bench.starts()
    bench.lives(WINDOW_S + GATE_S - 1, tests=False)
    assert bench.standing().trial is not None
    bench.lives(2, tests=False)
    assert bench.end().code == "trial-gate"


def test_a_stop_in_the_middle_of_a_trial_is_no_verdict(bench: Bench) -> None:
    bench.on_trial()
    bench.starts()
    bench.lives(10)
    bench.trial.close(told=True)
    trial = bench.standing().trial
    assert trial is not None
    assert (trial.stage, trial.tries) == (Stage.LEAVING, 0)


def test_the_release_before_leaves_with_its_last_tick_and_what_it_measured(bench: Bench) -> None:
    bench.starts(INSTALLED)
    bench.lives(400)
    bench.put(staged(Standing(), Trial("a", "2.0", "d2")))
    bench.lives(1)
    assert bench.trial.leaves
    bench.connected = False  # the link is closed before the trial is left for
    bench.trial.close(told=False)
    trial = bench.standing().trial
    assert trial is not None
    assert (trial.stage, trial.left_s, trial.left_boot) == (Stage.LEAVING, bench.now, "boot-1")
    assert trial.baseline["had_link"] is True
    assert isinstance(trial.baseline["heat"], dict)
    assert trial.baseline["heat"][IDLE]["mean"] == 10.0


def test_told_to_stop_it_does_not_leave_for_the_trial(bench: Bench) -> None:
    bench.starts(INSTALLED)
    bench.put(staged(Standing(), Trial("a", "2.0", "d2")))
    bench.lives(1)
    bench.trial.close(told=True)
    trial = bench.standing().trial
    assert trial is not None
    assert trial.stage == Stage.STAGED


def test_a_trial_that_could_not_begin_is_not_begun_in_a_loop(bench: Bench) -> None:
    bench.put(staged(Standing(), Trial("a", "2.0", "d2")))
    bench.starts(INSTALLED)
    bench.lives(AGAIN_S - 1)
    assert not bench.trial.leaves
    bench.lives(2)
    assert bench.trial.leaves


def test_a_release_that_is_staged_waits_for_what_a_restart_would_spoil(bench: Bench) -> None:
    bench.starts(INSTALLED)
    bench.busy = True
    bench.put(staged(Standing(), Trial("a", "2.0", "d2")))
    bench.lives(AGAIN_S + 2)
    assert not bench.trial.leaves
    bench.busy = False
    bench.lives(1)
    assert bench.trial.leaves


def test_that_it_is_healthy_is_said_again_where_the_disk_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.put(Standing(starts=(bench.moment(),), fell=True))
    bench.starts(INSTALLED)
    with monkeypatch.context() as full:
        full.setattr("service.agent_trial.write_standing", on_full_disk)
        bench.lives(HEALTHY_S + 2)
    assert bench.standing().fell
    bench.lives(1)
    assert not bench.standing().fell


def test_a_release_that_ran_for_a_while_is_healthy(bench: Bench) -> None:
    standing = begin(Standing(fell=True), bench.moment(), "1.0")[0]
    bench.put(standing)
    bench.starts(INSTALLED)
    bench.lives(HEALTHY_S - 1)
    assert bench.standing() == standing
    bench.lives(2)
    assert (bench.standing().starts, bench.standing().fell) == ((), False)


def test_on_a_full_disk_a_verdict_waits_and_nothing_is_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.on_trial()
    bench.starts()
    with monkeypatch.context() as patched:
        patched.setattr("service.agent_trial.write_standing", on_full_disk)
        bench.lives(WINDOW_S + 10)
        assert bench.standing().trial is not None
    bench.lives(1)
    assert bench.end().status == "succeeded"


def test_in_safe_mode_the_owner_leads_out(bench: Bench) -> None:
    bench.put(Standing(safe_mode="restart-loop"))
    trial = bench.starts(INSTALLED, "restart-loop")
    assert trial.in_safe_mode()["code"] == "restart-loop"
    bench.lives(HEALTHY_S + 10)
    assert not trial.leaves
    (agent_folder(bench.state) / LEAVE_SAFE_MODE).touch()
    bench.lives(1)
    assert (trial.leaves, bench.standing().safe_mode) == (True, "")
    assert not (agent_folder(bench.state) / LEAVE_SAFE_MODE).exists()


def test_without_the_launcher_nothing_is_read_or_written(bench: Bench) -> None:
    trial = bench.starts("")
    bench.lives(HEALTHY_S + 10)
    trial.close(told=True)
    assert list(bench.state.iterdir()) == []
    assert trial.baseline().heat[IDLE].readings > 0


def test_what_was_rolled_back_stands_until_another_release_stayed(bench: Bench) -> None:
    bench.on_trial()
    unwell(bench, "gate")
    bench.starts()
    bench.lives(2)
    before = bench.starts(INSTALLED)
    assert before.rolled_back() == {"code": "trial-gate", "version": "2.0"}
    next_one = leaving(staged(bench.standing(), Trial("b", "3.0", "d3")), bench.moment(), {})
    bench.put(committed(ready(begin(next_one, bench.moment(), "1.0")[0], bench.moment()), {}))
    assert bench.starts("b").rolled_back() == {}


def test_who_is_ready_takes_the_kernels_timer_away(bench: Bench) -> None:
    before = signal.setitimer(signal.ITIMER_REAL, 500.0)
    try:
        bench.starts()
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
