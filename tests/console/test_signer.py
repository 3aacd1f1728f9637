"""The console key: plain, protected, locked, unlocked; its page."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.errors import ArtifactError, BoardError, SpecError
from agent.keys_consoles import create_console_key, load_console_key, load_trusted_consoles
from service.backup_keys import LEAST_PASSPHRASE
from service.commands import MAX_ENVELOPE_BYTES, open_command
from service.console.audit import Wanted
from service.console.guard_limits import OF_UNLOCKING
from service.console.room import Room
from service.console.sealed_key import protect_key
from service.console.signer import Signer
from tests.console.conftest import Client, log_in, visit

PASSPHRASE = "correct horse battery staple"
NOW = 1_796_118_000.5


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key and the same one protected: making one takes half a second."""
    folder = tmp_path_factory.mktemp("protected")
    create_console_key(folder, "alice")
    protect_key(folder / "alice.key", PASSPHRASE, os.urandom)
    return folder


@pytest.fixture
def sealed(console_key: Path, protected: Path) -> Path:
    for name in ("alice.key", "alice.pub.json", "alice.key.sealed"):
        shutil.copy(protected / name, console_key.parent)
    return console_key.with_name("alice.key.sealed")


def test_a_board_opens_what_is_signed(console_key: Path) -> None:
    signer = Signer(console_key)
    assert (signer.ready, signer.locked, signer.protected) == (True, False, False)
    request, envelope = signer.request("pi-1", "qualify", {"minutes": 5}, {"active_model": ""}, NOW, 600)
    console_key.parent.chmod(0o755)
    trusted = load_trusted_consoles(console_key.parent)
    assert set(trusted) == {signer.keyid}
    where = {"topic_type": "qualify", "topic_id": request.id, "device": "pi-1"}
    command = open_command(envelope, trusted=trusted, now=NOW, clock_synchronised=True, **where)
    assert (command.minutes, command.not_after - command.issued_at) == (5, 600)
    assert signer.sign(request) == envelope, "the same request gives the same bytes"


def test_without_a_key_nothing_is_signed() -> None:
    signer = Signer(None)
    assert (signer.ready, signer.locked, signer.keyid) == (False, False, "")
    with pytest.raises(SpecError) as told:
        signer.request("pi-1", "scrub", {}, {}, NOW, 60)
    assert told.value.code == "no-key"
    with pytest.raises(SpecError):
        signer.unlock(PASSPHRASE)


def test_a_protected_key_is_locked_until_its_passphrase_comes(console_key: Path, sealed: Path) -> None:
    assert sealed.name == "alice.key.sealed"
    assert sealed.stat().st_mode & 0o777 == 0o600
    plain = console_key.read_text().strip()
    assert plain not in sealed.read_text()
    signer = Signer(sealed)
    assert (signer.ready, signer.locked, signer.protected) == (False, True, True)
    assert signer.keyid == Signer(console_key).keyid
    with pytest.raises(SpecError) as refused:
        signer.request("pi-1", "scrub", {}, {}, NOW, 60)
    assert refused.value.code == "key-locked"
    with pytest.raises(ArtifactError) as told:
        signer.unlock(PASSPHRASE + "x")
    assert told.value.code == "passphrase-wrong"
    assert PASSPHRASE not in str(told.value)
    assert signer.locked
    signer.unlock(PASSPHRASE)
    request, envelope = signer.request("pi-1", "scrub", {}, {}, NOW, 60)
    assert envelope == Signer(console_key).sign(request)
    signer.lock()
    assert signer.locked


def test_who_unlocks_at_once_takes_turns(sealed: Path, console_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, most, met = [0], [0], threading.Event()

    def open_slowly(_key: object, _passphrase: str) -> object:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        met.wait(0.05)  # long enough for the others to come in, if they could
        at_work[0] -= 1
        return load_console_key(console_key)

    monkeypatch.setattr("service.console.signer.open_sealed_key", open_slowly)
    signer = Signer(sealed)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(signer.unlock, [PASSPHRASE] * 4))
    assert most == [1]


@pytest.mark.parametrize("field", ["salt", "nonce", "sealed", "ed25519", "keyid", "format"])
def test_a_changed_file_does_not_open(sealed: Path, field: str) -> None:
    table = json.loads(sealed.read_text())
    table[field] = ("0" if table[field][0] != "0" else "1") + table[field][1:]
    sealed.write_text(json.dumps(table))
    with pytest.raises(ArtifactError):
        Signer(sealed).unlock(PASSPHRASE)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "x" * 5000, '{"ed25519": 1}'])
