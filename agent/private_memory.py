"""Keys in memory stay there: this process leaves no core dump and no other process of its user may look into it."""

from __future__ import annotations

import ctypes
import resource

_PR_SET_DUMPABLE = 4  # prctl(2)


def keep_memory_private() -> None:
    """Forbid core dumps of this process, and reading or tracing it to everybody but root.

    The limit alone would not do: a kernel that pipes dumps to a program, as systemd's does, takes no notice of 0.
    What remains is in docs/security.md: root, swap, hibernation and whatever has access to the memory bus.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
