"""The publisher's side: keys and thresholds, rotation, and what a kill or a full disk leaves for the boards."""

from __future__ import annotations

import errno
import hashlib
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root

from agent.errors import BoardError, SpecError, TrustError
from agent.repository import Publisher
from agent.repository_check import check_repository
from agent.repository_keys import ONLINE, KeyRing
from agent.repository_release import LIVES, TIMESTAMP_LIFE
from agent.repository_root import RootState, refresh, rotate, sign
from agent.repository_source import FolderSource
from tests.simulators.kill_matrix import fault_matrix, kill_matrix
from tests.simulators.publication import MODEL, NAME, Publication, card, now

pytestmark = pytest.mark.once


def made(folder: Path, sticks: int = 0, threshold: int = 1) -> Publication:
    world = Publication(folder)
    publisher = world.create(sticks, threshold)
    publisher.publish(MODEL, card("1.0"))
    publisher.grant(world.identity.public, NAME, "1.0")
    return world


def findings(world: Publication) -> list[str]:
    report = check_repository(FolderSource(world.repository), world.pinned.read_bytes(), now())
    return [item.code for item in report.findings]


def root_version(world: Publication) -> int:
    return int(world.publisher().root_path.name.split(".")[0])


def without_grants_role(world: Publication) -> None:
    """As repositories were before grants had a role of their own."""
    signed = world.signed()
    assert signed.release.grants is not None
    signed.release.targets.signed.targets |= signed.release.grants.signed.targets
    signed.release.targets.signed.delegations = None
    signed.release.grants = None
    del signed.release.snapshot.signed.meta["grants.json"]
    signed.commit({"targets"})
    (world.keys / "grants.pem").unlink()


# --- keys and thresholds ----------------------------------------------------------------------------------------------


def test_root_keys_lie_apart_and_are_not_needed_to_publish(tmp_path: Path) -> None:
    world = made(tmp_path, sticks=3, threshold=2)
    assert sorted(path.name for path in world.keys.glob("*.pem")) == [
        "grants.pem", "snapshot.pem", "targets.pem", "timestamp.pem",
    ]  # fmt: skip
    for path in tmp_path.rglob("*.pem"):
        assert path.stat().st_mode & 0o077 == 0
    (tmp_path / "sticks").rename(tmp_path / "drawer")
    world.publisher().publish(MODEL, card("1.1"))
    world.publisher().grant(world.identity.public, NAME, "1.1")
    world.board_opens("fresh", "1.0", "1.1")
    assert all(state.problem == "" for state in refresh(world.signed(0)))


@pytest.mark.parametrize(("sticks", "threshold"), [((0, 1), 3), ((0,), 0), ((0, 0), 1), ((), 2)])
def test_a_threshold_that_cannot_be_met_makes_nothing(tmp_path: Path, sticks: tuple[int, ...], threshold: int) -> None:
    world = Publication(tmp_path)
    with pytest.raises(SpecError):
        Publisher.create(world.repository, world.keys, now, world.sticks(*sticks), threshold)
    assert list(tmp_path.rglob("*")) == []


def test_keys_are_neither_served_nor_overwritten(tmp_path: Path) -> None:
    world = Publication(tmp_path)
    with pytest.raises(SpecError, match="outside"):
        Publisher.create(world.repository, world.keys, now, [world.repository / "root"])
    world.create()
    before = {path: path.read_bytes() for path in world.keys.glob("*.pem")}
    with pytest.raises(SpecError, match="keys already"):
        Publisher.create(tmp_path / "another", world.keys, now)
    assert {path: path.read_bytes() for path in world.keys.glob("*.pem")} == before


def test_who_enrols_boards_needs_no_targets_key(tmp_path: Path) -> None:
    world = made(tmp_path)
    (world.keys / "targets.pem").rename(tmp_path / "elsewhere.pem")
    targets = (world.signed().release.targets.signed.version, world.signed().release.targets.signed.targets)
    (world.publisher()).grant(world.identity.public, NAME, "1.0")
    assert (world.signed().release.targets.signed.version, world.signed().release.targets.signed.targets) == targets
    world.board_opens("fresh", "1.0")
    with pytest.raises(BoardError, match="targets key is missing") as caught:
        world.publisher().publish(MODEL, card("1.1"))
    assert caught.value.code == "key-missing"
    assert [path.name for path in (world.keys / "data").iterdir()] == ["net-1.0.key"]


