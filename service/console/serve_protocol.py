"""The web server's side of a connection: whoever opens one and says nothing does not keep it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.console.guard_limits import network_of
from service.logs import logger

HEADER_S = 15.0  # for the head of a request, from its first byte on, or from the beginning of the connection
UNREAD_S = 60.0  # for a reader to take a piece of what is sent, 64 KiB at most
MAX_OF_ADDRESS = 256  # half of all connections: who holds these leaves the others' alone
_log = logger("console")


class PunctualProtocol(H11Protocol):
    """uvicorn's, with times for each request and its answer, and a number of connections for each address.

    A head has `HEADER_S`, and so has what is left of a body once it was answered. An answer that nobody reads is given
    up after `UNREAD_S`.
    """

    network = ""
    """What the other side is counted by, see `network_of`."""
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self.network = network_of(self.client[0]) if self.client else ""
        behind_proxy = self.config.proxy_headers  # then all have one address, and the proxy counts
        same = [1 for one in self.connections if getattr(one, "network", None) == self.network]
        if not behind_proxy and len(same) > MAX_OF_ADDRESS:
            transport.abort()
            return
        self._mind()

    def data_received(self, data: bytes) -> None:
        """Some of a request came."""
        super().data_received(data)
        self._mind()

    def on_response_complete(self) -> None:
        """An answer is whole."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._mind()
        if self.transport.is_closing():
            self._expect_reading()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came after an answer."""
        super().timeout_keep_alive_handler()
        self._expect_reading()

    def pause_writing(self) -> None:
        """The client does not take what is sent as fast as it comes."""
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        """It took it."""
        super().resume_writing()
        self._stop_expecting()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_minding()
        self._stop_expecting()
        super().connection_lost(exc)

    def _mind(self) -> None:
        """Expect a head, or what is left of a body that was answered: whoever only trickles it keeps no connection."""
        answered = self.conn.our_state in (h11.DONE, h11.MUST_CLOSE)
        if self.conn.their_state is not h11.IDLE and not (self.conn.their_state is h11.SEND_BODY and answered):
            self._stop_minding()
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(HEADER_S, self.transport.abort)

    def _stop_minding(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _expect_reading(self) -> None:
        if self._unread is None:
            self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def _stop_expecting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


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
