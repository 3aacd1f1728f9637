"""The command `update-agent`: journaled first, waits for a network, stages before it switches, told across restarts."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent import __version__
from agent.agent_slots import agent_folder, read_standing, stage_folder, write_standing
from agent.errors import BoardError, CommandError
from agent.messages import Failed, Finished, Go, Message, ReleaseOrder, Stage
from policies import trial as trials
from policies.trial_standing import Content, Moment, Refused, Standing
from service.agent_update import AgentUpdates, UpdateShop
from service.commands import UPDATE_AGENT, Command, new_id
from service.job import MAX_ATTEMPTS
from service.journal import Journal
from service.launched import Launched
from service.statuses import Clock, Statuses
from service.until import RETRY_S
from service.update_room import LATER_S

NOW = 1_800_000_000.0
DIGEST = "ab" * 32
STAGED = Finished("SUCCEEDED", "", {"version": "0.2.0", "digest": DIGEST, "changed": True})
SAME = Finished("SUCCEEDED", "", {"version": __version__, "changed": False})
AT = Moment("boot", 100.0)


class Worker:
    """Asks as the real one does, and ends with the word it was given; `None`: it vanishes."""

    def __init__(
        self, order: ReleaseOrder, last: Message | None, stages: tuple[str, ...], begun: asyncio.Event
    ) -> None:
        self.order, self._last, self._stages = order, last, stages
        self.granted: list[str] = []
        self.begun = begun
        self.gone = asyncio.Event()
        self.waits = False

    async def messages(self) -> AsyncIterator[Message]:
        for stage in self._stages:
            yield Stage(stage, "0.2.0")
            if self.gone.is_set():
                return
            assert self.granted[-1:] == [stage], "it goes on only when it is told to"
        if self.waits:
            await self.gone.wait()
            return
        if self._last is not None:
            yield self._last

    async def send(self, message: Message) -> None:
        assert isinstance(message, Go)
        self.granted.append(message.stage)
        self.begun.set()

    def kill(self) -> None:
        self.gone.set()

    async def end(self, _grace_s: float = 0.0) -> int:
        return 0


class Bench:
    """A daemon's room for updates, as the launcher would start it from a slot."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = "installed"
        self.now = NOW
        self.seen: list[dict[str, Any]] = []
        self.workers: list[Worker] = []
        self.last: Message | None = STAGED
        self.stages: tuple[str, ...] = ("PULLING", "INSTALLING")
        self.waits = False
        self.busy = False
        self.while_started: Callable[[], object] = lambda: None
        self.told = 0
        self.begun = asyncio.Event()
        self.open()

    def open(self) -> None:
        self.journal = Journal.open(self.folder / "journal.sqlite", 0.0).journal
        clock = Clock(lambda: self.now, lambda: self.now - NOW, lambda: True)
        shop = UpdateShop(
            *(self.folder, Launched(self.place), 0, ("https://models", "root.json")),
            metered=True,
            busy=lambda: self.busy,
            told=self.announce,
            start=self.start,  # type: ignore[arg-type]  # as much of a worker as is used
        )
        self.room = AgentUpdates(self.journal, Statuses(self.journal, self, clock), clock, shop)
        self.room.recover()

    def restart(self, place: str = "") -> None:
        self.journal.close()
        self.place = place or self.place
        self.open()

    def announce(self) -> None:
        self.told += 1

    async def start(self, order: Message, _nice: int, _log: Callable[[str], None], module: str = "") -> Worker:
        assert module == "agent.release_worker"
        assert isinstance(order, ReleaseOrder)
        self.while_started()
        worker = Worker(order, self.last, self.stages, self.begun)
        worker.waits = self.waits
        self.workers.append(worker)
        return worker

    def publish_status(self, kind: str, _id: str, status: Mapping[str, object]) -> asyncio.Future[bool] | None:
        assert kind == UPDATE_AGENT
        self.seen.append(dict(status))
        return None

    def command(self, at: int = 0, **args: object) -> Command:
        command_id = new_id(int(NOW + at) * 1000, lambda count: b"\1" * count)
        return Command(command_id, "board-1", UPDATE_AGENT, int(NOW), int(NOW) + 600, args, digest=f"{at}")

    def ask(self, at: int = 0, **args: object) -> Command:
        command = self.command(at, **args)
        self.room.ask(command)
        return command

    def look(self) -> None:
        asyncio.run(self.room._look())

    def words(self) -> list[tuple[str, str, str]]:
        """Status, step and reason code, each change once."""
        told = [(one["status"], one["step"], one["reason_code"]) for one in self.seen]
        return [one for i, one in enumerate(told) if i == 0 or one != told[i - 1]]

    def standing(self) -> Standing:
        return read_standing(self.folder)[0]

    def change(self, step: Callable[[Standing], Standing]) -> None:
        write_standing(self.folder, step(self.standing()))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_from_the_command_to_the_end_of_the_trial(bench: Bench) -> None:
    command = bench.ask(version="0.2.0", window_s=30.0)
    bench.look()
    order = bench.workers[0].order
    assert (order.version, order.slot, order.running, order.metered) == ("0.2.0", "a", __version__, True)
    trial = bench.standing().trial
    assert trial is not None
    assert (trial.slot, trial.version, trial.digest, trial.command_id) == ("a", "0.2.0", DIGEST, command.id)
    assert trial.window_s == 30.0
    assert bench.room.shown()["trial"] == "0.2.0"
    bench.change(lambda standing: trials.leaving(standing, AT, {}))
    bench.change(lambda standing: trials.begin(standing, AT, __version__)[0])
    bench.restart("a")
    bench.change(lambda standing: trials.ready(standing, Moment("boot", 102.0)))
    bench.look()
    told = bench.told
    bench.change(lambda standing: trials.committed(standing, {"link": True}))
    bench.look()
    assert bench.told > told
    assert bench.words() == [
        ("accepted", "", ""),
        ("running", "pulling", ""),
        ("running", "installing", ""),
        ("running", "restarting", ""),
        ("running", "trial", ""),
        ("succeeded", "", ""),
    ]
    result = bench.seen[-1]["result"]
    assert result == {
        "changed": True, "before": __version__, "version": "0.2.0", "downtime_s": 2.0, "link": True,
    }  # fmt: skip
    assert [one["version"] for one in bench.seen] == sorted(one["version"] for one in bench.seen)
    bench.restart()
    assert bench.room.repeat(command.id)
    assert bench.seen[-1]["status"] == "succeeded"
    assert len(bench.workers) == 1


