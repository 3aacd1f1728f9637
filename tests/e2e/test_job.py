"""The main job as users meet it: real broker, web server, daemon and worker processes."""

from __future__ import annotations

import os
import signal

import pytest

from agent.energy import COUNTED
from service.commands import sign_command
from tests.simulators.fleet import ROOT, World, as_json, weights_on_disk
from tests.simulators.real_data import FLOWERS, MOBILENET

STAGES = (
    "PULLING",
    "VERIFYING",
    "UNSEALING",
    "PLANNING",
    "COMPILING",
    "TRAINING",
    "EVALUATING",
    "SEALING",
    "PROMOTING",
)
LONG = 1000  # epochs of the small net: some seconds, as many as a job may have
pytestmark = pytest.mark.e2e


def test_a_signed_command_becomes_a_better_model(fleet: World) -> None:
    images = fleet.images()
    status = fleet.send("fine-tune", fleet.job(images))
    result = status["result"]
    assert status["status"] == "succeeded", status
    assert result["accuracy_after"] > max(0.8, result["accuracy_before"])
    energy = result["energy"]
    assert energy["modelled"] is True
    assert energy["joules"] == pytest.approx(sum(energy["states"].get(n, {}).get("joules", 0) for n in COUNTED))
    assert energy["joules_per_sample"] == pytest.approx(energy["joules"] / result["samples"])
    assert sum(energy["sources"].values()) >= energy["joules"] > 0
    assert energy["measured_bytes_per_s"] == result["bandwidth"]["measured_bytes_per_s"] > 1e8
    assert result["engine"] == "graph"
    said = fleet.cli("predict", "--json", str(next((images / "green").iterdir())))
    assert as_json(said.stdout)["predictions"][0]["label"] == "green"
    assert as_json(said.stdout)["model_sha256"] == result["model_sha256"]
    assert fleet.record(status["id"]).standing.state == "SUCCEEDED"
    assert [p.name for p in weights_on_disk(fleet.folder)] == ["colours.onnx"], "only the publisher's own file is plain"


def test_a_job_whose_time_budget_needs_more_than_the_memory_gives_is_refused_before_training(fleet: World) -> None:
    status = fleet.send("fine-tune", fleet.job(fleet.images(), budget_ms=1e-6))
    told = status["result"]["bandwidth"]
    assert (status["status"], status["reason_code"]) == ("failed", "bandwidth")
    assert told["required_bytes_per_s"] == pytest.approx(told["model_bytes"] * 4 / 1e-9)
    assert told["required_bytes_per_s"] > told["measured_bytes_per_s"]
    assert f"{told['required_bytes_per_s'] / 1e9:.0f} GB/s" in status["reason"]
    assert "samples" not in status["result"], "nothing was trained"


def test_a_frozen_part_runs_once_an_image_and_leaves_nothing_on_disk(fleet: World) -> None:
    result = fleet.send("fine-tune", fleet.job(fleet.images(), depth="50"))["result"]
    cache, images = result["cache"], result["train_samples"] + result["held_out"]
    # Where the governor froze deeper for a while, that depth has its own entries.
    assert cache["misses"] in [images * depths for depths in range(1, result["depth_changes"] + 2)], cache
    assert cache["hits"] > cache["misses"]
    assert list((fleet.state / "features").iterdir()) == []


def test_a_frozen_part_runs_in_tiles_of_rows_where_that_is_asked_for(fleet: World) -> None:
    status = fleet.send("fine-tune", fleet.job(fleet.images(), depth="50", slices="on", image_size=128, epochs=4))
    slices = status["result"]["slices"]
    assert slices["used"] is True, slices
    assert slices["block_bytes"] < slices["whole_block_bytes"]
    assert status["result"]["accuracy_after"] is not None


def test_the_same_command_twice_runs_once(fleet: World) -> None:
    request = fleet.request("fine-tune", fleet.job(fleet.images()))
    envelope = sign_command(request, fleet.console_key)
    first = fleet.send_envelope("fine-tune", request.id, envelope)
    assert first["status"] == "succeeded"
    again = fleet.send_envelope("fine-tune", request.id, envelope)
    assert (again["version"], again["attempt"]) == (first["version"], first["attempt"])
    assert fleet.log().count(b"job accepted") == 1


def test_statuses_are_retained_and_telemetry_flows(fleet: World) -> None:
    fleet.send("fine-tune", fleet.job(fleet.images(), epochs=3))
    seen = fleet.seen(1.5)
    kinds = {(s.kind, s.name) for s in seen}
    assert {("conn", ""), ("birth", ""), ("status", "fine-tune"), ("capability", "fine-tune")} <= kinds
    birth = next(s.body for s in seen if s.kind == "birth")
    assert birth["board"]["profile"] == "raspberry-pi-4"


