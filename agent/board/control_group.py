"""What the kernel says of the control group that this process is in (version 2 of the interface)."""

from __future__ import annotations

import contextlib
from pathlib import Path

from agent.board.files import BoardRoots, read_text, write_int

FIRST_TO_GO = 1000  # the kernel's highest: it chooses this process before any other


def own_group(roots: BoardRoots) -> Path | None:
    """Folder of the group; `None` where the kernel does not tell, or has version 1 only."""
    lines = (read_text(roots.proc / "self/cgroup") or "").splitlines()
    unified = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    return None if unified is None else roots.sys / "fs/cgroup" / unified.lstrip("/")


def killed_for_memory(roots: BoardRoots) -> int | None:
    """How many processes of the group, and of those below it, the kernel has killed for want of memory so far.

    It counts kills at the group's own limit and those of a board that has run out altogether. `None` where the kernel
    does not tell.
    """
    group = own_group(roots)
    if group is None:
        return None
    for line in (read_text(group / "memory.events") or "").splitlines():
        key, _, count = line.partition(" ")
        if key == "oom_kill" and count.isascii() and count.isdigit():
            return int(count)
    return None


def be_killed_first(roots: BoardRoots) -> None:
    """Let the kernel choose this process where memory runs out: a worker is replaced, the daemon steers the board.

    Without it the kernel takes the larger one, which is the daemon as long as a worker has only begun. Call it before
    `keep_memory_private`: afterwards the file is root's. Without effect where the kernel does not allow it.
    """
    with contextlib.suppress(OSError):
        write_int(roots.proc / "self/oom_score_adj", FIRST_TO_GO)
