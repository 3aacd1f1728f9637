"""Memory that runs short: a smaller micro-batch before the kernel ends the worker.

The optimizer's batch stays, so what is learnt stays: fewer samples go through the step at once, and their tensors are
what a training step needs most of its memory for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from policies.bounds import Bound
from policies.policy_memory import MemoryPolicy
from policies.reading import Action, Reading
from policies.strict import limits

SHARES = (1.0, 0.5, 0.25, 0.125)
"""Of the usual micro-batch. An eighth of it leaves next to nothing to save: weights and runtime stay."""
SETTLE_S = 10.0
"""Between two steps down: the kernel's mean over 10 s must have seen the first."""
CALM_PART = 0.5
"""Of `pressure_share`: at or below, the pressure counts as gone."""
BYTES_IN_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryState:
    """What must be remembered between two readings."""

    level: int = field(default=0, metadata=limits(0, len(SHARES) - 1))
    """Place in `SHARES`."""
    changed_s: float = 0.0
    """Monotonic time of the last change of `level`."""
    calm_since_s: float | None = None
    """Monotonic time since which memory has been plenty without a break; `None`: it is not."""


class _Supply(Enum):
    SHORT, BETWEEN, PLENTY = range(3)


def judge(policy: MemoryPolicy, state: MemoryState, reading: Reading) -> MemoryState:
    """The state after `reading`.

    Memory is short when less than `available_mib` is available, or when tasks waited for memory for more than
    `pressure_share` of the last ten seconds (PSI, `some`): then the level rises at once, and again every `SETTLE_S`. It
    falls by one after each `calm_s` without a break in which memory was plenty: `hysteresis_mib` above the mark, and
    half of the pressure or less. In between, and while the board tells neither, it stays.
    """
    now, level = reading.mono_s, state.level
    supply = _supply(policy, reading)
    if supply is _Supply.SHORT:
        settled = level == 0 or not 0.0 <= now - state.changed_s < SETTLE_S
        if settled and level < len(SHARES) - 1:
            return MemoryState(level + 1, now)
        return MemoryState(level, state.changed_s)
    if supply is _Supply.BETWEEN:
        return MemoryState(level, state.changed_s)
    since = state.calm_since_s
    if since is None or since > now:  # later than now: the monotonic clock was restarted by a reboot
        since = now
    if level and now - since >= policy.calm_s:
        return MemoryState(level - 1, now, now)
    return MemoryState(level, state.changed_s, since)


def bounds(state: MemoryState) -> Iterator[Bound]:
    """What short memory asks for."""
    if state.level:
        yield Bound("memory.pressure", Action.RUN, micro_batch_share=SHARES[state.level])


def _supply(policy: MemoryPolicy, reading: Reading) -> _Supply:
    available, waited = reading.memory_available_bytes, dict(reading.pressure).get("memory")
    mark, plenty = policy.available_mib, policy.available_mib + policy.hysteresis_mib
    if available is not None and available < mark * BYTES_IN_MIB:
        return _Supply.SHORT
    if waited is not None and waited > policy.pressure_share:
        return _Supply.SHORT
    if available is None and waited is None:
        return _Supply.BETWEEN
    roomy = available is None or available >= plenty * BYTES_IN_MIB
    quiet = waited is None or waited <= policy.pressure_share * CALM_PART
    return _Supply.PLENTY if roomy and quiet else _Supply.BETWEEN
