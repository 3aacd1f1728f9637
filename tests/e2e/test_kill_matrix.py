"""Kill -9 at every persisted step of what writes to a disk: what was good is still good, and doing it again works.

Each flow runs once for every step it has (see tests/simulators/kill_matrix.py); after each kill the check below looks
at the folder as the next start finds it. `make kill-matrix` prints the number of cells, flow x step.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.card import ModelCard, Preprocess
from agent.durable import atomic_writer, remove_partials
from agent.errors import SealedFileError, SpecError
from agent.keys import create_identity, load_identity
from agent.keys_identity import rotated, without_previous
from agent.keys_stored import IDENTITY_FILE, find_identity, write_identity
from agent.repository import Publisher, utc_now
from agent.repository_root import rotate, sign
from agent.sealed import Binding, seal, unseal
from agent.slots import read_manifest, read_status
from agent.store import Store
from agent.trust import ModelRepository, verify_sealed
from service.job import Event, State, advance
from service.journal import Journal
from tests.simulators.kill_matrix import kill_matrix
from tests.simulators.stored_board import BASE, MODEL_B, Board, flip

pytestmark = pytest.mark.once

KEY, NEXT_KEY = bytes(range(32)), bytes(range(1, 33))
ONE, TWO, THREE = b"model one" * 9000, b"model two" * 20_000, b"model three"
FROZEN, OTHER = bytes(range(256)) * 300, bytes(range(255)) * 300
NOW = 1_772_366_400.0
SERVE = (
    "import sys, http.server as h\n"
    "H = type('Quiet', (h.SimpleHTTPRequestHandler,), {'log_message': lambda *_: None})\n"
    "s = h.ThreadingHTTPServer(('127.0.0.1', 0), lambda *a: H(*a, directory=sys.argv[1]))\n"
    "print(s.server_address[1], flush=True)\n"
    "s.serve_forever()\n"
)


def told(name: str, cells: int) -> None:
    sys.stdout.write(f"cells: {cells:5}  {name}\n")


class Flow(NamedTuple):
    """What happens before, what is killed, and what must hold after it."""

    prepare: Callable[[Path], object]
    flow: Callable[[Path], object]
    check: Callable[[Path], object]


# --- slots and checkpoints -------------------------------------------------------------------------------------------


def slots(folder: Path) -> Store:
    store = Store(folder / "store", KEY)
    store.recover()
    return store


def stage(store: Store, model: bytes) -> str:
    """As a delta if it has one of the frozen weights, else whole."""
    return store.stage(model, {"n": 1}, [FROZEN, OTHER])


def make_good(store: Store, model: bytes) -> None:
    store.activate(stage(store, model))
    store.mark_good()


def frozen_named(folder: Path) -> set[str]:
    named = set()
    for slot in ("a", "b"):
        with suppress(SealedFileError):
            part = read_manifest(folder, slot).core.frozen
            named |= {part.sha256} if part else set()
    return named


def running(folder: Path) -> bytes:
    """The one active model; empty: the base runs. Whatever is active or may be gone back to opens."""
    store = slots(folder)
    assert not list(folder.rglob("*.partial"))
    blobs = {path.stem for path in (folder / "store" / "frozen").glob("*")}
    assert blobs == frozen_named(folder / "store"), "none too many and none too few"
    status = read_status(folder / "store")
    if status.previous:
        assert store.verifies(status.previous)
    model = store.load_active()[0] if status.active else b""
    if status.trial:  # nobody is left to judge it: as promote.settle does
        store.roll_back("interrupted trial")
    return model


def carries_on(folder: Path) -> None:
    make_good(slots(folder), b"the next model")
    assert slots(folder).load_active()[0] == b"the next model"


def one_of(*allowed: bytes) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        assert running(folder) in allowed
        carries_on(folder)

    return check


def with_models(*models: bytes, then: Callable[[Store], object] | None = None) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        store = slots(folder)
        for model in models:
            make_good(store, model)
        if then:
            then(store)

    return prepare


def spoil_status(store: Store) -> None:
    for path in (store._folder / "slots").glob("status*.json"):
        path.write_bytes(b"{}")


def spoil_one_status(store: Store) -> None:
    flip(store._folder / "slots" / "status.json", 5)


def reseal_checked(now: bytes, before: bytes) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        both = Store(folder / "store", NEXT_KEY, KEY)
        both.recover()
        both.reseal()
        alone = Store(folder / "store", NEXT_KEY)
        assert (alone.load_active()[0], alone.open_checkpoint("job")) == (now, ONE)
        alone.roll_back("asked")
        assert alone.load_active()[0] == before

    return check


def checkpoint_is(*allowed: bytes | None) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        store = slots(folder)
        assert store.open_checkpoint("job") in allowed
        assert running(folder) == ONE
        store.seal_checkpoint("job", THREE)
        assert store.open_checkpoint("job") == THREE

    return check


def slot_flows(one: bytes, two: bytes, three: bytes) -> dict[str, Flow]:
    return {
        "stage the first": Flow(with_models(), lambda f: stage(slots(f), one), one_of(b"")),
        "stage beside": Flow(with_models(one), lambda f: stage(slots(f), two), one_of(one)),
        "stage over the one before": Flow(with_models(one, two), lambda f: stage(slots(f), three), one_of(two)),
        "activate": Flow(
            with_models(one, then=lambda s: stage(s, two)), lambda f: slots(f).activate("b"), one_of(one, two)
        ),
        "mark good": Flow(
            with_models(one, then=lambda s: s.activate(stage(s, two))), lambda f: slots(f).mark_good(), one_of(two)
        ),
        "roll back": Flow(with_models(one, two), lambda f: slots(f).roll_back("worse"), one_of(one, two)),
        "roll back to none": Flow(with_models(one), lambda f: slots(f).roll_back("worse"), one_of(one, b"")),
        "promote": Flow(with_models(one), lambda f: make_good(slots(f), two), one_of(one, two)),
        "rebuild the status": Flow(with_models(one, two, then=spoil_status), slots, one_of(two)),
        "mend the status": Flow(with_models(one, two, then=spoil_one_status), slots, one_of(two)),
        "seal again": Flow(
            with_models(one, two, then=lambda s: s.seal_checkpoint("job", ONE)),
            lambda f: Store(f / "store", NEXT_KEY, KEY).reseal(),
            reseal_checked(two, one),
        ),
    }


DELTAS = slot_flows(b"one" + FROZEN, b"two" + FROZEN, b"three" + OTHER)
SLOTS = slot_flows(ONE, TWO, THREE) | {f"{name}, deltas": flow for name, flow in DELTAS.items()}
SLOTS |= {
    "checkpoint": Flow(
        with_models(ONE, then=lambda s: s.seal_checkpoint("job", ONE)),
        lambda f: slots(f).seal_checkpoint("job", TWO),
        checkpoint_is(ONE, TWO),
    ),
    "drop a checkpoint": Flow(
        with_models(ONE, then=lambda s: s.seal_checkpoint("job", ONE)),
        lambda f: slots(f).drop_checkpoint("job"),
        checkpoint_is(ONE, None),
    ),
}


# --- sealing, keys, journal, scrub -----------------------------------------------------------------------------------

BINDING = Binding("parts", "1.0", hashlib.sha256(TWO).hexdigest())


def seal_to_disk(folder: Path) -> None:
    remove_partials(folder)
    with atomic_writer(folder / "parts.sealed") as stream:
        seal(io.BytesIO(TWO), stream, KEY, BINDING)


def sealed_or_absent(folder: Path) -> None:
    for again in (False, True):
        if again:
            seal_to_disk(folder)
        if again or (folder / "parts.sealed").exists():
            with (folder / "parts.sealed").open("rb") as stream:
                assert unseal(stream, KEY, BINDING, len(TWO)) == TWO
    assert [path.name for path in folder.iterdir()] == ["parts.sealed"]


def create_keys(folder: Path) -> None:
    create_identity(folder / "keys", "press-07")


def keys_once(folder: Path) -> None:
    """Whole or not there: then they are made again."""
    if not (folder / "keys" / IDENTITY_FILE).exists():
        create_keys(folder)
    assert load_identity(folder / "keys").device == "press-07"
    assert [path.stat().st_mode & 0o077 for path in (folder / "keys").iterdir()] == [0], "one file, private"


def stored(folder: Path) -> tuple[str, ...]:
    return tuple(one.storage for one in find_identity(folder / "keys", {}).stored.keys)


def rotate_keys(folder: Path) -> None:
    write_identity(folder / "keys", rotated(find_identity(folder / "keys", {}).stored))


def old_keys_live(folder: Path) -> None:
    assert (folder / "before").read_text() == stored(folder)[-1], "what was sealed before still opens"
    if len(stored(folder)) == 1:
        rotate_keys(folder)
    assert len(stored(folder)) == 2
    assert len(list((folder / "keys").iterdir())) == 1


def retire_keys(folder: Path) -> None:
    write_identity(folder / "keys", without_previous(find_identity(folder / "keys", {}).stored))


def new_keys_live(folder: Path) -> None:
    assert (folder / "current").read_text() == stored(folder)[0]
    if len(stored(folder)) == 2:
        retire_keys(folder)
    assert stored(folder) == ((folder / "current").read_text(),)
    assert len(list((folder / "keys").iterdir())) == 1


def with_keys(folder: Path) -> None:
    create_keys(folder)
    (folder / "before").write_text(stored(folder)[0])


def with_two_keys(folder: Path) -> None:
    create_keys(folder)
    rotate_keys(folder)
    (folder / "current").write_text(stored(folder)[0])


def journal_of(folder: Path) -> Journal:
    made, aside = Journal.open(folder / "journal.sqlite", NOW)
    assert aside is None, "a kill is no damage"
    return made


ID = "019cb1a4-d400-7000-8000-00000000000%d"


def enter(folder: Path, number: int) -> None:
    made = journal_of(folder)
    made.add_job(ID % number, f"digest {number}", "fine-tune", {"model": "m"}, NOW)
    made.close()


def accept(folder: Path) -> None:
    made = journal_of(folder)
    job = made.job(ID % 1)
    assert job is not None
    made.update(job.id, NOW + 1, standing=advance(job.standing, Event.ACCEPT), plan={"depth": 75}, energy_j=2.5)
    made.close()


def job_is_known(folder: Path) -> None:
    """Job 1 as before or accepted with its plan; job 2 entered wholly or not at all, and then once."""
    made = journal_of(folder)
    first = made.job(ID % 1)
    assert first is not None
    whole = (first.standing.state, first.plan, first.energy_j, first.version)
    assert whole in [(State.RECEIVED, None, None, 1), (State.ACCEPTED, {"depth": 75}, 2.5, 2)]
    second, told = made.job(ID % 2), made.outcome(ID % 2)
    assert (second is None) == (told is None)
    made.close()
    if second is None:
        enter(folder, 2)
    made = journal_of(folder)
    assert [job.id for job in made.jobs()] == [ID % 2, ID % 1]
    made.close()


def a_journal_opens(folder: Path) -> None:
    made = journal_of(folder)
    assert [job.id for job in made.jobs()] in ([], [ID % 1])
    made.close()


def quarantined(folder: Path) -> None:
    made = Journal.open(folder / "journal.sqlite", NOW).journal
    assert made.jobs() == []
    made.close()
    aside = [path.read_bytes() for path in folder.iterdir() if ".corrupt-" in path.name]
    assert b"no journal at all" * 400 in aside, "the broken one is kept"


def damaged_board(folder: Path) -> None:
    Board(folder).scrub()
    for name in ("model", "base", "checkpoint", "manifest"):
        flip(Board(folder).file(name))


def board_is_mended(folder: Path) -> None:
    board = Board(folder)
    board.scrub()
    assert board.active() == "b"
    assert (board.store().load_active()[0], board.base.read_bytes()) == (MODEL_B, BASE)
    assert board.store().open_checkpoint("job") == b"weights and moments" * 500
    assert board.fetched == []
    assert board.scrub().damaged == 0


BOARD = {
    "seal": Flow(lambda _: None, seal_to_disk, sealed_or_absent),
    "make keys": Flow(lambda _: None, create_keys, keys_once),
    "rotate keys": Flow(with_keys, rotate_keys, old_keys_live),
    "retire keys": Flow(with_two_keys, retire_keys, new_keys_live),
    "make a journal": Flow(lambda _: None, lambda f: enter(f, 1), a_journal_opens),
    "enter a job": Flow(lambda f: enter(f, 1), lambda f: enter(f, 2), job_is_known),
    "move a job": Flow(lambda f: enter(f, 1), accept, job_is_known),
    "put a journal aside": Flow(
        lambda f: (f / "journal.sqlite").write_bytes(b"no journal at all" * 400),
        lambda f: Journal.open(f / "journal.sqlite", NOW).journal.close(),
        quarantined,
    ),
    "scrub": Flow(damaged_board, lambda f: Board(f).scrub(), board_is_mended),
}


@pytest.mark.parametrize("name", [*SLOTS, *BOARD])
def test_a_board_loses_nothing(tmp_path: Path, name: str) -> None:
    flow = (SLOTS | BOARD)[name]
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    flow.prepare(prepared)
    cells = kill_matrix(prepared, tmp_path / "cells", flow.flow, flow.check)
    told(name, cells)


# --- publisher and pull ----------------------------------------------------------------------------------------------


def card(version: str, model: bytes) -> ModelCard:
    return ModelCard(
        name="parts",
        version=version,
        security_floor=0,
        task="image-classification",
        preprocess=Preprocess(1.0, 0.0),
        input_shape=(3, 8, 8),
        plaintext_sha256=hashlib.sha256(model).hexdigest(),
        plaintext_length=len(model),
        boards=(),
        signature_of_source_features=(),
    )


def publisher(folder: Path) -> Publisher:
    return Publisher.open(folder / "repository", folder / "publisher-keys", utc_now)


def create_repository(folder: Path) -> None:
    Publisher.create(folder / "repository", folder / "publisher-keys", utc_now)


def published(folder: Path) -> None:
    create_repository(folder)
    identity = create_identity(folder / "board" / "keys", "press-07")
    shutil.copy(publisher(folder).root_path, folder / "pinned.json")
    publisher(folder).publish(ONE, card("1.0", ONE))
    publisher(folder).grant(identity.public, "parts", "1.0")


def publish_next(folder: Path) -> None:
    publisher(folder).publish(TWO, card("2.0", TWO))


def grant_next(folder: Path) -> None:
    publisher(folder).grant(load_identity(folder / "board" / "keys").public, "parts", "2.0")


def both_published(folder: Path) -> None:
    published(folder)
    publish_next(folder)


def turn(role: str) -> Callable[[Path], None]:
    return lambda folder: void(rotate(publisher(folder).signed, role))


def void(_: object) -> None:
    """An answer that does not matter."""


def pull(folder: Path, url: str, version: str = "1.0") -> bytes:
    """What the board does: metadata, sealed model, hash, grant, plaintext."""
    identity = load_identity(folder / "board" / "keys")
    repository = ModelRepository(url, folder / "pinned.json", folder / "board" / "repository")
    repository.refresh()
    target = repository.find("parts", version)
    path = repository.fetch(target)
    verify_sealed(path, target)
    key = repository.grant(identity, target)
    with path.open("rb") as stream:
        wanted = Binding("parts", version, target.card.plaintext_sha256)
        return unseal(stream, key, wanted, target.card.plaintext_length)


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Path, str]]:
    """A folder, and the address where it is served by a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-c", SERVE, name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            yield Path(name), f"http://127.0.0.1:{server.stdout.readline().strip()}"
            server.terminate()


