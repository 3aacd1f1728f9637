"""Who did what, and why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from agent.errors import SpecError
from agent.keys_consoles import Role
from service.config import NAME
from service.console.audit import MAX_TEXT, Wanted
from service.console.page import needs, render, room_of

AUDIT = "/audit"
ROWS = 50
DIGITS = 15  # of a number in a URL: SQLite holds it, and the trail has a million
FILTERS = ("who", "action", "board", "since", "until")


@needs(Role.OPERATOR)
async def audit_page(request: Request) -> Response:
    """Records, the newest first, by user, action, board and day."""
    room, asked = room_of(request), request.query_params
    wanted = read_wanted(asked)
    found, people, actions = await asyncio.to_thread(
        lambda: (room.audit.page(wanted), room.audit.people(), room.audit.actions())
    )
    rows, more = found[:ROWS], len(found) > ROWS
    kept = {key: asked[key] for key in FILTERS if asked.get(key)}
    older = f"{AUDIT}?{urlencode({**kept, 'before': str(rows[-1].id)})}" if more else ""
    newest = f"{AUDIT}?{urlencode(kept)}" if wanted.before else ""
    details = {row.id: json.dumps(row.details, indent=1, ensure_ascii=False) for row in rows if row.details}
    filtered = {key: kept.get(key, "") for key in FILTERS}
    shown: dict[str, Any] = {
        "rows": rows,
        "people": people,
        "actions": actions,
        "asked": filtered,
        "older": older,
        "newest": newest,
    }
    return render(request, "audit/audit.html", details=details, **shown)


def read_wanted(asked: Mapping[str, str]) -> Wanted:
    """The filter of a page from its URL; days are in UTC, the last one is within.

    Raises:
        SpecError: a part that does not fit.
    """
    before, board = asked.get("before", ""), asked.get("board", "").strip().lower()
    if before and not (before.isascii() and before.isdecimal() and len(before) <= DIGITS and int(before)):
        raise SpecError("not the number of a record", where="before")
    if board and not NAME.fullmatch(board):
        raise SpecError("not the name of a board", where="board")
    for key in ("who", "action"):
        if len(asked.get(key, "")) > MAX_TEXT:
            raise SpecError("too long", where=key)
    return Wanted(
        who=asked.get("who", ""),
        action=asked.get("action", ""),
        board=board,
        since=_day(asked, "since", 0),
        until=_day(asked, "until", 1),
        before=int(before or 0),
        rows=ROWS + 1,
    )


def _day(asked: Mapping[str, str], key: str, later: int) -> float | None:
    text = asked.get(key, "")
    if not text:
        return None
    try:
        day = datetime.strptime(text[:10], "%Y-%m-%d").replace(tzinfo=UTC)
        return (day + timedelta(days=later)).timestamp()
    except (ValueError, OverflowError) as error:
        raise SpecError("not a day, such as 2026-12-31", where=key) from error


ROUTES: list[BaseRoute] = [Route(AUDIT, audit_page)]
