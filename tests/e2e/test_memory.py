"""Memory that runs short while a job trains: the worker goes on with less at once, and comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.commands import sign_command
from tests.simulators.fleet import World, world

BATCH = 8
pytestmark = pytest.mark.e2e


def live(fleet: World) -> dict[str, Any]:
    """What the daemon shows of itself, up to a second old."""
    view: dict[str, Any] = json.loads((fleet.state / "run/live.json").read_text())
    return view


def at_once(fleet: World) -> int:
    """Samples that go through a step at once, as the worker tells."""
    return int((live(fleet)["training"] or {}).get("micro_batch", 0))


def test_short_memory_makes_the_micro_batch_smaller_for_a_while_and_the_job_goes_on(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('name = "tight"\n[memory]\ncalm_s = 2.0\npressure_share = 1.0\n')  # the machine's own may be high
    with world(tmp_path, policy=str(policy)) as fleet:
        request = fleet.request("fine-tune", fleet.job(fleet.images(samples=300), epochs=1000, batch=BATCH))
        fleet.send_envelope("fine-tune", request.id, sign_command(request, fleet.console_key), until=("running",))
        fleet.wait(lambda: fleet.record(request.id).standing.state == "TRAINING")
        fleet.wait(lambda: at_once(fleet) == BATCH)
        board = fleet.state / "run/board"
        (board / "inject.json").write_text(json.dumps({"memory_mib": 40}))
        fleet.wait(lambda: at_once(fleet) == BATCH // 2)
        told = live(fleet)["board"]
        assert (told["batch_rule"], told["micro_batch_share"]) == ("memory.pressure", 0.5)
        assert told["memory_available_bytes"] == 40 << 20
        (board / "inject.json").unlink()
        fleet.wait(lambda: at_once(fleet) == BATCH)
        fleet.send("cancel", {"job": request.id})
        ended = fleet.ended(request.id)
    assert (ended.standing.state, ended.standing.attempt) == ("CANCELED", 1), "by the same worker, without a restart"
