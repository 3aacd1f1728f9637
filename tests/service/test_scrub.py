"""When the daemon scrubs and whom it tells; the scrub worker is the real process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.board.edac import MemoryErrors
from agent.board.profile import named_profile
from agent.board.sysfs import BoardRoots, SysfsBoard
from agent.errors import CommandError
from agent.keys_identity import create_identity
from agent.messages import Failed, Scrubbed, ScrubOrder
from policies.policy import Policy
from policies.reading import Action, Decision
from policies.scrub import SETTLE_S
from service.commands import Command, new_id
from service.journal import Journal
from service.scrub import ASKED, MAX_ASKED, RETRY_S, Scrubs, ScrubShop
from service.statuses import Clock, Statuses
from service.steering import Steering

HOUR_S = 3600.0
PAUSED = Decision(action=Action.PAUSE, rule="thermal.delta-t-pause")
LOW = Decision(action=Action.SLOW, rule="battery.low")


class Uplink:
    """Keeps what was published; confirms it if told to."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.confirms = True

    def publish_status(self, _type: str, _id: str, status: Mapping[str, object]) -> asyncio.Future[bool] | None:
        self.seen.append(dict(status))
        try:
            done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        except RuntimeError:
            return None
        done.set_result(self.confirms)
        return done

    def words(self) -> list[tuple[str, int]]:
        return [(status["status"], status["version"]) for status in self.seen]


