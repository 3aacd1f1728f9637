"""Clock caps on the board's own operating points (R5)."""

from __future__ import annotations

from policies.policy import DvfsPolicy
from policies.reading import OperatingPoint

TABLE_TOLERANCE = 0.01
"""A point may exceed its ratio by this much of the top clock: tables are rounded (1300 of 1800 MHz is 0.722)."""


def cap_hz(points: tuple[OperatingPoint, ...], ratio: float) -> int | None:
    """The fastest operating point at or below `ratio` of the top clock; the slowest where none is.

    Args:
        points: the board's table, in any order.
        ratio: 0..1; 0 asks for the slowest point.

    Returns:
        A frequency of the table in hertz, or `None` where the table is empty (the clock cannot be steered).
    """
    if not points:
        return None
    frequencies = sorted(point.frequency_hz for point in points)
    bound = (ratio + TABLE_TOLERANCE) * frequencies[-1]
    return max((f for f in frequencies if f <= bound), default=frequencies[0])


def ratio_for_depth(policy: DvfsPolicy, depth_percent: int) -> float:
    """Highest clock, as a share of the top clock, at a freeze depth in percent (R5)."""
    return policy.frozen_frequency_ratio if depth_percent > policy.frozen_over_percent else 1.0
