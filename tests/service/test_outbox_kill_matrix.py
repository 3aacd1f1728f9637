"""The outbox killed, or refused by the disk, at every step it persists."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from service.outbox import DAY_S, Outbox
from service.outbox_segment import Record
from tests.simulators.kill_matrix import fault_matrix, kill_matrix

BATCHES, EACH = 4, 3
ALL = list(range(1, BATCHES * EACH + 1))


def opened(folder: Path, mono_s: float = 0.0) -> Outbox:
    return Outbox(folder / "outbox", 1 << 20, 30 * DAY_S, mono_s)


def fill(folder: Path) -> None:
    """Two lives of a daemon without a broker; each minute a batch is written."""
    now = 0.0
    for _life in range(2):
        box = opened(folder, now)
        for _batch in range(BATCHES // 2):
            for event in (False, False, True):
                box.add(Record(box.counters.next_seq(), b'{"values":{}}'), now, event=event)
            now += 60.0
            box.tick(now)
        box.close(now)


def empty(folder: Path) -> None:
    """The broker is back and confirms everything, two messages at a time."""
    box = opened(folder)
    while batch := box.take(30):
        box.settle(arrived=len(batch))
    box.close(0.0)


def left(folder: Path) -> list[int]:
    """What comes after the next start, in order; checks that no number is given again."""
    box = opened(folder)
    seqs: list[int] = []
    while batch := box.take(30):
        seqs += [record.seq for record in batch]
        box.settle(arrived=len(batch))
    assert seqs == sorted(set(seqs))
    assert box.counters.next_seq() > max(seqs, default=0)
    return seqs


def by_lane(seqs: list[int]) -> tuple[list[int], list[int]]:
    return [seq for seq in seqs if seq % EACH], [seq for seq in seqs if not seq % EACH]


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    (tmp_path / "filled").mkdir()
    fill(tmp_path / "filled")
    return tmp_path / "filled"


def test_a_kill_while_it_fills_takes_the_newest_only(tmp_path: Path) -> None:
    (tmp_path / "board").mkdir()

    def check(folder: Path) -> None:
        for lane, whole in zip(by_lane(left(folder)), by_lane(ALL), strict=True):
            assert lane == whole[: len(lane)]

    assert kill_matrix(tmp_path / "board", tmp_path / "copies", fill, check) > 20


def test_a_kill_while_it_empties_loses_nothing_that_did_not_arrive(tmp_path: Path, filled: Path) -> None:
    def check(folder: Path) -> None:
        for lane, whole in zip(by_lane(left(folder)), by_lane(ALL), strict=True):
            assert lane == whole[len(whole) - len(lane) :]  # the oldest arrived, the rest is here

    assert kill_matrix(filled, tmp_path / "copies", empty, check) >= 4


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_what_the_disk_refused_once_is_written_the_next_time(tmp_path: Path, error: int) -> None:
    (tmp_path / "board").mkdir()

    def check(folder: Path) -> None:
        # Where the counters could not be written at the end, the second life counts on behind the reserved block.
        assert len(left(folder)) == len(ALL)

    assert fault_matrix(tmp_path / "board", tmp_path / "copies", fill, check, error, lasting=False) > 20


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_more_keeps_what_it_had(tmp_path: Path, error: int) -> None:
    (tmp_path / "board").mkdir()

    def check(folder: Path) -> None:
        for lane, whole in zip(by_lane(left(folder)), by_lane(ALL), strict=True):
            assert lane == whole[: len(lane)]

    assert fault_matrix(tmp_path / "board", tmp_path / "copies", fill, check, error, lasting=True) > 20


def test_a_disk_that_removes_nothing_sends_again_and_loses_nothing(tmp_path: Path, filled: Path) -> None:
    def check(folder: Path) -> None:
        for lane, whole in zip(by_lane(left(folder)), by_lane(ALL), strict=True):
            assert lane == whole[len(whole) - len(lane) :]

    assert fault_matrix(filled, tmp_path / "copies", empty, check, errno.EROFS, lasting=True) >= 4