def test_what_is_rolled_back_is_told_by_the_release_before(bench: Bench) -> None:
    bench.ask()
    bench.look()
    bench.change(lambda standing: trials.leaving(standing, AT, {}))
    bench.change(lambda standing: trials.begin(standing, AT, __version__)[0])
    bench.change(lambda standing: trials.failed(standing, "trial-heat", "5 K hotter"))
    bench.restart("installed")
    assert bench.words()[-1] == ("rolled_back", "", "trial-heat")
    assert bench.seen[-1]["result"]["changed"] is False
    assert bench.seen[-1]["reason"] == "5 K hotter"


def test_the_slot_is_given_up_before_the_worker_touches_it(bench: Bench) -> None:
    full = Standing(
        active="b", previous="a", contents={"a": Content("0.1.5", "cd" * 32), "b": Content("0.1.6", "ef" * 32)},
        refused=(Refused("12" * 32, "0.1.4", "crashed"),),
    )  # fmt: skip
    write_standing(bench.folder, full)
    bench.restart("b")
    bench.last = Failed("disk", "refused")
    bench.ask()
    bench.look()
    order = bench.workers[0].order
    assert (order.slot, order.running_digest, order.refused) == ("a", "ef" * 32, ("12" * 32,))
    assert bench.standing().contents == {"b": Content("0.1.6", "ef" * 32)}
    assert bench.standing().previous == "installed"
    assert bench.words()[-1] == ("failed", "", "disk")


@pytest.mark.parametrize("code", ["older-version", "needs-unmet", "no-space", "metadata-unsigned", "release-refused"])
def test_a_refusal_ends_it_and_leaves_the_slots_alone(bench: Bench, code: str) -> None:
    bench.stages, bench.last = ("PULLING",), Failed(code, f"{code}: what and how much")
    stage_folder(bench.folder).mkdir(parents=True)
    bench.ask()
    bench.look()
    assert bench.words() == [("accepted", "", ""), ("running", "pulling", ""), ("failed", "", code)]
    assert "how much" in bench.seen[-1]["reason"]
    assert bench.standing() == Standing()
    assert list(agent_folder(bench.folder).iterdir()) == []
    bench.look()
    assert len(bench.workers) == 1


