"""Records of one generation in block files: written whole, never changed, read through memory maps.

A generation is a folder of blocks. A block is (little-endian):

    magic       8 bytes     TMPFEAT1
    generation 32 bytes     SHA-256 of everything the records of the folder share
    record      4 bytes     length of one record
    count       4 bytes
    index      36 * count   key of each record (32 bytes), CRC-32 of generation, key and record
    check       4 bytes     CRC-32 of all above
    records    record * count

A block appears under its name by a rename after its bytes were synced, so a crash leaves all of it or none. What rots
afterwards is found at each read: the CRC-32 covers the keys as well, so a record can pass only for what it was stored
as. A newer block speaks for a key that an older one has too.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from itertools import count as counting
from pathlib import Path

import numpy as np

from agent.durable import atomic_writer, make_folder, remove_partials
from agent.features_codec import Records

MAGIC = b"TMPFEAT1"
BLOCK_BYTES = 2 << 20  # large enough that syncs are rare, small enough to be held in memory and lost
MAX_RECORD_BYTES = BLOCK_BYTES
MAX_BLOCK_RECORDS = 8192  # bounds the index: 288 KiB
MAX_BLOCKS = 512  # each keeps a file open; processes may have 1024
DIGEST_BYTES = 32
SUFFIX = ".block"
_HEAD = struct.Struct(f"<8s{DIGEST_BYTES}sII")
_ENTRY = struct.Struct(f"<{DIGEST_BYTES}sI")
_CHECK = struct.Struct("<I")


class BrokenBlockError(Exception):
    """A file is not a whole block of this generation; it stays inside this module."""


def record_check(generation: bytes, key: bytes, record: bytes | memoryview) -> int:
    """CRC-32 that ties a record to its key and generation."""
    return zlib.crc32(record, zlib.crc32(generation + key))


class Block:
    """One block file, mapped.

    Attributes:
        keys: of its records, in order.
        size: of the file, in bytes.
        used: when it was read last, in the generation's count of reads.
    """

    def __init__(self, path: Path, generation: bytes, record_bytes: int) -> None:
        """Map and check head and index.

        Raises:
            BrokenBlockError: not a whole block of this generation.
            OSError: the disk refuses.
        """
        self.path, self.used = path, 0
        self._generation, self._record_bytes = generation, record_bytes
        with path.open("rb") as stream:
            self.size = os.fstat(stream.fileno()).st_size
            if self.size < _HEAD.size + _CHECK.size:
                raise BrokenBlockError
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            entries, self._start = self._index()
        except BrokenBlockError:
            self._map.close()
            raise
        self.keys = [key for key, _ in entries]
        self._checks = [check for _, check in entries]

    def _index(self) -> tuple[list[tuple[bytes, int]], int]:
        magic, generation, record_bytes, count = _HEAD.unpack_from(self._map)
        if (magic, generation, record_bytes) != (MAGIC, self._generation, self._record_bytes):
            raise BrokenBlockError
        end = _HEAD.size + count * _ENTRY.size
        start = end + _CHECK.size
        if count > MAX_BLOCK_RECORDS or self.size != start + count * record_bytes:
            raise BrokenBlockError
        if zlib.crc32(self._map[:end]) != _CHECK.unpack_from(self._map, end)[0]:
            raise BrokenBlockError
        return list(_ENTRY.iter_unpack(self._map[_HEAD.size : end])), start

    def read(self, slot: int, out: Records) -> bool:
        """Copy record `slot` to `out` [record_bytes]; whether it is what was stored."""
        start = self._start + slot * self._record_bytes
        out[:] = np.frombuffer(self._map, np.uint8, self._record_bytes, start)
        page = start - start % mmap.PAGESIZE  # the system's cache keeps the pages; this process must not grow with them
        self._map.madvise(mmap.MADV_DONTNEED, page, start + self._record_bytes - page)
        return record_check(self._generation, self.keys[slot], out.data) == self._checks[slot]

    def close(self) -> None:
        """Unmap."""
        self._map.close()


def write_block(path: Path, generation: bytes, records: Mapping[bytes, tuple[bytes, int]]) -> None:
    """Make a block of records of one length, each with its check, by key; readable by its owner alone.

    Raises:
        BoardError: `no-space` or `disk`; there is no file then.
    """
    length = len(next(iter(records.values()))[0])
    head = bytearray(_HEAD.pack(MAGIC, generation, length, len(records)))
    for key, (_, check) in records.items():
        head += _ENTRY.pack(key, check)
    head += _CHECK.pack(zlib.crc32(head))
    with atomic_writer(path) as stream:
        stream.write(head)
        for record, _ in records.values():
            stream.write(record)


class Generation:
    """All records that share a prefix, a boundary, a preprocessing and a storage format. One process writes it.

    Attributes:
        corrupt: records that did not check when read.
        broken_blocks: files that were no whole block when the generation was opened; they are removed.
    """

    def __init__(self, folder: Path, digest: bytes, record_bytes: int, block_bytes: int = BLOCK_BYTES) -> None:
        """Open what an earlier process left, or begin.

        Raises:
            BoardError: `no-space` or `disk`.
            OSError: the disk refuses.
        """
        self.corrupt = self.broken_blocks = 0
        self._folder, self._digest, self._record_bytes = folder, digest, record_bytes
        self._block_records = max(1, min(MAX_BLOCK_RECORDS, block_bytes // record_bytes))
        self._pending: dict[bytes, tuple[bytes, int]] = {}
        self._places: dict[bytes, tuple[Block, int]] = {}
        self._blocks: list[Block] = []
        self._reads = counting(1)
        make_folder(folder)
        remove_partials(folder)
        for path in sorted(folder.glob(f"{'[0-9]' * 8}{SUFFIX}"))[-MAX_BLOCKS:]:
            self._open(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._pending or key in self._places

    @property
    def full_block(self) -> bool:
        """Whether enough records wait to make a block."""
        return len(self._pending) >= self._block_records

    @property
    def too_many_blocks(self) -> bool:
        """Whether a block must go before another comes."""
        return len(self._blocks) >= MAX_BLOCKS

    @property
    def waiting_bytes(self) -> int:
        """Size of the block that the waiting records would make; 0 without any."""
        count = len(self._pending)
        return _HEAD.size + _CHECK.size + count * (_ENTRY.size + self._record_bytes) if count else 0

    def read(self, key: bytes, out: Records) -> bool:
        """Copy the record of `key` to `out`; `False` when there is none or it is corrupt (then it is forgotten)."""
        waiting, check = self._pending.get(key, (None, 0))
        if waiting is not None:
            out[:] = np.frombuffer(waiting, np.uint8)
            if record_check(self._digest, key, out.data) == check:
                return True
            self.corrupt += 1
            del self._pending[key]
            return False
        place = self._places.get(key)
        if place is None:
            return False
        block, slot = place
        block.used = next(self._reads)
        if block.read(slot, out):
            return True
        self.corrupt += 1
        del self._places[key]
        return False

    def add(self, key: bytes, record: Records) -> None:
        """Keep a record in memory until the next block is written."""
        if key not in self:
            data = record.tobytes()
            self._pending[key] = data, record_check(self._digest, key, data)  # now: a bit may flip while it waits

    def write(self) -> None:
        """Write what waits as a block.

        Raises:
            BoardError: `no-space` or `disk`.
            OSError: the disk refuses.
        """
        if not self._pending:
            return
        number = int(self._blocks[-1].path.stem) + 1 if self._blocks else 0
        path = self._folder / f"{number:08d}{SUFFIX}"
        write_block(path, self._digest, self._pending)
        self._pending = {}
        self._open(path)

    def forget_waiting(self) -> None:
        """Drop what was not written."""
        self._pending = {}

    def evict(self) -> bool:
        """Remove the block that was not read for longest; `False` when there is none.

        Raises:
            OSError: the disk refuses.
        """
        if not self._blocks:
            return False
        block = min(self._blocks, key=lambda item: item.used)
        self._drop(block)
        return True

    def close(self) -> None:
        """Unmap all blocks."""
        for block in self._blocks:
            block.close()
        self._blocks, self._places, self._pending = [], {}, {}

    def _open(self, path: Path) -> None:
        try:
            block = Block(path, self._digest, self._record_bytes)
        except BrokenBlockError:
            self.broken_blocks += 1
            path.unlink()
            return
        block.used = next(self._reads)
        self._blocks.append(block)
        self._index(block, enumerate(block.keys))

    def _index(self, block: Block, keys: Iterable[tuple[int, bytes]]) -> None:
        self._places |= {key: (block, slot) for slot, key in keys}

    def _drop(self, block: Block) -> None:
        self._blocks.remove(block)
        self._places = {key: place for key, place in self._places.items() if place[0] is not block}
        block.close()
        block.path.unlink(missing_ok=True)
