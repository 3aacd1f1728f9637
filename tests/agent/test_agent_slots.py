from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agent.agent_slots import (
    MAX_STANDING_BYTES,
    KeptStanding,
    agent_folder,
    fill_slot,
    parse_release,
    read_standing,
    site_of,
    stage_folder,
    verify_slot,
    write_standing,
)
from agent.errors import ArtifactError, BoardError
from policies.trial import staged
from policies.trial_standing import Standing, Trial
from tests.simulators.installed import list_files
from tests.simulators.kill_matrix import kill_matrix


def stage(state: Path, version: str = "2.0") -> str:
    """A release of two files below `stage`; its digest."""
    site = stage_folder(state) / "site" / "service"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text(f"VERSION = {version!r}\n")
    (site / "data.bin").write_bytes(b"\0" * 100_000)
    return list_files(stage_folder(state), version)


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Path, str]:
    digest = stage(tmp_path)
    fill_slot(tmp_path, "a", digest)
    return tmp_path, digest


def test_a_filled_slot_verifies_and_holds_byte_code_of_its_sources(filled: tuple[Path, str]) -> None:
    state, digest = filled
    assert verify_slot(state, "a", digest).version == "2.0"
    assert [path.suffix for path in site_of(state, "a").rglob("__pycache__/*")] == [".pyc"]
    assert not stage_folder(state).exists()


@pytest.mark.parametrize("what", ["flipped", "cut", "longer", "gone", "more", "link", "folder-link", "list", "code"])
def test_a_slot_with_anything_else_in_it_is_damaged(filled: tuple[Path, str], what: str) -> None:
    state, digest = filled
    site = site_of(state, "a") / "service"
    data, whole = site / "data.bin", (site / "data.bin").read_bytes()
    match what:
        case "flipped":
            data.write_bytes(whole[:-1] + b"\1")
        case "cut":
            data.write_bytes(whole[:-1])
        case "longer":
            data.write_bytes(whole + b"\0")
        case "gone":
            data.unlink()
        case "more":
            (site / "sitecustomize.py").write_text("")
        case "link":
            data.rename(state / "elsewhere")
            data.symlink_to(state / "elsewhere")
        case "folder-link":
            (site / "more").symlink_to(state)
        case "list":
            (state / "agent" / "a" / "release.json").write_text("{}")
        case "code":
            next(site.rglob("*.pyc")).write_bytes(b"\0" * 20)
    with pytest.raises(ArtifactError) as damaged:
        verify_slot(state, "a", digest)
    assert damaged.value.code == "slot-damaged"


def test_an_empty_slot_or_another_release_is_damaged(filled: tuple[Path, str]) -> None:
    state, digest = filled
    for slot, wanted in (("b", digest), ("a", "0" * 64)):
        with pytest.raises(ArtifactError) as damaged:
            verify_slot(state, slot, wanted)
        assert damaged.value.code == "slot-damaged"


@pytest.mark.parametrize("left", ["link", "dangling", "file"])
def test_whatever_a_release_left_in_a_slots_place_makes_room_and_what_a_link_led_to_stays(
    tmp_path: Path, left: str
) -> None:
    digest = stage(tmp_path)
    other = tmp_path / "other"
    if left == "link":
        other.mkdir()
        (other / "kept").touch()
    if left == "file":
        (tmp_path / "agent" / "a").touch()
    else:
        (tmp_path / "agent" / "a").symlink_to(other)
    fill_slot(tmp_path, "a", digest)
    assert verify_slot(tmp_path, "a", digest).version == "2.0"
    assert left != "link" or (other / "kept").exists()


def test_a_stage_that_is_not_what_was_signed_leaves_the_slot_as_it_was(filled: tuple[Path, str]) -> None:
    state, digest = filled
    other = stage(state, "3.0")
    (stage_folder(state) / "site" / "service" / "data.bin").write_bytes(b"half")
    with pytest.raises(ArtifactError):
        fill_slot(state, "a", other)
    assert verify_slot(state, "a", digest).version == "2.0"


def test_no_kill_leaves_a_slot_that_verifies_and_is_neither_the_old_nor_the_new(tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    old = stage(prepared)
    fill_slot(prepared, "a", old)
    new = stage(prepared, "3.0")

    def whole(state: Path) -> None:
        versions = []
        for digest in (old, new):
            try:
                versions.append(verify_slot(state, "a", digest).version)
            except ArtifactError:
                continue
        assert len(versions) <= 1
        if stage_folder(state).exists():
            return  # it can be filled once more, or staged anew
        assert versions == ["3.0"]

    cells = kill_matrix(prepared, tmp_path, lambda state: fill_slot(state, "a", new), whole)
    sys.stdout.write(f"filling a slot: {cells} cells\n")


# --- the standing ----------------------------------------------------------------------------------------------------


def test_a_standing_comes_back_and_is_read_again_only_where_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, reads = KeptStanding(tmp_path), []
    monkeypatch.setattr("agent.agent_slots.read_standing", lambda state: reads.append(0) or read_standing(state))
    assert kept.read() == read_standing(tmp_path)[0] == Standing()
    standing = staged(Standing(), Trial("a", "2.0", "d"))
    write_standing(tmp_path, standing)
    assert read_standing(tmp_path) == (standing, "")
    assert kept.read() == kept.read() == standing
    write_standing(tmp_path, replace(standing, fell=True))
    assert kept.read().fell
    assert len(reads) == 2
    (agent_folder(tmp_path) / "standing.json").unlink()
    assert kept.read() == Standing()


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"active": "b"}', b"\xff", b" " * (MAX_STANDING_BYTES + 1)])
def test_a_broken_standing_is_that_of_a_board_that_was_never_updated_and_is_said(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "standing.json").write_bytes(data)
    standing, complaint = read_standing(tmp_path)
    assert standing == Standing()
    assert complaint


def test_a_standing_that_cannot_be_written_stays(tmp_path: Path) -> None:
    (tmp_path / "agent").write_text("in the way")
    with pytest.raises(BoardError):
        write_standing(tmp_path, Standing())


# --- release.json ----------------------------------------------------------------------------------------------------

LIST = {"kind": "agent", "version": "2.0", "arch": "any", "python": "3.11", "unpacked_length": 1}
FILE = {"length": 1, "sha256": "0" * 64}


def test_a_list_of_a_later_release_is_read_by_an_earlier_launcher() -> None:
    table = {**LIST, "files": {"site/x.py": {**FILE, "mood": 1}}, "mood": 2}
    assert parse_release(json.dumps(table).encode()).version == "2.0"


@pytest.mark.parametrize(
    "files",
    [None, [], {"x.py": FILE}, {"site/x": {}}, {"site/x": {**FILE, "length": -1}}, {"site/x": {**FILE, "sha256": 4}}],
)
def test_a_list_that_cannot_be_one_is_refused(files: object) -> None:
    with pytest.raises(ArtifactError) as broken:
        parse_release(json.dumps({**LIST, "files": files}).encode())
    assert broken.value.code == "release-broken"