def test_a_broken_file_is_no_key(sealed: Path, text: str) -> None:
    sealed.write_text(text)
    with pytest.raises(ArtifactError):
        Signer(sealed)


def test_a_key_that_others_may_read_is_refused(console_key: Path, sealed: Path) -> None:
    for path in (console_key, sealed):
        path.chmod(0o644)
        with pytest.raises(BoardError) as told:
            Signer(path)
        assert told.value.code == "key-permissions"
        path.unlink()
        with pytest.raises(BoardError) as told:
            Signer(path)
        assert told.value.code == "key-missing"


@pytest.mark.parametrize("name", ["alice.key", "alice.key.sealed"])
def test_a_key_as_a_credential_of_systemd_has_any_name(tmp_path: Path, protected: Path, name: str) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    credential = folder / "console-key"
    shutil.copy(protected / name, credential)
    credential.chmod(0o440)  # root's own, with the service's user in an access list
    signer = Signer(credential, {"CREDENTIALS_DIRECTORY": str(folder)})
    assert signer.locked == name.endswith("sealed")
    assert signer.keyid == Signer(protected / "alice.key").keyid
    for environ in ({}, {"CREDENTIALS_DIRECTORY": str(tmp_path)}):
        with pytest.raises(SpecError):
            Signer(credential, environ)
    credential.chmod(0o444)
    with pytest.raises(BoardError):
        Signer(credential, {"CREDENTIALS_DIRECTORY": str(folder)})


def test_protecting_refuses_what_it_should(console_key: Path, sealed: Path) -> None:
    with pytest.raises(SpecError, match="protected already"):
        protect_key(console_key, PASSPHRASE, os.urandom)
    sealed.unlink()
    with pytest.raises(SpecError, match="characters"):
        protect_key(console_key, "x" * (LEAST_PASSPHRASE - 1), os.urandom)
    with pytest.raises(SpecError):
        protect_key(console_key.with_suffix(".pem"), PASSPHRASE, os.urandom)
    assert not sealed.exists()
    assert load_console_key(console_key)


def test_a_command_longer_than_boards_read_is_refused(console_key: Path) -> None:
    with pytest.raises(SpecError) as told:
        Signer(console_key).request("pi-1", "set-policy", {"text": "x" * MAX_ENVELOPE_BYTES}, {}, NOW, 60)
    assert told.value.code == "too-large"


# --- its page --------------------------------------------------------------------------------------------------------


def test_the_key_is_unlocked_and_locked_on_its_page(make_room: Callable[..., Room], sealed: Path) -> None:
    room = make_room(key=str(sealed))
    client = log_in(visit(room), "operator")
    page = client.show("/key")
    assert 'name="passphrase"' in page
    assert room.signer.keyid[:4] in page
    wrong = client.submit("/key/unlock", passphrase="too short")
    assert wrong.status_code == 422
    assert room.signer.locked
    assert client.submit("/key/unlock", passphrase=PASSPHRASE).status_code == 303
    assert room.signer.ready
    assert "/key/lock" in client.show("/key")
    assert client.submit("/key/lock").status_code == 303
    assert room.signer.locked
    told = [record.action for record in room.audit.page(Wanted()) if record.action.startswith("key")]
    assert told == ["key-locked", "key-unlocked", "key-refused"]
    assert all("passphrase" not in str(record.details) for record in room.audit.everything())


def test_passphrases_are_not_guessed(make_room: Callable[..., Room], sealed: Path) -> None:
    client = log_in(visit(make_room(key=str(sealed))), "owner")
    codes = [client.submit("/key/unlock", passphrase="wrong").status_code for _ in range(int(OF_UNLOCKING.burst) + 2)]
    assert codes == [422] * int(OF_UNLOCKING.burst) + [429] * 2


def test_a_console_without_a_key_says_how_to_make_one(make_room: Callable[..., Room]) -> None:
    client = log_in(visit(make_room(key="")), "operator")
    assert "temperd keys console" in client.show("/key")
    assert client.submit("/key/unlock", passphrase="x").status_code == 422


def test_a_plain_key_can_not_be_locked(operator: Client, room: Room) -> None:
    assert "/key/lock" not in operator.show("/key")
    operator.submit("/key/lock")
    assert room.signer.ready
