"""Sealed files at every border, and damaged in every way.

Faults of the artifact -> tests here (those marked * also in tests/vectors, for other readers):
    1 bit flip in every region*            test_one_flipped_bit_is_found_where_it_is
    2 truncation at every segment edge*    test_truncation_at_every_edge
    3 swapped, repeated, dropped*          test_segments_swapped_repeated_or_dropped,
                                           test_middle_segments_cannot_trade_places
    4 trailing bytes*                      test_trailing_bytes
    5 last flag moved*                     test_last_flag_moved
    6 body under another header*           test_body_under_another_header
    7 wrong key or associated data*        test_wrong_key, test_wrong_binding
What is on the disk after each of them: test_the_slot_before_stays_after_each_fault in test_vectors.py.
"""

from __future__ import annotations

import hashlib
import io
import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import SealedFileError
from agent.sealed import (
    FIRST_PLAINTEXT_BYTES as FIRST,
)
from agent.sealed import (
    HEADER_BYTES,
    SEGMENT_BYTES,
    TAG_BYTES,
    Binding,
    seal,
    sealed_length,
    unseal,
    unseal_stream,
)
from agent.sealed import (
    NEXT_PLAINTEXT_BYTES as NEXT,
)

KEY = bytes(range(32))
MOST = 1 << 30


class Trickle(io.RawIOBase):
    """A raw stream that gives less than it is asked for."""

    def __init__(self, data: bytes, most: int) -> None:
        self._data, self._most = io.BytesIO(data), most

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, self._most))


def bind(data: bytes) -> Binding:
    return Binding("model", "1.0", hashlib.sha256(data).hexdigest())


def sealed(data: bytes) -> bytes:
    target = io.BytesIO()
    seal(io.BytesIO(data), target, KEY, bind(data))
    return target.getvalue()


@cache
def sample(length: int) -> tuple[bytes, bytes]:
    data = random.Random(length).randbytes(length)
    return data, sealed(data)


def refusal(body: bytes, binding: Binding, key: bytes = KEY) -> SealedFileError:
    with pytest.raises(SealedFileError) as caught:
        unseal(io.BytesIO(body), key, binding, MOST)
    return caught.value


BORDERS = [0, 1, 15, 16, 17, FIRST - 1, FIRST, FIRST + 1, FIRST + NEXT - 1, FIRST + NEXT, FIRST + NEXT + 1]


@pytest.mark.parametrize("length", BORDERS)
def test_round_trip_at_the_borders(length: int) -> None:
    data = random.Random(length).randbytes(length)
    target = io.BytesIO()
    written = seal(Trickle(data, 300_001), target, KEY, bind(data))  # type: ignore[arg-type]
    body = target.getvalue()
    assert written == (hashlib.sha256(body).hexdigest(), len(body))
    assert len(body) == sealed_length(length)
    assert unseal(Trickle(body, 300_001), KEY, bind(data), length) == data  # type: ignore[arg-type]


@settings(max_examples=50)
@given(st.binary(max_size=5000), st.binary(min_size=32, max_size=32), st.text(max_size=20), st.text(max_size=20))
def test_round_trip_of_anything(data: bytes, key: bytes, name: str, version: str) -> None:
    binding = Binding(name, version, hashlib.sha256(data).hexdigest())
    target = io.BytesIO()
    seal(io.BytesIO(data), target, key, binding)
    assert unseal(io.BytesIO(target.getvalue()), key, binding, MOST) == data


def test_a_file_written_by_tink_opens() -> None:
    # Tink 1.16.1, AesGcmHkdfStreamingKey: 32-byte key 00..1f, SHA256, segments of 1 MiB, RAW.
    body = bytes.fromhex(
        "28d40e1f0179f93170a2595e33c84f92ce8fe0f7cff148ba844f2a5f3387bef0872c967b5c99b23013ba05b6f2fbffa647"
        "fef38893318015f2d66df6e9562345e27c3522a7c13450eabe01bc48e53f"
    )
    data = b"frozen layers stay cool"
    binding = Binding("tiny", "1.2", hashlib.sha256(data).hexdigest())
    assert unseal(io.BytesIO(body), KEY, binding, 100) == data


def test_associated_data_is_as_documented() -> None:
    assert Binding("m", "2", "00").associated_data() == (
        b'{"format":"temperd-sealed-1","name":"m","plaintext_sha256":"00","version":"2"}'
    )


def test_no_two_files_share_salt_or_nonce() -> None:
    assert sealed(b"same")[:HEADER_BYTES] != sealed(b"same")[:HEADER_BYTES]


