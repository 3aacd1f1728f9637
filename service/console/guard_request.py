"""What the guard found out of a request, for pages."""

from __future__ import annotations

from starlette.requests import Request

from service.console.guard_limits import Doors, network_of
from service.console.page import room_of, viewer_of
from service.console.sessions import Session

MAX_PATH = 200  # characters that a record of a refusal keeps
_RECORDED = "refusal_recorded"


def path_of(request: Request) -> str:
    """The path that the router goes by. `request.url` is put together with the Host header, which a client chooses."""
    return str(request.scope["path"])


def session_of(request: Request) -> Session | None:
    """The session that a request belongs to."""
    found = request.scope.get("console_session")
    return found if isinstance(found, Session) else None


def doors_of(request: Request) -> Doors:
    """The console's limits."""
    found = request.scope["doors"]
    assert isinstance(found, Doors)
    return found


def address_of(request: Request) -> str:
    """Where a request comes from, as the server or its proxy tells."""
    return request.client.host[:64] if request.client else "?"


async def record_refusal(request: Request, what: str) -> None:
    """Put a refusal on record, once for a request; of one user so many at most.

    Raises:
        BoardError: the audit trail cannot be written.
    """
    viewer, address = viewer_of(request), address_of(request)
    if request.scope.get(_RECORDED):
        return
    request.scope[_RECORDED] = True
    if not doors_of(request).refused.take(viewer.name or network_of(address)):
        details = {"path": path_of(request)[:MAX_PATH], "what": what, "address": address}
        await room_of(request).audit.record(viewer.name, "refused", details=details)
