"""Tells how commands stand that are answered when something else has ended, until the broker confirmed it."""

from __future__ import annotations

from collections.abc import Callable

from service.asked import Asked
from service.statuses import Statuses


class Teller:
    """See the module.

    Args:
        statuses: publishes.
        confirmed: called with the id of a command whose last status the broker has.
    """

    def __init__(self, statuses: Statuses, confirmed: Callable[[str], None]) -> None:
        self._statuses, self._confirmed = statuses, confirmed
        self._in_flight: set[tuple[str, int]] = set()
        self._told: dict[str, int] = {}  # confirmed versions of open commands; one that ended is forgotten

    def tell(self, kind: str, command_id: str, now: Asked) -> None:
        """Publish the status of a command, told before or not."""
        done = self._statuses.publish_plain(
            kind, command_id, now.status, now.code, now.reason, version=now.version, result=now.result
        )
        if done is not None:
            self._in_flight.add((command_id, now.version))
            done.add_done_callback(lambda future: self._answered(command_id, now, confirmed=future.result()))

    def tell_new(self, kind: str, command_id: str, now: Asked) -> None:
        """The same, unless the broker has it or it is on its way."""
        if (command_id, now.version) not in self._in_flight and self._told.get(command_id) != now.version:
            self.tell(kind, command_id, now)

    def broker_lost(self) -> None:
        """The broker lost what it kept: all is new again."""
        self._told.clear()

    def _answered(self, command_id: str, now: Asked, *, confirmed: bool) -> None:
        self._in_flight.discard((command_id, now.version))
        if not confirmed:
            return
        if now.ended:
            self._told.pop(command_id, None)
            self._confirmed(command_id)
        else:
            self._told[command_id] = now.version
