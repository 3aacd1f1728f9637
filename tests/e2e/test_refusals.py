"""Bad input gets a clear answer, and nothing is lost: each case starts from a world that works."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from agent.engine.ir import Node, serialize
from agent.keys import create_console_key, create_identity, load_console_key
from service.commands import new_id, sign_command
from tests.simulators.fleet import World, one_pixel, world
from tests.simulators.small_models import mobile_block_net

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory):  # noqa: ANN201 - a fixture
    """One running world for cases that leave it as it was."""
    with world(tmp_path_factory.mktemp("fleet")) as made:
        made.images()
        yield made


def fails(fleet: World, args: dict, code: str, *words: str) -> dict:
    status = fleet.send("fine-tune", args)
    assert (status["status"], status["reason_code"]) == ("failed", code), status
    for word in words:
        assert word in status["reason"]
    return status


def refused(fleet: World, envelope: bytes, command_id: str, code: str, kind: str = "fine-tune") -> None:
    status = fleet.send_envelope(kind, command_id, envelope)
    assert (status["status"], status["reason_code"]) == ("rejected", code), status
    assert fleet.record(command_id) is None


# --- commands


def test_an_unsigned_command(shared: World) -> None:
    command_id = new_id(int(time.time() * 1000), lambda count: b"\x01" * count)
    envelope = b'{"payload":"e30=","payloadType":"application/vnd.temperd.command+json","signatures":[]}'
    refused(shared, envelope, command_id, "unsigned")


def test_a_command_of_a_stranger(shared: World, tmp_path: Path) -> None:
    create_console_key(tmp_path, "mallory")
    request = shared.request("fine-tune", shared.job(shared.folder / "images"))
    refused(shared, sign_command(request, load_console_key(tmp_path / "mallory.key")), request.id, "unknown-key")


def test_an_expired_command(shared: World) -> None:
    now = int(time.time())
    request = shared.request("fine-tune", shared.job("x"), issued_at=now - 100, not_after=now - 10)
    refused(shared, sign_command(request, shared.console_key), request.id, "expired")


def test_a_command_for_another_device(shared: World) -> None:
    request = shared.request("fine-tune", shared.job("x"), device="board-2")
    refused(shared, sign_command(request, shared.console_key), request.id, "other-device")


def test_a_wrong_argument_names_key_and_nearest_known_one(shared: World) -> None:
    request = shared.request("fine-tune", {**shared.job("x"), "epoch": 3})
    status = shared.send_envelope("fine-tune", request.id, sign_command(request, shared.console_key))
    assert status["reason_code"] == "bad-arguments"
    assert "epoch" in status["reason"]
    assert "epochs" in status["reason"]


def test_an_id_used_again_with_other_bytes(shared: World) -> None:
    first = shared.request("cancel", {"job": new_id(5, lambda count: b"\x02" * count)})
    answer = shared.send_envelope("cancel", first.id, sign_command(first, shared.console_key))
    assert answer["reason_code"] == "wrong-state"
    other = dataclasses.replace(first, args={"job": new_id(6, lambda count: b"\x02" * count)})
    envelope = sign_command(other, shared.console_key)
    before = shared.log().count(b"reason=replay")
    shared.send_envelope("cancel", first.id, envelope)  # the first command's status stays: a retained one is seen
    shared.wait(lambda: shared.log().count(b"reason=replay") > before)


# --- data


def test_no_such_folder(shared: World) -> None:
    fails(shared, shared.job("/no/such/folder"), "bad-data", "no such data", "/no/such/folder")


def test_a_folder_without_images(shared: World, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    fails(shared, shared.job(tmp_path), "bad-data", "no images in class folders")


def test_a_class_with_one_sample(shared: World, tmp_path: Path) -> None:
    for name, count in (("many", 6), ("single", 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            one_pixel(tmp_path / name / f"{i}.png", i * 30)
    fails(shared, shared.job(tmp_path), "bad-data", "'single'", "1 usable sample")


def test_one_unreadable_image_is_counted_named_and_skipped(shared: World) -> None:
    images = shared.images("spoilt")
    (images / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    result = shared.send("fine-tune", shared.job(images, least_gain=-1.0))["result"]
    assert result["skipped"] == 1
    assert "red/broken.png" in result["warnings"][0]


def test_labels_unknown_to_the_model(shared: World) -> None:
    args = shared.job(shared.folder / "images", head="keep")
    fails(shared, args, "bad-spec", "labels unknown to the model: blue, green, red")


def test_data_too_large_for_its_bound(shared: World) -> None:
    fails(shared, shared.job(shared.folder / "images", most_samples=10), "bad-data", "60 samples are more than")


# --- models and repository


def test_an_unknown_model_and_version(shared: World) -> None:
    fails(shared, {**shared.job(shared.folder / "images"), "model": "colour"}, "unknown-model", "colours")
    fails(shared, shared.job(shared.folder / "images", version="9.9"), "unknown-version", "1.0")


def test_an_operator_without_a_rule_is_named_with_its_node(fleet: World) -> None:
    net = mobile_block_net(classes=5)
    nodes = list(net.nodes)
    at = [node.name for node in nodes].index("project2")
    soft = Node("Softsign", nodes[at].inputs[:1], ("soft",), {}, "odd")
    nodes[at : at + 1] = [soft, dataclasses.replace(nodes[at], inputs=("soft", *nodes[at].inputs[1:]))]
    fleet.publish("2.0", serialize(dataclasses.replace(net, nodes=tuple(nodes))))
    fails(fleet, fleet.job(fleet.images()), "unsupported-model", "Softsign", "odd")
    deep = fleet.send("fine-tune", fleet.job(fleet.folder / "images", depth="head", epochs=200, learning_rate=0.1))
    assert deep["status"] == "succeeded", "frozen, the operator is no obstacle"


def test_a_flipped_bit_in_the_repository(fleet: World) -> None:
    (sealed,) = (fleet.folder / "repository" / "targets").rglob("*.sealed")
    data = bytearray(sealed.read_bytes())
    data[len(data) // 2] ^= 4
    sealed.write_bytes(data)
    status = fleet.send("fine-tune", fleet.job(fleet.images()))
    assert status["status"] == "failed"
    assert status["reason_code"] in ("target-hash", "repository-untrusted"), status


def test_a_truncated_file_in_the_repository(fleet: World) -> None:
    (sealed,) = (fleet.folder / "repository" / "targets").rglob("*.sealed")
    sealed.write_bytes(sealed.read_bytes()[:-100])
    status = fleet.send("fine-tune", fleet.job(fleet.images()))
    assert status["status"] == "failed"
    assert status["reason_code"] in ("target-hash", "repository-untrusted", "network"), status


def test_a_flipped_bit_on_the_board_is_pulled_again(fleet: World) -> None:
    images = fleet.images()
    assert fleet.send("fine-tune", fleet.job(images))["status"] == "succeeded"
    (base,) = (fleet.state / "repository" / "bases").glob("*.sealed")
    good = base.read_bytes()
    base.write_bytes(good[:500] + bytes([good[500] ^ 1]) + good[501:])
    assert fleet.send("fine-tune", fleet.job(images, least_gain=-1.0))["status"] == "succeeded"
    assert base.read_bytes() == good


def test_a_model_granted_to_somebody_else_only(fleet: World, tmp_path: Path) -> None:
    fleet.publish("3.0", serialize(mobile_block_net(seed=9, classes=5)), grant=False)
    fails(fleet, fleet.job(fleet.images(), version="3.0"), "grant-missing", "board-1")
    stranger = create_identity(tmp_path / "keys", "board-9")
    from agent.repository import Publisher, utc_now  # noqa: PLC0415 - this case only

    publisher = Publisher.open(fleet.folder / "repository", fleet.folder / "publisher-keys", utc_now)
    publisher.grant(stranger.public, "colours", "3.0")
    grants = fleet.folder / "repository" / "targets" / "grants"
    assert list(grants.rglob("*board-9*")) or list((grants / "board-9").iterdir())
    fails(fleet, fleet.job(fleet.folder / "images", version="3.0"), "grant-missing")


def test_the_repository_is_gone(fleet: World) -> None:
    fleet.web.shutdown()
    fleet.web.server_close()
    fails(fleet, fleet.job(fleet.images()), "network")


def test_a_model_that_is_not_better_enough_is_not_promoted(fleet: World) -> None:
    images = fleet.images()
    good = fleet.send("fine-tune", fleet.job(images))["result"]
    fails(fleet, fleet.job(images, least_gain=0.5), "gate-running", "the running model has", "least_gain is 0.5")
    said = fleet.cli("predict", "--json", str(images / "red" / "000.png"))
    assert good["model_sha256"] in said.stdout, "the better one still runs"


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """On a small file system of its own, filled while the job is paused: the daemon stays, the job ends after all."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        with world(place) as fleet:
            args = fleet.job(fleet.images(samples=240), epochs=1000)
            request = fleet.request("fine-tune", args)
            envelope = sign_command(request, fleet.console_key)
            fleet.send_envelope("fine-tune", request.id, envelope, until=("running",))
            fleet.wait(lambda: fleet.record(request.id).standing.state == "TRAINING")
            fleet.send("pause", {"job": request.id})
            fleet.wait(lambda: fleet.record(request.id).standing.state == "PAUSED")
            ballast = place / "ballast"
            with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
                while stream.write(b"\0" * 4096):
                    pass
            os.kill(fleet.worker_pid(), signal.SIGKILL)  # its end must be journaled, and cannot be
            fleet.wait(lambda: b"the journal cannot be written" in fleet.log())
            assert fleet.daemon.poll() is None
            ballast.unlink()
            fleet.wait(lambda: fleet.record(request.id).standing.attempt == 2)
            fleet.send("resume", {"job": request.id})
            assert fleet.ended(request.id).standing.state == "SUCCEEDED"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