@pytest.mark.parametrize("stage", STAGES)
def test_a_daemon_killed_in_any_stage_goes_on_at_the_next_start(resting: World, stage: str) -> None:
    resting.start((str(ROOT / "tests/simulators/dying_daemon.py"), stage))
    request = resting.request("fine-tune", resting.job(resting.images(), epochs=20))
    resting.send_envelope("fine-tune", request.id, sign_command(request, resting.console_key), until=("running",))
    assert resting.daemon.wait(timeout=60) == -signal.SIGKILL
    assert resting.record(request.id).standing.state == stage
    resting.start()
    record = resting.ended(request.id)
    assert (record.standing.state, record.standing.attempt) == ("SUCCEEDED", 2), record.standing
    assert weights_on_disk(resting.state) == []


def test_a_daemon_that_dies_in_every_attempt_ends_the_job_with_a_reason(resting: World) -> None:
    request = resting.request("fine-tune", resting.job(resting.images(), epochs=20))
    for attempt in range(3):
        resting.start((str(ROOT / "tests/simulators/dying_daemon.py"), "COMPILING"))
        if attempt == 0:
            resting.send_envelope(
                "fine-tune", request.id, sign_command(request, resting.console_key), until=("running",)
            )
        assert resting.daemon.wait(timeout=60) == -signal.SIGKILL
    resting.start()
    record = resting.ended(request.id)
    assert (record.standing.state, record.standing.reason_code) == ("FAILED", "too-many-attempts")


def test_a_worker_killed_while_training_goes_on_from_its_checkpoint(fleet: World) -> None:
    """Pausing writes a checkpoint; the killed worker's successor obeys the pause too, and trains only what is left."""
    request = fleet.request("fine-tune", fleet.job(fleet.images(samples=240), epochs=LONG))
    envelope = sign_command(request, fleet.console_key)
    fleet.send_envelope("fine-tune", request.id, envelope, until=("running",))
    fleet.wait(lambda: fleet.record(request.id).plan)
    fleet.wait(lambda: fleet.record(request.id).standing.state == "TRAINING")
    fleet.send("pause", {"job": request.id})
    fleet.wait(lambda: fleet.record(request.id).standing.state == "PAUSED")
    os.kill(fleet.worker_pid(), signal.SIGKILL)
    fleet.wait(lambda: (r := fleet.record(request.id)).standing.attempt == 2 and r.standing.state == "PAUSED")
    fleet.send("resume", {"job": request.id})
    record = fleet.ended(request.id)
    assert (record.standing.state, record.standing.attempt) == ("SUCCEEDED", 2)
    assert record.result["samples"] == LONG * 24 * 8, "every step was done exactly once"
    assert record.result["micro_batch"] == 4, "a worker that the system kills may have been too large"
    assert any("memory ran out before: 4 samples at once now" in told for told in record.result["warnings"])
    assert not list((fleet.state / "store" / "checkpoints").iterdir()), "the checkpoint is gone with the job"


def test_a_worker_that_is_killed_smaller_too_ends_the_job_for_want_of_memory(fleet: World) -> None:
    request = fleet.request("fine-tune", fleet.job(fleet.images(samples=240), epochs=LONG))
    envelope = sign_command(request, fleet.console_key)
    fleet.send_envelope("fine-tune", request.id, envelope, until=("running",))
    for attempt in (1, 2):
        fleet.wait(
            lambda attempt=attempt: (
                (s := fleet.record(request.id).standing).state == "TRAINING" and s.attempt == attempt
            )
        )
        os.kill(fleet.worker_pid(), signal.SIGKILL)
    record = fleet.ended(request.id)
    assert (record.standing.state, record.standing.reason_code) == ("FAILED", "out-of-memory")
    assert "Lower batch" in record.standing.reason


def test_a_broker_that_dies_does_not_stop_the_job(fleet: World) -> None:
    request = fleet.request("fine-tune", fleet.job(fleet.images(samples=240), epochs=LONG))
    fleet.send_envelope("fine-tune", request.id, sign_command(request, fleet.console_key), until=("running",))
    fleet.broker.kill()
    assert fleet.ended(request.id).standing.state == "SUCCEEDED"
    fleet.broker.start()
    found = fleet.wait(lambda: [s for s in fleet.seen(1.0) if s.kind == "status" and s.command_id == request.id])
    assert found[-1].body["status"] == "succeeded", "published again from the journal"


