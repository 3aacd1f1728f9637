from __future__ import annotations

import contextlib
import fcntl
import hashlib
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from agent.download import PART, PROGRESS_BYTES, Downloads, Signed, _locked
from agent.errors import BoardError, ConfigError, NetworkError, TrustError
from agent.web import MAX_FAILURES, Web, network_error

BODY = bytes((7 * i + i // 251) % 256 for i in range(300_000))
DIGEST = hashlib.sha256(BODY).hexdigest()
ROOT = Path(__file__).parents[2]

Answer = Callable[["Handler", int], None]  # with the offset asked for


class Server(ThreadingHTTPServer):
    """Serves BODY with ranges; `script` holds how the next requests are answered instead."""

    daemon_threads = True

    def __init__(self, body: bytes = BODY) -> None:
        self.body = body
        self.script: list[Answer] = []
        self.always: Answer | None = None
        self.asked: list[str] = []  # Range header of each request, or ""
        self.release = threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/x"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        said = self.headers.get("Range", "")
        self.server.asked.append(said)
        offset = int(said.removeprefix("bytes=").removesuffix("-")) if said else 0
        answer = self.server.script.pop(0) if self.server.script else self.server.always or honest
        with contextlib.suppress(ConnectionError):
            answer(self, offset)

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def honest(handler: Handler, offset: int, count: int | None = None) -> None:
    """Header for all of the rest; body of the whole rest or of `count` bytes, then the connection ends."""
    body = handler.server.body
    if offset >= len(body):
        handler.head(416, Content_Range=f"bytes */{len(body)}")
        return
    rest = body[offset:]
    span = {"Content_Range": f"bytes {offset}-{len(body) - 1}/{len(body)}"} if offset else {}
    handler.head(206 if offset else 200, Content_Length=len(rest), **span)
    handler.wfile.write(rest[:count])


def cut(count: int) -> Answer:
    return partial(honest, count=count)


def no_ranges(handler: Handler, _: int) -> None:
    honest(handler, 0)


def status(code: int) -> Answer:
    return lambda handler, _: handler.head(code, Content_Length=0)


def lying(span: str) -> Answer:
    def answer(handler: Handler, offset: int) -> None:
        handler.head(206, Content_Range=span, Content_Length=len(BODY) - offset)
        handler.wfile.write(BODY[offset:])

    return answer


def too_much(handler: Handler, offset: int) -> None:
    handler.head(206 if offset else 200, Content_Range=f"bytes {offset}-{len(BODY) - 1}/{len(BODY)}")
    handler.wfile.write(BODY[offset:] + b"!")


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as made:
        yield made


class Board:
    def __init__(self, folder: Path, server: Server, monotonic: Callable[[], float] = lambda: 0.0) -> None:
        self.folder, self.path = folder, folder / "model.sealed"
        self.part = folder / f"{DIGEST}{PART}"
        self.signed = Signed(server.url, len(BODY), DIGEST)
        self.pauses: list[float] = []
        self.downloads = Downloads(folder, Web(server.url, monotonic), self.pauses.append)

    def fetch(self) -> None:
        self.downloads.fetch(self.signed, self.path)

    def files(self) -> list[str]:
        return sorted(item.name for item in self.folder.iterdir())


@pytest.fixture
def board(tmp_path: Path, server: Server) -> Board:
    return Board(tmp_path, server)


def assert_whole(board: Board) -> None:
    assert board.path.read_bytes() == BODY
    assert board.files() == ["model.sealed"]


def test_a_file_in_one_go(board: Board, server: Server) -> None:
    board.fetch()
    assert_whole(board)
    assert server.asked == [""]
    assert board.pauses == []


def test_a_broken_connection_goes_on_where_it_broke(board: Board, server: Server) -> None:
    server.script = [cut(100_000), cut(1), cut(150_000)]
    board.fetch()
    assert_whole(board)
    assert server.asked == ["", "bytes=100000-", "bytes=100001-", "bytes=250001-"]


@pytest.mark.parametrize("there", [1, 65_536, len(BODY) - 1])
def test_only_the_rest_of_an_earlier_part_is_asked_for(board: Board, server: Server, there: int) -> None:
    board.part.write_bytes(BODY[:there])
    board.fetch()
    assert_whole(board)
    assert server.asked == [f"bytes={there}-"]


def test_a_part_that_lacks_only_its_name_is_not_asked_for(board: Board, server: Server) -> None:
    board.part.write_bytes(BODY)
    board.fetch()
    assert_whole(board)
    assert server.asked == []


@pytest.mark.parametrize("wrong", [bytes(1000), bytes(len(BODY)), BODY + b"!", BODY[:-1] + b"!"])
def test_a_part_of_other_bytes_starts_over_once(board: Board, server: Server, wrong: bytes) -> None:
    board.part.write_bytes(wrong)
    board.fetch()
    assert_whole(board)
    assert server.asked.count("") == 1


def test_a_server_that_ignores_ranges_starts_over(board: Board, server: Server) -> None:
    board.part.write_bytes(b"?" * 1000)  # would show if it were kept
    server.script = [no_ranges]
    board.fetch()
    assert_whole(board)
    assert server.asked == ["bytes=1000-"]


@pytest.mark.parametrize(
    "answer",
    [
        status(416),
        lying("bytes 0-299999/300000"),
        lying("bytes 1000-300000/*"),
        lying("bytes 1000-299999/300001"),
        lying("bytes 1001-299999/*"),
        lying("lines 1-2"),
        lying(""),
    ],
)
def test_a_server_that_does_not_go_on_there_is_asked_for_all(board: Board, server: Server, answer: Answer) -> None:
    board.part.write_bytes(BODY[:1000])
    server.script = [answer]
    board.fetch()
    assert_whole(board)
    assert server.asked == ["bytes=1000-", ""]


def test_a_total_that_the_server_does_not_know(board: Board, server: Server) -> None:
    board.part.write_bytes(BODY[:1000])
    server.script = [lying("bytes 1000-299999/*")]
    board.fetch()
    assert_whole(board)
    assert server.asked == ["bytes=1000-"]


def test_a_redirect_keeps_the_place(board: Board, server: Server) -> None:
    board.part.write_bytes(BODY[:1000])
    server.script = [lambda handler, _: handler.head(302, Location=server.url, Content_Length=0)]
    board.fetch()
    assert_whole(board)
    assert server.asked == ["bytes=1000-"] * 2
    server.always = lambda handler, _: handler.head(302, Location=server.url, Content_Length=0)
    board.path.unlink()
    with pytest.raises(NetworkError, match="too many redirects"):
        board.fetch()


def test_a_server_that_always_starts_over_and_breaks_is_given_up(board: Board, server: Server) -> None:
    server.always = lambda handler, _: honest(handler, 0, 200_000)
    with pytest.raises(NetworkError, match="cut off"):
        board.fetch()
    assert len(server.asked) == MAX_FAILURES


def test_new_bytes_end_a_row_of_failures(tmp_path: Path) -> None:
    body = BODY * 28
    with serving(Server(body)) as server:
        server.always = cut(PROGRESS_BYTES)
        board = Board(tmp_path, server)
        board.downloads.fetch(Signed(server.url, len(body), hashlib.sha256(body).hexdigest()), board.path)
        assert len(server.asked) > MAX_FAILURES
    assert board.path.read_bytes() == body


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_passing_faults_are_asked_again_after_growing_pauses(board: Board, server: Server, code: int) -> None:
    server.script = [status(code)] * (MAX_FAILURES - 1)
    board.fetch()
    assert_whole(board)
    assert len(board.pauses) == MAX_FAILURES - 1
    assert all(0 <= pause <= 2**row for row, pause in enumerate(board.pauses))
    server.always = status(code)
    board.path.unlink()
    with pytest.raises(NetworkError, match=f"HTTP status {code}"):
        board.fetch()
    assert board.files() == []


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 501])
def test_lasting_faults_are_not_asked_again_and_keep_the_part(board: Board, server: Server, code: int) -> None:
    board.part.write_bytes(BODY[:1000])
    server.script = [status(code)]
    with pytest.raises(NetworkError, match=f"HTTP status {code}") as caught:
        board.fetch()
    assert caught.value.where == server.url
    assert len(server.asked) == 1
    assert board.part.read_bytes() == BODY[:1000]


