"""The command qualify: journaled first, run once, told to its end, never run again by itself after a crash."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.board.record import read_record
from agent.board.simulated import SimulatedBoard
from agent.errors import BoardError, CommandError, SpecError
from policies.outlook import Outlook
from policies.policy import Policy
from policies.reading import Action, Decision
from service.agent_update import UpdateShop
from service.cli_fleet import arguments
from service.commands import CANCEL, QUALIFY, Command, new_id
from service.desk import Desk
from service.journal import JobRecord, Journal, Verdict
from service.launched import Launched
from service.model_commands import ModelShop
from service.policy_file import PolicyFile
from service.qualify_asked import ENDED, LAST, MAX_ENDED
from service.qualify_command import Qualifications, QualifyShop
from service.qualify_plan import Place
from service.scrub import ScrubShop
from service.state_version import BoardState
from service.statuses import Clock, Statuses
from service.steering import Steering
from service.workshop import Workshop
from tests.simulators.system_updates import QUIET, without_rauc

NOW = 1_800_000_000
MODEL = "Raspberry Pi 4 Model B Rev 1.4"


class Bench:
    """A daemon's qualifications on a board in memory whose time passes as fast as it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[dict[str, Any]] = []
        self.confirm = False
        self.mono_s = 0.0
        self.board = SimulatedBoard("raspberry-pi-4")
        self.steering = Steering(self.board, Policy())
        self.journal = Journal.open(self.folder / "journal.sqlite", 0.0).journal
        self.start()

    def restart(self) -> None:
        """The daemon goes, and comes again on the journal that is there."""
        self.journal.close()
        self.journal = Journal.open(self.folder / "journal.sqlite", 0.0).journal
        self.start()

    def start(self) -> None:
        clock = Clock(lambda: float(NOW), lambda: self.mono_s, lambda: True)
        shop = QualifyShop(Place(self.folder, MODEL, "raspberry-pi-4", emulated=False), 1)
        statuses = Statuses(self.journal, self, clock)
        self.runs = Qualifications(self.journal, statuses, self.steering, clock, shop, Policy)

    def publish_status(self, kind: str, _id: str, status: Mapping[str, object]) -> asyncio.Future[bool] | None:
        assert kind == QUALIFY
        self.seen.append(dict(status))
        if not self.confirm:
            return None
        done = asyncio.get_running_loop().create_future()
        done.set_result(True)
        return done

    def command(self, at: int = 0, **args: object) -> Command:
        command_id = new_id((NOW + at) * 1000, lambda count: b"\1" * count)
        return Command(command_id, "board-1", QUALIFY, NOW + at, NOW + 600, args, digest=f"{at}")

    def end(self, at: int) -> Command:
        """A command whose run was cut short by the end of the daemon; nobody has confirmed that."""
        command = self.command(at)
        self.runs.ask(command)
        kept = self.journal.recall(LAST)
        self.journal.remember(LAST, kept.replace('"accepted"', '"running"'))
        self.restart()
        self.runs.recover()
        return command

    def told(self, command: Command) -> list[tuple[str, str]]:
        """Status and reason of everything that was published of a command."""
        return [(one["status"], one["reason_code"]) for one in self.seen if one["id"] == command.id]

    async def whole_run(self, at_each: Callable[[], object] = lambda: None) -> None:
        """The run, with the governor's ticks beside it."""
        run = asyncio.ensure_future(self.runs.run())
        try:
            while not run.done():
                self.tick()
                at_each()
                await asyncio.sleep(0)
        finally:
            await run

    def tick(self) -> None:
        self.mono_s += 1.0
        drilled = self.steering.drill is not None
        self.steering.tick(self.mono_s, working=drilled, phase="", outlook=Outlook())
        order = self.steering.decision
        self.board.advance(1.0, 1.0 if drilled and order.action is Action.RUN else 0.0)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_run_is_journaled_carried_out_told_and_recorded(bench: Bench) -> None:
    command = bench.command(minutes=1)
    bench.runs.ask(command)
    assert bench.runs.due()
    assert bench.journal.judge(command.id, command.digest) is Verdict.REPEAT
    asyncio.run(bench.whole_run())
    assert [status["status"] for status in bench.seen][:2] == ["accepted", "running"]
    last = bench.seen[-1]
    assert last["status"] in ("succeeded", "failed")
    assert last["reason_code"] in ("", "not-qualified")
    assert [status["version"] for status in bench.seen] == [1, 2, 3]
    assert last["result"]["ended"] == "done"
    assert last["result"]["seconds"] == pytest.approx(60.0, abs=3.0)
    assert not bench.runs.running
    assert not bench.runs.due()
    bench.restart()
    bench.runs.publish_pending()
    assert bench.seen[-1] == last, "until the broker has it, restarts or not"
    record = read_record(bench.folder, MODEL).record
    assert record is not None
    assert record.qualification is not None
    assert record.qualification.passed == (last["status"] == "succeeded")