def test_two_publications_at_once(tmp_path: Path) -> None:
    keys = KeyRing(tmp_path)
    with keys.lock(), pytest.raises(BoardError) as caught, KeyRing(tmp_path).lock():
        pass
    assert caught.value.code == "busy"
    with keys.lock():
        pass


# --- rotation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["root", *ONLINE])
def test_a_half_signed_root_is_not_served_and_any_stick_completes_it(tmp_path: Path, role: str) -> None:
    world = made(tmp_path, sticks=3, threshold=2)
    state = rotate(world.signed(0), role)
    assert not state.in_force
    assert "1 of the root keys before" in state.missing[0]
    assert root_version(world) == 1
    world.publisher().renew()
    world.board_opens("board", "1.0")
    with pytest.raises(SpecError) as caught:
        rotate(world.signed(1), role)
    assert caught.value.code == "root-waits"
    assert sign(world.signed()) == RootState(1, in_force=False, missing=state.missing)
    assert sign(world.signed(2)).in_force
    assert root_version(world) == 2
    world.board_opens("board", "1.0")
    world.board_opens("fresh", "1.0")
    retired = [path for path in tmp_path.rglob("retired/*.pem") if path.name.startswith(role)]
    assert len(retired) == (role != "root")  # the old root key lies on a stick that is not plugged in
    world.publisher().renew()
    with pytest.raises(SpecError, match="no root document waits"):
        sign(world.signed(0))


def test_a_lost_root_key_is_replaced_by_the_others(tmp_path: Path) -> None:
    world = made(tmp_path, sticks=3, threshold=2)
    lost = KeyRing(world.sticks(1)[0]).paths("root")[0]
    (keyid,) = [k for k in world.signed(1).release.keyids("root") if world.signed(1).keys.folder_of(k) == lost.parent]
    lost.unlink()
    with pytest.raises(SpecError, match="not at hand"):
        rotate(world.signed(0, 2), "root", replace=keyid[:8])
    with pytest.raises(SpecError, match="is not the beginning"):
        rotate(world.signed(0, 2), "root", replace="zz")
    before = set(world.signed().release.keyids("root"))
    assert rotate(world.signed(0, 2), "root", replace=keyid[:8], into=tmp_path / "sticks" / "new").in_force
    assert before - set(world.signed().release.keyids("root")) == {keyid}
    assert (tmp_path / "sticks" / "new" / "root.pem").exists()
    world.board_opens("fresh", "1.0")


@pytest.mark.parametrize("role", [*ONLINE, "grants"])
def test_a_lost_online_key_is_replaced(tmp_path: Path, role: str) -> None:
    world = made(tmp_path)
    world.board_opens("board", "1.0")
    (world.keys / f"{role}.pem").unlink()
    rotate(world.signed(), role)
    world.board_opens("board", "1.0")
    world.board_opens("fresh", "1.0")
    world.publisher().publish(MODEL, card("1.1"))
    world.publisher().grant(world.identity.public, NAME, "1.1")
    world.board_opens("board", "1.1")


@pytest.mark.parametrize("role", [*ONLINE, "grants"])
def test_a_thief_of_the_old_key_signs_nothing_any_more(tmp_path: Path, role: str) -> None:
    world = made(tmp_path)
    thief = KeyRing(world.keys).find(role, world.signed().release.keyids(role))
    rotate(world.signed(), role)
    signed = world.signed()
    names = {"targets": {"targets"}, "grants": {"grants"}, "snapshot": {"targets"}, "timestamp": {"timestamp"}}
    signed.release.write(
        signed.metadata, names[role], lambda other: thief if other == role else signed.signers(other), now()
    )
    assert findings(world) == ["metadata-unsigned"]
    with pytest.raises(TrustError):
        world.board_opens("fresh", "1.0")
    with pytest.raises(TrustError, match="behind our back"):
        world.publisher()


def test_a_root_signed_by_new_keys_alone_is_refused(tmp_path: Path) -> None:
    world = made(tmp_path)
    stranger = Publication(tmp_path / "stranger")
    stranger.create()
    rotate(stranger.signed(), "root")
    (world.repository / "metadata" / "2.root.json").write_bytes(stranger.publisher().root_path.read_bytes())
    assert findings(world) == ["metadata-unsigned"]


