"""What a charge of the battery holds in joules, learnt while it falls."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.power_model import MOST_WATTS
from policies.reading import Reading
from policies.strict import limits

LEAST_DROP = 0.05
"""Charge that must have gone before joules are reckoned from it: gauges say whole percents."""
LONGEST_SPAN_S = 10.0
"""Between two readings; what was drawn in a longer gap is not known."""


@dataclass(frozen=True, slots=True)
class ChargeUse:
    """What a charge of the battery holds, reckoned from what was drawn while it fell."""

    joules_full: float = field(default=0.0, metadata=limits(0.0, 1e9))
    """0: not known yet."""
    from_charge: float | None = field(default=None, metadata=limits(0.0, 1.0))
    drawn_joules: float = 0.0


def drawn(use: ChargeUse, reading: Reading, before_s: float | None) -> ChargeUse:
    """What is known of the charge after `reading`; a reading on mains, or an absurd one, begins anew.

    Args:
        use: what was known.
        reading: the board.
        before_s: monotonic time of the reading before; `None`: there was none.
    """
    charge, watts = reading.charge, reading.power_watts
    if reading.on_mains is not False or charge is None or watts is None:
        return ChargeUse(use.joules_full)
    if not (0.0 <= charge <= 1.0 and 0.0 <= watts <= MOST_WATTS):  # NaN, too
        return ChargeUse(use.joules_full)
    if use.from_charge is None or before_s is None or charge > use.from_charge:
        return ChargeUse(use.joules_full, charge)
    span = reading.mono_s - before_s
    if not 0.0 <= span <= LONGEST_SPAN_S:
        return ChargeUse(use.joules_full, charge)
    joules, drop = use.drawn_joules + watts * span, use.from_charge - charge
    full = min(joules / drop, 1e9) if drop >= LEAST_DROP else use.joules_full
    return ChargeUse(full, use.from_charge, joules)
