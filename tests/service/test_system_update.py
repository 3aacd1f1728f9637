"""The command `update-system`: journaled before each effect, told across restarts of the board, back at most once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.errors import BoardError, CommandError
from agent.messages import Failed, Finished, Message, SystemOrder
from policies.reading import Reading
from policies.trial_health import Baseline, Heat
from service.commands import UPDATE_SYSTEM, Command, new_id
from service.job import MAX_ATTEMPTS
from service.journal import Journal
from service.statuses import Clock, Statuses
from service.system_shop import SystemShop
from service.system_trial import MAX_STARTS, Sight
from service.system_update import RAUC_BACK_S, SystemUpdates
from service.until import RETRY_S
from tests.simulators.system_updates import PlannedSystem

pytestmark = pytest.mark.once

NOW = 1_800_000_000
WINDOW_S = 60.0


class Worker:
    """Says one word, when it may."""

    pid = 1

    def __init__(self, last: Message | None, gone: asyncio.Event) -> None:
        self._last, self._gone = last, gone

    async def messages(self) -> AsyncIterator[Message]:
        if self._last is None:
            await self._gone.wait()
        else:
            yield self._last

    def kill(self) -> None:
        self._gone.set()

    async def end(self, _grace_s: float = 0.0) -> int:
        return 0


class Bench:
    """One board over restarts of its daemon and of itself."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.boots, self.mono_s, self.now_s = folder, 1, 0.0, float(NOW)
        self.system = PlannedSystem()
        self.absent, self.busy = "", False
        self.last: Message | None = Finished("SUCCEEDED", "", {"path": "/b.raucb", "version": "2.0", "bytes": 7})
        self.orders: list[SystemOrder] = []
        self.seen: list[dict[str, Any]] = []
        self.celsius, self.connected, self.wrong, self.critical = 40.0, True, "", False
        self.before = Baseline({"idle": Heat(40.0, 41.0, 100, over_air=False)}, had_link=True)
        self.open()

    def open(self) -> None:
        self.gone = asyncio.Event()
        self.journal = Journal.open(self.folder / "journal.sqlite", 0.0).journal
        clock = Clock(lambda: self.now_s, lambda: self.mono_s, lambda: True)
        shop = SystemShop(
            *(self.folder, f"boot-{self.boots}", 0, self.order, self.system, lambda: self.before, lambda: self.absent),
            lambda: self.busy,
            self.start,  # type: ignore[arg-type]
        )
        sight = Sight(
            *(lambda: Reading(self.mono_s, temperature_celsius=self.celsius, ambient_is_baseline=True), lambda: False),
            *(lambda: False, lambda: self.connected, lambda: self.critical, self.gate),
        )
        self.room = SystemUpdates(self.journal, Statuses(self.journal, self, clock), clock, shop, sight)
        self.room.recover()

    async def gate(self) -> str:
        return self.wrong

    def order(self, name: str, version: str, compatible: str, installed: str, allow: bool) -> SystemOrder:
        return SystemOrder("", "", "", name, version, compatible, installed, allow)

    async def start(self, order: SystemOrder, _nice: int, _log: object, module: str = "") -> Worker:
        assert module == "agent.system_worker"
        self.orders.append(order)
        return Worker(self.last, self.gone)

    def publish_status(
        self, kind: str, command_id: str, status: Mapping[str, Any], *, retained: bool = True
    ) -> asyncio.Future[bool] | None:
        assert (kind, retained) == (UPDATE_SYSTEM, True)
        self.seen.append({**status, "id": command_id})
        return None

    def ask(self, **args: object) -> str:
        command_id = new_id(NOW * 1000 + len(self.seen), lambda count: bytes([len(self.seen) + 1] * count))
        args = {"name": "plant-image", "window_s": WINDOW_S, **args}
        self.room.ask(Command(command_id, "board-1", UPDATE_SYSTEM, NOW, NOW + 600, args, digest=command_id))
        return command_id

    def crash(self) -> None:
        """Kill -9 of the daemon."""
        self.journal.close()
        self.open()

    def power_cut(self) -> None:
        """Or a restart: another boot, into the slot that the boot loader chooses."""
        self.boots += 1
        self.system.boot()
        self.crash()

    def work(self) -> None:
        """As the desk does: its turn while it is due. A board that was told to restart ends it."""

        async def run() -> None:
            while self.room.due():
                before = self.system.reboots
                task = asyncio.ensure_future(self.room.run())
                while not task.done() and self.system.reboots == before:  # noqa: ASYNC110 - a count
                    await asyncio.sleep(0)
                if not task.done():
                    await self.room.stop()
                await task

        asyncio.run(run())

    def look(self, seconds: float = 1.0) -> None:
        """As the watch does, once a second."""

        async def run() -> None:
            for _ in range(int(seconds)):
                self.mono_s += 1.0
                self.now_s += 1.0
                await self.room._look()
                if self.room._trial is not None and self.room.due():
                    await self.room.run()

        asyncio.run(run())

    @property
    def status(self) -> tuple[str, str, str]:
        now = self.seen[-1]
        return now["status"], now["step"], now["reason_code"]

    def installed(self, **faults: object) -> None:
        self.ask()
        self.work()
        for name, value in faults.items():
            setattr(self, name, value)
        self.power_cut()
        self.look()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_healthy_system_stays(bench: Bench) -> None:
    bench.ask()
    bench.work()
    assert bench.system.installed == ["/b.raucb"]
    assert bench.system.reboots == 1
    assert bench.status == ("running", "restarting", "")
    bench.now_s += 40.0
    bench.power_cut()
    bench.look()
    assert bench.status == ("running", "trial", "")
    bench.look(WINDOW_S + 2)
    assert bench.status == ("succeeded", "", "")
    result = bench.seen[-1]["result"]
    assert result["slot_before"], result["slot"] == ("A", "B")
    assert result["downtime_s"] == 41.0
    assert bench.system.marks == [("B", "good")]
    told = [(one["status"], one["step"]) for one in bench.seen]
    steps = ["pulling", "installing", "restarting", "restarting", "trial"]
    assert told == [("accepted", ""), *(("running", step) for step in steps), ("succeeded", "")]