def test_while_it_runs_the_drill_steers_and_afterwards_the_governor(bench: Bench) -> None:
    bench.runs.ask(bench.command(minutes=1))
    rules = set()

    async def watch() -> None:
        run = asyncio.ensure_future(bench.runs.run())
        while not run.done():
            bench.tick()
            rules.add(bench.steering.decision.rule)
            await asyncio.sleep(0)
        await run

    asyncio.run(watch())
    assert "qualify" in rules
    bench.tick()
    assert bench.steering.decision.rule != "qualify"


def test_a_second_command_is_refused_while_one_is_at_hand(bench: Bench) -> None:
    bench.runs.ask(bench.command())
    second = bench.command(at=1)
    with pytest.raises(CommandError) as refused:
        bench.runs.ask(second)
    assert refused.value.code == "busy"
    assert bench.journal.outcome(second.id) is None


def test_a_run_that_was_cut_short_has_failed_and_is_not_run_again(bench: Bench) -> None:
    bench.runs.ask(bench.command())

    async def cut() -> None:
        run = asyncio.ensure_future(bench.runs.run())
        for _ in range(10_000):
            bench.tick()
            await asyncio.sleep(0)
            if bench.steering.drill is not None:
                break
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    asyncio.run(cut())
    assert bench.steering.drill is None, "a canceled run lets go of the levers"
    bench.restart()
    bench.runs.recover()
    assert (bench.seen[-1]["status"], bench.seen[-1]["reason_code"]) == ("failed", "restarted")
    assert not bench.runs.due()
    assert read_record(bench.folder, MODEL).record is None


def test_one_that_waited_still_waits_after_a_restart(bench: Bench) -> None:
    bench.runs.ask(bench.command())
    bench.restart()
    bench.runs.recover()
    assert bench.runs.due()


def test_it_waits_while_training_would_be_paused(bench: Bench) -> None:
    bench.runs.ask(bench.command())
    bench.steering.decision = Decision(action=Action.PAUSE, rule="battery.pause")
    assert not bench.runs.due()


def test_an_end_is_published_until_the_broker_has_it(bench: Bench) -> None:
    command = bench.command()
    bench.runs.ask(command)
    bench.restart()
    bench.journal.remember(LAST, bench.journal.recall(LAST).replace("accepted", "running"))
    bench.restart()
    bench.runs.recover()
    told = len(bench.seen)
    bench.runs.publish_pending()
    assert len(bench.seen) == told + 1

    async def confirm() -> None:
        bench.confirm = True
        bench.runs.publish_pending()
        await asyncio.sleep(0)

    asyncio.run(confirm())
    told = len(bench.seen)
    bench.runs.publish_pending()
    assert len(bench.seen) == told
    assert bench.journal.outcome(command.id) == "failed:restarted"


