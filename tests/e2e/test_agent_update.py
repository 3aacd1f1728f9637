"""A board updates itself: real releases of this tree, the real launcher, a signed console; and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent import __version__
from agent.agent_slots import agent_folder, read_standing
from service.commands import sign_command
from tests.simulators.fleet import World
from tests.simulators.releases import LAUNCHER, other_machine, publish

MOST_DOWNTIME_S = 60.0  # a machine that is shared by others: what is asked of a quiet one is measured by hand


def slot_of(world: World) -> str:
    """The slot that the daemon's own code lies in; empty: none."""
    for entry in Path(f"/proc/{world.daemon.pid}/environ").read_bytes().split(b"\0"):
        if entry.startswith(b"TEMPERD_SLOT="):
            return entry.partition(b"=")[2].decode()
    return ""


def told(world: World, command_id: str) -> list[tuple[str, str]]:
    """Status and step of a command, each change once."""
    words: list[tuple[str, str]] = []
    for heard in world.tap.heard:
        if heard.topic.endswith(f"{command_id}/sts"):
            body = json.loads(heard.payload)
            words += [(body["status"], body["step"])]
    return [one for i, one in enumerate(words) if i == 0 or one != words[i - 1]]


def test_a_release_is_taken_tried_and_stays_and_what_does_not_fit_is_refused(resting: World) -> None:
    world = resting
    publish(world, "0.0.9")
    publish(world, "9.1.0", arch=other_machine())
    publish(world, "9.0.0")
    world.start(LAUNCHER)
    pid, mark = world.daemon.pid, len(world.log())
    assert slot_of(world) == "installed"
    for version, code in (("0.0.9", "older-version"), ("9.1.0", "other-arch"), ("9.9.9", "unknown-version")):
        refused = world.send("update-agent", {"version": version})
        assert (refused["status"], refused["reason_code"]) == ("failed", code), refused
    assert not [path for path in agent_folder(world.state).iterdir() if path.is_dir()]

    request = world.request("update-agent", {"version": "latest", "window_s": 10.0})
    envelope = sign_command(request, world.console_key)
    ended = world.send_envelope("update-agent", request.id, envelope, until=("succeeded", "failed", "rolled_back"))
    assert (ended["status"], ended["reason_code"]) == ("succeeded", ""), ended
    result: dict[str, Any] = ended["result"]
    assert (result["changed"], result["before"], result["version"]) == (True, __version__, "9.0.0")
    assert 0 < result["downtime_s"] < MOST_DOWNTIME_S
    sys.stdout.write(f"downtime {result['downtime_s']:.2f} s\n")
    assert told(world, request.id) == [
        ("accepted", ""),
        ("running", "pulling"),
        ("running", "installing"),
        ("running", "restarting"),
        ("running", "trial"),
        ("succeeded", ""),
    ]
    assert world.daemon.pid == pid
    assert slot_of(world) == "a"
    assert b"version=9.0.0" in world.log()[mark:]
    standing, fault = read_standing(world.state)
    assert (standing.active, standing.trial, fault) == ("a", None, "")
    assert sorted(path.name for path in agent_folder(world.state).iterdir()) == ["a", "standing.json"]

    again = world.send_envelope("update-agent", request.id, envelope)
    assert (again["status"], again["version"]) == ("succeeded", ended["version"])
    assert world.send("update-agent", {})["result"] == {"changed": False, "version": "9.0.0", "before": "9.0.0"}
    status = subprocess.run(
        [sys.executable, "-m", "service.cli", "status", "--config", str(world.config)],
        capture_output=True, check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert b"temperd 9.0.0, slot a" in status.stdout
