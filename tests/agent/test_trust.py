from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agent.card import ModelCard, Preprocess, Target
from agent.errors import BoardError, ConfigError, GrantError, NetworkError, SealedFileError, SpecError, TrustError
from agent.keys import DeviceIdentity, create_identity, make_grant
from agent.repository import TARGETS_LIFE, TIMESTAMP_LIFE, Publisher
from agent.sealed import Binding, unseal
from agent.trust import ModelRepository, verify_sealed

MODEL = bytes(range(256)) * 800


def now() -> datetime:
    return datetime.now(UTC)


def card(
    name: str = "efficientnet-lite0", version: str = "1.0", floor: int = 0, boards: tuple[str, ...] = ()
) -> ModelCard:
    return ModelCard(
        name=name,
        version=version,
        security_floor=floor,
        task="image-classification",
        preprocess=Preprocess(1 / 127.5, -1.0),
        input_shape=(3, 96, 96),
        plaintext_sha256=hashlib.sha256(MODEL).hexdigest(),
        plaintext_length=len(MODEL),
        boards=boards,
        signature_of_source_features=(0.25, -1e-7),
    )


class Site(ThreadingHTTPServer):
    """A static web server on loopback that can be told to misbehave for some paths."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.wrong: dict[str, Callable[[SimpleHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(SimpleHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        for part, answer in self.server.wrong.items():
            if part in self.path:
                with contextlib.suppress(ConnectionError):
                    answer(self)
                return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def endless(handler: SimpleHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(1 << 16))


def cut_off(handler: SimpleHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "204896")
    handler.end_headers()
    handler.wfile.write(bytes(1000))


def status(code: int) -> Callable[[SimpleHTTPRequestHandler], None]:
    return lambda handler: handler.send_error(code)


class World:
    """A publisher, its web server and one board."""

    def __init__(self, folder: Path, clock: Callable[[], datetime] = now) -> None:
        self.folder, self.state = folder / "repository", folder / "state"
        self.publisher = Publisher.create(self.folder, folder / "publisher-keys", clock)
        self.pinned = folder / "pinned.json"
        shutil.copy(self.publisher.root_path, self.pinned)
        self.identity: DeviceIdentity = create_identity(folder / "board-keys", "press-07")
        self.site = Site(self.folder)

    def board(self, monotonic: Callable[[], float] = lambda: 0.0) -> ModelRepository:
        return ModelRepository(self.site.url, self.pinned, self.state, monotonic=monotonic, pause=lambda _: None)

    def bases(self) -> list[str]:
        return sorted(path.name for path in (self.state / "bases").iterdir())


@contextlib.contextmanager
def running(world: World) -> Iterator[World]:
    thread = threading.Thread(target=partial(world.site.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield world
    finally:
        world.site.shutdown()
        world.site.server_close()
        thread.join()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running(World(tmp_path)) as made:
        yield made


def published(world: World) -> Target:
    target = world.publisher.publish(MODEL, card())
    world.publisher.grant(world.identity.public, target.name, target.version)
    return target


def test_from_publisher_to_plaintext(world: World) -> None:
    target = published(world)
    board = world.board()
    found = board.find("efficientnet-lite0")
    assert found == target
    assert found.card == card()
    path = board.fetch(found)
    key = board.grant(world.identity, found)
    binding = Binding(found.name, found.version, found.card.plaintext_sha256)
    with path.open("rb") as sealed:
        assert unseal(sealed, key, binding, len(MODEL)) == MODEL
    assert not any(MODEL[:64] in item.read_bytes() for item in world.folder.rglob("*") if item.is_file())
    assert world.bases() == ["efficientnet-lite0-1.0.grant", "efficientnet-lite0-1.0.sealed"]
    assert sorted(item.name for item in world.state.iterdir()) == ["bases", "metadata"]


def test_a_verified_file_is_not_downloaded_again_and_a_broken_one_is(world: World) -> None:
    published(world)
    board = world.board()
    target = board.find("efficientnet-lite0")
    path = board.fetch(target)
    assert board.fetch(target) == path
    assert sum(".sealed" in asked for asked in world.site.asked) == 1
    body = bytearray(path.read_bytes())
    body[1000] ^= 1
    path.write_bytes(body)
    with pytest.raises(SealedFileError) as caught:
        verify_sealed(path, target)
    assert caught.value.code == "sealed-hash"
    verify_sealed(board.fetch(target), target)
    assert sum(".sealed" in asked for asked in world.site.asked) == 2


def test_verify_sealed_says_when_the_file_is_gone(world: World) -> None:
    with pytest.raises(BoardError):
        verify_sealed(world.state / "none", published(world))


def test_latest_is_by_number_for_this_board_and_not_withdrawn(world: World) -> None:
    for version, floor, boards in (("1.9", 0, ()), ("1.10", 1, ()), ("2.0", 1, ("jetson-orin-nano",)), ("3.0", 0, ())):
        world.publisher.publish(MODEL, card(version=version, floor=floor, boards=boards))
    world.publisher.publish(MODEL, card(name="mobilenetv2"))
    board = world.board()
    assert board.find("efficientnet-lite0", board="raspberry-pi-5").version == "1.10"
    assert board.find("efficientnet-lite0").version == "2.0"
    assert board.find("efficientnet-lite0", "1.10").version == "1.10"
    for version, kind, code in (
        ("1.9", TrustError, "below-security-floor"),
        ("3.0", TrustError, "below-security-floor"),
        ("2.0", SpecError, "other-board"),
        ("4.0", SpecError, "unknown-version"),
        ("../1.9", SpecError, "unknown-version"),
    ):
        with pytest.raises(kind) as caught:
            board.find("efficientnet-lite0", version, board="raspberry-pi-5")
        assert caught.value.code == code
    with pytest.raises(SpecError, match=r"there is 3\.0, 2\.0, 1\.10, 1\.9"):
        board.find("efficientnet-lite0", "4.0")
    with pytest.raises(SpecError, match="efficientnet-lite0") as caught:
        board.find("eficientnet")
    assert caught.value.code == "unknown-model"


def test_an_empty_repository_says_so(world: World) -> None:
    with pytest.raises(SpecError, match="no model at all"):
        world.board().find("efficientnet-lite0")


def test_no_grant_and_a_grant_swapped_by_the_publisher(world: World) -> None:
    target = world.publisher.publish(MODEL, card())
    with pytest.raises(GrantError, match="--for press-07") as caught:
        world.board().grant(world.identity, target)
    assert caught.value.code == "grant-missing"
    other = create_identity(world.state / "other", "press-08")
    grant = make_grant(other.public, bytes(32), target.sealed_sha256)
    world.publisher.add_grant("grants/press-07/efficientnet-lite0-1.0.json", grant)
    with pytest.raises(GrantError) as caught:
        world.board().grant(world.identity, target)
    assert caught.value.code == "grant-other-device"


def test_expired_metadata(tmp_path: Path) -> None:
    with running(World(tmp_path, lambda: now() - TIMESTAMP_LIFE - timedelta(minutes=1))) as world:
        with pytest.raises(TrustError) as caught:
            world.board().refresh()
        assert caught.value.code == "metadata-expired"
        Publisher.open(world.folder, tmp_path / "publisher-keys", now).renew()
        world.board().refresh()


def test_older_release_is_refused(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.folder, tmp_path / "old")
    published(world)
    world.board().refresh()
    shutil.copy(tmp_path / "old" / "metadata" / "timestamp.json", world.folder / "metadata" / "timestamp.json")
    with pytest.raises(TrustError) as caught:
        world.board().refresh()
    assert caught.value.code == "metadata-rollback"


def test_files_of_two_releases_mixed(world: World) -> None:
    published(world)
    metadata = world.folder / "metadata"
    newest = world.publisher.signed.release.snapshot.signed.version
    shutil.copy(metadata / f"{newest - 1}.snapshot.json", metadata / f"{newest}.snapshot.json")
    with pytest.raises(TrustError) as caught:
        world.board().refresh()
    assert caught.value.code == "target-hash"


def test_timestamp_of_another_publisher(world: World, tmp_path: Path) -> None:
    Publisher.create(tmp_path / "stranger", tmp_path / "stranger-keys", now)
    shutil.copy(tmp_path / "stranger" / "metadata" / "timestamp.json", world.folder / "metadata" / "timestamp.json")
    with pytest.raises(TrustError) as caught:
        world.board().refresh()
    assert caught.value.code == "metadata-unsigned"


def test_new_root_signed_by_new_keys_only(world: World, tmp_path: Path) -> None:
    stranger = Publisher.create(tmp_path / "stranger", tmp_path / "stranger-keys", now)
    root = stranger.signed.release.root
    root.signed.version = 2
    root.sign(stranger.signed.signers("root")[0])
    (world.folder / "metadata" / "2.root.json").write_bytes(root.to_bytes())
    with pytest.raises(TrustError) as caught:
        world.board().refresh()
    assert caught.value.code == "metadata-unsigned"


def test_changed_metadata(world: World) -> None:
    published(world)
    path = max((world.folder / "metadata").glob("*.targets.json"), key=lambda item: int(item.name.split(".")[0]))
    path.write_text(path.read_text().replace('"security_floor":0', '"security_floor":9'))
    with pytest.raises(TrustError) as caught:
        world.board().refresh()
    assert caught.value.code == "target-hash"


def test_changed_body_leaves_nothing_on_disk(world: World) -> None:
    target = published(world)
    body = next((world.folder / "targets").rglob("*.sealed"))
    changed = bytearray(body.read_bytes())
    changed[100] ^= 1
    body.write_bytes(changed)
    with pytest.raises(TrustError) as caught:
        world.board().fetch(target)
    assert caught.value.code == "target-hash"
    assert world.bases() == []


@pytest.mark.parametrize("part", ["timestamp.json", ".sealed"])
def test_endless_body(world: World, part: str) -> None:
    target = published(world)
    world.site.wrong[part] = endless
    with pytest.raises(TrustError) as caught:
        world.board().fetch(target)
    assert caught.value.code == "too-long"
    assert world.bases() == []


def test_a_trickle_is_given_up_while_it_still_drips(world: World) -> None:
    target = published(world)
    clock = itertools.count(0.0, 0.001)
    board = world.board(lambda: next(clock))
    board.refresh()
    clock = itertools.count(0.0, 1000.0)
    given_up = threading.Event()

    def drip(handler: SimpleHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(bytes(10))
        given_up.wait()

    world.site.wrong[".sealed"] = drip
    try:
        with pytest.raises(NetworkError, match="too slow") as caught:
            board.fetch(target)
    finally:
        given_up.set()
    assert "bytes a second" in str(caught.value.__cause__)
    assert world.bases() == []


@pytest.mark.parametrize("answer", [status(404), status(503), cut_off], ids=["404", "503", "cut off"])
@pytest.mark.parametrize("part", ["timestamp.json", ".sealed"])
def test_network_faults(world: World, part: str, answer: Callable[[SimpleHTTPRequestHandler], None]) -> None:
    target = published(world)
    world.site.wrong[part] = answer
    with pytest.raises(NetworkError) as caught:
        world.board().fetch(target)
    assert world.site.url in caught.value.where
    whole = [name for name in world.bases() if not name.endswith(".part")]
    assert whole == []
    world.site.wrong.clear()
    verify_sealed(world.board().fetch(target), target)


def test_nobody_listens(tmp_path: Path) -> None:
    world = World(tmp_path)
    target = published(world)
    world.site.server_close()
    with pytest.raises(NetworkError, match="unreachable"):
        world.board().fetch(target)


def test_full_disk(world: World) -> None:
    target = published(world)
    board = world.board()
    board.refresh()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(BoardError) as caught:
            board.fetch(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "no-space"
    assert world.bases() == []


def test_a_linked_destination_is_replaced(world: World, tmp_path: Path) -> None:
    target = published(world)
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    board = world.board()
    (world.state / "bases" / "efficientnet-lite0-1.0.sealed").symlink_to(victim)
    verify_sealed(board.fetch(target), target)
    assert victim.read_bytes() == b"mine"


def test_pinned_root(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pinned root"):
        ModelRepository(world.site.url, tmp_path / "none", world.state)
    with pytest.raises(ConfigError, match="http"):
        ModelRepository("file:///etc", world.pinned, world.state)
    world.pinned.write_bytes(b"[" * 1000)
    with pytest.raises(TrustError, match=world.pinned.name):
        world.board().refresh()


def test_a_version_is_never_overwritten(world: World) -> None:
    target = published(world)
    before = world.board().find(target.name)
    with pytest.raises(SpecError, match="raise the number") as caught:
        world.publisher.publish(MODEL, card())
    assert caught.value.code == "version-exists"
    assert world.board().find(target.name) == before


def test_a_card_of_another_file_is_not_published(world: World) -> None:
    with pytest.raises(SpecError) as caught:
        world.publisher.publish(MODEL + b"!", card())
    assert caught.value.code == "card-mismatch"
    assert world.publisher.models() == ()


def test_each_version_has_its_own_key(world: World, tmp_path: Path) -> None:
    world.publisher.publish(MODEL, card(version="1.0"))
    world.publisher.publish(MODEL, card(version="1.1"))
    keys = sorted((tmp_path / "publisher-keys" / "data").iterdir())
    assert [path.name for path in keys] == ["efficientnet-lite0-1.0.key", "efficientnet-lite0-1.1.key"]
    assert keys[0].read_bytes() != keys[1].read_bytes()
    for path in (tmp_path / "publisher-keys").rglob("*.*"):
        assert path.stat().st_mode & 0o077 == 0


def test_publisher_comes_back_and_goes_on(world: World, tmp_path: Path) -> None:
    published(world)
    again = Publisher.open(world.folder, tmp_path / "publisher-keys", now)
    again.publish(MODEL, card(version="1.1"))
    assert [item.version for item in again.models()] == ["1.0", "1.1"]
    assert world.board().find("efficientnet-lite0").version == "1.1"
    with pytest.raises(SpecError, match=r"there is efficientnet-lite0 1\.0"):
        again.grant(world.identity.public, "efficientnet-lite0", "9")


def test_publisher_refuses_a_repository_changed_behind_its_back(world: World, tmp_path: Path) -> None:
    keys = tmp_path / "publisher-keys"
    published(world)
    path = max((world.folder / "metadata").glob("*.targets.json"), key=lambda item: int(item.name.split(".")[0]))
    good = path.read_text()
    path.write_text(good.replace('"security_floor":0', '"security_floor":9'))
    with pytest.raises(TrustError, match="behind our back"):
        Publisher.open(world.folder, keys, now)
    path.write_text(good)
    Publisher.open(world.folder, keys, now)
    with pytest.raises(SpecError):
        Publisher.create(world.folder, tmp_path / "new-keys", now)
    with pytest.raises(SpecError, match="outside"):
        Publisher.create(tmp_path / "fresh", tmp_path / "fresh" / "keys", now)
    with pytest.raises(SpecError, match="no repository"):
        Publisher.open(tmp_path / "fresh", keys, now)
    with pytest.raises(BoardError, match="missing"):
        Publisher.open(world.folder, tmp_path / "fresh", now)


def test_a_full_laptop_disk_leaves_the_release_before(world: World) -> None:
    target = published(world)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 100_000):  # at the data key's neighbour metadata, and at the sealed file
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(BoardError) as caught:
                world.publisher.publish(MODEL, card(version="1.1"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.code == "no-space"
        assert world.board().find(target.name) == target
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with pytest.raises(BoardError):
            world.publisher.grant(world.identity.public, target.name, target.version)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    world.publisher.publish(MODEL, card(version="1.1"))
    assert world.board().find(target.name).version == "1.1"


def test_lives_are_signed_in(world: World) -> None:
    start = datetime(2030, 1, 1, tzinfo=UTC)
    later = Publisher(world.folder, world.publisher.signed.keys.folder, lambda: start)
    later.renew()
    assert later.signed.release.targets.signed.expires == start + TARGETS_LIFE
    assert later.signed.release.timestamp.signed.expires == start + TIMESTAMP_LIFE


def test_models_keep_their_bytes_in_the_repository(world: World) -> None:
    target = published(world)
    body = next((world.folder / "targets").rglob("*.sealed")).read_bytes()
    assert hashlib.sha256(body).hexdigest() == target.sealed_sha256
    assert io.BytesIO(body).read(1) == b"\x28"
