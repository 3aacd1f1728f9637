"""Telemetry and backfill with a simulated link and a clock that is handed in."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backfill import LEAST_BYTES, LONGEST_RETRY_S, MOST_BYTES, RETRY_S, SETTLE_S, Backfill
from service.config import Telemetry as Settings
from service.outbox import DAY_S, Outbox
from service.outbox_segment import MAX_RECORD_BYTES, Record
from service.payload import CBOR, JSON
from service.statuses import Clock
from service.telemetry import BACKLOG, OFFLINE_ACTIVE_S, SLOWEST_S, Rate, Telemetry

HANG_S = 60.0
NOW = 1_800_000_000.0


@dataclass
class SimulatedWire:
    """A link that does as the test says; time passes while a confirmation is on its way."""

    connected: bool = True
    unconfirmed: int = 0
    most_bytes: int = 256 << 10
    leaves: bool = True
    confirms: bool = True
    confirm_s: float = 0.01
    mono_s: float = 100.0
    set: bool = True
    """The board knows the time."""
    tried: list[float] = field(default_factory=list)
    sent: list[tuple[float, str, bytes, str]] = field(default_factory=list)

    def mono(self) -> float:
        return self.mono_s

    async def sleep(self, seconds: float) -> None:
        self.mono_s += seconds
        await asyncio.sleep(0)

    def publish_lossy(self, group: str, payload: bytes, content_type: str) -> bool:
        if self.leaves:
            self.sent.append((self.mono_s, group, payload, content_type))
        return self.leaves

    def publish_telemetry(self, group: str, payload: bytes, content_type: str) -> asyncio.Future[bool]:
        assert len(payload) <= MOST_BYTES
        self.tried.append(self.mono_s)
        done = asyncio.get_running_loop().create_future()
        if self.confirms:
            self.sent.append((self.mono_s, group, payload, content_type))
        self.mono_s += self.confirm_s
        done.set_result(self.confirms)
        return done

    def bodies(self, group: str) -> list[dict[str, Any]]:
        """What was sent as `m/<group>`."""
        return [
            json.loads(payload) if kind == JSON else cbor2.loads(payload)
            for _, name, payload, kind in self.sent
            if name == group
        ]


class Room:
    """Telemetry, outbox and backfill over one simulated link."""

    def __init__(self, folder: Path, wire: SimulatedWire, **settings: Any) -> None:
        self.wire, self.settings = wire, Settings(**settings)
        self.outbox = Outbox(folder / "outbox", 64 << 20, 30 * DAY_S, wire.mono())
        clock = Clock(lambda: NOW - 100.0 + wire.mono() if wire.set else 7.0, wire.mono, lambda: wire.set)
        self.telemetry = Telemetry(self.settings, wire, self.outbox, "boot", clock)
        self.telemetry.begin()
        self.backfill = Backfill(self.outbox, wire, "boot", self.settings, clock, wire.sleep)

    async def fill(self) -> None:
        """Let the backfill run until nothing waits."""
        task = asyncio.create_task(self.backfill.run())
        while self.outbox.records:
            self.backfill.tick()
            await self.wire.sleep(0.5)
        task.cancel()


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def guarded() -> None:
        async with asyncio.timeout(HANG_S):
            await story()

    asyncio.run(guarded())


# --- how often -------------------------------------------------------------------------------------------------------


def due_at(rate: Rate, seconds: int, *, working: bool, online: bool = True, drains: bool = True) -> list[int]:
    return [s for s in range(seconds) if rate.due(float(s), working=working, online=online, drains=drains)]


def test_an_idle_board_tells_each_minute_and_a_working_one_each_second() -> None:
    assert due_at(Rate(1, 60), 181, working=False) == [0, 60, 120, 180]
    assert due_at(Rate(1, 60), 5, working=True) == [0, 1, 2, 3, 4]


def test_work_that_begins_is_told_at_once() -> None:
    rate = Rate(1, 60)
    assert rate.due(0.0, working=False, online=True, drains=True)
    assert not rate.due(1.0, working=False, online=True, drains=True)
    assert rate.due(1.0, working=True, online=True, drains=True)


def test_offline_a_working_board_writes_less_to_its_disk() -> None:
    assert due_at(Rate(1, 60), 31, working=True, online=False) == [0, 10, 20, 30]
    assert due_at(Rate(30, 60), 61, working=True, online=False) == [0, 30, 60]


def test_a_connection_that_does_not_drain_is_told_less_and_less_and_recovers() -> None:
    rate = Rate(1, 60)
    stalled = due_at(rate, 300, working=True, drains=False)
    assert stalled == [0, 2, 6, 14, 30, 62, 122, 182, 242]
    again = [s for s in range(300, 500) if rate.due(float(s), working=True, online=True, drains=True)]
    assert [b - a for a, b in itertools.pairwise(again)][:7] == [30, 15, 8, 4, 2, 1, 1]


@given(
    active_s=st.integers(1, 3600),
    more_s=st.integers(0, 3600),
    ticks=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=200),
)
def test_no_course_is_faster_than_set_or_slower_than_a_minute(
    active_s: int, more_s: int, ticks: list[tuple[bool, bool, bool]]
) -> None:
    rate, last = Rate(active_s, active_s + more_s), None
    for second, (working, online, drains) in enumerate(ticks):
        period = rate.period_s(working=working, online=online)
        least = active_s if working else active_s + more_s
        assert least <= period <= max(least, SLOWEST_S, OFFLINE_ACTIVE_S)
        if rate.due(float(second), working=working, online=online, drains=drains):
            assert last is None or second - last >= active_s - 0.05
            last = second


# --- where it goes ---------------------------------------------------------------------------------------------------


def test_online_it_goes_out_with_its_number_and_its_times(tmp_path: Path) -> None:
    room = Room(tmp_path, wire := SimulatedWire(mono_s=5.5))
    room.telemetry.publish("board", {"temperature_celsius": 50.5})
    room.telemetry.publish("board", {"temperature_celsius": 51.5})
    first, second = wire.bodies("board")
    about = {"boot_id": "boot", "ts": NOW - 94.5, "mono_ms": 5500, "dropped_total": 0}
    assert first == about | {"seq": 5501, "values": {"temperature_celsius": 50.5}}
    assert second["seq"] == 5502
    assert wire.sent[0][3] == JSON
    assert room.outbox.records == 0


def test_cbor_is_the_same_structure(tmp_path: Path) -> None:
    values = {"a": 1.5, "b": None, "c": [True, "x"], "d": {"e": -3}}
    for form in ("json", "cbor"):
        room = Room(tmp_path / form, wire := SimulatedWire(), format=form)
        room.telemetry.publish("board", values)
        assert wire.bodies("board")[0]["values"] == values
        assert wire.sent[0][3] == {"json": JSON, "cbor": CBOR}[form]


@pytest.mark.parametrize("form", ["json", "cbor"])
def test_a_number_that_is_not_finite_is_null(tmp_path: Path, form: str) -> None:
    room = Room(tmp_path, wire := SimulatedWire(), format=form)
    room.telemetry.publish("training", {"loss": float("nan"), "parts": [float("inf"), 1.0]})
    assert wire.bodies("training")[0]["values"] == {"loss": None, "parts": [None, 1.0]}


@pytest.mark.parametrize("trouble", [{"connected": False}, {"leaves": False}, {"unconfirmed": BACKLOG}])
def test_what_cannot_leave_waits_and_comes_later_complete(tmp_path: Path, trouble: dict[str, Any]) -> None:
    async def story() -> None:
        room = Room(tmp_path, wire := SimulatedWire(**trouble))
        for count in range(5):
            room.telemetry.publish("board", {"count": count})
        assert not wire.sent
        wire.connected, wire.leaves, wire.unconfirmed = True, True, 0
        await room.fill()
        (body,) = wire.bodies("backfill")
        assert (body["historical"], body["boot_id"], body["dropped_total"]) == (True, "boot", 0)
        assert [(item["group"], item["values"]["count"]) for item in body["messages"]] == [
            ("board", count) for count in range(5)
        ]
        assert set(body["messages"][0]) == {"group", "seq", "boot_id", "ts", "mono_ms", "values"}
        assert room.telemetry.figures()["backfilled_total"] == 5

    run(story)


def test_at_qos_1_what_the_broker_does_not_confirm_waits(tmp_path: Path) -> None:
    async def story() -> None:
        room = Room(tmp_path, wire := SimulatedWire(confirms=False), qos=1)
        room.telemetry.publish("board", {"count": 1})
        await asyncio.sleep(0)
        assert room.outbox.records == 1
        wire.confirms = True
        room.telemetry.publish("board", {"count": 2})
        await room.fill()
        assert [body["values"]["count"] for body in wire.bodies("board")] == [2]
        assert wire.bodies("backfill")[0]["messages"][0]["values"] == {"count": 1}

    run(story)


def test_a_daemon_without_a_broker_keeps_nothing(tmp_path: Path) -> None:
    wire = SimulatedWire(connected=False)
    outbox = Outbox(tmp_path / "outbox", 1 << 20, DAY_S, 0.0)
    telemetry = Telemetry(Settings(), wire, outbox, "boot", Clock(wire.mono, wire.mono, lambda: True))
    telemetry.publish("board", {})
    assert outbox.records == 0


@pytest.mark.parametrize("form", ["json", "cbor"])
def test_what_was_told_before_the_clock_was_set_gets_its_time_later(tmp_path: Path, form: str) -> None:
    async def story() -> None:
        room = Room(tmp_path, wire := SimulatedWire(connected=False, set=False), format=form)
        room.telemetry.publish("board", {"count": 1})
        wire.mono_s += 1000.0
        room.telemetry.publish("board", {"count": 2, "notes": ['"clock":"unsynchronised"']})
        wire.set = True
        room.telemetry.publish("board", {"count": 3, "notes": ['"clock":"unsynchronised"']})
        other = {"group": "board", "seq": 9, "boot_id": "before", "ts": 8.0, "mono_ms": 5, "clock": "unsynchronised"}
        room.outbox.add(Record(999_999, json.dumps(other, separators=(",", ":")).encode()), wire.mono())
        wire.connected = True
        await room.fill()
        told = [message for body in wire.bodies("backfill") for message in body["messages"]]
        assert [message["ts"] for message in told] == pytest.approx([NOW, NOW + 1000, NOW + 1000, 8.0])
        assert [message.get("clock") for message in told] == [None, None, None, "unsynchronised"]
        wire.set = False
        room.telemetry.publish("board", {})
        assert (wire.bodies("board")[-1]["ts"], wire.bodies("board")[-1]["clock"]) == (7.0, "unsynchronised")

    run(story)


# --- backfill --------------------------------------------------------------------------------------------------------


def kept(room: Room, records: int, size: int = 800) -> list[int]:
    for seq in range(1, records + 1):
        text = json.dumps({"seq": seq, "values": "x" * size}, separators=(",", ":")).encode()
        room.outbox.add(Record(seq, text), room.wire.mono())
    return list(range(1, records + 1))


def told(wire: SimulatedWire) -> list[int]:
    return [message["seq"] for body in wire.bodies("backfill") for message in body["messages"]]


@pytest.mark.parametrize("form", ["json", "cbor"])
@pytest.mark.parametrize("per_s", [0.5, 10.0])
def test_backfill_is_paced_in_order_and_grows_to_its_bound(tmp_path: Path, form: str, per_s: float) -> None:
    async def story() -> None:
        room = Room(tmp_path, wire := SimulatedWire(), format=form, backfill_per_s=per_s)
        seqs = kept(room, 3000)
        await room.fill()
        assert told(wire) == seqs
        times = [when for when, group, _, _ in wire.sent if group == "backfill"]
        assert all(b - a >= 1 / per_s - 1e-9 for a, b in itertools.pairwise(times))
        sizes = [len(payload) for _, _, payload, _ in wire.sent]
        assert sizes[0] <= LEAST_BYTES
        assert max(sizes) > MOST_BYTES - 2000

    run(story)


def test_a_slow_connection_gets_small_messages(tmp_path: Path) -> None:
    async def story() -> None:
        room = Room(tmp_path, wire := SimulatedWire(confirm_s=3.0))
        seqs = kept(room, 200)
        await room.fill()
        assert told(wire) == seqs
        assert max(len(payload) for _, _, payload, _ in wire.sent) <= LEAST_BYTES

    run(story)


def test_backfill_waits_for_statuses_after_a_connect_and_for_what_is_on_its_way(tmp_path: Path) -> None:
    async def story() -> None:
        room = Room(tmp_path, wire := SimulatedWire(connected=False))
        kept(room, 3)
        task = asyncio.create_task(room.backfill.run())
        wire.connected, connected_s = True, wire.mono_s
        wire.unconfirmed = 50
        for _ in range(40):
            room.backfill.tick()
            await wire.sleep(0.5)
        assert not wire.sent
        wire.unconfirmed = 0
        while not wire.sent:
            room.backfill.tick()
            await wire.sleep(0.5)
        assert wire.sent[0][0] - connected_s >= SETTLE_S
        task.cancel()

    run(story)


def test_what_was_not_confirmed_is_sent_again_later(tmp_path: Path) -> None:
    async def story() -> None:
        room = Room(tmp_path, wire := SimulatedWire(confirms=False))
        seqs = kept(room, 20)
        task = asyncio.create_task(room.backfill.run())
        for _ in range(100):
            room.backfill.tick()
            await wire.sleep(0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert room.outbox.records == 20
        assert room.telemetry.figures()["backfilled_total"] == 0
        pauses = [b - a for a, b in itertools.pairwise(wire.tried)]
        assert pauses[0] >= RETRY_S
        assert LONGEST_RETRY_S <= pauses[-1] <= LONGEST_RETRY_S + 1
        wire.confirms = True
        await room.fill()
        assert told(wire) == seqs

    run(story)


@pytest.mark.parametrize("form", ["json", "cbor"])
def test_a_broker_that_takes_short_messages_only_gets_what_fits_and_the_rest_is_counted(
    tmp_path: Path, form: str
) -> None:
    async def story() -> None:
        room = Room(tmp_path, wire := SimulatedWire(most_bytes=10_000), format=form)
        kept(room, 10)
        long = json.dumps({"seq": 11, "values": "x" * 20_000}).encode()
        assert len(long) < MAX_RECORD_BYTES
        room.outbox.add(Record(11, long), wire.mono())
        room.outbox.add(Record(12, b'{"seq":12}'), wire.mono())
        await room.fill()
        assert told(wire) == [*range(1, 11), 12]
        assert max(len(payload) for _, _, payload, _ in wire.sent) <= 10_000
        assert room.telemetry.figures()["dropped_total"] == 1

    run(story)


def test_floats_that_cbor_makes_longer_still_fit_a_message(tmp_path: Path) -> None:
    async def story() -> None:
        room = Room(tmp_path, wire := SimulatedWire(), format="cbor")
        for seq in range(1, 31):
            text = json.dumps({"seq": seq, "values": [0.5] * 5000}, separators=(",", ":")).encode()
            room.outbox.add(Record(seq, text), wire.mono())
        await room.fill()
        assert told(wire) == list(range(1, 31))

    run(story)
