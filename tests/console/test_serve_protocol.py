"""Connections, attacked: bodies that trickle, answers that nobody reads, many addresses of one network."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.console import serve_protocol
from service.console.serve_protocol import PunctualProtocol

SOON_S = 0.3  # for what takes the console 15 s or a minute
WAIT_S = 20.0
LONG = 24 << 20  # bytes: more than the kernel holds for a reader


async def answer(scope: Scope, _receive: Receive, send: Send) -> None:
    """`/long` has a long answer; nobody reads the body of a request."""
    body = b"x" * (LONG if scope["path"] == "/long" else 10)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    for begin in range(0, len(body), 1 << 20):
        more = begin + (1 << 20) < len(body)
        await send({"type": "http.response.body", "body": body[begin : begin + (1 << 20)], "more_body": more})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[uvicorn.Server]:
    monkeypatch.setattr(serve_protocol, "HEADER_S", SOON_S)
    monkeypatch.setattr(serve_protocol, "UNREAD_S", SOON_S)
    config = uvicorn.Config(answer, http=PunctualProtocol, ws="none", lifespan="off", log_config=None, port=0)
    made = uvicorn.Server(config)
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        thread = threading.Thread(target=lambda: asyncio.run(made.serve([door])))
        thread.start()
        until(lambda: made.started)
        yield made
        made.should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive()


def until(true: Callable[[], bool]) -> None:
    """Wait until something holds."""
    waited = threading.Event()
    for _ in range(int(WAIT_S / 0.02)):
        if true():
            return
        waited.wait(0.02)
    raise AssertionError("it never came")


def connect(server: uvicorn.Server) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(WAIT_S)
    made.connect(server.servers[0].sockets[0].getsockname())
    return made


@pytest.mark.parametrize("head", [b"content-length: 100000", b"transfer-encoding: chunked"])
def test_a_body_that_trickles_after_its_answer_keeps_no_connection(server: uvicorn.Server, head: bytes) -> None:
    with connect(server) as line:
        line.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\n" + head + b"\r\n\r\n")
        assert line.recv(65536).startswith(b"HTTP/1.1 200")
        piece = b"x" if head.startswith(b"content") else b"1\r\nx\r\n"
        stop = threading.Event()

        def trickle() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.05):
                    line.sendall(piece)

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            until(lambda: not server.server_state.connections)
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize("more", [b"", b"connection: close\r\n"])
def test_an_answer_that_nobody_reads_is_given_up(server: uvicorn.Server, more: bytes) -> None:
    with connect(server) as line:
        line.sendall(b"GET /long HTTP/1.1\r\nhost: localhost\r\n" + more + b"\r\n")
        until(lambda: bool(server.server_state.connections))
        until(lambda: not server.server_state.connections and not server.server_state.tasks)


def test_who_reads_gets_all_and_asks_again(server: uvicorn.Server) -> None:
    with connect(server) as line:
        for _ in range(2):
            line.sendall(b"GET /long HTTP/1.1\r\nhost: localhost\r\n\r\n")
            head, _, body = line.recv(65536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            left = LONG - len(body)
            while left:
                left -= len(line.recv(1 << 20))


def test_addresses_of_one_network_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has an address of version 6 has 2^64 of them."""
    monkeypatch.setattr(serve_protocol, "MAX_OF_ADDRESS", 2)

    class Wire(asyncio.Transport):
        cut = False

        def __init__(self, peer: str) -> None:
            super().__init__({"peername": (peer, 1), "sockname": ("::1", 1)})

        def abort(self) -> None:
            self.cut = True

        def close(self) -> None:
            self.cut = True

        def is_closing(self) -> bool:
            return self.cut

    async def connected(*peers: str) -> list[bool]:
        config = uvicorn.Config(answer, log_config=None, proxy_headers=False)
        config.load()
        state = uvicorn.server.ServerState()
        wires = [Wire(peer) for peer in peers]
        lines = [PunctualProtocol(config, state, {}) for _ in peers]
        for line, wire in zip(lines, wires, strict=True):
            line.connection_made(wire)
        cut = [wire.cut for wire in wires]
        for line in lines:
            line.connection_lost(None)
        return cut

    assert asyncio.run(connected("2001:db8::1", "2001:db8::2", "2001:db8::3")) == [False, False, True]
    assert asyncio.run(connected("2001:db8::1", "2001:db8::2", "2001:db8:0:1::3")) == [False, False, False]
