"""The file of an agent release, written and read: a gzip of plain ustar entries, regular files and nothing else.

    release.json            what it is, with length and SHA-256 of every file: see `agent.agent_slots.SlotRelease`
    site/<package>/<file>   as they lie in the slot

A reader of our own instead of tarfile: that one understands links, devices, sparse files and four ways to say a name,
and each of them would have to be refused. Nothing here trusts the bytes, though their hash was signed.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from agent.agent_slots import MAX_FILES, MAX_SITE_BYTES, RELEASE, SITE
from agent.errors import ArtifactError, SpecError

BLOCK = 512
MAX_FILE_BYTES = 64 << 20  # onnxruntime's largest library has 20 MB
MAX_ARCHIVE_BYTES = 128 << 20
_PATH = re.compile(r"[A-Za-z0-9_.+@~-]{1,100}(/[A-Za-z0-9_.+@~-]{1,100}){0,11}")  # 12 parts: onnxruntime has 8
_READ_BYTES = 64 << 10
_GZIP = 31  # window bits that make zlib read a gzip header and trailer, once
_OCTAL = re.compile(rb"([0-7]{1,11})[ \0]*")


def is_path(path: str) -> bool:
    """Whether a release may hold a file of this name: relative, plain characters, no way up."""
    inside = path == RELEASE or path.startswith(f"{SITE}/")
    return inside and _PATH.fullmatch(path) is not None and not {".", ".."} & set(path.split("/"))


@dataclass(frozen=True, slots=True)
class Entry:
    """One file in an archive; its pieces must be read before the next entry is asked for."""

    path: str
    length: int
    pieces: Iterator[bytes]

    def whole(self, max_bytes: int) -> bytes:
        """All of it.

        Raises:
            ArtifactError: `release-broken`: longer than `max_bytes`, or cut off.
        """
        if self.length > max_bytes:
            raise broken(f"{self.path} has {self.length} bytes, at most {max_bytes} are read")
        return b"".join(self.pieces)


def broken(what: str) -> ArtifactError:
    """The archive is not what a release is."""
    return ArtifactError(what, where="release", fix="Build and publish it anew", reason="release-broken")


def write_archive(out: BinaryIO, files: Mapping[str, bytes]) -> None:
    """The archive; the same files give the same bytes with the same zlib.

    Raises:
        SpecError: a name that no release may hold, or too much.
        OSError: the disk fails.
    """
    _check(files)
    level = zlib.compressobj(9, zlib.DEFLATED, _GZIP)  # writes no name and no time into the header
    with tarfile.open(fileobj=_Squeezed(out, level), mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(files, key=lambda name: (name != RELEASE, name)):
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(files[path]), 0o644
            tar.addfile(member, io.BytesIO(files[path]))
    out.write(level.flush())


class _Squeezed(io.RawIOBase):
    """A stream that compresses what is written to it."""

    def __init__(self, out: BinaryIO, level: zlib._Compress) -> None:
        self._out, self._level = out, level

    def write(self, data: bytes) -> int:  # type: ignore[override]  # tarfile writes bytes
        self._out.write(self._level.compress(data))
        return len(data)


def _check(files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        if not is_path(path) or len(path) > 255:  # noqa: PLR2004 - what ustar can say: 155 + 1 + 99
            raise SpecError("a release holds no file of this name", where=path[:300], fix="Leave the package out")
        if len(data) > MAX_FILE_BYTES:
            raise SpecError(f"has {len(data)} bytes, at most {MAX_FILE_BYTES} go", where=path)
    total = sum(map(len, files.values()))
    if len(files) > MAX_FILES + 1 or total > MAX_SITE_BYTES:
        what = f"{len(files)} files of {total} bytes, at most {MAX_FILES} of {MAX_SITE_BYTES} go"
        raise SpecError(what, fix="Bundle fewer packages: what a board has already need not come again")


def entries(stream: BinaryIO) -> Iterator[Entry]:
    """The archive's files in order.

    Raises:
        ArtifactError: `release-broken`: anything but plain files with names that may be, or more than the bounds.
        OSError: the disk fails.
    """
    inflated = _Inflated(stream)
    number = total = 0
    while (header := inflated.read(BLOCK)) != bytes(BLOCK):
        number += 1
        path, length = _header(header)
        total += length
        if number > MAX_FILES + 1 or total > MAX_SITE_BYTES:
            raise broken(f"more than {MAX_FILES} files or {MAX_SITE_BYTES} bytes")
        left = [length]
        yield Entry(path, length, inflated.pieces(left))
        if left[0]:
            raise broken(f"{path} was not read")
        if any(inflated.read(-length % BLOCK)):
            raise broken("something lies behind a file")
    inflated.end()


def _header(block: bytes) -> tuple[str, int]:
    """Name and length of a plain file."""
    if block[257:265] != b"ustar\x0000" or block[156:157] != b"0":
        raise broken("an entry is no plain file")
    unsigned = block[:148] + b" " * 8 + block[156:]
    if _number(block[148:156]) != sum(unsigned):
        raise broken("an entry's header is damaged")
    length = _number(block[124:136])
    if length > MAX_FILE_BYTES:
        raise broken(f"a file has {length} bytes, at most {MAX_FILE_BYTES} are taken")
    name, prefix = _text(block[:100]), _text(block[345:500])
    path = f"{prefix}/{name}" if prefix else name
    if not is_path(path):
        raise broken(f"{path[:200]!r} is no name of a file in a release")
    return path, length


def _number(field: bytes) -> int:
    found = _OCTAL.fullmatch(field)
    if found is None:
        raise broken("a number in a header is none")
    return int(found[1], 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii", errors="replace")


class _Inflated:
    """The decompressed bytes, as many as are asked for and never more in memory than a few pieces."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._inflate, self._rest = stream, zlib.decompressobj(_GZIP), b""

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        while len(self._rest) < count:
            self._more()
        found, self._rest = self._rest[:count], self._rest[count:]
        return found

    def pieces(self, left: list[int]) -> Iterator[bytes]:
        """`left[0]` bytes, counted down."""
        while left[0]:
            piece = self.read(min(left[0], _READ_BYTES))
            left[0] -= len(piece)
            yield piece

    def end(self) -> None:
        """Nothing but padding follows."""
        padding = 0
        while not self._inflate.eof:
            padding += len(self._rest)
            if any(self._rest) or padding > tarfile.RECORDSIZE:
                raise broken("something lies behind the last file")
            self._rest = b""
            self._more()
        if any(self._rest) or self._inflate.unused_data or self._stream.read(1):
            raise broken("something lies behind the archive")

    def _more(self) -> None:
        if self._inflate.eof:
            raise broken("it is cut off")
        data = self._inflate.unconsumed_tail or self._stream.read(_READ_BYTES)
        try:
            found = self._inflate.decompress(data, _READ_BYTES)
        except zlib.error as error:
            raise broken("it is no gzip file, or a damaged one") from error
        if not data and not found and not self._inflate.eof:
            raise broken("it is cut off")
        self._rest += found
