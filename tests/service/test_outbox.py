"""The outbox on a real disk: order, bounds, crashes, damage. Time is handed in."""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import outbox_segment
from service.outbox import MAX_SEGMENTS, WRITE_EVERY_S, Outbox
from service.outbox_lane import MAX_WAITING_BYTES
from service.outbox_segment import (
    BATCH_BYTES,
    BLOCK_BYTES,
    MAGIC,
    MAX_RECORD_BYTES,
    DamagedError,
    Record,
    Writer,
    found,
)
from service.outbox_state import SEQ_BLOCK, Counters

MIB = 1 << 20
DAY_S = 86400.0


def opened(folder: Path, mono_s: float = 0.0, *, most_bytes: int = 64 * MIB, most_age_s: float = 30 * DAY_S) -> Outbox:
    return Outbox(folder / "outbox", most_bytes, most_age_s, mono_s)


def record(seq: int, size: int = 40) -> Record:
    return Record(seq, json.dumps({"seq": seq, "pad": "x" * size}).encode())


def noise(seq: int, size: int) -> Record:
    """What zlib cannot make smaller than about half."""
    return Record(seq, json.dumps({"seq": seq, "pad": os.urandom(size // 2).hex()}).encode())


def drained(box: Outbox, most_bytes: int = BATCH_BYTES) -> list[int]:
    """The numbers of everything, each batch confirmed."""
    seqs: list[int] = []
    while batch := box.take(most_bytes):
        assert sum(len(item.text) for item in batch) <= most_bytes or len(batch) == 1
        seqs += [item.seq for item in batch]
        box.settle(arrived=len(batch))
    return seqs


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in (folder / "outbox").iterdir())


def test_what_came_goes_in_order_whatever_lane_it_took_and_wherever_it_waits(tmp_path: Path) -> None:
    box = opened(tmp_path)
    for seq in range(1, 301):
        box.add(record(seq), float(seq), event=seq % 7 == 0)
        box.tick(float(seq))
    assert box.records == 300
    assert drained(box, 500) == list(range(1, 301))
    assert box.records == 0
    assert [path.name for path in (tmp_path / "outbox").iterdir() if path.name != "state.json"] == []


def test_a_short_loss_of_the_broker_costs_no_write(tmp_path: Path) -> None:
    box = opened(tmp_path)
    for seq in range(1, 6):
        box.add(record(seq), 10.0)
    box.tick(WRITE_EVERY_S - 1)
    assert drained(box) == [1, 2, 3, 4, 5]
    assert list((tmp_path / "outbox").iterdir()) == []


def test_what_did_not_arrive_is_taken_again_and_stays_on_the_disk(tmp_path: Path) -> None:
    box = opened(tmp_path)
    for seq in range(1, 4):
        box.add(record(seq), 0.0)
    box.tick(WRITE_EVERY_S)
    assert [item.seq for item in box.take(10)] == [1]
    box.settle(arrived=0)
    assert [item.seq for item in box.take(10_000)] == [1, 2, 3]
    assert on_disk(tmp_path) > 0
    again = opened(tmp_path, 61.0)  # as after a kill: nothing was confirmed
    assert drained(again) == [1, 2, 3]


def test_a_kill_takes_what_was_not_yet_written_and_nothing_else(tmp_path: Path) -> None:
    box = opened(tmp_path)
    for seq in range(1, 100):
        box.add(record(seq), float(seq))
        box.tick(float(seq))
    kept = drained(opened(tmp_path, 100.0))
    assert kept == list(range(1, 61))  # the write at 60 s


def test_a_full_batch_is_written_at_once(tmp_path: Path) -> None:
    box = opened(tmp_path)
    for seq in range(1, 66):
        box.add(record(seq, 1024), 0.0)
    assert len(drained(opened(tmp_path))) >= 60


def test_the_end_of_the_daemon_writes_everything(tmp_path: Path) -> None:
    box = opened(tmp_path)
    box.add(record(1), 0.0)
    assert box.take(100)
    box.close(1.0)  # on its way, but nobody has confirmed it
    assert drained(opened(tmp_path, 2.0)) == [1]


def test_the_oldest_telemetry_goes_first_then_events_and_all_is_counted(tmp_path: Path) -> None:
    box = opened(tmp_path, most_bytes=1 * MIB)
    for seq in range(1, 6001):
        box.add(noise(seq, 2000), 0.0, event=seq % 50 == 0)
        assert on_disk(tmp_path) <= 1 * MIB
    lost = box.counters.dropped_total
    kept = drained(box)
    assert lost + len(kept) + box.counters.dropped_total - lost == 6000
    telemetry = [seq for seq in kept if seq % 50]
    assert telemetry == [seq for seq in range(telemetry[0], 6001) if seq % 50]
    assert [seq for seq in kept if not seq % 50] == list(range(50, 6001, 50))  # no event yet


def test_events_alone_stay_within_the_bound_too(tmp_path: Path) -> None:
    box = opened(tmp_path, most_bytes=1 * MIB)
    for seq in range(1, 2001):
        box.add(noise(seq, 4000), 0.0, event=True)
        assert on_disk(tmp_path) <= 1 * MIB
    kept = drained(box)
    assert kept == list(range(kept[0], 2001))
    assert box.counters.dropped_total == 2000 - len(kept) > 0


def test_age_is_the_daemons_running_time_and_survives_restarts(tmp_path: Path) -> None:
    box = opened(tmp_path, most_age_s=2 * DAY_S)
    for hour in range(24 * 5):
        box.add(record(hour + 1), hour * 3600.0)
        box.tick(hour * 3600.0)
    box.close(24 * 5 * 3600.0)
    box = opened(tmp_path, 0.0, most_age_s=2 * DAY_S)  # the board was off for years: nothing grew older by that
    kept = drained(box)
    assert 24 * 2 <= len(kept) <= 24 * 3 + 1
    assert kept[-1] == 24 * 5
    assert box.counters.dropped_total == 24 * 5 - len(kept)


def test_counters_survive_and_a_sequence_number_never_comes_twice(tmp_path: Path) -> None:
    counters = Counters(tmp_path, 5.0)
    first = [counters.next_seq() for _ in range(3)]
    assert first == [5001, 5002, 5003]
    counters.lose(7)
    counters.save()
    crashed = Counters(tmp_path, 1.0)
    assert crashed.dropped_total == 7
    assert crashed.next_seq() == 5001 + SEQ_BLOCK
    crashed.save(clean=True)
    assert Counters(tmp_path, 1.0).next_seq() == 5002 + SEQ_BLOCK


@pytest.mark.parametrize("text", [b"", b"{}", b"[1]", b'{"next_seq": -1}', b'{"next_seq": NaN}', b"\xff", b"x" * 9999])
def test_a_broken_file_of_counters_is_replaced(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "state.json").write_bytes(text)
    counters = Counters(tmp_path, 2.0)
    assert (counters.next_seq(), counters.dropped_total) == (2001, 0)
    counters.save(clean=True)
    assert Counters(tmp_path, 1.0).next_seq() == 2002


def segment_file(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "outbox").glob("telemetry-*")
    return path


def ten_written_one_by_one(tmp_path: Path) -> Path:
    box = opened(tmp_path)
    for seq in range(1, 11):
        box.add(record(seq), seq * 60.0)
        box.tick(seq * 60.0)
    return segment_file(tmp_path)


def test_a_torn_write_costs_the_torn_chunk(tmp_path: Path) -> None:
    path = ten_written_one_by_one(tmp_path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        path.unlink() if size == 0 else None
        kept = drained(opened(tmp_path, 1.0))
        assert kept == list(range(1, len(kept) + 1))
        assert len(kept) >= 9 * size // len(whole) - 2
        for left in (tmp_path / "outbox").glob("telemetry-*"):
            left.unlink()
        path.write_bytes(whole)
    assert len(drained(opened(tmp_path, 1.0))) == 10


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_costs_that_segment_at_most_and_is_counted(tmp_path: Path, where: int, bit: int) -> None:
    for left in (tmp_path / "outbox").glob("*"):
        left.unlink()
    box = opened(tmp_path)
    for seq in range(1, 31):
        box.add(record(seq), seq * 60.0)
        box.tick(seq * 60.0)
        if seq % 10 == 0:
            box.close(seq * 60.0)
    middle = sorted((tmp_path / "outbox").glob("telemetry-*"))[1]
    data = bytearray(middle.read_bytes())
    data[where % len(data)] ^= 1 << bit
    middle.write_bytes(data)
    box = opened(tmp_path)
    kept = drained(box)
    assert [seq for seq in kept if not 10 < seq <= 20] == [*range(1, 11), *range(21, 31)]
    assert box.counters.dropped_total == 30 - len(kept) > 0


@pytest.mark.parametrize("rubbish", [b"", b"hello", b"tmpdob1\n", b"tmpdob1\n" + b"\xff" * 64])
def test_rubbish_in_the_folder_is_no_harm(tmp_path: Path, rubbish: bytes) -> None:
    box = opened(tmp_path)
    for name in ("telemetry-000000001-1-5-0.seg", "telemetry-000000002.open", "events-x.seg", "notes.txt"):
        (tmp_path / "outbox" / name).write_bytes(rubbish)
    box = opened(tmp_path)
    assert drained(box) == []
    assert box.counters.dropped_total == 5  # the name says that five were there
    box.add(record(9), 0.0)
    box.close(0.0)
    assert drained(opened(tmp_path)) == [9]


def test_a_disk_that_refuses_costs_what_memory_cannot_hold_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = opened(tmp_path)
    box.add(record(1), 0.0)
    box.tick(60.0)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))  # EFBIG: as a full disk, without being root
    try:
        for seq in range(2, 1002):
            box.add(record(seq, 1000), 60.0 + seq)
            box.tick(60.0 + seq)
        assert "large" in box.fault
        lost = box.counters.dropped_total
        assert lost > 0
        assert len(list((tmp_path / "outbox").iterdir())) <= 2  # sixteen times tried, and nothing left behind
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert capsys.readouterr().out.count("cannot be written") == 1
    box.tick(2000.0)
    assert box.fault == ""
    kept = drained(opened(tmp_path, 3000.0))
    assert kept[0] == 1
    assert kept[1:] == list(range(1002 - len(kept[1:]), 1002))
    assert len(kept) + lost == 1001
    assert (len(kept) - 1) * 1000 > MAX_WAITING_BYTES // 2


def test_a_segment_whose_name_could_not_be_synced_is_read_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_folder: Path) -> None:
        raise OSError(errno.EIO, "no")

    box = opened(tmp_path)
    for seq in range(5):
        box.add(record(seq), 0.0)
    box.tick(60.0)
    monkeypatch.setattr(outbox_segment, "sync_folder", refuse)
    assert drained(box) == [0, 1, 2, 3, 4]
    assert box.counters.dropped_total == 0


def test_a_folder_that_cannot_be_made_is_no_end_and_is_made_later(tmp_path: Path) -> None:
    (tmp_path / "outbox").write_text("a file where the folder should be")
    box = opened(tmp_path)
    assert box.fault
    box.add(record(1), 0.0)
    box.tick(60.0)
    assert box.fault
    (tmp_path / "outbox").unlink()
    box.add(record(2), 119.0)
    box.tick(120.0)
    assert box.fault == ""
    assert drained(opened(tmp_path, 121.0)) == [1, 2]


@pytest.mark.parametrize("what", ["the folder", "the file"])
def test_what_somebody_takes_away_costs_what_was_in_it(tmp_path: Path, what: str) -> None:
    box = opened(tmp_path)
    box.add(record(1), 0.0)
    box.tick(60.0)
    if what == "the folder":
        shutil.rmtree(tmp_path / "outbox")
    else:
        segment_file(tmp_path).unlink()
    for seq in range(2, 5):
        box.add(record(seq), 60.0 * seq)
        box.tick(60.0 * seq)
    assert box.fault == ""
    assert drained(box) == [2, 3, 4]
    assert box.counters.dropped_total == 1


def test_many_restarts_leave_no_more_files_than_memory_can_know(tmp_path: Path) -> None:
    opened(tmp_path)
    for number in range(1, MAX_SEGMENTS + 11):
        (tmp_path / "outbox" / f"telemetry-{number:09}-{number}-1-0.seg").write_bytes(b"")
    box = opened(tmp_path)
    assert box.records == MAX_SEGMENTS + 10
    box.tick(60.0)
    assert box.records == MAX_SEGMENTS
    assert box.counters.dropped_total == 10


def test_a_record_too_long_for_any_message_is_counted_as_lost(tmp_path: Path) -> None:
    box = opened(tmp_path)
    box.add(Record(1, b"x" * (MAX_RECORD_BYTES + 1)), 0.0)
    box.add(Record(2, b"x" * MAX_RECORD_BYTES), 0.0)
    assert (drained(box), box.counters.dropped_total) == ([2], 1)


@pytest.mark.parametrize("records", [1, 3])
def test_a_file_that_vanishes_while_it_is_read_is_counted(tmp_path: Path, records: int) -> None:
    box = opened(tmp_path)
    for seq in range(1, records + 1):
        box.add(record(seq), 0.0)
    box.close(0.0)
    box = opened(tmp_path)
    segment_file(tmp_path).unlink()
    assert drained(box) == []
    assert box.counters.dropped_total == records


def test_a_day_without_a_broker_leaves_nothing_in_memory(tmp_path: Path) -> None:
    box, now = opened(tmp_path), 0.0

    def pass_minutes(minutes: int) -> int:
        nonlocal now
        for _ in range(minutes):
            now += 60.0
            box.add(record(int(now), 800), now)
            box.tick(now)
        gc.collect()
        return sys.getallocatedblocks()

    before = pass_minutes(600)
    assert pass_minutes(1440) - before < 300  # of 1440 records, and a segment or two
    assert box.records == 2040


def test_small_batches_compress_as_well_as_large_ones(tmp_path: Path) -> None:
    """The bodies are one stream: else a reading a minute would take half its size."""
    writer = Writer(tmp_path, "telemetry", 1)
    text = json.dumps({f"a_key_of_the_board_{i}": i * 1.5 for i in range(40)}).encode()
    for seq in range(100):
        writer.write([Record(seq, text)], 0)
    segment = writer.close()
    assert segment.disk_bytes <= 2 * BLOCK_BYTES < 100 * len(text) // 8
    assert found(tmp_path, "telemetry") == [segment]


@given(
    raw=st.binary(max_size=300),
    told=st.tuples(st.integers(0, 9), st.integers(0, 400)) | st.just(None),
    rest=st.binary(max_size=40),
)
def test_a_chunk_that_holds_but_says_nonsense_is_damage(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, told: tuple[int, int] | None, rest: bytes
) -> None:
    path = tmp_path_factory.mktemp("chunk") / "telemetry-000000001-1-3-0.seg"
    pack = zlib.compressobj()
    body = pack.compress(raw) + pack.flush(zlib.Z_SYNC_FLUSH)
    records, size = told or (raw.count(b"\n"), len(raw))
    path.write_bytes(MAGIC + struct.pack(">IIII", len(body), zlib.crc32(body), records, size) + body + rest)
    (segment,) = found(path.parent, "telemetry")
    try:
        texts = [item for chunk in segment.read() for item in chunk]
    except DamagedError:
        return
    assert b"".join(b"%d %s\n" % item for item in texts).count(b"\n") == raw.count(b"\n")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.sampled_from(["add", "add", "add", "event", "big", "write", "take", "confirm", "refuse", "end", "kill"]),
        max_size=60,
    )
)
def test_any_course_loses_nothing_but_what_a_kill_takes(tmp_path: Path, steps: list[str]) -> None:
    for left in (tmp_path / "outbox").glob("*"):
        left.unlink()
    box, seq, now = opened(tmp_path), 0, 0.0
    written: set[int] = set()
    waiting: set[int] = set()
    arrived: set[int] = set()
    for step in steps:
        now += 61.0
        match step:
            case "add" | "event" | "big":
                seq += 1
                waiting.add(seq)
                box.add(record(seq, 20_000 if step == "big" else 40), now, event=step == "event")
            case "write":
                box.tick(now)
                written, waiting = written | waiting, set()
            case "take" | "confirm" | "refuse":
                batch = box.take(30_000)
                seqs = [item.seq for item in batch]
                assert seqs == sorted(seqs)
                arrived |= set(seqs) if step == "confirm" else set()
                box.settle(arrived=len(batch) if step == "confirm" else 0)
            case "end":
                box.close(now)
                written, waiting = written | waiting, set()
                box = opened(tmp_path, now)
            case "kill":
                waiting.clear()
                box = opened(tmp_path, now)
    last = set(drained(box))
    assert written | waiting <= arrived | last
    assert box.counters.dropped_total == 0
    assert box.records == 0


def test_a_real_kill_loses_no_more_than_the_last_minute(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from service.outbox import Outbox\n"
        "from service.outbox_segment import Record\n"
        "box = Outbox(Path(sys.argv[1]) / 'outbox', 1 << 26, 1e9, 0.0)\n"
        "for seq in range(1, 1000):\n"
        "    box.add(Record(seq, b'{}'), seq * 10.0)\n"
        "    box.tick(seq * 10.0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -9
    assert drained(opened(tmp_path)) == list(range(1, 997))
