"""Charge, supply and brown-out; the order of jobs when charge is short (R6, R11, R16)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policies.bounds import LOWEST, Bound
from policies.policy import BatteryPolicy
from policies.reading import FULL_DUTY, Action, Decision, Reading

SHORT = frozenset({"battery.pause", "battery.unknown", "battery.low"})
"""Rules under which charge is short, or may be."""

THRIFT = "supply.lost"
"""The rule that only saves energy: it gives way to a prediction, which knows what saves more. `battery.low` does not: a
weak cell sags under the current of a high clock."""


@dataclass(frozen=True, slots=True)
class BatteryState:
    """What must be remembered between two readings."""

    low: bool = False
    paused: bool = False
    undervoltage_until_s: float | None = None
    """Monotonic time until which the undervoltage limit holds; `None`: it does not."""
    throttled_until_s: float | None = None
    unknown: bool = False
    """There is a battery, mains is away, and the charge cannot be believed."""
    lost_until_s: float | None = None
    """Monotonic time until which the board counts as off mains; `None`: it is on mains."""


def judge(policy: BatteryPolicy, state: BatteryState, reading: Reading) -> BatteryState:
    """The supply's state after `reading`.

    A mark is undercut only off mains (an unknown supply counts as off mains). Once undercut, it is left only
    `hysteresis_charge` above the mark, on mains too: a supply that comes and goes does not start and stop the training.
    With mains present and no mark undercut before, a flat battery limits nothing. When mains goes away the board reacts
    with the next reading; when it comes back, or an alarm ends, only after `supply_hold_s`.
    """
    off_mains = not reading.on_mains
    charge = None if reading.charge is None or math.isnan(reading.charge) else reading.charge
    unknown = charge is None and reading.on_mains is False
    return BatteryState(
        low=_below(charge, policy.low_charge, policy.hysteresis_charge, state.low, off_mains=off_mains),
        paused=_below(charge, policy.pause_charge, policy.hysteresis_charge, state.paused, off_mains=off_mains),
        undervoltage_until_s=_hold(policy, state.undervoltage_until_s, reading.mono_s, seen=reading.undervoltage),
        throttled_until_s=_hold(policy, state.throttled_until_s, reading.mono_s, seen=reading.throttled),
        unknown=unknown,
        lost_until_s=_hold(policy, state.lost_until_s, reading.mono_s, seen=reading.on_mains is False),
    )


def bounds(marks: BatteryPolicy, state: BatteryState) -> Iterator[Bound]:
    """What charge and supply ask for."""
    ratio, depth = marks.low_frequency_ratio, marks.low_least_depth_percent
    if state.paused:
        yield Bound("battery.pause", Action.PAUSE, LOWEST, 0.0, depth)
    if state.unknown:
        yield Bound("battery.unknown", Action.SLOW, ratio, FULL_DUTY, depth)
    if state.low:
        yield Bound("battery.low", Action.SLOW, ratio, FULL_DUTY, depth)
    if state.undervoltage_until_s is not None:
        yield Bound("supply.undervoltage", Action.SLOW, marks.undervoltage_frequency_ratio, marks.undervoltage_duty)
    if state.throttled_until_s is not None:
        yield Bound("supply.throttled", Action.SLOW, 1.0, marks.throttled_duty)
    if state.lost_until_s is not None:
        yield Bound(THRIFT, Action.RUN, marks.lost_frequency_ratio)


def is_short(decision: Decision) -> bool:
    """Whether charge is short: below a mark or its hysteresis, or off mains and unknown."""
    return not SHORT.isdisjoint((decision.rule, *decision.notes))


def order_jobs(policy: BatteryPolicy, waiting: Sequence[tuple[str, int]], *, short: bool) -> tuple[str, ...]:
    """Names of waiting jobs in the order to run them (R11).

    Args:
        policy: `order`.
        waiting: (name, freeze depth in percent) in order of arrival.
        short: see `is_short`.

    Returns:
        Order of arrival while charge is not short. Else the jobs that cost least energy first (most frozen), or the
        literal opposite by one policy key; order of arrival among equals.
    """
    jobs = list(waiting)
    if short:
        jobs.sort(key=lambda job: job[1], reverse=policy.order == "most-frozen-first")
    return tuple(name for name, _ in jobs)


def _below(charge: float | None, mark: float, band: float, before: bool, *, off_mains: bool) -> bool:  # noqa: FBT001 - state in, state out
    if charge is None:
        return before and off_mains  # on mains with the battery taken out, nothing is left to protect
    leave = round(mark + band, 6)  # 0.10 + 0.05 would be a hair above 0.15
    return (off_mains and charge < mark) or (before and charge < leave)


def _hold(policy: BatteryPolicy, until_s: float | None, now_s: float, *, seen: bool) -> float | None:
    if seen:
        return now_s + policy.supply_hold_s
    # A deadline further away than the hold itself was set before a reboot restarted the monotonic clock.
    if until_s is None or not now_s < until_s <= now_s + policy.supply_hold_s:
        return None
    return until_s
