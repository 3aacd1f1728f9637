"""A system image comes to a board: by signature alone, resumed, with room asked for first, and only where it fits."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from agent import system_image
from agent.download import PART
from agent.errors import SpecError, TemperdError, TrustError
from agent.messages import Finished, SystemOrder
from agent.publish_release import publish_file
from agent.publish_system import publish_system
from agent.repository import Publisher
from agent.repository_check import check_repository
from agent.repository_source import FolderSource
from agent.system_card import MAX_BUNDLE_BYTES, SystemCard, forget, most_bytes, read_card
from agent.system_image import SPARE_BYTES, pull
from policies.strict import TableError
from tests.agent.test_trust import World, now, running

pytestmark = pytest.mark.once

BUNDLE = bytes(range(256)) * 400


class Images:
    """A board that RAUC updates, and its publisher."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self.order = SystemOrder(str(world.state), "", "", "plant-image", "latest", "board-x", installed="1.0")

    def publish(self, version: str = "2.0", data: bytes = BUNDLE, **changes: object) -> SystemCard:
        file = self.folder / "made.raucb"
        file.write_bytes(data)
        card = SystemCard(**{"name": "plant-image", "version": version, "compatible": "board-x", **changes})  # type: ignore[arg-type]
        publish_system(self.world.publisher, file, card)
        return card

    def pull(self, **changes: object) -> dict[str, object]:
        told = pull(dataclasses.replace(self.order, **changes), self.world.board())
        assert isinstance(told, Finished)
        return told.result

    def refused(self, code: str, **changes: object) -> str:
        with pytest.raises(TemperdError) as caught:
            self.pull(**changes)
        assert caught.value.code == code
        return str(caught.value)

    def left(self) -> list[str]:
        folder = self.world.state / "system"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def bundles_asked_for(self) -> list[str]:
        return [path for path in self.world.site.asked if "/targets/" in path]


@pytest.fixture
def images(tmp_path: Path) -> Iterator[Images]:
    with running(World(tmp_path)) as world:
        yield Images(tmp_path, world)


def test_from_the_publisher_to_the_board_once(images: Images) -> None:
    images.publish()
    told = images.pull()
    path = Path(str(told["path"]))
    assert (told["version"], told["bytes"], path.read_bytes()) == ("2.0", len(BUNDLE), BUNDLE)
    assert images.pull() == told
    assert len(images.bundles_asked_for()) == 1
    path.write_bytes(BUNDLE[:-1] + b"x")  # damaged since
    images.pull()
    assert path.read_bytes() == BUNDLE
    images.publish("2.1", BUNDLE + b"1")
    images.pull()
    assert images.left() == ["plant-image-2.1.raucb"]
    forget(images.world.state)
    assert images.left() == []


def test_the_repository_is_right_by_its_own_check(images: Images) -> None:
    card = images.publish()
    pinned = images.world.pinned.read_bytes()
    found = check_repository(FolderSource(images.world.folder), pinned, now())
    assert (found.findings, found.releases) == ([], [card.path])
    file = images.folder / "made.raucb"
    publish_file(images.world.publisher, "system/other/1.0.raucb", file, card.table())
    found = check_repository(FolderSource(images.world.folder), pinned, now())
    assert [(one.code, one.where) for one in found.findings] == [("release", "system/other/1.0.raucb")]


def test_what_runs_already_is_not_fetched(images: Images) -> None:
    images.publish()
    assert images.pull(installed="2.0") == {"path": "", "version": "2.0", "bytes": 0}
    assert images.pull(installed="3.0")["path"] == "", "latest is never older"
    assert images.bundles_asked_for() == []


def test_an_older_image_is_taken_by_the_owners_word_and_not_below_its_floor(images: Images) -> None:
    images.publish()
    images.refused("older-version", installed="3.0", version="2.0")
    assert images.pull(installed="3.0", version="2.0", allow_downgrade=True)["path"]
    images.publish("4.0", security_floor=2)
    images.refused("below-security-floor", installed="3.0", version="2.0", allow_downgrade=True)
    assert images.pull(installed="3.0")["version"] == "4.0"


def test_an_image_whose_version_is_not_known_is_no_older_one(images: Images) -> None:
    images.publish()
    assert images.pull(installed="")["path"]
    assert images.pull(installed="2024-nightly")["path"]


