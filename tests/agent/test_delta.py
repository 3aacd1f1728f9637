"""Models split and joined: the same bytes always, and never others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.delta import LEAST_FROZEN_BYTES, MAGIC, join, split
from agent.errors import SealedFileError
from agent.strict_json import canonical

TENSORS = [bytes([n]) * (LEAST_FROZEN_BYTES + n) for n in range(4)] + [b"short" * 9]


@given(
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(TENSORS)), max_size=12),
    st.lists(st.one_of(st.sampled_from(TENSORS), st.binary(max_size=9)), max_size=8),
)
def test_what_is_split_joins_again(pieces: list[bytes], frozen: list[bytes]) -> None:
    model = b"".join(pieces)
    delta, blob = split(model, frozen)
    assert join(delta, blob) == model


def test_equal_tensors_and_another_order_are_found() -> None:
    one, two = TENSORS[1], TENSORS[2]
    model = b"<" + one + b"|" + one + b"|" + two + b">"
    for frozen in ([one, one, two], [two, one, one]):
        delta, blob = split(model, frozen)
        assert join(delta, blob) == model
        assert blob.endswith(two)
    delta, blob = split(model, [one, one, two])
    assert blob == one + one + two
    assert delta.endswith(b"<||>")


GOOD, BLOB = split(b"head" + TENSORS[1] + b"tail", [TENSORS[1]])


def made(pairs: object, literals: bytes = b"") -> bytes:
    header = canonical(pairs)
    return MAGIC + len(header).to_bytes(4, "big") + header + literals


@pytest.mark.parametrize(
    ("delta", "blob"),
    [
        (b"", b""),
        (MAGIC, b""),
        (MAGIC + b"\xff" * 4, b""),
        (GOOD[:-1], BLOB),
        (GOOD + b"x", BLOB),
        (GOOD, BLOB[:-1]),
        (GOOD, BLOB + b"x"),
        (made([]), b""),
        (made({}), b""),
        (made([[1, 0], [-1, 0]]), b""),
        (made([[0]]), b""),
        (made([[True, 0]], b"x"), b""),
        (made([[0, 2**40]]), b""),
        (MAGIC + b"\0\0\0\7[[1,0 ]", b"x"),
        (MAGIC + b"\0\0\0\x08[[1, 0]]x", b""),
    ],
)
def test_what_is_no_delta_is_refused(delta: bytes, blob: bytes) -> None:
    with pytest.raises(SealedFileError) as caught:
        join(delta, blob)
    assert caught.value.code


@given(st.integers(0, 8 * len(GOOD) - 1))
def test_a_flipped_bit_is_refused_or_changes_literals_only(place: int) -> None:
    """The header is all checked; literals are what the hash of the whole model is for."""
    broken = bytearray(GOOD)
    broken[place // 8] ^= 1 << place % 8
    try:
        found = join(bytes(broken), BLOB)
    except SealedFileError:
        return
    assert len(found) == len(BLOB) + 8
    assert found != join(GOOD, BLOB)
