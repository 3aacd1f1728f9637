"""Who may see what: sessions, CSRF, rate limits and headers in front of every page."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from service.console.room import Room


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, room: Room) -> None:
        self._app, self._room = app, room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the module."""
        raise NotImplementedError
