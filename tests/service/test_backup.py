"""A board's state in one file and back: whole or refused, nothing lost, nothing done twice, no key in plain."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import ArtifactError, BoardError, SpecError, TemperdError
from agent.keys_identity import create_identity, load_identity
from agent.store import Store
from policies.strict import build
from service.backup import make_backup
from service.backup_format import CONTENTS, FORMAT, Manifest, SealedKeys, write_contents, write_file
from service.backup_keys import open_keys, seal_keys
from service.cli import main
from service.commands import new_id
from service.job import Event, State, advance
from service.journal import Journal, Verdict
from service.restore import restore
from service.restore_finish import finish
from service.state_lock import state_lock
from tests.simulators.kill_matrix import KILLED, MAX_STEPS, run_to

DEVICE, NOW = "board-1", 1_800_000_000.0
MODELS = (b"the model before", b"the model " * 2000)
PASSPHRASE = "four words that nobody guesses"
AT_BACKUP, BETWEEN, LATER = (new_id(int((NOW + seconds) * 1000), os.urandom) for seconds in (-100.0, 500.0, 2000.0))
RESTORED_AT = NOW + 1000.0


def set_up(state: Path, model: bytes) -> None:
    """A board with a model in use, a command obeyed, a job that ended and one that trains."""
    store = Store(state / "store", *create_identity(state / "keys", DEVICE).storage_keys)
    for one in (MODELS[0], model):
        store.activate(store.stage(one, {}))
        store.mark_good()
    (state / "board.json").write_text("{}")
    journal = Journal.open(state / "journal.sqlite", NOW).journal
    journal.record(AT_BACKUP, "digest", "accepted", {"models-asked": '[{"id": "an order"}]', "alarms": "{}"})
    for name, events in (("job-1", (Event.ACCEPT, Event.CANCEL)), ("job-2", (Event.ACCEPT, Event.PULL))):
        standing = journal.add_job(name, "d", "fine-tune", {}, NOW).standing
        for event in events:
            standing = advance(standing, event)
            journal.update(name, NOW, standing=standing)
    journal.next_session()
    journal.close()


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = tmp_path_factory.mktemp("board") / "state"
    set_up(state, MODELS[1])
    return state


def seal(identity: bytes, _bound: bytes) -> SealedKeys:
    """As quick as a restore is to be tried; the real one is slow by design."""
    return SealedKeys("", "", identity[::-1].hex())


def open_sealed(keys: SealedKeys, _bound: bytes) -> bytes:
    return bytes.fromhex(keys.sealed)[::-1]


def backed_up(state: Path, *, with_keys: bool = False) -> bytes:
    out = io.BytesIO()
    make_backup(state, out, DEVICE, NOW, seal if with_keys else None)
    return out.getvalue()


@pytest.fixture(scope="module")
def plain(board: Path) -> bytes:
    return backed_up(board)


def put_back(state: Path, data: bytes, *, replace: bool = False) -> None:
    restore(state, io.BytesIO(data), DEVICE, RESTORED_AT, replace=replace)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "lock"
    }


def test_a_board_that_was_restored_with_its_keys_goes_on_and_does_nothing_twice(board: Path, tmp_path: Path) -> None:
    running = Journal.open(board / "journal.sqlite", NOW).journal  # the daemon runs, and holds its journal open
    try:
        before = running.next_session()
        data = backed_up(board, with_keys=True)
    finally:
        running.close()
    state = tmp_path / "state"
    done = restore(state, io.BytesIO(data), DEVICE, RESTORED_AT, open_keys=open_sealed)
    store = Store(state / "store", *load_identity(state / "keys", {}).storage_keys)
    assert store.load_active()[0] == MODELS[1]
    journal = Journal.open(state / "journal.sqlite", RESTORED_AT).journal
    try:
        assert journal.judge(AT_BACKUP, "digest") is Verdict.REPEAT
        assert journal.judge(BETWEEN, "digest") is Verdict.REPLAY, "it may have been obeyed after the back-up"
        assert journal.judge(LATER, "digest") is Verdict.NEW
        states = {record.id: record.standing.state for record in journal.jobs()}
        assert states == {"job-1": State.CANCELED, "job-2": State.CANCELED}
        assert done.canceled == 1
        assert journal.recall("models-asked") == "", "an order that was not carried out is left behind"
        assert journal.recall("alarms") == "{}"
        assert journal.next_session() > max(before, RESTORED_AT)
    finally:
        journal.close()
    assert not (state / "restoring").exists()
    assert done.aside == ""
    assert {path.stat().st_mode & 0o077 for path in state.rglob("*") if path.is_file() and path.name != "lock"} == {0}


def test_keys_are_never_in_plain_and_open_with_their_passphrase_and_their_manifest_alone(board: Path) -> None:
    secrets = [text for text in _texts(json.loads((board / "keys" / "identity.json").read_bytes())) if len(text) == 64]
    assert len(secrets) == 3
    out = io.BytesIO()
    make_backup(board, out, DEVICE, NOW, lambda identity, bound: seal_keys(identity, PASSPHRASE, bound, os.urandom))
    sealed = out.getvalue()
    for data in (backed_up(board), sealed):
        assert not [text for text in secrets if text.encode() in data or bytes.fromhex(text) in data]
    manifest = _manifest(sealed)
    assert manifest.keys
    keys, bound = manifest.keys, replace(manifest, keys=None).bound()
    for passphrase, with_what in ((PASSPHRASE + "!", bound), (PASSPHRASE, bound + b" ")):
        with pytest.raises(ArtifactError) as refused:
            open_keys(keys, passphrase, with_what)
        assert refused.value.code == "passphrase-wrong"
    with pytest.raises(SpecError):
        seal_keys(b"", "short", b"", os.urandom)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _manifest(data: bytes) -> Manifest:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:  # any tar reads it
        contents = archive.extractfile(CONTENTS)
        assert contents
        found = build(Manifest, json.loads(contents.read())["manifest"])
        assert sorted(archive.getnames()) == sorted([*found.files, CONTENTS])
        return found


@settings(max_examples=25)
@given(cut=st.floats(0.0, 1.0, exclude_max=True, allow_subnormal=False))
def test_a_back_up_that_was_cut_off_is_refused_and_nothing_is_left(
    tmp_path_factory: pytest.TempPathFactory, plain: bytes, cut: float
) -> None:
    state = tmp_path_factory.mktemp("cut")
    with pytest.raises(ArtifactError) as refused:
        put_back(state, plain[: int(cut * (len(plain) - 2 * 512 - 511))])
    assert refused.value.code == "backup-broken"
    assert files(state) == {}


@settings(max_examples=15)
@given(place=st.floats(0.0, 1.0, exclude_max=True, allow_subnormal=False), bit=st.integers(0, 7))
def test_a_bit_that_flipped_is_refused_or_was_padding(
    tmp_path_factory: pytest.TempPathFactory, board: Path, plain: bytes, place: float, bit: int
) -> None:
    data = bytearray(plain)
    data[int(place * len(data))] ^= 1 << bit
    flipped = tmp_path_factory.mktemp("flipped")
    try:
        put_back(flipped, bytes(data))
    except ArtifactError:
        assert files(flipped) == {}
    else:
        found = {name: held for name, held in files(flipped).items() if "sqlite" not in name}
        assert found == {name: held for name, held in files(board).items() if name.startswith(("store", "board.json"))}


@pytest.mark.parametrize("name", ["../journal.sqlite", "/etc/passwd", "keys/identity.json", "store/../../x", "lock"])
def test_a_name_that_belongs_to_no_state_is_refused(tmp_path: Path, name: str) -> None:
    out = io.BytesIO()
    write_file(out, name, io.BytesIO(b"x"), 1)
    with pytest.raises(ArtifactError):
        put_back(tmp_path / "state", out.getvalue())
    assert files(tmp_path) == {}


def test_links_and_long_files_are_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    for kind, size in ((tarfile.SYMTYPE, 0), (tarfile.REGTYPE, 1 << 33)):
        entry = tarfile.TarInfo("board.json")
        entry.type, entry.size, entry.linkname = kind, size, "/etc/passwd"
        with pytest.raises(ArtifactError):
            put_back(tmp_path / "state", entry.tobuf(tarfile.GNU_FORMAT))
    assert files(tmp_path) == {}


def test_another_boards_and_a_newer_one_are_refused(tmp_path: Path, plain: bytes) -> None:
    with pytest.raises(ArtifactError) as refused:
        restore(tmp_path / "state", io.BytesIO(plain), "board-2", RESTORED_AT)
    assert refused.value.code == "backup-foreign"
    newer = io.BytesIO()
    manifest = Manifest(DEVICE, NOW, "9", 2, "", {})
    object.__setattr__(manifest, "format", FORMAT.replace("1", "2"))
    write_contents(newer, manifest)
    with pytest.raises(ArtifactError) as refused:
        put_back(tmp_path / "state", newer.getvalue())
    assert refused.value.code == "backup-newer"
    assert files(tmp_path) == {}


def test_a_back_up_of_the_future_is_refused_for_it_would_make_a_board_deaf(tmp_path: Path, board: Path) -> None:
    out = io.BytesIO()
    make_backup(board, out, DEVICE, 9e10)
    with pytest.raises(BoardError) as refused:
        put_back(tmp_path / "state", out.getvalue())
    assert refused.value.code == "clock-wrong"
    assert files(tmp_path) == {}


def test_a_journal_that_brings_a_program_is_refused(tmp_path: Path, board: Path) -> None:
    forged = tmp_path / "forged"
    shutil.copytree(board, forged)
    with contextlib.closing(sqlite3.connect(forged / "journal.sqlite")) as database:
        forget = "CREATE TRIGGER forget AFTER INSERT ON ledger BEGIN DELETE FROM ledger WHERE id = new.id; END"
        database.execute(forget)
    with pytest.raises(ArtifactError) as refused:
        put_back(tmp_path / "state", backed_up(forged))
    assert refused.value.code == "backup-broken"
    assert files(tmp_path / "state") == {}


def test_a_mark_that_would_end_each_start_is_left_behind(tmp_path: Path, board: Path) -> None:
    forged, state = tmp_path / "forged", tmp_path / "state"
    shutil.copytree(board, forged)
    with contextlib.closing(sqlite3.connect(forged / "journal.sqlite")) as database:
        database.execute("INSERT OR REPLACE INTO marks VALUES ('scrub', ?), ('answers', '{}')", ("[" * 5000,))
        database.commit()
    put_back(state, backed_up(forged))
    with contextlib.closing(Journal.open(state / "journal.sqlite", RESTORED_AT).journal) as journal:
        assert (journal.recall("scrub"), journal.recall("answers")) == ("", "{}")


def test_a_state_is_not_overwritten_and_a_daemon_not_disturbed(tmp_path: Path, plain: bytes) -> None:
    state = tmp_path / "state"
    put_back(state, plain)
    before = files(state)
    with pytest.raises(SpecError) as refused:
        put_back(state, plain)
    assert refused.value.code == "state-exists"
    with state_lock(state, ""), pytest.raises(BoardError):
        put_back(state, plain, replace=True)
    with pytest.raises(BoardError):
        restore(state, io.BytesIO(plain), DEVICE, 0.0, replace=True)
    assert files(state) == before
    put_back(state, plain, replace=True)
    aside = {name for name in files(state) if name.startswith("before-restore-1/")}
    assert {f"before-restore-1/{name}" for name in before if "/" not in name} <= aside


def test_killed_at_every_step_the_old_state_is_there_or_the_new_one(tmp_path: Path, plain: bytes) -> None:
    prepared = tmp_path / "prepared"
    set_up(prepared / "state", b"another model")
    (prepared / "board.backup").write_bytes(plain)
    old = Store(prepared / "state" / "store", *load_identity(prepared / "state" / "keys", {}).storage_keys)
    kept = {name: held for name, held in files(prepared / "state").items() if not name.startswith("journal")}
    assert old.load_active()[0] == b"another model"
    seen = set()

    def flow(folder: Path) -> None:
        put_back(folder / "state", (folder / "board.backup").read_bytes(), replace=True)

    def check(folder: Path) -> None:
        state = folder / "state"
        done = finish(state)
        finish(state)
        found = files(state)
        there = {name: found.get(name) for name in kept}
        aside = {name: found.get(f"before-restore-1/{name}", found.get(name)) for name in kept}
        seen.add(there == kept)
        assert there == kept if not found.keys() & {"before-restore-1/journal.sqlite"} else aside == kept
        assert done or (state / "journal.sqlite").exists()
        Journal.open(state / "journal.sqlite", RESTORED_AT).journal.close()
        assert not (state / "restoring").exists()

    steps = run_to(_copy(prepared, tmp_path / "all"), flow, MAX_STEPS).steps
    decided = next(number for number, step in enumerate(steps) if step.path.endswith("decided.json"))
    for number in (1, decided // 2, *range(decided - 2, len(steps) + 1)):  # what is before the decision is all alike
        copy = _copy(prepared, tmp_path / str(number))
        assert run_to(copy, flow, number).code == KILLED
        check(copy)
    assert seen == {True, False}


def _copy(prepared: Path, copy: Path) -> Path:
    shutil.copytree(prepared, copy)
    return copy


def test_the_verbs_make_and_take_a_file_that_only_its_owner_reads(
    board: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f'[device]\nname = "{DEVICE}"\nstate_dir = "%s"\n[repository]\nurl = "http://localhost/"\n'
    (tmp_path / "old.toml").write_text(text % board)
    (tmp_path / "new.toml").write_text(text % (tmp_path / "state"))
    (tmp_path / "words").write_text(f"{PASSPHRASE}\n")
    (tmp_path / "words").chmod(0o600)
    out, words = str(tmp_path / "b"), ["--with-keys", "--passphrase-file", str(tmp_path / "words"), "--json"]
    make = ["backup", "--out", out, "--config", str(tmp_path / "old.toml"), *words]
    assert main(make) == 0
    assert json.loads(capsys.readouterr().out)["keys"] == "encrypted"
    assert Path(out).stat().st_mode & 0o777 == 0o600
    assert main(make) == 2, "it is not overwritten"
    capsys.readouterr()
    assert main(["restore", out, "--config", str(tmp_path / "new.toml"), *words]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [], "the same machine"
    assert load_identity(tmp_path / "state" / "keys", {}).device == DEVICE


def test_nothing_to_back_up_and_no_identity_are_said(tmp_path: Path) -> None:
    with pytest.raises(BoardError):
        backed_up(tmp_path)
    Journal.open(tmp_path / "journal.sqlite", NOW).journal.close()
    with pytest.raises(TemperdError) as refused:
        backed_up(tmp_path, with_keys=True)
    assert refused.value.code == "key-missing"