def test_grants_of_an_older_repository_keep_working_and_move(tmp_path: Path) -> None:
    world = made(tmp_path)
    without_grants_role(world)
    assert findings(world) == []
    world.board_opens("board", "1.0")
    refresh(world.signed())
    assert "grants/press-07/net-1.0.json" not in world.signed().release.targets.signed.targets
    world.board_opens("board", "1.0")
    without_grants_role(world)
    world.publisher().grant(world.identity.public, NAME, "1.0")
    assert findings(world) == []
    world.board_opens("fresh", "1.0")


# --- dates ------------------------------------------------------------------------------------------------------------


def test_refresh_renews_what_is_in_the_second_half_of_its_life(tmp_path: Path) -> None:
    world = made(tmp_path)
    later = timedelta()
    world.clock = lambda: now() + later
    assert not any(state.renewed for state in refresh(world.signed()))
    later = TIMESTAMP_LIFE / 2 + timedelta(minutes=1)
    assert [state.role for state in refresh(world.signed()) if state.renewed] == ["timestamp"]
    later = LIVES["snapshot"] / 2 + timedelta(minutes=1)
    assert [state.role for state in refresh(world.signed()) if state.renewed] == ["timestamp", "snapshot"]
    later = LIVES["targets"] / 2 + timedelta(minutes=1)
    assert [s.role for s in refresh(world.signed()) if s.renewed] == ["timestamp", "snapshot", "targets", "grants"]
    later = LIVES["root"] / 2 + timedelta(minutes=1)
    assert next(s.role for s in refresh(world.signed()) if s.renewed) == "root"
    assert root_version(world) == 2
    world.board_opens("fresh", "1.0")


def test_refresh_says_what_it_has_no_key_for(tmp_path: Path) -> None:
    world = made(tmp_path, sticks=1)
    (world.keys / "targets.pem").unlink()
    world.clock = lambda: now() + LIVES["targets"] - timedelta(days=14)
    states = {state.role: state for state in refresh(world.signed())}
    assert [role for role, state in states.items() if state.urgent] == ["targets"]
    assert [role for role, state in states.items() if state.renewed] == ["timestamp", "snapshot", "grants"]
    world.clock = lambda: now() + LIVES["root"] - timedelta(days=30)
    assert {state.role for state in refresh(world.signed()) if state.urgent} == {"root", "targets"}
    assert refresh(world.signed(0))[0].renewed


# --- kills and full disks ---------------------------------------------------------------------------------------------

FLOWS: dict[str, tuple[Callable[[Publication], object], int]] = {
    "publish": (lambda world: world.publisher().publish(MODEL, card("1.1")), 0),
    "grant": (lambda world: world.publisher().grant(world.identity.public, NAME, "1.0"), 0),
    "renew": (lambda world: world.publisher().renew(), 0),
    **{
        f"rotate {role}": (lambda world, role=role: rotate(world.signed(), role), 0)
        for role in ("root", *ONLINE, "grants")
    },
    "sign": (lambda world: sign(world.signed(1)), 2),
}


def prepared(folder: Path, sticks: int) -> Publication:
    world = made(folder, sticks, max(1, sticks))
    world.board_opens("board", "1.0")
    if sticks:
        assert not rotate(world.signed(0), "timestamp").in_force
    return world


def comes_back(folder: Path) -> None:
    """Boards are served at once; the publisher repeats what was cut off and goes on."""
    world = Publication(folder)
    world.board_opens("board", "1.0")
    world.board_opens("early", "1.0")
    assert findings(world) == []
    sticks = (0, 1)
    if world.signed().waiting_path() is not None:
        assert sign(world.signed(*sticks)).in_force
    publisher = world.publisher()
    if not any(target.version == "1.1" for target in publisher.models()):
        publisher.publish(MODEL, card("1.1"))
    publisher.grant(world.identity.public, NAME, "1.1")
    assert rotate(world.signed(*sticks), "targets").in_force
    world.board_opens("board", "1.0", "1.1")
    world.board_opens("fresh", "1.0", "1.1")
    assert findings(world) == []
    assert list(world.repository.rglob("*.sealed.*.partial")) == []


