"""What happens to the board in a day: drawn from a seed, so that a day that went wrong can be had again. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

HOUR_S = 3600.0
QUIET_SHARE = 0.25
"""The last part of the day in which the daemon lives on: its memory is watched over it."""


class Kind(StrEnum):
    """What may happen."""

    JOB = "job"
    EVALUATE = "evaluate"
    ROLLBACK = "rollback"
    SCRUB = "scrub"
    REPORT = "collect-report"
    UPDATE = "update-agent"
    HEAT = "heat wave"
    SUPPLY = "supply cut"
    BROKER = "broker away"
    REPOSITORY = "repository away"
    DISK = "disk full"
    KILL_DAEMON = "daemon killed"
    KILL_WORKER = "worker killed"
    KILL_BOARD = "emulator killed"


COMMANDS = (Kind.JOB, Kind.EVALUATE, Kind.ROLLBACK, Kind.SCRUB, Kind.REPORT, Kind.UPDATE)
A_DAY = {  # how many in 24 hours, and how many minutes each lasts
    Kind.JOB: (48, (0, 0)),
    Kind.EVALUATE: (8, (0, 0)),
    Kind.ROLLBACK: (4, (0, 0)),
    Kind.SCRUB: (4, (0, 0)),
    Kind.REPORT: (12, (0, 0)),
    Kind.UPDATE: (2, (0, 0)),
    Kind.HEAT: (8, (5, 25)),
    Kind.SUPPLY: (3, (20, 90)),
    Kind.BROKER: (6, (5, 45)),
    Kind.REPOSITORY: (4, (10, 60)),
    Kind.DISK: (4, (10, 30)),
    Kind.KILL_DAEMON: (12, (0, 0)),
    Kind.KILL_WORKER: (12, (0, 0)),
    Kind.KILL_BOARD: (4, (0, 0)),
}
ENDS_THE_DAEMON = (Kind.KILL_DAEMON, Kind.UPDATE, Kind.DISK)
"""Not in the quiet part; a full disk may end a daemon that starts."""
EPOCHS = (40, 400)
HEAT_WATTS = (1.0, 8.0)
CHARGE = (0.15, 1.0)
SAME_FAULT_APART = 1.5  # of the longest: two faults of a kind never overlap


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens."""

    at_s: float
    """Seconds since the day began, of the emulated day."""
    kind: Kind
    lasts_s: float = 0.0
    value: float = 0.0
    """Epochs of a job, watts of a heat wave, state of charge at a supply cut; else 0."""


def day(seed: int, hours: float) -> list[Event]:
    """The events of so many hours, in order of time.

    Args:
        seed: another seed is another day.
        hours: of the emulated day; the numbers of `A_DAY` are taken in proportion.
    """
    draw = random.Random(seed)
    events = [event for kind in Kind for event in _of(kind, draw, hours * HOUR_S)]
    return sorted(events, key=lambda event: event.at_s)


def _of(kind: Kind, draw: random.Random, day_s: float) -> Iterator[Event]:
    """The events of one kind, each in a stretch of its own, so that they are spread and never overlap."""
    times, (shortest, longest) = A_DAY[kind]
    count = max(1, round(times * day_s / (24 * HOUR_S)))
    span = day_s * ((1 - QUIET_SHARE) if kind in ENDS_THE_DAEMON else 0.95)
    stretch = span / count
    for number in range(count):
        lasts = min(draw.uniform(shortest, longest) * 60, stretch / SAME_FAULT_APART)
        yield Event(number * stretch + draw.uniform(0, stretch - lasts), kind, lasts, _value(kind, draw))


def _value(kind: Kind, draw: random.Random) -> float:
    ranges = {Kind.JOB: EPOCHS, Kind.HEAT: HEAT_WATTS, Kind.SUPPLY: CHARGE}
    return round(draw.uniform(*ranges[kind]), 3) if kind in ranges else 0.0
