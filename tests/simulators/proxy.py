"""A bad network between one client and a broker: a TCP proxy that breaks what passes in every way a test asks for.

Plain MQTT is cut into its packets, so that a fault can be aimed at one of them; anything else (TLS, websockets) passes
in pieces. It runs in a thread of its own, so that it serves a daemon's process as well as a coroutine beside it.

By hand: python tests/simulators/proxy.py LISTEN TARGET (two ports of the loopback)
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self, TypeAlias

Way: TypeAlias = Literal["up", "down"]
"""`up` leads to the broker, `down` to the client."""
PIECE = 64 << 10
START_S = 10.0
CONNECT, PUBLISH, PUBACK, SUBSCRIBE, PINGREQ = 1, 3, 4, 8, 12  # MQTT 5, 2.1.2
_MOST_LENGTH_BYTES = 4  # MQTT 5, 1.5.5


@dataclass(frozen=True, slots=True)
class Packet:
    """One MQTT packet, or a piece of what is no plain MQTT (type 0)."""

    way: Way
    kind: int
    raw: bytes

    @property
    def topic(self) -> str:
        """Of a PUBLISH; empty for other packets."""
        if self.kind != PUBLISH:
            return ""
        start = _head_bytes(self.raw)
        size = int.from_bytes(self.raw[start : start + 2], "big")
        return self.raw[start + 2 : start + 2 + size].decode()

    @property
    def identifier(self) -> int:
        """Packet identifier of a PUBLISH at QoS 1 or of its PUBACK; 0: it has none."""
        start = _head_bytes(self.raw)
        if self.kind == PUBLISH and self.raw[0] & 0b110:
            start += 2 + int.from_bytes(self.raw[start : start + 2], "big")
        elif self.kind != PUBACK:
            return 0
        return int.from_bytes(self.raw[start : start + 2], "big")


Wanted: TypeAlias = Callable[[Packet], bool]


def published(end: str) -> Wanted:
    """Matches a PUBLISH whose topic ends so."""
    return lambda packet: packet.kind == PUBLISH and packet.topic.endswith(end)


class _Fault(NamedTuple):
    """What is done once, with the first packet that is `wanted`."""

    wanted: Wanted
    act: Callable[[bytes], tuple[bytes, bool]]
    """Gives what passes of it, and whether the connection is cut after that."""
    done: threading.Event


class Proxy:
    """Forwards a loopback port to another; a context manager. Its methods may be called from any thread.

    Args:
        target: the port where the broker listens.
        port: where to listen; 0 takes a free one.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self._target, self.port = target, port
        self.connections = 0
        """Accepted so far."""
        self.passed: list[Packet] = []
        """Packets that were passed on, in order; what a test may play again."""
        self._shut: set[Way] = set()
        self._refuses, self._delay_s, self._most = False, 0.0, PIECE
        self._faults: list[_Fault] = []
        self._holds: Wanted | None = None
        self._held: list[tuple[_Half, bytes]] = []
        self._halves: set[_Half] = set()

    def __enter__(self) -> Self:
        started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(started)), daemon=True)
        self._thread.start()
        if error := started.get(timeout=START_S):
            raise error
        return self

    def __exit__(self, *_error: object) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(START_S)

    # --- faults ------------------------------------------------------------------------------------------------------

    def swallow(self, *ways: Way) -> None:
        """From now on nothing passes that way (none given: both), and nobody is told: it is half open."""
        self._tell(lambda: self._shut.update(ways or ("up", "down")))

    def heal(self) -> None:
        """Nothing is held up, refused, delayed or cut into pieces any more; what waited passes."""

        def act() -> None:
            self._shut.clear()
            self._refuses, self._delay_s, self._most, self._holds = False, 0.0, PIECE, None
            held, self._held = self._held, []
            for half, raw in held:
                half.pass_on(raw)
            for half in self._halves:
                half.look()

        self._tell(act)

    def cut(self) -> None:
        """End every connection with a reset, on both sides; what was held up is gone."""
        self._tell(self._cut_all)

    def refuse(self) -> None:
        """New connections are reset at once, until `heal`."""
        self._tell(lambda: setattr(self, "_refuses", True))

    def delay(self, seconds: float) -> None:
        """Every packet takes so long, each way, until `heal`."""
        self._tell(lambda: setattr(self, "_delay_s", seconds))

    def drip(self, most: int = 1) -> None:
        """Packets pass in pieces of so many bytes, until `heal`."""
        self._tell(lambda: setattr(self, "_most", most))

    def tear(self, wanted: Wanted, after: int) -> threading.Event:
        """Pass so many bytes of the next packet that is `wanted` (negative: all but so many), then cut all connections.

        Returns:
            Set when it is done.
        """
        return self._aim(wanted, lambda raw: (raw[:after], True))

    def corrupt(self, wanted: Wanted, at: int, flip: int = 0x01) -> threading.Event:
        """Flip bits of one byte (negative: counted from the end) of the next packet that is `wanted`."""

        def act(raw: bytes) -> tuple[bytes, bool]:
            changed = bytearray(raw)
            changed[at] ^= flip
            return bytes(changed), False

        return self._aim(wanted, act)

    def hold(self, wanted: Wanted) -> None:
        """Keep what is `wanted` back while the rest passes, until `heal`; with a cut it is gone."""
        self._tell(lambda: setattr(self, "_holds", wanted))

    @property
    def held(self) -> int:
        """How many packets are kept back."""
        return len(self._held)

    def play(self, packet: Packet) -> None:
        """Send a packet of before once more, the same way, on the present connection."""

        def act() -> None:
            for half in self._halves:
                if half.way == packet.way:
                    half.pass_on(packet.raw)

        self._tell(act)

    def find(self, wanted: Wanted, way: Way) -> list[Packet]:
        """Packets that passed."""
        return [packet for packet in list(self.passed) if packet.way == way and wanted(packet)]

    # --- the thread --------------------------------------------------------------------------------------------------

    def _tell(self, act: Callable[[], object]) -> None:
        """Run on the loop, and return when it was."""
        done = threading.Event()

        def run() -> None:
            act()
            done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait(START_S)

    def _aim(self, wanted: Wanted, act: Callable[[bytes], tuple[bytes, bool]]) -> threading.Event:
        fault = _Fault(wanted, act, threading.Event())
        self._tell(lambda: self._faults.append(fault))
        return fault.done

    async def _run(self, started: queue.SimpleQueue[BaseException | None]) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        except OSError as error:
            started.put(error)
            return
        self.port = int(server.sockets[0].getsockname()[1])
        started.put(None)
        await self._ending.wait()
        server.close()
        self._cut_all()

    def _cut_all(self) -> None:
        self._held.clear()
        for half in list(self._halves):
            half.end()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self._refuses:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = (_Half(self, "up", reader, far_writer), _Half(self, "down", far_reader, writer))
        self._halves.update(pair)
        first = await _or_nothing(reader.read(PIECE))
        plain = first[:1] == bytes([CONNECT << 4])
        with contextlib.suppress(asyncio.CancelledError):  # the proxy ends
            await asyncio.gather(pair[0].run(plain=plain, first=first), pair[1].run(plain=plain))
        self._halves.difference_update(pair)

    def judge(self, half: _Half, raw: bytes, kind: int) -> None:
        """Pass a packet on, hold it back, or do what a test asked for."""
        packet = Packet(half.way, kind, raw)
        fault = next((one for one in self._faults if one.wanted(packet)), None)
        if self._holds is not None and self._holds(packet):
            self._held.append((half, raw))
        elif fault is None:
            half.pass_on(raw)
            self.passed.append(packet)
        else:
            self._faults.remove(fault)
            passes, cuts = fault.act(raw)
            half.pass_on(passes, then_cut=cuts)
            fault.done.set()

    @property
    def pace(self) -> tuple[float, int]:
        """Seconds that each packet takes, and bytes of its pieces."""
        return self._delay_s, self._most

    def is_shut(self, way: Way) -> bool:
        """Whether nothing passes that way."""
        return way in self._shut

    def cut_from_within(self) -> None:
        """As `cut`, from the proxy's own loop."""
        self._cut_all()


