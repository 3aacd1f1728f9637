"""The `[memory]` table of a policy."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.strict import limits


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """Memory while a job trains: frozen weights are verified (R14), and a smaller micro-batch where it runs short."""

    verify_every_s: float = field(default=300.0, metadata=limits(1.0, 3600.0))
    """Longest time between two verifications while steps are made; each checkpoint is preceded by one anyway."""
    available_mib: float = field(default=96.0, metadata=limits(0.0, 65_536.0))
    """Smaller micro-batch below so much available memory; 0: never. The default is twice the 48 MiB that a step's
    tensors aim at."""
    hysteresis_mib: float = field(default=64.0, metadata=limits(1.0, 65_536.0))
    """Larger again only so far above the mark. More than a whole micro-batch takes (48 MiB), or it would be taken back
    at once."""
    pressure_share: float = field(default=0.1, metadata=limits(0.01, 1.0))
    """Smaller micro-batch when tasks waited for memory for a larger share of the last 10 s; 1: never. Android's
    low-memory killer begins to act at 0.07 to 0.2 (`psi_partial_stall_ms`, 70 to 200 ms of a second)."""
    calm_s: float = field(default=60.0, metadata=limits(1.0, 3600.0))
    """Larger again, by one step, after so long with plenty of memory."""
