"""A slot's sealed file: opened, compared with its manifest, bound to it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from agent.durable import disk_error, disk_errors
from agent.errors import SealedFileError
from agent.sealed import Binding
from agent.slots import Core
from agent.strict_json import canonical


@contextmanager
def slot_file(path: Path) -> Iterator[BinaryIO]:
    """The sealed file at `path`, open for reading.

    Raises:
        SealedFileError: `slot-broken`: there is none.
        BoardError: the disk fails.
    """
    try:
        with path.open("rb") as stream:
            yield stream
    except FileNotFoundError as error:
        raise SealedFileError("slot holds no model", where=str(path), reason="slot-broken") from error
    except OSError as error:
        raise disk_error(error, path) from error


def is_sealed_as(path: Path, sealed_sha256: str) -> bool:
    """Whether the file at `path` is the one that a manifest was written for.

    Raises:
        BoardError: the disk fails.
    """
    with disk_errors(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sealed_sha256


def slot_binding(core: Core) -> Binding:
    """What the file is bound to: all that its manifest says, but for the hash of the file itself."""
    return Binding("slot/tuned-model", hashlib.sha256(canonical(core.table())).hexdigest(), core.stored()[0])