def test_heat_deepens_freezing_and_lowers_the_clock(fleet: World) -> None:
    request = fleet.request("fine-tune", fleet.job(fleet.images(samples=300), epochs=1000))
    fleet.send_envelope("fine-tune", request.id, sign_command(request, fleet.console_key), until=("running",))
    fleet.wait(lambda: fleet.record(request.id).standing.state == "TRAINING")
    (fleet.state / "run/board/inject.json").write_text('{"heat_watts": 15, "seconds": 8}')
    seen = fleet.seen(8.0)
    boards = [s.body["values"] for s in seen if s.kind == "metrics" and s.name == "board"]
    training = [s.body["values"] for s in seen if s.kind == "metrics" and s.name == "training"]
    assert max(v["delta_t_celsius"] for v in boards) > 30
    assert min(v["frequency_cap_hz"] for v in boards) < 1_800_000_000
    assert max(v["depth_percent"] for v in training) >= 50
    assert {v["rule"] for v in boards} & {"thermal.delta-t-slow", "thermal.delta-t-hot", "thermal.rise-slow"}
    fleet.send("cancel", {"job": request.id})
    ended = fleet.ended(request.id)
    assert ended.standing.state == "CANCELED"
    governor = (ended.result or {})["governor"]
    assert governor["orders"] >= 2
    assert governor["obey_s_max"] is not None, "orders of the governor were obeyed while it trained"
    tree = fleet.state / "run/board/sys" / "devices/system/cpu/cpufreq/policy0"
    fleet.wait(lambda: (tree / "scaling_max_freq").read_text().strip() == "1800000", 10)


def test_pause_and_resume(fleet: World) -> None:
    request = fleet.request("fine-tune", fleet.job(fleet.images(samples=240), epochs=LONG))
    fleet.send_envelope("fine-tune", request.id, sign_command(request, fleet.console_key), until=("running",))
    fleet.wait(lambda: fleet.record(request.id).standing.state == "TRAINING")
    assert fleet.send("pause", {"job": request.id})["status"] == "succeeded"
    fleet.wait(lambda: fleet.record(request.id).standing.state == "PAUSED")
    assert fleet.record(request.id).standing.reason_code == "held"
    assert fleet.send("resume", {"job": request.id})["status"] == "succeeded"
    assert fleet.ended(request.id).standing.state == "SUCCEEDED"


def test_stop_in_the_heat_puts_limits_back_and_says_goodbye(fleet: World) -> None:
    request = fleet.request("fine-tune", fleet.job(fleet.images(samples=300), epochs=1000))
    fleet.send_envelope("fine-tune", request.id, sign_command(request, fleet.console_key), until=("running",))
    fleet.wait(lambda: fleet.record(request.id).standing.state == "TRAINING")
    tree = fleet.state / "run/board"
    limit = tree / "sys" / "devices/system/cpu/cpufreq/policy0" / "scaling_max_freq"
    (tree / "inject.json").write_text('{"heat_watts": 15, "seconds": 30}')
    fleet.wait(lambda: limit.read_text().strip() not in ("", "1800000"))  # empty: being written
    assert int(limit.read_text()) < 1_800_000
    assert fleet.stop() == 0
    assert int(limit.read_text()) == 1_800_000
    assert [s.body["online"] for s in fleet.seen(1.0) if s.kind == "conn"] == [False]


def test_one_job_without_a_broker(resting: World) -> None:
    resting.broker.stop()
    images = resting.images()
    job = resting.folder / "job.toml"
    lines = [f"{k} = {v!r}" if not isinstance(v, str) else f'{k} = "{v}"' for k, v in resting.job(images).items()]
    job.write_text("\n".join(lines))
    done = resting.cli("fine-tune", str(job), "--json")
    assert done.returncode == 0, done.stderr
    assert as_json(done.stdout)["status"] == "succeeded"


@pytest.mark.skipif(not (FLOWERS.exists() and MOBILENET.exists()), reason="needs TEMPERD_TEST_DATA")
def test_photographs_with_mobilenet(resting: World) -> None:
    where = ("--repo", "repository", "--keys", "publisher-keys", "--name", "mobilenetv2")
    made = resting.cli("publish", str(MOBILENET), *where, "--for", str(resting.device_document()))
    assert made.returncode == 0, made.stderr
    job = resting.folder / "job.toml"
    job.write_text(f'model = "mobilenetv2"\ndata = "{FLOWERS}"\ndepth = "75"\nepochs = 3\n')
    done = resting.cli("fine-tune", str(job), "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert as_json(done.stdout)["result"]["accuracy_after"] > 0.6
