"""The Raspberry Pi firmware's throttling bits, without starting a program.

From the kernel's file where there is one, else by the property mailbox that `vcgencmd get_throttled` uses too
(github.com/raspberrypi/firmware/wiki/Mailbox-property-interface; tag 0x00030046).
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from agent.board.files import read_int
from agent.board.powerd_wire import Refusal

KERNEL_FILES = "soc*/soc*:firmware/get_throttled"
"""Below devices/platform; the Pi 5's soc bears its address."""
MAILBOX = Path("/dev/vcio")
GET_THROTTLED = 0x00030046
PROPERTY_IOCTL = (3 << 30) | (struct.calcsize("P") << 16) | (100 << 8)  # _IOWR(100, 0, char *) of vcio.h
_MESSAGE = struct.Struct("=7I")  # length, code, tag, value's length, tag's code, value, end
_DONE, _ANSWERED = 0x80000000, 0x80000000
MAX_BITS = 0xFFFFFFFF


def throttled_bits(sys_root: Path, mailbox: Path = MAILBOX) -> int:
    """Bits 0-3: undervoltage, capped, throttled, soft limit now; 16-19: the same since boot.

    Raises:
        Refusal: `unavailable`: this board has no such firmware, or it does not answer.
    """
    for path in sorted((sys_root / "devices/platform").glob(KERNEL_FILES)):
        bits = read_int(path, base=16)
        if bits is not None and 0 <= bits <= MAX_BITS:
            return bits
    message = bytearray(property_message())
    try:
        descriptor = os.open(mailbox, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, PROPERTY_IOCTL, message)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Refusal("unavailable", f"no throttling bits: {mailbox}: {error.strerror}") from error
    return answered_bits(bytes(message))


def property_message() -> bytes:
    """The question; its value 0 clears none of the bits since boot."""
    return _MESSAGE.pack(_MESSAGE.size, 0, GET_THROTTLED, 4, 0, 0, 0)


def answered_bits(message: bytes) -> int:
    """The bits of an answered message.

    Raises:
        Refusal: `unavailable`: the firmware did not do it.
    """
    _, code, tag, _, tag_code, value, _ = _MESSAGE.unpack(message)
    if code != _DONE or tag != GET_THROTTLED or not tag_code & _ANSWERED:
        raise Refusal("unavailable", f"the firmware does not tell throttling bits (code {code:#x})")
    return int(value)
