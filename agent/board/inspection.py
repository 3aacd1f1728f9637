"""What a board lets this user do, and what its firmware remembers: looked at once, for `temperd doctor`.

Nothing is written; the helper is asked for the firmware's bits alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.board.files import BoardRoots, folders, read_int, read_text
from agent.board.lever_files import FREQUENCIES
from agent.board.powerd_link import PowerdLink
from agent.board.profile import BoardProfile
from agent.errors import BoardError

HELPER_WAIT_S = 3.0  # systemd starts the helper at the first connection, which takes a second on a slow board
_SINCE_BOOT = {16: "undervoltage", 17: "clock capped", 18: "throttled", 19: "soft temperature limit"}


@dataclass(frozen=True, slots=True)
class Lever:
    """A file through which the board is slowed down or cooled.

    Attributes:
        key: its name below the sysfs root.
        writable: whether this user may write it.
    """

    key: str
    writable: bool


def levers(roots: BoardRoots, profile: BoardProfile) -> tuple[Lever, ...]:
    """Every clock cap and fan level of the board."""
    return tuple(
        Lever(str(path.relative_to(roots.sys)), os.access(path, os.W_OK, effective_ids=True))
        for path in (*_caps(roots.sys), *_fans(roots.sys, profile))
        if path.exists()
    )


def since_boot(bits: int) -> tuple[str, ...]:
    """What the firmware of a Raspberry Pi saw since it was started, by the upper half of its throttling bits."""
    return tuple(name for bit, name in _SINCE_BOOT.items() if bits >> bit & 1)


def firmware_file_bits(roots: BoardRoots) -> int | None:
    """The throttling bits where the kernel shows them as a file."""
    platform = roots.sys / "devices/platform"
    for soc in (*folders(platform, "soc"), platform):
        for folder in folders(soc, ""):
            if folder.name.endswith(":firmware") and (folder / "get_throttled").exists():
                return read_int(folder / "get_throttled", base=16)
    return None


@dataclass(frozen=True, slots=True)
class Helper:
    """What came of asking temperd-powerd.

    Attributes:
        complaint: why it does not serve us; empty: it does.
        bits: of the firmware, where it gave them.
    """

    complaint: str = ""
    bits: int | None = None


def ask_helper(socket: Path, roots: BoardRoots) -> Helper:
    """Greet temperd-powerd and ask for the firmware's bits; no limit is touched."""
    link = PowerdLink(socket, roots.sys, HELPER_WAIT_S)
    try:
        return Helper(bits=link.throttled())
    except BoardError as error:
        greeted = link.connections > 0  # it serves this tree and this user, and has no such bits
        return Helper() if greeted else Helper(str(error))
    finally:
        link.close()


def swaps(roots: BoardRoots) -> tuple[str, ...]:
    """Swap space that is no memory itself: where plaintext weights and keys could come to lie on a disk."""
    lines = (read_text(roots.proc / "swaps") or "").splitlines()[1:]
    return tuple(line.split()[0] for line in lines if line.strip() and "zram" not in line.split()[0])


def _caps(sys_root: Path) -> Iterator[Path]:
    for policy in folders(sys_root / FREQUENCIES, "policy"):
        yield policy / "scaling_max_freq"


def _fans(sys_root: Path, profile: BoardProfile) -> Iterator[Path]:
    for device in folders(sys_root / "class/thermal", "cooling_device"):
        if read_text(device / "type") in profile.fan_types:
            yield device / "cur_state"
