"""Alarms: the judge that raises and clears. Pure: facts in, state out.

A cause must last before its alarm is raised, and stay away before it is cleared, so no alarm flaps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from service.alarms_kinds import KINDS, Evidence, Facts, Kind

FRESH_S = 60.0  # between two changes of an alarm's evidence: each is a message and a write to the disk


@dataclass(frozen=True, slots=True)
class Raised:
    """An alarm that is raised."""

    since: float
    """When its cause came, seconds since 1970 by the clock of then."""
    evidence: Evidence
    """Numbers are those of the moment at which it was raised or the rest changed."""


@dataclass(frozen=True, slots=True)
class AlarmState:
    """What must be remembered; only `raised` outlives the daemon. Times are monotonic seconds."""

    raised: Mapping[str, Raised] = field(default_factory=dict)
    since_s: Mapping[str, float] = field(default_factory=dict)
    """Since when the cause of an alarm that is not raised has been there."""
    seen_s: Mapping[str, float] = field(default_factory=dict)
    """When the cause of a raised alarm was there last; after a start of the daemon: the first look."""
    changed_s: Mapping[str, float] = field(default_factory=dict)
    """When the evidence of a raised alarm was taken."""


def judge(state: AlarmState, facts: Facts, mono_s: float, now: float) -> AlarmState:
    """The state after `facts`.

    Args:
        state: what the previous call returned, or one with the alarms that were raised before the start.
        facts: of this moment.
        mono_s: monotonic clock, seconds.
        now: wall clock, seconds since 1970: of alarms that are raised now.
    """
    raised: dict[str, Raised] = {}
    since: dict[str, float] = {}
    seen: dict[str, float] = {}
    changed: dict[str, float] = {}
    for kind in KINDS.values():
        evidence, before = _evidence(kind, facts), state.raised.get(kind.type)
        if before is not None:
            last = mono_s if evidence is not None else state.seen_s.get(kind.type, mono_s)
            if evidence is not None or mono_s - last < kind.clear_after_s:
                taken = state.changed_s.get(kind.type, mono_s - FRESH_S)
                raised[kind.type] = _fresh(before, evidence) if mono_s - taken >= FRESH_S else before
                seen[kind.type] = last
                changed[kind.type] = taken if raised[kind.type] is before else mono_s
        elif evidence is not None:
            first = state.since_s.get(kind.type, mono_s)
            if mono_s - first < kind.raise_after_s:
                since[kind.type] = first
            else:
                raised[kind.type] = Raised(now - (mono_s - first), evidence)
                seen[kind.type] = changed[kind.type] = mono_s
    return AlarmState(raised, since, seen, changed)


def body(kind: str, alarm: Raised, ts: float, clock: str) -> dict[str, object]:
    """The message of docs/alarms.md; `clock` says how far `ts` can be believed."""
    about = KINDS[kind]
    when = {"since": alarm.since, "ts": ts, "clock": clock}
    return {"type": kind, "severity": str(about.severity), **when, "reason": about.reason, "evidence": alarm.evidence}


def _fresh(before: Raised, evidence: Evidence | None) -> Raised:
    """The alarm with newer evidence, where more than a measured number has changed."""
    if evidence is None or _named(evidence) == _named(before.evidence):
        return before
    return Raised(before.since, evidence)


def _named(evidence: Evidence) -> dict[str, object]:
    return {key: value for key, value in evidence.items() if not isinstance(value, int | float | None)}


def _evidence(kind: Kind, facts: Facts) -> Evidence | None:
    found = kind.cause(facts)
    return None if found is None else {key: _finite(value) for key, value in found.items()}


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
