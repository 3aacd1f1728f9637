"""The connections of temperd-powerd: who may ask, how often, and whose limits count."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from agent.board.powerd_limits import Limits
from agent.board.powerd_wire import MAX_REQUEST_BYTES, VERSION, Refusal, Request, parse_request

MAX_CONNECTIONS = 4  # the daemon, one that is just starting, and somebody who looks
REQUESTS_PER_S, REQUEST_BURST = 20.0, 40.0  # the daemon asks once a second for each of a dozen levers at most
ACCEPTS_PER_S, ACCEPT_BURST = 5.0, 10.0
MUTED_S = 1.0  # a connection that asks too often is not read for so long
IDLE_CONNECTION_S = 10.0  # without a limit held; the daemon connects again when it needs to
PUT_BACK_EVERY_S = 1.0  # between attempts to put back what the kernel refused
_SO_PEERGROUPS = 59  # asm-generic/socket.h; Linux 4.13
_PEER_IDS = struct.Struct("=iII")
_MAX_GROUPS_BYTES = 1024  # as much as socket.getsockopt gives: 256 groups
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL


@dataclass(frozen=True, slots=True)
class Peer:
    """Who connected, as the kernel says."""

    uid: int
    groups: frozenset[int]


@dataclass(slots=True)
class _Bucket:
    """A token bucket: `rate` a second, `burst` at once."""

    rate: float
    burst: float
    full: float = field(init=False)
    then_s: float = 0.0

    def __post_init__(self) -> None:
        self.full = self.burst

    def fill(self, now_s: float) -> bool:
        """Whether there is a token now."""
        self.full = min(self.full + (now_s - self.then_s) * self.rate, self.burst)
        self.then_s = now_s
        return self.full >= 1.0

    def take(self, now_s: float) -> bool:
        if not self.fill(now_s):
            return False
        self.full -= 1.0
        return True


@dataclass(eq=False, slots=True)
class _Connection:
    sock: socket.socket
    peer: Peer
    last_s: float
    muted_until_s: float = 0.0
    bucket: _Bucket = field(default_factory=lambda: _Bucket(REQUESTS_PER_S, REQUEST_BURST))

    def count(self, now_s: float) -> None:
        """One request more.

        Raises:
            Refusal: `rate`; the connection is then not read for a while.
        """
        if not self.bucket.take(now_s):
            self.muted_until_s = now_s + MUTED_S
            raise Refusal("rate", f"more than {REQUESTS_PER_S:.0f} requests a second; not read for {MUTED_S:.0f} s")


class Server:
    """Answers requests; whoever sets a limit first holds all limits until it restores them or is gone.

    Args:
        listener: a listening socket of type SOCK_SEQPACKET.
        limits: what is set and put back.
        sys_root: said to clients, so that none steers another tree than it reads.
        throttled: the firmware's bits.
        allowed: whether this peer may ask anything.
        clock: monotonic seconds.
        say: where messages for the journal go.
    """

    def __init__(
        self,
        listener: socket.socket,
        limits: Limits,
        sys_root: str,
        throttled: Callable[[], int],
        allowed: Callable[[Peer], bool],
        clock: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        self._listener, self._limits, self._sys_root = listener, limits, sys_root
        self._throttled, self._allowed, self._clock, self._say = throttled, allowed, clock, say
        self._connections: dict[int, _Connection] = {}
        self._holder: _Connection | None = None
        self._accepts = _Bucket(ACCEPTS_PER_S, ACCEPT_BURST)
        self._refused: tuple[str, ...] = ()
        self._put_back_s = self._busy_s = clock()
        listener.setblocking(False)

    @property
    def idle_s(self) -> float:
        """How long nobody has been connected and nothing held."""
        idle = not self._connections and not self._limits.held
        return self._clock() - self._busy_s if idle else 0.0

    def turn(self, longest_s: float, wake: int = -1) -> None:
        """Wait for events, at most `longest_s` or until the descriptor `wake` is readable, and deal with each once."""
        for number, events in self._wait(longest_s, wake):
            if number == self._listener.fileno():
                self._accept()
            elif connection := self._connections.get(number):
                if events & _GONE:  # what it still asked for does not count: its limits go
                    self._drop(connection)
                else:
                    self._serve(connection)
        self._tidy()

    def close(self) -> None:
        """Put everything back and let go of all connections."""
        for connection in tuple(self._connections.values()):
            self._drop(connection)
        self.put_back()

    def put_back(self) -> None:
        """Put back what is not as found; what is refused is said once and tried again."""
        refused = self._limits.restore()
        self._put_back_s = self._clock()
        for text in refused:
            if text not in self._refused:
                self._say(f"not put back: {text}")
        self._refused = refused

    def _wait(self, longest_s: float, wake: int) -> list[tuple[int, int]]:
        now = self._clock()
        poll = select.poll()
        if wake >= 0:
            poll.register(wake, select.POLLIN)
        wait_s = longest_s
        if self._accepts.fill(now):
            poll.register(self._listener, select.POLLIN)
        else:
            wait_s = min(wait_s, 1.0 / ACCEPTS_PER_S)
        for number, connection in self._connections.items():
            muted_s = connection.muted_until_s - now
            poll.register(number, 0 if muted_s > 0 else select.POLLIN)  # its end is told all the same
            wait_s = min(wait_s, muted_s if muted_s > 0 else IDLE_CONNECTION_S)
        if self._holder is None and self._limits.held:
            wait_s = min(wait_s, PUT_BACK_EVERY_S)
        return poll.poll(max(wait_s, 0.0) * 1000)

    def _tidy(self) -> None:
        now = self._clock()
        for connection in tuple(self._connections.values()):
            if connection is not self._holder and now - connection.last_s >= IDLE_CONNECTION_S:
                self._drop(connection)
        if self._holder is None and self._limits.held and now - self._put_back_s >= PUT_BACK_EVERY_S:
            self.put_back()
        if self._connections or self._limits.held:
            self._busy_s = now
        for text in self._limits.warnings:
            self._say(text)
        self._limits.warnings.clear()

    def _accept(self) -> None:
        now = self._clock()
        if not self._accepts.take(now):
            return
        try:
            sock, _ = self._listener.accept()
        except OSError:  # gone again, or no descriptor free
            return
        sock.setblocking(False)
        self._busy_s = now
        refusal = None
        try:
            peer = peer_of(sock)
        except OSError:
            sock.close()
            return
        if not self._allowed(peer):
            refusal = Refusal("denied", f"uid {peer.uid} may not ask: it is neither allowed nor in the allowed group")
            self._say(str(refusal))
        elif len(self._connections) >= MAX_CONNECTIONS:
            refusal = Refusal("busy", f"{MAX_CONNECTIONS} clients are connected already")
        if refusal:
            with sock, contextlib.suppress(OSError):
                sock.send(_encoded(None, refusal))
            return
        self._connections[sock.fileno()] = _Connection(sock, peer, now)

    def _serve(self, connection: _Connection) -> None:
        now = self._clock()
        try:
            packet = connection.sock.recv(MAX_REQUEST_BYTES + 1)  # the kernel drops the rest of a longer packet
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._drop(connection)
            return
        connection.last_s = now
        try:
            connection.sock.send(self._answer(connection, packet, now))
        except OSError:  # it is gone, or does not read its answers
            self._drop(connection)

    def _answer(self, connection: _Connection, packet: bytes, now_s: float) -> bytes:
        number = None
        try:
            connection.count(now_s)
            request = parse_request(packet)
            number = request.id
            return _encoded(number, self._done(connection, request))
        except Refusal as refusal:
            return _encoded(number, refusal)

    def _done(self, connection: _Connection, request: Request) -> dict[str, object]:
        match request.verb:
            case "hello":
                return {"version": VERSION, "sys_root": self._sys_root}
            case "throttled":
                return {"bits": self._throttled()}
        if self._holder not in (None, connection):
            raise Refusal("busy", "another client holds the limits")
        try:
            match request.verb:
                case "set-cap":
                    self._limits.set_cap(**request.arguments)
                case "set-cooling":
                    self._limits.set_cooling(**request.arguments)
                case "restore":
                    if refused := self._limits.restore():
                        raise Refusal("refused", "; ".join(refused))
        finally:
            self._hold(connection)
        return {}

    def _hold(self, connection: _Connection) -> None:
        holder = connection if self._limits.held else None
        if holder is not self._holder:
            self._say(f"uid {connection.peer.uid} {'holds limits' if holder else 'holds no limit any more'}")
        self._holder = holder

    def _drop(self, connection: _Connection) -> None:
        self._connections.pop(connection.sock.fileno())
        connection.sock.close()
        self._busy_s = self._clock()
        if connection is self._holder:
            self._holder = None
            self._say("the client is gone: its limits are put back")
            self.put_back()


def peer_of(sock: socket.socket) -> Peer:
    """Who is at the other end.

    Raises:
        OSError: the kernel does not say.
    """
    _, uid, gid = _PEER_IDS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_IDS.size))
    try:
        listed = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
    except OSError:  # an older kernel, or more groups than fit: the first group counts alone
        listed = b""
    return Peer(uid, frozenset({gid, *(number for (number,) in struct.iter_unpack("=I", listed))}))


def _encoded(number: int | None, answer: Refusal | dict[str, object]) -> bytes:
    head: dict[str, object] = {} if number is None else {"id": number}
    if isinstance(answer, Refusal):
        body = {"ok": False, "error": answer.code, "message": str(answer)}
    else:
        body = {"ok": True, **answer}
    return json.dumps(head | body).encode()
