"""Models on a running board by an operator's word: scored, gone back to while a job trains, promoted."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from agent.slots import read_active
from service.commands import sign_command
from service.job import State
from tests.simulators.fleet import ENDED, World, as_json

pytestmark = pytest.mark.e2e


def active(world: World) -> str:
    view = read_active(world.state / "store")
    return view.plaintext_sha256 if view else ""


def tuned(world: World, data: Path, seed: int) -> dict[str, Any]:
    """The result of a job that succeeds."""
    status = world.send("fine-tune", world.job(data, epochs=12, seed=seed, least_gain=-1.0))
    assert status["status"] == "succeeded", status
    return status["result"]


def births(world: World) -> list[tuple[str, int]]:
    """Active model and state version of every birth that was heard."""
    told = [as_json(heard.payload) for heard in world.tap.heard if heard.topic.endswith("/birth")]
    return [((one["active_model"] or {}).get("model_sha256", ""), one["state_version"]) for one in told]


def begin(world: World, kind: str, args: dict[str, object], *until: str) -> str:
    """Send a command and wait for a status; its id."""
    request = world.request(kind, args)
    world.send_envelope(kind, request.id, sign_command(request, world.console_key), until=until)
    return request.id


def test_an_operator_scores_models_and_goes_back_while_a_job_trains(fleet: World) -> None:
    data = fleet.images()
    one, last = tuned(fleet, data, 0)["model_sha256"], tuned(fleet, data, 1)
    two = last["model_sha256"]
    assert active(fleet) == two

    for model, sha256, score in (("", two, last["accuracy_after"]), (one, one, last["accuracy_running"])):
        status = fleet.send("evaluate", {"data": str(data), "model": model, "seed": 1})
        assert status["status"] == "succeeded", status
        assert status["result"]["model"] == sha256
        assert status["result"]["samples"] == last["held_out"]
        assert status["result"]["score"] == pytest.approx(score, abs=1.5 / 12), "as its gate judged, but for a rounding"
    status = fleet.send("evaluate", {"data": str(data), "model": "base"})
    assert (status["status"], status["reason_code"]) == ("failed", "bad-spec")
    assert "names no classes" in status["reason"]

    job = begin(fleet, "fine-tune", fleet.job(data, epochs=1000, seed=2), "running")
    fleet.wait(lambda: fleet.record(job).standing.state is State.TRAINING)
    before = births(fleet)[-1]
    status = fleet.send("rollback", {})
    assert status["status"] == "succeeded", status
    assert status["result"] == {"from": two, "to": one, "slot": "a"}
    assert active(fleet) == one
    assert before[0] == two
    fleet.wait(lambda: births(fleet)[-1] == (one, before[1] + 1))
    fleet.wait(lambda: fleet.record(job).standing.state is State.TRAINING)
    assert fleet.record(job).standing.attempt == 1
    begin(fleet, "cancel", {"job": job}, "succeeded")
    assert fleet.ended(job).standing.state is State.CANCELED

    refused = fleet.send("rollback", {"to": one})
    assert (refused["status"], refused["reason_code"]) == ("rejected", "wrong-state")
    assert fleet.send("rollback", {"to": two})["status"] == "succeeded"
    assert active(fleet) == two

    beside = fleet.cli("rollback", "--json")
    assert beside.returncode == 1
    assert as_json(beside.stdout)["error"] == "board"
    fleet.stop()
    assert as_json(fleet.cli("rollback", "--json").stdout) == {"from": two, "to": one, "slot": "a"}
    assert fleet.cli("rollback", "--to", "base").returncode == 0
    assert active(fleet) == ""
    nothing = fleet.cli("rollback", "--json")
    assert (nothing.returncode, as_json(nothing.stdout)["error"]) == (3, "no-active-model")
    assert fleet.cli("rollback", "--to", "nonsense").returncode == 2
    assert fleet.cli("rollback", "--to", one).returncode == 0
    assert active(fleet) == one


def alarms(world: World) -> list[bytes]:
    """What was said of a model that cannot be used, after the clearing at the first start."""
    heard = [one.payload for one in world.tap.heard if one.topic.endswith("/a/model-unusable")]
    return heard[next((i for i, payload in enumerate(heard) if payload), len(heard)) :]


def told(world: World, command_id: str) -> str:
    """How a command ended."""

    def ended() -> str:
        topic = f"/{command_id}/sts"
        words = [as_json(heard.payload)["status"] for heard in world.tap.heard if heard.topic.endswith(topic)]
        return words[-1] if words and words[-1] in ENDED else ""

    return str(world.wait(ended))


def test_a_model_waits_for_a_word_and_the_change_outlives_kills(fleet: World) -> None:
    data = fleet.images()
    one = tuned(fleet, data, 0)["model_sha256"]
    job = begin(fleet, "fine-tune", fleet.job(data, epochs=12, seed=1, least_gain=-1.0, promote="ask"), "succeeded")
    result = fleet.record(job).result
    two = result["model_sha256"]
    assert result["staged"] is True
    assert active(fleet) == one
    assert fleet.send("promote", {"job": fleet.request("scrub", {}).id})["reason_code"] == "no-such-slot"

    promotion = begin(fleet, "promote", {"job": job}, "running")
    fleet.kill()
    assert active(fleet) in (one, two)
    fleet.start()
    assert told(fleet, promotion) == "succeeded"
    assert active(fleet) == two
    assert fleet.send("promote", {"job": job})["reason_code"] == "wrong-state"

    model = fleet.state / "store" / "slots" / "a" / "model.sealed"
    whole = model.read_bytes()
    model.write_bytes(bytes(len(whole)))
    status = fleet.send("rollback", {"to": one})
    assert (status["status"], status["reason_code"]) == ("failed", "sealed-header")
    assert active(fleet) == two
    alarm = fleet.wait(lambda: alarms(fleet))[-1]
    assert as_json(alarm)["evidence"] == {"code": "sealed-header", "model": one}
    model.write_bytes(whole)
    back = begin(fleet, "rollback", {}, "running")
    if pid := fleet.worker_pid():  # it may have come through
        os.kill(pid, signal.SIGKILL)
    assert told(fleet, back) == "succeeded"
    assert active(fleet) == one
    fleet.wait(lambda: alarms(fleet)[-1] == b"")
