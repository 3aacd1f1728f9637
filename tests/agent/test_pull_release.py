"""A release comes to a board: by signature alone, resumed, with room asked for first, and no slot touched too early."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import pytest

from agent import pull_release as pulling
from agent.agent_archive import write_archive
from agent.agent_release import AgentRelease, Here
from agent.agent_slots import agent_folder, stage_folder, verify_slot
from agent.agent_stage import ARCHIVE, clear_leftovers
from agent.build_release import Recipe, build_release
from agent.download import PART
from agent.errors import BoardError, TemperdError, TrustError
from agent.publish_release import publish_file, publish_release, published
from agent.pull_release import Wanted, board_here, pull_release
from agent.repository import Publisher
from agent.repository_check import check_repository
from agent.repository_keys import GRANTS, TARGETS
from agent.repository_source import FolderSource
from tests.agent.test_trust import World, now, running
from tests.simulators.wheels import wheel

pytestmark = pytest.mark.once

FILLER = bytes(range(256)) * 4000  # a megabyte that does not shrink to nothing


class Updates:
    """A board that updates itself, and its publisher."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self.here = Here("0.1.0", "", "x86_64", "3.11", {"numpy": "2.1.0"})
        self.asked: list[str] = []
        self.warned: list[str] = []

    def build(self, version: str = "0.2.0", *, filler: bytes = b"", **changes: object) -> Path:
        files = {"agent/__init__.py": f'__version__ = "{version}"\n'.encode(), "service/filler.bin": filler}
        own = wheel(self.folder / "wheels", "temperd", version, files)
        made = build_release(dataclasses.replace(Recipe((own,), "3.11", {"numpy": "2.1.0"}), **changes))
        path = self.folder / made.name
        with path.open("wb") as out:
            write_archive(out, made.contents)
        return path

    def publish(self, version: str = "0.2.0", **named: object) -> AgentRelease:
        return publish_release(self.world.publisher, self.build(version, **named))

    def pull(self, version: str = "latest", *, slot: str = "b", metered: bool = False) -> AgentRelease | None:
        wanted = Wanted(version, allow_downgrade=False, slot=slot, metered=metered)
        ask: Callable[[str, str], None] = lambda stage, _: self.asked.append(stage)  # noqa: E731 - as short as it gets
        return pull_release(self.world.board(), self.world.state, wanted, self.here, ask, self.warned.append)

    def refused(self, code: str, version: str = "latest", **named: bool) -> str:
        with pytest.raises(TemperdError) as caught:
            self.pull(version, **named)
        assert caught.value.code == code
        return str(caught.value)

    def held(self, slot: str = "b") -> str:
        return (agent_folder(self.world.state) / slot / "site/agent/__init__.py").read_text()

    def left(self) -> list[str]:
        return sorted(path.name for path in agent_folder(self.world.state).iterdir())


@pytest.fixture
def updates(tmp_path: Path) -> Iterator[Updates]:
    with running(World(tmp_path)) as world:
        yield Updates(tmp_path, world)


def test_from_the_publisher_into_a_slot(updates: Updates) -> None:
    made = updates.publish()
    assert published(updates.world.publisher) == (made,)
    assert updates.pull() == made
    assert updates.asked == ["PULLING", "INSTALLING"]
    assert verify_slot(updates.world.state, "b", made.files_sha256).version == "0.2.0"
    assert updates.left() == ["b"]
    updates.here = dataclasses.replace(updates.here, version="0.2.0", digest=made.files_sha256)
    assert updates.pull() is None
    assert updates.warned == []


def test_a_version_never_changes_and_the_same_once_more_renews(updates: Updates) -> None:
    updates.publish()
    updates.publish()
    with pytest.raises(TemperdError) as caught:
        updates.publish(filler=b"other")
    assert caught.value.code == "version-exists"


def test_the_repository_is_right_by_its_own_check(updates: Updates) -> None:
    made = updates.publish()
    found = check_repository(FolderSource(updates.world.folder), updates.world.pinned.read_bytes(), now())
    assert (found.findings, found.releases) == ([], [made.path])
    next((updates.world.folder / "targets/agent/0.2.0").iterdir()).write_bytes(b"other")
    found = check_repository(FolderSource(updates.world.folder), updates.world.pinned.read_bytes(), now())
    assert [one.code for one in found.findings] == ["target-hash"]