def test_the_versions_of_a_status_rise_over_restarts(bench: Bench) -> None:
    bench.installed()
    bench.look(WINDOW_S + 2)
    versions = [one["version"] for one in bench.seen]
    assert versions == sorted(set(versions))


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"celsius": 75.0}, "trial-heat"),
        ({"critical": True}, "trial-heat"),
        ({"wrong": "the model's outputs are not finite"}, "trial-gate"),
        ({"connected": False}, "trial-link"),
    ],
)
def test_a_system_that_is_worse_is_left_once(bench: Bench, fault: dict[str, Any], code: str) -> None:
    bench.installed(**fault)
    bench.look(WINDOW_S + 2)
    assert bench.status == ("running", "restarting", code)
    assert bench.room.urgent
    bench.work()
    assert bench.system.marks == [("B", "bad")]
    assert bench.system.reboots == 2
    bench.power_cut()
    bench.look(5)
    assert bench.status == ("rolled_back", "", code)
    assert bench.system.booted == "A"
    bench.power_cut()
    bench.look(WINDOW_S)
    bench.work()
    assert bench.system.reboots == 2, "one way back, and never another"
    assert bench.seen[-1]["status"] == "rolled_back"


def test_a_boot_loader_that_boots_the_bad_slot_again_is_no_loop(bench: Bench) -> None:
    bench.installed(wrong="no numbers")
    bench.look(5)
    bench.work()
    bench.system.bad.clear()
    bench.power_cut()
    bench.look(5)
    bench.work()
    assert bench.status == ("failed", "", "fallback-failed")
    assert bench.system.reboots == 2


def test_a_slot_that_cannot_be_marked_bad_is_not_restarted_into(bench: Bench) -> None:
    bench.installed(wrong="no numbers")
    bench.look(5)
    bench.system.faults["mark"] = BoardError("RAUC refuses", reason="rauc-failed")
    bench.work()
    assert bench.status == ("failed", "", "fallback-failed")
    assert bench.system.reboots == 1


def test_another_slot_than_the_new_one_is_rolled_back(bench: Bench) -> None:
    bench.ask()
    bench.work()
    bench.system.bad.add("B")  # the boot loader gave it up before temperd ran
    bench.power_cut()
    bench.look()
    assert bench.status == ("rolled_back", "", "boot-failed")
    assert bench.system.marks == []


