"""Who did what, to which boards, when and why: records that are only ever added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Audit:
    """The audit trail."""

    def write(
        self,
        who: str,
        action: str,
        *,
        boards: Sequence[str] = (),
        why: str = "",
        commands: Sequence[str] = (),
        details: Mapping[str, Any] | None = None,
    ) -> int:
        """Add a record, durably, before what it tells of is done; its number.

        Args:
            who: name of the user; `-` where nobody was logged in.
            action: a command type, or `login`, `login-refused`, `logout`, `user-added`, `roll-out-begun`, ...
            boards: whom it concerns.
            why: what the user said.
            commands: ids of the commands that were signed for it.
            details: what else, as JSON values: arguments, the roll-out's id, the address that asked.

        Raises:
            BoardError: it cannot be kept; then the action must not go on.
        """
        raise NotImplementedError