LENGTH = FIRST + NEXT + 1000
EDGES = (HEADER_BYTES, SEGMENT_BYTES, 2 * SEGMENT_BYTES)


@pytest.mark.parametrize(
    ("position", "code", "where"),
    [
        (0, "sealed-header", "header"),
        (1, "sealed-tag", "segment 0"),
        (32, "sealed-tag", "segment 0"),
        (33, "sealed-tag", "segment 0"),
        (39, "sealed-tag", "segment 0"),
        (40, "sealed-tag", "segment 0"),
        (SEGMENT_BYTES - TAG_BYTES - 1, "sealed-tag", "segment 0"),
        (SEGMENT_BYTES - TAG_BYTES, "sealed-tag", "segment 0"),
        (SEGMENT_BYTES - 1, "sealed-tag", "segment 0"),
        (SEGMENT_BYTES, "sealed-tag", "segment 1"),
        (2 * SEGMENT_BYTES - 1, "sealed-tag", "segment 1"),
        (2 * SEGMENT_BYTES, "sealed-tag", "segment 2"),
        (-TAG_BYTES - 1, "sealed-tag", "segment 2"),
        (-1, "sealed-tag", "segment 2"),
    ],
)
@pytest.mark.parametrize("bit", [0, 7])
def test_one_flipped_bit_is_found_where_it_is(position: int, code: str, where: str, bit: int) -> None:
    data, body = sample(LENGTH)
    changed = bytearray(body)
    changed[position] ^= 1 << bit
    error = refusal(bytes(changed), bind(data))
    assert (error.code, error.where) == (code, where)


@pytest.mark.parametrize(
    ("length", "code"),
    [
        (0, "sealed-header"),
        (1, "sealed-header"),
        (HEADER_BYTES - 1, "sealed-header"),
        (HEADER_BYTES, "sealed-truncated"),
        (HEADER_BYTES + TAG_BYTES - 1, "sealed-truncated"),
        (HEADER_BYTES + TAG_BYTES, "sealed-tag"),
        (SEGMENT_BYTES - 1, "sealed-tag"),
        (SEGMENT_BYTES, "sealed-truncated"),
        (SEGMENT_BYTES + 1, "sealed-truncated"),
        (SEGMENT_BYTES + TAG_BYTES, "sealed-truncated"),
        (SEGMENT_BYTES + TAG_BYTES + 1, "sealed-tag"),
        (2 * SEGMENT_BYTES - 1, "sealed-tag"),
        (2 * SEGMENT_BYTES, "sealed-truncated"),
        (2 * SEGMENT_BYTES + 1, "sealed-truncated"),
    ],
)
def test_truncation_at_every_edge(length: int, code: str) -> None:
    data, body = sample(LENGTH)
    assert refusal(body[:length], bind(data)).code == code


def segments(body: bytes) -> list[bytes]:
    return [body[HEADER_BYTES:SEGMENT_BYTES], body[SEGMENT_BYTES : 2 * SEGMENT_BYTES], body[2 * SEGMENT_BYTES :]]


@pytest.mark.parametrize(
    "order", [[1, 0, 2], [0, 2, 1], [0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2], [0, 2], [1, 2], [2], [0, 1]]
)
def test_segments_swapped_repeated_or_dropped(order: list[int]) -> None:
    data, body = sample(LENGTH)
    parts = segments(body)
    rebuilt = body[:HEADER_BYTES] + b"".join(parts[index] for index in order)
    assert refusal(rebuilt, bind(data)).code in {"sealed-tag", "sealed-truncated"}


def test_middle_segments_cannot_trade_places() -> None:
    data, body = sample(FIRST + 3 * NEXT)
    one, two = body[SEGMENT_BYTES : 2 * SEGMENT_BYTES], body[2 * SEGMENT_BYTES : 3 * SEGMENT_BYTES]
    swapped = body[:SEGMENT_BYTES] + two + one + body[3 * SEGMENT_BYTES :]
    assert refusal(swapped, bind(data)).where == "segment 1"


@pytest.mark.parametrize("extra", [1, TAG_BYTES, 1000, SEGMENT_BYTES])
def test_trailing_bytes(extra: int) -> None:
    data, body = sample(FIRST + NEXT)  # the last segment is full: what follows is told from damage
    error = refusal(body + bytes(extra), bind(data))
    assert (error.code, error.where) == ("sealed-trailing", "segment 1")
    data, body = sample(LENGTH)
    assert refusal(body + bytes(extra), bind(data)).code == "sealed-tag"


