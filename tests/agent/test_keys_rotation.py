"""Where an identity is found, and two sets of keys that are live at once."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from agent.errors import ArtifactError, BoardError, GrantError, SpecError
from agent.keys_grants import make_grant, open_grant
from agent.keys_identity import as_identity, create_identity, load_identity, new_identity, rotated, without_previous
from agent.keys_stored import (
    CREDENTIAL,
    CREDENTIALS_DIRECTORY,
    IDENTITY_FILE,
    StoredIdentity,
    find_identity,
    write_credential,
    write_identity,
)

TARGET = "ab" * 32
DATA_KEY = bytes(range(32))
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def credentials(tmp_path: Path) -> Path:
    """A folder as systemd makes it, with an identity inside."""
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    write_credential(folder / CREDENTIAL, new_identity("press-07"))
    (folder / CREDENTIAL).chmod(0o400)
    return folder


def test_the_credential_comes_before_the_file(tmp_path: Path, credentials: Path) -> None:
    on_card = create_identity(tmp_path / "keys", "press-07")
    environ = {CREDENTIALS_DIRECTORY: str(credentials)}
    found = find_identity(tmp_path / "keys", environ)
    assert (found.origin, found.path) == ("credential", credentials / CREDENTIAL)
    assert load_identity(tmp_path / "keys", environ).public != on_card.public
    (credentials / CREDENTIAL).unlink()
    assert find_identity(tmp_path / "keys", environ).origin == "file"
    assert load_identity(tmp_path / "keys", environ).public == on_card.public
    assert load_identity(tmp_path / "keys", {}).public == on_card.public


@pytest.mark.parametrize("given", [True, False])
def test_both_places_are_named_when_there_is_none(tmp_path: Path, *, given: bool) -> None:
    environ = {CREDENTIALS_DIRECTORY: str(tmp_path / "credentials")} if given else {}
    with pytest.raises(BoardError, match="temperd keys init") as caught:
        find_identity(tmp_path / "keys", environ)
    assert caught.value.code == "key-missing"
    assert str(tmp_path / "keys" / IDENTITY_FILE) in caught.value.where
    assert CREDENTIAL in caught.value.where
    assert (str(tmp_path / "credentials") if given else CREDENTIALS_DIRECTORY) in caught.value.where


@pytest.mark.parametrize("mode", [0o404, 0o402, 0o420, 0o444, 0o640 | 0o007])
def test_an_open_credential_is_refused_and_the_file_does_not_stand_in(
    tmp_path: Path, credentials: Path, mode: int
) -> None:
    create_identity(tmp_path / "keys", "press-07")
    (credentials / CREDENTIAL).chmod(mode)
    with pytest.raises(BoardError) as caught:
        find_identity(tmp_path / "keys", {CREDENTIALS_DIRECTORY: str(credentials)})
    assert caught.value.code == "key-permissions"


@as_root
def test_root_s_group_may_read_a_credential_as_the_mask_of_an_access_list(tmp_path: Path, credentials: Path) -> None:
    path = credentials / CREDENTIAL
    environ = {CREDENTIALS_DIRECTORY: str(credentials)}
    path.chmod(0o440)
    assert find_identity(tmp_path, environ).origin == "credential"
    os.chown(path, 0, NOBODY)
    with pytest.raises(BoardError) as caught:
        find_identity(tmp_path, environ)
    assert caught.value.code == "key-permissions"
    os.chown(path, NOBODY, 0)
    with pytest.raises(BoardError, match="another user"):
        find_identity(tmp_path, environ)


def test_a_broken_credential_is_refused_without_a_word_of_it(tmp_path: Path, credentials: Path) -> None:
    create_identity(tmp_path / "keys", "press-07")
    path = credentials / CREDENTIAL
    path.chmod(0o600)
    good = path.read_text()
    secret = json.loads(good)["keys"][0]["storage"]
    for broken in (
        "",
        "[]",
        "{}",
        good[:-9],
        good.replace(secret, secret[:-1]),
        good.replace(secret, "zz" * 32),
        good.replace("temperd-identity-2", "temperd-identity-3"),
        good.replace('"storage"', '"stores"'),
        json.dumps({**json.loads(good), "keys": []}),
        json.dumps({**json.loads(good), "keys": json.loads(good)["keys"] * 3}),
        json.dumps({**json.loads(good), "device": "../up"}),
        good + " " * 5000,
    ):
        path.write_text(broken)
        with pytest.raises(ArtifactError) as caught:
            find_identity(tmp_path / "keys", {CREDENTIALS_DIRECTORY: str(credentials)})
        assert secret[:8] not in f"{caught.value}{caught.value.__cause__!r}"
    path.write_text(good)
    assert find_identity(tmp_path / "keys", {CREDENTIALS_DIRECTORY: str(credentials)}).stored.device == "press-07"


def test_the_first_format_is_read(tmp_path: Path) -> None:
    now = create_identity(tmp_path / "keys", "press-07")
    path = tmp_path / "keys" / IDENTITY_FILE
    flat = json.loads(path.read_text())
    path.write_text(json.dumps({"device": flat["device"], **flat["keys"][0]}))
    assert load_identity(path.parent, {}).public == now.public
    write_identity(path.parent, rotated(find_identity(path.parent, {}).stored))
    again = load_identity(path.parent, {})
    assert again.documents[1] == now.public
    assert again.storage_keys[1] == now.storage_key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_grants_for_the_previous_keys_open_until_they_are_retired() -> None:
    first = new_identity("press-07")
    both = rotated(first)
    old_grant = make_grant(as_identity(first).public, DATA_KEY, TARGET)
    new_grant = make_grant(as_identity(both).public, DATA_KEY, TARGET)
    assert open_grant(as_identity(both), old_grant, TARGET) == DATA_KEY
    assert open_grant(as_identity(both), new_grant, TARGET) == DATA_KEY
    alone = as_identity(without_previous(both))
    assert open_grant(alone, new_grant, TARGET) == DATA_KEY
    for identity, grant in ((alone, old_grant), (as_identity(first), new_grant)):
        with pytest.raises(GrantError) as caught:
            open_grant(identity, grant, TARGET)
        assert caught.value.code == "grant-broken"


def test_a_rotation_makes_everything_anew_and_is_finished_before_the_next() -> None:
    first = new_identity("press-07")
    both = rotated(first)
    fresh, before = both.keys
    assert before == first.keys[0]
    assert len({fresh.ed25519, fresh.storage, fresh.x25519} & {before.ed25519, before.storage, before.x25519}) == 0
    with pytest.raises(SpecError) as caught:
        rotated(both)
    assert caught.value.code == "rotation-open"
    with pytest.raises(SpecError) as caught:
        without_previous(first)
    assert caught.value.code == "no-rotation"
    assert without_previous(both) == StoredIdentity("press-07", (fresh,))


def test_the_storage_key_s_name_is_no_bare_hash_and_tells_keys_apart() -> None:
    import hashlib  # noqa: PLC0415 - this test alone

    current, previous = as_identity(rotated(new_identity("press-07"))).live
    assert current.storage_key_id != previous.storage_key_id
    assert current.storage_key_id != hashlib.sha256(current.storage).hexdigest()
    assert current.storage.hex() not in current.storage_key_id


def test_no_repr_shows_a_key() -> None:
    stored = rotated(new_identity("press-07"))
    identity = as_identity(stored)
    shown = "".join(map(repr, (stored, *stored.keys, identity, *identity.live)))
    for keys in stored.keys:
        for secret in (keys.ed25519, keys.storage, keys.x25519):
            assert secret not in shown
            assert repr(bytes.fromhex(secret))[2:-1] not in shown


def test_a_writer_killed_before_leaves_no_copy_of_keys(tmp_path: Path) -> None:
    create_identity(tmp_path / "keys", "press-07")
    leftover = tmp_path / "keys" / ".identity.json.x.partial"
    leftover.write_bytes(b"half of a secret")
    write_identity(tmp_path / "keys", rotated(find_identity(tmp_path / "keys", {}).stored))
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == [IDENTITY_FILE]


def test_a_credential_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    write_credential(path, new_identity("press-07"))
    before = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(SpecError) as caught:
        write_credential(path, new_identity("press-07"))
    assert caught.value.code == "key-exists"
    assert path.read_bytes() == before
    with pytest.raises(SpecError, match="folder"):
        write_credential(tmp_path / "none" / "blob", new_identity("press-07"))
