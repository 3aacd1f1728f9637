"""What changes, as server-sent events; and the list as JSON."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from agent.errors import TemperdError
from service.config import NAME
from service.console.guard_request import session_of
from service.console.hub import Event
from service.console.page import room_of
from service.console.room import Room
from service.console.rows import MAX_PAGE_ROWS, summary_table
from service.console.rows_query import read_query
from service.payload import encode_json

MAX_STREAMS = 200  # of all sessions; fifty people with some pages each
MAX_OF_SESSION = 24  # a browser opens six to one server; some of them may have been left behind
BEAT_S = 15.0  # of silence, then a beat: proxies cut what is silent for a minute, and pages want to know
MAX_OF_USER = 100  # half of all: nobody takes the other half by logging in often
SESSION_S = 5.0  # between two looks whether the session still holds
SEND_S = 60.0  # for a reader to take what is sent; its computer sleeps, or is gone
AGAIN_S = 5  # when there were too many
TOO_MANY, NOT_FOUND = 429, 404
_REVISION = re.compile(r"[0-9]{1,17}")
_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # a proxy that gathers what it passes on
}


async def fleet(request: Request) -> Response:
    """A page of the list: `rows`, `total`, `page`, `pages`, `summary` and `revision`.

    Raises:
        SpecError: the address asks for what there is not.
    """
    hub = room_of(request).hub
    found = hub.query(read_query(request.query_params.multi_items()))
    body = {
        "rows": [hub.table(row) for row in found.rows],
        "total": found.total,
        "page": found.page,
        "pages": found.pages,
        "summary": summary_table(hub.summary()),
        "revision": found.revision,
    }
    return Response(encode_json(body), media_type="application/json")


async def live(request: Request) -> Response:
    """The stream: `boards`, `board` and `roll_outs` say of what; `after`, or Last-Event-ID, what was seen."""
    params, room = request.query_params, room_of(request)
    boards = [name for name in params.get("boards", "").split(",") if name]
    board = params.get("board", "")
    names = [*boards, board] if board else boards
    if len(boards) > MAX_PAGE_ROWS or not all(map(NAME.fullmatch, names)):
        raise HTTPException(NOT_FOUND, f"no names of boards, or more than {MAX_PAGE_ROWS}")
    session = session_of(request)
    owner = session.id if session is not None else ""
    open_ones = room.hub.streams
    own = 0 if session is None else sum(open_ones[one.id] for one in room.accounts.sessions.of(session.user.name))
    if open_ones.total() >= MAX_STREAMS or open_ones[owner] >= MAX_OF_SESSION or own >= MAX_OF_USER:
        raise HTTPException(TOO_MANY, "too many open pages", headers={"Retry-After": str(AGAIN_S)})
    seen = request.headers.get("last-event-id") or params.get("after", "")
    after = int(seen) if _REVISION.fullmatch(seen) else -1
    wanted = {"boards": boards, "board": board, "roll_outs": params.get("roll_outs") == "1", "after": after}
    return Stream(room, owner, wanted)


class Stream(Response):
    """An answer that goes on until the reader leaves, its session ends, or it takes nothing for `SEND_S`.

    Args:
        room: the console's parts.
        owner: id of the session.
        wanted: what `Hub.subscribe` is asked.
        beat_s: seconds of silence after which it says that it is still there.
    """

    def __init__(self, room: Room, owner: str, wanted: Mapping[str, Any], beat_s: float = BEAT_S) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._room, self._owner, self._wanted, self._beat_s = room, owner, wanted, beat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the module."""
        streams = self._room.hub.streams
        streams[self._owner] += 1
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                async with self._room.hub.subscribe(**self._wanted) as events:
                    await self._tell(events, gone, send)
            if not gone.done():
                await _send(send, b"", more=False)
        except TimeoutError:
            return  # it takes nothing: the connection is cut when nobody answers
        finally:
            gone.cancel()
            streams[self._owner] -= 1
            if not streams[self._owner]:
                del streams[self._owner]

    async def _tell(self, events: AsyncIterator[Event], gone: asyncio.Future[None], send: Send) -> None:
        hub = self._room.hub
        await _send(send, written("hello", {"revision": hub.revision, "connected": hub.connected}))
        looked, fresh = self._room.monotonic(), asyncio.ensure_future(anext(events))
        try:
            while True:
                await asyncio.wait((fresh, gone), timeout=self._beat_s, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                if self._room.monotonic() - looked >= SESSION_S:
                    looked = self._room.monotonic()
                    if not self._holds():
                        await _send(send, written("ended", {}))
                        return
                if fresh.done():
                    event = fresh.result()
                    fresh = asyncio.ensure_future(anext(events))
                    await _send(send, written(event.name, event.data, event.revision))
                else:
                    await _send(send, written("beat", {}))
        finally:
            fresh.cancel()
            await asyncio.gather(fresh, return_exceptions=True)

    def _holds(self) -> bool:
        """Whether the session does; as long as that cannot be read, as it was."""
        try:
            return self._room.accounts.sessions.by_id(self._owner) is not None
        except TemperdError:
            return True


def written(name: str, data: Mapping[str, Any], revision: int | None = None) -> bytes:
    """An event as it is sent; JSON has no line ends, whatever boards say."""
    number = b"" if revision is None else f"id: {revision}\n".encode()
    return number + f"event: {name}\n".encode() + b"data: " + encode_json(data) + b"\n\n"


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    async with asyncio.timeout(SEND_S):
        await send({"type": "http.response.body", "body": body, "more_body": more})


async def _gone(receive: Receive) -> None:
    """Until the reader has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


ROUTES: list[BaseRoute] = [Route("/api/fleet", fleet), Route("/live", live)]