def test_last_flag_moved() -> None:
    data, body = sample(FIRST + NEXT)
    shorter = data[:FIRST]
    other = sealed(shorter)  # its only segment is full and last
    assert refusal(other + body[SEGMENT_BYTES:], bind(shorter)).code == "sealed-trailing"
    assert refusal(body[:SEGMENT_BYTES], bind(data)).code == "sealed-truncated"


def test_body_under_another_header() -> None:
    data, body = sample(LENGTH)
    other = sealed(data)
    assert refusal(other[:HEADER_BYTES] + body[HEADER_BYTES:], bind(data)).code == "sealed-tag"


@pytest.mark.parametrize(
    "binding",
    [
        Binding("other", "1.0", bind(sample(LENGTH)[0]).plaintext_sha256),
        Binding("model", "1.1", bind(sample(LENGTH)[0]).plaintext_sha256),
        Binding("model", "1.0", "00" * 32),
    ],
    ids=["name", "version", "hash"],
)
def test_wrong_binding(binding: Binding) -> None:
    error = refusal(sample(LENGTH)[1], binding)
    assert (error.code, error.where) == ("sealed-tag", "segment 0")


def test_wrong_key() -> None:
    data, body = sample(LENGTH)
    assert refusal(body, bind(data), bytes(32)).code == "sealed-tag"
    with pytest.raises(ValueError, match="32 bytes"):
        unseal(io.BytesIO(body), bytes(16), bind(data), MOST)


def test_sealing_something_else_than_is_bound_fails() -> None:
    with pytest.raises(SealedFileError) as caught:
        seal(io.BytesIO(b"changed while it was read"), io.BytesIO(), KEY, bind(b"original"))
    assert caught.value.code == "sealed-plaintext-hash"


def test_plaintext_hash_is_checked_after_the_last_segment() -> None:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 - only this test forges a file
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    binding = bind(b"what was promised")
    salt, prefix = bytes(32), bytes(7)
    file_key = HKDF(SHA256(), 32, salt, binding.associated_data()).derive(KEY)
    forged = AESGCM(file_key).encrypt(prefix + bytes(4) + b"\x01", b"what was written", None)
    stream = unseal_stream(io.BytesIO(b"\x28" + salt + prefix + forged), KEY, binding)
    assert next(stream) == b"what was written"
    with pytest.raises(SealedFileError) as caught:
        next(stream)
    assert caught.value.code == "sealed-plaintext-hash"


def test_bound_on_plaintext() -> None:
    data, body = sample(LENGTH)
    assert unseal(io.BytesIO(body), KEY, bind(data), LENGTH) == data
    with pytest.raises(SealedFileError) as caught:
        unseal(io.BytesIO(body), KEY, bind(data), LENGTH - 1)
    assert caught.value.code == "sealed-too-long"


def test_nothing_of_a_changed_segment_leaves() -> None:
    data, body = sample(LENGTH)
    changed = bytearray(body)
    changed[SEGMENT_BYTES + 5] ^= 1
    stream = unseal_stream(io.BytesIO(bytes(changed)), KEY, bind(data))
    assert next(stream) == data[:FIRST]
    with pytest.raises(SealedFileError):
        next(stream)


def test_memory_stays_constant() -> None:
    class Endless(io.RawIOBase):
        """A file that never ends; counts what was taken."""

        taken = 0

        def read(self, size: int = -1) -> bytes:
            self.taken += size
            return bytes(size)

    source = Endless()
    stream = unseal_stream(source, KEY, bind(b""))  # type: ignore[arg-type]
    with pytest.raises(SealedFileError):
        next(stream)
    assert source.taken <= 2 * SEGMENT_BYTES + HEADER_BYTES


def test_a_segment_is_gone_when_the_next_one_is_asked_for() -> None:
    data, body = sample(LENGTH)
    changed = bytearray(body)
    changed[-1] ^= 1
    stream = unseal_stream(io.BytesIO(bytes(changed)), KEY, bind(data))
    first = next(stream)
    assert first.readonly
    second = next(stream)
    with pytest.raises(ValueError, match="released"):
        bytes(first)
    assert second == data[FIRST : FIRST + NEXT]
    inside = second[:16]  # outlives its segment, but what did not verify never stands in it
    with pytest.raises(SealedFileError):
        next(stream)
    assert bytes(inside) in (bytes(16), data[FIRST : FIRST + 16])