def test_a_crash_before_the_ledger_has_it_does_not_make_a_command_busy_with_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_args: object) -> None:
        raise BoardError("the power went")

    command = bench.command()
    monkeypatch.setattr(bench.journal, "record", crash)
    with pytest.raises(BoardError):
        bench.runs.ask(command)
    bench.restart()
    bench.runs.recover()
    assert bench.journal.judge(command.id, command.digest) is Verdict.NEW, "so the broker's next copy is asked for"
    bench.runs.ask(command)
    assert bench.told(command) == [("accepted", "")]
    assert bench.journal.outcome(command.id) == "accepted"
    assert bench.runs.due()


def test_another_command_does_not_take_the_place_of_an_end_that_nobody_confirmed(bench: Bench) -> None:
    first = bench.end(at=0)
    second = bench.command(at=1)
    bench.runs.ask(second)
    bench.restart()
    bench.seen.clear()
    bench.runs.publish_pending()
    assert bench.told(first) == [("failed", "restarted")]
    assert bench.runs.repeat(first.id)
    assert bench.runs.repeat(second.id)

    async def confirm() -> None:
        bench.confirm = True
        bench.runs.publish_pending()
        await asyncio.sleep(0)

    asyncio.run(confirm())
    bench.seen.clear()
    bench.confirm = False
    bench.runs.publish_pending()
    assert bench.seen == [], "confirmed"
    assert bench.runs.repeat(first.id)
    assert bench.runs.due(), "the second still waits"


def test_an_end_that_the_disk_does_not_take_is_written_down_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> None:
        raise BoardError("no room", reason="no-space")

    def fill() -> None:
        if bench.runs.running:
            monkeypatch.setattr(bench.journal, "record", refuse)

    command = bench.command(minutes=1)
    bench.runs.ask(command)
    with pytest.raises(BoardError):
        asyncio.run(bench.whole_run(fill))
    assert bench.told(command)[-1] == ("running", "")
    assert not bench.runs.cancel(command.id), "it is over"
    monkeypatch.undo()
    bench.runs.publish_pending()
    assert bench.told(command)[-1][0] in ("succeeded", "failed")
    bench.runs.ask(bench.command(at=1))


def test_ends_that_nobody_confirms_have_a_bound(bench: Bench) -> None:
    ended = [bench.end(at) for at in range(MAX_ENDED + 3)]
    bench.seen.clear()
    bench.runs.publish_pending()
    newest = ended[-MAX_ENDED - 1 :]
    assert [status["id"] for status in bench.seen] == [command.id for command in newest]
    assert len(json.loads(bench.journal.recall(ENDED))) == MAX_ENDED


def test_a_run_that_a_later_release_kept_with_more_is_still_at_hand(bench: Bench) -> None:
    bench.journal.remember(LAST, '{"id": "a", "digest": "b", "minutes": 3, "fans": 2}')
    bench.restart()
    with pytest.raises(CommandError) as refused:
        bench.runs.ask(bench.command())
    assert refused.value.code == "busy"


@pytest.mark.parametrize("name", [LAST, ENDED])
@pytest.mark.parametrize("kept", ['{"id": "a", "minutes": 3, "fans": 2}', "[7]", '"text"', "{", "3"])
def test_a_journal_of_another_version_does_not_stop_the_daemon(bench: Bench, name: str, kept: str) -> None:
    bench.journal.remember(name, kept)
    bench.restart()
    bench.runs.recover()
    bench.runs.publish_pending()
    bench.runs.ask(bench.command())
    assert bench.runs.due()


def test_a_run_that_waits_can_be_canceled(bench: Bench) -> None:
    command = bench.command()
    bench.runs.ask(command)
    assert bench.runs.cancel(command.id)
    assert bench.told(command) == [("accepted", ""), ("canceled", "canceled")]
    assert not bench.runs.due()
    bench.restart()
    assert bench.runs.cancel(command.id), "the console may ask twice"
    assert bench.journal.outcome(command.id) == "canceled:canceled"


