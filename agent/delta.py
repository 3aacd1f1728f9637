"""A model file split into what was trained and the frozen weights, and put together again, byte for byte.

A delta is 8 bytes of magic, the length of a header in 4 bytes (big endian), the header, and the literal bytes. The
header is canonical JSON: a list of pairs, the number of literal bytes to take next and the number of frozen bytes to
take after them. Every byte of both parts is used once and in order, so parts that do not belong together rarely fit,
and never go unnoticed: whoever keeps them compares the hash of the whole model.

Bytes are compared, not tensors: no version of any library has a say in what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.card import MAX_PLAINTEXT_BYTES
from agent.errors import SealedFileError
from agent.strict_json import canonical, loads

MAGIC = b"TEMPDLT1"
LEAST_FROZEN_BYTES = 4096  # of a tensor: below, biases and scales, which are nothing beside the kernels
MAX_PIECES = 20_000  # as many tensors as no model for such boards has
MAX_HEADER_BYTES = 24 * MAX_PIECES  # two numbers of up to ten digits and their punctuation
DELTA_BROKEN = "delta-broken"

_START = len(MAGIC) + 4


def split(model: bytes, frozen: Iterable[bytes]) -> tuple[bytes, bytes]:
    """Take the frozen tensors out of a model file.

    Args:
        model: the file.
        frozen: raw bytes of each frozen tensor; those that are short or not found stay with the delta. In the order of
            the file each is found at once.

    Returns:
        The delta, and the frozen bytes in file order.
    """
    spans: list[tuple[int, int]] = []
    place = 0
    for raw in frozen:
        if len(raw) < LEAST_FROZEN_BYTES or len(spans) == MAX_PIECES - 1:
            continue
        found = model.find(raw, place)
        if found < 0:
            found = model.find(raw)
        if found >= 0:
            place = found + len(raw)
            spans.append((found, place))
    pairs, literals, blob, end = [], [], [], 0
    for start, stop in sorted(spans):
        if start < end:  # two equal tensors found at one place, or one inside another
            continue
        pairs.append([start - end, stop - start])
        literals.append(model[end:start])
        blob.append(model[start:stop])
        end = stop
    pairs.append([len(model) - end, 0])
    literals.append(model[end:])
    header = canonical(pairs)
    return b"".join([MAGIC, len(header).to_bytes(4, "big"), header, *literals]), b"".join(blob)


def join(delta: bytes, blob: bytes) -> bytes:
    """The model file again.

    Raises:
        SealedFileError: `delta-broken`: the delta is no delta, or the frozen bytes are not as many as it needs.
    """
    header_end = _START + int.from_bytes(delta[len(MAGIC) : _START], "big")
    if not delta.startswith(MAGIC) or len(delta) < header_end or header_end > _START + MAX_HEADER_BYTES:
        raise _broken("it does not begin like one")
    header = delta[_START:header_end]
    pairs = _pairs(loads(header, what="header of a delta", max_bytes=MAX_HEADER_BYTES, error=SealedFileError))
    if canonical([list(pair) for pair in pairs]) != header:
        raise _broken("its header is not canonical")
    literal, frozen = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    if literal != len(delta) - header_end or frozen != len(blob):
        raise _broken(f"it joins {literal} and {frozen} bytes of {len(delta) - header_end} and {len(blob)}")
    if literal + frozen > MAX_PLAINTEXT_BYTES:
        raise _broken(f"its model has {literal + frozen} bytes, at most {MAX_PLAINTEXT_BYTES}")
    pieces, place, taken = [], header_end, 0
    for own, shared in pairs:
        pieces += [delta[place : place + own], blob[taken : taken + shared]]
        place, taken = place + own, taken + shared
    return b"".join(pieces)


def _pairs(found: object) -> list[tuple[int, int]]:
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_PIECES:
        raise _broken(f"its header is not a list of 1 to {MAX_PIECES} pairs")
    pairs = []
    for item in found:
        match item:
            case [int(own), int(shared)] if type(own) is type(shared) is int and own >= 0 <= shared:
                pairs.append((own, shared))
            case _:
                raise _broken("its header holds something else than pairs of lengths")
    return pairs


def _broken(why: str) -> SealedFileError:
    return SealedFileError(f"what was trained cannot be joined with the frozen weights: {why}", reason=DELTA_BROKEN)
