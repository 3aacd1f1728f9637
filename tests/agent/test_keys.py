from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.ed25519 import is_signed
from agent.errors import ArtifactError, BoardError, GrantError, SpecError
from agent.keys import (
    MAX_CONSOLES,
    DeviceIdentity,
    create_console_key,
    create_identity,
    keyid,
    load_console_key,
    load_identity,
    load_trusted_consoles,
    make_grant,
    open_grant,
    parse_public_document,
)

TARGET = "ab" * 32
DATA_KEY = bytes(range(32))


@pytest.fixture
def identity(tmp_path: Path) -> DeviceIdentity:
    return create_identity(tmp_path / "keys", "press-07")


def test_identity_is_made_once_and_read_back(tmp_path: Path, identity: DeviceIdentity) -> None:
    folder = tmp_path / "keys"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "identity.json").stat().st_mode) == 0o600
    again = load_identity(folder)
    assert (again.device, again.public, again.storage_key) == ("press-07", identity.public, identity.storage_key)
    with pytest.raises(SpecError) as caught:
        create_identity(folder, "press-07")
    assert caught.value.code == "key-exists"
    assert load_identity(folder).public == identity.public


def test_two_identities_share_nothing(tmp_path: Path, identity: DeviceIdentity) -> None:
    other = create_identity(tmp_path / "other", "press-07")
    assert other.storage_key != identity.storage_key
    assert other.public.x25519 != identity.public.x25519
    assert other.public.fingerprint != identity.public.fingerprint


def test_signature_is_of_the_public_key(identity: DeviceIdentity) -> None:
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(identity.public.ed25519))
    public.verify(identity.sign(b"report"), b"report")


def test_secrets_are_never_shown(tmp_path: Path, identity: DeviceIdentity) -> None:
    stored = json.loads((tmp_path / "keys" / "identity.json").read_text())["keys"][0]
    shown = repr(identity) + str(identity) + repr(identity.public) + json.dumps(identity.public.to_table())
    for key in ("x25519", "ed25519", "storage"):
        assert stored[key] not in shown
    assert repr(identity.storage_key) not in shown


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_file_others_can_reach_is_refused(tmp_path: Path, identity: DeviceIdentity, mode: int) -> None:
    path = tmp_path / "keys" / "identity.json"
    path.chmod(mode)
    with pytest.raises(BoardError, match=f"chmod 0600 {path}") as caught:
        load_identity(path.parent)
    assert caught.value.code == "key-permissions"
    path.chmod(0o600)
    assert load_identity(path.parent).public == identity.public


def test_an_open_folder_is_refused(tmp_path: Path, identity: DeviceIdentity) -> None:
    folder = tmp_path / "keys"
    folder.chmod(0o755)
    with pytest.raises(BoardError, match="chmod 0700") as caught:
        load_identity(folder)
    assert caught.value.code == "key-permissions"
    (folder / "identity.json").unlink()
    with pytest.raises(BoardError):
        create_identity(folder, identity.device)


def test_missing_linked_and_broken_key_files(tmp_path: Path, identity: DeviceIdentity) -> None:
    path = tmp_path / "keys" / "identity.json"
    good = path.read_text()
    for broken in ("", "[]", "{}", good.replace("storage", "stores"), good.replace(identity.storage_key.hex(), "00")):
        path.write_text(broken)
        with pytest.raises(ArtifactError) as refused:
            load_identity(path.parent)
        assert identity.storage_key.hex() not in str(refused.value)
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(BoardError) as caught:
        load_identity(path.parent)
    assert caught.value.code == "disk"
    path.unlink()
    with pytest.raises(BoardError, match="temperd keys init") as caught:
        load_identity(path.parent)
    assert caught.value.code == "key-missing"


@pytest.mark.parametrize("name", ["", "../up", "UPPER", "a" * 65, "a/b"])
def test_names_that_would_escape(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError):
        create_identity(tmp_path, name)
    with pytest.raises(SpecError):
        create_console_key(tmp_path, name)


def test_console_keys_and_the_trusted_folder(tmp_path: Path) -> None:
    public = create_console_key(tmp_path / "mine", "ops")
    key = load_console_key(tmp_path / "mine" / "ops.key")
    with pytest.raises(BoardError, match="temperd keys console NAME"):
        load_console_key(tmp_path / "mine" / "missing.key")
    assert stat.S_IMODE((tmp_path / "mine" / "ops.key").stat().st_mode) == 0o600
    trusted = tmp_path / "trusted"
    assert load_trusted_consoles(trusted) == {}
    trusted.mkdir(mode=0o755)
    (trusted / public.name).write_bytes(public.read_bytes())
    consoles = load_trusted_consoles(trusted)
    assert list(consoles) == [keyid(key.public_key())]
    assert is_signed(consoles[keyid(key.public_key())].key, key.sign(b"command"), b"command")
    with pytest.raises(SpecError):
        create_console_key(tmp_path / "mine", "ops")


