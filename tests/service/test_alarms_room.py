"""Alarms over restarts, disks that refuse and brokers that come and go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.policy import Policy
from policies.reading import Decision, Health, Reading
from service.alarms_kinds import FAILURES, KINDS
from service.alarms_room import KEPT, LOOK_S, RETRY_S, Alarms, Sources
from service.job import Standing, State
from service.journal import Journal
from service.statuses import UNSAVED_S, Clock
from service.steering import Steering

HEAT = Decision(rule="thermal.critical")
LOST = Reading(0.0, health=(("temperature", Health.MISSING),))


class Broker:
    """Keeps what is retained; there or not, confirming or not."""

    def __init__(self) -> None:
        self.retained: dict[str, dict[str, Any]] = {}
        self.messages: list[tuple[str, dict[str, Any] | None]] = []
        self.there, self.confirms = True, True
        self.late: list[asyncio.Future[bool]] | None = None
        """Filled instead of being confirmed, where it is a list."""

    def publish_alarm(self, kind: str, alarm: Mapping[str, object] | None) -> asyncio.Future[bool] | None:
        if not self.there:
            return None
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self.late is None:
            done.set_result(self.confirms)
        else:
            self.late.append(done)
        told = None if alarm is None else json.loads(json.dumps(alarm, allow_nan=False))
        self.messages.append((kind, told))
        if self.confirms:
            self.retained[kind] = told or {}
            if told is None:
                del self.retained[kind]
        return done


class Bench:
    """A daemon's alarms on a state folder of their own, with clocks that are set by hand."""

    def __init__(self, folder: Path) -> None:
        self.state, self.broker = folder, Broker()
        self.wall, self.mono = 1_800_000_000.0, 100.0
        self.store: dict[str, object] = {}
        self.takeovers, self.complaint, self.outbox_fault = 0, "", ""
        self.told = 0
        self.journal: Journal | None = None
        self.start()

    def start(self) -> None:
        """As the daemon does; on the journal that is there, and after what may have been a reboot."""
        if self.journal:
            self.journal.close()
        self.journal = Journal.open(self.state / "journal.sqlite", 0.0).journal
        self.mono, self.takeovers = 5.0, 0
        self.steering = Steering(None, Policy())  # type: ignore[arg-type]  # the board is not looked at here
        clock = Clock(lambda: self.wall, lambda: self.mono, lambda: True)
        sources = Sources(
            self.state,
            self.steering,
            lambda: self.store,
            lambda: self.takeovers,
            lambda: self.complaint,
            lambda: self.outbox_fault,
            self.count,
        )
        self.alarms = Alarms(self.journal, self.broker, clock, sources)

    async def pass_s(self, seconds: float, step: float = 1.0) -> None:
        for _ in range(int(seconds / step)):
            self.mono, self.wall = self.mono + step, self.wall + step
            self.alarms.tick()
            await asyncio.sleep(0)

    def count(self) -> None:
        self.told += 1

    def tidy(self) -> None:
        """Take broken journals away."""
        for part in self.state.glob("journal.sqlite.corrupt-*"):
            part.unlink()

    def restart(self) -> None:
        """With the board as it was."""
        decision = self.steering.decision
        self.start()
        self.steering.decision = decision

    def up(self) -> None:
        self.broker.there = True
        self.alarms.connected()

    def wipe(self) -> None:
        self.broker.retained.clear()
        self.up()

    def raised(self) -> list[str]:
        return sorted(str(alarm["type"]) for alarm in self.alarms.shown())


