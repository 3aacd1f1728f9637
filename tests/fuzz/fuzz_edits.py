"""Small edits of a valid input: what damage and attackers do to one."""

from __future__ import annotations

from typing import NamedTuple

from hypothesis import strategies as st

MAX_EDITS = 4


class Edit(NamedTuple):
    """At a position, counted round the input, take so many bytes away and put others there."""

    at: int
    taken: int
    put: bytes


def apply(seed: bytes, edits: list[Edit]) -> bytes:
    """The input after the edits, one after the other."""
    data = seed
    for edit in edits:
        at = edit.at % (len(data) + 1)
        data = data[:at] + edit.put + data[at + edit.taken :]
    return data


def edited(seed: bytes) -> st.SearchStrategy[bytes]:
    """Inputs near `seed`, and now and then anything at all."""
    put = st.one_of(
        st.binary(max_size=8), st.sampled_from([b'"', b"{", b"[" * 40, b"}", b"null", b"1e999", b"-1", b"\xff", b"\\u"])
    )
    edit = st.builds(Edit, st.integers(0, 2 * len(seed) + 1), st.sampled_from([0, 1, 1, 2, 7, 512, 1 << 20]), put)
    near = st.lists(edit, max_size=MAX_EDITS).map(lambda edits: apply(seed, edits))
    return st.one_of(near, near, near, st.binary(max_size=256))
