"""The console as a process: its parts opened and closed in order, and the web server in front of them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from agent.durable import only_holder
from agent.errors import BoardError, ConfigError, SpecError
from service.console.accounts import LINK_S, Accounts
from service.console.app import build_app
from service.console.audit import Audit
from service.console.audit_outcomes import follow_outcomes
from service.console.guard_rules import MAX_HEADER_BYTES, MAX_QUERY_BYTES, SET_UP, spelled
from service.console.hub import Hub
from service.console.reads import Reads
from service.console.roll_outs import RollOuts
from service.console.room import Room, Settings
from service.console.serve_protocol import PunctualProtocol, log_as_we_do
from service.console.signer import Signer
from service.logs import logger

MAX_CONNECTIONS = 512  # fifty people's pages: a stream each, and six connections beside it while a page loads
BACKLOG = 128
LOCK = "console.lock"  # in the folder of the state
KEEP_ALIVE_S = 15
GRACE_S = 1  # for answers that are under way
FOLDED = 4096  # the request line and what else h11 counts, beside headers and query
_log = logger("console")


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the console is reached.

    Attributes:
        host: address to listen at.
        port: 0: any that is free.
        cert: file of our certificate chain, PEM; empty: no TLS.
        key: file of its private key.
        proxies: addresses of the reverse proxies whose X-Forwarded headers are believed; empty: there is none.
    """

    host: str
    port: int
    cert: str = ""
    key: str = ""
    proxies: str = ""


@asynccontextmanager
async def open_room(
    settings: Settings, *, now: Callable[[], float], monotonic: Callable[[], float]
) -> AsyncIterator[Room]:
    """All parts of a console at work, for as long as the block lasts.

    Args:
        settings: see there.
        now: wall clock, seconds since 1970.
        monotonic: monotonic clock, seconds.

    Raises:
        BoardError: a file cannot be used, or others may read it; `busy`, another console works with the folder.
        ArtifactError: the console key is broken.
        NetworkError: the store's database cannot be reached.
    """
    async with contextlib.AsyncExitStack() as parts:
        signer = Signer(Path(settings.key) if settings.key else None)
        accounts = Accounts(settings.state, now)
        parts.callback(accounts.close)
        parts.enter_context(_alone(settings.state))
        audit = Audit(settings.state, now)
        parts.callback(audit.close)
        reads = Reads(settings.store)
        parts.callback(reads.close)
        parts.push_async_callback(reads.rest)
        hub = await parts.enter_async_context(Hub(settings, reads, now=now, monotonic=monotonic))
        roll_outs = await parts.enter_async_context(RollOuts(settings, hub, signer, now=now, audit=audit))
        room = Room(settings, now, monotonic, hub, reads, accounts, audit, signer, roll_outs)
        await parts.enter_async_context(follow_outcomes(room))
        number, digest = audit.head()
        _log.info("audit trail", records=number, hash=digest)
        yield room


