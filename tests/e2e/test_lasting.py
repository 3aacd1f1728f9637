"""What outlives a stop, a crash or a broken file."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.slots import checkpoint_path
from agent.spec import parse_spec, spec_table
from service.commands import Request, sign_command
from service.console_link import Seen
from service.journal import Journal
from tests.simulators.fleet import ROOT, World, as_json

LONG = 1000  # epochs of the small net: some seconds, as many as a job may have
pytestmark = pytest.mark.e2e


def begun(fleet: World, epochs: int = LONG) -> Request:
    """A job that is training now."""
    request = fleet.request("fine-tune", fleet.job(fleet.images(samples=240), epochs=epochs))
    fleet.send_envelope("fine-tune", request.id, sign_command(request, fleet.console_key), until=("running",))
    fleet.wait(lambda: fleet.record(request.id).standing.state == "TRAINING")
    return request


def learning(seen: Seen) -> bool:
    """Whether a message tells of a step: a job in state TRAINING first scores the model it starts from."""
    values = seen.body.get("values")
    return seen.kind == "metrics" and seen.name == "training" and isinstance(values, dict) and values["samples"] > 0


def test_a_stop_in_mid_training_costs_neither_the_work_nor_an_attempt(fleet: World) -> None:
    request = begun(fleet)
    fleet.wait(lambda: any(learning(seen) for seen in fleet.seen(0.5)))
    worker = fleet.worker_pid()
    assert worker is not None
    assert fleet.stop() == 0
    assert not Path(f"/proc/{worker}").exists()
    stopped = fleet.record(request.id)
    assert (stopped.standing.state, stopped.standing.reason_code) == ("DEFERRED", "daemon-stopped")
    assert checkpoint_path(fleet.state / "store", request.id).exists()
    fleet.start()
    record = fleet.ended(request.id)
    assert (record.standing.state, record.standing.attempt) == ("SUCCEEDED", 1)
    assert record.result["samples"] == LONG * 24 * 8, "every step was done exactly once"


def test_a_pause_outlives_the_daemon(fleet: World) -> None:
    request = begun(fleet)
    fleet.send("pause", {"job": request.id})
    fleet.wait(lambda: fleet.record(request.id).standing.state == "PAUSED")
    fleet.kill()
    fleet.start()
    fleet.wait(lambda: (r := fleet.record(request.id)).standing.state == "PAUSED" and r.standing.attempt == 2)
    fleet.send("cancel", {"job": request.id})
    assert fleet.ended(request.id).standing.state == "CANCELED"
    fleet.wait(lambda: not list((fleet.state / "store" / "checkpoints").iterdir()))


def test_a_job_canceled_while_it_waits_never_runs(fleet: World) -> None:
    first, second = begun(fleet), fleet.request("fine-tune", fleet.job(fleet.images("others")))
    fleet.send_envelope("fine-tune", second.id, sign_command(second, fleet.console_key), until=("accepted",))
    fleet.send("cancel", {"job": second.id})
    assert fleet.record(second.id).standing.state == "CANCELED"
    fleet.send("cancel", {"job": first.id})
    assert fleet.ended(first.id).standing.state == "CANCELED"


def test_a_broken_checkpoint_costs_the_work_and_not_the_job(fleet: World) -> None:
    request = begun(fleet)
    fleet.send("pause", {"job": request.id})
    fleet.wait(lambda: fleet.record(request.id).standing.state == "PAUSED")
    fleet.kill()
    checkpoint = checkpoint_path(fleet.state / "store", request.id)
    data = bytearray(checkpoint.read_bytes())
    data[-5] ^= 1
    checkpoint.write_bytes(data)
    fleet.start()
    fleet.wait(lambda: fleet.record(request.id).standing.attempt == 2)
    fleet.send("resume", {"job": request.id})
    record = fleet.ended(request.id)
    assert record.standing.state == "SUCCEEDED"
    assert re.search("the training of job .* starts over", record.result["warnings"][0])


def test_a_job_begun_waits_for_its_repository(fleet: World) -> None:
    request = begun(fleet)
    fleet.web.shutdown()
    fleet.web.server_close()
    for base in (fleet.state / "repository" / "bases").glob("*.sealed"):
        base.unlink()  # with it the job would go on without the repository
    os.kill(fleet.worker_pid(), signal.SIGKILL)
    fleet.wait(lambda: fleet.record(request.id).standing.reason_code == "network")
    assert fleet.record(request.id).standing.state == "DEFERRED"
    fleet.send("cancel", {"job": request.id})
    assert fleet.record(request.id).standing.state == "CANCELED"
    fleet.wait(lambda: not list((fleet.state / "store" / "checkpoints").iterdir()))


def test_a_broken_key_file_stops_commands_and_nothing_else(fleet: World) -> None:
    broken = fleet.folder / "trusted" / "mallory.json"
    broken.write_text("{")
    request = fleet.request("fine-tune", fleet.job(fleet.images()))
    envelope = sign_command(request, fleet.console_key)
    with pytest.raises(TimeoutError):
        fleet.send_envelope("fine-tune", request.id, envelope, seconds=3)
    assert fleet.daemon.poll() is None
    assert b"trusted consoles cannot be read" in fleet.log()
    broken.unlink()
    fleet.broker.kill()
    fleet.broker.start()  # what was never acknowledged comes again with the next connection
    assert fleet.send_envelope("fine-tune", request.id, envelope)["status"] == "succeeded"


def test_a_broken_slot_status_is_rebuilt_by_the_next_job(fleet: World) -> None:
    images = fleet.images()
    assert fleet.send("fine-tune", fleet.job(images))["status"] == "succeeded"
    fleet.stop()
    (fleet.state / "store" / "slots" / "status.json").write_text("garbage")
    fleet.start()
    status = fleet.send("fine-tune", fleet.job(images, least_gain=-1.0))
    assert status["status"] == "succeeded", status
    assert any("status" in warning for warning in status["result"]["warnings"])


def test_fleet_send_speaks_json_and_nothing_else(fleet: World) -> None:
    job = fleet.folder / "job.toml"
    lines = [f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in fleet.job(fleet.images()).items()]
    job.write_text("\n".join(lines))
    where = ("--key", str(fleet.folder / "console" / "alice.key"), "--broker", f"127.0.0.1:{fleet.broker.port}")
    done = fleet.cli("fleet", "send", "board-1", "fine-tune", str(job), *where, "--json")
    assert done.returncode == 0, done.stderr
    job_id = as_json(done.stdout)["id"]
    assert fleet.ended(job_id).standing.state == "SUCCEEDED"
    wrong = fleet.cli("fleet", "send", "board-1", "cancel", job_id, "--key", where[1], "--broker", "bad host")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    followed = fleet.cli("fleet", "send", "board-1", "cancel", job_id, *where, "--watch")
    assert followed.returncode == 3
    assert "wrong-state" in followed.stdout


def test_an_orphaned_worker_does_not_stay(fleet: World) -> None:
    begun(fleet)
    worker = fleet.worker_pid()
    assert worker is not None
    fleet.kill()
    fleet.wait(lambda: not Path(f"/proc/{worker}").exists(), 10)


def test_the_daemon_idles_small(fleet: World) -> None:
    status = Path(f"/proc/{fleet.daemon.pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) <= 35 * 1024


def test_status_shows_a_running_daemon_and_only_that(fleet: World) -> None:
    fleet.wait(lambda: fleet.cli("status", "--json").returncode == 0, 10)
    view = as_json(fleet.cli("status", "--json").stdout)
    assert view["device"] == "board-1"
    assert view["board"]["power_is_modelled"] is True
    fleet.stop()
    done = fleet.cli("status")
    assert done.returncode == 1
    assert "does not run here" in done.stderr


@pytest.mark.parametrize("verb", ["run", "fine-tune", "status", "predict", "publish", "keys", "fleet", "bench", "demo"])
def test_every_verb_teaches_with_an_example(verb: str) -> None:
    command = [sys.executable, "-m", "service.cli", verb, "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert re.search(r"example", said.partition("options:")[0] if verb != "keys" else said)


def test_a_lost_emulated_board_is_started_again(fleet: World) -> None:
    def boards() -> set[int]:
        wanted = ["pgrep", "-f", f"agent.board.emulated.*--load-of {fleet.daemon.pid}"]
        return {int(pid) for pid in subprocess.run(wanted, capture_output=True, text=True, check=False).stdout.split()}

    (first,) = boards()
    os.kill(first, signal.SIGKILL)
    fleet.wait(lambda: boards() - {first}, 20)
    assert fleet.send("fine-tune", fleet.job(fleet.images()))["status"] == "succeeded"


def test_a_job_that_was_only_entered_when_the_power_went_runs_at_the_next_start(resting: World) -> None:
    request = resting.request("fine-tune", resting.job(resting.images()))
    journal = Journal.open(resting.state / "journal.sqlite", time.time()).journal
    journal.add_job(request.id, "digest", "fine-tune", spec_table(parse_spec(request.args)), time.time())
    journal.close()
    resting.start()
    assert resting.ended(request.id).standing.state == "SUCCEEDED"


@pytest.mark.parametrize("name", ["manifest.json", "model.sealed"])
def test_a_broken_active_model_is_told_left_and_replaced(fleet: World, name: str) -> None:
    images = fleet.images()
    slot = fleet.send("fine-tune", fleet.job(images))["result"]["slot"]
    fleet.stop()
    shutil.rmtree(fleet.state / "parity", ignore_errors=True)  # else it is mended
    path = fleet.state / "store" / "slots" / slot / name
    path.write_bytes(path.read_bytes()[:-20] + b"x" * 20)
    fleet.start()
    status = fleet.send("fine-tune", fleet.job(images))
    assert status["status"] == "succeeded", status
    assert any(f"{slot}/{name} was damaged: rolled-back" in warning for warning in status["result"]["warnings"])
    assert fleet.cli("predict", str(images / "red" / "000.png")).returncode == 0


def test_the_birth_names_the_board_and_the_model_that_runs(fleet: World) -> None:
    result = fleet.send("fine-tune", fleet.job(fleet.images()))["result"]

    def birth() -> dict:
        return next(seen.body for seen in fleet.seen(0.7) if seen.kind == "birth")

    fleet.wait(lambda: birth()["active_model"], 10)
    assert birth()["active_model"]["model_sha256"] == result["model_sha256"]
    assert birth()["board"]["model"].startswith("Emulated Raspberry Pi 4")


def test_data_that_changed_meanwhile_start_the_job_over(fleet: World) -> None:
    request = begun(fleet)
    fleet.stop()
    (fleet.folder / "images" / "red" / "000.png").unlink()
    fleet.start()
    record = fleet.ended(request.id)
    assert record.standing.state == "SUCCEEDED"
    assert any("data changed" in warning for warning in record.result["warnings"])


def test_ctrl_c_in_a_terminal_puts_a_local_job_aside(resting: World) -> None:
    job = resting.folder / "job.toml"
    args = resting.job(resting.images(samples=240), epochs=LONG)
    job.write_text("\n".join(f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v}" for k, v in args.items()))
    command = [sys.executable, "-m", "service.cli", "fine-tune", str(job), "--config", str(resting.config)]
    with (resting.folder / "daemon.log").open("wb") as log:
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    resting.wait(lambda: b"TRAINING" in resting.log())
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    assert child.wait(timeout=15) == 1
    assert b"Traceback" not in resting.log()
    resting.start()
    record = resting.wait(lambda: (j := Journal.peek(resting.state / "journal.sqlite").jobs(1)) and j[0])
    record = resting.ended(record.id)
    assert (record.standing.state, record.standing.attempt) == ("SUCCEEDED", 1)
