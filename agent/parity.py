"""Reed-Solomon parity for stored files, as docs/parity-format.md says: damaged blocks are known by their hashes.

Blocks are worked on a strip of columns at a time, so the memory does not grow with the file.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from agent.durable import atomic_writer, disk_error
from agent.errors import ArtifactError
from agent.reed_solomon import MAX_WIDTH, Combiner, generator, solution

MAX_DATA_BLOCKS = 228  # with their parity they fit the 255 symbols of the code and one header of 8 KiB
DATA_BLOCKS_PER_PARITY_BLOCK = 10
SECTOR_BYTES = 512  # no storage loses less
MAX_FILE_BYTES = 1 << 32  # four times the largest checkpoint
HEADER_BYTES = 8192
MAGIC = b"TEMPRS1\n"
HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a file of `length` bytes (1 to `MAX_FILE_BYTES`) is divided."""

    length: int

    @property
    def block_bytes(self) -> int:
        """A whole number of sectors."""
        return -(-self.length // (MAX_DATA_BLOCKS * SECTOR_BYTES)) * SECTOR_BYTES

    @property
    def data_blocks(self) -> int:
        """The last one is filled up with zeros."""
        return -(-self.length // self.block_bytes)

    @property
    def parity_blocks(self) -> int:
        """As many blocks of data and parity together may be lost."""
        return -(-self.data_blocks // DATA_BLOCKS_PER_PARITY_BLOCK) + 1

    @property
    def parity_file_bytes(self) -> int:
        """Length of the parity file."""
        return 2 * HEADER_BYTES + self.parity_blocks * self.block_bytes


class Header(NamedTuple):
    """What a parity file says of its file."""

    geometry: Geometry
    sha256: str
    hashes: tuple[bytes, ...]
    """Of the data blocks, then of the parity blocks."""


def write_parity(path: Path, parity: Path, sha256: str, breathe: Callable[[], None]) -> None:
    """Make the parity file of a file that was verified; a parity file before is replaced in one rename.

    Args:
        path: the file, 1 byte to 4 GiB.
        parity: where its parity goes; the folder must exist.
        sha256: what the file was verified to be.
        breathe: called between two blocks.

    Raises:
        ArtifactError: `changed`: the file is another one by now; `too-long`; nothing was written.
        BoardError: `no-space` or `disk`; nothing was written.
    """
    with _opened(path) as stream:
        geometry = Geometry(_bounded(os.fstat(stream.fileno()).st_size, path))
        whole, hashes = _hash_blocks(stream, geometry, breathe)
        if whole != sha256:
            raise _changed(path)
        combine = Combiner(generator(geometry.data_blocks, geometry.parity_blocks))
        again = [hashlib.sha256() for _ in range(geometry.data_blocks)]
        made = [hashlib.sha256() for _ in range(geometry.parity_blocks)]
        with atomic_writer(parity) as out:
            for at, width in _strips(geometry):
                combine.begin(width)
                for block, digest in enumerate(again):
                    piece = _pread(stream, block * geometry.block_bytes + at, width)
                    digest.update(piece)
                    combine.add(block, np.frombuffer(piece, np.uint8))
                for row, line in enumerate(combine.lines()):
                    out.seek(HEADER_BYTES + row * geometry.block_bytes + at)
                    out.write(line.data)
                    made[row].update(line.data)
                breathe()
            if [digest.digest() for digest in again] != hashes:  # else the parity would be that of something unverified
                raise _changed(path)
            header = _header(Header(geometry, sha256, (*hashes, *(digest.digest() for digest in made))))
            for place in (0, geometry.parity_file_bytes - HEADER_BYTES):
                out.seek(place)
                out.write(header)


def read_header(parity: Path) -> Header:
    """The header of a parity file, from its whole copy.

    Raises:
        FileNotFoundError: there is none.
        ArtifactError: `parity-broken`: neither copy is whole, or the file has another length.
        BoardError: the disk fails.
    """
    with _opened(parity) as stream:
        return _read_headers(stream, parity)[0]


def parity_is_whole(parity: Path, sha256: str, breathe: Callable[[], None]) -> bool:
    """Whether every byte of the parity file is as it was written, and it belongs to a file with this hash.

    Raises:
        BoardError: the disk fails.
    """
    try:
        with _opened(parity) as stream:
            header, copies = _read_headers(stream, parity)
            whole = not _damaged_parity(stream, header, breathe)
    except (ArtifactError, FileNotFoundError):
        return False
    return whole and copies == 2 and header.sha256 == sha256  # noqa: PLR2004 - the header is written twice


def repair(path: Path, parity: Path, sha256: str, breathe: Callable[[], None]) -> int:
    """Rebuild the damaged blocks of a file; the whole replaces it in one rename, with the permissions it had.

    Args:
        path: the damaged file; a missing one counts as empty.
        parity: its parity file.
        sha256: the hash somebody vouches for, in hexadecimal.
        breathe: called between two blocks.

    Returns:
        Number of blocks rebuilt.

    Raises:
        ArtifactError: `parity-broken`; `parity-other`: of a file with another hash; `parity-exceeded`: more damage than
            it can mend. The file is as it was.
        BoardError: `no-space` or `disk`; the file is as it was.
    """
    try:
        with _opened(parity) as stream, _opened_or_empty(path) as damaged:
            header, _ = _read_headers(stream, parity)
            if header.sha256 != sha256:
                raise ArtifactError("parity is of another file", where=str(parity), reason="parity-other")
            return _Repair(damaged, stream, header, breathe).write(path)
    except FileNotFoundError as error:
        raise ArtifactError("there is no parity file", where=str(parity), reason="parity-broken") from error


class _Repair:
    def __init__(self, damaged: io.FileIO, parity: io.FileIO, header: Header, breathe: Callable[[], None]) -> None:
        self._damaged, self._parity, self._header, self._breathe = damaged, parity, header, breathe
        self._geometry = header.geometry

    def write(self, path: Path) -> int:
        geometry, header = self._geometry, self._header
        _, found = _hash_blocks(self._damaged, geometry, self._breathe)
        lost = [block for block, digest in enumerate(found) if digest != header.hashes[block]]
        broken = _damaged_parity(self._parity, header, self._breathe)
        rows = [row for row in range(geometry.parity_blocks) if row not in broken][: len(lost)]
        if len(rows) < len(lost):
            raise ArtifactError(
                f"{len(lost)} of {geometry.data_blocks} blocks are damaged, the parity can mend {len(rows)}",
                where=str(path),
                reason="parity-exceeded",
            )
        mode = os.fstat(self._damaged.fileno()).st_mode & 0o777 if path.exists() else 0o600
        with atomic_writer(path, mode) as out:
            self._copy(out, set(lost))
            if lost:
                self._rebuild(out, lost, rows)
            out.flush()
            if _sha256_of(out.fileno(), geometry.length) != header.sha256:
                raise ArtifactError("the rebuilt file is not the one its parity is of", where=str(path))
        return len(lost)

    def _copy(self, out: BinaryIO, lost: set[int]) -> None:
        geometry = self._geometry
        out.truncate(geometry.length)
        for block in range(geometry.data_blocks):
            if block in lost:
                continue
            for at, width in _strips(geometry):
                self._put(out, block, at, _pread(self._damaged, block * geometry.block_bytes + at, width))
            self._breathe()

    def _rebuild(self, out: BinaryIO, lost: list[int], rows: list[int]) -> None:
        """What the good blocks lack to the parity is the share of the lost ones: solve for it."""
        geometry = self._geometry
        share = Combiner(generator(geometry.data_blocks, geometry.parity_blocks)[rows])
        solve = Combiner(solution(geometry.data_blocks, geometry.parity_blocks, lost, rows))
        known = sorted(set(range(geometry.data_blocks)) - set(lost))
        for at, width in _strips(geometry):
            share.begin(width)
            for block in known:
                piece = _pread(self._damaged, block * geometry.block_bytes + at, width)
                share.add(block, np.frombuffer(piece, np.uint8))
            solve.begin(width)
            for index, (row, line) in enumerate(zip(rows, share.lines(), strict=True)):
                kept = _pread(self._parity, HEADER_BYTES + row * geometry.block_bytes + at, width)
                solve.add(index, line ^ np.frombuffer(kept, np.uint8))
            for block, line in zip(lost, solve.lines(), strict=True):
                self._put(out, block, at, line.tobytes())
            self._breathe()

    def _put(self, out: BinaryIO, block: int, at: int, piece: bytes) -> None:
        start = block * self._geometry.block_bytes + at
        out.seek(start)
        out.write(piece[: max(0, self._geometry.length - start)])


def _header(header: Header) -> bytes:
    geometry = header.geometry
    body = MAGIC + geometry.length.to_bytes(8, "big") + bytes.fromhex(header.sha256) + b"".join(header.hashes)
    body = body.ljust(HEADER_BYTES - HASH_BYTES, b"\0")
    return body + hashlib.sha256(body).digest()


def _read_headers(stream: io.FileIO, where: Path) -> tuple[Header, int]:
    """The header, and how many of its two copies are whole."""
    size = os.fstat(stream.fileno()).st_size
    copies = [_parse(_pread(stream, place, HEADER_BYTES)) for place in (0, max(0, size - HEADER_BYTES))]
    whole = [header for header in copies if header is not None and header.geometry.parity_file_bytes == size]
    if not whole:
        raise ArtifactError("parity file is broken", where=str(where), reason="parity-broken")
    return whole[0], len(whole)


def _parse(data: bytes) -> Header | None:
    body, digest = data[:-HASH_BYTES], data[-HASH_BYTES:]
    length = int.from_bytes(body[8:16], "big")
    if body[:8] != MAGIC or hashlib.sha256(body).digest() != digest or not 1 <= length <= MAX_FILE_BYTES:
        return None
    geometry = Geometry(length)
    count = geometry.data_blocks + geometry.parity_blocks
    hashes = tuple(body[48 + HASH_BYTES * i : 48 + HASH_BYTES * (i + 1)] for i in range(count))
    return Header(geometry, body[16:48].hex(), hashes)


def _hash_blocks(stream: io.FileIO, geometry: Geometry, breathe: Callable[[], None]) -> tuple[str, list[bytes]]:
    """SHA-256 of the first `length` bytes, and of each block filled up with zeros."""
    whole, hashes = hashlib.sha256(), []
    for block in range(geometry.data_blocks):
        digest = hashlib.sha256()
        for at, width in _strips(geometry):
            start = block * geometry.block_bytes + at
            piece = _pread(stream, start, width)
            digest.update(piece)
            whole.update(piece[: max(0, geometry.length - start)])
        hashes.append(digest.digest())
        breathe()
    return whole.hexdigest(), hashes


def _damaged_parity(stream: io.FileIO, header: Header, breathe: Callable[[], None]) -> set[int]:
    """Parity blocks that are not what they were."""
    geometry, damaged = header.geometry, set()
    for row in range(geometry.parity_blocks):
        digest = hashlib.sha256()
        for at, width in _strips(geometry):
            digest.update(_pread(stream, HEADER_BYTES + row * geometry.block_bytes + at, width))
        if digest.digest() != header.hashes[geometry.data_blocks + row]:
            damaged.add(row)
        breathe()
    return damaged


def _strips(geometry: Geometry) -> Iterator[tuple[int, int]]:
    """Offset and width of each strip of columns of a block."""
    for at in range(0, geometry.block_bytes, MAX_WIDTH):
        yield at, min(MAX_WIDTH, geometry.block_bytes - at)


def _pread(stream: io.FileIO, offset: int, length: int) -> bytes:
    """`length` bytes; zeros beyond the end, and where the medium gives none (EIO): the hash tells them from data."""
    parts, got = [], 0
    while got < length:
        try:
            part = os.pread(stream.fileno(), length - got, offset + got)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
        got += len(part)
    return b"".join(parts).ljust(length, b"\0")


def _sha256_of(descriptor: int, length: int) -> str:
    digest, at = hashlib.sha256(), 0
    while part := os.pread(descriptor, min(1 << 20, length - at), at):
        digest.update(part)
        at += len(part)
    return digest.hexdigest()


def _opened(path: Path) -> io.FileIO:
    try:
        return path.open("rb", buffering=0)  # read by offset only
    except FileNotFoundError:
        raise
    except OSError as error:
        raise disk_error(error, path) from error


def _opened_or_empty(path: Path) -> io.FileIO:
    try:
        return _opened(path)
    except FileNotFoundError:
        return _opened(Path(os.devnull))


def _bounded(length: int, path: Path) -> int:
    if not 1 <= length <= MAX_FILE_BYTES:
        raise ArtifactError(f"a file of {length} bytes gets no parity", where=str(path), reason="too-long")
    return length


def _changed(path: Path) -> ArtifactError:
    return ArtifactError("the file is not the one that was verified", where=str(path), reason="changed")