def test_what_nobody_signed_is_not_taken(updates: Updates, tmp_path: Path) -> None:
    updates.publish()
    stranger = Publisher.create(tmp_path / "strange", tmp_path / "strange-keys", now)
    publish_release(stranger, updates.build("0.9.0"))
    shutil.rmtree(updates.world.folder / "metadata")
    shutil.copytree(tmp_path / "strange" / "metadata", updates.world.folder / "metadata")
    shutil.copytree(tmp_path / "strange" / "targets", updates.world.folder / "targets", dirs_exist_ok=True)
    updates.refused("metadata-unsigned")
    assert updates.asked == ["PULLING"]
    assert not agent_folder(updates.world.state).exists()


def test_who_signs_grants_signs_no_release_and_no_model_is_one(updates: Updates) -> None:
    made = updates.publish("0.9.0")
    signed = updates.world.publisher.signed
    target = signed.release.targets.signed.targets.pop(made.path)
    grants = signed.release.grants
    assert grants is not None
    grants.signed.targets[made.path] = target
    signed.commit({TARGETS, GRANTS})
    updates.refused("no-release")
    with pytest.raises(TrustError, match="no longer vouches"):
        updates.world.board().signed(made.path)
    del grants.signed.targets[made.path]
    model = {**made.to_table(), "kind": "model"}
    publish_file(updates.world.publisher, made.path, updates.build("0.9.0"), model)
    updates.refused("no-release")
    assert "kind" in updates.warned[-1]
    assert not agent_folder(updates.world.state).exists()


def test_an_older_release_and_one_for_another_board_are_refused(updates: Updates) -> None:
    updates.publish()
    updates.here = dataclasses.replace(updates.here, version="0.3.0")
    updates.refused("older-version", "0.2.0")
    updates.here = dataclasses.replace(updates.here, version="0.1.0", installed={"numpy": "1.26"})
    assert "numpy 2.1.0 (here: 1.26)" in updates.refused("needs-unmet")
    updates.here = dataclasses.replace(updates.here, python="3.13")
    updates.refused("other-python")
    assert not agent_folder(updates.world.state).exists()


def test_half_a_download_goes_on_from_there(updates: Updates) -> None:
    made = updates.publish(filler=FILLER)
    updates.world.site.wrong["/targets/"] = half
    updates.refused("network")
    (part,) = agent_folder(updates.world.state).glob(f"*{PART}")
    kept = part.stat().st_size
    assert kept > 1000
    ranges: list[str | None] = []

    def rest(handler: SimpleHTTPRequestHandler) -> None:
        ranges.append(handler.headers["Range"])
        data = Path(handler.translate_path(handler.path)).read_bytes()
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {kept}-{len(data) - 1}/{len(data)}")
        handler.send_header("Content-Length", str(len(data) - kept))
        handler.end_headers()
        handler.wfile.write(data[kept:])

    updates.world.site.wrong["/targets/"] = rest
    assert updates.pull() == made
    assert ranges == [f"bytes={kept}-"]
    assert updates.left() == ["b"]


