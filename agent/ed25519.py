"""Ed25519 signatures (RFC 8032) judged by the OpenSSL that this Python already has loaded for TLS.

`cryptography` brings an OpenSSL of its own, 7 MB that a small board would keep from its first command on; both judge by
the same function. It serves where Python's OpenSSL cannot be reached or fails the first look. docs/adr/0010 weighs it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import TypeAlias

KEY_BYTES, SIGNATURE_BYTES = 32, 64
_EVP_PKEY_ED25519 = 1087  # OpenSSL's obj_mac.h, NID_ED25519
_POINTER, _SIZE, _BYTES = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
_PROTOTYPES = (  # OpenSSL's evp.h and err.h; the same since 1.1.1
    ("EVP_PKEY_new_raw_public_key", _POINTER, (ctypes.c_int, _POINTER, _BYTES, _SIZE)),
    ("EVP_PKEY_free", None, (_POINTER,)),
    ("EVP_MD_CTX_new", _POINTER, ()),
    ("EVP_MD_CTX_free", None, (_POINTER,)),
    ("EVP_DigestVerifyInit", ctypes.c_int, (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER)),
    ("EVP_DigestVerify", ctypes.c_int, (_POINTER, _BYTES, _SIZE, _BYTES, _SIZE)),
    ("ERR_clear_error", None, ()),
)
_KNOWN_KEY = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
_KNOWN_SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
_KNOWN_MESSAGE = b"\x72"  # RFC 8032, 7.1, test 2

Judge: TypeAlias = Callable[[bytes, bytes, bytes], bool]
"""Whether (raw public key of 32 bytes, signature of 64 bytes, message) belong together."""


def is_signed(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is that of `message` under the raw public key `key`; of a wrong length, it is not."""
    if len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    return _judge()(key, signature, message)


@cache
def _judge() -> Judge:
    return loaded_openssl() or by_cryptography


def by_cryptography(key: bytes, signature: bytes, message: bytes) -> bool:
    """Judge with the package."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - see the module's docstring
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - same

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def loaded_openssl() -> Judge | None:
    """A judge by the OpenSSL behind the `ssl` module; `None` if it is not there as a library or judges wrongly."""
    try:
        import _ssl  # noqa: PLC0415 - some Pythons are built without it

        # Names are looked up in the extension and what it is linked to: no other OpenSSL can be found by its name.
        library = ctypes.CDLL(_ssl.__file__)
        for name, result, arguments in _PROTOTYPES:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (ImportError, AttributeError, OSError):  # absent, or part of the interpreter itself
        return None

    def judge(key: bytes, signature: bytes, message: bytes) -> bool:
        return _verify(library, key, signature, message)

    broken = bytes([_KNOWN_SIGNATURE[0] ^ 1]) + _KNOWN_SIGNATURE[1:]
    good = judge(_KNOWN_KEY, _KNOWN_SIGNATURE, _KNOWN_MESSAGE) and not judge(_KNOWN_KEY, broken, _KNOWN_MESSAGE)
    return judge if good else None


def _verify(library: ctypes.CDLL, key: bytes, signature: bytes, message: bytes) -> bool:
    """Anything but OpenSSL's 1 is no: 0 is a false signature, below 0 an error, no pointer no memory."""
    pkey = library.EVP_PKEY_new_raw_public_key(_EVP_PKEY_ED25519, None, key, len(key))
    context = library.EVP_MD_CTX_new()
    try:
        return bool(
            pkey
            and context
            and library.EVP_DigestVerifyInit(context, None, None, None, pkey) == 1
            and library.EVP_DigestVerify(context, signature, len(signature), message, len(message)) == 1
        )
    finally:
        library.EVP_MD_CTX_free(context)  # both take null
        library.EVP_PKEY_free(pkey)
        library.ERR_clear_error()  # else the next TLS read of this thread takes an error of ours for its own
