"""A real daemon and a real broker: alarms over kill -9, the report, Home Assistant and Prometheus."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.report import MAX_REPORT_BYTES
from tests.service.test_home_assistant import rendered
from tests.service.test_prometheus import parse
from tests.simulators.fleet import DEVICE, World
from tests.simulators.mosquitto import find_mosquitto

ROOT = f"temper/v1/default/{DEVICE}"
DISCOVERY = f"homeassistant/device/temperd-default-{DEVICE}/config"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto"),
    pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="needs mosquitto-clients"),
]


class Ears:
    """The latest message of each topic, retained or not, as one `mosquitto_sub` hears them."""

    def __init__(self, world: World) -> None:
        self._path = world.folder / "heard.jsonl"
        with self._path.open("wb") as out:
            self.process = subprocess.Popen(
                ["stdbuf", "-oL", "mosquitto_sub", "-p", str(world.broker.port), "-t", "#", "-q", "1", "-F", "%j"],
                stdout=out,
            )

    def latest(self) -> dict[str, Any]:
        """By topic; a topic that was cleared is not there."""
        found: dict[str, Any] = {}
        for line in self._path.read_text("utf-8", errors="replace").splitlines():
            try:
                heard = json.loads(line)
            except ValueError:  # half written
                continue
            found[heard["topic"]] = heard.get("payload") or ""
        return {topic: json.loads(payload) for topic, payload in found.items() if payload}

    def alarms(self) -> set[str]:
        return {topic.rsplit("/", 1)[1] for topic in self.latest() if topic.startswith(f"{ROOT}/a/")}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Ears, Path, int]]:
    folder = tmp_path_factory.mktemp("board")
    policy = folder / "policy.toml"
    policy.write_text('name = "mine"\n')
    world, port = World(folder, policy=str(policy)), free_port()
    settings = '[home_assistant]\nenabled = true\n[prometheus]\ntextfile = "temperd.prom"\n'
    world.config.write_text(world.config.read_text() + settings + f'listen = ":{port}"\n')
    with ExitStack() as stack:
        stack.callback(world.close)
        world.broker.start()
        ears = Ears(world)
        stack.callback(ears.process.wait)
        stack.callback(ears.process.kill)
        world.start()
        yield world, ears, policy, port


def test_home_assistant_finds_the_board_and_every_template_reads_what_is_published(
    board: tuple[World, Ears, Path, int],
) -> None:
    world, ears, _, _ = board
    world.wait(lambda: {DISCOVERY, f"{ROOT}/conn", f"{ROOT}/m/board"} <= ears.latest().keys())
    heard = ears.latest()
    assert heard[DISCOVERY]["dev"]["mdl"] == "Emulated Raspberry Pi 4"
    assert rendered(heard[DISCOVERY]["availability"][0]["value_template"], heard[f"{ROOT}/conn"]) == "online"
    states = {
        name: rendered(part["value_template"], heard[part["state_topic"]])
        for name, part in heard[DISCOVERY]["cmps"].items()
        if part["state_topic"] == f"{ROOT}/m/board"
    }
    assert float(states["board_temperature_celsius"]) > 0
    assert states["board_action"] in heard[DISCOVERY]["cmps"]["board_action"]["options"]
    assert states["alarm_store_damaged"] == "OFF"


def test_prometheus_reads_the_board_at_an_address_and_in_a_file(board: tuple[World, Ears, Path, int]) -> None:
    world, _, _, port = board
    world.wait((world.folder / "temperd.prom").exists)
    for text in (
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode(),
        (world.folder / "temperd.prom").read_text("utf-8"),
    ):
        found = parse(text)
        assert found["temperd_die_temperature_celsius", ""] > 0
        assert ("temperd_alarm", 'type="overheated",severity="warning"') in found


def test_an_alarm_lives_through_kill_9_and_is_cleared_when_its_cause_went_while_the_daemon_was_down(
    board: tuple[World, Ears, Path, int],
) -> None:
    world, ears, policy, _ = board
    policy.write_text("no such = key\n")
    world.wait(lambda: "policy-invalid" in ears.alarms())
    first = ears.latest()[f"{ROOT}/a/policy-invalid"]
    assert first["severity"] == "warning"
    assert "policy.toml" in first["evidence"]["complaint"]
    world.wait(lambda: "ALARM policy-invalid (warning) since 20" in world.cli("status").stdout)
    world.kill()
    world.start()
    world.wait(lambda: ears.latest()[f"{ROOT}/a/policy-invalid"]["ts"] > first["ts"])
    assert ears.latest()[f"{ROOT}/a/policy-invalid"]["since"] == first["since"]
    world.kill()
    policy.write_text('name = "mended"\n')
    world.start()
    world.wait(lambda: "policy-invalid" not in ears.alarms())


def test_heat_above_the_pause_trip_is_told_on_the_wire_and_to_home_assistant_at_once(
    board: tuple[World, Ears, Path, int],
) -> None:
    world, ears, policy, _ = board
    trips = {"slow": 20, "hot": 21, "pause": 22}  # below what any die has
    text = "".join(f"[thermal.{stage}]\nabsolute_celsius = {celsius}\n" for stage, celsius in trips.items())
    policy.write_text(f'name = "cold"\n{text}')
    world.wait(lambda: "overheated" in ears.alarms())
    evidence = ears.latest()[f"{ROOT}/a/overheated"]["evidence"]
    assert evidence["rules"] == ["thermal.absolute-pause"]
    assert evidence["temperature_celsius"] > 22
    template = ears.latest()[DISCOVERY]["cmps"]["alarm_overheated"]["value_template"]
    world.wait(lambda: rendered(template, ears.latest()[f"{ROOT}/m/board"]) == "ON")
    policy.write_text('name = "mended"\n')


def test_a_report_tells_what_a_board_is_and_keeps_its_secrets(board: tuple[World, Ears, Path, int]) -> None:
    world, ears, _, _ = board
    request = world.request("collect-report", {})
    status = world.send("collect-report", {})
    assert status["status"] == "succeeded"
    report = status["result"]
    assert len(json.dumps(report)) <= MAX_REPORT_BYTES
    assert report["birth"]["board"]["profile"] == "raspberry-pi-4"
    assert report["live"]["policy"]["source"] == "file"
    assert report["link"]["connected"] is True
    assert report["disk"]["free_bytes"] > 0
    assert report["journal"]["bytes"] > 0
    assert report["configuration"]["device"]["name"] == request.device
    assert report["versions"]["agent"]
    keys = [path.read_bytes() for path in (world.state / "keys").rglob("*") if path.is_file()]
    text = json.dumps(report)
    assert keys
    for key in keys:
        for secret in _strings(key):
            assert secret not in text or secret == request.device
    topic = f"{ROOT}/cmd/collect-report/{status['id']}/sts"
    retained = world.wait(lambda: ears.latest().get(topic))  # the two who listen hear it one after the other
    assert retained["result"] == report


def _strings(document: bytes) -> list[str]:
    """Long texts of a key file: keys in hexadecimal or base64."""
    try:
        table = json.loads(document)
    except ValueError:
        return []
    return (
        [value for value in table.values() if isinstance(value, str) and len(value) >= 32]
        if isinstance(table, dict)
        else []
    )


def test_a_second_board_with_our_name_is_an_alarm(board: tuple[World, Ears, Path, int]) -> None:
    world, ears, _, _ = board
    there = {"online": True, "session": 900, "connection": 1, "boot_id": "of another board", "ts": 1_800_000_000.0}
    arguments = ["-i", f"temperd-default-{DEVICE}", "-V", "mqttv5", "-q", "1", "-r", "-t", f"{ROOT}/conn"]
    subprocess.run(
        ["mosquitto_pub", "-p", str(world.broker.port), *arguments, "-m", json.dumps(there)], check=True, timeout=60
    )
    world.wait(lambda: "taken-over" in ears.alarms())
    assert ears.latest()[f"{ROOT}/a/taken-over"]["evidence"]["count"] >= 1


def test_the_local_report_needs_no_daemon(board: tuple[World, Ears, Path, int]) -> None:
    world, _, _, _ = board
    done = world.cli("report", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["live"]["device"] == DEVICE
    assert report["configuration"]["device"]["name"] == DEVICE
    world.kill()
    done = world.cli("report", "--out", "report.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((world.folder / "report.json").read_text())["journal"]["bytes"] > 0
    world.start()


def test_switched_off_the_board_leaves_home_assistant(board: tuple[World, Ears, Path, int]) -> None:
    world, ears, _, _ = board
    world.wait(lambda: DISCOVERY in ears.latest())
    assert world.stop() == 0
    assert not (world.folder / "temperd.prom").exists()
    world.config.write_text(world.config.read_text().replace("enabled = true", "enabled = false"))
    world.start()
    world.wait(lambda: DISCOVERY not in ears.latest())
    said = ["-q", "1", "-t", "homeassistant/status", "-m", "online"]
    subprocess.run(["mosquitto_pub", "-p", str(world.broker.port), *said], check=True, timeout=60)
    report = world.send("collect-report", {})["result"]
    assert report["link"]["refused_total"] == 0, "what the session still brings is nobody's fault"
