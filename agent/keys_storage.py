"""Opening what a board sealed for itself while more than one of its storage keys is live."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from agent.errors import SealedFileError
from agent.sealed import Binding, unseal

_OTHER_KEY = "sealed-tag"  # the code of a segment that does not verify: a wrong key looks like a changed byte


def unseal_with_any(source: BinaryIO, keys: Sequence[bytes], binding: Binding, max_bytes: int) -> tuple[bytes, bytes]:
    """Like `agent.sealed.unseal`, with the first of the keys that opens the file.

    Args:
        source: seekable, at the header of the sealed file.
        keys: 32 bytes each, the likeliest first; at least one.
        binding: see `unseal`.
        max_bytes: see `unseal`.

    Returns:
        The plaintext, and the key that opened it.

    Raises:
        SealedFileError: none opens it; the error is that of the first key.
    """
    start, first = source.tell(), None
    for key in keys:
        source.seek(start)
        try:
            return unseal(source, key, binding, max_bytes), key
        except SealedFileError as error:
            if error.code != _OTHER_KEY:
                raise first or error from None
            first = first or error
    assert first is not None  # there is at least one key
    raise first
