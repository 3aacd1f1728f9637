"""How signed commands ended, for the audit trail: looked up in what boards said, as long as a command is open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from agent.errors import TemperdError
from service.console.audit import Open
from service.console.device_reads import parsed
from service.console.hub_ingest import say_fault
from service.fleet.boards import is_final
from service.logs import logger

if TYPE_CHECKING:
    from service.console.room import Room
    from service.fleet.store import Store

EVERY_S = 5.0  # between two looks: nobody waits for a record
STORE_EVERY = 60  # looks between two at the store, which knows what was said while the console was away
MAX_ASKED = 200  # boards the store is asked about at a time
_log = logger("console")


@asynccontextmanager
async def follow_outcomes(room: Room) -> AsyncIterator[None]:
    """Record outcomes as long as the block lasts."""
    task = asyncio.create_task(_follow(room), name="outcomes")
    task.add_done_callback(say_fault)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _follow(room: Room) -> None:
    looks = 0
    while True:
        stored = looks % STORE_EVERY == 0
        try:
            await look(room, stored=stored, turn=looks // STORE_EVERY)
        except TemperdError as error:
            _log.warning("outcomes of commands are not recorded", error=str(error))
        looks += 1
        await asyncio.sleep(EVERY_S)


async def look(room: Room, *, stored: bool, turn: int = 0) -> int:
    """Record what has ended since the last look; how many.

    Args:
        room: the console's parts.
        stored: whether the store is asked, too.
        turn: how often it was asked before: of many boards each is asked in its turn.

    Raises:
        BoardError, NetworkError: the trail or the store cannot be used.
    """
    waiting = await asyncio.to_thread(room.audit.open_commands)
    ended = [(one, status) for one in waiting if (status := _live(room, one)) is not None]
    if stored:
        known = {one.id for one, _ in ended}
        ended += await _from_store(room, [one for one in waiting if one.id not in known], turn)
    for one, status in ended:
        await asyncio.to_thread(room.audit.outcome, one, status)
    return len(ended)


def _live(room: Room, command: Open) -> Mapping[str, Any] | None:
    board = room.hub.board(command.board)
    _, status = board.statuses.get(command.id, ("", {})) if board else ("", {})
    return status if status and is_final(status) else None


async def _from_store(room: Room, waiting: list[Open], turn: int) -> list[tuple[Open, Mapping[str, Any]]]:
    by_board: dict[str, dict[str, Open]] = {}
    for one in waiting:
        by_board.setdefault(one.board, {})[one.id] = one
    found: list[tuple[Open, Mapping[str, Any]]] = []
    for name in in_turn(list(by_board), turn):
        for body in map(parsed, await room.reads(partial(_statuses, room.settings.tenant, name))):
            command_id = body.get("id")
            command = by_board[name].get(command_id) if isinstance(command_id, str) else None
            if command is not None and is_final(body):
                found.append((command, body))
    return found


def in_turn(boards: Sequence[str], turn: int) -> Sequence[str]:
    """Those that are asked this time: boards that never answer, such as scrapped ones, do not keep others waiting."""
    parts = max(1, -(-len(boards) // MAX_ASKED))
    first = turn % parts * MAX_ASKED
    return boards[first : first + MAX_ASKED]


def _statuses(tenant: str, name: str, store: Store) -> list[str]:
    return store.statuses(tenant, name)
