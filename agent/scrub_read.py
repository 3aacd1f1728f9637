"""Reading for the scrub: from the medium and not from memory, gently, and with the board's leave."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from agent.durable import disk_error
from agent.errors import BoardError
from agent.messages import Steer

PIECE_BYTES = 1 << 20
UNREADABLE = "unreadable"  # in the place of a hash: the medium gives an error
PAUSE_POLL_S = 1.0
LONGEST_REST_S = 10.0  # between two pieces: a board that was hot for long is soon asked again
LEAST_DUTY = 0.01


class ScrubEndedError(BoardError):
    """An order ended the scrub; what it has mended stays mended."""

    reason = "scrub-ended"


class Pace:
    """Keeps the share of time that the daemon allows: called between two pieces of work, it rests.

    Args:
        steer: the daemon's latest order.
        monotonic: clock, seconds.
        sleep: waits so many seconds.
    """

    def __init__(
        self, steer: Callable[[], Steer], monotonic: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._steer, self._monotonic, self._sleep = steer, monotonic, sleep
        self._since = monotonic()

    def __call__(self) -> None:
        """Rest.

        Raises:
            ScrubEndedError: an order ends the scrub.
        """
        busy = self._monotonic() - self._since
        while (order := self._steer()).action == "PAUSE":
            self._sleep(PAUSE_POLL_S)
        if order.action == "ABORT":
            raise ScrubEndedError("the scrub was ended", where=order.rule, reason=order.rule)
        duty = max(order.duty, LEAST_DUTY)
        if duty < 1.0:
            self._sleep(min(busy * (1.0 / duty - 1.0), LONGEST_REST_S))
        self._since = self._monotonic()


def unhurried() -> None:
    """The pace of somebody who waits: no rest at all."""


def sha256_on_disk(path: Path, breathe: Callable[[], None] = unhurried) -> str:
    """SHA-256 of what the medium holds, in hexadecimal, or `UNREADABLE` where it gives an error.

    The kernel is asked to forget its copy before: a bit that flipped in memory has not flipped on the disk. It is asked
    to forget it afterwards too, so that a scrub does not push out what others work with. Both are requests; pages
    that somebody has mapped stay.

    Raises:
        FileNotFoundError: there is no such file.
        BoardError: the disk fails in another way.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while piece := stream.read(PIECE_BYTES):
                digest.update(piece)
                breathe()
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.EIO:
            return UNREADABLE
        raise disk_error(error, path) from error
    return digest.hexdigest()
