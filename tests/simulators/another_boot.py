"""Runs the daemon as after a restart of the board: the kernel's boot id is another one for it alone. Root.

By hand: python tests/simulators/another_boot.py FILE run --config ..., with the boot id in FILE.
"""

from __future__ import annotations

import ctypes
import os
import sys

from service.cli import main

CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
BOOT_ID = b"/proc/sys/kernel/random/boot_id"


def _done(result: int) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


if __name__ == "__main__":
    kernel = ctypes.CDLL(None, use_errno=True)
    _done(kernel.unshare(CLONE_NEWNS))
    _done(kernel.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    _done(kernel.mount(sys.argv[1].encode(), BOOT_ID, None, MS_BIND, None))
    sys.exit(main(sys.argv[2:]))
