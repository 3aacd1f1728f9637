"""HTTPS with an authority of one's own, straight and through the tunnel of a proxy: real servers on loopback."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from agent.download import Downloads, Signed
from agent.errors import NetworkError
from agent.web import Web
from tests.agent.test_download import BODY, DIGEST, Server, serving


class Proxy(ThreadingHTTPServer):
    """Tunnels to loopback, and remembers where to."""

    daemon_threads = True

    def __init__(self) -> None:
        self.tunnels: list[str] = []
        super().__init__(("127.0.0.1", 0), Tunnel)


class Tunnel(BaseHTTPRequestHandler):
    server: Proxy

    def do_CONNECT(self) -> None:
        self.server.tunnels.append(self.path)
        host, _, port = self.path.partition(":")
        with socket.create_connection((host, int(port))) as far:
            self.send_response(200)
            self.end_headers()
            other = {self.connection: far, far: self.connection}
            while True:
                for end in select.select(list(other), [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    other[end].sendall(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def proxying() -> Iterator[Proxy]:
    proxy = Proxy()
    thread = Thread(target=proxy.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


def authority(folder: Path) -> tuple[Path, Path]:
    """Its certificate, and key and certificate of a server on loopback that it vouches for."""
    now = datetime.now(UTC)
    ours, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root, leaf = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("Works CA", "models"))
    until = now + timedelta(days=1)
    ca = (
        x509.CertificateBuilder(root, root, ours.public_key(), 1, now, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(ours, hashes.SHA256())
    )
    server = (
        x509.CertificateBuilder(root, leaf, theirs.public_key(), 2, now, until)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(ours, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    secret = theirs.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.pem").write_bytes(secret + server.public_bytes(Encoding.PEM))
    return folder / "ca.pem", folder / "server.pem"


@pytest.mark.parametrize("through", ["straight", "proxy"])
def test_own_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: str) -> None:
    ca, pem = authority(tmp_path)
    for name in ("no_proxy", "NO_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with serving(Server()) as server, proxying() as proxy:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        url = server.url.replace("http:", "https:")
        if through == "proxy":
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.server_port}")
        signed, path = Signed(url, len(BODY), DIGEST), tmp_path / "model.sealed"
        with pytest.raises(NetworkError, match="certificate is not trusted"):
            Downloads(tmp_path, Web(url), lambda _: None).fetch(signed, path)
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
        Downloads(tmp_path, Web(url), lambda _: None).fetch(signed, path)
        assert bool(proxy.tunnels) == (through == "proxy")
    assert path.read_bytes() == BODY
