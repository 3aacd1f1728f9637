"""Both judges of Ed25519 against RFC 8032, and against each other where implementations are known to differ."""

from __future__ import annotations

import _ssl
import ctypes

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from agent.ed25519 import Judge, by_cryptography, is_signed, loaded_openssl

ORDER = 2**252 + 27742317777372353535851937790883648493  # RFC 8032, 5.1: L
PRIME = 2**255 - 19
PRIVATE = Ed25519PrivateKey.from_private_bytes(b"c" * 32)
KEY = PRIVATE.public_key().public_bytes_raw()
SIGNATURE = PRIVATE.sign(b"command")
RFC_8032 = [  # 7.1: key, message, signature
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
            "4a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]
SMALL_ORDER = [  # encodings of points of order 1, 2, 4 and 8, and two that are not canonical
    (1).to_bytes(32, "little"),
    (PRIME - 1).to_bytes(32, "little"),
    (0).to_bytes(32, "little"),
    (1 << 255).to_bytes(32, "little"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    PRIME.to_bytes(32, "little"),
    (PRIME + 1).to_bytes(32, "little"),
]


def openssl(key: bytes, signature: bytes, message: bytes) -> bool:
    judge = loaded_openssl()
    if judge is None:
        pytest.skip("this Python's OpenSSL is no library that can be reached")
    return judge(key, signature, message)


@pytest.mark.parametrize("judge", [openssl, by_cryptography, is_signed])
@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_vectors_of_the_standard(judge: Judge, key: str, message: str, signature: str) -> None:
    raw, said, text = bytes.fromhex(key), bytes.fromhex(signature), bytes.fromhex(message)
    assert judge(raw, said, text)
    assert not judge(raw, said, text + b"\x00")
    assert not judge(KEY, said, text)


@given(st.integers(0, 8 * 64 - 1), st.integers(0, 8 * 32 - 1))
def test_one_flipped_bit_is_refused(in_signature: int, in_key: int) -> None:
    assert openssl(KEY, SIGNATURE, b"command")
    assert not openssl(KEY, flipped(SIGNATURE, in_signature), b"command")
    assert not openssl(flipped(KEY, in_key), SIGNATURE, b"command")


def flipped(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "little") ^ 1 << bit).to_bytes(len(data), "little")


@pytest.mark.parametrize("judge", [openssl, by_cryptography])
def test_a_signature_has_one_form(judge: Judge) -> None:
    """S + L signs the same by arithmetic; RFC 8032, 5.1.7 refuses it, so nobody makes a second signature."""
    scalar = int.from_bytes(SIGNATURE[32:], "little") + ORDER
    assert not judge(KEY, SIGNATURE[:32] + scalar.to_bytes(32, "little"), b"command")


@pytest.mark.parametrize("length", [0, 31, 33, 63, 65, 1000])
def test_wrong_lengths_are_no_signatures(length: int) -> None:
    assert not is_signed(KEY, SIGNATURE[:length].ljust(length, b"\x00"), b"command")
    assert not is_signed(KEY[:length].ljust(length, b"\x00"), SIGNATURE, b"command")


@pytest.mark.parametrize("point", SMALL_ORDER, ids=bytes.hex)
def test_points_of_small_order_are_judged_alike(point: bytes) -> None:
    for commitment in (*SMALL_ORDER, SIGNATURE[:32]):
        for scalar in (bytes(32), SIGNATURE[32:]):
            for message in (b"", b"command", b"other"):
                forged = commitment + scalar
                assert openssl(point, forged, message) == by_cryptography(point, forged, message)
                assert not openssl(KEY, forged, message) or forged + message == SIGNATURE + b"command"


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64), st.binary(max_size=100))
def test_rubbish_is_judged_alike(key: bytes, signature: bytes, message: bytes) -> None:
    assert openssl(key, signature, message) == by_cryptography(key, signature, message)
    assert openssl(KEY, signature, message) == by_cryptography(KEY, signature, message)


@given(st.binary(max_size=2000))
def test_whatever_is_signed_holds(message: bytes) -> None:
    assert is_signed(KEY, PRIVATE.sign(message), message)


def test_a_refusal_leaves_no_error_in_the_threads_queue() -> None:
    """SSL_read looks into that queue first: what lies there would end a good connection."""
    assert not openssl(KEY[:31], SIGNATURE, b"command")  # OpenSSL puts "invalid encoding" there
    peek = ctypes.CDLL(_ssl.__file__).ERR_peek_error
    peek.restype = ctypes.c_ulong
    assert peek() == 0
