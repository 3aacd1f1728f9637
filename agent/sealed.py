"""Sealed files: chunked AES-256-GCM with a key per file, as docs/sealed-format.md says.

Compatible with Tink's AES256-GCM-HKDF-1MB streaming AEAD.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import BinaryIO, NamedTuple, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.errors import SealedFileError
from agent.strict_json import canonical

KEY_BYTES = 32
SALT_BYTES = 32
PREFIX_BYTES = 7
TAG_BYTES = 16
HEADER_BYTES = 1 + SALT_BYTES + PREFIX_BYTES
SEGMENT_BYTES = 1 << 20
FIRST_PLAINTEXT_BYTES = SEGMENT_BYTES - HEADER_BYTES - TAG_BYTES
NEXT_PLAINTEXT_BYTES = SEGMENT_BYTES - TAG_BYTES
MAX_SEGMENTS = 4096  # 4 GiB: far below the counter's 2^32, more than any board holds


class Sealed(NamedTuple):
    """What was written: SHA-256 of the sealed bytes in hexadecimal, and how many there are."""

    sha256: str
    length: int


@dataclass(frozen=True, slots=True)
class Binding:
    """What a sealed file is bound to; a file opened under another binding does not verify."""

    name: str
    version: str
    plaintext_sha256: str

    def associated_data(self) -> bytes:
        """The bytes that enter the key derivation."""
        return canonical(
            {
                "format": "temperd-sealed-1",
                "name": self.name,
                "plaintext_sha256": self.plaintext_sha256,
                "version": self.version,
            }
        )


def sealed_length(plaintext_length: int) -> int:
    """Length of the sealed file for a plaintext of this length."""
    beyond = max(0, plaintext_length - FIRST_PLAINTEXT_BYTES)
    segments = 1 + -(-beyond // NEXT_PLAINTEXT_BYTES)
    return HEADER_BYTES + plaintext_length + segments * TAG_BYTES


def seal(source: BinaryIO, target: BinaryIO, key: bytes, binding: Binding) -> Sealed:
    """Seal all of `source` into `target`, in the memory of three segments.

    Raises:
        ValueError: the key has not 32 bytes.
        SealedFileError: `source` is not the bound plaintext (`sealed-plaintext-hash`) or has more than 4096 segments;
            what was written to `target` must be thrown away.
    """
    salt, prefix = os.urandom(SALT_BYTES), os.urandom(PREFIX_BYTES)
    cipher = _file_cipher(key, salt, binding)
    header = bytes([HEADER_BYTES]) + salt + prefix
    target.write(header)
    length = HEADER_BYTES
    rooms = _two_rooms()
    plain = hashlib.sha256()
    with _Hash() as written:
        written.update(header)
        for index, (segment, last) in enumerate(_segments(source, FIRST_PLAINTEXT_BYTES, NEXT_PLAINTEXT_BYTES)):
            plain.update(segment)
            closed = rooms[index % 2][: len(segment) + TAG_BYTES]
            cipher.encrypt_into(_nonce(prefix, index, last=last), segment, None, closed)
            written.update(closed)
            target.write(closed)
            length += len(closed)
        _check_whole(plain.hexdigest(), binding)
        return Sealed(written.hexdigest(), length)


def unseal(
    source: BinaryIO, key: bytes, binding: Binding, max_bytes: int, obey: Callable[[], object] = lambda: None
) -> bytes:
    """The whole plaintext, in memory, verified to its last byte; `obey` is called after each segment and may raise.

    Raises:
        SealedFileError: see `unseal_stream`; `sealed-too-long` when there are more than `max_bytes`.
    """
    # Its buffer is whole from the beginning, as growing may copy it, and getvalue() gives it away without a copy:
    # the model is held once.
    whole = io.BytesIO(bytes(min(_length_left(source), max_bytes)))
    for segment in unseal_stream(source, key, binding):
        if whole.tell() + len(segment) > max_bytes:
            raise SealedFileError(f"sealed file holds more than {max_bytes} bytes", reason="sealed-too-long")
        whole.write(segment)
        obey()
    whole.truncate()
    return whole.getvalue()


def _length_left(source: BinaryIO) -> int:
    """Bytes from here to the end; 0 if the stream cannot tell."""
    if not source.seekable():
        return 0
    here = source.tell()
    end = source.seek(0, io.SEEK_END)
    source.seek(here)
    return max(0, end - here)


def unseal_stream(source: BinaryIO, key: bytes, binding: Binding) -> Iterator[memoryview]:
    """Verified segments in order, in the memory of three segments; each is gone when the next one is asked for.

    What came out is provisional until the generator ends without an exception: only then the last segment was there
    and the whole is the bound plaintext.

    Raises:
        ValueError: the key has not 32 bytes.
        SealedFileError: one of the codes in docs/sealed-format.md.
    """
    header = bytearray(HEADER_BYTES)
    if _read(source, memoryview(header)) != HEADER_BYTES or header[0] != HEADER_BYTES:
        raise SealedFileError("sealed file has no valid header", where="header", reason="sealed-header")
    cipher = _file_cipher(key, bytes(header[1 : 1 + SALT_BYTES]), binding)
    prefix = bytes(header[1 + SALT_BYTES :])
    rooms = _two_rooms()
    with _Hash() as plain:
        for index, (segment, last) in enumerate(_segments(source, SEGMENT_BYTES - HEADER_BYTES, SEGMENT_BYTES)):
            opened = rooms[index % 2][: max(0, len(segment) - TAG_BYTES)]
            _open_segment(cipher, _Place(prefix, index, last), segment, opened)
            plain.update(opened)
            with opened.toreadonly() as shown:  # closed before the room is used again: nothing unverified shows in it
                yield shown
        _check_whole(plain.hexdigest(), binding)


class _Hash:
    """SHA-256 in a thread of its own: hashing takes most of the time, and sealing hashes twice.

    One piece is under way at most: when `update` returns, all pieces but the one given to it may be overwritten.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, "sealed-hash")  # starts no thread before it gets work
        self._begun = Event()
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def update(self, piece: bytes | memoryview) -> None:
        """Take the next piece; a short one is not worth a thread."""
        self._wait()
        if len(piece) < SEGMENT_BYTES // 2:
            self._hash.update(piece)
            return
        self._pending = self._thread.submit(self._begin, piece)
        # A caller that now copies memory keeps the interpreter to itself: the hash must be under way before.
        self._begun.wait()
        self._begun.clear()

    def hexdigest(self) -> str:
        """Of all pieces."""
        self._wait()
        return self._hash.hexdigest()

    def _begin(self, piece: bytes | memoryview) -> None:
        self._begun.set()
        self._hash.update(piece)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None