def test_a_run_at_work_can_be_canceled_and_leaves_no_record(bench: Bench) -> None:
    command = bench.command(minutes=60)
    bench.runs.ask(command)

    def cancel() -> None:
        if bench.runs.running:
            assert bench.runs.cancel(command.id)

    asyncio.run(bench.whole_run(cancel))
    assert bench.told(command) == [("accepted", ""), ("running", ""), ("canceled", "canceled")]
    assert bench.steering.drill is None
    assert not bench.runs.due()
    assert read_record(bench.folder, MODEL).record is None


def test_what_has_ended_or_is_not_known_cannot_be_canceled(bench: Bench) -> None:
    command = bench.end(at=0)
    assert not bench.runs.cancel(command.id)
    assert not bench.runs.cancel(bench.command(at=1).id)
    assert bench.told(command)[-1] == ("failed", "restarted")


def test_a_console_cancels_a_run_as_it_cancels_a_job(bench: Bench) -> None:
    def refuse(*_args: object) -> Any:
        raise AssertionError("no worker is started here")

    class Listener:
        def publish_status(self, _kind: str, _id: str, status: Mapping[str, object]) -> None:
            bench.seen.append(dict(status))

    clock = Clock(lambda: float(NOW), lambda: bench.mono_s, lambda: True)
    told: Callable[[object, JobRecord], None] = lambda _message, _record: None  # noqa: E731 - a callback of the shop
    desk = Desk(
        *(bench.journal, bench.steering, PolicyFile(bench.folder, "", "default"), Listener(), dict, "board-1", clock),
        Workshop(refuse, 0, told, lambda _job: None),
        state=lambda: BoardState("", "", 1),
        scrub_shop=ScrubShop(refuse, lambda: None, lambda: None),
        qualify_shop=bench.runs._shop,
        model_shop=ModelShop(bench.folder, 1, 0, refuse, lambda: None),
        update_shop=UpdateShop(bench.folder, Launched(), 0, ("", ""), metered=False),
        system_shop=without_rauc(bench.folder),
        sight=QUIET,
    )
    run, cancel = bench.command(), bench.command(at=1)
    desk.commands._carry_out(run)
    cancel = dataclasses.replace(cancel, type=CANCEL, args={"job": run.id})
    desk.commands._carry_out(cancel)
    late = dataclasses.replace(bench.command(at=2), type=CANCEL, args={"job": bench.command(at=3).id})
    with pytest.raises(CommandError, match="is unknown") as refused:
        desk.commands._carry_out(late)
    assert refused.value.code == "wrong-state"
    ended = dataclasses.replace(bench.command(at=4), type=CANCEL, args={"job": cancel.id})
    with pytest.raises(CommandError, match="has ended, or is too far"):
        desk.commands._carry_out(ended)
    assert bench.told(run) == [("accepted", ""), ("canceled", "canceled")]
    assert bench.told(cancel) == [("succeeded", "")]


def test_a_record_that_cannot_be_written_fails_the_command(bench: Bench) -> None:
    bench.runs._shop = bench.runs._shop._replace(place=elsewhere(bench, "missing"))
    bench.runs.ask(bench.command(minutes=1))
    asyncio.run(bench.whole_run())
    last = bench.seen[-1]
    assert (last["status"], last["reason_code"]) == ("failed", "disk")


def elsewhere(bench: Bench, folder: str) -> Place:
    """A place whose folder is not there: the record cannot be written."""
    return bench.runs._shop.place._replace(state=bench.folder / folder)


@pytest.mark.parametrize("argument", ["0", "61", "ten", "-1", "1.5", "99999999999999999999", "\u0661"])
def test_consoles_send_possible_minutes_only(argument: str) -> None:
    with pytest.raises(SpecError, match="minutes"):
        arguments(QUALIFY, argument)


def test_what_a_console_sends_is_what_the_board_reads(bench: Bench) -> None:
    for argument, minutes in (("3", 3), ("", 10)):
        assert dataclasses.replace(bench.command(), args=arguments(QUALIFY, argument)).minutes == minutes
