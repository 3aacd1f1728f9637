"""Telemetry as bytes: JSON or CBOR of one structure, told apart by the content type of the message."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from io import BytesIO

from agent import strict_json
from agent.errors import CommandError

JSON, CBOR = "application/json", "application/cbor"
CONTENT_TYPES = {"json": JSON, "cbor": CBOR}
"""By the word of the configuration."""
MAX_DEPTH = strict_json.MAX_DEPTH
_LARGEST = 2**64 - 1  # CBOR's own whole numbers end there; a tag for larger ones is refused
_TAGS_TO_REFUSE = (*range(6), 25, 28, 29, 30, 35, 36, 37, 43000, *range(52, 55), 100, 256, 258, 260, 261, 1004, 55799)


def encode(body: Mapping[str, object], content_type: str) -> bytes:
    """The body as `content_type` says; a number that is not finite becomes null, for which JSON has no word."""
    if content_type == CBOR:
        import cbor2  # noqa: PLC0415 - only where it is configured

        return cbor2.dumps(finite(body))
    return encode_json(body)


def encode_json(body: Mapping[str, object]) -> bytes:
    """The body as JSON, on one line; see `encode`."""
    try:
        text = json.dumps(body, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(finite(body), separators=(",", ":"), allow_nan=False)
    return text.encode()


def finite(value: object) -> object:
    """The value with null for each number in it that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def decode(data: bytes, content_type: str, *, what: str, max_bytes: int) -> object:
    """Read a payload of a device; empty content types are JSON.

    Args:
        data: the payload.
        content_type: of the message.
        what: what is being read, for messages.
        max_bytes: longest payload read.

    Returns:
        Plain JSON values; every number is finite.

    Raises:
        CommandError: neither form, too long, nested deeper than `MAX_DEPTH`, a key given twice, a number that is not
            finite, or a value for which JSON has no word.
    """
    if content_type in ("", JSON):
        return strict_json.loads(data, what=what, max_bytes=max_bytes, error=CommandError)
    if content_type != CBOR:
        raise CommandError(f"{what} is neither JSON nor CBOR", where=content_type[:64])
    if len(data) > max_bytes:
        raise CommandError(f"{what} has {len(data)} bytes, at most {max_bytes} are read")
    return _from_cbor(data, what)


def _from_cbor(data: bytes, what: str) -> object:
    import cbor2  # noqa: PLC0415 - most fleets send JSON

    try:
        source = BytesIO(data)
        value: object = cbor2.load(
            source,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
            semantic_decoders=dict.fromkeys(_TAGS_TO_REFUSE, _refuse_tag),
        )
        _check_plain(value, left=source.read(1))
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CommandError(f"{what} is not CBOR that is read: {str(error)[:200]}") from None
    return value


def _refuse_tag(*_: object) -> object:
    raise ValueError("a tag")


def _check_plain(value: object, *, left: bytes = b"") -> None:
    if left:
        raise ValueError("bytes after its end")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a key that is no text")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_plain(item)
    else:
        _check_scalar(value)


def _check_scalar(value: object) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number that is not finite")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError("a whole number of more than 64 bits")
    if value is not None and not isinstance(value, str | int | float):
        raise TypeError(f"a {type(value).__name__}, for which JSON has no word")
