"""Files that are whole or absent: written beside, synced, renamed, folder synced.

A reader never sees half a file, and after a power cut the old or the new one is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from agent.errors import ArtifactError, BoardError, TemperdError

PARTIAL = ".partial"  # ending of files being written; what still bears it after a crash is rubbish
_RANDOM_BYTES = 6  # of a partial file's name: writers of the same file do not meet
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC  # a repair reads back what it wrote
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # full, over quota, over the process's file limit


def disk_error(error: OSError, where: str | Path) -> BoardError:
    """What the operating system says of a disk, as BoardError with code `no-space` or `disk`."""
    if error.errno in _NO_SPACE:
        return BoardError("no space left", where=str(where), fix="Free space and try again", reason="no-space")
    fix = "The file system is read-only: check the disk" if error.errno == errno.EROFS else ""
    what = error.strerror or type(error).__name__
    return BoardError(f"disk access failed: {what}", where=str(where), fix=fix, reason="disk")


@contextlib.contextmanager
def disk_errors(where: str | Path) -> Iterator[None]:
    """Turn an OSError of the body into a BoardError that names `where`."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, error.filename or where) from error


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put `data` at `path` with permissions `mode`; the folder must exist.

    Raises:
        BoardError: `no-space` or `disk`; `path` is as it was and no partial file is left.
    """
    with atomic_writer(path, mode) as stream:
        stream.write(data)


@contextlib.contextmanager
def atomic_writer(path: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A stream whose bytes appear at `path` when the body ends without an exception.

    Every OSError inside the body counts as one of this file: convert foreign ones before they get here.

    Raises:
        BoardError: `no-space` or `disk`; `path` is as it was and no partial file is left.
    """
    with disk_errors(path):
        # By hand: `tempfile` and what it loads, such as two compressors, cost a daemon that idles 0.7 MB.
        partial = path.with_name(f".{path.name}.{os.urandom(_RANDOM_BYTES).hex()}{PARTIAL}")
        descriptor = os.open(partial, _NEW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                os.fchmod(descriptor, mode)
                yield stream
                stream.flush()
                os.fsync(descriptor)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` survive a power cut.

    Raises:
        OSError: the folder cannot be opened or synced.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Create `folder` and its parents where they are missing, durably.

    Raises:
        BoardError: `no-space` or `disk`.
    """
    with disk_errors(folder):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        for made in reversed(missing):
            sync_folder(made.parent)


@contextlib.contextmanager
def only_holder(path: Path, refusal: TemperdError) -> Iterator[None]:
    """Hold the lock file `path`, which stays; its folder must exist.

    Raises:
        refusal: somebody else holds it.
        BoardError: `disk`.
    """
    with disk_errors(path):
        stream = open(path, "w", encoding="ascii", opener=_at_once)  # noqa: SIM115 - see `read_bounded`; kept open
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise refusal from error
        yield


def _at_once(path: str, flags: int) -> int:
    """Open without waiting: a pipe in a file's place, as a release that was taken over may leave one, holds nobody."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


def remove(path: Path) -> None:
    """Remove the file at `path`, if there is one, durably.

    Raises:
        BoardError: `disk`.
    """
    with disk_errors(path):
        if path.is_symlink() or path.exists():
            path.unlink()
            sync_folder(path.parent)


def remove_partials(folder: Path) -> None:
    """Remove what writers killed in `folder` left behind; only for the folder's one writer.

    Raises:
        BoardError: `disk`.
    """
    with disk_errors(folder):
        for leftover in folder.glob(f".*{PARTIAL}"):
            leftover.unlink(missing_ok=True)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The whole file at `path`.

    Raises:
        FileNotFoundError: there is none; what that means is the caller's to say.
        ArtifactError: longer than `max_bytes`, with code `too-long`.
        BoardError: `disk`.
    """
    try:
        with open(path, "rb", opener=_at_once) as stream:
            data = stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise disk_error(error, path) from error
    if len(data) > max_bytes:
        raise ArtifactError(f"file is longer than {max_bytes} bytes", where=str(path), reason="too-long")
    return data