def test_a_power_cut_in_the_trial_into_the_old_slot_is_rolled_back(bench: Bench) -> None:
    bench.installed()
    bench.system.bad.add("B")
    bench.power_cut()
    bench.look()
    assert bench.status == ("rolled_back", "", "boot-failed")


def test_a_daemon_that_keeps_ending_in_the_trial_leaves_the_system(bench: Bench) -> None:
    bench.installed()
    for _ in range(MAX_STARTS):
        assert bench.status[1] == "trial"
        bench.crash()
        bench.look(3)
    assert bench.status == ("running", "restarting", "crashed")


def test_a_daemon_killed_while_rauc_installs_does_it_again(bench: Bench) -> None:
    bench.system.hangs = asyncio.Event()
    bench.ask()

    async def begin() -> None:
        task = asyncio.ensure_future(bench.room.run())
        while bench.status[1] != "installing":  # noqa: ASYNC110 - a status
            await asyncio.sleep(0)
        task.cancel()

    for attempt in range(1, MAX_ATTEMPTS + 1):
        asyncio.run(begin())
        assert bench.room._ledger.open is not None
        assert bench.room._ledger.open.attempt == attempt
        bench.crash()
    assert bench.status == ("failed", "", "too-many-attempts")
    assert bench.system.reboots == 0


def test_a_power_cut_between_the_installation_and_the_restart_is_the_restart(bench: Bench) -> None:
    bench.system.faults["reboot"] = BoardError("not yet", reason="reboot-needed")
    bench.ask()
    bench.work()
    assert bench.status == ("deferred", "", "reboot-needed")
    assert bench.seen[-1]["until"]["what"] == "operator"
    bench.power_cut()
    bench.look()
    assert bench.status == ("running", "trial", "")
    bench.look(WINDOW_S + 2)
    assert bench.status[0] == "succeeded"


def test_a_daemon_killed_before_the_restart_restarts_the_board(bench: Bench) -> None:
    bench.ask()
    bench.work()
    bench.crash()
    bench.look(5)
    assert bench.status[1] == "restarting"
    bench.work()
    assert bench.system.reboots == 2


@pytest.mark.parametrize("code", ["network", "metered-link", "clock-wrong"])
def test_what_may_be_over_by_itself_is_waited_for(bench: Bench, code: str) -> None:
    bench.last = Failed(code, "not now")
    bench.ask()
    bench.work()
    assert bench.status == ("deferred", "", code)
    assert not bench.room.due()
    bench.crash()
    bench.now_s = bench.seen[-1]["until"]["ts"]
    bench.last = Finished("SUCCEEDED", "", {"path": "/b.raucb", "version": "2.0", "bytes": 7})
    bench.work()
    assert bench.status == ("running", "restarting", "")


def test_a_busy_rauc_is_waited_for(bench: Bench) -> None:
    bench.system.faults["install"] = BoardError("busy", reason="rauc-busy")
    bench.ask()
    bench.work()
    assert bench.status == ("deferred", "", "rauc-busy")
    del bench.system.faults["install"]
    bench.now_s += RETRY_S
    bench.work()
    assert bench.status == ("running", "restarting", "")


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (Failed("other-board", "for another board"), "other-board"),
        (Failed("no-space", "too full"), "no-space"),
        (Failed("metadata-unsigned", "not signed"), "metadata-unsigned"),
    ],
)
def test_what_cannot_be_had_fails_and_changes_nothing(bench: Bench, last: Failed, code: str) -> None:
    bench.last = last
    bench.ask()
    bench.work()
    assert bench.status == ("failed", "", code)
    assert (bench.system.installed, bench.system.reboots, bench.system.primary) == ([], 0, "A")


def test_what_rauc_refuses_fails(bench: Bench) -> None:
    bench.system.faults["install"] = BoardError("RAUC did not install: signature", reason="rauc-failed")
    bench.ask()
    bench.work()
    assert bench.status == ("failed", "", "rauc-failed")
    assert bench.system.reboots == 0


def test_what_runs_already_changes_nothing(bench: Bench) -> None:
    bench.last = Finished("SUCCEEDED", "", {"path": "", "version": "1.0", "bytes": 0})
    bench.ask()
    bench.work()
    assert bench.status == ("succeeded", "", "")
    assert bench.seen[-1]["result"]["changed"] is False
    assert (bench.system.installed, bench.system.reboots) == ([], 0)


