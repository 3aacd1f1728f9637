"""Once a tick: take a policy that changed, tell of it, and say once where it and the board do not fit."""

from __future__ import annotations

from collections.abc import Callable

from policies.fits_board import complaints, unlisted
from policies.policy import Policy
from policies.reading import OperatingPoint
from service.logs import logger
from service.policy_file import PolicyFile

log = logger("policy")


class PolicyWatch:
    """See the module.

    Args:
        policies: what is in force.
        profile: clock table that the board profile expects.
        changed: called when the file gave another policy.
        told: called when what is shown of the policy changed, by whatever way.
    """

    def __init__(
        self,
        policies: PolicyFile,
        profile: tuple[OperatingPoint, ...],
        changed: Callable[[], None],
        told: Callable[[], None],
    ) -> None:
        self._policies, self._profile, self._changed, self._told = policies, profile, changed, told
        self._shown = policies.shown()
        self._asked = False
        self._fitted: tuple[Policy | None, tuple[OperatingPoint, ...]] = (None, ())
        self._said: frozenset[str] = frozenset()

    def ask(self) -> None:
        """Read the file with the next tick, changed or not (SIGHUP)."""
        self._asked = True

    def tick(self, kernel: tuple[OperatingPoint, ...]) -> None:
        """Look at the file.

        Args:
            kernel: the board's clock table as last read; empty before the first reading and where there is none.
        """
        asked, self._asked = self._asked, False
        if self._policies.look(at_once=asked):
            self._changed()
            log.info("policy changed", **self._policies.shown())
        shown = self._policies.shown()
        if shown != self._shown:
            self._shown = shown
            self._told()
        self._fit(kernel)

    def _fit(self, kernel: tuple[OperatingPoint, ...]) -> None:
        policy = self._policies.policy
        if (policy, kernel) == self._fitted:
            return
        self._fitted = policy, kernel
        told = {sentence for sentence in (unlisted(self._profile, kernel), *complaints(policy, kernel)) if sentence}
        for sentence in sorted(told - self._said):
            log.warning("policy and board do not fit", policy=policy.name, what=sentence)
        self._said = frozenset(told)
