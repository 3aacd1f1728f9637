"""Commands about models: journaled first, one at a time, told to their end, done again after a crash."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.board.simulated import SimulatedBoard
from agent.errors import BoardError, CommandError
from agent.messages import EvaluateOrder, Failed, Finished, Message, Steer, SwitchOrder
from agent.slots import read_status
from agent.store import Store
from agent.switch import stage, switch_back
from policies.policy import Policy
from policies.reading import Action, Decision
from service.commands import EVALUATE, PROMOTE, ROLLBACK, Command, new_id
from service.endings import END_GRACE_S
from service.job import Standing, State
from service.journal import Journal, Verdict
from service.model_asked import KEPT
from service.model_commands import MAX_ENDED, MAX_OPEN, ModelCommands, ModelShop
from service.statuses import Clock, Statuses
from service.steering import Steering

NOW = 1_800_000_000
HOT = Decision(action=Action.PAUSE, rule="thermal.absolute-pause")


class Worker:
    """Does what it is told to: switches the slots as the real one does, or obeys orders."""

    pid = 1

    def __init__(self, order: Message, how: Callable[[Message], Message | None]) -> None:
        self.order, self._how = order, how
        self.steers: list[Steer] = []
        self.gone = asyncio.Event()
        self.killed = False

    def offer(self, message: Message) -> bool:
        assert isinstance(message, Steer)
        self.steers.append(message)
        if message.action == "ABORT":
            self.gone.set()
        return True

    async def messages(self) -> AsyncIterator[Message]:
        last = self._how(self.order)
        if last is None and not isinstance(self.order, SwitchOrder):
            await self.gone.wait()
            if not self.killed:
                last = Failed(self.steers[-1].rule, "ended as ordered")
        if last is not None:
            yield last

    def kill(self) -> None:
        self.killed = True
        self.gone.set()

    async def end(self, _grace_s: float = 0.0) -> int:
        return 0


class Bench:
    """A daemon's room for models over a store with two of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "store", bytes(range(32)))
        for number in (1, 2):
            self.store.activate(self.store.stage(b"model %d" % number, {"job": f"job-{number}"}))
            self.store.mark_good()
        self.one, self.two = (self.sha256(number) for number in (1, 2))
        self.seen: list[dict[str, Any]] = []
        self.confirm = False
        self.mono_s = 0.0
        self.steering = Steering(SimulatedBoard("raspberry-pi-4"), Policy())
        self.how: Callable[[Message], Message | None] = self.obey
        self.workers: list[Worker] = []
        self.announced = 0
        self.open()

    def sha256(self, number: int) -> str:
        return hashlib.sha256(b"model %d" % number).hexdigest()

    def open(self) -> None:
        self.journal = Journal.open(self.folder / "journal.sqlite", 0.0).journal
        clock = Clock(lambda: float(NOW), lambda: self.mono_s, lambda: True)
        shop = ModelShop(self.folder, 1, 0, self.evaluate_order, self.announce, self.start)  # type: ignore[arg-type]
        self.room = ModelCommands(self.journal, Statuses(self.journal, self, clock), self.steering, clock, shop)
        self.room.recover()

    def restart(self) -> None:
        self.journal.close()
        self.open()

    def evaluate_order(self, args: Mapping[str, object]) -> EvaluateOrder:
        return EvaluateOrder(str(self.folder), "", "", dict(args), 1)

    def announce(self) -> None:
        self.announced += 1

    async def start(self, order: Message, _nice: int, _log: Callable[[str], None], module: str = "") -> Worker:
        assert module == "agent.worker"
        self.workers.append(Worker(order, self.how))
        return self.workers[-1]

    def obey(self, order: Message) -> Message | None:
        if isinstance(order, EvaluateOrder):
            return Finished("SUCCEEDED", "", {"metric": "accuracy", "score": 0.5})
        assert isinstance(order, SwitchOrder)
        slot = {self.one: "a", self.two: "b", "": ""}[order.after]
        if read_status(self.folder / "store").active != slot:
            switch_back(self.folder / "store", slot, "by an operator")
        return Finished("SUCCEEDED", "", {"slot": slot})

    def publish_status(self, kind: str, _id: str, status: Mapping[str, object]) -> asyncio.Future[bool] | None:
        self.seen.append({"type": kind, **status})
        if not self.confirm:
            return None
        done = asyncio.get_running_loop().create_future()
        done.set_result(True)
        return done

    def command(self, kind: str = ROLLBACK, at: int = 0, **args: object) -> Command:
        command_id = new_id((NOW + at) * 1000, lambda count: b"\1" * count)
        return Command(command_id, "board-1", kind, NOW + at, NOW + 600, args, digest=f"{at}")

    def ask(self, kind: str = ROLLBACK, at: int = 0, **args: object) -> Command:
        command = self.command(kind, at, **args)
        self.room.ask(command)
        return command

    def told(self, command: Command) -> list[tuple[str, str]]:
        return [(one["status"], one["reason_code"]) for one in self.seen if one["id"] == command.id]

    def run(self) -> None:
        asyncio.run(self.room.run())

    def refused(self, kind: str = ROLLBACK, at: int = 9, **args: object) -> str:
        kept = self.journal.recall(KEPT)
        with pytest.raises(CommandError) as caught:
            self.ask(kind, at, **args)
        assert self.journal.recall(KEPT) == kept
        return caught.value.code


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_rollback_is_journaled_carried_out_and_told_until_it_is_confirmed(bench: Bench) -> None:
    command = bench.ask()
    assert (bench.room.due(), bench.room.urgent) == (True, True)
    assert bench.journal.judge(command.id, command.digest) is Verdict.REPEAT
    bench.run()
    assert bench.told(command) == [("accepted", ""), ("running", ""), ("succeeded", "")]
    assert [one["version"] for one in bench.seen] == [1, 2, 3]
    assert bench.seen[-1]["result"] == {"from": bench.two, "to": bench.one, "slot": "a"}
    assert (bench.announced, bench.room.due(), bench.room.urgent) == (1, False, False)
    bench.restart()
    bench.room.publish_pending()
    assert bench.seen[-1] == bench.seen[-2]

    async def confirmed() -> None:
        bench.confirm = True
        bench.room.publish_pending()
        await asyncio.sleep(0)

    asyncio.run(confirmed())
    told, bench.confirm = bench.seen[-1], False
    before = len(bench.seen)
    bench.room.publish_pending()
    assert len(bench.seen) == before
    assert bench.journal.outcome(command.id) == "succeeded"
    assert bench.room.repeat(command.id)
    assert bench.seen[-1] == told, "with its result, to a console that asks again"


