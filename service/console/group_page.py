"""Groups of boards: the same ones as those of `temperd fleet group`."""

from __future__ import annotations

import math

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from agent.errors import SpecError
from agent.keys_consoles import Role
from service.config import NAME
from service.console.forms import read_form
from service.console.page import needs, render, room_of, viewer_of
from service.console.roll_out_draft import read_names
from service.fleet.state import FleetState, check_name

SEE_OTHER, NOT_FOUND, UNPROCESSABLE = 303, 404, 422
TABLE_ROWS = 100
MAX_PAGE = 1000
CHANGED = "group-changed"


def _name(request: Request) -> str:
    found = str(request.path_params["name"])
    if not NAME.fullmatch(found):
        raise HTTPException(NOT_FOUND, "no such group")
    return found


@needs(Role.VIEWER)
async def listed(request: Request) -> Response:
    """`/groups`."""
    return await _list(request, {})


async def _list(request: Request, given: dict[str, str], problem: str = "") -> Response:
    room = room_of(request)
    groups = await room.roll_outs.read(lambda state: state.groups(room.settings.tenant))
    return render(
        request,
        "roll_out/groups.html",
        status=UNPROCESSABLE if problem else 200,
        groups=sorted(groups.items()),
        given=given,
        problem=problem,
    )


@needs(Role.OPERATOR)
async def add(request: Request) -> Response:
    """POST `/groups`: make a group, or put boards into one."""
    room, form = room_of(request), await read_form(request)
    name, typed = form.get("name", "").strip(), form.get("boards", "")
    given = {"name": name, "boards": typed}
    try:
        check_name(name)
        boards = read_names(typed)
        if not boards:
            return await _list(request, given, "a group has at least one board")
        details = {"group": name, "added": len(boards)}
        await room.audit.record(viewer_of(request).name, CHANGED, boards=boards, details=details)
        await room.roll_outs.read(lambda state: state.add_members(room.settings.tenant, name, boards))
    except SpecError as error:
        return await _list(request, given, str(error))
    return RedirectResponse(f"/groups/{name}", SEE_OTHER)


@needs(Role.VIEWER)
async def one(request: Request) -> Response:
    """`/groups/{name}`."""
    room, name = room_of(request), _name(request)
    members = (await room.roll_outs.read(lambda state: state.groups(room.settings.tenant))).get(name)
    if not members:
        raise HTTPException(NOT_FOUND, "no such group")
    text = request.query_params.get("page", "1")
    pages = max(1, math.ceil(len(members) / TABLE_ROWS))
    page = min(int(text), pages) if text.isascii() and text.isdigit() and 0 < len(text) <= len(str(MAX_PAGE)) else 1
    page = max(page, 1)
    shown = members[(page - 1) * TABLE_ROWS : page * TABLE_ROWS]
    return render(
        request,
        "roll_out/group.html",
        name=name,
        total=len(members),
        rows=[(board, room.hub.row(board)) for board in shown],
        page=page,
        pages=pages,
    )


@needs(Role.OPERATOR)
async def take_out(request: Request) -> Response:
    """POST `/groups/{name}`: boards out of it, by `board` one, by `all` every one."""
    room, name, form = room_of(request), _name(request), await read_form(request)
    board, tenant = form.get("board", ""), room.settings.tenant
    if not form.get("all") and not NAME.fullmatch(board):
        raise HTTPException(NOT_FOUND, "no such board")
    chosen = () if form.get("all") else (board,)

    def known(state: FleetState) -> tuple[str, ...]:
        members = state.groups(tenant).get(name, ())
        return tuple(member for member in members if not chosen or member in chosen)

    gone = await room.roll_outs.read(known)
    if not gone:
        raise HTTPException(NOT_FOUND, "no such group, or no such board in it")
    details = {"group": name, "removed": len(gone)}
    await room.audit.record(viewer_of(request).name, CHANGED, boards=gone, details=details)
    await room.roll_outs.read(lambda state: state.remove_members(tenant, name, gone))
    left = await room.roll_outs.read(lambda state: state.groups(tenant).get(name))
    return RedirectResponse(f"/groups/{name}" if left else "/groups", SEE_OTHER)


ROUTES: list[BaseRoute] = [
    Route("/groups", listed, methods=["GET"]),
    Route("/groups", add, methods=["POST"]),
    Route("/groups/{name}", one, methods=["GET"]),
    Route("/groups/{name}", take_out, methods=["POST"]),
]
