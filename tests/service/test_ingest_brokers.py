"""The compose file of brokers, as far as it can be judged without an engine for containers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.fleet.ingest import RECEIVE_MAXIMUM

FOLDER = Path(__file__).parents[2] / "packaging" / "brokers"
FILE = FOLDER / "compose.yaml"
PROFILES = ("mosquitto", "emqx", "vernemq", "hivemq", "timescaledb")
KEYS = {"profiles", "image", "hostname", "ports", "ulimits", "environment", "networks", "volumes", "depends_on"}


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text("utf-8"))["services"]
    return found


def test_each_broker_has_a_profile_of_its_own_and_its_nodes_do_not_share_a_port() -> None:
    for profile in PROFILES:
        nodes = [node for node in services().values() if node["profiles"] == [profile]]
        assert len(nodes) == (1 if profile in ("mosquitto", "timescaledb") else 2)
        ports = [port.partition(":")[0] for node in nodes for port in node["ports"]]
        assert len(set(ports)) == len(ports)
    assert {profile for node in services().values() for profile in node["profiles"]} == set(PROFILES)


def test_what_a_service_names_is_there() -> None:
    whole = yaml.safe_load(FILE.read_text("utf-8"))
    for name, node in services().items():
        assert set(node) <= KEYS, name
        assert ":" in node["image"], name
        assert set(node.get("networks", ())) <= set(whole["networks"]), name
        for volume in node.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (FOLDER / source).exists() if source.startswith(".") else source in whole["volumes"], name


def test_no_broker_holds_back_what_a_consumer_may_have_under_way() -> None:
    assert int(services()["emqx-1"]["environment"]["EMQX_MQTT__MAX_INFLIGHT"]) >= RECEIVE_MAXIMUM
    assert services()["vernemq-1"]["environment"]["DOCKER_VERNEMQ_MAX_INFLIGHT_MESSAGES"] == "0"
    lines = (FOLDER / "mosquitto.conf").read_text("ascii").splitlines()
    assert "max_inflight_messages 0" in lines
    assert "set_tcp_nodelay true" in lines


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
@pytest.mark.parametrize("profile", PROFILES)
def test_compose_itself_takes_the_file(profile: str) -> None:
    command = ["docker-compose", "-f", str(FILE), "--profile", profile, "config", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
