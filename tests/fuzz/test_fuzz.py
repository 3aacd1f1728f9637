"""A short run of every target; `make fuzz` runs a long one. Faults 1, 4, 7, 18 and 19, on whatever bytes come."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from fuzz_edits import edited
from fuzz_targets import Accepted, Target, targets

pytestmark = pytest.mark.once
NAMES = sorted(targets())


@pytest.mark.parametrize("name", NAMES)
def test_the_valid_input_is_taken(name: str) -> None:
    target = targets()[name]
    assert target.run(target.seed)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_comes_is_taken_unchanged_or_refused_in_our_words(name: str) -> None:
    target = targets()[name]

    @settings(max_examples=200, deadline=None)
    @given(st.one_of(edited(target.seed)))
    def run(data: bytes) -> None:
        target.run(data)

    run()


def test_a_reader_that_takes_too_much_is_noticed() -> None:
    with pytest.raises(Accepted):
        Target("careless", b"seed", len, authenticated=True).run(b"other")
    with pytest.raises(ZeroDivisionError):
        Target("broken", b"seed", lambda data: 1 // len(data)).run(b"")
