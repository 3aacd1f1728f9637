"""Google's Tink reads what agent.sealed writes, and the other way round: the other implementation of the format."""

from __future__ import annotations

import base64
import hashlib
import importlib
import io
import json
import random
from typing import Any

import pytest

from agent.errors import SealedFileError
from agent.sealed import FIRST_PLAINTEXT_BYTES as FIRST
from agent.sealed import NEXT_PLAINTEXT_BYTES as NEXT
from agent.sealed import Binding, seal, unseal

tink = pytest.importorskip("tink", reason="Tink has no wheel for this machine")
streaming_aead = importlib.import_module("tink.streaming_aead")
secret_key_access = importlib.import_module("tink.secret_key_access")

KEY = bytes(range(32))
SIZES = [0, 1, FIRST - 1, FIRST, FIRST + 1, FIRST + NEXT - 1, FIRST + NEXT, FIRST + NEXT + 1, 5_000_003]


def varint(field: int, value: int) -> bytes:
    """A protobuf number."""
    coded = bytearray([field << 3])
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(coded) + bytes([value])


def block(field: int, data: bytes) -> bytes:
    """A protobuf field of bytes, shorter than 128."""
    return bytes([field << 3 | 2, len(data)]) + data


def primitive(key: bytes) -> Any:
    """Tink's streaming AEAD with the parameters of the key type AES256-GCM-HKDF-1MB and this raw key."""
    sha256 = 3
    parameters = varint(1, 1 << 20) + varint(2, 32) + varint(3, sha256)
    keyset = {
        "primaryKeyId": 1,
        "key": [
            {
                "keyData": {
                    "typeUrl": "type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey",
                    "value": base64.b64encode(block(2, parameters) + block(3, key)).decode(),
                    "keyMaterialType": "SYMMETRIC",
                },
                "status": "ENABLED",
                "keyId": 1,
                "outputPrefixType": "RAW",
            }
        ],
    }
    streaming_aead.register()
    handle = tink.json_proto_keyset_format.parse(json.dumps(keyset), secret_key_access.TOKEN)
    return handle.primitive(streaming_aead.StreamingAead)


class Kept(io.BytesIO):
    """Tink closes what it writes to: keep the bytes."""

    kept = b""

    def close(self) -> None:
        self.kept = self.getvalue()
        super().close()


def bind(data: bytes) -> Binding:
    return Binding("wet-läbel", "1.2", hashlib.sha256(data).hexdigest())


def by_tink(data: bytes, associated_data: bytes) -> bytes:
    target = Kept()
    with primitive(KEY).new_encrypting_stream(target, associated_data) as stream:
        stream.write(data)
    return target.kept


def by_us(data: bytes) -> bytes:
    target = io.BytesIO()
    seal(io.BytesIO(data), target, KEY, bind(data))
    return target.getvalue()


@pytest.mark.parametrize("size", SIZES)
def test_tink_opens_what_we_seal(size: int) -> None:
    data = random.Random(size).randbytes(size)
    with primitive(KEY).new_decrypting_stream(io.BytesIO(by_us(data)), bind(data).associated_data()) as stream:
        assert stream.read() == data


@pytest.mark.parametrize("size", SIZES)
def test_we_open_what_tink_seals(size: int) -> None:
    data = random.Random(size).randbytes(size)
    body = by_tink(data, bind(data).associated_data())
    assert len(body) == len(by_us(data))
    assert unseal(io.BytesIO(body), KEY, bind(data), size) == data


def test_both_refuse_another_binding_and_another_key() -> None:
    data = b"bound to one name"
    other = Binding("other", "1.2", bind(data).plaintext_sha256).associated_data()
    for key, associated_data in ((KEY, other), (bytes(32), bind(data).associated_data())):
        stream = primitive(key).new_decrypting_stream(io.BytesIO(by_us(data)), associated_data)
        with pytest.raises(tink.TinkError):
            stream.read()
    with pytest.raises(SealedFileError) as caught:
        unseal(io.BytesIO(by_tink(data, other)), KEY, bind(data), 100)
    assert caught.value.code == "sealed-tag"
    with pytest.raises(SealedFileError) as caught:
        unseal(io.BytesIO(by_tink(data, bind(data).associated_data())), bytes(32), bind(data), 100)
    assert caught.value.code == "sealed-tag"


@pytest.mark.parametrize("cut", [1, 16, 17, 1 << 20])
def test_both_refuse_a_file_that_ends_too_early(cut: int) -> None:
    data = random.Random(cut).randbytes(FIRST + NEXT)
    short = by_us(data)[:-cut]
    stream = primitive(KEY).new_decrypting_stream(io.BytesIO(short), bind(data).associated_data())
    with pytest.raises(tink.TinkError):
        stream.read()
    with pytest.raises(SealedFileError):
        unseal(io.BytesIO(short), KEY, bind(data), len(data))
