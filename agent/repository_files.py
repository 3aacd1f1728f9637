"""Files that the repository signs: each lies under the hash of its bytes, so that it never changes once it is there."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from agent.card import ModelCard
from agent.durable import PARTIAL, disk_errors, make_folder, remove_partials, sync_folder, write_atomic
from agent.errors import SealedFileError, SpecError
from agent.sealed import Binding, Sealed, seal, sealed_length

SERVED = 0o644  # a web server of another user reads them
SERVED_FOLDER = 0o755


def store_sealed(targets: Path, path: str, source: BinaryIO, key: bytes, card: ModelCard) -> Sealed:
    """Seal `source` to `path` below `targets`, in constant memory; whole or absent.

    Raises:
        SpecError: `card-mismatch`: the card's hash or length is not that of `source`.
        BoardError: the disk fails; nothing is left.
    """
    return _store(targets, path, lambda stream: _seal(source, stream, key, card))


def store_file(targets: Path, path: str, source: BinaryIO) -> Sealed:
    """Put what `source` gives at `path` below `targets`, in constant memory; whole or absent.

    Raises:
        BoardError: the disk fails; nothing is left.
    """
    return _store(targets, path, lambda stream: _copy(source, stream))


def _copy(source: BinaryIO, stream: BinaryIO) -> Sealed:
    shutil.copyfileobj(source, stream)
    stream.seek(0)
    return Sealed(hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell())  # type: ignore[arg-type]  # a file


def _store(targets: Path, path: str, write: Callable[[BinaryIO], Sealed]) -> Sealed:
    """What `write` writes, at `path` below `targets` under its hash; whole or absent."""
    folder, name = _folder(targets, path)
    with disk_errors(folder / name):
        descriptor, partial = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=PARTIAL)
        try:
            with os.fdopen(descriptor, "w+b") as stream:
                os.fchmod(descriptor, SERVED)
                stored = write(stream)
                stream.flush()
                os.fsync(descriptor)
            Path(partial).replace(folder / f"{stored.sha256}.{name}")
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
        sync_folder(folder)
    return stored


def store_small(targets: Path, path: str, data: bytes) -> Sealed:
    """Put `data` at `path` below `targets`; returns its hash and length.

    Raises:
        BoardError: the disk fails; nothing is left.
    """
    folder, name = _folder(targets, path)
    digest = hashlib.sha256(data).hexdigest()
    write_atomic(folder / f"{digest}.{name}", data, SERVED)
    return Sealed(digest, len(data))


def _folder(targets: Path, path: str) -> tuple[Path, str]:
    parent, _, name = path.rpartition("/")
    folder = targets / parent
    make_folder(folder, SERVED_FOLDER)
    remove_partials(folder)
    return folder, name


def _seal(source: BinaryIO, stream: BinaryIO, key: bytes, card: ModelCard) -> Sealed:
    mismatch = SpecError("the card is not that of this model file", where=card.name, reason="card-mismatch")
    try:
        sealed = seal(source, stream, key, Binding(card.name, card.version, card.plaintext_sha256))
    except SealedFileError as error:  # the hash is not the card's, or the file is larger than any card allows
        raise mismatch from error
    if sealed.length != sealed_length(card.plaintext_length):
        raise mismatch
    return sealed
