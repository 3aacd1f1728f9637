"""Keys that change while a board works, and keys in the hands of a thief."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from agent.engine.ir import serialize
from agent.errors import BoardError, GrantError, SealedFileError, TrustError
from agent.keys_grants import open_grant
from agent.keys_identity import DeviceIdentity, create_identity, load_identity
from agent.repository import Publisher, utc_now
from agent.sealed import Binding, unseal
from agent.store import Store
from agent.trust import ModelRepository
from service.commands import sign_command
from tests.simulators.fleet import DEVICE, World, weights_on_disk
from tests.simulators.small_models import mobile_block_net

pytestmark = pytest.mark.e2e


def refusal(fleet: World, *verb: str) -> str:
    """The code with which a verb fails."""
    done = fleet.cli(*verb, "--json")
    assert done.returncode != 0
    return str(json.loads(done.stdout)["error"])


def does(fleet: World, *verb: str) -> None:
    done = fleet.cli(*verb)
    assert done.returncode == 0, done.stderr


def succeeds(fleet: World, job: dict[str, object]) -> None:
    status = fleet.send("fine-tune", job)
    assert status["status"] == "succeeded", (status["reason_code"], status["reason"])


def test_a_rotation_between_jobs_loses_neither_grants_nor_models(fleet: World) -> None:
    job = fleet.job(fleet.images())
    image = str(next((fleet.folder / "images" / "red").iterdir()))
    succeeds(fleet, job)
    does(fleet, "keys", "rotate")  # the daemon runs on: a worker reads the keys when it starts
    does(fleet, "predict", image)
    succeeds(fleet, job)  # its grant is for the previous keys
    assert refusal(fleet, "keys", "retire") == "board", "the daemon is running"
    assert fleet.stop() == 0
    assert refusal(fleet, "keys", "retire") == "previous-key-needed"
    assert len(load_identity(fleet.state / "keys", {}).live) == 2
    document = f"{DEVICE}.device.json"  # `rotate` wrote it
    does(
        fleet, "repo", "grant", "colours", "1.0", "--for", document, "--repo", "repository", "--keys", "publisher-keys"
    )
    does(fleet, "keys", "retire")
    assert len(load_identity(fleet.state / "keys", {}).live) == 1
    does(fleet, "predict", image)
    fleet.start()
    succeeds(fleet, job)


def repository(fleet: World, folder: Path, url: str = "") -> ModelRepository:
    """The board's repository, asked from somewhere else."""
    return ModelRepository(
        url or f"http://127.0.0.1:{fleet.web.server_port}", fleet.folder / "root.json", folder / "repository"
    )


def opened(fleet: World, card: Path, identity: DeviceIdentity) -> list[str]:
    """What the keys open of a copied state folder; the repository is public and helps."""
    found = []
    store = Store(card / "store", *identity.storage_keys)
    checkpoints = [path.stem for path in (card / "store" / "checkpoints").glob("*.sealed")]
    assert checkpoints, "a job was stopped in mid-training"
    source = repository(fleet, card)
    target = source.find("colours", "1.0")
    sealed = source.fetch(target)

    def base() -> None:
        key = source.grant(identity, target)
        with sealed.open("rb") as stream:
            binding = Binding(target.name, target.version, target.card.plaintext_sha256)
            assert unseal(stream, key, binding, target.card.plaintext_length) == serialize(mobile_block_net(classes=5))

    for name, attempt in (
        ("tuned model", store.load_active),
        ("checkpoint", lambda: store.open_checkpoint(checkpoints[0])),
        ("base model", base),
    ):
        try:
            attempt()
        except (SealedFileError, GrantError):
            continue
        found += [name]
    return found


@pytest.fixture
def stolen(fleet: World, tmp_path: Path) -> Path:
    """A copy of the state folder of a board that has a tuned model and a job in training."""
    images = fleet.images(samples=240)
    assert fleet.send("fine-tune", fleet.job(images, epochs=2))["status"] == "succeeded"
    request = fleet.request("fine-tune", fleet.job(images, epochs=1000))
    fleet.send_envelope("fine-tune", request.id, sign_command(request, fleet.console_key), until=("running",))
    fleet.wait(lambda: fleet.record(request.id).standing.state == "TRAINING")
    fleet.send("pause", {"job": request.id})
    fleet.wait(lambda: fleet.record(request.id).standing.state == "PAUSED")
    fleet.kill()
    return Path(shutil.copytree(fleet.state, tmp_path / "card"))


def test_a_thief_with_the_whole_card_opens_this_board_s_models_and_no_more(fleet: World, stolen: Path) -> None:
    identity = load_identity(stolen / "keys", {})
    assert opened(fleet, stolen, identity) == ["tuned model", "checkpoint", "base model"]

    # He commands nobody: the board's own key is no console's.
    fleet.start()
    request = fleet.request("fine-tune", fleet.job("x"))
    forged = sign_command(request, identity.live[0].ed25519)
    status = fleet.send_envelope("fine-tune", request.id, forged)
    assert (status["status"], status["reason_code"]) == ("rejected", "unknown-key")

    # He publishes nothing: a repository with keys of his own is not the pinned one.
    Publisher.create(fleet.folder / "repository" / "own", stolen / "own-keys", utc_now)
    with pytest.raises(TrustError):
        repository(fleet, stolen, f"http://127.0.0.1:{fleet.web.server_port}/own").refresh()

    # He opens no grant of another board, whatever he calls himself.
    other = create_identity(fleet.folder / "other" / "keys", "board-2")
    own, fleet.identity = fleet.identity, other
    fleet.publish()
    grant = next(iter(sorted((fleet.folder / "repository" / "targets").rglob("*board-2*/**/*.json")))).read_bytes()
    target = repository(fleet, stolen).find("colours", "1.0")
    assert open_grant(other, grant, target.sealed_sha256)
    for name in ("board-2", DEVICE):
        thief = DeviceIdentity(name, identity.live)
        with pytest.raises(GrantError):
            open_grant(thief, grant.replace(b"board-2", name.encode()), target.sealed_sha256)

    # The next version is granted to everybody but him.
    fleet.identity = other
    fleet.publish("1.1")
    source = repository(fleet, stolen)
    with pytest.raises(GrantError) as caught:
        source.grant(identity, source.find("colours"))
    assert caught.value.code == "grant-missing"
    assert source.grant(identity, source.find("colours", "1.0")), "what was granted once stays granted"
    assert own.public.device == DEVICE


def test_a_thief_opens_nothing_when_the_identity_was_a_credential(fleet: World, stolen: Path) -> None:
    tuned = Store(stolen / "store", fleet.identity.storage_key).load_active()[0]
    shutil.rmtree(stolen / "keys")
    with pytest.raises(BoardError) as caught:
        load_identity(stolen / "keys", {})
    assert caught.value.code == "key-missing"
    guess = create_identity(stolen / "keys", DEVICE)
    assert opened(fleet, stolen, guess) == []
    assert weights_on_disk(stolen) == []
    pieces = [tuned[i : i + 64] for i in range(0, len(tuned) - 64, 4096)]
    assert [p for p in stolen.rglob("*") if p.is_file() and any(piece in p.read_bytes() for piece in pieces)] == []
