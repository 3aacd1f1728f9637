"""How a roll-out goes on: which boards are next, when it stops, when it is done. Pure.

Order: canaries first; the rest once every canary has ended well enough, never more than `parallel` open at a time.
Boards that are away hold no place: their commands wait at the broker.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from policies.strict import TableError, limits
from service.fleet.outcome import NOT_ENDED, Outcome

MAX_BOARDS = 20_000  # one tenant's
DEFAULT_LEAST_ENDED = 5  # one failure among two ended boards says nothing about a fleet


class Move(StrEnum):
    """What to do now."""

    SEND = "send"
    WAIT = "wait"
    STOP = "stop"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Rules:
    """How a roll-out goes; kept in the state file."""

    canary: int = field(default=0, metadata=limits(0, MAX_BOARDS))
    """Boards that go first, alone."""
    parallel: int = field(default=50, metadata=limits(1, MAX_BOARDS))
    """Most commands open at boards that are there."""
    stop_at: float = field(default=0.2, metadata=limits(0.0, 1.0))
    """Share of boards that did not succeed, among those that ended, at which nothing more is sent."""
    least_ended: int = field(default=DEFAULT_LEAST_ENDED, metadata=limits(1, MAX_BOARDS))
    """Boards that must have ended before the share is judged; canaries are judged by themselves."""
    wait_canary_s: float = field(default=0.0, metadata=limits(0.0, 31 * 86400.0))
    """Time that canaries have to end in; 0: until their commands expire."""

    def __post_init__(self) -> None:
        """A share of 0 would stop before anything failed."""
        if self.stop_at == 0.0:
            raise TableError("stop_at", "must be above 0; with 1 % a roll-out stops at the first failure")


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now, for which places of the order, and why."""

    move: Move
    places: tuple[int, ...] = ()
    why: str = ""


def canaries(boards: int, share: float, count: int) -> int:
    """How many of `boards` go first: `count`, or a share rounded up, so that 10 % of three is one."""
    return min(boards, count or math.ceil(share * boards))


def resumed_rules(rules: Rules, given: Mapping[str, object]) -> dict[str, object]:
    """Rules to go on with, as a table: those of before and what was given anew.

    Whoever sets a new limit has judged the canaries.
    """
    return {**asdict(rules), **given, **({"canary": 0} if "stop_at" in given else {})}


def next_step(rules: Rules, outcomes: Sequence[Outcome], away: Collection[int], canary_age_s: float) -> Step:
    """What a roll-out does now.

    Args:
        rules: see `Rules`.
        outcomes: where the boards stand, in order.
        away: places of boards that are offline and have not answered.
        canary_age_s: seconds since the first canary was sent to; 0 before.
    """
    canary, rest = outcomes[: rules.canary], outcomes[rules.canary :]
    if Outcome.WAITING not in outcomes:  # nothing is left that a stop would spare
        return Step(Move.WAIT if Outcome.OPEN in outcomes else Move.DONE)
    if why := _too_many(outcomes, rules.least_ended, rules.stop_at):
        return Step(Move.STOP, why=why)
    if any(outcome in NOT_ENDED for outcome in canary):
        if rules.wait_canary_s and canary_age_s >= rules.wait_canary_s:
            return Step(Move.STOP, why=f"canaries did not end within {rules.wait_canary_s:g} s")
        return _send(rules, canary, 0, away)
    if why := _too_many(canary, 1, rules.stop_at):
        return Step(Move.STOP, why=f"canaries: {why}")
    return _send(rules, rest, rules.canary, away)


def _send(rules: Rules, outcomes: Sequence[Outcome], first: int, away: Collection[int]) -> Step:
    """To as many as there is room for, of boards whose places begin at `first`."""
    placed = list(enumerate(outcomes, first))
    busy = sum(outcome is Outcome.OPEN and place not in away for place, outcome in placed)
    waiting = [place for place, outcome in placed if outcome is Outcome.WAITING]
    fresh: list[int] = []
    for place in waiting:
        if place not in away:
            if busy >= rules.parallel:
                continue
            busy += 1
        elif len(fresh) >= rules.parallel:  # those that are away go out in batches of the same size
            continue
        fresh.append(place)
    return Step(Move.SEND, tuple(fresh)) if fresh else Step(Move.WAIT)


def _too_many(outcomes: Sequence[Outcome], least: int, stop_at: float) -> str:
    """Why the rule of the error rate asks for a stop, or an empty text."""
    ended = [outcome for outcome in outcomes if outcome not in NOT_ENDED]
    bad = sum(outcome is not Outcome.SUCCEEDED for outcome in ended)
    if len(ended) < least or bad < stop_at * len(ended):
        return ""
    return f"{bad} of {len(ended)} boards that ended did not succeed ({bad / len(ended):.0%}, limit {stop_at:.0%})"
