"""The web as a board meets it: proxies, silent or trickling peers, and what went wrong in words."""

from __future__ import annotations

import contextlib
import email.utils
import errno
import http.client
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import LocationValueError, ProtocolError, ProxyError, ProxySchemeUnknown

from agent.errors import ConfigError, NetworkError

READ_BYTES = 64 << 10
SILENCE_SECONDS = 30  # a peer silent for longer is gone
GRACE_SECONDS = 60.0  # connecting and small files
LEAST_BYTES_PER_SECOND = 4 << 10  # slower than the slowest cellular link in use: somebody is holding us

OK = 200
PASSING = frozenset({429, 500, 502, 503, 504})  # statuses that may be gone at the next request
MAX_FAILURES = 5  # in a row: the pauses between them add up to 15 s at most, if the server asks for none
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
LONGEST_RETRY_AFTER_SECONDS = 60.0  # a server may ask for so much patience and no more


class SlowPeerError(Exception):
    """Fewer than LEAST_BYTES_PER_SECOND came."""


class BrokenOffError(Exception):
    """This request brought not all, the next one may; says why, and how many seconds the server asks to be left."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class Patience:
    """Waits between the failures of one task, and says when they are enough.

    Args:
        pause: sleeps for so many seconds.
    """

    def __init__(self, pause: Callable[[float], None]) -> None:
        self._pause, self._failures = pause, 0

    def renew(self) -> None:
        """There was progress: the row of failures is over."""
        self._failures = 0

    def failed(self, error: Exception, url: str) -> None:
        """Wait for the next attempt.

        Raises:
            NetworkError: there is to be none: too many failed, or this failure is the same at once again.
        """
        self._failures += 1
        if self._failures == MAX_FAILURES or any(isinstance(link, LASTING) for link in causes(error)):
            if isinstance(error, BrokenOffError):
                raise NetworkError(str(error), where=url) from error
            raise network_error(error, url) from error
        # Full jitter: many boards that lost the same server do not come back at the same moment.
        longest = min(FIRST_PAUSE_SECONDS * 2 ** (self._failures - 1), LONGEST_PAUSE_SECONDS)
        asked = error.after_s if isinstance(error, BrokenOffError) else 0.0
        self._pause(asked + random.SystemRandom().uniform(0.0, longest))


class Web:
    """GET requests to one server, through the proxy that `http_proxy`, `https_proxy` and `no_proxy` name.

    Args:
        url: of the server; decides which proxy.
        monotonic: clock for the least speed, in seconds.
        obey: called before each piece of a body; may wait, gives the seconds that it waited, and may raise what ends
            the request.

    Raises:
        ConfigError: the proxy's address is not http or https.
    """

    def __init__(
        self, url: str, monotonic: Callable[[], float] = time.monotonic, obey: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._monotonic, self._obey = monotonic, obey
        timeout = urllib3.Timeout(SILENCE_SECONDS)
        # Its own waiting for Retry-After knows no bound.
        retries = urllib3.Retry(connect=1, read=0, redirect=3, other=0, respect_retry_after_header=False)
        proxy = _proxy(url)
        if proxy is None:
            self._pool = urllib3.PoolManager(timeout=timeout, retries=retries)
            return
        parts = urlsplit(proxy)
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
        headers = urllib3.make_headers(proxy_basic_auth=login) if login else None
        try:
            self._pool = urllib3.ProxyManager(proxy, proxy_headers=headers, timeout=timeout, retries=retries)
        except (ProxySchemeUnknown, LocationValueError) as error:
            where = f"{parts.scheme}://{parts.hostname}"  # without the password
            raise ConfigError("address of the proxy is not http or https", where=where) from error

    @contextlib.contextmanager
    def get(self, url: str, offset: int = 0) -> Iterator[urllib3.BaseHTTPResponse]:
        """The answer, its body not yet read; from byte `offset` on where the server can.

        Raises:
            HTTPError: of urllib3, see `network_error`.
        """
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
        response = self._pool.request("GET", url, headers=headers, preload_content=False)
        try:
            yield response
        finally:
            response.close()

    def chunks(self, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        """The body as it arrives, at most READ_BYTES at a time, so that a trickle is noticed.

        Time in which `obey` waits is not the peer's.

        Raises:
            SlowPeerError: GRACE_SECONDS are over and the speed is below LEAST_BYTES_PER_SECOND.
            HTTPError: of urllib3, see `network_error`.
        """
        started, received = self._monotonic(), 0
        while True:
            started += self._obey()
            chunk = response.read1(READ_BYTES, decode_content=False)
            if not chunk:
                return
            received += len(chunk)
            if self._monotonic() - started > GRACE_SECONDS + received / LEAST_BYTES_PER_SECOND:
                raise SlowPeerError(f"fewer than {LEAST_BYTES_PER_SECOND} bytes a second")
            yield chunk


def check_status(response: urllib3.BaseHTTPResponse, url: str) -> None:
    """Refuse every answer that is not the file.

    Raises:
        BrokenOffError: the status may pass.
        NetworkError: it is the same at once again.
    """
    if response.status == OK:
        return
    what = f"repository answers with HTTP status {response.status}"
    if response.status in PASSING:
        raise BrokenOffError(what, retry_after_s(response))
    raise NetworkError(what, where=url)


def retry_after_s(response: urllib3.BaseHTTPResponse) -> float:
    """Seconds the server asks to be left alone, within bounds; 0 if it does not say so in a way that can be read."""
    said = response.headers.get("Retry-After", "")
    if re.fullmatch("[0-9]{1,9}", said):
        return min(float(said), LONGEST_RETRY_AFTER_SECONDS)
    try:  # a date counts from the server's own date: the board's clock may be wrong
        at, now = (email.utils.parsedate_to_datetime(text) for text in (said, response.headers.get("Date", "")))
        return min(max(0.0, (at - now).total_seconds()), LONGEST_RETRY_AFTER_SECONDS)
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _proxy(url: str) -> str | None:
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


LASTING = (ssl.SSLCertVerificationError, LocationValueError, SlowPeerError)  # the same at once again
_CUT_OFF = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, http.client.HTTPException, ProtocolError)
_WORDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (socket.gaierror, "its name cannot be resolved"),
    (ssl.SSLError, "no secure connection can be made"),
    (ConnectionRefusedError, "connection refused"),
    (_CUT_OFF, "the connection was cut off"),
    ((TimeoutError, urllib3.exceptions.ReadTimeoutError), f"no answer for {SILENCE_SECONDS} seconds"),
)
_NO_WAY = {errno.ENETUNREACH: "the board has no network", errno.EHOSTUNREACH: "there is no way to it"}


def network_error(error: Exception, where: str) -> NetworkError:
    """An exception of `Web` in words; `where` is the address asked."""
    links = causes(error)
    if isinstance(error, SlowPeerError):
        return NetworkError("repository is too slow", where=where)
    who = "proxy" if any(isinstance(link, ProxyError) for link in links) else "repository"
    return NetworkError(f"{who} is unreachable: {_words(links)}", where=where)


def _words(links: list[BaseException]) -> str:
    for link in links:
        if isinstance(link, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted, {link.verify_message}"  # such as "not yet valid": a wrong clock
        if isinstance(link, OSError) and link.errno in _NO_WAY:
            return _NO_WAY[link.errno]
    for kind, words in _WORDS:
        if any(isinstance(link, kind) for link in links):
            return words
    return (str(links[-1]) or type(links[-1]).__name__)[:200]


def causes(error: BaseException) -> list[BaseException]:
    """The exception and all that it wraps, in whatever way it wraps them."""
    found: list[BaseException] = []
    todo: list[object] = [error]
    while todo:
        link = todo.pop(0)
        if isinstance(link, BaseException) and link not in found:
            found.append(link)
            todo += [getattr(link, "reason", None), link.__cause__, *link.args]
    return found
