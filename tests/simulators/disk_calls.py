"""Every system call of a child that changes files, held up until the parent has decided about it.

The kernel itself reports the calls (seccomp user notification), so that those of libraries such as SQLite count, of
every thread, and a fault can be put in the place of any of them. Linux 5.5 on x86-64 or arm64; needs no privileges.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Numbers of asm/unistd_64.h and asm-generic/unistd.h; the second part says how a call names its file.
_X86_64 = {
    "write": 1, "open": 2, "pwrite64": 18, "writev": 20, "sendfile": 40, "fsync": 74, "fdatasync": 75, "truncate": 76,
    "ftruncate": 77, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88,
    "chmod": 90, "fchmod": 91, "openat": 257, "mkdirat": 258, "unlinkat": 263, "renameat": 264, "linkat": 265,
    "symlinkat": 266, "fchmodat": 268, "utimensat": 280, "fallocate": 285, "pwritev": 296, "renameat2": 316,
    "copy_file_range": 326,
}  # fmt: skip
_ARM64 = {
    "mkdirat": 34, "unlinkat": 35, "symlinkat": 36, "linkat": 37, "renameat": 38, "truncate": 45, "ftruncate": 46,
    "fallocate": 47, "fchmod": 52, "fchmodat": 53, "openat": 56, "write": 64, "writev": 66, "pwrite64": 68,
    "pwritev": 70, "sendfile": 71, "fsync": 82, "fdatasync": 83, "utimensat": 88, "renameat2": 276,
    "copy_file_range": 285,
}  # fmt: skip
_SECCOMP, _CALLS = (317, _X86_64) if platform.machine() == "x86_64" else (277, _ARM64)
_NAMES = {number: name for name, number in _CALLS.items()}
_BY_DESCRIPTOR = {"write", "pwrite64", "writev", "pwritev", "sendfile", "fsync", "fdatasync", "ftruncate", "fchmod",
                  "fallocate"}  # fmt: skip
_PATH_SECOND = {"symlink"}  # f(text, path)
_AT_SECOND = {"symlinkat"}  # f(text, folder, path)
_OUT_THIRD = {"copy_file_range"}

_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_NEW_LISTENER, _SET_FILTER, _NO_NEW_PRIVS = 8, 1, 38
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_NOTIFICATION, _ANSWER = struct.Struct("=QII iIQ6Q"), struct.Struct("=QqiI")
_CHANGING = os.O_CREAT | os.O_TRUNC
_MAX_PATH = 4096


class DiskCall(NamedTuple):
    """One call that has not happened yet."""

    name: str
    path: str
    """Absolute; of a call with two paths the first."""


def trap_own_calls(channel: socket.socket) -> None:
    """Hold up this process's calls from now on, and send the descriptor that reports them; for the child."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = _program()
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    listener = libc.syscall(_SECCOMP, _SET_FILTER, _NEW_LISTENER, ctypes.create_string_buffer(header, len(header)))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    socket.send_fds(channel, [b"!"], [listener])
    os.close(listener)


def _program() -> bytes:
    """The filter in the kernel's instructions (linux/filter.h): tell of the calls above, let all others pass."""
    lines: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, 0)]  # the call's number
    plain = [number for name, number in _CALLS.items() if name not in {"open", "openat"}]
    for at, number in enumerate(plain):
        lines.append((_EQUAL, len(plain) - at + 6, 0, number))
    for name, argument in (("open", 1), ("openat", 2)):  # those that make or empty a file
        lines += [(_EQUAL, 0, 2, _CALLS.get(name, -1) & 0xFFFFFFFF), (_LOAD, 0, 0, 16 + 8 * argument)]
        lines += [(_ANY_BIT, *((4, 3) if name == "open" else (1, 0)), _CHANGING)]
    return b"".join(struct.pack("HBBI", *line) for line in [*lines, (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _NOTIFY)])


class Listener:
    """The parent's end.

    Args:
        channel: where `trap_own_calls` sends to.
    """

    def __init__(self, channel: socket.socket) -> None:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if not descriptors:
            raise ChildProcessError("the child ended before its calls could be trapped")
        self._descriptor = descriptors[0]
        self._held = 0

    def calls(self, folder: str) -> Iterator[DiskCall]:
        """Calls on files below `folder`, one by one until the child ends; each goes on unless `fail` was called."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        while True:
            _, events = poll.poll()[0]
            if not events & select.POLLIN:
                return
            notification = bytearray(_NOTIFICATION.size)
            try:
                fcntl.ioctl(self._descriptor, _RECEIVE, notification)
            except (FileNotFoundError, InterruptedError):
                continue  # the thread was killed meanwhile
            self._held, task, _, number, _, _, *arguments = _NOTIFICATION.unpack(notification)
            call = _described(task, _NAMES[number], arguments)
            if call.path.startswith(folder + "/"):
                yield call
            if self._held:
                self._answer(0, _CONTINUE)

    def fail(self, error: int) -> None:
        """Let the held call fail with this errno instead."""
        self._answer(-error, 0)

    def close(self) -> None:
        """Hear no more; calls still held fail."""
        os.close(self._descriptor)

    def _answer(self, error: int, flags: int) -> None:
        answer = bytearray(_ANSWER.pack(self._held, 0, error, flags))
        self._held = 0
        with contextlib.suppress(FileNotFoundError):  # the thread was killed meanwhile
            fcntl.ioctl(self._descriptor, _SEND, answer)


def _described(task: int, name: str, arguments: list[int]) -> DiskCall:
    try:
        if name in _BY_DESCRIPTOR or name in _OUT_THIRD:
            return DiskCall(name, _link(task, arguments[2 if name in _OUT_THIRD else 0]))
        if name in _CALLS and (name.endswith("at") or name == "renameat2"):
            place = 1 if name in _AT_SECOND else 0
            if not arguments[place + 1]:  # utimensat of a descriptor
                return DiskCall(name, _link(task, arguments[place]))
            return DiskCall(name, _path(task, arguments[place], arguments[place + 1]))
        return DiskCall(name, _path(task, -100, arguments[1 if name in _PATH_SECOND else 0]))
    except OSError:
        return DiskCall(name, "")


def _path(task: int, folder: int, address: int) -> str:
    with open(f"/proc/{task}/mem", "rb", buffering=0) as memory:  # noqa: PTH123 - unbuffered: what follows may be unmapped
        memory.seek(address)
        text = os.fsdecode(memory.read(_MAX_PATH).split(b"\0", 1)[0])
    if text.startswith("/"):
        return text
    at_working_folder = ctypes.c_int(folder & 0xFFFFFFFF).value == -100
    start = str(Path(f"/proc/{task}/cwd").readlink()) if at_working_folder else _link(task, folder)
    return os.path.normpath(f"{start}/{text}")


def _link(task: int, descriptor: int) -> str:
    return str(Path(f"/proc/{task}/fd/{descriptor & 0xFFFFFFFF}").readlink())
