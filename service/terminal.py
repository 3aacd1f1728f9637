"""The terminal of a person who starts a program that is not to be trusted with it: it must not type there.

Whoever shares a terminal may put characters into its input (TIOCSTI, and TIOCLINUX on a console), and the shell of
root, or of whoever may become root, would read them as typed. The kernel is told to refuse both to this process and
all that it starts, for good.
"""

from __future__ import annotations

import ctypes
import os
import struct

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2  # prctl(2)
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # asm-generic/ioctls.h
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of the classic packet filter
_NUMBER_AT, _ARCH_AT, _ARGUMENT_AT = 0, 4, 24  # in struct seccomp_data; the low half of the second argument
_POINTER_BYTES = 8  # of the machines below; a 32-bit program has other calls
_FOREIGN_CALLS = 0x40000000  # x32 on x86_64: another table of the same calls
_IOCTL = {"x86_64": (0xC000003E, 16), "aarch64": (0xC00000B7, 29)}
"""AUDIT_ARCH and number of the call, by the kernel's name of the machine; both are little-endian."""


def has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def forbid_typing() -> bool:
    """Refuse this process and its children to type, and any right that a file would give them (sudo).

    Returns:
        Whether the kernel does: one that knows no filters does not, nor does a 32-bit program get one.
    """
    known = _IOCTL.get(os.uname().machine)
    if known is None or struct.calcsize("P") != _POINTER_BYTES:
        return False
    filtered = _filter(*known)
    instructions = ctypes.create_string_buffer(filtered, len(filtered))
    program = struct.pack("HP", len(filtered) // 8, ctypes.addressof(instructions))
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return int(prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)) == 0


def _filter(arch: int, ioctl: int) -> bytes:
    """A program of the classic packet filter over struct seccomp_data; jumps are counted from the next instruction."""
    return b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, _ARCH_AT),
            (_EQUAL, 0, 7, arch),
            (_LOAD, 0, 0, _NUMBER_AT),
            (_AT_LEAST, 5, 0, _FOREIGN_CALLS),
            (_EQUAL, 0, 3, ioctl),
            (_LOAD, 0, 0, _ARGUMENT_AT),
            (_EQUAL, 2, 0, _TIOCSTI),
            (_EQUAL, 1, 0, _TIOCLINUX),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _REFUSE),
        )
    )
