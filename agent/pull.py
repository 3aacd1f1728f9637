"""From a model's name to its verified plaintext in memory: metadata, sealed file, grant, and the opening of it.

R12 asks that nothing is used before it is verified; it does not ask that nothing is computed. The sealed bytes are
hashed in a second thread while they are deciphered into memory, and the plaintext leaves `open_stored` only when the
hash of the sealed bytes, every segment's tag and the hash of the plaintext agree with what was signed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BufferedRandom, BufferedReader
from pathlib import Path

from agent.card import Target
from agent.durable import disk_errors
from agent.errors import NetworkError, SealedFileError
from agent.keys import DeviceIdentity
from agent.messages import METERED
from agent.sealed import Binding, unseal
from agent.trust import ModelRepository, not_signed

HASHED_BYTES = 4 << 20  # at once, all that the second thread needs of memory: fewer turns at the interpreter are faster
SEALED_HASH = "sealed-hash"

Ask = Callable[[str, str], None]
Obey = Callable[[], object]
Warn = Callable[[str], None]


def pull(
    repository: ModelRepository, identity: DeviceIdentity, wanted: tuple[str, str, str], ask: Ask, warn: Warn,
    *, metered: bool, obey: Obey = lambda: None,
) -> tuple[Target, bytes]:  # fmt: skip
    """The model and its plaintext; without the network where all of it is on the board and still valid.

    Args:
        repository: where it comes from.
        identity: of this board.
        wanted: name, version or `latest`, and board profile.
        ask: is asked before each stage.
        warn: is told what is not as it should be and does not end the job.
        metered: bytes cost money here: no model is downloaded.
        obey: called between two pieces of the opening; may wait, and may raise what ends it.

    Raises:
        NetworkError: `network`, `metered-link` or `clock-wrong`: the same may work later.
        TrustError, GrantError, SealedFileError: something does not verify; nothing of it is used.
        SpecError: there is no such model for this board.
        BoardError: the disk fails.
    """
    name, version, board = wanted
    ask("PULLING", f"{name} {version}")
    _refresh(repository, warn)
    target = repository.find(name, version, board)
    stored = repository.stored(target)
    path = stored or _download(repository, target, metered=metered)
    ask("VERIFYING", f"{target.name} {target.version}")
    key = repository.grant(identity, target)
    ask("UNSEALING", "")
    try:
        return target, open_stored(path, target, key, obey)
    except SealedFileError as error:
        if error.code != SEALED_HASH or stored is None:
            raise
        warn(f"{error.what}: it is downloaded again")
    return target, open_stored(_download(repository, target, metered=metered), target, key, obey)


def _refresh(repository: ModelRepository, warn: Warn) -> None:
    try:
        repository.refresh()
    except NetworkError as error:
        if error.code != NetworkError.reason:
            raise
        hours = repository.use_kept(error) / 3600
        warn(f"{error}: goes on with what was signed when it last answered, {hours:.1f} hours ago")


def _download(repository: ModelRepository, target: Target, *, metered: bool) -> Path:
    if metered:
        raise NetworkError(
            f"{target.name} {target.version}, {target.sealed_length / 1e6:.1f} MB, is not on the board and this link "
            "is metered: the job waits",
            fix='Set metered = "allow" in [repository] and restart the daemon, or cancel the job',
            reason=METERED,
        )
    return repository.download(target)


def open_stored(path: Path, target: Target, key: bytes, obey: Obey = lambda: None) -> bytes:
    """The plaintext of the sealed file at `path`, once everything about it agrees.

    Needs 7 MiB beyond the plaintext.

    Raises:
        SealedFileError: `sealed-hash`: not the file that was signed; else see `agent.sealed.unseal`.
        BoardError: the disk fails or the file is gone.
    """
    card = target.card
    binding = Binding(card.name, card.version, card.plaintext_sha256)
    with disk_errors(path), path.open("rb") as stream:
        try:
            if os.fstat(stream.fileno()).st_size == target.sealed_length:
                return hash_and_unseal(stream, target.sealed_sha256, key, binding, card.plaintext_length, obey)
        except WrongHashError:
            pass
    raise not_signed(path)


class WrongHashError(Exception):
    """The sealed bytes have another hash."""


def hash_and_unseal(
    stream: BufferedReader | BufferedRandom, sha256: str, key: bytes, binding: Binding, max_bytes: int,
    obey: Obey = lambda: None,
) -> bytes:  # fmt: skip
    """The plaintext of the whole file, whose sealed bytes have the hash `sha256`.

    The file is read twice, both times through the same descriptor. Should it change between, then the plaintext is
    still the bound one, or it is refused.

    Raises:
        WrongHashError: they have not, whatever else is wrong with them.
        SealedFileError: see `agent.sealed.unseal`.
        OSError: the disk fails.
    """
    with ThreadPoolExecutor(1, "stored-hash") as thread:
        digest = thread.submit(_hash, stream.fileno())
        try:
            plaintext = unseal(stream, key, binding, max_bytes, obey)
        except SealedFileError:
            if digest.result() != sha256:
                raise WrongHashError from None
            raise
        if digest.result() != sha256:
            raise WrongHashError
    return plaintext


def _hash(descriptor: int) -> str:
    room, digest, offset = memoryview(bytearray(HASHED_BYTES)), hashlib.sha256(), 0
    while got := os.preadv(descriptor, [room], offset):
        digest.update(room[:got])
        offset += got
    return digest.hexdigest()