class Bench:
    """A daemon's scrubs on a state folder of their own, with clocks that are set by hand."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        create_identity(self.state / "keys", "board-1")
        self.wall, self.mono, self.synchronised = 1_800_000_000.0, 100.0, True
        self.uplink, self.told = Uplink(), 0
        self.board = SysfsBoard(BoardRoots(folder / "sys", folder / "proc"), named_profile("generic"))
        self.start()

    def start(self) -> None:
        """As the daemon does; on the journal that is there."""
        if hasattr(self, "journal"):
            self.journal.close()
        self.journal = Journal.open(self.state / "journal.sqlite", 0.0).journal
        clock = Clock(lambda: self.wall, lambda: self.mono, lambda: self.synchronised)
        statuses = Statuses(self.journal, self.uplink, clock)
        self.steering = Steering(self.board, Policy())
        shop = ScrubShop(self.order, lambda: MemoryErrors(5, 0), self.count)
        self.scrubs = Scrubs(self.journal, statuses, self.steering, Policy(), clock, shop)

    def order(self) -> ScrubOrder:
        return ScrubOrder(str(self.state), "http://127.0.0.1:1", str(self.state / "root.json"))

    def count(self) -> None:
        self.told += 1

    def scrub(self) -> Scrubbed | Failed:
        return asyncio.run(self.scrubs.run(awaited=True))

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.mono += seconds

    def command(self, number: int = 0) -> Command:
        command_id = new_id(1_800_000_000_000 + number, lambda count: b"\1" * count)
        return Command(command_id, "board-1", "scrub", 1_800_000_000, 1_800_000_600, {}, digest=f"digest {number}")

    def break_identity(self) -> None:
        (self.state / "keys" / "identity.json").unlink()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_board_that_never_scrubbed_does_so_a_minute_after_its_start_and_then_every_twelve_hours(bench: Bench) -> None:
    assert not bench.scrubs.due()
    bench.pass_time(SETTLE_S)
    assert bench.scrubs.due()
    assert isinstance(bench.scrub(), Scrubbed)
    bench.pass_time(12 * HOUR_S - 1)
    assert not bench.scrubs.due()
    bench.pass_time(1)
    assert bench.scrubs.due()


def test_the_last_scrub_is_known_after_a_restart(bench: Bench) -> None:
    bench.scrub()
    bench.start()
    bench.pass_time(HOUR_S)
    assert not bench.scrubs.due()
    assert bench.scrubs.metrics()["ts"] == 1_800_000_000.0
    bench.wall += 11 * HOUR_S
    assert bench.scrubs.due()


def test_a_clock_ten_years_ahead_costs_one_scrub(bench: Bench) -> None:
    bench.scrub()
    bench.start()
    bench.pass_time(SETTLE_S)
    bench.wall += 10 * 365 * 24 * HOUR_S
    assert bench.scrubs.due()
    bench.scrub()
    bench.wall -= 10 * 365 * 24 * HOUR_S
    bench.pass_time(HOUR_S)
    assert not bench.scrubs.due()


def test_a_board_without_a_clock_scrubs_once_a_start(bench: Bench) -> None:
    bench.scrub()
    bench.synchronised = False
    for _ in range(2):
        bench.start()
        bench.pass_time(SETTLE_S)
        assert bench.scrubs.due()
        bench.scrub()
        bench.pass_time(HOUR_S)
        assert not bench.scrubs.due()


def test_neither_heat_nor_a_low_battery_is_added_to(bench: Bench) -> None:
    bench.pass_time(SETTLE_S)
    for decision in (PAUSED, LOW):
        bench.steering.decision = decision
        assert not bench.scrubs.due()
    bench.scrubs.ask(bench.command())
    assert bench.scrubs.due(), "a person may ask on a low battery"
    bench.steering.decision = PAUSED
    assert not bench.scrubs.due(), "but not in the heat"


def test_files_of_a_job_get_their_parity_soon_and_the_next_job_waits_for_no_second_scrub(bench: Bench) -> None:
    assert bench.scrubs.due_before_job()
    bench.scrub()
    assert not bench.scrubs.due_before_job()
    bench.scrubs.job_ended()
    assert bench.scrubs.due()
    bench.scrub()
    assert not bench.scrubs.due()


def test_a_command_is_answered_when_its_scrub_has_ended(bench: Bench) -> None:
    command = bench.command()
    bench.scrubs.ask(command)
    assert bench.scrubs.due()
    bench.scrub()
    assert bench.uplink.words() == [("accepted", 1), ("running", 2), ("succeeded", 3)]
    result = bench.uplink.seen[-1]["result"]
    assert (result["damaged"], result["edac_corrected"], result["findings"]) == (0, 5, [])
    assert bench.told == 1
    assert bench.journal.outcome(command.id) == "succeeded"
    bench.uplink.seen.clear()
    bench.scrubs.publish_pending()
    assert bench.uplink.words() == [], "confirmed"
    assert not bench.scrubs.due()


def test_an_end_that_the_broker_has_not_confirmed_is_told_again_also_after_a_restart(bench: Bench) -> None:
    bench.uplink.confirms = False
    bench.scrubs.ask(bench.command())
    bench.scrub()
    bench.start()
    bench.uplink.seen.clear()

    async def connected() -> None:
        for confirms in (False, True, True):
            bench.uplink.confirms = confirms
            bench.scrubs.publish_pending()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    asyncio.run(connected())
    assert bench.uplink.words() == [("succeeded", 3), ("succeeded", 3)]
    assert bench.uplink.seen[-1]["result"]["damaged"] == 0


def test_a_command_that_a_later_release_kept_with_more_is_still_answered(bench: Bench) -> None:
    bench.journal.remember(ASKED, '{"a": {"digest": "b", "newer": 1}}')
    bench.start()
    assert bench.scrubs.repeat("a")


@pytest.mark.parametrize("kept", ["[1]", '{"a": 1}', '{"a": {"newer": 1}}', "{"])
def test_commands_that_another_version_kept_do_not_stop_the_daemon(bench: Bench, kept: str) -> None:
    bench.journal.remember(ASKED, kept)
    bench.start()
    assert not bench.scrubs.repeat("a")
    bench.scrubs.ask(bench.command())
    bench.scrub()
    assert bench.uplink.seen[-1]["status"] == "succeeded"


def test_lost_files_fail_the_command(bench: Bench) -> None:
    checkpoint = bench.state / "store" / "checkpoints" / "job.sealed"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"nothing that opens")
    bench.scrubs.ask(bench.command())
    bench.scrub()
    end = bench.uplink.seen[-1]
    assert (end["status"], end["reason_code"]) == ("failed", "damage-left")
    assert end["result"]["findings"][0]["action"] == "removed"
    assert not checkpoint.exists()


def test_a_scrub_that_cannot_be_done_is_told_and_tried_again_later_and_holds_up_no_job(bench: Bench) -> None:
    bench.break_identity()
    bench.scrubs.ask(bench.command())
    last = bench.scrub()
    assert isinstance(last, Failed)
    assert (bench.uplink.seen[-1]["status"], bench.uplink.seen[-1]["reason_code"]) == ("failed", last.code)
    assert "identity" in bench.uplink.seen[-1]["reason"]
    assert not bench.scrubs.due_before_job()
    bench.pass_time(RETRY_S - 1)
    assert not bench.scrubs.due()
    bench.pass_time(1)
    assert bench.scrubs.due()
    assert bench.scrubs.metrics() == {}


def test_a_scrub_waits_in_the_heat_and_ends_with_the_daemon_and_the_command_outlives_both(bench: Bench) -> None:
    bench.scrubs.ask(bench.command())
    bench.steering.decision = PAUSED
    checkpoint = bench.state / "store" / "checkpoints" / "job.sealed"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"nothing that opens")

    async def play() -> Scrubbed | Failed:
        task = asyncio.ensure_future(bench.scrubs.run(awaited=True))
        while not bench.scrubs.running:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)  # long enough for a worker that did not wait
        assert not task.done()
        assert checkpoint.exists()
        await bench.scrubs.stop()
        return await task

    assert isinstance(asyncio.run(play()), Failed)
    assert bench.uplink.words() == [("accepted", 1), ("running", 2)]
    bench.start()
    assert bench.scrubs.due()
    bench.scrub()
    assert bench.uplink.words()[-1] == ("failed", 4)
    assert not checkpoint.exists()


def test_more_commands_than_a_fleet_has_consoles_are_refused(bench: Bench) -> None:
    for number in range(MAX_ASKED):
        bench.scrubs.ask(bench.command(number))
    with pytest.raises(CommandError) as refused:
        bench.scrubs.ask(bench.command(MAX_ASKED))
    assert refused.value.code == "busy"
    bench.scrub()
    assert [status["status"] for status in bench.uplink.seen].count("succeeded") == MAX_ASKED
