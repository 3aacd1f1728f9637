"""`temperd console`: its options, its verbs on the server, and the process itself."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agent.errors import SpecError
from service import cli_console
from service.cli import main
from service.cli_console import listening_of, settings_of, split_listen
from service.cli_verbs_console import console_verbs
from service.console.audit import Audit
from service.console.guard_rules import LOOPBACK_NAMES
from service.console.serve import where
from service.console.serve_protocol import MAX_OF_ADDRESS
from tests.simulators.console import PASSWORD, ConsoleProcess
from tests.simulators.mosquitto import free_port

FRESH = "another quiet river"
PASSPHRASE = "correct horse battery staple"


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    console_verbs(parser.add_subparsers(required=True))
    return parser.parse_args(["console", *words])


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{PASSWORD}\n")
    path.chmod(0o600)
    return path


# --- options ---------------------------------------------------------------------------------------------------------


def test_it_listens_on_loopback_unless_told_otherwise() -> None:
    listening = listening_of(options())
    assert (listening.host, listening.port, listening.cert, listening.proxies) == ("127.0.0.1", 8750, "", "")
    assert settings_of(options(), {"HOME": "/home/x"}).names == LOOPBACK_NAMES[1:2] + LOOPBACK_NAMES[:1] + ("[::1]",)


@pytest.mark.parametrize("place", ["0.0.0.0:80", "192.0.2.1", "[::]:8750", "::", "10.0.0.1:1"])
def test_no_password_passes_a_network_in_plain(place: str) -> None:
    with pytest.raises(SpecError) as told:
        listening_of(options("--listen", place))
    assert told.value.code == "no-tls"
    assert "--tls-cert" in str(told.value)
    named = options("--listen", place, "--tls-cert", "c", "--tls-key", "k", "--name", "console.example")
    assert listening_of(named).cert == "c"
    behind = options("--listen", place, "--behind-proxy", "--name", "console.example")
    assert listening_of(behind).proxies == "127.0.0.1"


def test_who_listens_everywhere_says_under_which_name() -> None:
    """Or everybody but this machine would be told that the console has another name."""
    words = ("--tls-cert", "c", "--tls-key", "k")
    with pytest.raises(SpecError) as told:
        listening_of(options("--listen", "::", *words))
    assert told.value.code == "no-name"
    assert "192.0.2.1" in settings_of(options("--listen", "192.0.2.1", *words), {"HOME": "/home/x"}).names


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ((), "http://127.0.0.1:8750"),
        (("--listen", "[::1]:80"), "http://[::1]:80"),
        (("--listen", "[2001:db8::1]:443", "--tls-cert", "c", "--tls-key", "k"), "https://[2001:db8::1]:443"),
        (
            ("--listen", "::", "--tls-cert", "c", "--tls-key", "k", "--name", "Console.Example"),
            "https://console.example:8750",
        ),
        (("--behind-proxy", "--name", "console.example"), "https://console.example"),
    ],
)
def test_where_it_is_for_a_browser(words: tuple[str, ...], address: str) -> None:
    chosen = options(*words)
    listening = listening_of(chosen)
    assert where(settings_of(chosen, {"HOME": "/home/x"}), listening, listening.port) == address


@pytest.mark.parametrize("place", ["", "x", "127.0.0.1:x", "127.0.0.1:99999", "127.0.0.1:-1", "[::1", "a.example:80"])
def test_what_is_no_address_is_said(place: str) -> None:
    with pytest.raises(SpecError):
        split_listen(place)


@pytest.mark.parametrize(
    "words",
    [
        ("--tls-cert", "c"),
        ("--tls-key", "k"),
        ("--behind-proxy",),
        ("--behind-proxy", "proxy.example", "--name", "console.example"),
        ("--behind-proxy", "*", "--name", "console.example"),
    ],
)
def test_half_a_protection_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(SpecError):
        listening_of(options(*words))


@pytest.mark.parametrize(
    "words",
    [
        ("--keep-days", "0"),
        ("--keep-gib", "nan"),
        ("--name", "a b"),
        ("--name", ""),
        ("--name", "http://x"),
        ("--name", "ä"),
    ],
)
def test_what_does_not_fit_is_said(words: tuple[str, ...]) -> None:
    with pytest.raises(SpecError):
        settings_of(options(*words), {"HOME": "/home/x"})


def test_options_become_settings(tmp_path: Path) -> None:
    profile = tmp_path / "fleet.toml"
    profile.write_text('tenant = "plant-1"\nkey = "bob.key"\nstate = "f.sqlite"\n[mqtt]\nhost = "broker.local"\n')
    found = settings_of(
        options("--profile", str(profile), "--state", str(tmp_path / "c"), "--name", "console.example", "--no-consume"),
        {"HOME": "/home/x"},
    )
    assert (found.tenant, found.mqtt.host, found.consume, found.secure) == ("plant-1", "broker.local", False, False)
    assert (found.key, found.fleet_state) == (str(tmp_path / "bob.key"), tmp_path / "f.sqlite")
    assert (found.state, found.store) == (tmp_path / "c", str(tmp_path / "c" / "store.sqlite"))
    assert found.names[0] == "console.example"
    assert settings_of(options("--behind-proxy", "--name", "x"), {"HOME": "/home/x"}).secure
    usual = settings_of(options(), {"HOME": "/home/x"})
    assert usual.state == Path("/home/x/.local/state/temperd/console")
    assert usual.fleet_state == Path("/home/x/.local/state/temperd/fleet.sqlite")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli_console, "EXTRA", ("jinja2", "a_package_that_nobody_has"))
    assert main(["console"]) == 2
    assert "pip install 'temperd[console]'" in capsys.readouterr().err


def test_a_demo_without_a_runtime_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    for missing, install in (("onnxruntime", "temperd[console,demo,ort]"), ("sklearn", "temperd[console,demo]")):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, gone=missing: None if name == gone else real(name)
        )
        assert main(["console", "--demo"]) == 2
        assert install in capsys.readouterr().err


# --- on the server ---------------------------------------------------------------------------------------------------


def test_users_are_looked_after_on_the_server(tmp_path: Path, secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = ("--state", str(tmp_path / "state"))
    assert main(["console", "user", "list", *state]) == 0
    assert "no users" in capsys.readouterr().out
    words = ("--role", "owner", "--password-file", str(secret))
    assert main(["console", "user", "add", "alice", *words, *state]) == 0
    assert main(["console", "user", "add", "alice", *words, *state]) == 2
    assert main(["console", *state, "user", "add", "bob", *words]) == 0
    assert main(["console", "user", "remove", "bob", *state]) == 0
    assert main(["console", "user", "remove", "bob", *state]) == 2
    assert main(["console", "user", "remove", "alice", *state]) == 2
    assert main(["console", "user", "password", "alice", "--password-file", str(secret), *state]) == 0
    assert "last owner" in capsys.readouterr().err
    assert main(["console", "user", "password", "alice", "--link", "https://console.example/", *state]) == 0
    assert re.search(r"https://console\.example/set-up\?token=[\w-]{43}\n", capsys.readouterr().out)
    assert main(["console", "user", "password", "alice", "--link", "javascript:x", *state]) == 2
    assert main(["console", "user", "list", "--json", *state]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "alice"
    assert main(["console", "audit", *state]) == 0
    told = capsys.readouterr().out
    for action in ("user-added", "user-remove", "user-password", "user-link"):
        assert action in told
    assert PASSWORD not in told


def test_a_password_file_that_is_no_text_is_said(
    tmp_path: Path, secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret.write_bytes(b"gro\xdfe W\xf6rter, viele davon\n")
    words = ("--role", "owner", "--password-file", str(secret), "--state", str(tmp_path / "state"))
    assert main(["console", "user", "add", "alice", *words]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_a_password_file_that_others_may_read_is_refused(tmp_path: Path, secret: Path) -> None:
    secret.chmod(0o644)
    words = ("--role", "owner", "--password-file", str(secret), "--state", str(tmp_path / "state"))
    assert main(["console", "user", "add", "alice", *words]) == 1
    assert main(["console", "user", "add", "alice", "--role", "owner", "--state", str(tmp_path / "state")]) == 2


def test_the_trail_is_checked_and_exported(tmp_path: Path, secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = ("--state", str(tmp_path / "state"))
    for name in ("alice", "bob"):
        main(["console", "user", "add", name, "--role", "owner", "--password-file", str(secret), *state])
    capsys.readouterr()
    assert main(["console", "audit", "--verify", *state]) == 0
    noted = capsys.readouterr().out.strip().rpartition(" ")[2]
    assert main(["console", "audit", "--verify", "--expect", noted, *state]) == 0
    assert main(["console", "audit", "--verify", "--expect", f"9{noted}", *state]) == 3
    assert main(["console", "audit", "--verify", "--expect", "x", *state]) == 2
    capsys.readouterr()
    assert main(["console", "audit", "--json", *state]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["details"]["user"] for row in rows] == ["alice", "bob"]
    assert noted == f"2:{rows[-1]['hash']}"


def test_a_key_is_protected(tmp_path: Path, console_key: Path, capsys: pytest.CaptureFixture[str]) -> None:
    phrase = tmp_path / "phrase"
    phrase.write_text(PASSPHRASE)
    phrase.chmod(0o600)
    words = ["console", "key", "protect", str(console_key), "--passphrase-file", str(phrase)]
    assert main(words) == 0
    made = console_key.with_name("alice.key.sealed")
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert str(made) in capsys.readouterr().out
    assert main(words) == 2, "it exists"


# --- the process -----------------------------------------------------------------------------------------------------


@pytest.fixture
def process(tmp_path: Path) -> Iterator[ConsoleProcess]:
    """No broker is there: the console works on what it has."""
    made = ConsoleProcess(tmp_path / "console", free_port())
    yield made
    with contextlib.suppress(AssertionError):
        made.kill()


def client_of(url: str, **more: object) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=30, trust_env=False, **more)  # type: ignore[arg-type]


def csrf(page: str) -> str:
    found = re.search(r'name="csrf" value="(\w+)"', page)
    assert found is not None
    return found[1]


def test_the_first_start_prints_a_link_that_makes_the_owner(process: ConsoleProcess) -> None:
    process.start()
    link = re.search(rf"once: ({re.escape(process.url)}/set-up\?token=[\w-]+)", process.log())
    assert link is not None
    with client_of(process.url) as client:
        page = client.get(link[1])
        fields = {"csrf": csrf(page.text), "name": "alice", "password": FRESH, "again": FRESH}
        fields["token"] = link[1].rpartition("=")[2]
        assert client.post("/set-up", data=fields).status_code == 303
        page = client.get("/login")
        answer = client.post("/login", data={"csrf": csrf(page.text), "name": "alice", "password": FRESH})
        assert answer.headers["location"] == "/fleet"
        assert client.get("/account").status_code == 200
        assert "server" not in answer.headers
    assert process.stop() == 0
    process.start()
    assert process.log().count("once: ") == 1, "there is an owner now"
    assert process.stop() == 0


def test_its_files_and_its_memory_are_its_users_own(process: ConsoleProcess) -> None:
    """`--store` and `--fleet-state` may lie where others read: the folder of this test is one."""
    process.folder.chmod(0o755)
    before = os.umask(0o022)
    try:
        process.start()
    finally:
        os.umask(before)
    for path in (process.store, process.fleet, process.state / "audit.sqlite", process.state / "console.sqlite"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    limits = Path(f"/proc/{process.pid}/limits").read_text("ascii")
    assert re.search(r"Max core file size +0 +0 ", limits), "a dump would hold the key"
    assert process.stop() == 0


def test_a_stream_does_not_keep_it_from_ending(process: ConsoleProcess) -> None:
    process.add_users()
    process.start()
    with client_of(process.url) as client:
        page = client.get("/login")
        client.post("/login", data={"csrf": csrf(page.text), "name": "owner", "password": PASSWORD})
        with client.stream("GET", "/live?boards=pi-1") as stream:
            assert stream.status_code == 200
            pieces = stream.iter_raw()
            assert next(pieces)
            assert process.stop() == 0
            for _ in pieces:  # raises where the answer broke off
                pass
    assert "Traceback" not in process.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(process: ConsoleProcess, number: signal.Signals) -> None:
    process.start()
    os.kill(process.pid, number)
    assert process._process is not None
    assert process._process.wait(timeout=30) == 0


def test_a_port_that_is_taken_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        words = ["--state", str(tmp_path / "state"), "--fleet-state", str(tmp_path / "f"), "--listen", place]
        assert main(["console", "--broker", "127.0.0.1:1", *words]) == 1
    assert "the port is taken" in capsys.readouterr().err
    assert not (tmp_path / "state").exists(), "nothing was begun"


def test_an_address_of_another_machine_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--state", str(tmp_path / "state"), "--fleet-state", str(tmp_path / "f")]
    words += ["--listen", "192.0.2.1:8750", "--behind-proxy", "--name", "x"]
    assert main(["console", "--broker", "127.0.0.1:1", *words]) == 2
    assert "no such address" in capsys.readouterr().err


def test_a_broken_certificate_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.pem").write_text("x")
    words = ["--tls-cert", str(tmp_path / "c.pem"), "--tls-key", str(tmp_path / "c.pem")]
    assert main(["console", "--broker", "127.0.0.1:1", *words, "--state", str(tmp_path / "state")]) == 2
    assert "certificate" in capsys.readouterr().err


def test_which_file_of_tls_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cert, key = tmp_path / "c.pem", tmp_path / "k.pem"
    words = ["--tls-cert", str(cert), "--tls-key", str(key), "--broker", "127.0.0.1:1"]
    for missing in (cert, key):
        assert main(["console", *words, "--state", str(tmp_path / "state")]) == 2
        assert str(missing) in capsys.readouterr().err
        missing.write_text("x")
    assert main(["console", *words, "--state", str(tmp_path / "state")]) == 2
    assert "--tls-key the private key" in capsys.readouterr().err


def test_a_key_with_a_passphrase_is_refused_and_asks_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-passout", "pass:word"]
    subprocess.run([*made, "-keyout", key, "-out", cert, "-subj", "/CN=x"], check=True, capture_output=True)
    words = ["--tls-cert", str(cert), "--tls-key", str(key), "--broker", "127.0.0.1:1"]
    assert main(["console", *words, "--state", str(tmp_path / "state")]) == 2
    assert "without a passphrase" in capsys.readouterr().err


def test_tls_with_modern_versions_only(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subprocess.run([*made, "-keyout", key, "-out", cert, *name], check=True, capture_output=True)
    port = free_port()
    words = ["--state", str(tmp_path / "state"), "--fleet-state", str(tmp_path / "f"), "--broker", "127.0.0.1:1"]
    words += ["--listen", f"127.0.0.1:{port}", "--tls-cert", str(cert), "--tls-key", str(key), "--name", "localhost"]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        running = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "console", *words], stdout=stream, stderr=stream, cwd=Path.cwd()
        )
    try:
        end = time.monotonic() + 30
        while "console: " not in log.read_text():
            assert running.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        assert f"https://localhost:{port}/set-up?token=" in log.read_text()
        with client_of(f"https://localhost:{port}", verify=ssl.create_default_context(cafile=str(cert))) as client:
            answer = client.get("/login")
            assert answer.status_code == 200
            assert "__Host-temperd-login=" in answer.headers["set-cookie"]
            assert "strict-transport-security" not in answer.headers, "localhost has other services"
        old = ssl.create_default_context(cafile=str(cert))
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            old.wrap_socket(plain, server_hostname="localhost"),
        ):
            pass
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert not plain.recv(1000).startswith(b"HTTP/1.1 2")
    finally:
        running.terminate()
        assert running.wait(timeout=30) == 0


def test_behind_a_proxy_the_browser_counts(tmp_path: Path) -> None:
    process = ConsoleProcess(tmp_path / "c", free_port(), options=("--behind-proxy", "--name", "console.example"))
    process.add_users()
    process.start()
    told = {"host": "console.example", "x-forwarded-for": "192.0.2.66, 203.0.113.9", "x-forwarded-proto": "https"}
    ours = {**told, "origin": "https://console.example"}
    try:
        with client_of(process.url, headers=told) as client:
            page = client.get("/login")
            fields = {"csrf": csrf(page.text), "name": "owner", "password": PASSWORD}
            crumb = page.headers["set-cookie"].partition(";")[0]
            client.cookies.clear()  # they are Secure, and this client sees no TLS
            for origin in ("http://console.example", process.url):
                answer = client.post("/login", data=fields, headers={**ours, "origin": origin, "cookie": crumb})
                assert answer.status_code == 403
            answer = client.post("/login", data=fields, headers={**ours, "cookie": crumb})
            assert answer.status_code == 303
            assert answer.headers["set-cookie"].startswith("__Host-temperd-session=")
            assert answer.headers["strict-transport-security"]
    finally:
        assert process.stop() == 0
    trail = Audit(process.state, time.time)
    logins = [record for record in trail.everything() if record.action == "login"]
    trail.close()
    assert [record.details["address"] for record in logins] == ["203.0.113.9"], "what the proxy saw, no more"


def test_one_address_does_not_take_all_connections(process: ConsoleProcess) -> None:
    process.start()
    with contextlib.ExitStack() as held:
        for _ in range(MAX_OF_ADDRESS + 20):
            held.enter_context(socket.create_connection(("127.0.0.1", process.port)))
        time.sleep(0.5)
        with pytest.raises(httpx.TransportError), client_of(process.url) as client:
            client.get("/healthz")
    with client_of(process.url) as client:
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(httpx.TransportError):
                if client.get("/healthz").status_code == 200:
                    break
            assert time.monotonic() < end
            time.sleep(0.1)


def test_garbage_and_slow_heads_end(process: ConsoleProcess) -> None:
    process.start()
    for garbage in (b"\x00\xff" * 100, b"GET / HTTP/9.9\r\n\r\n", b"GET /" + b"a" * 100_000, b"\x16\x03\x01\x02\x00"):
        with socket.create_connection(("127.0.0.1", process.port), timeout=30) as line:
            line.sendall(garbage + b"\r\n\r\n")
            answer = line.recv(1000)
            assert not answer or answer.startswith(b"HTTP/1.1 4")
    with socket.create_connection(("127.0.0.1", process.port), timeout=40) as line:
        line.sendall(b"GET / HTTP/1.1\r\nhost:")
        with contextlib.suppress(ConnectionError):
            assert line.recv(1000) == b"", "closed by the server, in its own time"
    assert process.stop() == 0
    assert "Traceback" not in process.log()
