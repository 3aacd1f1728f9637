from __future__ import annotations

import pytest

from service.kernel_clock import EARLIEST_TIME, believable, kernel_synchronised

TODAY, IN_TEN_YEARS = EARLIEST_TIME + 1e6, EARLIEST_TIME + 3e8


@pytest.mark.parametrize(
    ("now", "floor", "kept_right", "believed"),
    [
        (0.0, 0.0, True, False),
        (EARLIEST_TIME - 1, 0.0, True, False),
        (EARLIEST_TIME, 0.0, False, True),
        (TODAY, TODAY, False, True),
        (TODAY - 1, TODAY, False, False),
        (TODAY, IN_TEN_YEARS, False, False),
        (TODAY, IN_TEN_YEARS, True, True),
    ],
)
def test_a_clock_that_was_ahead_once_is_not_waited_for(
    now: float, floor: float, kept_right: bool, believed: bool
) -> None:
    assert believable(now, floor, lambda: kept_right) == believed


def test_the_kernel_is_asked_and_not_told() -> None:
    assert kernel_synchronised() in (True, False)
    assert kernel_synchronised() == kernel_synchronised()
