"""The policy's `[predictive]` table: steering by what the board is predicted to do."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.strict import TableError, limits


@dataclass(frozen=True, slots=True)
class PredictivePolicy:
    """Predictive steering. The other tables' trips hold whatever it predicts."""

    enabled: bool = True
    """False: the fixed rules alone."""
    delta_kelvin: float = field(default=30.0, metadata=limits(1.0, 80.0))
    """Delta-T that must not be exceeded."""
    horizon_s: float = field(default=300.0, metadata=limits(10.0, 3600.0))
    """How far ahead the temperature is predicted."""
    dwell_s: float = field(default=60.0, metadata=limits(1.0, 3600.0))
    """An operating point is kept at least this long, unless a bound asks for less."""
    head_first_share: float = field(default=0.0, metadata=limits(0.0, 0.5))
    """Share of a job's samples with which the head learns alone, before what the plan lets learn; 0: none. Where
    half was planned it cost up to 3.6 points of accuracy; elsewhere it saved no energy for sure (docs/govern.md)."""
    settled_share: float = field(default=0.4, metadata=limits(0.0, 1.0))
    """Share of a job's samples after which half of the layers are frozen, or three quarters where half were planned;
    1: never."""
    late_share: float = field(default=0.72, metadata=limits(0.0, 1.0))
    """Share of a job's samples after which the head learns alone again; 1: never."""

    def __post_init__(self) -> None:
        """Refuse a schedule that goes back."""
        if self.late_share < self.settled_share:
            raise TableError(
                "late_share", f"must not be below settled_share ({self.settled_share}), is {self.late_share}"
            )