def test_the_way_is_that_of_the_moment_of_the_command(bench: Bench) -> None:
    bench.ask()
    bench.run()
    order = bench.workers[-1].order
    assert order == SwitchOrder(str(bench.folder), bench.two, bench.one, promotes=False, threads=1)


def test_what_cannot_be_is_refused(bench: Bench) -> None:
    assert bench.refused(to=bench.two) == "wrong-state"
    assert bench.refused(to="f" * 64) == "no-such-slot"
    assert bench.refused(PROMOTE, job=bench.command(at=3).id) == "no-such-slot"
    bench.ask()
    assert bench.refused() == "busy"
    bench.run()
    bench.ask(at=1)
    bench.run()
    assert bench.refused() == "no-active-model"
    (bench.folder / "store" / "slots" / "status.json").write_bytes(b"{}")
    (bench.folder / "store" / "slots" / "status.copy.json").write_bytes(b"{}")
    assert bench.refused() == "status-corrupt"


def test_a_job_that_is_being_promoted_is_left_alone(bench: Bench) -> None:
    job = bench.command(at=1).id
    bench.journal.add_job(job, "digest", "fine-tune", {}, float(NOW))
    bench.journal.update(job, float(NOW), standing=Standing(State.PROMOTING))
    assert bench.refused() == "wrong-state"
    bench.ask(EVALUATE, data="/srv")
    bench.journal.update(job, float(NOW), standing=Standing(State.SUCCEEDED))
    bench.ask(at=2)