@pytest.mark.parametrize("there", [0, 1000])
def test_more_than_signed(board: Board, server: Server, there: int) -> None:
    board.part.write_bytes(BODY[:there])
    server.script = [too_much]
    with pytest.raises(TrustError) as caught:
        board.fetch()
    assert caught.value.code == "too-long"
    assert board.files() == []


@pytest.mark.parametrize(("there", "asked"), [(0, [""]), (1000, ["bytes=1000-", ""])])
def test_other_bytes_than_signed_leave_nothing(board: Board, server: Server, there: int, asked: list[str]) -> None:
    server.body = BODY[:-1] + b"!"
    board.part.write_bytes(BODY[:there])
    with pytest.raises(TrustError) as caught:
        board.fetch()
    assert caught.value.code == "target-hash"
    assert server.asked == asked
    assert board.files() == []


def test_a_log_in_page_does_not_cost_the_part(board: Board, server: Server) -> None:
    board.part.write_bytes(BODY[:1000])
    server.body = b"<html>"
    server.script = [no_ranges]
    with pytest.raises(NetworkError, match="6 bytes"):
        board.fetch()
    assert board.part.read_bytes() == BODY[:1000]


def test_a_trickle_is_given_up_and_what_came_is_kept(tmp_path: Path, server: Server) -> None:
    times = iter([0.0, 0.0])

    def drip(handler: Handler, _: int) -> None:
        handler.head(200, Content_Length=len(BODY))
        for at in range(len(BODY)):
            handler.wfile.write(BODY[at : at + 1])
            server.release.wait(0.05)

    server.script = [drip]
    board = Board(tmp_path, server, lambda: next(times, 1000.0))
    with pytest.raises(NetworkError, match="too slow"):
        board.fetch()
    assert len(server.asked) == 1
    came = board.part.read_bytes()
    assert came
    assert BODY.startswith(came)


