"""The fleet as it is now: rows for the list, what changes for whoever looks, and the way to the broker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from service.console.rows import FleetPage, FleetQuery, Row, Summary
from service.fleet.boards import Board
from service.fleet.fleet_link import FleetLink


@dataclass(frozen=True, slots=True)
class Event:
    """Something for open pages: `name` of the server-sent event, its data as JSON values, and the hub's revision."""

    name: str
    data: Mapping[str, Any]
    revision: int


class Hub:
    """See the module. An asynchronous context manager: consumes inside the block."""

    revision: int
    """Rises with every change of a row."""

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""
        raise NotImplementedError

    @property
    def link(self) -> FleetLink:
        """The connection that listens and sends."""
        raise NotImplementedError

    def query(self, query: FleetQuery) -> FleetPage:
        """A page of the list: what fits the filter, sorted, and how many there are in all."""
        raise NotImplementedError

    def summary(self) -> Summary:
        """How many boards there are of each kind."""
        raise NotImplementedError

    def row(self, name: str) -> Row | None:
        """One board of the list."""
        raise NotImplementedError

    def board(self, name: str) -> Board | None:
        """All that was heard of one board since the console runs, as `temperd fleet` has it."""
        raise NotImplementedError

    async def capability(self, name: str, kind: str) -> Mapping[str, Any] | None:
        """What a board says of a command type (`cmd/<type>`), asked from the broker if need be; `None`: nothing."""
        raise NotImplementedError

    async def birth(self, name: str) -> Mapping[str, Any]:
        """The whole birth of a board, asked from the store or the broker; empty: none."""
        raise NotImplementedError

    async def send(self, device: str, kind: str, command_id: str, envelope: bytes, *, valid_s: int) -> None:
        """Publish a signed command. Its statuses come as `status` events of the board.

        Raises:
            NetworkError: the broker did not confirm it.
        """
        raise NotImplementedError

    def subscribe(
        self, *, boards: Collection[str] = (), board: str = "", roll_outs: bool = False, after: int = -1
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """What changes, gathered twice a second at most, as long as the block lasts.

        Args:
            boards: rows of these as `rows` events, with the summary.
            board: everything of this one: `status`, `metrics`, `alarm`, `conn`, `birth` events.
            roll_outs: `roll-out` events.
            after: the last revision seen: what changed since comes first. -1: nothing was seen.
        """
        raise NotImplementedError

    def publish(self, event: str, data: Mapping[str, Any]) -> None:
        """Tell subscribers of something that the console itself made, such as a roll-out's counts."""
        raise NotImplementedError