def sees(folder: Path, url: str) -> None:
    """A board that comes by finds a whole release, right after the kill and before anybody mends it."""
    assert pull(folder, url) == ONE


def publishes_again(folder: Path) -> None:
    if "2.0" not in [target.version for target in publisher(folder).models()]:
        publish_next(folder)
    grant_next(folder)


def turns_again(role: str) -> Callable[[Path], None]:
    def again(folder: Path) -> None:
        with suppress(SpecError):  # none waits
            sign(publisher(folder).signed)
        turn(role)(folder)
        publishes_again(folder)

    return again


class Release(NamedTuple):
    """A deed of the publisher, and the same deed after the kill."""

    prepare: Callable[[Path], None]
    flow: Callable[[Path], None]
    again: Callable[[Path], None]


RELEASES = {
    "publish": Release(published, publish_next, publishes_again),
    "grant": Release(both_published, grant_next, publishes_again),
    "renew": Release(published, lambda f: publisher(f).renew(), publishes_again),
    "rotate timestamp": Release(published, turn("timestamp"), turns_again("timestamp")),
    "rotate snapshot": Release(published, turn("snapshot"), turns_again("snapshot")),
    "rotate targets": Release(published, turn("targets"), turns_again("targets")),
    "rotate grants": Release(published, turn("grants"), turns_again("grants")),
    "rotate root": Release(published, turn("root"), turns_again("root")),
}