def test_the_staged_model_of_a_job_is_promoted(bench: Bench) -> None:
    job = bench.command(at=1).id
    stage(bench.folder / "store", bench.store.stage(b"model 3", {"job": job}))
    command = bench.ask(PROMOTE, at=2, job=job)
    bench.how = lambda _order: Finished("SUCCEEDED", "", {"slot": "a"})
    bench.run()
    order = bench.workers[-1].order
    assert order == SwitchOrder(str(bench.folder), bench.two, bench.sha256(3), promotes=True, threads=1)
    assert bench.seen[-1]["result"] == {"from": bench.two, "to": bench.sha256(3), "slot": "a"}
    assert bench.told(command)[-1] == ("succeeded", "")


def test_a_bad_image_is_told(bench: Bench) -> None:
    command = bench.ask()
    bench.how = lambda _order: Failed("sealed-tag", "slot a is broken", result={"exit_code": 3})
    bench.run()
    assert bench.told(command)[-1] == ("failed", "sealed-tag")
    bench.restart()
    assert bench.room.unusable == {"code": "sealed-tag", "model": bench.one}
    bench.room.job_ended()
    assert bench.room.unusable, "its slot is as it was"
    bench.store.stage(b"model 3", {})
    bench.room.job_ended()
    assert not bench.room.unusable
    bench.restart()
    assert not bench.room.unusable


@pytest.mark.parametrize(
    ("last", "raised"),
    [
        (Failed("self-test", "no numbers", result={"exit_code": 1}), True),
        (Failed("model-broken", "no graph", result={"exit_code": 2}), True),
        (Failed("wrong-state", "another one is active", result={"exit_code": 2}), False),
        (Failed("no-space", "the disk is full", result={"exit_code": 1}), False),
    ],
)
def test_an_alarm_is_for_models_that_cannot_be_used(bench: Bench, last: Failed, raised: bool) -> None:
    bench.ask()
    bench.how = lambda _order: last
    bench.run()
    assert bool(bench.room.unusable) == raised
    bench.how = bench.obey
    bench.ask(at=1)
    bench.run()
    assert not bench.room.unusable


def test_a_worker_that_vanished_is_replaced_so_many_times(bench: Bench) -> None:
    command = bench.ask()
    bench.how = lambda _order: None
    for _ in range(3):
        assert bench.room.due()
        bench.run()
    assert not bench.room.due()
    assert bench.told(command)[-1] == ("failed", "worker-crashed")
    assert len(bench.workers) == 3


def test_after_a_crash_it_is_done_once_more(bench: Bench) -> None:
    command = bench.ask()

    def switch_and_die(order: Message) -> Message | None:
        bench.obey(order)
        raise BoardError("power cut")

    bench.how = switch_and_die
    bench.room._asked[command.id] = dataclasses.replace(bench.room._asked[command.id], status="running")
    bench.room._keep(bench.room._asked[command.id])
    bench.restart()
    assert bench.room._asked[command.id].attempt == 2
    bench.how = bench.obey
    bench.run()
    assert bench.told(command)[-1] == ("succeeded", "")
    assert bench.seen[-1]["result"] == {"from": bench.two, "to": bench.one, "slot": "a"}


def test_what_takes_the_board_down_is_not_tried_for_ever(bench: Bench) -> None:
    command = bench.ask()
    for _ in range(3):
        bench.room._advance(dataclasses.replace(bench.room._asked[command.id], status="running"))
        bench.restart()
    assert bench.told(command)[-1] == ("failed", "too-many-attempts")
    assert not bench.room.due()


