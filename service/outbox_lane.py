"""One lane of the outbox: records in order, in memory first, then in segments; read back from the oldest."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from service.logs import logger
from service.outbox_segment import BATCH_BYTES, DamagedError, Record, Segment, Writer, found

MAX_WAITING_BYTES = 4 * BATCH_BYTES  # in memory while the disk refuses; beyond it the oldest are lost

log = logger("outbox")


class Lane:
    """See the module. Records are taken from the front, and deleted once `confirm` says that they arrived.

    Args:
        folder: where its files are.
        name: of the lane, the beginning of its file names.

    Attributes:
        segments: closed files, oldest first; none before `load`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self.segments: deque[Segment] = deque()
        self._closed_bytes = self._closed_records = 0  # sums over `segments`: they are asked for each second
        self._loaded = False
        self._number = 0
        self._writer: Writer | None = None
        self._waiting: deque[Record] = deque()  # not yet written
        self.waiting_bytes = 0
        self._chunks: Iterator[list[Record]] | None = None  # of the first segment
        self._ready: deque[Record] = deque()  # read, or taken over from memory, and not yet taken
        self._taken: list[Record] = []  # on their way
        self._gone = 0  # records of the first segment that arrived
        self._from_disk = False  # where `_ready` and `_taken` come from
        self._lost = 0

    @property
    def records(self) -> int:
        """Records kept, on the disk and in memory."""
        memory = len(self._waiting) + (0 if self._from_disk else len(self._ready) + len(self._taken))
        written = self._writer.records if self._writer else 0
        return self._closed_records - self._gone + written + memory

    @property
    def disk_bytes(self) -> int:
        """What the lane takes on the disk."""
        return self._closed_bytes + (self._writer.disk_bytes if self._writer else 0)

    def load(self) -> None:
        """Look at what is there, once.

        Raises:
            OSError: the folder cannot be read; `write` tries again.
        """
        if self._loaded:
            return
        for segment in found(self._folder, self._name):
            self._add_segment(segment)
            self._number = segment.number
        self._loaded = True

    # --- in ----------------------------------------------------------------------------------------------------------

    def add(self, record: Record) -> None:
        """Keep a record in memory until `write`."""
        self._waiting.append(record)
        self.waiting_bytes += _size(record)
        while self.waiting_bytes > MAX_WAITING_BYTES:
            self.waiting_bytes -= _size(self._waiting.popleft())
            self._lost += 1

    def write(self, age_s: int) -> None:
        """Write what waits.

        Raises:
            OSError: the disk refuses; what was not written waits on.
        """
        self.load()
        self._put_back()
        while self._waiting:
            batch = self._batch()
            try:
                self._writer = self._writer or self._next_writer()
                self._writer.write(batch, age_s)
            except OSError:
                self._abandon()
                raise
            for record in batch:
                self._waiting.popleft()
                self.waiting_bytes -= _size(record)
            if self._writer.full:
                self.close_segment()

    def close_segment(self) -> None:
        """End the segment that is being written: from now on it can be read.

        Raises:
            OSError: the disk refuses; what was written stays readable.
        """
        if self._writer is None:
            return
        try:
            self._add_segment(self._writer.close())
        except OSError:
            self._abandon()
            raise
        self._writer = None

    def _add_segment(self, segment: Segment) -> None:
        self.segments.append(segment)
        self._closed_bytes += segment.disk_bytes
        self._closed_records += segment.records

    def _batch(self) -> list[Record]:
        batch: list[Record] = []
        room = BATCH_BYTES
        for record in self._waiting:
            room -= _size(record)
            if room < 0:
                break
            batch.append(record)
        return batch

    def _next_writer(self) -> Writer:
        self._number += 1
        return Writer(self._folder, self._name, self._number)

    def _abandon(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        segment = writer.abandon()
        if segment.records:
            self._add_segment(segment)
            return
        with contextlib.suppress(OSError):
            segment.remove()

    def _put_back(self) -> None:
        """What was taken over from memory, and is not on its way, waits again to be written."""
        if not self._from_disk and self._ready:
            self.waiting_bytes += sum(map(_size, self._ready))
            self._waiting.extendleft(reversed(self._ready))
            self._ready.clear()

    # --- out ---------------------------------------------------------------------------------------------------------

    def head(self) -> Record | None:
        """The oldest record that was not taken; `None` at the end, and where `confirm` must come first."""
        if not self._ready and not self._taken:
            self._fetch()
        elif not self._ready and self._from_disk:
            self._read_on()
        return self._ready[0] if self._ready else None

    @property
    def held(self) -> bool:
        """Whether more can only be taken after `confirm`."""
        return bool(self._taken) and not self._ready

    def take(self) -> Record:
        """Take what `head` showed."""
        record = self._ready.popleft()
        self._taken.append(record)
        return record

    def confirm(self) -> None:
        """What was taken arrived: forget it, and its file once the whole of it arrived."""
        if self._from_disk:
            self._gone += len(self._taken)
        self._taken.clear()
        if not self._ready:
            self.head()

    def give_back(self) -> None:
        """What was taken did not arrive: it is the next again."""
        self._ready.extendleft(reversed(self._taken))
        self._taken.clear()

    def _fetch(self) -> None:
        """Find the next records: on the disk, else in memory."""
        while self.segments or self._writer:
            if not self.segments:
                self._close_for_reading()
                continue
            self._from_disk = True
            self._read_on()
            if self._ready:
                return
            self.drop_first()
        self._from_disk = False
        self._ready, self._waiting, self.waiting_bytes = self._waiting, deque(), 0

    def can_drop(self) -> bool:
        """Whether there is anything on the disk to drop; the segment that is being written is closed for it."""
        if not self.segments:
            self._close_for_reading()
        return bool(self.segments)

    def take_lost(self) -> int:
        """Records that are gone for good, since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    def _close_for_reading(self) -> None:
        try:
            self.close_segment()
        except OSError as error:
            log.warning("a segment is read without being synced", why=error.strerror)

    def _read_on(self) -> None:
        first = self.segments[0]
        self._chunks = self._chunks or first.read()
        try:
            self._ready.extend(next(self._chunks, []))
        except DamagedError as error:
            log.warning("a segment is damaged: the rest of it is lost", file=first.path.name, why=str(error))

    def drop_first(self) -> None:
        """Delete the oldest segment; what of it had not arrived is counted as lost."""
        segment = self.segments.popleft()
        self._closed_bytes -= segment.disk_bytes
        self._closed_records -= segment.records
        self._lost += max(0, segment.records - self._gone)
        if self._from_disk:
            self._chunks, self._gone = None, 0
            self._ready.clear()
            self._taken.clear()
        try:
            segment.remove()
        except OSError as error:  # it comes again after the next start: consumers know its messages by their numbers
            log.warning("a segment cannot be removed", file=segment.path.name, why=error.strerror)


def _size(record: Record) -> int:
    return len(record.text) + len(str(record.seq)) + 2
