"""Small kernel files: read whole, written whole, never trusted to be there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_BYTES = 4096  # sysfs gives at most one page


def read_text(path: Path) -> str | None:
    """Content of a small kernel file without its end of line; `None` when it cannot be read (absent, EINVAL, EIO)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return os.read(descriptor, MAX_FILE_BYTES).decode("ascii", "replace").strip("\0 \n")
    except OSError:
        return None
    finally:
        os.close(descriptor)


def read_int(path: Path, base: int = 10) -> int | None:
    """A whole number from a small kernel file; `None` when it cannot be read or is none."""
    try:
        return int(read_text(path) or "", base)
    except ValueError:
        return None


def folders(path: Path, prefix: str) -> Iterator[Path]:
    """Entries of `path` whose names begin with `prefix`, sorted; none when there is no such folder."""
    try:
        yield from sorted(entry for entry in path.iterdir() if entry.name.startswith(prefix))
    except OSError:
        return


def write_int(path: Path, value: int) -> None:
    """Write a whole number as the kernel expects it: one write call.

    Raises:
        OSError: refused, or no such file.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"%d\n" % value)
    finally:
        os.close(descriptor)
