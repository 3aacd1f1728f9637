"""The policy's `[schedule]` table: hours in which the board should be quiet."""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.strict import TableError, limits

MINUTES_A_DAY = 24 * 60


@dataclass(frozen=True, slots=True)
class SchedulePolicy:
    """Quiet hours. They count by the board's local time, and only while its clock can be trusted."""

    quiet: str = field(default="", metadata=limits(longest=11))
    """`22:00-07:00`; empty: none."""
    quiet_action: str = field(default="slow", metadata=limits(choices=("slow", "pause")))
    """`slow`: a lower clock and duty, so that a fan stays slow; `pause`: no training at all."""
    quiet_frequency_ratio: float = field(default=0.6, metadata=limits(0.05, 1.0))
    quiet_duty: float = field(default=0.5, metadata=limits(0.05, 1.0))

    def __post_init__(self) -> None:
        """Refuse hours that are none, or that last no time."""
        if self.quiet and self.minutes() is None:
            raise TableError("quiet", f"must look like 22:00-07:00 and not begin when it ends, is {self.quiet!r}")

    def minutes(self) -> tuple[int, int] | None:
        """First minute of the day and the first one after, 0..1439; `None` where the hours are none."""
        return parse_hours(self.quiet)


def parse_hours(text: str) -> tuple[int, int] | None:
    """Minutes of the day, 0..1439, at which `22:00-07:00` begins and ends; `None` where the text is no such hours."""
    begin, _, end = text.partition("-")
    hours = _minute(begin), _minute(end)
    return None if hours[0] is None or hours[1] is None or hours[0] == hours[1] else (hours[0], hours[1])


def _minute(text: str) -> int | None:
    hour, _, minute = text.partition(":")
    if not (text.isascii() and len(hour) == len(minute) == 2 and hour.isdecimal() and minute.isdecimal()):  # noqa: PLR2004 - HH:MM
        return None
    total = int(hour) * 60 + int(minute)
    return total if int(minute) < 60 and total < MINUTES_A_DAY else None  # noqa: PLR2004 - minutes an hour
