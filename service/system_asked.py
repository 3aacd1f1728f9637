"""The command `update-system` as the journal remembers it."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.strict import build_known
from service.update_arguments import SystemArguments
from service.update_ledger import UpdateAsked


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemAsked(UpdateAsked):
    """A command `update-system`.

    Attributes:
        found: version of the image; `latest` is none.
        length: of the bundle in bytes.
        slot_before: bootname of the slot that ran when the bundle was installed.
        slot_after: bootname of the slot on trial.
        boot_id: the boot that is to end: the one before the trial, or that of the trial once there is a verdict.
        left_ts: when the board was told to restart, seconds since 1970; 0: not known.
        starts: of the daemon in the trial.
        baseline: what the system before measured, see `policies.trial_health`.
        verdict: code of what is wrong with the new system, which is left; empty: nothing.
        why: the same for people.
        downtime_s: from the order to restart until the daemon was there again; `None`: not known.
    """

    found: str = ""
    length: int = 0
    slot_before: str = ""
    slot_after: str = ""
    boot_id: str = ""
    left_ts: float = 0.0
    starts: int = 0
    baseline: dict[str, object] = field(default_factory=dict)
    verdict: str = ""
    why: str = ""
    downtime_s: float | None = None

    def __post_init__(self) -> None:
        """Refuse arguments that this release cannot read: a later one may have taken the command."""
        _ = self.wanted

    @property
    def wanted(self) -> SystemArguments:
        """The arguments."""
        return build_known(SystemArguments, self.args)

    def told(self, slot: str, trial_s: float | None = None) -> dict[str, object]:
        """Of the status it ends with, as docs/mqtt.md has it.

        Args:
            slot: that runs.
            trial_s: how long it was watched.
        """
        image = {"changed": slot != self.slot_before, "name": self.wanted.name, "version": self.found}
        where = {"slot": slot, "slot_before": self.slot_before, "bytes": self.length}
        return {**image, **where, "downtime_s": self.downtime_s, "trial_s": trial_s}
