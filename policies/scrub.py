"""When stored files are due to be scrubbed (R14), on clocks that jump and on boards that restart."""

from __future__ import annotations

from dataclasses import dataclass

from policies.policy import ScrubPolicy
from policies.reading import Action, Decision

SECONDS_PER_HOUR = 3600.0
SETTLE_S = 60.0  # a board that has just started has better things to do
FRESH_S = 600.0  # a job that follows this soon after a scrub needs none of its own


@dataclass(frozen=True, slots=True)
class ScrubClock:
    """What is known of time since the last scrub.

    Attributes:
        running_s: monotonic seconds since the daemon started, or since the last scrub ended in this run of it.
        scrubbed: a scrub has ended in this run of the daemon.
        elapsed_s: by the wall clock, since the last scrub of an earlier run; `None` where there was none or the clock
            cannot be believed. Negative, or far too long, where the clock was set meanwhile.
    """

    running_s: float
    scrubbed: bool
    elapsed_s: float | None


def due(policy: ScrubPolicy, clock: ScrubClock) -> bool:
    """Whether the interval is over.

    Once the daemon has scrubbed, only its monotonic clock counts, so a wall clock that jumps can neither start scrubs
    without end nor put them off for ever. The wall clock decides once a start at most: a board without a believable
    time scrubs a minute after each start, which is too often rather than never.
    """
    every_s = policy.every_hours * SECONDS_PER_HOUR
    if clock.running_s < SETTLE_S:
        return False
    if clock.running_s >= every_s:
        return True
    return not clock.scrubbed and (clock.elapsed_s is None or not 0.0 <= clock.elapsed_s < every_s)


def due_before_job(clock: ScrubClock) -> bool:
    """Whether a job that is about to start should wait for a scrub."""
    return not clock.scrubbed or clock.running_s >= FRESH_S


def allowed(decision: Decision) -> bool:
    """Whether a scrub that nobody asked for may start: not in the heat, and not when charge is short."""
    short = any(rule.startswith("battery.") for rule in (decision.rule, *decision.notes))
    return decision.action < Action.PAUSE and not short


def duty(policy: ScrubPolicy, decision: Decision, *, awaited: bool) -> float:
    """Share of time for a running scrub, 0..1: the governor's, and only the policy's part of it while nobody waits."""
    return decision.duty if awaited else decision.duty * policy.duty
