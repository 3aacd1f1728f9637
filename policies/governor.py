"""The governor: (state, Reading) -> (state, Decision). The strictest rule wins and is named."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from policies import battery, dvfs, thermal
from policies.policy import Policy, SlowStage, ThermalPolicy
from policies.reading import FULL_DUTY, Action, Decision, Reading
from policies.strict import build
from policies.thermal import ThermalLevel

LOWEST = 0.0
"""Frequency ratio that asks for the slowest operating point."""

RULES: Mapping[str, str] = {
    "thermal.critical": "die above the abort trip",
    "thermal.delta-t-pause": "delta-T above the pause trip",
    "thermal.absolute-pause": "die above the absolute pause trip",
    "thermal.sensor-missing-pause": "too many readings without a believable temperature",
    "thermal.delta-t-hot": "delta-T above the hot trip",
    "thermal.absolute-hot": "die above the absolute hot trip",
    "thermal.sensor-missing": "no believable temperature",
    "thermal.delta-t-slow": "delta-T above the slow trip",
    "thermal.absolute-slow": "die above the absolute slow trip",
    "thermal.rise-slow": "at the present rate of rise the pause trip is near",
    "battery.pause": "charge below the pause mark",
    "battery.unknown": "off mains and the charge cannot be believed",
    "battery.low": "charge below the low mark",
    "supply.undervoltage": "the supply voltage dropped",
    "supply.throttled": "firmware or kernel hold the clock down",
    "dvfs.frozen": "more layers frozen than the mark: a lower clock serves",
}
"""Every rule that may bind a Decision. `run`, `unlimited` and `plan` stand for no rule."""


@dataclass(frozen=True, slots=True)
class GovernorState:
    """What the governor remembers: plain numbers and flags, so `dataclasses.asdict` gives JSON."""

    thermal: thermal.ThermalState = field(default_factory=thermal.ThermalState)
    battery: battery.BatteryState = field(default_factory=battery.BatteryState)


@dataclass(frozen=True, slots=True)
class _Limit:
    """What one rule asks for."""

    rule: str
    action: Action = Action.SLOW
    ratio: float = 1.0
    duty: float = FULL_DUTY
    depth: int = 0
    cooling: float = 0.0


def load_state(table: Mapping[str, object]) -> GovernorState:
    """The state that `dataclasses.asdict` wrote.

    Raises:
        policies.strict.TableError: not such a table.
    """
    return build(GovernorState, table)


def decide(
    policy: Policy, state: GovernorState, reading: Reading, plan_depth_percent: int
) -> tuple[GovernorState, Decision]:
    """Judge one reading.

    Args:
        policy: thresholds.
        state: what the previous call returned, or `GovernorState()`.
        reading: the board now.
        plan_depth_percent: the freeze depth the job planned, 0..100; the clock follows the deeper of it and of the
            depth the rules ask for.

    Returns:
        The next state and the Decision that holds until the next reading. The same inputs give the same outputs.
    """
    after = GovernorState(
        thermal.judge(policy.thermal, state.thermal, reading), battery.judge(policy.battery, state.battery, reading)
    )
    limits = [*_thermal_limits(policy.thermal, after.thermal), *_battery_limits(policy, after.battery)]
    depth = max([plan_depth_percent, *(limit.depth for limit in limits)])
    ratio = dvfs.ratio_for_depth(policy.dvfs, depth)
    if ratio < 1.0:
        limits.append(_Limit("dvfs.frozen", Action.RUN, ratio))
    decision = _combine(limits, reading, reverify=after.thermal.suspect)
    if decision.action < Action.PAUSE:  # this Decision carries the order to verify: training goes on with it
        after = dataclasses.replace(after, thermal=dataclasses.replace(after.thermal, suspect=False))
    return after, decision


def _thermal_limits(policy: ThermalPolicy, state: thermal.ThermalState) -> Iterator[_Limit]:
    if state.absolute_level == ThermalLevel.CRITICAL:
        yield _Limit("thermal.critical", Action.ABORT, LOWEST, 0.0, policy.hot.least_depth_percent, 1.0)
    if state.missing >= policy.missing_pause_readings and policy.pause_without_sensor:
        yield _stopped(policy, "thermal.sensor-missing-pause")
    elif state.missing:
        yield _Limit(
            "thermal.sensor-missing",
            Action.SLOW,
            LOWEST,
            policy.missing_duty,
            policy.slow.least_depth_percent,
            policy.hot.cooling_share,
        )
    for kind, level in (("delta-t", state.delta_level), ("absolute", state.absolute_level)):
        if level == ThermalLevel.PAUSE:
            yield _stopped(policy, f"thermal.{kind}-pause")
        elif level == ThermalLevel.HOT:
            yield _slowed(policy.hot, f"thermal.{kind}-hot")
        elif level == ThermalLevel.SLOW:
            yield _slowed(policy.slow, f"thermal.{kind}-slow")
    if state.rising:
        yield _slowed(policy.slow, "thermal.rise-slow")


def _stopped(policy: ThermalPolicy, rule: str) -> _Limit:
    return _Limit(rule, Action.PAUSE, LOWEST, 0.0, policy.hot.least_depth_percent, 1.0)


def _slowed(stage: SlowStage, rule: str) -> _Limit:
    return _Limit(rule, Action.SLOW, stage.frequency_ratio, stage.duty, stage.least_depth_percent, stage.cooling_share)


def _battery_limits(policy: Policy, state: battery.BatteryState) -> Iterator[_Limit]:
    marks = policy.battery
    ratio, depth = marks.low_frequency_ratio, marks.low_least_depth_percent
    if state.paused:
        yield _Limit("battery.pause", Action.PAUSE, LOWEST, 0.0, depth)
    if state.unknown:
        yield _Limit("battery.unknown", Action.SLOW, ratio, FULL_DUTY, depth)
    if state.low:
        yield _Limit("battery.low", Action.SLOW, ratio, FULL_DUTY, depth)
    if state.undervoltage_until_s is not None:
        yield _Limit("supply.undervoltage", Action.SLOW, marks.undervoltage_frequency_ratio, marks.undervoltage_duty)
    if state.throttled_until_s is not None:
        yield _Limit("supply.throttled", Action.SLOW, 1.0, marks.throttled_duty)


def _combine(limits: list[_Limit], reading: Reading, *, reverify: bool) -> Decision:
    # Equal limits keep the order above, thermal first: max and min return the first of equals.
    none = _Limit("", Action.RUN)
    bound = max(limits, key=lambda x: (x.action, -x.duty, -x.ratio), default=none)
    clock = min(limits, key=lambda x: x.ratio, default=none)
    deep = max(limits, key=lambda x: x.depth, default=none)
    rule = bound.rule if bound.action > Action.RUN else "run"
    return Decision(
        action=bound.action,
        rule=rule,
        frequency_cap_hz=dvfs.cap_hz(reading.operating_points, clock.ratio),
        frequency_rule=clock.rule if clock.ratio < 1.0 and reading.operating_points else "unlimited",
        duty=min((x.duty for x in limits), default=FULL_DUTY),
        least_depth_percent=deep.depth,
        depth_rule=deep.rule if deep.depth > 0 else "plan",
        cooling_level=math.ceil(max((x.cooling for x in limits), default=0.0) * reading.cooling_max),
        reverify=reverify,
        notes=tuple(x.rule for x in limits if x.rule != rule),
    )