def played(folder: Path, play: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(play(Bench(folder)))


def test_an_alarm_is_told_once_shown_and_cleared_by_an_empty_message(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        bench.steering.decision = HEAT
        await bench.pass_s(3)
        assert list(bench.broker.retained) == bench.raised() == ["critical-temperature"]
        assert bench.steering.board_metrics()["alarms"] == ["critical-temperature"]
        told = bench.broker.retained["critical-temperature"]
        assert told["since"] == 1_800_000_001.0
        assert bench.told == 1, "telemetry lists it at once"
        bench.steering.decision = Decision()
        await bench.pass_s(61)
        assert bench.broker.retained == {}
        assert bench.raised() == []
        changes = [told for kind, told in bench.broker.messages if kind == "critical-temperature"]
        assert len(changes) == 2
        assert changes[1] is None

    played(tmp_path, play)


def test_it_is_told_again_after_each_connect_with_the_same_since(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        bench.steering.decision = HEAT
        await bench.pass_s(2)
        first = bench.broker.retained.pop("critical-temperature")
        await bench.pass_s(2)
        assert bench.broker.retained == {}
        bench.alarms.connected()
        await bench.pass_s(1)
        again = bench.broker.retained["critical-temperature"]
        assert again == first | {"ts": again["ts"]}

    played(tmp_path, play)


def test_what_ended_without_a_broker_is_cleared_when_there_is_one_again(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        bench.steering.decision = HEAT
        await bench.pass_s(2)
        bench.broker.there = False
        bench.steering.decision = Decision()
        await bench.pass_s(70)
        bench.start()
        await bench.pass_s(2)
        assert list(bench.broker.retained) == ["critical-temperature"]
        bench.broker.there, bench.broker.confirms = True, False
        bench.alarms.connected()
        await bench.pass_s(3)
        assert list(bench.broker.retained) == ["critical-temperature"], "not confirmed: tried again"
        bench.broker.confirms = True
        await bench.pass_s(2)
        assert bench.broker.retained == {}
        before = len(bench.broker.messages)
        bench.start()
        bench.alarms.connected()
        await bench.pass_s(2)
        assert len(bench.broker.messages) == before, "what is confirmed as cleared is not cleared for ever"

    played(tmp_path, play)


def test_a_late_confirmation_of_what_is_no_more_confirms_nothing(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        await bench.pass_s(2)
        bench.broker.late = late = []
        for decision in (HEAT, Decision(), HEAT):
            bench.steering.decision = decision
            await bench.pass_s(62)
        assert [told is None for _, told in bench.broker.messages[-3:]] == [False, True, False]
        bench.broker.late = None
        late[0].set_result(True)
        late[1].set_result(False)
        late[2].set_result(False)
        bench.broker.retained.clear()
        await bench.pass_s(3)
        assert list(bench.broker.retained) == ["critical-temperature"]

    played(tmp_path, play)


def test_what_ended_while_the_daemon_was_down_is_cleared(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        bench.complaint = "no such key"
        await bench.pass_s(2)
        assert list(bench.broker.retained) == ["policy-invalid"]
        bench.complaint = ""
        bench.start()
        await bench.pass_s(1)
        assert bench.broker.retained == {}

    played(tmp_path, play)


def test_an_alarm_outlives_the_daemon_with_its_since(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        bench.steering.reading = LOST
        await bench.pass_s(15)
        since = bench.broker.retained["temperature-lost"]["since"]
        bench.wall += 7200
        bench.start()
        bench.steering.reading = LOST
        await bench.pass_s(1)
        assert bench.broker.retained["temperature-lost"]["since"] == since == 1_800_000_001.0

    played(tmp_path, play)


@pytest.mark.parametrize("kept", ["", "[1]", "{", '{"raised": {"x": 5}, "clear": []}', '{"raised": 1, "clear": []}'])
def test_without_a_memory_every_type_is_cleared_once(tmp_path: Path, kept: str) -> None:
    """A broker may hold alarms of a journal that was lost."""

    async def play(bench: Bench) -> None:
        assert bench.journal
        if kept:
            bench.journal.remember(KEPT, kept)
            bench.start()
        bench.broker.retained["store-damaged"] = {"since": 1.0}
        await bench.pass_s(3)
        assert bench.broker.retained == {}
        assert sorted(bench.broker.messages) == [(kind, None) for kind in sorted(KINDS)]
        bench.start()
        bench.alarms.connected()
        await bench.pass_s(3)
        assert len(bench.broker.messages) == len(KINDS)

    played(tmp_path, play)


def test_an_alarm_of_another_version_is_cleared(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        assert bench.journal
        table = {"raised": {"of-the-future": {"since": 5.0, "evidence": {}}}, "clear": []}
        bench.journal.remember(KEPT, json.dumps(table))
        bench.start()
        bench.broker.retained["of-the-future"] = {}
        await bench.pass_s(2)
        assert bench.broker.messages == [("of-the-future", None)]

    played(tmp_path, play)


def test_a_broker_that_comes_back_with_an_old_save_is_told_of_what_ended_since(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        bench.steering.decision = HEAT
        await bench.pass_s(2)
        saved = dict(bench.broker.retained)
        bench.steering.decision = Decision()
        await bench.pass_s(70)
        assert bench.broker.retained == {}
        bench.broker.retained = saved
        bench.up()
        await bench.pass_s(2)
        assert bench.broker.retained == {}
        bench.mono += UNSAVED_S
        bench.broker.messages.clear()
        bench.up()
        await bench.pass_s(2)
        assert bench.broker.messages == [], "every broker has saved that by now"

    played(tmp_path, play)


def test_a_full_disk_is_told_although_it_cannot_be_remembered_and_the_alarms_find_out_when_it_is_over(
    tmp_path: Path,
) -> None:
    async def play(bench: Bench) -> None:
        assert bench.journal
        await bench.pass_s(2)
        pages = bench.journal._db.execute("PRAGMA page_count").fetchone()[0]
        most = bench.journal._db.execute("PRAGMA max_page_count").fetchone()[0]
        bench.journal._db.execute(f"PRAGMA max_page_count = {pages}")
        bench.complaint = "why " * 2000  # no page has room for it
        with pytest.raises(Exception, match="journal cannot be used"):
            bench.journal.remember("x", "y" * 100_000)
        await bench.pass_s(2)
        assert {"disk-full", "policy-invalid"} <= bench.broker.retained.keys()
        bench.journal._db.execute(f"PRAGMA max_page_count = {most}")
        await bench.pass_s(RETRY_S + 65)
        assert list(bench.broker.retained) == ["policy-invalid"]
        bench.start()
        assert bench.raised() == ["policy-invalid"], "remembered as soon as the disk took it"

    played(tmp_path, play)


@pytest.mark.parametrize(
    ("fault", "kind"), [("[Errno 28] No space left on device", "disk-full"), ("[Errno 30] Read-only", "disk-failing")]
)
def test_an_outbox_that_cannot_be_written_is_told_too(tmp_path: Path, fault: str, kind: str) -> None:
    async def play(bench: Bench) -> None:
        bench.outbox_fault = fault
        await bench.pass_s(2)
        assert bench.raised() == [kind]
        bench.outbox_fault = ""
        await bench.pass_s(61)
        assert bench.raised() == []

    played(tmp_path, play)


def test_counts_raise_by_their_rise_and_clear_a_while_after_the_last(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        bench.takeovers = 2
        await bench.pass_s(1)
        assert bench.broker.retained["taken-over"]["evidence"] == {"count": 2}
        await bench.pass_s(3000, 60)
        bench.takeovers = 3
        await bench.pass_s(3540, 60)
        assert bench.raised() == ["taken-over"]
        await bench.pass_s(120, 60)
        assert bench.raised() == []
        bench.steering.memory_faults = 1
        await bench.pass_s(1)
        assert bench.raised() == ["memory-faults"]

    played(tmp_path, play)


def test_a_broken_journal_is_told_until_somebody_takes_it_away(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        assert bench.journal
        bench.journal.close()
        bench.journal = None
        (tmp_path / "journal.sqlite").write_bytes(b"nonsense" * 1000)
        bench.start()
        await bench.pass_s(1)
        assert bench.broker.retained["journal-quarantined"]["evidence"] == {"files": ["journal.sqlite.corrupt-1"]}
        bench.tidy()
        await bench.pass_s(LOOK_S + 1)
        assert bench.raised() == []

    played(tmp_path, play)


def test_jobs_that_fail_in_a_row_are_told_until_one_does_not(tmp_path: Path) -> None:
    async def play(bench: Bench) -> None:
        assert bench.journal

        def job(number: int, state: State, code: str) -> None:
            assert bench.journal
            bench.journal.add_job(f"job-{number}", "d", "fine-tune", {}, bench.wall)
            bench.journal.update(f"job-{number}", bench.wall + number, standing=Standing(state, 1, code, ""))
            bench.alarms.jobs_changed()

        for number in range(FAILURES - 1):
            job(number, State.FAILED, "gate")
        await bench.pass_s(1)
        assert bench.raised() == []
        job(7, State.ROLLED_BACK, "thermal")
        await bench.pass_s(1)
        assert bench.broker.retained["jobs-failing"]["evidence"] == {"count": FAILURES, "code": "thermal"}
        job(8, State.FAILED, "metadata-expired")
        await bench.pass_s(1)
        assert bench.raised() == ["jobs-failing", "repository-expired"]
        job(9, State.SUCCEEDED, "")
        await bench.pass_s(1)
        assert bench.raised() == []

    played(tmp_path, play)


STEPS: dict[str, Callable[[Bench], object]] = {
    "heat": lambda bench: setattr(bench.steering, "decision", HEAT),
    "cool": lambda bench: setattr(bench.steering, "decision", Decision()),
    "complain": lambda bench: setattr(bench, "complaint", "no such key"),
    "mend": lambda bench: setattr(bench, "complaint", ""),
    "down": lambda bench: setattr(bench.broker, "there", False),
    "up": Bench.up,
    "wipe": Bench.wipe,
    "deaf": lambda bench: setattr(bench.broker, "confirms", False),
    "hears": lambda bench: setattr(bench.broker, "confirms", True),
    "restart": Bench.restart,
    "wait": lambda bench: setattr(bench, "mono", bench.mono + 90.0),
}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(sorted(STEPS)), max_size=25))
def test_whatever_happens_the_broker_ends_with_what_is_raised(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    async def play(bench: Bench) -> None:
        for step in steps:
            STEPS[step](bench)
            await bench.pass_s(2)
            assert bench.steering.alarms == tuple(bench.raised())
        bench.broker.there = bench.broker.confirms = True
        bench.alarms.connected()
        await bench.pass_s(3)
        assert sorted(bench.broker.retained) == bench.raised()
        assert [told["since"] for _, told in sorted(bench.broker.retained.items())] == [
            alarm["since"] for alarm in sorted(bench.alarms.shown(), key=lambda alarm: str(alarm["type"]))
        ]

    played(tmp_path_factory.mktemp("alarms"), play)