def test_trusted_consoles_that_are_refused(tmp_path: Path) -> None:
    public = create_console_key(tmp_path / "mine", "ops")
    trusted = tmp_path / "trusted"
    trusted.mkdir(mode=0o755)
    path = trusted / "ops.json"
    table = json.loads(public.read_bytes())
    other = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
    for broken in ({**table, "ed25519": other}, {**table, "extra": 1}, {**table, "ed25519": "00"}, [1]):
        path.write_text(json.dumps(broken))
        path.chmod(0o644)
        with pytest.raises(ArtifactError):
            load_trusted_consoles(trusted)
    path.write_bytes(public.read_bytes())
    for writable, mode in ((path, 0o664), (trusted, 0o777)):
        before = stat.S_IMODE(writable.stat().st_mode)
        writable.chmod(mode)
        with pytest.raises(BoardError, match="others may write") as caught:
            load_trusted_consoles(trusted)
        assert caught.value.code == "key-permissions"
        writable.chmod(before)
    assert len(load_trusted_consoles(trusted)) == 1
    for number in range(MAX_CONSOLES):
        (trusted / f"{number}.json").write_bytes(b"{}")
    with pytest.raises(ArtifactError, match="at most 64"):
        load_trusted_consoles(trusted)


def test_grant_opens_on_its_board_only(tmp_path: Path, identity: DeviceIdentity) -> None:
    grant = make_grant(identity.public.to_table(), DATA_KEY, TARGET)
    assert open_grant(identity, grant, TARGET) == DATA_KEY
    assert DATA_KEY.hex().encode() not in grant
    for device, code in (("press-08", "grant-other-device"), ("press-07", "grant-broken")):
        other = create_identity(tmp_path / code, device)
        with pytest.raises(GrantError) as caught:
            open_grant(other, grant, TARGET)
        assert caught.value.code == code


def test_grant_of_another_file(identity: DeviceIdentity) -> None:
    grant = make_grant(identity.public, DATA_KEY, TARGET)
    with pytest.raises(GrantError) as caught:
        open_grant(identity, grant, "cd" * 32)
    assert caught.value.code == "grant-other-target"
    relabelled = grant.replace(TARGET.encode(), b"cd" * 32)
    with pytest.raises(GrantError) as caught:
        open_grant(identity, relabelled, "cd" * 32)
    assert caught.value.code == "grant-broken"


def test_grant_relabelled_for_another_device(tmp_path: Path, identity: DeviceIdentity) -> None:
    grant = make_grant(identity.public, DATA_KEY, TARGET).replace(b"press-07", b"press-08")
    thief = create_identity(tmp_path / "thief", "press-08")
    with pytest.raises(GrantError) as caught:
        open_grant(thief, grant, TARGET)
    assert caught.value.code == "grant-broken"


def test_every_changed_byte_of_the_wrapped_key_is_found(identity: DeviceIdentity) -> None:
    table = json.loads(make_grant(identity.public, DATA_KEY, TARGET))
    wrapped = bytes.fromhex(table["ciphertext"])
    for position in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[position] ^= 1
        grant = json.dumps({**table, "ciphertext": changed.hex()}).encode()
        with pytest.raises(GrantError) as caught:
            open_grant(identity, grant, TARGET)
        assert caught.value.code == "grant-broken"


@pytest.mark.parametrize(
    "grant", [b"", b"[]", b"{}", b'{"device":"a","device":"b"}', b"x" * 5000, b'{"suite":"none"}', b"\xff"]
)
def test_what_is_no_grant(identity: DeviceIdentity, grant: bytes) -> None:
    with pytest.raises(GrantError) as caught:
        open_grant(identity, grant, TARGET)
    assert caught.value.code == "grant-format"


def test_documents_that_cannot_be_granted_to(identity: DeviceIdentity) -> None:
    table = identity.public.to_table()
    assert parse_public_document(table) == identity.public
    for broken in ({**table, "x25519": "00" * 32}, {**table, "x25519": "zz"}, {**table, "device": "../up"}, {}):
        with pytest.raises(SpecError):
            make_grant(broken, DATA_KEY, TARGET)
    with pytest.raises(ValueError, match="32 bytes"):
        make_grant(table, b"short", TARGET)
