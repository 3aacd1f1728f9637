"""Sealed files: chunked AES-256-GCM with a key per file, as docs/sealed-format.md says.

Compatible with Tink's AES256-GCM-HKDF-1MB streaming AEAD.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

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
    """Seal all of `source` into `target`, in the memory of two segments.

    Raises:
        ValueError: the key has not 32 bytes.
        SealedFileError: `source` is not the bound plaintext (`sealed-plaintext-hash`) or has more than 4096 segments;
            what was written to `target` must be thrown away.
    """
    salt, prefix = os.urandom(SALT_BYTES), os.urandom(PREFIX_BYTES)
    cipher = _file_cipher(key, salt, binding)
    written, plain = hashlib.sha256(), hashlib.sha256()
    header = bytes([HEADER_BYTES]) + salt + prefix
    length = _put(target, written, header)
    for index, (segment, last) in enumerate(_segments(source, FIRST_PLAINTEXT_BYTES, NEXT_PLAINTEXT_BYTES)):
        plain.update(segment)
        length += _put(target, written, cipher.encrypt(_nonce(prefix, index, last=last), segment, None))
    _check_whole(plain, binding)
    return Sealed(written.hexdigest(), length)


def unseal(source: BinaryIO, key: bytes, binding: Binding, max_bytes: int) -> bytes:
    """The whole plaintext, in memory, verified to its last byte.

    Raises:
        SealedFileError: see `unseal_stream`; `sealed-too-long` when there are more than `max_bytes`.
    """
    whole = io.BytesIO()  # getvalue() gives its buffer away without a copy: the model is held once
    for segment in unseal_stream(source, key, binding):
        if whole.tell() + len(segment) > max_bytes:
            raise SealedFileError(f"sealed file holds more than {max_bytes} bytes", reason="sealed-too-long")
        whole.write(segment)
    return whole.getvalue()


def unseal_stream(source: BinaryIO, key: bytes, binding: Binding) -> Iterator[bytes]:
    """Verified segments in order, in the memory of two segments.

    What came out is provisional until the generator ends without an exception: only then the last segment was there
    and the whole is the bound plaintext.

    Raises:
        ValueError: the key has not 32 bytes.
        SealedFileError: one of the codes in docs/sealed-format.md.
    """
    header = _read(source, HEADER_BYTES)
    if len(header) != HEADER_BYTES or header[0] != HEADER_BYTES:
        raise SealedFileError("sealed file has no valid header", where="header", reason="sealed-header")
    cipher = _file_cipher(key, header[1 : 1 + SALT_BYTES], binding)
    prefix = header[1 + SALT_BYTES :]
    plain = hashlib.sha256()
    for index, (segment, last) in enumerate(_segments(source, SEGMENT_BYTES - HEADER_BYTES, SEGMENT_BYTES)):
        opened = _open_segment(cipher, prefix, index, segment, last=last)
        plain.update(opened)
        yield opened
    _check_whole(plain, binding)


def _file_cipher(key: bytes, salt: bytes, binding: Binding) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a sealing key has {KEY_BYTES} bytes")
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, binding.associated_data()).derive(key))


def _nonce(prefix: bytes, index: int, *, last: bool) -> bytes:
    return prefix + index.to_bytes(4, "big") + bytes([last])


def _open_segment(cipher: AESGCM, prefix: bytes, index: int, segment: bytes, *, last: bool) -> bytes:
    where = f"segment {index}"
    # The writer ends with the segment that holds the last byte, so only an empty file has an empty segment.
    if len(segment) < TAG_BYTES + (index > 0):
        raise SealedFileError("sealed file ends inside a tag", where=where, reason="sealed-truncated")
    try:
        return cipher.decrypt(_nonce(prefix, index, last=last), segment, None)
    except InvalidTag:
        raise _diagnosis(cipher, prefix, index, segment, last=last) from None


def _diagnosis(cipher: AESGCM, prefix: bytes, index: int, segment: bytes, *, last: bool) -> SealedFileError:
    """Why a segment failed: does it verify as what the end of the file says it is not? Nothing of it is kept."""
    where = f"segment {index}"
    try:
        cipher.decrypt(_nonce(prefix, index, last=not last), segment, None)
    except InvalidTag:
        return SealedFileError(
            "sealed file does not verify: changed, or another key, name, version or hash",
            where=where,
            reason="sealed-tag",
        )
    if last:
        return SealedFileError("sealed file ends too early", where=where, reason="sealed-truncated")
    return SealedFileError("bytes follow the last segment", where=where, reason="sealed-trailing")


def _check_whole(plain: hashlib._Hash, binding: Binding) -> None:
    if plain.hexdigest() != binding.plaintext_sha256:
        raise SealedFileError(
            "plaintext is not the one bound to this name and version", where="whole", reason="sealed-plaintext-hash"
        )


def _segments(source: BinaryIO, first: int, following: int) -> Iterator[tuple[bytes, bool]]:
    """Pieces of `source` of the given sizes, each with: is it the last. There is always at least one."""
    piece = _read(source, first)
    for _ in range(MAX_SEGMENTS):
        after = _read(source, following)
        yield piece, not after
        if not after:
            return
        piece = after
    raise SealedFileError(f"more than {MAX_SEGMENTS} segments", where="length", reason="sealed-too-long")


def _read(source: BinaryIO, size: int) -> bytes:
    """`size` bytes, fewer only at the end: raw streams may give less than asked for."""
    parts: list[bytes] = []
    while size > 0 and (part := source.read(size)):
        parts.append(part)
        size -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _put(target: BinaryIO, written: hashlib._Hash, data: bytes) -> int:
    target.write(data)
    written.update(data)
    return len(data)
