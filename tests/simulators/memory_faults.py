"""Bits that flip in the memory of a running process, as a fault of its RAM would make them: through /proc/PID/mem."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

_MAP = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw.. \S+ \S+ \d+ *(.*)$")
READ_BYTES = 16 << 20


def _writable(pid: int) -> Iterator[tuple[int, int]]:
    """Start and end of each private piece of memory that is no device's."""
    for line in Path(f"/proc/{pid}/maps").read_text("utf-8").splitlines():
        found = _MAP.match(line)
        if found and not found[3].startswith(("/dev", "[v")):
            yield int(found[1], 16), int(found[2], 16)


def find(pid: int, pattern: bytes) -> list[int]:
    """Addresses at which a process holds `pattern` in writable memory.

    Raises:
        OSError: the process is gone, or this one may not look.
    """
    places = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in _writable(pid):
            for at in range(start, end, READ_BYTES):
                wanted = min(READ_BYTES + len(pattern) - 1, end - at)
                try:
                    data = os.pread(memory.fileno(), wanted, at)
                except OSError:  # given back meanwhile
                    break
                places += [at + found.start() for found in re.finditer(re.escape(pattern), data)]
    return places


def flip(pid: int, address: int, pattern: bytes, bit: int) -> bool:
    """Change one bit (0 is the lowest of the first byte) of `pattern` at `address`; `False` if it lies there no more.

    Raises:
        OSError: as `find`.
    """
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        there = os.pread(memory.fileno(), len(pattern), address)
        if there != pattern:
            return False
        os.pwrite(memory.fileno(), bytes([there[bit // 8] ^ (1 << bit % 8)]), address + bit // 8)
        return True


def may_write(pid: int) -> bool:
    """Whether the system lets this process write to that one's memory."""
    try:
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0):
            return True
    except OSError:
        return False
