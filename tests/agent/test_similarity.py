from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.similarity import cosine_of_means

steady = settings(derandomize=True, deadline=None)


@pytest.mark.parametrize(
    ("features", "signature", "cosine"),
    [
        ([[1, 0], [1, 0]], (2, 0), 1.0),
        ([[1, 0], [0, 1]], (1, 0), 0.5**0.5),
        ([[3, 4]], (4, 3), 24 / 25),
        ([[1, 0]], (0, 5), 0.0),
        ([[1, 2]], (-2, -4), -1.0),
        ([[1, -1], [3, 5]], (1, 1), 1.0),  # the mean is taken before the angle
    ],
)
def test_by_hand(features: list[list[float]], signature: tuple[float, ...], cosine: float) -> None:
    assert cosine_of_means(np.asarray(features, np.float32), signature) == pytest.approx(cosine, abs=1e-12)


@pytest.mark.parametrize(
    ("features", "signature"),
    [
        ([[1, 2]], ()),
        ([[1, 2]], (1, 2, 3)),
        ([[1, 2]], (0, 0)),
        ([[0, 0]], (1, 2)),
        ([[1, 2], [-1, -2]], (1, 2)),
        ([[np.inf, 2]], (1, 2)),
        ([[np.nan, 2]], (1, 2)),
    ],
)
def test_what_cannot_be_compared_is_unknown(features: list[list[float]], signature: tuple[float, ...]) -> None:
    assert cosine_of_means(np.asarray(features, np.float32), signature) is None


vectors = st.lists(st.floats(-1e9, 1e9, width=32, allow_subnormal=False), min_size=1, max_size=30)


@steady
@given(vectors, st.floats(0.001, 1000, allow_subnormal=False))
def test_length_does_not_matter_and_the_bounds_hold(vector: list[float], factor: float) -> None:
    signature = tuple(value * factor for value in vector)
    found = cosine_of_means(np.asarray([vector], np.float32), signature)
    if found is None:
        assert not any(vector)
    else:
        assert found == pytest.approx(1.0, abs=1e-5)
        assert found <= 1.0
