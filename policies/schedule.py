"""Quiet hours: when the owner wants the board slow, or still."""

from __future__ import annotations

from collections.abc import Iterator

from policies.bounds import LOWEST, Bound
from policies.outlook import Outlook
from policies.policy_schedule import SchedulePolicy
from policies.reading import Action

QUIET = "schedule.quiet"


def bounds(policy: SchedulePolicy, outlook: Outlook) -> Iterator[Bound]:
    """What the hour asks for; nothing while it is not known."""
    if not is_quiet(policy, outlook.minute_of_day):
        return
    if policy.quiet_action == "pause":
        yield Bound(QUIET, Action.PAUSE, LOWEST, 0.0)
    else:
        yield Bound(QUIET, Action.SLOW, policy.quiet_frequency_ratio, policy.quiet_duty)


def is_quiet(policy: SchedulePolicy, minute_of_day: int | None) -> bool:
    """Whether `minute_of_day` (local time, 0..1439) lies in the quiet hours.

    The first minute belongs to them, the one at their end does not. Hours that end before they begin go over midnight.
    Without a time that can be trusted nothing is quiet: a board that lost its clock still does its work.
    """
    hours = policy.minutes()
    return hours is not None and minute_of_day is not None and is_within(hours, minute_of_day)


def is_within(hours: tuple[int, int], minute_of_day: int) -> bool:
    """Whether a minute lies in hours given by their first minute and the first one after."""
    begin, end = hours
    return begin <= minute_of_day < end if begin < end else minute_of_day >= begin or minute_of_day < end
