"""The board's private keys in a back-up: encrypted with a passphrase, and bound to all else that the file says.

The key is scrypt's (RFC 7914) of the passphrase, N = 2^17, r = 8, p = 1: 128 MiB of memory for each guess. The
identity is encrypted by AES-256-GCM with the manifest as associated data. The figures are the format's: a file cannot
ask for others.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from agent.errors import ArtifactError, SpecError
from service.backup_format import SealedKeys, broken

LEAST_PASSPHRASE = 12  # characters: four words of a list are more
MAX_PASSPHRASE = 1024
KEY_BYTES, SALT_BYTES, NONCE_BYTES = 32, 16, 12
_N, _R, _P = 1 << 17, 8, 1  # OWASP, Password Storage Cheat Sheet, 2023


def check_passphrase(text: str) -> None:
    """Refuse what is guessed too soon.

    Raises:
        SpecError: too short or too long.
    """
    if not LEAST_PASSPHRASE <= len(text) <= MAX_PASSPHRASE:
        what = f"the passphrase has {len(text)} characters, {LEAST_PASSPHRASE} to {MAX_PASSPHRASE} are taken"
        raise SpecError(what, fix="Take four words that nobody guesses")


def seal_keys(identity: bytes, passphrase: str, bound: bytes, random: Callable[[int], bytes]) -> SealedKeys:
    """The identity, encrypted.

    Args:
        identity: as it is stored.
        passphrase: see `check_passphrase`.
        bound: what it is only good together with.
        random: gives so many random bytes.

    Raises:
        SpecError: the passphrase is refused.
    """
    check_passphrase(passphrase)
    salt, nonce = random(SALT_BYTES), random(NONCE_BYTES)
    sealed = AESGCM(_key(passphrase, salt)).encrypt(nonce, identity, bound)
    return SealedKeys(salt.hex(), nonce.hex(), sealed.hex())


def open_keys(keys: SealedKeys, passphrase: str, bound: bytes) -> bytes:
    """The identity again.

    Raises:
        ArtifactError: `backup-broken`, or `passphrase-wrong`: another passphrase, or the back-up was changed.
    """
    try:
        salt, nonce, sealed = (bytes.fromhex(text) for text in (keys.salt, keys.nonce, keys.sealed))
    except ValueError as error:
        raise broken("its keys are no hexadecimal digits") from error
    if len(salt) != SALT_BYTES or len(nonce) != NONCE_BYTES:
        raise broken("its keys have another form")
    try:
        return AESGCM(_key(passphrase, salt)).decrypt(nonce, sealed, bound)
    except InvalidTag:
        raise ArtifactError(
            "the keys do not open: another passphrase, or the back-up was changed", reason="passphrase-wrong"
        ) from None


def _key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt, KEY_BYTES, _N, _R, _P).derive(passphrase.encode())
