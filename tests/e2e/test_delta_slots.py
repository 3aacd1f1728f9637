"""A policy that keeps deltas: trained, used, trained again, and mended when a bit flips in what is shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.delta import LEAST_FROZEN_BYTES
from agent.engine.ir import parse, serialize
from agent.finetune import identity_folder, open_store
from agent.keys import load_identity
from agent.slots import read_manifest
from tests.simulators.fleet import World, as_json, world
from tests.simulators.wide_net import wide_net

WIDE_SIZE = 48  # pixels
pytestmark = pytest.mark.e2e


@pytest.fixture
def sparing(tmp_path: Path) -> Iterator[World]:
    """A world that keeps deltas."""
    policy = tmp_path / "policy.toml"
    policy.write_text('name = "sparing"\n[store]\nform = "delta"\n')
    with world(tmp_path, policy=str(policy)) as made:
        yield made


def frozen_file(world: World) -> Path:
    (found,) = (world.state / "store" / "frozen").iterdir()
    return found


def predicted(world: World, images: Path) -> str:
    said = world.cli("predict", "--json", str(next((images / "green").iterdir())))
    return str(as_json(said.stdout)["predictions"][0]["label"])


def test_two_jobs_share_what_they_froze(sparing: World) -> None:
    sparing.publish("2.0", serialize(wide_net(size=WIDE_SIZE, classes=5)))
    images = sparing.images()
    for slot in ("a", "b"):
        status = sparing.send("fine-tune", sparing.job(images, depth="75", image_size=WIDE_SIZE, least_gain=-1.0))
        assert status["status"] == "succeeded", (status["reason_code"], status["result"])
        assert status["result"]["slot"] == slot
        assert predicted(sparing, images) == "green"
    store = open_store(sparing.state, load_identity(identity_folder(sparing.state)))
    now = parse(store.load_active()[0]).initializers
    store.roll_back("asked")
    before = parse(store.load_active()[0]).initializers
    alike = {name for name, value in now.items() if value.tobytes() == before[name].tobytes()}
    shared = sum(now[name].nbytes for name in alike if now[name].nbytes >= LEAST_FROZEN_BYTES)
    core = read_manifest(sparing.state / "store", "a").core
    assert core.frozen
    assert core.frozen.length == shared, "all that two trainings left alike, and nothing else"
    assert shared > 0

    sparing.wait((sparing.state / "parity" / "store" / "frozen").exists)
    path = frozen_file(sparing)
    whole = path.read_bytes()
    path.write_bytes(whole[:-50] + bytes([whole[-50] ^ 1]) + whole[-49:])
    result = sparing.send("scrub", {})["result"]
    assert (result["damaged"], result["repaired"]) == (1, 1)
    assert path.read_bytes() == whole
    assert predicted(sparing, images) == "green"