# --- starting


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (("keepalive_s", "keep_alive"), ("keep_alive", "did you mean 'keepalive_s'")),
        (("threads = 1", 'threads = "two"'), ("worker.threads", "must be a whole number")),
        (("port = ", "port = 99999 #"), ("mqtt.port", "99999")),
        (('emulated = "raspberry-pi-4"', 'emulated = "raspberry-pi-9"'), ("raspberry-pi-9",)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_wrong_configuration_says_which_key(resting: World, edit: tuple[str, str], words: tuple[str, ...]) -> None:
    resting.config.write_text(resting.config.read_text().replace(*edit))
    done = resting.cli("run")
    assert done.returncode == 78
    for word in words:
        assert word in done.stderr


def test_a_wrong_policy_says_which_key(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[thermal.slow]\ndelta_kelvin = "warm"\n')
    with world(tmp_path, started=False, policy=str(policy)) as made:
        done = made.cli("run")
        assert done.returncode == 78
        assert "thermal.slow.delta_kelvin" in done.stderr
        assert "must be a number, not a text" in done.stderr


def test_a_board_without_identity_says_how_to_make_one(resting: World) -> None:
    (resting.state / "keys").rename(resting.folder / "elsewhere")
    done = resting.cli("run")
    assert done.returncode == 78
    assert "temperd keys init" in done.stderr


def test_a_second_daemon_on_the_same_state_is_refused(shared: World) -> None:
    done = shared.cli("run")
    assert done.returncode == 1
    assert "another temperd uses this state folder" in done.stderr


def test_no_broker_is_no_reason_not_to_start(resting: World) -> None:
    resting.broker.kill()
    resting.start()
    assert b" ready " in resting.log()
    assert resting.stop() == 0
