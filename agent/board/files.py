"""Small kernel files: read whole, written whole, never trusted to be there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 4096  # sysfs gives at most one page
MAX_DIGITS = 20  # of 64 bits; longer ones are no number of the kernel
MAX_ENTRIES = 512  # of one class; the largest boards have some dozens


@dataclass(frozen=True, slots=True)
class BoardRoots:
    """Where /sys and /proc are: the kernel's own, or an emulated board's tree."""

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")

    @staticmethod
    def of_tree(tree: Path) -> BoardRoots:
        """The roots inside the tree of an emulated board."""
        return BoardRoots(tree / "sys", tree / "proc")


def read_text(path: Path | str) -> str | None:
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


def read_int(path: Path | str, base: int = 10) -> int | None:
    """A whole number from a small kernel file; `None` when it cannot be read or is none."""
    text = read_text(path)
    if not text or len(text) > MAX_DIGITS:
        return None
    try:
        return int(text, base)
    except ValueError:
        return None


def folders(path: Path | str, prefix: str) -> Iterator[Path]:
    """Entries of `path` whose names begin with `prefix`, sorted; none when there is no such folder."""
    try:
        names = sorted(name for name in os.listdir(path) if name.startswith(prefix))  # noqa: PTH208 - names, not paths: half the time
    except OSError:
        return
    folder = Path(path)
    for name in names[:MAX_ENTRIES]:
        yield folder / name


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