def test_what_is_not_there_or_for_others_is_named(images: Images) -> None:
    assert "none at all" in images.refused("unknown-image")
    images.publish()
    assert "plant-image" in images.refused("unknown-image", name="plant")
    assert "2.0" in images.refused("unknown-version", version="2.1")
    assert "'board-y'" in images.refused("other-board", compatible="board-y")
    assert images.left() == []


def test_what_nobody_signed_is_not_taken(images: Images, tmp_path: Path) -> None:
    images.publish()
    stranger = Publisher.create(tmp_path / "strange", tmp_path / "strange-keys", now)
    publish_system(stranger, images.folder / "made.raucb", SystemCard("plant-image", "9.0", "board-x"))
    for name in ("metadata", "targets"):
        shutil.copytree(tmp_path / "strange" / name, images.world.folder / name, dirs_exist_ok=True)
    images.refused("metadata-unsigned")
    assert images.left() == []


def test_other_bytes_than_the_signed_ones_are_refused(images: Images) -> None:
    images.publish()
    (file,) = (images.world.folder / "targets/system/plant-image").iterdir()
    file.write_bytes(BUNDLE[:-1] + b"x")
    images.refused("target-hash")
    assert images.left() == []


def test_half_a_download_goes_on_from_there(images: Images) -> None:
    images.publish()
    half, ranges = len(BUNDLE) // 2, list[str | None]()

    def serve(handler: SimpleHTTPRequestHandler) -> None:
        ranges.append(handler.headers["Range"])
        start = 0 if handler.headers["Range"] is None else half
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(BUNDLE) - 1}/{len(BUNDLE)}")
        handler.send_header("Content-Length", str(len(BUNDLE) - start))
        handler.end_headers()
        handler.wfile.write(BUNDLE[start:] if start else BUNDLE[:half])

    images.world.site.wrong["/targets/"] = serve
    assert Path(str(images.pull()["path"])).read_bytes() == BUNDLE
    assert ranges == [None, f"bytes={half}-"]


def test_without_room_nothing_is_asked_for(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    images.publish()
    need = len(BUNDLE) + SPARE_BYTES
    for free, fits in ((need - 1, False), (need, True)):
        usage = shutil._ntuple_diskusage(10**12, 0, free)  # type: ignore[attr-defined]
        monkeypatch.setattr(system_image.shutil, "disk_usage", lambda _path, usage=usage: usage)
        if fits:
            assert images.pull()["path"]
        else:
            assert f"{need / 1e6:.0f} MB" in images.refused("no-space")
            assert images.bundles_asked_for() == []


def test_a_link_that_costs_money_is_not_used(images: Images) -> None:
    images.publish()
    assert "MB" in images.refused("metered-link", metered=True)
    assert images.bundles_asked_for() == []
    images.pull()
    assert images.pull(metered=True)["path"], "what is there costs nothing"


def test_parts_of_other_bundles_make_room(images: Images) -> None:
    images.publish()
    images.pull()
    (images.world.state / "system" / f"{'0' * 64}{PART}").write_bytes(b"x")
    images.pull()
    assert images.left() == ["plant-image-2.0.raucb"]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../up"},
        {"version": "2-0"},
        {"compatible": ""},
        {"compatible": "a\nb"},
        {"compatible": "x" * 129},
        {"security_floor": -1},
        {"kind": "agent"},
        {"colour": "red"},
    ],
)
def test_facts_that_cannot_be_are_refused(changes: dict[str, object]) -> None:
    table = {**SystemCard("plant-image", "2.0", "board-x").table(), **changes}
    with pytest.raises(TrustError):
        read_card(table, "system/plant-image/2.0.raucb")


def test_a_card_is_for_its_own_path_and_a_bundle_has_bounds(tmp_path: Path) -> None:
    card = SystemCard("plant-image", "2.0", "board-x")
    assert read_card(card.table(), card.path) == card
    with pytest.raises(TrustError):
        read_card(card.table(), "system/plant-image/2.1.raucb")
    for length in (0, MAX_BUNDLE_BYTES + 1):
        with pytest.raises(TrustError):
            most_bytes(card.table(), card.path, length)
    assert most_bytes(card.table(), card.path, MAX_BUNDLE_BYTES) == MAX_BUNDLE_BYTES
    with pytest.raises(TableError):
        SystemCard("plant-image", "2.0", "")
    (tmp_path / "empty").touch()
    publisher = Publisher.create(tmp_path / "repository", tmp_path / "keys", now)
    with pytest.raises(SpecError):
        publish_system(publisher, tmp_path / "empty", card)