@pytest.mark.parametrize(
    ("code", "seconds", "what"),
    [("network", RETRY_S, "network"), ("metered-link", LATER_S, "network"), ("clock-wrong", RETRY_S, "clock")],
)
def test_what_may_be_over_by_itself_is_waited_for(bench: Bench, code: str, seconds: float, what: str) -> None:
    bench.stages, bench.last = ("PULLING",), Failed(code, "not now")
    bench.ask()
    bench.look()
    assert bench.words()[-1] == ("deferred", "", code)
    assert bench.seen[-1]["until"] == {"what": what, "below": None, "above": None, "ts": NOW + seconds}
    bench.restart()
    bench.now += seconds - 1
    bench.look()
    assert len(bench.workers) == 1
    bench.now += 1
    bench.stages, bench.last = ("PULLING", "INSTALLING"), STAGED
    bench.look()
    assert bench.words()[-1] == ("running", "restarting", "")


def test_what_runs_already_is_a_success_without_a_change(bench: Bench) -> None:
    bench.stages, bench.last = ("PULLING",), SAME
    bench.ask()
    bench.look()
    assert bench.words()[-1] == ("succeeded", "", "")
    assert bench.seen[-1]["result"] == {"changed": False, "version": __version__, "before": __version__}
    assert bench.standing() == Standing()


def refused(bench: Bench, at: int = 1) -> str:
    seen = len(bench.seen)
    with pytest.raises(CommandError) as caught:
        bench.ask(at)
    assert len(bench.seen) == seen
    return caught.value.code


def test_one_at_a_time_and_none_into_a_trial_or_an_image(bench: Bench) -> None:
    bench.ask()
    assert refused(bench) == "busy"
    bench.look()
    assert refused(bench) == "busy"
    bench.change(lambda standing: trials.leaving(standing, AT, {}))
    bench.journal.close()
    (bench.folder / "journal.sqlite").unlink()
    bench.open()
    assert refused(bench) == "trial-under-way"
    bench.place = ""
    bench.restart()
    assert refused(bench) == "not-updatable"
    assert not bench.room.cancel(bench.command().id)


def test_it_waits_for_a_stress_run(bench: Bench) -> None:
    bench.busy = True
    bench.ask()
    bench.look()
    assert bench.workers == []
    bench.busy = False
    bench.look()
    assert len(bench.workers) == 1


def test_it_can_be_canceled_until_the_slot_is_taken(bench: Bench) -> None:
    command = bench.ask()
    assert bench.room.cancel(command.id)
    assert bench.words()[-1] == ("canceled", "", "canceled")
    assert bench.room.cancel(command.id)
    bench.waits, bench.stages, bench.begun = True, ("PULLING",), asyncio.Event()
    command = bench.ask(1)

    async def pull_and_cancel() -> None:
        pulling = asyncio.ensure_future(bench.room._look())
        await bench.begun.wait()
        assert bench.room.cancel(command.id)
        await pulling

    asyncio.run(pull_and_cancel())
    assert bench.words()[-1] == ("canceled", "", "canceled")
    bench.waits, bench.stages = False, ("PULLING", "INSTALLING")
    command = bench.ask(2)
    bench.look()
    assert not bench.room.cancel(command.id)


def test_one_that_is_canceled_while_its_worker_starts_touches_no_slot(bench: Bench) -> None:
    write_standing(bench.folder, Standing(active="b", contents={slot: Content("0.1.5", slot * 64) for slot in "ab"}))
    bench.restart("b")
    command = bench.ask()

    def cancel() -> None:
        assert bench.room.cancel(command.id)
        assert bench.words()[-1] == ("running", "pulling", ""), "an end is told once, when there is no worker any more"

    bench.while_started = cancel
    bench.stages = ("INSTALLING",)
    bench.look()
    assert bench.workers[0].gone.is_set()
    assert bench.words()[-1] == ("canceled", "", "canceled")
    assert bench.workers[0].granted == []
    assert set(bench.standing().contents) == {"a", "b"}


