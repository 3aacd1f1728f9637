"""Tells how commands stand that are answered when something else has ended, until the broker confirmed it."""

from __future__ import annotations

from collections.abc import Mapping

from service.asked import Asked
from service.statuses import Statuses


class Teller:
    """See the module.

    Args:
        statuses: publishes.
    """

    def __init__(self, statuses: Statuses) -> None:
        self._statuses = statuses
        self._in_flight: set[tuple[str, int]] = set()
        self._told: dict[str, int] = {}  # versions that the broker confirmed

    def tell(self, kind: str, command_id: str, now: Asked) -> None:
        """Publish the status of a command, told before or not."""
        done = self._statuses.publish_plain(
            kind, command_id, now.status, now.code, now.reason,
            version=now.version, result=now.result, step=now.step, until=now.until,
        )  # fmt: skip
        if done is not None:
            self._in_flight.add((command_id, now.version))
            done.add_done_callback(lambda future: self._answered(command_id, now, confirmed=future.result()))

    def tell_new(self, asked: Mapping[str, tuple[str, Asked]]) -> None:
        """Publish what the broker has not confirmed and is not on its way.

        Args:
            asked: all commands of the room by id, each with its type.
        """
        self._told = {command_id: version for command_id, version in self._told.items() if command_id in asked}
        for command_id, (kind, now) in asked.items():
            if (command_id, now.version) not in self._in_flight and not self.has(command_id, now):
                self.tell(kind, command_id, now)

    def has(self, command_id: str, now: Asked) -> bool:
        """Whether the broker confirmed how a command stands now."""
        return self._told.get(command_id) == now.version

    def broker_lost(self) -> None:
        """The broker lost what it kept: all is new again."""
        self._told.clear()

    def _answered(self, command_id: str, now: Asked, *, confirmed: bool) -> None:
        self._in_flight.discard((command_id, now.version))
        if confirmed:
            self._told[command_id] = now.version
