"""Segment files of the outbox: append-only, compressed while they are written, read back chunk by chunk.

A file starts with `MAGIC`. Then come chunks: a header of four 32-bit numbers, big endian (bytes of the body, its
CRC-32, records in it, bytes of it once inflated), and a body. The bodies of a file are one zlib stream, flushed at the
end of each (Z_SYNC_FLUSH), so that small batches compress as well as a large one. A record is its number in decimal, a
space, the text, a line end. A chunk that a crash cut off, or that rotted, ends what can be read of its file; every
chunk before it stands.

The name of a closed segment says what it holds, so that a start reads a folder and no file:
`<lane>-<number>-<first seq>-<records>-<age of the outbox in seconds>.seg`; one that is being written ends in `.open`.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from agent.durable import sync_folder

MAGIC = b"tmpdob1\n"
BATCH_BYTES = 64 << 10  # records that wait in memory before they are written; a chunk holds no more than one batch
MAX_RECORD_BYTES = 48 << 10  # a batch holds at least one, and so does a backfill message; a board's reading has 1 KB
SEGMENT_BYTES = 1 << 20  # before compression: what one corrupt file costs, and what a crash may send twice
BLOCK_BYTES = 4096  # of common file systems: what a file really takes is a multiple of it
_MAX_CHUNK_BYTES = 2 * BATCH_BYTES  # a larger length in a header is damage, and must not be allocated
_LEVEL = 6  # zlib's own default; 9 saved 2 % of the bytes
_WINDOW_BITS, _MEMORY_LEVEL = (
    13,
    7,
)  # 96 KiB of memory instead of 256 for 1 % more bytes: eight readings to look back at
_HEADER = struct.Struct(">IIII")
_CLOSED = re.compile(r"([a-z]+)-(\d{1,18})-(\d{1,18})-(\d{1,9})-(\d{1,12})\.seg")
_OPEN = re.compile(r"([a-z]+)-(\d{1,18})\.open")


class Record(NamedTuple):
    """One stored message: its sequence number and its text, without a line end."""

    seq: int
    text: bytes


class DamagedError(Exception):
    """A segment cannot be read on from here."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A file that is written no more."""

    path: Path
    number: int
    first_seq: int
    records: int
    age_s: int
    """The outbox's age, in seconds, when the last record came."""
    disk_bytes: int

    def read(self) -> Iterator[list[Record]]:
        """Its records, a chunk at a time.

        Raises:
            DamagedError: the rest is damaged or cannot be read.
        """
        try:
            with self.path.open("rb") as stream:
                yield from _chunks(stream)
        except OSError as error:
            raise DamagedError(error.strerror or str(error)) from error

    def remove(self) -> None:
        """Delete the file; one that is gone already is no error.

        Raises:
            OSError: the disk refuses.
        """
        self.path.unlink(missing_ok=True)


class Writer:
    """The segment that is being written.

    Raises:
        OSError: the disk refuses, here and in every method; after that only `abandon` may be called.
    """

    def __init__(self, folder: Path, lane: str, number: int) -> None:
        self._folder, self._lane, self._number = folder, lane, number
        self._path = folder / f"{lane}-{number:09}.open"
        os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._pack = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL)
        self._first_seq, self._records, self._raw, self._age_s = 0, 0, 0, 0
        try:
            self._written = _append(self._path, MAGIC)
        except OSError:
            self._path.unlink(missing_ok=True)  # a full disk lets an empty file be made, again and again
            raise

    @property
    def disk_bytes(self) -> int:
        """What the file takes on the disk."""
        return _on_disk(self._written)

    @property
    def records(self) -> int:
        """Records written so far."""
        return self._records

    @property
    def full(self) -> bool:
        """Whether it is time for the next one."""
        return self._raw >= SEGMENT_BYTES

    def write(self, batch: list[Record], age_s: int) -> None:
        """Append at most `BATCH_BYTES` of records as one chunk. Not synced: see `close`."""
        raw = b"".join(b"%d %s\n" % record for record in batch)
        body = self._pack.compress(raw) + self._pack.flush(zlib.Z_SYNC_FLUSH)
        header = _HEADER.pack(len(body), zlib.crc32(body), len(batch), len(raw))
        size = _append(self._path, header + body)
        if not self._records:
            self._first_seq = batch[0].seq
        self._written += size
        self._raw, self._records, self._age_s = self._raw + len(raw), self._records + len(batch), age_s

    def close(self) -> Segment:
        """Sync the file and give it its final name."""
        with self._path.open("rb") as stream:
            os.fsync(stream.fileno())
        self._path = self._path.rename(self._folder / _closed_name(self._lane, self.abandon()))
        sync_folder(self._folder)
        return self.abandon()

    def abandon(self) -> Segment:
        """After an error: what is whole stays readable under the name that it has. Never raises."""
        return Segment(self._path, self._number, self._first_seq, self._records, self._age_s, self.disk_bytes)


