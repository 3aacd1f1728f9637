"""What the launcher tells the release that it starts, through the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from policies.trial_standing import PLACES

DEFAULT_CONFIG = "/etc/temperd/temperd.toml"
LAUNCHER = "service.launch"
SLOT, SAFE_MODE, TRIAL = "TEMPERD_SLOT", "TEMPERD_SAFE_MODE", "TEMPERD_TRIAL"
LEAVE_SAFE_MODE = "leave-safe-mode"  # a file in the folder of releases: the owner wants it, the daemon does it


@dataclass(frozen=True, slots=True)
class Launched:
    """How this process was started.

    Attributes:
        place: the slot that its code comes from, or `installed`; empty: without the launcher, as from a clone or in a
            container. Such a release cannot be updated by command.
        safe_mode: why it runs without work; empty: it is not so.
        on_trial: it falls back when it ends.
    """

    place: str = ""
    safe_mode: str = ""
    on_trial: bool = False

    @classmethod
    def of(cls, environ: Mapping[str, str] = os.environ) -> Launched:
        """Read from the environment; what the launcher does not write counts as nothing."""
        place = environ.get(SLOT, "")
        return cls(place, environ.get(SAFE_MODE, ""), TRIAL in environ) if place in PLACES else cls()
