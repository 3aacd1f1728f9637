from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.augment import SHIFT_SHARE, augmented

PICTURES = np.random.default_rng(0).integers(0, 256, (40, 16, 24, 3), np.uint8)


def test_view_0_is_the_picture_and_the_others_are_not() -> None:
    np.testing.assert_array_equal(augmented(PICTURES, 0, 7), PICTURES)
    views = [augmented(PICTURES, view, 7) for view in range(1, 4)]
    for first in range(3):
        assert (views[first] != PICTURES).any(axis=(1, 2, 3)).mean() > 0.9
        for second in range(first):
            assert (views[first] != views[second]).any(axis=(1, 2, 3)).mean() > 0.9


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.permutations(range(40)), st.integers(1, 15), st.integers(0, 2**31 - 1))
def test_a_view_depends_on_picture_number_and_seed_alone(order: list[int], view: int, seed: int) -> None:
    whole = augmented(PICTURES, view, seed)
    np.testing.assert_array_equal(augmented(PICTURES[order[:5]], view, seed), whole[order[:5]])
    assert (whole.shape, whole.dtype) == (PICTURES.shape, np.uint8)
    assert (augmented(PICTURES, view, seed + 1) != whole).any()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 15), st.integers(0, 2**31 - 1))
def test_a_view_is_a_mirrored_and_shifted_picture_with_its_border_repeated(view: int, seed: int) -> None:
    """Each pixel tells where it was: rows and columns are whole, in order, and no further away than the bound."""
    rows, columns = np.meshgrid(np.arange(16), np.arange(24), indexing="ij")
    picture = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    seen = augmented(picture[None], view, seed)[0].astype(int)
    assert (seen[:, :, 0] == seen[:, :1, 0]).all()
    assert (seen[:, :, 1] == seen[:1, :, 1]).all()
    across = seen[0, :, 1]
    if across[0] > across[-1]:
        across = 23 - across
    for line, side in ((seen[:, 0, 0], 16), (across, 24)):
        shift = line[side // 2] - side // 2
        assert abs(shift) <= side * SHIFT_SHARE
        np.testing.assert_array_equal(line, np.clip(np.arange(side) + shift, 0, side - 1))


def test_half_the_pictures_are_mirrored_and_all_shifts_are_drawn() -> None:
    column = np.broadcast_to(np.arange(24, dtype=np.uint8)[None, :, None], (16, 24, 3))
    pictures = np.stack([column] * 600)
    pictures[:, 0, 0, 0] = np.arange(600) % 256  # different pictures
    pictures[:, 0, 0, 1] = np.arange(600) // 256
    seen = augmented(pictures, 1, 0)[:, 8, :, 2].astype(int)
    mirrored = seen[:, 0] > seen[:, -1]
    assert 0.4 < mirrored.mean() < 0.6
    assert set(seen[~mirrored, 12] - 12) == set(range(-3, 4))
