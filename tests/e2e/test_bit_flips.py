"""A bit flips in the memory of a worker that trains, as its RAM would do it: seen, repaired, and the job ends well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.engine.ir import Graph, parse, serialize
from agent.finetune import identity_folder, open_store
from agent.keys import load_identity
from agent.promote import load_active
from agent.store import Store
from service.commands import Request, sign_command
from service.job import MAX_ATTEMPTS
from tests.simulators.fleet import World, world
from tests.simulators.memory_faults import find, flip, may_write
from tests.simulators.small_models import SIZE, mobile_block_net
from tests.simulators.wide_net import wide_net

pytestmark = pytest.mark.e2e
SAMPLES = 240
LONG = 1000  # epochs of the small net: some seconds
SHORT = 400  # of the wide one, the same
WIDE_SIZE = 48  # pixels
VERY_HOT = 92_000  # millidegrees; a board this hot is above 85 for longer than the governor's second
SECONDS_TO_COOL = 10.0
EXPONENT_BIT = 30
SOME_FLOATS = 8  # outputs of one input channel lie side by side in the runtime's order


@pytest.fixture
def watchful(tmp_path: Path) -> Iterator[World]:
    """A world that verifies memory every second."""
    policy = tmp_path / "policy.toml"
    policy.write_text('name = "watchful"\n[memory]\nverify_every_s = 1.0\n')
    with world(tmp_path, policy=str(policy), started=False) as made:
        yield made


def training(fleet: World, epochs: int, image_size: int, samples: int = SAMPLES) -> Request:
    """A job that trains, and has a checkpoint."""
    images = fleet.images(samples=samples)
    job = fleet.job(images, epochs=epochs, image_size=image_size, depth="75")
    request = fleet.request("fine-tune", job)
    fleet.send_envelope("fine-tune", request.id, sign_command(request, fleet.console_key), until=("running",))
    until_training(fleet, request, 1)
    fleet.send("pause", {"job": request.id})
    fleet.wait(lambda: fleet.record(request.id).standing.state == "PAUSED")
    fleet.send("resume", {"job": request.id})
    until_training(fleet, request, 1)
    return request


def until_training(fleet: World, request: Request, attempt: int) -> None:
    def reached() -> bool:
        standing = fleet.record(request.id).standing
        assert standing.state not in ("SUCCEEDED", "FAILED"), standing
        return standing.state == "TRAINING" and standing.attempt == attempt

    fleet.wait(reached)


def strike(fleet: World, pattern: bytes) -> None:
    """Flip the highest exponent bit of the first weight wherever the worker holds these weights."""
    worker = fleet.worker_pid()
    if not may_write(worker):
        pytest.skip("this system does not let one process write another's memory")
    struck = [flip(worker, place, pattern, EXPONENT_BIT) for place in find(worker, pattern)]
    assert any(struck)


def store_of(fleet: World) -> Store:
    return open_store(fleet.state, load_identity(identity_folder(fleet.state)))


def active_model(fleet: World) -> Graph:
    loaded = load_active(store_of(fleet), pytest.fail)
    assert loaded is not None
    return parse(loaded[0])


def assert_ended_well(fleet: World, request: Request, blamed: str, base: Graph, epochs: int) -> None:
    record = fleet.ended(request.id)
    assert (record.standing.state, record.standing.attempt) == ("SUCCEEDED", 2), record.standing
    result = record.result
    assert result["memory_faults"] == 1
    assert any(f"frozen weights changed in memory ({blamed})" in told for told in result["warnings"]), result
    assert result["samples"] == epochs * SAMPLES * 4 // 5, "every step that counts was made in sound memory, once"
    assert result["accuracy_after"] > 0.8
    tuned = active_model(fleet).initializers
    frozen = [name for name in base.initializers if name in tuned and not name.startswith("head")]
    same = [name for name in frozen if np.array_equal(tuned[name], base.initializers[name])]
    assert {"stem.w", "stem.b"} <= set(same)
    assert len(same) >= len(frozen) // 2
    assert not np.array_equal(tuned["head.w"], base.initializers.get("head.w"))


def test_a_bit_that_flips_in_a_frozen_weight_is_noticed_and_the_job_goes_on(watchful: World) -> None:
    watchful.start()
    base = mobile_block_net(classes=5)
    request = training(watchful, LONG, SIZE)
    strike(watchful, base.initializers["expand.w"].tobytes())
    assert_ended_well(watchful, request, "expand.w", base, LONG)
    assert b"frozen weights changed in memory (expand.w)" in watchful.log()


def test_a_bit_that_flips_in_a_copy_of_the_runtime_is_noticed_too(watchful: World) -> None:
    base = wide_net(size=WIDE_SIZE, classes=5)
    watchful.publish("2.0", serialize(base))
    watchful.start()
    request = training(watchful, SHORT, WIDE_SIZE)
    packed = np.ascontiguousarray(base.initializers["pw1.w"][:SOME_FLOATS, 0, 0, 0]).tobytes()
    if not find(watchful.worker_pid(), packed):
        pytest.skip("this runtime packs convolutions in another order")
    strike(watchful, packed)
    assert_ended_well(watchful, request, "copies packed by the runtime", base, SHORT)


def test_memory_that_stays_bad_ends_the_job_and_leaves_the_active_model(watchful: World) -> None:
    watchful.start()
    weights = mobile_block_net(classes=5).initializers["expand.w"].tobytes()
    request = training(watchful, LONG, SIZE)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        until_training(watchful, request, attempt)
        strike(watchful, weights)
    record = watchful.ended(request.id)
    assert (record.standing.state, record.standing.reason_code) == ("FAILED", "memory-corrupt")
    assert "test the board's memory" in record.standing.reason
    assert record.result["memory_faults"] == MAX_ATTEMPTS
    assert store_of(watchful).active() is None


def test_after_great_heat_memory_is_verified_before_training_goes_on(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'name = "oven"\n[memory]\nverify_every_s = 3600.0\n[thermal]\nabort_celsius = 125.0\n[thermal.slow]\n'
        "delta_kelvin = 60.0\n[thermal.hot]\ndelta_kelvin = 70.0\n[thermal.pause]\ndelta_kelvin = 80.0\n"
    )
    with world(tmp_path, policy=str(policy)) as fleet:
        request = training(fleet, LONG, SIZE, 4 * SAMPLES)  # heating and cooling take some ten seconds
        board = fleet.state / "run/board"
        zone = board / "sys/class/thermal/thermal_zone0/temp"
        (board / "inject.json").write_text('{"heat_watts": 45}')
        fleet.wait(lambda: int(zone.read_text() or 0) > VERY_HOT)
        (board / "inject.json").unlink()
        seen = fleet.seen(SECONDS_TO_COOL)
        told = [s.body["values"]["event"] for s in seen if s.kind == "metrics" and s.name == "training"]
        assert "verified" in told, told
        assert told.index("resumed") < told.index("verified")
        fleet.send("cancel", {"job": request.id})
        assert fleet.ended(request.id).standing.state == "CANCELED"
