"""Clients that know nothing of temperd read every topic, and see why the board does not obey them."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.commands import PAYLOAD_TYPE, new_id, sign_command
from tests.simulators.fleet import DEVICE, ROOT, World, world
from tests.simulators.mosquitto import find_mosquitto

SCRIPT = ROOT / "tests" / "simulators" / "plain_client.cjs"
MODULES = ROOT / ".node-asyncapi" / "node_modules"
TOPIC = f"temper/v1/default/{DEVICE}"
SECONDS = 90.0

pytestmark = [
    pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto"),
    pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="needs mosquitto-clients"),
]
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (MODULES / "mqtt").exists(),
    reason="needs Node and its mqtt package: make asyncapi",
)
LIVE = {
    *("conn", "birth", "cmd/fine-tune", "a/policy-invalid"),
    *(f"m/{group}" for group in ("board", "training", "energy", "store", "link", "backfill")),
}
"""What both see, beside statuses."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A board that has not been started; its policy is a file, to be broken."""
    folder = tmp_path_factory.mktemp("plain")
    policy = folder / "policy.toml"
    policy.write_text('name = "mine"\n')
    with world(folder, started=False, policy=str(policy)) as made:
        yield made


def unsigned() -> tuple[str, str]:
    """Topic and text of a command as somebody would write it who has no key."""
    command_id = new_id(int(time.time() * 1000), os.urandom)
    now = int(time.time())
    request = {"id": command_id, "device": DEVICE, "type": "scrub", "issued_at": now, "not_after": now + 60, "args": {}}
    payload = base64.b64encode(json.dumps(request).encode()).decode()
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": payload, "signatures": []}
    return f"{TOPIC}/cmd/scrub/{command_id}/req", json.dumps(envelope)


def mosquitto(program: str, fleet: World, *arguments: str) -> list[str]:
    return [program, "-h", "127.0.0.1", "-p", str(fleet.broker.port), "-V", "mqttv5", "-q", "1", *arguments]


class Mosquitto:
    """`mosquitto_sub` on everything below the board."""

    def __init__(self, fleet: World) -> None:
        self._lines = fleet.folder / "mosquitto_sub.txt"
        command = mosquitto("mosquitto_sub", fleet, "-t", f"{TOPIC}/#", "-v")
        with self._lines.open("wb") as out:  # a line at a time: else the last ones wait for 4 KiB to be full
            self._process = subprocess.Popen(["stdbuf", "-oL", *command], stdout=out)

    def seen(self) -> dict[str, dict[str, Any]]:
        """The last body by topic; a line that is not whole yet is left out."""
        *lines, _rest = self._lines.read_text(encoding="utf-8").split("\n")
        pairs = [line.split(" ", 1) for line in lines]
        return {topic.removeprefix(f"{TOPIC}/"): json.loads(body) for topic, body in pairs if body != "(null)"}

    def wait_for(self, topics: set[str]) -> None:
        end = time.monotonic() + SECONDS
        while missing := topics - self.seen().keys():
            assert time.monotonic() < end, f"never seen: {sorted(missing)}"
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()


class Node:
    """Node's `mqtt` package on the same, which also sends a command when the board comes online."""

    def __init__(self, fleet: World) -> None:
        self.topic, command = unsigned()
        wanted = json.dumps(sorted(LIVE))
        self._process = subprocess.Popen(
            ["node", str(SCRIPT), str(fleet.broker.port), TOPIC, wanted, self.topic, command],
            stdout=subprocess.PIPE,
            env={**os.environ, "NODE_PATH": str(MODULES)},
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate()

    def ends(self) -> dict[str, Any]:
        out, _ = self._process.communicate(timeout=SECONDS * 4)
        return json.loads(out)


def live(fleet: World) -> dict[str, Any]:
    return json.loads((fleet.state / "run" / "live.json").read_bytes())


@pytest.fixture(scope="module")
def told(fleet: World) -> Iterator[dict[str, Any]]:
    """What both clients saw of a board that starts, trains, scrubs and gets a broken policy."""
    sub = Mosquitto(fleet)
    node = Node(fleet) if (MODULES / "mqtt").exists() and shutil.which("node") else None
    try:
        fleet.start()
        args = fleet.job(fleet.images(samples=600), epochs=1000)  # longer than anybody waits
        request = fleet.request("fine-tune", args)
        envelope = sign_command(request, fleet.console_key)
        fleet.send_envelope("fine-tune", request.id, envelope, until=("accepted", "deferred", "running"))
        sub.wait_for({"m/training", "m/energy"})
        fleet.broker.kill()
        fleet.wait(lambda: live(fleet)["telemetry"]["outbox_messages"])
        fleet.broker.start()
        sub.wait_for({"m/backfill"})
        fleet.send("cancel", {"job": request.id})
        fleet.send("scrub", {})
        (fleet.folder / "policy.toml").write_text("thermal = 7\n")
        assert fleet.daemon is not None
        fleet.daemon.send_signal(signal.SIGHUP)
        sub.wait_for({*LIVE, f"cmd/fine-tune/{request.id}/sts"})
        yield {"sub": sub.seen(), "node": node.ends() if node else None, "job": request.id}
    finally:
        sub.stop()
        if node:
            node.stop()


def test_mosquitto_sub_reads_every_topic(told: dict[str, Any]) -> None:
    seen = told["sub"]
    assert seen["conn"]["online"] is True
    assert seen["birth"]["schema"] == 1
    assert seen["cmd/fine-tune"]["type"] == "fine-tune"
    assert seen[f"cmd/fine-tune/{told['job']}/sts"]["status"] == "canceled"
    assert all(seen[name]["values"] for name in LIVE if name.startswith("m/") and name != "m/backfill")
    assert seen["m/backfill"]["historical"] is True
    assert seen["a/policy-invalid"]["severity"] == "warning"


def test_mosquitto_pub_sees_why_its_command_is_refused(fleet: World, told: dict[str, Any]) -> None:
    del told
    topic, command = unsigned()
    answer = topic.removesuffix("req") + "sts"
    waiting = subprocess.Popen(mosquitto("mosquitto_sub", fleet, "-t", answer, "-C", "1"), stdout=subprocess.PIPE)
    try:
        end = time.monotonic() + SECONDS
        while waiting.poll() is None:  # it does not say when it has subscribed, and such an answer is not retained
            assert time.monotonic() < end
            subprocess.run(mosquitto("mosquitto_pub", fleet, "-t", topic, "-m", command), check=True, timeout=SECONDS)
            time.sleep(0.2)
    finally:
        waiting.kill()
        out, _ = waiting.communicate()
    body = json.loads(out)
    assert (body["status"], body["reason_code"]) == ("rejected", "unsigned")
    assert "no signature" in body["reason"]


@needs_node
def test_node_reads_every_topic_and_sees_why_its_command_is_refused(told: dict[str, Any]) -> None:
    node = told["node"]
    assert node["missing"] == []
    assert f"cmd/fine-tune/{told['job']}/sts" in node["seen"]
    assert {node["seen"][name]["type"] for name in LIVE if name.startswith("m/")} == {"application/json"}
    assert (node["refusal"]["status"], node["refusal"]["reason_code"]) == ("rejected", "unsigned")