def found(folder: Path, lane: str) -> list[Segment]:
    """The segments of a lane, oldest first; one that a crash left open is closed, an empty one removed.

    Raises:
        OSError: the folder cannot be read.
    """
    names = [path for path in folder.iterdir() if path.name.startswith(f"{lane}-")]
    closed = [segment for path in names if (segment := _parsed(path))]
    age_s = max((segment.age_s for segment in closed), default=0)  # when a file was left open, nobody wrote down
    opened = [segment for path in names if (segment := _recovered(path, lane, age_s))]
    return sorted([*closed, *opened], key=lambda segment: segment.number)


def _parsed(path: Path) -> Segment | None:
    match = _CLOSED.fullmatch(path.name)
    if match is None:
        return None
    number, first_seq, records, age_s = map(int, match.groups()[1:])
    return Segment(path, number, first_seq, records, age_s, _on_disk(path.stat().st_size))


def _recovered(path: Path, lane: str, age_s: int) -> Segment | None:
    """What a crash left open, up to its last whole chunk."""
    match = _OPEN.fullmatch(path.name)
    if match is None:
        return None
    whole: list[int] = []
    try:
        with path.open("rb") as stream:
            for chunk in _chunks(stream):
                whole += [record.seq for record in chunk]
    except (DamagedError, OSError):
        pass  # the last batch did not reach the disk as a whole
    segment = Segment(path, int(match[2]), whole[0] if whole else 0, len(whole), age_s, _on_disk(path.stat().st_size))
    try:
        if not whole:
            path.unlink()
            return None
        return replace(segment, path=path.rename(path.with_name(_closed_name(lane, segment))))
    except OSError:
        return segment if whole else None  # on a disk that is read-only it can still be sent


def _chunks(stream: BinaryIO) -> Iterator[list[Record]]:
    read = stream.read
    if read(len(MAGIC)) != MAGIC:
        raise DamagedError("not a segment")
    inflate = zlib.decompressobj()
    while header := read(_HEADER.size):
        if len(header) < _HEADER.size:
            raise DamagedError("a chunk is cut off")
        size, checksum, records, raw = _HEADER.unpack(header)
        body = read(size) if max(size, raw) <= _MAX_CHUNK_BYTES else b""
        if not body or len(body) != size or zlib.crc32(body) != checksum:
            raise DamagedError("a chunk does not hold")
        try:
            text = inflate.decompress(body, raw + 1)
        except zlib.error as error:
            raise DamagedError(str(error)) from error
        yield _records(text, records, raw)


def _records(text: bytes, records: int, raw: int) -> list[Record]:
    if len(text) != raw:
        raise DamagedError("a chunk has another length")
    try:
        pairs = [line.split(b" ", 1) for line in text.split(b"\n")[:-1]]
        made = [Record(int(seq), body) for seq, body in pairs]
    except ValueError as error:
        raise DamagedError("a record has no number") from error
    if len(made) != records:
        raise DamagedError("records are missing")
    return made


def _closed_name(lane: str, segment: Segment) -> str:
    return f"{lane}-{segment.number:09}-{segment.first_seq}-{segment.records}-{segment.age_s}.seg"


def _append(path: Path, data: bytes) -> int:
    # Not made anew where somebody took it away: without its beginning nobody could read it.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), "ab") as stream:
        return stream.write(data)


def _on_disk(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES
