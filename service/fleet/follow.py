"""Following commands to their ends, whichever boards they went to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from service.config import NAME
from service.fleet.boards import is_newer
from service.fleet.outcome import NOT_ENDED, Outcome, of_status

MAX_COMMANDS = 20_000  # one for each board of a tenant


@dataclass(frozen=True, slots=True)
class Told:
    """One status of a command that is followed."""

    board: str
    type: str
    id: str
    body: Mapping[str, object]


class Follow:
    """Commands that are followed; `take` is given to the link.

    Only the board that a command went to is heard about it: any other may write below its own root what it likes.

    Args:
        sent: board by id of each command; empty where it is not known: then whoever speaks of it first.
    """

    def __init__(self, sent: Mapping[str, str]) -> None:
        self.outcomes = dict.fromkeys(sent, Outcome.OPEN)
        """By command id."""
        self.seen: set[str] = set()
        """Boards with commands that said anything."""
        self._boards, self._named = dict(sent), frozenset(sent.values())
        self._latest: dict[str, Mapping[str, object]] = {}
        self._news: deque[Told] = deque()
        self._arrived = asyncio.Event()

    def take(self, topic: str, body: Mapping[str, object] | None, _retained: bool) -> None:  # noqa: FBT001 - a callback
        """See `FleetLink`."""
        levels = topic.split("/")
        self.seen.update(self._named.intersection(levels[3:4]))
        match levels[3:]:
            case [board, "cmd", kind, command_id, "sts"] if body is not None and self._is_of(board, command_id):
                before = self._latest.get(command_id)
                if before is None or (is_newer(body, before) and body != before):
                    self._latest[command_id] = body
                    self.outcomes[command_id] = of_status(body.get("status"))
                    self._news.append(Told(board, kind, command_id, body))
                    self._arrived.set()

    def _is_of(self, board: str, command_id: str) -> bool:
        if self._boards.get(command_id) == "" and NAME.fullmatch(board):
            self._boards[command_id] = board
        return self._boards.get(command_id) == board != ""

    def open(self) -> list[str]:
        """Ids of those that have not ended."""
        return [command_id for command_id, outcome in self.outcomes.items() if outcome in NOT_ENDED]

    async def to_the_end(self, tell: Callable[[Told], None]) -> None:
        """Return once all have ended; each new status is told, in order."""
        while True:
            self._arrived.clear()
            while self._news:
                tell(self._news.popleft())
            if not self.open():
                return
            await self._arrived.wait()
