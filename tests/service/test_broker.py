from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from agent.errors import NetworkError
from service.broker import LOOPBACK, PLACES, Program, _unpacked, find_mosquitto, free_port, start_broker

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path=":".join(PLACES))
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto")


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_unpacked_packages_give_the_program_and_the_folders_of_its_libraries(tmp_path: Path) -> None:
    root = tmp_path / "root"
    assert _unpacked(tmp_path) is None
    touch(root / "usr/lib/aarch64-linux-gnu/libcjson.so.1")
    assert _unpacked(tmp_path) is None  # libraries alone are no broker
    path = touch(root / "usr/sbin/mosquitto")
    touch(root / "usr/lib/aarch64-linux-gnu/libwebsockets.so.19")
    touch(root / "usr/lib/aarch64-linux-gnu/deep/plugin.so")
    touch(root / "lib/aarch64-linux-gnu/libwrap.so.0.7.6")
    touch(root / "usr/share/doc/readme.so.txt")
    found = _unpacked(tmp_path)
    assert found == Program(
        str(path),
        tuple(
            str(root / folder)
            for folder in ("lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu/deep")
        ),
    )
    assert found.environment == os.environ | {"LD_LIBRARY_PATH": ":".join(found.libraries)}


def test_a_program_of_the_machine_gets_the_environment_as_it_is() -> None:
    assert Program("/usr/sbin/mosquitto").environment == dict(os.environ)


def test_a_free_port_can_be_bound() -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, free_port()))
        taken.listen()
        assert free_port() != taken.getsockname()[1]


def test_a_program_that_ends_at_once_is_no_broker_and_its_words_are_told(tmp_path: Path) -> None:
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho no such option >&2\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(NetworkError, match="the broker did not start") as caught:
        start_broker(Program(str(program)), tmp_path)
    assert caught.value.where == "no such option\n"


@needs_mosquitto
def test_the_machines_broker_is_found_started_and_stopped(tmp_path: Path) -> None:
    said: list[str] = []
    program = find_mosquitto(tmp_path / "cache", said.append)
    assert program == Program(str(MOSQUITTO))
    assert said == []
    broker = start_broker(program, tmp_path)
    try:
        with socket.create_connection((LOOPBACK, broker.port), timeout=5) as connection:
            # CONNECT of MQTT 5: clean start, keep-alive 10 s, no properties, client "t"; CONNACK answers with success
            connection.sendall(bytes.fromhex("100e 0004 4d515454 05 02 000a 00 0001 74"))
            answer = connection.recv(64)
        assert answer[0] == 0x20
        assert answer[3] == 0
        assert f"listener {broker.port} 127.0.0.1" in (tmp_path / "mosquitto.conf").read_text()
    finally:
        broker.stop()
    with socket.socket() as probe:
        assert probe.connect_ex((LOOPBACK, broker.port)) != 0