def half(handler: SimpleHTTPRequestHandler) -> None:
    """The first half; of a request to go on, nothing."""
    data = Path(handler.translate_path(handler.path)).read_bytes()
    handler.send_response(206 if handler.headers["Range"] else 200)
    if handler.headers["Range"]:
        handler.send_header("Content-Range", f"bytes {len(data) // 2}-{len(data) - 1}/{len(data)}")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    if not handler.headers["Range"]:
        handler.wfile.write(data[: len(data) // 2])


def test_other_bytes_than_the_signed_ones_are_refused(updates: Updates) -> None:
    made = updates.publish()
    (file,) = (updates.world.folder / "targets/agent/0.2.0").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    updates.refused("target-hash")
    assert updates.left() == []
    file.write_bytes(whole)
    assert updates.pull() == made


def test_without_room_nothing_is_asked_for_and_the_slot_stays(
    updates: Updates, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates.publish()
    updates.pull()
    made = updates.publish("0.3.0", filler=FILLER)
    asked = len(updates.world.site.asked)
    need = made.unpacked_length * pulling.BYTE_CODE + pulling.RESERVE_BYTES
    length = updates.world.publisher.signed.release.targets.signed.targets[made.path].length
    usage = lambda free: lambda _path: shutil._ntuple_diskusage(10**12, 0, free)  # type: ignore[attr-defined]  # noqa: E731 - a full disk
    monkeypatch.setattr(pulling.shutil, "disk_usage", usage(need + length - 1))
    assert f"{(need + length) / 1e6:.0f} MB" in updates.refused("no-space")
    assert not [path for path in updates.world.site.asked[asked:] if "/targets/" in path]
    assert "0.2.0" in updates.held()
    monkeypatch.setattr(pulling.shutil, "disk_usage", usage(need + length))
    assert updates.pull() == made
    assert "0.3.0" in updates.held()


def test_a_link_that_costs_money_is_not_used(updates: Updates) -> None:
    made = updates.publish()
    assert "MB" in updates.refused("metered-link", metered=True)
    assert not [path for path in updates.world.site.asked if "/targets/" in path]
    assert updates.pull() == made


def test_expired_metadata_and_no_network_say_so(updates: Updates, tmp_path: Path) -> None:
    updates.publish()
    updates.world.site.wrong["/metadata/"] = lambda handler: handler.send_error(503)
    updates.refused("network")
    updates.world.site.wrong.clear()
    late, state = now().timestamp() + 30 * 86400, tmp_path / "late"
    board = pulling.ModelRepository(updates.world.site.url, updates.world.pinned, state, wall=lambda: late)
    wanted = Wanted("latest", allow_downgrade=False, slot="b", metered=False)
    with pytest.raises(TrustError) as caught:
        pull_release(board, state, wanted, updates.here, lambda *_: None, updates.warned.append)
    assert caught.value.code == "metadata-expired"


def test_a_signed_archive_that_is_none_is_refused_and_the_slot_stays(updates: Updates) -> None:
    updates.publish()
    updates.pull()
    good = updates.build("0.3.0")
    facts = json.loads(json.dumps(publish_facts(updates, good)))
    bad = updates.folder / "bad.tar.gz"
    for number, data in enumerate((b"no gzip", gzip.compress(b"no tar" * 200), good.read_bytes()[:-30])):
        bad.write_bytes(data)
        version = f"0.3.{number + 1}"
        path = f"agent/{version}/temperd-{version}-py3.11-any.tar.gz"
        publish_file(updates.world.publisher, path, bad, {**facts, "version": version})
        updates.refused("release-broken")
        assert updates.left() == ["b"]
    path = "agent/0.4.0/temperd-0.4.0-py3.11-any.tar.gz"
    publish_file(updates.world.publisher, path, good, {**facts, "version": "0.4.0"})
    assert "other things" in updates.refused("release-broken")
    assert "0.2.0" in updates.held()
    assert not stage_folder(updates.world.state).exists()


def publish_facts(updates: Updates, file: Path) -> dict[str, object]:
    return publish_release(updates.world.publisher, file).to_table()


def test_facts_that_this_version_does_not_understand_hide_no_other_release(updates: Updates) -> None:
    made = updates.publish()
    strange = updates.folder / "strange"
    strange.write_bytes(b"of a later temperd")
    publish_file(updates.world.publisher, "agent/9.0/temperd-9.0-py3.11-riscv64.tar.gz", strange, {"kind": "agent"})
    assert updates.pull() == made
    assert "not looked at" in updates.warned[0]


def test_what_a_killed_update_left_is_no_hindrance(updates: Updates) -> None:
    made = updates.publish()
    stage = stage_folder(updates.world.state)
    (stage / "site/agent").mkdir(parents=True)
    (stage / "site/agent/__init__.py").write_text("half")
    (agent_folder(updates.world.state) / ARCHIVE).write_bytes(b"old")
    assert updates.pull() == made
    assert updates.left() == ["b"]


def test_an_archive_that_is_there_is_not_fetched_again(updates: Updates) -> None:
    updates.publish()

    def stop(stage: str, _detail: str) -> None:
        if stage == "INSTALLING":
            raise BoardError("as if the power went")

    wanted = Wanted("latest", allow_downgrade=False, slot="b", metered=False)
    with pytest.raises(BoardError):
        pull_release(updates.world.board(), updates.world.state, wanted, updates.here, stop, print)
    assert "b" not in updates.left()
    assert updates.pull() is not None
    assert len([path for path in updates.world.site.asked if "/targets/" in path]) == 1


def test_what_nobody_goes_on_with_is_cleared(updates: Updates) -> None:
    updates.publish(filler=FILLER)
    updates.world.site.wrong["/targets/"] = half
    updates.refused("network")
    stage_folder(updates.world.state).mkdir()
    (agent_folder(updates.world.state) / ARCHIVE).write_bytes(b"old")
    (agent_folder(updates.world.state) / "standing.json").write_bytes(b"{}")
    clear_leftovers(updates.world.state)
    assert updates.left() == ["standing.json"]


def test_this_environment_is_described() -> None:
    here = board_here("0.1.0", "", frozenset())
    assert here.installed["numpy"]
    assert here.python.startswith("3.")
    assert "pyyaml" in here.installed
