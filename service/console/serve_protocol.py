"""The web server's side of a connection: whoever opens one and says nothing does not keep it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.logs import logger

HEADER_S = 15.0  # for the head of a request, from its first byte on, or from the beginning of the connection
MAX_OF_ADDRESS = 256  # half of all connections: who holds these leaves the others' alone
_log = logger("console")


class PunctualProtocol(H11Protocol):
    """uvicorn's, with a time for the head of each request, and a number of connections for each address."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        host = _host(self)
        behind_proxy = self.config.proxy_headers  # then all have one address, and the proxy counts
        if not behind_proxy and len([1 for one in self.connections if _host(one) == host]) > MAX_OF_ADDRESS:
            transport.abort()
            return
        self._mind()

    def data_received(self, data: bytes) -> None:
        """Some of a request came."""
        super().data_received(data)
        self._mind()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_minding()
        super().connection_lost(exc)

    def _mind(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop_minding()
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(HEADER_S, self.transport.abort)

    def _stop_minding(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _host(connection: object) -> tuple[object, ...]:
    return (getattr(connection, "client", None) or ())[:1]


class ToOurLog(logging.Handler):
    """What uvicorn logs, among what the console logs: a page's fault with its trace, in the log alone."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        told: dict[str, Any] = {"exc_info": record.exc_info} if record.exc_info else {}
        event = record.getMessage().strip()
        (_log.error if record.levelno >= logging.ERROR else _log.warning)(event, **told)


def log_as_we_do() -> None:
    """Lead uvicorn's warnings and errors into our log."""
    for name in ("uvicorn", "uvicorn.error"):
        foreign = logging.getLogger(name)
        foreign.handlers[:] = [ToOurLog(logging.WARNING)]
        foreign.propagate = False
        foreign.setLevel(logging.WARNING)
