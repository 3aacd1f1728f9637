"""Makes the vectors beside it: `python tests/vectors/make.py`. The same bytes come out each time.

Written from docs/sealed-format.md and RFC 9180 over bare primitives, not with agent.sealed or agent.keys: what reads
them is held against a second writer.
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hmac
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

HERE = Path(__file__).parent
KEY, SALT, PREFIX = bytes(range(32)), bytes(range(100, 132)), bytes(range(200, 207))
C, HEADER, TAG = 1 << 20, 40, 16
SHORT = b"frozen layers stay cool"
LONG = C - HEADER - TAG + 2 * (C - TAG)  # three full segments
DEVICE, TARGET = "board-1", "ab" * 32


def compact(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def seal(plaintext: bytes, binding: dict[str, str], salt: bytes = SALT, bound: str = "") -> bytes:
    """A sealed file; `bound` is the hash promised, where it is not that of the plaintext."""
    sha256 = bound or hashlib.sha256(plaintext).hexdigest()
    associated = compact({"format": "temperd-sealed-1", **binding, "plaintext_sha256": sha256})
    cipher = AESGCM(HKDF(SHA256(), 32, salt, associated).derive(KEY))
    cuts = [0, *range(C - HEADER - TAG, len(plaintext), C - TAG), len(plaintext)]
    pieces = [plaintext[a:b] for a, b in pairwise(cuts)]
    file = bytes([HEADER]) + salt + PREFIX
    for number, piece in enumerate(pieces):
        nonce = PREFIX + number.to_bytes(4, "big") + bytes([number == len(pieces) - 1])
        file += cipher.encrypt(nonce, piece, None)
    return file


def long_file(length: int, salt: bytes = SALT) -> bytes:
    """The whole that the described vectors are cut from: zeros, sealed."""
    return seal(bytes(length), {"name": "long", "version": "2"}, salt)


def sealed_vectors() -> list[dict[str, Any]]:
    about = {"name": "tiny", "version": "1.2"}
    whole = seal(SHORT, about)
    sha256 = hashlib.sha256(SHORT).hexdigest()
    base = {"key": KEY.hex(), "binding": {**about, "plaintext_sha256": sha256}, "max_bytes": 1000}

    def one(name: str, expect: str, file: bytes, **changed: object) -> dict[str, Any]:
        return {"name": name, "expect": expect, "file": file.hex(), **base, **changed}

    def flip(at: int) -> bytes:
        file = bytearray(whole)
        file[at] ^= 1
        return bytes(file)

    def bound_to(**other: str) -> dict[str, str]:
        return {**about, "plaintext_sha256": sha256, **other}

    empty = hashlib.sha256(b"").hexdigest()
    promised = hashlib.sha256(b"promised").hexdigest()
    return [
        one("valid", "ok", whole),
        one("valid-empty", "ok", seal(b"", about), binding=bound_to(plaintext_sha256=empty)),
        one("no-bytes", "sealed-header", b""),
        one("header-short", "sealed-header", whole[: HEADER - 1]),
        one("header-length-byte", "sealed-header", flip(0)),
        one("header-only", "sealed-truncated", whole[:HEADER]),
        one("cut-inside-tag", "sealed-truncated", whole[: HEADER + TAG - 1]),
        one("cut-by-one", "sealed-tag", whole[:-1]),
        one("salt-bit", "sealed-tag", flip(1)),
        one("nonce-prefix-bit", "sealed-tag", flip(33)),
        one("ciphertext-bit", "sealed-tag", flip(HEADER)),
        one("tag-bit", "sealed-tag", flip(len(whole) - 1)),
        one("one-byte-more", "sealed-tag", whole + b"\0"),
        one("other-header", "sealed-tag", seal(SHORT, about, bytes(32))[:HEADER] + whole[HEADER:]),
        one("other-key", "sealed-tag", whole, key=bytes(32).hex()),
        one("other-name", "sealed-tag", whole, binding=bound_to(name="other")),
        one("other-version", "sealed-tag", whole, binding=bound_to(version="1.3")),
        one("other-hash", "sealed-tag", whole, binding=bound_to(plaintext_sha256="0" * 64)),
        one(
            "other-plaintext",
            "sealed-plaintext-hash",
            seal(SHORT, about, bound=promised),
            binding=bound_to(plaintext_sha256=promised),
        ),
        one("more-than-allowed", "sealed-too-long", whole, max_bytes=len(SHORT) - 1),
    ]


def long_vectors() -> list[dict[str, Any]]:
    """Files of megabytes, described: ranges of a whole that is made anew, and bytes put between them."""

    def one(name: str, expect: str, *pieces: list[int] | str, length: int = LONG) -> dict[str, Any]:
        return {"name": name, "expect": expect, "plaintext_zeros": length, "pieces": list(pieces)}

    first, second, third = [0, C], [C, 2 * C], [2 * C, 3 * C]
    return [
        one("valid", "ok", [0, 3 * C]),
        one("valid-last-of-one-byte", "ok", [0, 3 * C + 17], length=LONG + 1),
        one("last-dropped", "sealed-truncated", first, second),
        one("last-moved-forward", "sealed-truncated", first),
        one("middle-dropped", "sealed-tag", first, third),
        one("first-dropped", "sealed-tag", [0, HEADER], second, third),
        one("swapped", "sealed-tag", first, third, second),
        one("middle-repeated", "sealed-tag", first, second, second, third),
        one("last-repeated", "sealed-trailing", first, second, third, third),
        one("trailing-byte", "sealed-trailing", [0, 3 * C], "00"),
        one("trailing-after-short-last", "sealed-tag", [0, 3 * C + 17], "00", length=LONG + 1),
        one("cut-inside-second", "sealed-tag", first, [C, 2 * C - 1]),
        one("cut-inside-tag-of-second", "sealed-truncated", first, [C, C + TAG]),
    ]


def wrap(public: bytes, plaintext: bytes, info: bytes, seed: bytes) -> bytes:
    """HPKE base mode, X25519, HKDF-SHA256, AES-256-GCM (RFC 9180, 4.1 and 5.1), with a chosen ephemeral key."""

    def extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
        mac = hmac.HMAC(salt or bytes(32), SHA256())
        mac.update(b"HPKE-v1" + suite + label + ikm)
        return mac.finalize()

    def expand(suite: bytes, prk: bytes, label: bytes, info: bytes, length: int) -> bytes:
        return HKDFExpand(SHA256(), length, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info).derive(prk)

    ephemeral = X25519PrivateKey.from_private_bytes(seed)
    encapsulated = ephemeral.public_key().public_bytes_raw()
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
    secret = expand(kem, extract(kem, b"", b"eae_prk", shared), b"shared_secret", encapsulated + public, 32)
    context = b"\0" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    prk = extract(suite, secret, b"secret", b"")
    key, nonce = expand(suite, prk, b"key", context, 32), expand(suite, prk, b"base_nonce", context, 12)
    return encapsulated + AESGCM(key).encrypt(nonce, plaintext, None)


def grant_vectors() -> dict[str, Any]:
    private = bytes(range(1, 33))
    public = X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()

    def grant(device: str = DEVICE, target: str = TARGET, to: bytes = public, key: bytes = KEY) -> dict[str, str]:
        info = compact({"device": device, "format": "temperd-grant-1", "target_sha256": target})
        return {
            "ciphertext": wrap(to, key, info, bytes(range(50, 82))).hex(),
            "device": device,
            "suite": "hpke-x25519-hkdf-sha256-aes-256-gcm",
            "target_sha256": target,
        }

    good = grant()
    stranger = X25519PrivateKey.from_private_bytes(bytes(range(9, 41))).public_key().public_bytes_raw()
    last = "0" if good["ciphertext"][-1] != "0" else "1"
    cases: list[tuple[str, str, str]] = [
        ("valid", "ok", compact(good).decode()),
        ("other-device", "grant-other-device", compact(grant(device="board-2")).decode()),
        ("other-target", "grant-other-target", compact(grant(target="cd" * 32)).decode()),
        ("device-renamed", "grant-broken", compact({**grant(device="board-2"), "device": DEVICE}).decode()),
        ("target-replaced", "grant-broken", compact({**grant(target="cd" * 32), "target_sha256": TARGET}).decode()),
        ("other-key-pair", "grant-broken", compact(grant(to=stranger)).decode()),
        ("short-data-key", "grant-broken", compact(grant(key=bytes(16))).decode()),
        ("ciphertext-digit", "grant-broken", compact({**good, "ciphertext": good["ciphertext"][:-1] + last}).decode()),
        ("ciphertext-no-hex", "grant-broken", compact({**good, "ciphertext": "zz"}).decode()),
        ("ciphertext-empty", "grant-broken", compact({**good, "ciphertext": ""}).decode()),
        ("other-suite", "grant-format", compact({**good, "suite": "none"}).decode()),
        ("key-missing", "grant-format", compact({k: v for k, v in good.items() if k != "suite"}).decode()),
        ("key-twice", "grant-format", '{"device":"board-1",' + compact(good).decode()[1:]),
        ("no-json", "grant-format", "{"),
    ]
    return {
        "device": DEVICE,
        "x25519_private": private.hex(),
        "target_sha256": TARGET,
        "data_key": KEY.hex(),
        "vectors": [{"name": name, "expect": expect, "grant": text} for name, expect, text in cases],
    }


def files() -> dict[str, bytes]:
    """Name and content of each file."""
    tables: dict[str, object] = {
        "sealed.json": sealed_vectors(),
        "sealed-long.json": {
            "key": KEY.hex(),
            "salt": SALT.hex(),
            "nonce_prefix": PREFIX.hex(),
            "name": "long",
            "version": "2",
            "whole_sha256": {str(n): hashlib.sha256(long_file(n)).hexdigest() for n in (LONG, LONG + 1)},
            "vectors": long_vectors(),
        },
        "grants.json": grant_vectors(),
    }
    return {name: json.dumps(table, indent=1).encode() + b"\n" for name, table in tables.items()}


if __name__ == "__main__":
    for name, data in files().items():
        (HERE / name).write_bytes(data)