def _two_rooms() -> tuple[memoryview, memoryview]:
    """One is hashed while the other is filled. Fresh memory for each segment would cost more than the cipher."""
    return memoryview(bytearray(SEGMENT_BYTES)), memoryview(bytearray(SEGMENT_BYTES))


def _file_cipher(key: bytes, salt: bytes, binding: Binding) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a sealing key has {KEY_BYTES} bytes")
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, binding.associated_data()).derive(key))


def _nonce(prefix: bytes, index: int, *, last: bool) -> bytes:
    return prefix + index.to_bytes(4, "big") + bytes([last])


class _Place(NamedTuple):
    """Where a segment stands, as its nonce says it."""

    prefix: bytes
    number: int
    last: bool

    @property
    def name(self) -> str:
        return f"segment {self.number}"


def _open_segment(cipher: AESGCM, place: _Place, segment: memoryview, opened: memoryview) -> None:
    # The writer ends with the segment that holds the last byte, so only an empty file has an empty segment.
    if len(segment) < TAG_BYTES + (place.number > 0):
        raise SealedFileError("sealed file ends inside a tag", where=place.name, reason="sealed-truncated")
    try:
        cipher.decrypt_into(_nonce(place.prefix, place.number, last=place.last), segment, None, opened)
    except InvalidTag:
        raise _diagnosis(cipher, place, segment, opened) from None


def _diagnosis(cipher: AESGCM, place: _Place, segment: memoryview, opened: memoryview) -> SealedFileError:
    """Why a segment failed: does it verify as what the end of the file says it is not? Nothing of it is kept."""
    try:
        cipher.decrypt_into(_nonce(place.prefix, place.number, last=not place.last), segment, None, opened)
    except InvalidTag:
        return SealedFileError(
            "sealed file does not verify: changed, or another key, name, version or hash",
            where=place.name,
            reason="sealed-tag",
        )
    finally:
        opened[:] = bytes(len(opened))
    if place.last:
        return SealedFileError("sealed file ends too early", where=place.name, reason="sealed-truncated")
    return SealedFileError("bytes follow the last segment", where=place.name, reason="sealed-trailing")


def _check_whole(sha256: str, binding: Binding) -> None:
    if sha256 != binding.plaintext_sha256:
        raise SealedFileError(
            "plaintext is not the one bound to this name and version", where="whole", reason="sealed-plaintext-hash"
        )


def _segments(source: BinaryIO, first: int, following: int) -> Iterator[tuple[memoryview, bool]]:
    """Pieces of `source` of the given sizes, each with: is it the last. There is always at least one.

    All stand in the same memory: each is gone when the next one is asked for. One byte is read ahead, to know the last.
    """
    room = memoryview(bytearray(max(first, following) + 1))
    size, length = first, _read(source, room[: first + 1])
    for _ in range(MAX_SEGMENTS):
        yield room[: min(size, length)], length <= size
        if length <= size:
            return
        room[0] = room[size]
        size, length = following, 1 + _read(source, room[1 : following + 1])
    raise SealedFileError(f"more than {MAX_SEGMENTS} segments", where="length", reason="sealed-too-long")


def _read(source: BinaryIO, room: memoryview) -> int:
    """Fill `room`, less only at the end: raw streams may give less than asked for."""
    length = 0
    while length < len(room):
        if isinstance(source, io.BufferedIOBase):  # saves a copy and fresh memory; raw streams need not have it
            got = source.readinto(room[length:])
        else:
            part = source.read(len(room) - length)
            got = len(part)
            room[length : length + got] = part
        if not got:
            break
        length += got
    return length
