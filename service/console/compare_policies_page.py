"""Two policies side by side: those that ship, those that were sent from here, or a text."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agent.board.profile import policy_names
from agent.errors import SpecError
from agent.keys_consoles import Role
from service.console.compare_policies import (
    SENT,
    SHIPPED,
    TEXT,
    Chosen,
    key_lines,
    look,
    made_of,
    read_sent,
    sent,
    shipped,
)
from service.console.compare_read import MAX_SEARCH
from service.console.forms import read_form
from service.console.page import needs, render, room_of

if TYPE_CHECKING:
    from service.console.room import Room

SIDES = ("a", "b")
INVALID = 422


@needs(Role.VIEWER)
async def show(request: Request) -> Response:
    """Of policies that ship or were sent; a text has to be posted."""
    given = {key: value for key, value in request.query_params.items() if key in ("a", "b", "board")}
    return await _answer(request, given)


@needs(Role.OPERATOR)
async def show_texts(request: Request) -> Response:
    """The same with texts that were pasted; nothing is kept or sent."""
    return await _answer(request, await read_form(request))


async def _answer(request: Request, given: Mapping[str, str]) -> Response:
    room = room_of(request)
    chosen: dict[str, Chosen | None] = {}
    wrong: dict[str, str] = {}
    for side in SIDES:
        try:
            chosen[side] = await _chosen(room, given.get(side, ""), given.get(f"text_{side}", ""))
        except SpecError as error:
            chosen[side], wrong[side] = None, error.what
    board = given.get("board", "")[:MAX_SEARCH]
    context: dict[str, Any] = {
        "given": {side: given.get(side, "") for side in SIDES},
        "texts": {side: given.get(f"text_{side}", "") for side in SIDES},
        "wrong": wrong,
        "chosen": chosen,
        "shipped": policy_names(),
        "sent": await asyncio.to_thread(sent, room.audit),
        "board": board,
        "lines": None,
    }
    a, b = chosen["a"], chosen["b"]
    if a is not None and b is not None:
        tenant, now, digests = room.settings.tenant, room.now(), (a.sha256, b.sha256)
        lived, read, more = await room.reads(lambda store: look(store, tenant, board, digests, now))
        context |= {
            "lines": key_lines(a.policy, b.policy),
            "lived": dict(zip(SIDES, lived, strict=True)),
            "read": read,
            "more": more,
        }
    return render(request, "compare/policies.html", status=INVALID if wrong else 200, **context)


async def _chosen(room: Room, key: str, text: str) -> Chosen | None:
    """What a form names; `None`: nothing.

    Raises:
        SpecError: no such policy, or a text that is none.
    """
    if key.startswith(SHIPPED):
        return shipped(key.removeprefix(SHIPPED))
    if key.startswith(SENT):
        return await asyncio.to_thread(read_sent, room.audit, key.removeprefix(SENT))
    if key == TEXT:
        return made_of(TEXT, text.replace("\r\n", "\n"))  # browsers send a form's line ends so
    if key:
        return shipped(key)
    return None


ROUTES: list[BaseRoute] = [
    Route("/compare/policies", show, methods=["GET"]),
    Route("/compare/policies", show_texts, methods=["POST"]),
]