def test_parts_of_other_files_go_but_not_while_they_are_fetched(board: Board) -> None:
    stale, busy = board.folder / f"{'1' * 64}{PART}", board.folder / f"{'2' * 64}{PART}"
    stale.write_bytes(b"old")
    with _locked(busy):
        board.fetch()
        assert board.files() == [busy.name, "model.sealed"]
    board.fetch()
    assert_whole(board)


def test_one_process_at_a_time(board: Board, server: Server) -> None:
    with _locked(board.part) as stream:
        stream.write(b"mine")
        with pytest.raises(BoardError) as caught:
            board.fetch()
    assert caught.value.code == "busy"
    assert board.part.read_bytes() == b"mine"
    assert server.asked == []


def test_a_part_renamed_by_another_process_is_not_written_to(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.part.write_bytes(BODY[:1000])
    lock = fcntl.flock

    def slow_lock(descriptor: int, how: int) -> None:
        board.part.rename(board.path)  # the other one was done between our opening and our lock
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow_lock)
    with pytest.raises(BoardError) as caught:
        board.fetch()
    assert caught.value.code == "busy"
    assert board.path.read_bytes() == BODY[:1000]


def test_a_linked_part_is_not_followed(board: Board, tmp_path_factory: pytest.TempPathFactory) -> None:
    victim = tmp_path_factory.mktemp("other") / "victim"
    victim.write_bytes(b"mine")
    board.part.symlink_to(victim)
    board.fetch()
    assert_whole(board)
    assert victim.read_bytes() == b"mine"


def test_a_hash_that_is_no_file_name(board: Board, server: Server) -> None:
    with pytest.raises(TrustError, match="SHA-256"):
        board.downloads.fetch(Signed(server.url, 1, "../" + "0" * 61), board.path)
    assert board.files() == []


def test_a_killed_process_has_lost_nothing(board: Board, server: Server) -> None:
    def half(handler: Handler, offset: int) -> None:
        honest(handler, offset, 200_000)
        server.release.wait()

    server.script = [half]
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from agent.download import Downloads, Signed\nfrom agent.web import Web\n"
        "url, length, digest, folder = sys.argv[1:]\n"
        "signed = Signed(url, int(length), digest)\n"
        "Downloads(Path(folder), Web(url)).fetch(signed, Path(folder, 'model.sealed'))\n"
    )
    arguments = [board.signed.url, str(board.signed.length), DIGEST, str(board.folder)]
    child = subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=ROOT)
    try:
        while not board.part.exists() or board.part.stat().st_size < 200_000:
            assert child.poll() is None
            server.release.wait(0.01)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert board.part.read_bytes() == BODY[:200_000]
    board.fetch()
    assert_whole(board)
    assert server.asked == ["", "bytes=200000-"]


def test_a_proxy_by_the_environment(board: Board, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Signed("http://models.invalid/x", len(BODY), DIGEST)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/x"))
    Downloads(board.folder, Web(target.url)).fetch(target, board.path)  # the server stands in for the proxy
    assert_whole(board)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    Downloads(board.folder, Web(server.url)).fetch(board.signed, board.path)
    assert server.asked == ["", ""]
    monkeypatch.delenv("no_proxy")
    with pytest.raises(NetworkError, match="proxy is unreachable: connection refused"):
        Downloads(board.folder, Web(server.url), board.pauses.append).fetch(board.signed, board.path)
    monkeypatch.setenv("http_proxy", "socks5://user:secret@127.0.0.1:1")
    with pytest.raises(ConfigError, match="proxy") as caught:
        Web(server.url)
    assert "secret" not in str(caught.value)


def test_faults_in_words(board: Board, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(url: str) -> str:
        signed = Signed(url, 1, DIGEST)
        with pytest.raises(NetworkError) as caught:
            Downloads(board.folder, Web(url), board.pauses.append).fetch(signed, board.path)
        assert caught.value.where == url
        return caught.value.what

    assert why("http://127.0.0.1:1/x") == "repository is unreachable: connection refused"
    assert "no secure connection" in why(server.url.replace("http:", "https:"))

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert why("http://models.invalid/x") == "repository is unreachable: its name cannot be resolved"


def test_a_certificate_of_nobody_is_refused_at_once(
    board: Board, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path_factory.mktemp("tls") / "server.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem.write_bytes(secret + certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    with pytest.raises(NetworkError, match="certificate is not trusted, self-signed certificate"):
        Downloads(board.folder, Web(url), board.pauses.append).fetch(Signed(url, 1, DIGEST), board.path)
    assert board.pauses == []
    assert board.files() == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), "certificate is not trusted"),
        (OSError(101, "Network is unreachable"), "the board has no network"),
        (OSError(113, "No route to host"), "no way to it"),
        (TimeoutError(), "no answer"),
        (ConnectionResetError(), "cut off"),
        (ValueError("something new"), "something new"),
    ],
)
def test_causes_in_words(error: Exception, words: str) -> None:
    if isinstance(error, ssl.SSLCertVerificationError):
        error.verify_message = "certificate is not yet valid"
    assert words in network_error(RuntimeError("outer", error), "u").what
