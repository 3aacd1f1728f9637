"""How commands end, and what a program that waited for them says with its exit code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

DONE, FAILED, REFUSED = 0, 1, 3  # exit codes of every verb; 2: wrong words or files


class Outcome(StrEnum):
    """Where a command to one board stands, for whoever sent it."""

    WAITING = "waiting"
    """Not sent yet."""
    OPEN = "open"
    """Sent, not ended."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    TIMED_OUT = "timed-out"
    CANCELED = "canceled"
    ROLLED_BACK = "rolled-back"
    EXPIRED = "expired"
    """The board said nothing until the command was not valid any more."""
    TAKEN_BACK = "taken-back"
    """An abort took the request from the broker, and the board does not know it."""


BY_STATUS: Mapping[str, Outcome] = {
    "succeeded": Outcome.SUCCEEDED,
    "failed": Outcome.FAILED,
    "rejected": Outcome.REFUSED,
    "timed_out": Outcome.TIMED_OUT,
    "canceled": Outcome.CANCELED,
    "rolled_back": Outcome.ROLLED_BACK,
}
"""Final statuses of docs/mqtt.md; every other status leaves a command open."""

WITHOUT_WORD = frozenset((Outcome.EXPIRED, Outcome.TAKEN_BACK))
"""Ends that we concluded ourselves: a status that comes after all replaces them."""
NOT_ENDED = frozenset((Outcome.WAITING, Outcome.OPEN))


def of_status(status: object) -> Outcome:
    """The outcome that a status of a sent command means."""
    return BY_STATUS.get(status, Outcome.OPEN) if isinstance(status, str) else Outcome.OPEN


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """0 when all succeeded, 3 when nothing is worse than a refusal, else 1; what has not ended counts as failed."""
    seen = set(outcomes) - {Outcome.SUCCEEDED}
    if not seen:
        return DONE
    return REFUSED if seen == {Outcome.REFUSED} else FAILED
