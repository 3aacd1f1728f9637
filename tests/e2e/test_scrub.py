"""Bits flip on the disk of a running board: seen, mended, told."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from service.commands import sign_command
from tests.simulators.fleet import World, as_json

pytestmark = pytest.mark.e2e


def parity_of(world: World, name: str) -> Path:
    return world.state / "parity" / f"{name}.parity"


BASE = "repository/bases/colours-1.0.sealed"
MODEL = "store/slots/a/model.sealed"


@pytest.fixture
def trained(fleet: World) -> World:
    """A board that has trained a model, and scrubbed after it."""
    assert fleet.send("fine-tune", fleet.job(fleet.images()))["status"] == "succeeded"
    fleet.wait(lambda: fleet.log().count(b"scrub ended") == 2)  # before the job, and after it
    assert parity_of(fleet, BASE).exists()
    assert parity_of(fleet, MODEL).exists()
    return fleet


def spoil(path: Path) -> bytes:
    """Flip a bit; the bytes before."""
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 0x40
    path.write_bytes(damaged)
    return whole


def store_metrics(world: World) -> dict[str, Any]:
    """The next `store` telemetry."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        for seen in world.seen(2.0):
            if (seen.kind, seen.name) == ("metrics", "store"):
                return seen.body["values"]
    raise AssertionError("no store telemetry")


def test_a_flipped_bit_is_mended_on_command(trained: World) -> None:
    files = [trained.state / name for name in (BASE, MODEL)]
    before = [spoil(path) for path in files]
    status = trained.send("scrub", {})
    assert status["status"] == "succeeded", status
    result = status["result"]
    assert (result["damaged"], result["repaired"], result["unrepairable"]) == (2, 2, 0)
    assert {(found["path"], found["action"]) for found in result["findings"]} == {
        (BASE, "repaired"),
        (MODEL, "repaired"),
    }
    assert [path.read_bytes() for path in files] == before
    assert b"stored file was damaged" in trained.log()
    assert trained.send("scrub", {})["result"]["damaged"] == 0


def test_a_lost_base_is_downloaded_and_a_lost_model_gives_way(trained: World) -> None:
    base, model = trained.state / BASE, trained.state / MODEL
    whole = base.read_bytes()
    base.write_bytes(bytes(len(whole)))
    model.write_bytes(bytes(model.stat().st_size))
    status = trained.send("scrub", {})
    assert (status["status"], status["reason_code"]) == ("failed", "damage-left")
    actions = {found["path"]: found["action"] for found in status["result"]["findings"]}
    assert actions == {BASE: "downloaded", MODEL: "rolled-back"}
    assert base.read_bytes() == whole
    births = [seen.body for seen in trained.seen(1.5) if seen.kind == "birth"]
    assert births[-1]["active_model"] is None
    assert trained.send("fine-tune", trained.job(trained.images("again")))["status"] == "succeeded"


def test_a_job_after_a_start_finds_its_files_mended(trained: World) -> None:
    assert trained.stop() == 0
    base = trained.state / BASE
    whole = spoil(base)
    inode = base.stat().st_ino
    trained.start()
    mark = len(trained.log())
    assert trained.send("fine-tune", trained.job(trained.images("more"), epochs=2))["result"] is not None
    log = trained.log()[mark:]
    assert log.index(b"stored file was damaged") < log.index(b"worker started")
    assert b"repaired" in log
    assert base.read_bytes() == whole
    assert base.stat().st_ino != inode, "a mended file takes the damaged one's place"


def test_a_scrub_waits_for_the_board_to_cool(fleet: World) -> None:
    def paused() -> bool:
        live = fleet.state / "run" / "live.json"  # written with the first reading, a moment after the daemon is ready
        return live.exists() and as_json(live.read_text())["board"]["action"] == "PAUSE"

    (fleet.state / "run" / "board" / "inject.json").write_text('{"heat_watts": 40, "seconds": 6}')
    fleet.wait(paused)
    request = fleet.request("scrub", {})
    envelope = sign_command(request, fleet.console_key)
    fleet.send_envelope("scrub", request.id, envelope, until=("accepted",))
    begun = fleet.log().count(b"scrub begins")
    assert paused(), "the board is still hot, else this proves nothing"
    assert begun == 0
    fleet.wait(lambda: b"scrub ended" in fleet.log())
    assert fleet.send_envelope("scrub", request.id, envelope)["status"] == "succeeded"


def test_the_same_command_twice_scrubs_once_and_an_argument_is_refused(fleet: World) -> None:
    request = fleet.request("scrub", {})
    envelope = sign_command(request, fleet.console_key)
    first = fleet.send_envelope("scrub", request.id, envelope)
    assert first["status"] == "succeeded"
    scrubs = fleet.log().count(b"scrub ended")
    assert fleet.send_envelope("scrub", request.id, envelope)["status"] == "succeeded"
    assert fleet.log().count(b"scrub ended") == scrubs
    refused = fleet.send("scrub", {"deep": True})
    assert (refused["status"], refused["reason_code"]) == ("rejected", "bad-arguments")


def test_a_scrub_that_a_power_cut_ended_is_done_at_the_next_start(resting: World) -> None:
    resting.start()
    request = resting.request("scrub", {})
    envelope = sign_command(request, resting.console_key)
    resting.send_envelope("scrub", request.id, envelope, until=("accepted", "running", "succeeded"))
    resting.kill()
    resting.start()
    assert resting.send_envelope("scrub", request.id, envelope)["status"] == "succeeded"


def test_the_verb_mends_and_its_exit_code_tells_what_is_left(trained: World) -> None:
    told = trained.cli("scrub")
    assert told.returncode == 1
    assert "another temperd uses this state folder" in told.stderr
    assert trained.stop() == 0
    base = trained.state / BASE
    whole = spoil(base)
    mended = trained.cli("scrub", "--json")
    assert mended.returncode == 0, mended.stderr
    assert as_json(mended.stdout)["repaired"] == 1
    assert base.read_bytes() == whole
    (trained.state / MODEL).write_bytes(b"lost")
    lost = trained.cli("scrub")
    assert lost.returncode == 1, lost.stderr
    assert "1 damaged: 0 repaired, 1 lost" in lost.stdout
    assert "rolled-back, " in lost.stdout
    clean = trained.cli("scrub")
    assert (clean.returncode, "all are whole" in clean.stdout) == (0, True)


def test_telemetry_tells_of_the_last_scrub_also_after_a_restart(fleet: World) -> None:
    fleet.send("scrub", {})
    assert fleet.stop() == 0
    fleet.start()
    fleet.broker.kill()
    fleet.broker.start()
    values = store_metrics(fleet)
    assert values["damaged"] == 0
    assert json.dumps(values["edac_corrected"]) == "null"
    assert set(values) >= {"files", "bytes", "repaired", "unrepairable", "memory_errors", "duration_s", "ts"}