async def serve(
    settings: Settings,
    listening: Listening,
    *,
    now: Callable[[], float],
    monotonic: Callable[[], float],
    say: Callable[[str], None],
    until: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, or until an event.

    Args:
        settings: of the parts.
        listening: where.
        now: wall clock, seconds since 1970.
        monotonic: monotonic clock, seconds.
        say: tells the person who started it a line: where it is, and the set-up link while there is no owner.
        until: ends it from within.

    Raises:
        BoardError: the address is taken or not ours; and as `open_room`.
        ConfigError: the certificate or its key cannot be used.
    """
    log_as_we_do()
    context = _tls(listening) if listening.cert else None
    stopped = until or asyncio.Event()
    with _listen(listening) as door, _signals(stopped):
        async with open_room(settings, now=now, monotonic=monotonic) as room:
            server = _Server(_config(build_app(room), listening, context))
            address = where(settings, listening, door.getsockname()[1])
            if not room.accounts.has_owner():
                say(f"no owner yet; within {LINK_S / 60:.0f} minutes, once: {set_up_link(room.accounts, address)}")
            say(f"console: {address}/")
            serving = asyncio.create_task(server.serve([door]))
            ending = asyncio.create_task(stopped.wait())
            await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
            room.closing = True
            for task in tuple(room.streams):  # they never end by themselves
                task.cancel()
            server.should_exit = True
            ending.cancel()
            await serving


def where(settings: Settings, listening: Listening, port: int) -> str:
    """The address for a browser, without a slash at its end."""
    name = spelled(settings.names[0] if settings.secure else listening.host)  # without TLS it is loopback
    if listening.proxies:
        return f"{'https' if settings.secure else 'http'}://{name}"
    return f"{'https' if listening.cert else 'http'}://{name}:{port}"


def set_up_link(accounts: Accounts, address: str, user: str = "") -> str:
    """A one-time link: of the first owner, or of a user who sets a new password.

    Raises:
        SpecError: see `Accounts.make_link`.
    """
    return f"{address}{SET_UP}?token={accounts.make_link(user)}"


class _Server(uvicorn.Server):
    """Signals are ours: uvicorn raises them once more when it has ended, and a clean end would be none."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: ASGIApp, listening: Listening, context: ssl.SSLContext | None) -> uvicorn.Config:
    def tls(_config: uvicorn.Config, _usual: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
        assert context is not None
        return context

    return uvicorn.Config(
        app,
        http=PunctualProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(listening.proxies),
        forwarded_allow_ips=listening.proxies or None,
        limit_concurrency=MAX_CONNECTIONS,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES + MAX_QUERY_BYTES + FOLDED,
        ssl_context_factory=tls if context else None,
        ssl_certfile=listening.cert or None,
        ssl_keyfile=listening.key or None,
    )


def _tls(listening: Listening) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for file in filter(None, (listening.cert, listening.key)):
        try:
            with Path(file).open("rb"):  # else nobody would know which of the two it is
                pass
        except OSError as error:
            raise ConfigError(f"a file of TLS cannot be read: {error.strerror}", where=file) from error
    try:
        # Without a password OpenSSL would ask for one at a terminal that may not be there.
        context.load_cert_chain(listening.cert, listening.key or None, password="")
    except OSError as error:  # SSLError is one
        what = f"the certificate and its key cannot be used: {error.strerror or error}"
        fix = "Both are PEM: in --tls-cert the chain, in --tls-key the private key of it, without a passphrase"
        raise ConfigError(what, where=f"{listening.cert}, {listening.key}", fix=fix) from error
    return context


def _alone(state: Path) -> AbstractContextManager[None]:
    """Two consoles on one folder would take the broker's session from each other, and each other's roll-outs."""
    fix = "Stop it, or name another folder with --state"
    refusal = BoardError("another console works with this folder", where=str(state), fix=fix, reason="busy")
    return only_holder(state / LOCK, refusal)


@contextmanager
def _listen(listening: Listening) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in listening.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind((listening.host, listening.port))
            door.listen(BACKLOG)
        except OSError as error:
            raise _unreachable(listening, error) from error
        yield door


def _unreachable(listening: Listening, error: OSError) -> BoardError | SpecError:
    place = f"--listen {listening.host}:{listening.port}"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return SpecError("this machine has no such address", where=place, fix="Name one of its own, or 127.0.0.1")
    if error.errno == errno.EADDRINUSE:
        fix = "Another program listens there: name another port with --listen"
        return BoardError("the port is taken", where=place, fix=fix, reason="port-taken")
    return BoardError(f"cannot listen: {error.strerror}", where=place, reason="listen")


@contextmanager
def _signals(stopped: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT)
    try:
        for number in numbers:
            loop.add_signal_handler(number, stopped.set)
    except (RuntimeError, ValueError):  # not the main thread: a test; `until` ends it
        numbers = ()
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