def test_the_order_knows_the_board(bench: Bench) -> None:
    bench.ask(version="2.0", allow_downgrade=True)
    bench.work()
    order = bench.orders[0]
    told = (order.name, order.version, order.compatible, order.installed, order.allow_downgrade)
    assert told == ("plant-image", "2.0", "board-x", "1.0", True)


def test_a_board_without_rauc_refuses(bench: Bench) -> None:
    bench.absent = "this board has no RAUC. Install it"
    with pytest.raises(CommandError, match="Install it") as refused:
        bench.ask()
    assert refused.value.code == "not-updatable"
    assert bench.seen == []


def test_one_at_a_time(bench: Bench) -> None:
    bench.ask()
    with pytest.raises(CommandError) as refused:
        bench.ask()
    assert refused.value.code == "busy"


def test_it_waits_for_the_trial_of_a_release_of_temperd(bench: Bench) -> None:
    bench.busy = True
    bench.ask()
    assert not bench.room.due()
    bench.busy = False
    assert bench.room.due()
    assert not bench.room.under_way
    bench.work()
    assert bench.room.under_way
    bench.busy = True
    bench.crash()
    assert bench.room.due(), "what is installed waits for nothing but the restart"


def test_rauc_gone_from_the_new_system_ends_it(bench: Bench) -> None:
    bench.ask()
    bench.work()
    bench.system.faults["state"] = BoardError("no bus", reason="not-updatable")
    bench.power_cut()
    bench.look(RAUC_BACK_S - 1)
    assert bench.status[0] == "running"
    bench.look(3)
    assert bench.status == ("failed", "", "not-updatable")


def test_canceled_before_its_turn_and_while_it_is_pulled(bench: Bench) -> None:
    first = bench.ask()
    assert bench.room.cancel(first)
    assert bench.status == ("canceled", "", "canceled")
    bench.last = None
    second = bench.ask()

    async def pulled() -> None:
        task = asyncio.ensure_future(bench.room.run())
        while not bench.orders or bench.room._worker is None:  # noqa: ASYNC110 - a field
            await asyncio.sleep(0)
        assert bench.room.cancel(second)
        await task

    asyncio.run(pulled())
    assert bench.status == ("canceled", "", "canceled")
    assert bench.room.cancel(second)
    assert bench.system.installed == []


def test_a_daemon_that_goes_down_as_the_bundle_has_come_begins_no_installation(bench: Bench) -> None:
    bench.ask()

    async def goes_down() -> None:
        await bench.room.stop()
        await bench.room.run()

    asyncio.run(goes_down())
    assert bench.status == ("accepted", "", "restarted")
    assert bench.system.installed == []
    bench.crash()
    bench.work()
    assert bench.system.installed == ["/b.raucb"]


def test_what_is_installed_cannot_be_canceled(bench: Bench) -> None:
    command_id = bench.ask()
    bench.work()
    assert not bench.room.cancel(command_id)
    assert bench.status[1] == "restarting"


def test_the_same_command_is_told_again_and_a_lost_broker_too(bench: Bench) -> None:
    command_id = bench.ask()
    bench.work()
    seen = len(bench.seen)
    assert bench.room.repeat(command_id)
    assert not bench.room.repeat("another")
    bench.room.broker_lost()
    bench.room.publish_pending()
    assert {one["id"] for one in bench.seen[seen:]} == {command_id}
    assert bench.journal.outcome(command_id) == "accepted"


def test_a_full_disk_does_it_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.ask()
    record: Callable[..., None] = bench.journal.record

    def full(*_args: object) -> None:
        raise BoardError("no space", reason="no-space")

    monkeypatch.setattr(bench.journal, "record", full)
    with pytest.raises(BoardError):
        bench.work()
    monkeypatch.setattr(bench.journal, "record", record)
    bench.work()
    assert bench.status == ("running", "restarting", "")


def test_keys_of_a_later_version_do_not_lose_the_command(bench: Bench) -> None:
    bench.installed()
    kept = bench.journal.recall(UPDATE_SYSTEM)
    assert kept is not None
    bench.journal.remember(UPDATE_SYSTEM, kept.replace('"stage"', '"colour": "red", "stage"'))
    bench.crash()
    bench.look(WINDOW_S + 2)
    assert bench.status[0] == "succeeded"
