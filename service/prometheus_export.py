"""Where Prometheus finds the board: a text file for node_exporter, a small web server, or both."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.errors import BoardError
from service.config import Prometheus, split_address
from service.logs import logger

WRITE_EVERY_S = 15.0  # Prometheus' usual interval of scraping: older files would be read twice
MAX_REQUEST_BYTES = 8 << 10  # a scrape has about 400; proxies add some
MAX_CONNECTIONS = 8  # a few scrapers beside each other; each may hold one for REQUEST_S
RETRY_S = 30.0  # an address of a network that comes up late
REQUEST_S = 10.0  # Prometheus' own limit for a scrape
_LINE_END = b"\r\n\r\n"

log = logger("prometheus")


class Exporter:
    """See the module.

    Args:
        settings: see `service.config`.
        view: the live view of this moment.
    """

    def __init__(self, settings: Prometheus, view: Callable[[], Mapping[str, object]]) -> None:
        self._settings, self._view = settings, view
        self._server: asyncio.Server | None = None
        self._written_s: float | None = None
        self._refused = ""
        self._connections = 0

    async def serve(self) -> None:
        """Answer until cancelled, where that is configured; an address that cannot be used yet is tried on."""
        if not self._settings.listen:
            return
        host, port = split_address(self._settings.listen)
        told = ""
        while True:
            try:
                self._server = await asyncio.start_server(self._answer_one, host, port, limit=MAX_REQUEST_BYTES)
                break
            except OSError as error:
                if str(error) != told:
                    log.error("metrics are not served, trying on", host=host, port=port, why=str(error))  # noqa: TRY400 - said whole
                told = str(error)
            await asyncio.sleep(RETRY_S)
        log.info("metrics are served", host=host, port=self.port)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._server.close()

    @property
    def port(self) -> int:
        """Of the server; 0 while there is none."""
        return int(self._server.sockets[0].getsockname()[1]) if self._server and self._server.sockets else 0

    def close(self) -> None:
        """Take the file away: nobody shall believe the last figures."""
        if self._settings.textfile:
            with contextlib.suppress(OSError):
                Path(self._settings.textfile).unlink(missing_ok=True)

    def tick(self, mono_s: float) -> None:
        """Write the file when it is time; call once a second."""
        due = self._written_s is None or mono_s - self._written_s >= WRITE_EVERY_S
        if not self._settings.textfile or not due:
            return
        self._written_s = mono_s
        path = Path(self._settings.textfile)
        fresh = path.with_suffix(".tmp")  # node_exporter reads names that end with .prom
        try:
            fresh.write_text(_page(self._view()), encoding="utf-8")
            fresh.chmod(0o644)  # node_exporter is another user
            fresh.replace(path)
        except (OSError, BoardError) as error:  # a disk that fails must cost figures, not the governor
            if str(error) != self._refused:
                log.warning("the metrics file cannot be written", path=str(path), why=str(error))
            self._refused = str(error)
        else:
            self._refused = ""

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close."""
        self._connections += 1
        try:
            if self._connections > MAX_CONNECTIONS:
                writer.write(_answer(503, b"too many connections\n"))
            else:
                async with asyncio.timeout(REQUEST_S):
                    writer.write(self._reply(await _request_line(reader)))
                    await writer.drain()
        except (TimeoutError, OSError):
            writer.transport.abort()
        finally:
            self._connections -= 1
            writer.close()

    def _reply(self, request: bytes) -> bytes:
        words = request.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):  # noqa: PLR2004 - method, target, version
            return _answer(400, b"no HTTP request of at most 8 KiB\n")
        method, target = words[0], words[1].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _answer(405, b"only GET\n")
        if target != b"/metrics":
            return _answer(404, b"the metrics are at /metrics\n")
        try:
            page = _page(self._view()).encode()
        except BoardError as error:
            return _answer(503, f"{error}\n".encode())
        return _answer(200, page, head=method == b"HEAD")


async def _request_line(reader: asyncio.StreamReader) -> bytes:
    """The first line of a request; empty if it is none, or longer than the limit."""
    try:
        head = await reader.readuntil(_LINE_END)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return b""
    return head.split(b"\r\n", 1)[0]


_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


def _page(view: Mapping[str, object]) -> str:
    from service.prometheus import exposition  # noqa: PLC0415 - not loaded where nobody scrapes

    return exposition(view)


def _answer(code: int, body: bytes, *, head: bool = False) -> bytes:
    from service.prometheus import CONTENT_TYPE  # noqa: PLC0415 - see `_page`

    kind = CONTENT_TYPE if code == 200 else "text/plain; charset=utf-8"  # noqa: PLR2004 - HTTP's OK
    fields = [f"HTTP/1.1 {code} {_REASONS[code]}", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    if code == 405:  # noqa: PLR2004 - HTTP's Method Not Allowed
        fields.append("Allow: GET, HEAD")
    fields.append("Connection: close")
    return "\r\n".join([*fields, "", ""]).encode() + (b"" if head else body)