@pytest.mark.parametrize("name", RELEASES)
def test_boards_see_whole_releases_only(tmp_path: Path, site: tuple[Path, str], name: str) -> None:
    prepare, flow, again = RELEASES[name]
    scratch = Path(tempfile.mkdtemp(dir=site[0]))

    def check(folder: Path) -> None:
        url = f"{site[1]}/{folder.relative_to(site[0])}/repository"
        sees(folder, url)
        again(folder)
        sees(folder, url)
        assert pull(folder, url, "2.0") == TWO
        assert not list(folder.rglob("*.partial")), "neither half a document is served nor half a key kept"

    prepare(tmp_path / "prepared")
    told(name, kill_matrix(tmp_path / "prepared", scratch, flow, check))


def test_a_pull_is_taken_up_again(tmp_path: Path, site: tuple[Path, str]) -> None:
    served, board = Path(tempfile.mkdtemp(dir=site[0])), tmp_path / "prepared"
    both_published(served)
    grant_next(served)
    url = f"{site[1]}/{served.name}/repository"
    board.mkdir()
    shutil.copytree(served / "board", board / "board")
    shutil.copy(served / "pinned.json", board / "pinned.json")
    pull(board, url)

    def check(folder: Path) -> None:
        kept = folder / "board" / "repository" / "bases" / "parts-1.0.sealed"
        assert kept.read_bytes() == (board / kept.relative_to(folder)).read_bytes()
        assert pull(folder, url, "2.0") == TWO
        assert pull(folder, url) == ONE
        remove_partials(kept.parent)  # as the next scrub does
        left = [path.name for path in kept.parent.iterdir()]
        assert {Path(name).suffix for name in left} <= {".sealed", ".grant"}, "nothing half is left"

    told("pull", kill_matrix(board, tmp_path / "cells", lambda folder: pull(folder, url, "2.0"), check))
