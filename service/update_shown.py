"""Which release of temperd runs, from where, and what is on trial: for the fleet and for `temperd status`."""

from __future__ import annotations

from agent.agent_slots import KeptStanding
from agent.errors import BoardError
from service.launched import Launched


def release_told(kept: KeptStanding, launched: Launched) -> dict[str, object]:
    """`release` of the birth message: `slot`, `trial` and `safe_mode`; see docs/mqtt.md."""
    try:
        trial = kept.read().trial if launched.place else None
    except BoardError:  # the disk fails: there are alarms for that
        trial = None
    return {"slot": launched.place, "trial": trial.version if trial else "", "safe_mode": launched.safe_mode}
