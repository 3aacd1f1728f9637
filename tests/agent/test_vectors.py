"""The vectors of tests/vectors: what any reader of sealed files and grants must say to each."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.errors import GrantError, SealedFileError
from agent.keys import DeviceIdentity, open_grant
from agent.keys_identity import DeviceKeys
from agent.sealed import Binding, unseal
from agent.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "vectors"))
import make

VECTORS = Path(make.__file__).parent

SEALED = json.loads((VECTORS / "sealed.json").read_bytes())
LONG = json.loads((VECTORS / "sealed-long.json").read_bytes())
GRANTS = json.loads((VECTORS / "grants.json").read_bytes())


def names(vectors: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("vector", vectors, ids=[vector["name"] for vector in vectors])


def verdict(file: bytes, key: str, binding: Binding, max_bytes: int) -> str:
    try:
        data = unseal(io.BytesIO(file), bytes.fromhex(key), binding, max_bytes)
    except SealedFileError as error:
        return error.code
    assert hashlib.sha256(data).hexdigest() == binding.plaintext_sha256
    return "ok"


@names(SEALED)
def test_a_sealed_file(vector: dict[str, Any]) -> None:
    file, binding = bytes.fromhex(vector["file"]), Binding(**vector["binding"])
    assert verdict(file, vector["key"], binding, vector["max_bytes"]) == vector["expect"]


@names(LONG["vectors"])
def test_a_sealed_file_of_several_segments(vector: dict[str, Any]) -> None:
    length = vector["plaintext_zeros"]
    whole = make.long_file(length)
    assert hashlib.sha256(whole).hexdigest() == LONG["whole_sha256"][str(length)]
    pieces = [bytes.fromhex(piece) if isinstance(piece, str) else whole[slice(*piece)] for piece in vector["pieces"]]
    binding = Binding(LONG["name"], LONG["version"], hashlib.sha256(bytes(length)).hexdigest())
    assert verdict(b"".join(pieces), LONG["key"], binding, 1 << 24) == vector["expect"]


@names(GRANTS["vectors"])
def test_a_grant(vector: dict[str, Any]) -> None:
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(GRANTS["x25519_private"]))
    keys = DeviceKeys(private, Ed25519PrivateKey.generate(), bytes(32))
    board = DeviceIdentity(GRANTS["device"], (keys,))
    said = vector["grant"].encode()
    if vector["expect"] == "ok":
        assert open_grant(board, said, GRANTS["target_sha256"]).hex() == GRANTS["data_key"]
        return
    with pytest.raises(GrantError) as caught:
        open_grant(board, said, GRANTS["target_sha256"])
    assert caught.value.code == vector["expect"]


@pytest.mark.parametrize("name", ["sealed.json", "sealed-long.json", "grants.json"])
def test_the_files_are_what_their_maker_makes(name: str) -> None:
    assert make.files()[name] == (VECTORS / name).read_bytes()


@names([vector for vector in SEALED if vector["expect"] != "ok"])
def test_the_slot_before_stays_after_each_fault(vector: dict[str, Any], tmp_path: Path) -> None:
    store = Store(tmp_path, bytes(32))
    store.activate(store.stage(b"the model before", {}))
    store.mark_good()
    slot = store.stage(b"the next one", {})
    (tmp_path / "slots" / slot / "model.sealed").write_bytes(bytes.fromhex(vector["file"]))
    before = (tmp_path / "slots" / "status.json").read_bytes()
    with pytest.raises(SealedFileError):
        store.activate(slot)
    assert (tmp_path / "slots" / "status.json").read_bytes() == before
    assert Store(tmp_path, bytes(32)).load_active() == (b"the model before", {})
