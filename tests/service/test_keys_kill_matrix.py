"""A rotation killed, or refused by the disk, at every step it persists: keys and what they seal stay together."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import pytest

from agent.keys_consoles import create_console_key, distrust_console, load_trusted_consoles
from agent.keys_identity import create_identity, load_identity, rotated
from agent.keys_stored import find_identity, write_identity
from agent.store import Store
from service.cli import main
from tests.simulators.kill_matrix import fault_matrix, kill_matrix

pytestmark = pytest.mark.once

MODELS = (b"the model before", b"the model " * 2000)
CHECKPOINT = b"weights and moments"


def verb(state: Path, *words: str) -> None:
    """Run a verb below the copied folder, its public document included."""
    with contextlib.chdir(state):
        assert main(["keys", *words, "--state", str(state), "--json"]) == 0


def rotate(state: Path) -> None:
    verb(state, "rotate")


def retire(state: Path) -> None:
    verb(state, "retire", "--offline")


@pytest.fixture
def board(tmp_path: Path) -> Path:
    """A state with two good models and a checkpoint."""
    state = tmp_path / "board"
    store = Store(state / "store", *create_identity(state / "keys", "press-07").storage_keys)
    for model in MODELS:
        store.activate(store.stage(model, {}))
        store.mark_good()
    store.seal_checkpoint("job-1", CHECKPOINT)
    return state


@pytest.fixture
def in_rotation(board: Path) -> Path:
    """The same with two sets of keys; everything is sealed under the previous one."""
    write_identity(board / "keys", rotated(find_identity(board / "keys", {}).stored))
    return board


def everything_opens(state: Path) -> int:
    """Both models and the checkpoint open; the number of live sets of keys."""
    identity = load_identity(state / "keys", {})
    store = Store(state / "store", *identity.storage_keys)
    store.recover()
    assert store.load_active()[0] == MODELS[1]
    assert store.open_checkpoint("job-1") == CHECKPOINT
    status = [path.read_bytes() for path in sorted((state / "store" / "slots").glob("status*"))]
    store.roll_back("to look at the model before")
    assert store.load_active()[0] == MODELS[0]
    for path, before in zip(sorted((state / "store" / "slots").glob("status*")), status, strict=True):
        path.write_bytes(before)
    return len(identity.live)


def old_or_new(state: Path) -> None:
    assert everything_opens(state) in (1, 2)


def retired_in_the_end(state: Path) -> None:
    if everything_opens(state) == 2:
        retire(state)
    assert everything_opens(state) == 1
    assert sorted(path.name for path in (state / "keys").iterdir()) == ["identity.json"]


def test_a_killed_rotation(board: Path, tmp_path: Path) -> None:
    assert kill_matrix(board, tmp_path / "scratch", rotate, old_or_new) >= 5


def test_a_killed_retirement_is_finished_by_the_next(in_rotation: Path, tmp_path: Path) -> None:
    assert kill_matrix(in_rotation, tmp_path / "scratch", retire, retired_in_the_end) >= 30


@pytest.mark.parametrize("lasting", [True, False])
def test_a_retirement_on_a_full_disk(in_rotation: Path, tmp_path: Path, *, lasting: bool) -> None:
    fault_matrix(in_rotation, tmp_path / "scratch", retire_or_refuse, retired_in_the_end, errno.ENOSPC, lasting)


def retire_or_refuse(state: Path) -> None:
    with contextlib.chdir(state):
        assert main(["keys", "retire", "--offline", "--state", str(state), "--json"]) in (0, 1)


def test_a_killed_distrust_leaves_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "board" / "trusted"
    folder.mkdir(mode=0o755, parents=True)
    for name in ("alice", "bob"):
        public = create_console_key(tmp_path / "keys", name)
        (folder / public.name).write_bytes(public.read_bytes())
    alice, bob = load_trusted_consoles(folder)
    (folder / "alice-again.json").write_bytes((folder / "alice.pub.json").read_bytes())

    def distrust(copy: Path) -> None:
        distrust_console(copy / "trusted", alice)

    def check(copy: Path) -> None:
        if alice in load_trusted_consoles(copy / "trusted"):
            distrust(copy)
        assert set(load_trusted_consoles(copy / "trusted")) == {bob}

    assert kill_matrix(folder.parent, tmp_path / "scratch", distrust, check) == 4  # two files, each removed and synced