def test_a_model_is_changed_in_any_weather_and_scored_in_good(bench: Bench) -> None:
    bench.steering.decision = HOT
    bench.ask(EVALUATE, data="/srv")
    assert not bench.room.due()
    assert not bench.room.urgent
    bench.ask(at=1)
    assert bench.room.due()
    bench.run()
    assert isinstance(bench.workers[-1].order, SwitchOrder)
    assert not bench.room.due()
    bench.steering.decision = Decision()
    bench.run()
    assert bench.workers[-1].order == bench.evaluate_order({"data": "/srv"})
    assert bench.seen[-1]["result"] == {"metric": "accuracy", "score": 0.5}


def test_so_many_evaluations_wait(bench: Bench) -> None:
    for at in range(MAX_OPEN):
        bench.ask(EVALUATE, at, data="/srv")
    assert bench.refused(EVALUATE, at=90, data="/srv") == "busy"
    bench.ask(at=91)


def test_ends_that_nobody_confirms_do_not_pile_up(bench: Bench) -> None:
    for at in range(MAX_ENDED + 2):
        bench.ask(EVALUATE, at, data="/srv")
        bench.run()
    before = len(bench.seen)
    bench.room.publish_pending()
    assert len(bench.seen) - before == MAX_ENDED


async def running(bench: Bench) -> asyncio.Future[None]:
    """The next one, once its worker is there."""
    work = asyncio.ensure_future(bench.room.run())
    while not bench.room._worker:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0)
    return work


@pytest.mark.parametrize("begun", [False, True])
def test_an_evaluation_is_canceled(bench: Bench, begun: bool) -> None:
    command = bench.ask(EVALUATE, data="/srv")
    bench.how = lambda _order: None

    async def play() -> None:
        work = await running(bench) if begun else None
        assert bench.room.cancel(command.id)
        if work:
            await work

    asyncio.run(play())
    assert bench.told(command)[-1] == ("canceled", "canceled")
    assert bench.room.cancel(command.id)
    assert not bench.room.cancel(bench.command(at=5).id)


def test_a_change_that_has_begun_is_not_canceled(bench: Bench) -> None:
    command = bench.ask()
    held: list[bool] = []
    bench.how = lambda order: (held.append(bench.room.cancel(command.id)), bench.obey(order))[1]
    bench.run()
    assert held == [False]
    waiting = bench.ask(at=1)
    assert bench.room.cancel(waiting.id)
    assert bench.told(waiting)[-1] == ("canceled", "canceled")


def test_an_evaluation_ends_by_its_time_and_is_killed_where_it_does_not_obey(bench: Bench) -> None:
    command = bench.ask(EVALUATE, data="/srv", most_time_s=10.0)
    bench.how = lambda _order: None

    async def play() -> None:
        work = await running(bench)
        bench.mono_s = 9.0
        bench.room.steer()
        assert bench.workers[-1].steers[-1].action != "ABORT"
        bench.workers[-1].offer = lambda _message: False  # type: ignore[method-assign]
        bench.mono_s = 10.0
        bench.room.steer()
        assert not bench.workers[-1].killed
        bench.mono_s += END_GRACE_S
        bench.room.steer()
        assert bench.workers[-1].killed
        await work

    asyncio.run(play())
    assert bench.told(command)[-1] == ("timed_out", "most-time")
    assert "10 s" in bench.seen[-1]["reason"]


def test_a_daemon_that_goes_leaves_it_for_the_next_start(bench: Bench) -> None:
    command = bench.ask(EVALUATE, data="/srv")
    bench.how = lambda _order: None

    async def play() -> None:
        work = await running(bench)
        await bench.room.stop()
        await work

    asyncio.run(play())
    assert bench.told(command)[-1] == ("running", "")
    assert not bench.room.due()
    bench.restart()
    bench.how = bench.obey
    bench.run()
    assert bench.told(command)[-1] == ("succeeded", "")


def test_what_another_version_kept_stops_nobody(bench: Bench) -> None:
    bench.journal.remember(KEPT, '[{"id": 7}]')
    bench.restart()
    assert not bench.room.due()
