"""A check of a repository names each fault by its place, and goes on to the next."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from agent.errors import ArtifactError, NetworkError, SpecError
from agent.repository_check import Report, check_repository
from agent.repository_root import rotate
from agent.repository_source import FolderSource, WebSource
from tests.simulators.publication import MODEL, NAME, Publication, card, now, serving


@pytest.fixture
def world(tmp_path: Path) -> Publication:
    made = Publication(tmp_path)
    publisher = made.create()
    publisher.publish(MODEL, card("1.0"))
    publisher.publish(MODEL, card("1.1"))
    publisher.grant(made.identity.public, NAME, "1.0")
    rotate(made.signed(), "targets")
    made.publisher().renew()  # what was signed by both keys is history
    return made


def check(world: Publication, days: float = 0) -> Report:
    at = now() + timedelta(days=days)
    return check_repository(FolderSource(world.repository), world.pinned.read_bytes(), at)


def found(report: Report) -> list[tuple[str, str]]:
    return [(item.code, item.where) for item in report.findings]


def sealed(world: Publication, version: str) -> Path:
    (path,) = (world.repository / "targets" / "models" / NAME).glob(f"*.{version}.sealed")
    return path


def test_a_right_repository_as_a_folder_and_on_the_web(world: Publication) -> None:
    here = check(world)
    assert found(here) == []
    assert (here.models, here.grants, here.orphans) == (["net 1.0", "net 1.1"], 1, [])
    assert set(here.expires) == {"root", "timestamp", "snapshot", "targets", "grants"}
    with serving(world.repository) as url:
        assert check_repository(WebSource(url), world.pinned.read_bytes(), now()) == here


def test_faults_of_files_are_all_told(world: Publication) -> None:
    (grant,) = (world.repository / "targets" / "grants" / "press-07").iterdir()
    body = bytearray(sealed(world, "1.0").read_bytes())
    body[-1] ^= 1
    sealed(world, "1.0").write_bytes(body)
    sealed(world, "1.1").unlink()
    grant.write_bytes(grant.read_bytes() + b" ")
    report = check(world)
    assert [code for code, _ in found(report)] == ["target-hash", "file-missing", "target-hash"]
    assert (report.models, report.grants) == ([], 0)
    assert found(report)[2][1] == f"targets/grants/press-07/{grant.name}"


def test_a_body_that_never_ends_is_not_read_to_its_end(world: Publication) -> None:
    path = world.repository / "metadata" / "timestamp.json"
    path.write_bytes(b" " * (16 << 10) + path.read_bytes())
    assert found(check(world)) == [("too-long", "metadata/timestamp.json")]
    path.unlink()
    path.mkdir()
    assert found(check(world)) == [("not-a-file", "metadata/timestamp.json")]


def test_dates(world: Publication) -> None:
    assert found(check(world, 8)) == [("metadata-expired", "metadata/timestamp.json")]
    assert [code for code, _ in found(check(world, 400))] == ["metadata-expired"] * 5
    ahead = found(check(world, -3650))
    assert {code for code, _ in ahead} == {"metadata-ahead"}
    assert len(ahead) == 5


Change = Callable[[Path], object]


def _other_expiry(path: Path) -> None:
    path.write_text(path.read_text().replace('"expires":"2', '"expires":"3', 1))


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("timestamp.json", Path.unlink, "file-missing"),
        ("timestamp.json", _other_expiry, "metadata-unsigned"),
        ("*.snapshot.json", _other_expiry, "metadata-unsigned"),
        ("*.targets.json", _other_expiry, "metadata-unsigned"),
        ("*.grants.json", _other_expiry, "metadata-unsigned"),
        ("2.root.json", _other_expiry, "metadata-unsigned"),
        ("2.root.json", Path.unlink, "metadata-unsigned"),
        ("timestamp.json", lambda path: path.write_text("{}"), "metadata-broken"),
        (
            "2.root.json",
            lambda path: path.write_bytes((path.parent / "timestamp.json").read_bytes()),
            "metadata-broken",
        ),
        ("2.root.json", lambda path: path.write_bytes((path.parent / "1.root.json").read_bytes()), "metadata-version"),
    ],
)
def test_faults_of_documents(world: Publication, name: str, change: Change, code: str) -> None:
    found_paths = (world.repository / "metadata").glob(name)
    change(max(found_paths, key=lambda path: int(path.name.split(".")[0]) if path.name[0].isdecimal() else 0))
    before = {path: path.read_bytes() for path in world.repository.rglob("*") if path.is_file()}
    assert [found_code for found_code, _ in found(check(world))] == [code]
    assert {path: path.read_bytes() for path in world.repository.rglob("*") if path.is_file()} == before


def test_another_publishers_root(world: Publication, tmp_path: Path) -> None:
    other = Publication(tmp_path / "other")
    other.create()
    report = check_repository(FolderSource(world.repository), other.pinned.read_bytes(), now())
    assert found(report) == [("metadata-unsigned", "metadata/2.root.json")]


@pytest.mark.parametrize(
    ("path", "data", "says"),
    [
        ("grants/press-07/net-1.0.json", b"[]", "is not for press-07"),
        ("grants/press-07/net-1.0.json", b"{", "grant"),
        ("grants/press-08/net-1.0.json", None, "is not for press-08"),
        ("grants/press-07/net-9.json", None, "no model that is published"),
        ("grants/press-07/net-1.1.json", None, "no model that is published"),
        ("models/press-07/net-1.0.json", None, "no place of a grant"),
    ],
)
def test_grants_that_boards_cannot_use(world: Publication, path: str, data: bytes | None, says: str) -> None:
    (grant,) = (world.repository / "targets" / "grants" / "press-07").iterdir()
    world.publisher().add_grant(path, grant.read_bytes() if data is None else data)
    report = check(world)
    assert [(item.code, item.where) for item in report.findings] == [("grant", path)]
    assert says in report.findings[0].what


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda custom: custom.clear(), "card"),
        (lambda custom: custom.update(version="1.2"), "is the card of net 1.2"),
        (lambda custom: custom.update(plaintext_length=7), "does not fit"),
    ],
)
def test_cards_that_boards_cannot_use(
    world: Publication, change: Callable[[dict[str, object]], None], says: str
) -> None:
    signed = world.signed()
    change(signed.release.targets.signed.targets["models/net/1.1.sealed"].custom)
    signed.commit({"targets"})
    report = check(world)
    assert found(report) == [("card", "models/net/1.1.sealed")]
    assert says in report.findings[0].what
    assert report.models == ["net 1.0"]


def test_what_no_document_names_is_listed_and_no_fault(world: Publication) -> None:
    world.publisher().grant(world.identity.public, NAME, "1.0")  # the grant before is named no more
    (world.repository / "targets" / ".1.2.sealed.x.partial").write_bytes(b"left by a kill")
    report = check(world)
    assert report.findings == []
    assert len(report.orphans) == 2
    assert report.orphans[0] == "targets/.1.2.sealed.x.partial"


def test_the_web_tells_absent_from_broken(world: Publication) -> None:
    with serving(world.repository) as url:
        source = WebSource(url)
        assert source.read("metadata/9.root.json", 10) is None
        assert source.digest("metadata/9.root.json", 10) is None
        with pytest.raises(ArtifactError):
            source.digest("metadata/1.root.json", 10)
        assert json.loads(source.read("metadata/1.root.json", 1 << 16) or b"")["signed"]["version"] == 1
    with pytest.raises(NetworkError):
        source.read("metadata/1.root.json", 10)
    with pytest.raises(SpecError):
        WebSource("file:///etc")