class _Half:
    """One way of one connection: reads, and writes when it may."""

    def __init__(self, proxy: Proxy, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.way = way
        self._proxy, self._reader, self._writer = proxy, reader, writer
        self._queue: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue()
        self._waiting = 0
        self._free, self._written = asyncio.Event(), asyncio.Event()

    async def run(self, *, plain: bool, first: bytes = b"") -> None:
        """Until that side closes."""
        writing = asyncio.ensure_future(self._write())
        buffer = b""
        piece = first or await _or_nothing(self._reader.read(PIECE))
        while piece:
            buffer += piece
            while size := _packet_bytes(buffer) if plain else len(buffer):
                raw, buffer = buffer[:size], buffer[size:]
                self._proxy.judge(self, raw, raw[0] >> 4 if plain else 0)
            while self._waiting > PIECE:  # as a network whose buffers are full
                self._written.clear()
                await self._written.wait()
            piece = await _or_nothing(self._reader.read(PIECE))
        await self._queue.join()
        writing.cancel()
        self._writer.close()

    def pass_on(self, raw: bytes, *, then_cut: bool = False) -> None:
        """Put it into the queue to the other side."""
        self._waiting += len(raw)
        self._queue.put_nowait((raw, then_cut))

    def look(self) -> None:
        """The way may be free again."""
        self._free.set()

    def end(self) -> None:
        """Reset it; what is in the queue is gone."""
        self._writer.transport.abort()
        self._free.set()
        while not self._queue.empty():
            self._done(self._queue.get_nowait()[0])

    async def _write(self) -> None:
        while True:
            raw, then_cut = await self._queue.get()
            while self._proxy.is_shut(self.way) and not self._writer.is_closing():
                self._free.clear()
                await self._free.wait()
            delay_s, most = self._proxy.pace
            await asyncio.sleep(delay_s)
            with contextlib.suppress(OSError):
                for start in range(0, len(raw), most):
                    self._writer.write(raw[start : start + most])
                    await self._writer.drain()
                    await asyncio.sleep(0)
            if then_cut:
                await asyncio.sleep(0)
                self._proxy.cut_from_within()
            self._done(raw)

    def _done(self, raw: bytes) -> None:
        self._waiting -= len(raw)
        self._written.set()
        self._queue.task_done()


async def _or_nothing(reading: Awaitable[bytes]) -> bytes:
    """What is read; nothing from a connection that broke."""
    try:
        return await reading
    except OSError:
        return b""


def _head_bytes(raw: bytes) -> int:
    """Bytes of the fixed header: type, flags and remaining length (MQTT 5, 2.1.4)."""
    end = 1
    while end < min(len(raw), _MOST_LENGTH_BYTES) and raw[end] & 0x80:
        end += 1
    return end + 1


def _packet_bytes(buffer: bytes) -> int:
    """Length of the first packet; 0 while it is not complete."""
    head = _head_bytes(buffer)
    if len(buffer) < head:
        return 0
    length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(buffer[1:head]))
    return head + length if len(buffer) >= head + length else 0


def main() -> None:
    """Until the input ends."""
    listen, target = map(int, sys.argv[1:])
    with Proxy(target, listen) as proxy:
        acts: dict[str, Callable[[], object]] = {
            "swallow": proxy.swallow, "heal": proxy.heal, "cut": proxy.cut, "refuse": proxy.refuse,
            "drip": proxy.drip, "delay": lambda: proxy.delay(0.5),
            "hold": lambda: proxy.hold(lambda packet: packet.kind == PUBACK),
        }  # fmt: skip
        print(f"127.0.0.1:{proxy.port} leads to {target}; {', '.join(acts)}")  # noqa: T201 - run by hand
        for line in sys.stdin:
            acts.get(line.strip(), lambda: print("no such fault"))()  # noqa: T201 - same


if __name__ == "__main__":
    main()
