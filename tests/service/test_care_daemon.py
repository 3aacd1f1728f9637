"""Doctor, log level, back-up and bundle beside a daemon that runs: it is looked at, and not disturbed."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from agent.keys_stored import find_identity
from service import support
from tests.simulators.fleet import World

PASSWORD, PROXY_LOGIN = "correct-horse-battery", "hunter2-of-the-proxy"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("care"))
    secret = world.folder / "password"
    secret.write_text(f"{PASSWORD}\n")
    secret.chmod(0o600)
    text = world.config.read_text().replace("[mqtt]\n", '[mqtt]\nusername = "board-1"\npassword_file = "password"\n')
    world.config.write_text(text)
    world.publish(grant=False)
    world.broker.start()
    try:
        world.start()
        yield world
    finally:
        world.close()


def live(world: World) -> dict[str, Any]:
    found = json.loads(world.cli("status", "--json").stdout)
    assert isinstance(found, dict)
    return found


def test_a_bundle_has_all_that_helps_no_secret_and_a_doctor_that_throws_nobody_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://me:{PROXY_LOGIN}@proxy.example:3128")
    world.wait(lambda: live(world)["connected"])
    before = live(world)["link"]
    out, victim = world.folder / "bundle.tar.gz", world.folder / "victim"
    victim.write_text("of somebody else")
    out.symlink_to(victim)
    well = ("daemon", "identity", "root", "consoles", "board", "temperature", "broker", "repository")

    def look() -> dict[str, str] | None:
        """The bundle's parts, once a look was not cut short by its own deadline: the machine may be a busy one."""
        assert world.cli("report", "--out", str(out)).returncode == 0
        with tarfile.open(out) as archive:
            found = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}  # type: ignore[union-attr]
        grades = {one["check"]: one["grade"] for one in json.loads(found["doctor.json"])["findings"]}
        return found if {grades[name] for name in well} == {"ok"} else None

    parts = world.wait(look, 180)
    after = live(world)["link"]
    assert (after["connections"], after["takeovers"]) == (before["connections"], 0)
    assert out.lstat().st_mode & 0o777 == 0o600
    assert victim.read_text() == "of somebody else", "no link is followed: root may be who writes"
    assert list(parts) == ["report.json", "doctor.json", "unit.json", "log.txt"]
    assert json.loads(parts["report.json"])["live"]["device"] == "board-1"
    told = json.loads(parts["doctor.json"])
    assert told["verdict"] != "bad", [one for one in told["findings"] if one["grade"] == "bad"]
    keys = find_identity(world.state / "keys", {}).stored.keys[0]
    secrets = (PASSWORD, PROXY_LOGIN, keys.ed25519, keys.storage, keys.x25519)
    assert not [secret for secret in secrets if any(secret in part for part in parts.values())]


def test_debug_comes_and_goes_without_a_restart(world: World) -> None:
    pid = live(world)["pid"]
    assert world.cli("log-level", "debug", "--for", "10m").returncode == 0
    world.wait(lambda: b" second " in world.log())
    assert world.cli("log-level", "configured").returncode == 0
    assert world.log().count(b"log level") == 2
    assert live(world)["pid"] == pid


def test_a_back_up_is_made_beside_the_daemon_and_a_restore_refused(world: World) -> None:
    made = world.cli("backup", "--out", str(world.folder / "board.backup"))
    assert made.returncode == 0, made.stderr
    refused = world.cli("restore", str(world.folder / "board.backup"), "--replace")
    assert refused.returncode == 1
    assert "Stop the daemon first" in refused.stderr
    assert live(world)["connected"]


def test_secrets_that_somebody_logged_are_taken_out_by_name_and_by_value(tmp_path: Path) -> None:
    odd = 'zw\u00f6lf"neun\\'
    lines = [
        "ts=1 event=x password=open-sesame user=me",
        'token: "ab cd" MQTT_PASSWORD=abc123',
        "https://me:pw@host/x and key 0123456789",
        "password_file=/etc/temperd/password stays",
        'Authorization: Bearer abcdef.123 {"password": "x\\"yz7", "n": 1}',
        json.dumps({"event": f"refused: {odd}"}) + repr(odd) + quote(odd),
    ]
    text = "\n".join(lines)
    out = tmp_path / "b.tar.gz"
    with out.open("wb") as stream:
        parts = {"log.txt": text, "a.json": {"x": f"0123456789 {odd}"}}
        support.write_bundle(stream, parts, frozenset({"0123456789", odd}))
    with tarfile.open(out) as archive:
        told = "".join(archive.extractfile(name).read().decode() for name in archive.getnames())  # type: ignore[union-attr]
    assert not [word for word in ("open-sesame", "ab cd", "abc123", "me:pw", "0123456789") if word in told]
    assert not [word for word in ("abcdef.123", "yz7", "neun") if word in told]
    assert '"n": 1' in told
    assert "password_file=/etc/temperd/password stays" in told
    assert "user=me" in told


def test_a_log_without_end_is_cut_at_its_beginning(tmp_path: Path) -> None:
    with (tmp_path / "b.tar.gz").open("wb") as stream:
        support.write_bundle(stream, {"log.txt": "x" * (support.MAX_PART_BYTES + 100) + "the end"}, frozenset())
    with tarfile.open(tmp_path / "b.tar.gz") as archive:
        told = archive.extractfile("log.txt").read()  # type: ignore[union-attr]
    assert len(told) == support.MAX_PART_BYTES
    assert told.endswith(b"the end")
