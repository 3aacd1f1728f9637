"""Where a policy and a board do not fit: said, and lived with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from policies.dvfs import TABLE_TOLERANCE, cap_hz
from policies.policy import Policy
from policies.policy_schedule import SchedulePolicy
from policies.reading import OperatingPoint

RATIO = "frequency_ratio"
MAX_NAMED = 5  # clocks named in one sentence
_MEGA = 1e6


@dataclass(frozen=True, slots=True)
class Clock:
    """What one ratio of a policy comes to on one board."""

    key: str
    """Dotted key of the policy."""
    ratio: float
    frequency_hz: int
    """The operating point that serves."""
    top_hz: int

    @property
    def reached(self) -> bool:
        """Whether the point is at or below the ratio: false where even the slowest point is above it."""
        return self.frequency_hz <= (self.ratio + TABLE_TOLERANCE) * self.top_hz

    def __str__(self) -> str:
        """For people, e.g. `thermal.hot.frequency_ratio 0.6: 1000 of 1800 MHz`."""
        return f"{self.key} {self.ratio:g}: {_mhz(self.frequency_hz)} of {_mhz(self.top_hz)} MHz"


def clocks(policy: Policy, points: tuple[OperatingPoint, ...]) -> tuple[Clock, ...]:
    """What every clock ratio that `policy` uses comes to on a board with the clock table `points`; none without one."""
    if not points:
        return ()
    top = max(point.frequency_hz for point in points)
    return tuple(Clock(key, ratio, cap_hz(points, ratio) or top, top) for key, ratio in _ratios(policy))


def complaints(policy: Policy, points: tuple[OperatingPoint, ...]) -> tuple[str, ...]:
    """What of `policy` a board with the clock table `points` cannot do, one sentence each; empty where all fits."""
    found = clocks(policy, points)
    told = [_unreached(clock) for clock in found if not clock.reached]
    at = {clock.key: clock for clock in found}
    slow, hot = at.get(f"thermal.slow.{RATIO}"), at.get(f"thermal.hot.{RATIO}")
    if slow and hot and hot.reached and hot.ratio < slow.ratio and hot.frequency_hz == slow.frequency_hz:
        told.append(
            f"{hot.key} {hot.ratio:g} is no slower here than {slow.key} {slow.ratio:g}: "
            f"both come to {_mhz(hot.frequency_hz)} MHz"
        )
    return tuple(told)


def unlisted(profile: tuple[OperatingPoint, ...], kernel: tuple[OperatingPoint, ...]) -> str:
    """A sentence about operating points of a board profile that the kernel's clock table does not have.

    The kernel's table is the one that serves. Points nearer than the rounding of such tables count as the same.

    Args:
        profile: the table the profile expects; empty where it expects none.
        kernel: the table the kernel lists; empty where it lists none, and then the clock is not steered.

    Returns:
        Empty where all are listed, or where one of the tables is empty.
    """
    if not profile or not kernel:
        return ""
    near = TABLE_TOLERANCE * max(point.frequency_hz for point in kernel)
    lacking = sorted(
        point.frequency_hz
        for point in profile
        if all(abs(point.frequency_hz - other.frequency_hz) > near for other in kernel)
    )
    if not lacking:
        return ""
    more = "" if len(lacking) <= MAX_NAMED else f" and {len(lacking) - MAX_NAMED} more"
    named = ", ".join(_mhz(hz) for hz in lacking[:MAX_NAMED])
    return f"the kernel does not list {named}{more} MHz of the board profile: the kernel's clock table serves"


def _unreached(clock: Clock) -> str:
    return (
        f"{clock.key} {clock.ratio:g} asks for at most {_mhz(clock.ratio * clock.top_hz)} MHz: "
        f"the slowest operating point, {_mhz(clock.frequency_hz)} MHz, serves instead"
    )


def _ratios(table: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Every clock ratio in use, by its dotted key."""
    for item in dataclasses.fields(table):  # type: ignore[arg-type]
        value, key = getattr(table, item.name), f"{path}{item.name}"
        if dataclasses.is_dataclass(value):
            if not isinstance(value, SchedulePolicy) or value.quiet:
                yield from _ratios(value, f"{key}.")
        elif item.name.endswith(RATIO):
            yield key, float(value)


def _mhz(hertz: float) -> str:
    return f"{hertz / _MEGA:.0f}"
