"""What one rule asks for. The strictest of all bounds makes the Decision."""

from __future__ import annotations

from dataclasses import dataclass

from policies.reading import FULL_DUTY, Action

LOWEST = 0.0
"""Frequency ratio that asks for the slowest operating point."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What one rule asks for; the defaults ask for nothing."""

    rule: str
    action: Action = Action.SLOW
    ratio: float = 1.0
    """Highest clock, as a share of the board's top clock."""
    duty: float = FULL_DUTY
    depth: int = 0
    """Least share of the layers frozen, in percent."""
    cooling: float = 0.0
    """Least share of the highest cooling level."""
    depth_until_samples: int = 0
    """`depth` is asked for until so many samples of the job are done; 0: until another Decision."""
    micro_batch_share: float = 1.0
    """Most of the usual micro-batch that goes through a step at once, 0..1."""
