"""A console reads a store while a consumer writes into it as fast as it can: neither waits for the other's lock."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from service.fleet import store_sqlite
from service.fleet.store import Filter, open_store
from tests.service.test_store import DAY, NOW, batch, sample

BATCH = 500
LOOKS = 25
WAIT_S = 120.0


def write_on(place: str, begun: Event, end: Event) -> None:
    """A consumer: batches without a pause, now and then what it does between two."""
    opened = open_store(place)
    at = 0
    while not end.is_set():
        opened.write(batch(*(sample(n, ts=NOW + n / 10) for n in range(at, at + BATCH))), NOW + at / 10)
        at += BATCH
        if at % (20 * BATCH) == 0:
            opened.condense(NOW + DAY)
            opened.trim(NOW + at / 10 - 4000, 1 << 40)
            begun.set()
    opened.close()


def test_whoever_reads_waits_for_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(tmp_path / "fleet.sqlite")
    spawn = multiprocessing.get_context("spawn")
    begun, end = spawn.Event(), spawn.Event()
    writer = spawn.Process(target=write_on, args=(place, begun, end))
    writer.start()
    try:
        assert begun.wait(WAIT_S)
        monkeypatch.setattr(store_sqlite, "BUSY_S", 0.0)  # "database is locked" at once, where a lock is in the way
        counts = []
        for _ in range(LOOKS):
            readers = [open_store(place) for _ in range(3)]
            first, second, third = readers
            counts.append(first.count())
            assert len(first.devices(Filter(), NOW + DAY)) == 1
            wanted = {"board": ["temperature_celsius"]}
            latest = second.latest("acme", "pi-1", NOW + DAY)["board"][0]
            assert second.chart("acme", "pi-1", wanted, latest - 900, latest + 1, 400).starts
            assert third.changes("acme", "pi-1", "board", ["action"], latest - 900, latest + 1).rows
            assert third.statuses("acme", "pi-1") == []
            for reader in readers:
                reader.close()
    finally:
        end.set()
        writer.join(WAIT_S)
        writer.kill()
    assert writer.exitcode == 0
    assert len(set(counts)) > LOOKS // 2  # it really wrote beside