@pytest.mark.parametrize("name", FLOWS)
def test_a_kill_at_any_step_leaves_boards_served_and_the_publisher_able_to_go_on(tmp_path: Path, name: str) -> None:
    flow, sticks = FLOWS[name]
    world = prepared(tmp_path / "prepared", sticks)
    (tmp_path / "copies").mkdir()
    steps = kill_matrix(world.folder, tmp_path / "copies", lambda folder: flow(Publication(folder)), comes_back)
    assert steps >= 10


@pytest.mark.parametrize("name", ["publish", "rotate targets"])
def test_a_full_disk_at_any_step(tmp_path: Path, name: str) -> None:
    flow, sticks = FLOWS[name]
    world = prepared(tmp_path / "prepared", sticks)
    (tmp_path / "copies").mkdir()
    fault_matrix(
        world.folder, tmp_path / "copies", lambda f: flow(Publication(f)), comes_back, errno.ENOSPC, lasting=False
    )


def test_init_killed_at_any_step_is_no_repository_or_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "copies").mkdir()

    def whole_or_none(folder: Path) -> None:
        world = Publication(folder)
        if not list(world.repository.glob("metadata/*.root.json")):
            with pytest.raises(SpecError, match="there is no repository"):
                world.publisher()
            return
        world.publisher()
        root = (world.repository / "metadata" / "1.root.json").read_bytes()
        assert check_repository(FolderSource(world.repository), root, now()).findings == []

    def create(folder: Path) -> None:
        world = Publication(folder)
        Publisher.create(world.repository, world.keys, now, world.sticks(0, 1, 2), 2)

    kill_matrix(tmp_path / "empty", tmp_path / "copies", create, whole_or_none)


def test_what_a_killed_release_left_cannot_be_mixed_into_the_next_one(tmp_path: Path) -> None:
    """Same version numbers, other content: signed by the same keys, and still not what the snapshot names."""
    world = made(tmp_path)
    stale = world.publisher()
    stale.publish(MODEL, card("1.1"))
    left = next(p for p in (world.repository / "metadata").glob("*.targets.json") if b"1.1.sealed" in p.read_bytes())
    targets = left.read_bytes()
    version = int(left.name.split(".")[0])
    signed = world.signed()
    signed.release.targets.signed.version = version - 1
    del signed.release.targets.signed.targets["models/net/1.1.sealed"]
    signed.commit({"targets"})
    assert left.read_bytes() != targets
    assert findings(world) == []
    left.write_bytes(targets)
    assert findings(world) == ["metadata-mixed"]
    with pytest.raises(TrustError):
        world.board_opens("fresh", "1.0")


def test_a_model_is_sealed_in_constant_memory(tmp_path: Path) -> None:
    world = made(tmp_path)
    size = 32 << 20
    path = tmp_path / "large"
    with path.open("wb") as stream:
        stream.truncate(size)
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(0)
        large = replace(card("2.0"), plaintext_sha256=digest, plaintext_length=size)
        tracemalloc.start()
        try:
            world.publisher().publish(stream, large)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 8 << 20
    assert findings(world) == []


def test_a_stream_that_is_not_the_cards_leaves_nothing(tmp_path: Path) -> None:
    world = made(tmp_path)
    before = {path for path in world.repository.rglob("*") if path.is_file()}
    wrong = card("1.1", MODEL + b"!")
    with pytest.raises(SpecError) as caught:
        world.publisher().publish(MODEL, wrong)
    assert caught.value.code == "card-mismatch"
    assert {path for path in world.repository.rglob("*") if path.is_file()} == before


def test_the_first_root_signs_itself_with_every_key(tmp_path: Path) -> None:
    world = made(tmp_path, sticks=3, threshold=2)
    root: Metadata[Root] = Metadata.from_bytes(world.pinned.read_bytes())
    assert len(root.signatures) == 3
    assert root.signed.roles["root"].threshold == 2


def test_all_online_keys_lost_are_replaced_from_the_timestamp_on(tmp_path: Path) -> None:
    world = made(tmp_path, sticks=2, threshold=2)
    world.board_opens("board", "1.0")
    for path in world.keys.glob("*.pem"):
        path.unlink()
    with pytest.raises(BoardError, match="key is missing"):
        rotate(world.signed(0, 1), "grants")
    for role in ("timestamp", "snapshot", "targets", "grants"):
        rotate(world.signed(0, 1), role)
    world.board_opens("board", "1.0")
    world.publisher().publish(MODEL, card("1.1"))
    assert findings(world) == []