@pytest.mark.parametrize("stage", ["restarting", "installing"])
def test_what_the_disk_did_not_take_is_done_again_without_a_restart(bench: Bench, stage: str) -> None:
    command = bench.ask()
    before = bench.room._ledger.advance

    def refuse(**changes: Any) -> Any:
        if changes.get("stage") == stage or changes.get("status") == "failed":
            raise BoardError("full", reason="no-space")
        return before(**changes)

    bench.room._ledger.advance = refuse  # type: ignore[method-assign]
    with pytest.raises(BoardError):
        bench.look()
    bench.room._ledger.advance = before  # type: ignore[method-assign]
    for _ in range(3):
        bench.look()
    assert bench.words()[-1] == ("running", "restarting", "")
    trial = bench.standing().trial
    assert trial is not None
    assert trial.command_id == command.id


def test_a_clock_that_is_set_back_puts_nothing_off_for_years(bench: Bench) -> None:
    bench.stages, bench.last = ("PULLING",), Failed("network", "not now")
    bench.now = NOW * 2
    bench.ask()
    bench.look()
    bench.now = NOW
    bench.look()
    assert len(bench.workers) == 2
    bench.look()
    assert len(bench.workers) == 2


def test_a_daemon_that_goes_down_begins_again_so_many_times(bench: Bench) -> None:
    bench.ask()
    for _ in range(MAX_ATTEMPTS):
        bench.last = Failed("worker-crashed", "gone")

        async def go_down() -> None:
            bench.waits, bench.stages, bench.begun = True, ("PULLING",), asyncio.Event()
            fetching = asyncio.ensure_future(bench.room._look())
            await bench.begun.wait()
            await bench.room.stop()
            await fetching

        asyncio.run(go_down())
        assert bench.words()[-1] == ("running", "pulling", "")
        bench.restart()
    assert bench.words()[-1] == ("failed", "", "too-many-attempts")


def test_a_crash_between_the_standing_and_the_journal_is_no_second_update(bench: Bench) -> None:
    bench.ask()
    before = bench.room._ledger.advance

    def refuse(**changes: Any) -> Any:
        if changes.get("stage") == "restarting":
            raise BoardError("full", reason="no-space")
        return before(**changes)

    bench.room._ledger.advance = refuse  # type: ignore[method-assign]
    with pytest.raises(BoardError):
        bench.look()
    bench.restart()
    assert bench.words()[-1] == ("running", "restarting", "")
    bench.look()
    assert len(bench.workers) == 1


def test_a_trial_that_nobody_knows_of_any_more_has_failed(bench: Bench) -> None:
    bench.ask()
    bench.look()
    write_standing(bench.folder, Standing())
    bench.restart()
    assert bench.words()[-1] == ("failed", "", "trial-lost")


def test_keys_of_a_later_version_in_the_journal_are_passed_over(bench: Bench) -> None:
    command = bench.ask()
    kept = bench.journal.recall(UPDATE_AGENT)
    assert kept is not None
    bench.journal.remember(UPDATE_AGENT, kept.replace('{"digest"', '{"later": 1, "digest"'))
    bench.restart()
    assert bench.room.repeat(command.id)
    bench.journal.remember(UPDATE_AGENT, kept.replace('"args": {', '"args": {"later": 1'))
    bench.restart()
    bench.look()
    assert len(bench.workers) == 1
    bench.journal.remember(UPDATE_AGENT, kept.replace('"args": {', '"args": {"window_s": 0.001'))
    bench.restart()
    assert not bench.room.repeat(command.id), "what a later release took must not end this one at each start"
    bench.journal.remember(UPDATE_AGENT, "[[]]")
    bench.restart()
    assert not bench.room.repeat(command.id)


def test_a_stage_that_is_left_is_cleared_at_a_start(bench: Bench) -> None:
    stage_folder(bench.folder).mkdir(parents=True)
    (agent_folder(bench.folder) / "x.part").write_bytes(b"half")
    write_standing(bench.folder, dataclasses.replace(Standing(), installed="0.1.0"))
    bench.restart()
    assert [path.name for path in agent_folder(bench.folder).iterdir()] == ["standing.json"]
