"""Telemetry that waits for the broker: bounded by bytes and age, on the disk, in the order in which it was made.

Two lanes: what is told once a period, and what tells of an event. When the room is full, the oldest period goes before
any event. What is lost is counted, also over restarts.

Records wait in memory for at most `WRITE_EVERY_S`, or until a batch is full: that much a kill takes. A segment is
synced when it is full, so a power cut may also take what the kernel had not yet written of the last one.
"""

from __future__ import annotations

from pathlib import Path

from agent.durable import make_folder
from agent.errors import BoardError
from service.logs import logger
from service.outbox_lane import Lane
from service.outbox_segment import BATCH_BYTES, BLOCK_BYTES, MAX_RECORD_BYTES, Record
from service.outbox_state import STATE_BYTES, Counters

WRITE_EVERY_S = 60.0  # each write costs the flash a page or two; 1440 a day are nothing to it
DAY_S = 86400
MAX_SEGMENTS = 4000  # in each lane, 0.3 KB of memory each; a day fills one, a restart begins another
SEGMENT_S = DAY_S  # a segment is closed after a day of the daemon's running, so that its name can tell the age

log = logger("outbox")


class Outbox:
    """See the module. Times are those of the monotonic clock, seconds.

    Args:
        folder: made when it is missing; nobody else writes there.
        most_bytes: of disk, whole blocks counted.
        most_age_s: seconds of the daemon's running after which a record is dropped. The wall clock may be set to any
            time and cannot tell an age.
        mono_s: now.

    Attributes:
        counters: what is counted over restarts.
        fault: why the disk takes nothing; empty while it does.
    """

    def __init__(self, folder: Path, most_bytes: int, most_age_s: float, mono_s: float) -> None:
        self._folder, self._most_bytes, self._most_age_s = folder, most_bytes, most_age_s
        self.fault = ""
        self.counters = Counters(folder, mono_s)
        self._lanes = (Lane(folder, "telemetry"), Lane(folder, "events"))
        self._written_s = self._opened_s = self._started_s = mono_s
        try:
            self._prepare()
        except (OSError, BoardError) as error:
            self._complain(error)
        ages = [segment.age_s for lane in self._lanes for segment in lane.segments]
        self._age_before = max(ages, default=0)

    def _prepare(self) -> None:
        """Make the folder, also where somebody took it away, and look once at what is there."""
        make_folder(self._folder)
        for lane in self._lanes:
            lane.load()

    # --- in ----------------------------------------------------------------------------------------------------------

    def add(self, record: Record, mono_s: float, *, event: bool = False) -> None:
        """Keep a record; one that is too long is counted as lost."""
        if len(record.text) > MAX_RECORD_BYTES:
            self.counters.lose(1)
            return
        lane = self._lanes[event]
        if not lane.waiting_bytes and not self.records:
            self._opened_s = mono_s
        lane.add(record)
        if lane.waiting_bytes >= BATCH_BYTES and not self.fault:
            self._write(mono_s)

    def tick(self, mono_s: float) -> None:
        """Write what is due; call about once a second."""
        self._count_lost()
        if mono_s - self._written_s < WRITE_EVERY_S:
            return
        self._write(mono_s)

    def close(self, mono_s: float) -> None:
        """Write everything."""
        for lane in self._lanes:
            lane.give_back()
        self._write(mono_s, closing=True)
        self.counters.save(clean=True)

    def _write(self, mono_s: float, *, closing: bool = False) -> None:
        self._written_s = mono_s
        age_s = self._age(mono_s)
        over = closing or mono_s - self._opened_s >= SEGMENT_S
        try:
            if self.fault:
                self._prepare()
            for lane in self._lanes:
                lane.write(age_s)
                if over:
                    lane.close_segment()
        except (OSError, BoardError) as error:
            self._complain(error)
        else:
            self.fault = ""
        if over:
            self._opened_s = mono_s
        self._bound(age_s)
        self.counters.save()

    def _bound(self, age_s: int) -> None:
        """Drop the oldest until what is left fits: telemetry first, then events; and what is too old."""
        for lane in self._lanes:
            while lane.segments and age_s - lane.segments[0].age_s > self._most_age_s:
                lane.drop_first()
            while len(lane.segments) > MAX_SEGMENTS:
                lane.drop_first()
            while self.disk_bytes + self._headroom() > self._most_bytes and lane.can_drop():
                lane.drop_first()
        self._count_lost()

    def _count_lost(self) -> None:
        self.counters.lose(sum(lane.take_lost() for lane in self._lanes))

    def _headroom(self) -> int:
        """What the next write may add before the bound is looked at again: a batch and a new file for each lane."""
        return len(self._lanes) * (BATCH_BYTES + BLOCK_BYTES)

    def _age(self, mono_s: float) -> int:
        return self._age_before + int(mono_s - self._started_s)

    def _complain(self, error: OSError | BoardError) -> None:
        why = str(error)
        if why != self.fault:
            log.error("the outbox cannot be written: a little waits in memory", folder=str(self._folder), why=why)
        self.fault = why

    # --- out ---------------------------------------------------------------------------------------------------------

    @property
    def records(self) -> int:
        """Records that wait."""
        return sum(lane.records for lane in self._lanes)

    @property
    def disk_bytes(self) -> int:
        """What the outbox takes on the disk."""
        return sum(lane.disk_bytes for lane in self._lanes) + STATE_BYTES

    def take(self, most_bytes: int) -> list[Record]:
        """The oldest records, at least one if there is any, else as many as fit; settle them before the next call."""
        batch: list[Record] = []
        while (lane := self._oldest()) is not None:
            head = lane.head()
            if head is None or (batch and len(head.text) + 1 > most_bytes):
                break
            most_bytes -= len(head.text) + 1
            batch.append(lane.take())
        self._count_lost()
        return batch

    def settle(self, *, arrived: int, lost: int = 0) -> None:
        """What was taken is done with, or comes again with the next `take`.

        Args:
            arrived: how many of it arrived; 0 and no `lost`: it comes again.
            lost: how many can never arrive.
        """
        for lane in self._lanes:
            if arrived or lost:
                lane.confirm()
            else:
                lane.give_back()
        self._count_lost()
        self.counters.backfilled_total += arrived
        self.counters.lose(lost)

    def _oldest(self) -> Lane | None:
        heads = [(head.seq, lane) for lane in self._lanes if (head := lane.head())]
        if any(lane.held for lane in self._lanes):
            return None
        return min(heads, key=lambda item: item[0])[1] if heads else None
