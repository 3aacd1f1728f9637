"""The Raspberry Pi firmware's throttling bits through temperd-powerd, for kernels that show them in no file."""

from __future__ import annotations

from agent.board.powerd_link import WAITING, PowerdLink
from agent.errors import BoardError


class FirmwareMailbox:
    """Asked once a round while a job is at work, so that the helper may end in between.

    Args:
        link: the helper, or `None`.

    Attributes:
        bits: as told last; 0 while nobody tells.
    """

    def __init__(self, link: PowerdLink | None) -> None:
        self._link, self._mute = link, False
        self.bits = 0

    def ask(self) -> None:
        """Look again; a helper or a board that has no answer is not asked again until `rest`."""
        if self._link is None or self._mute:
            return
        try:
            self.bits = self._link.throttled()
        except BoardError as error:  # no helper or no such firmware is no fault: the alarms of other chips serve
            self._mute = error.code != WAITING
            self.bits = 0

    def rest(self) -> None:
        """The job is over."""
        self.bits, self._mute = 0, False
