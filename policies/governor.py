"""The governor: (state, Reading) -> (state, Decision). The strictest rule wins and is named."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from policies import battery, dvfs, memory, predictive, progress, schedule, thermal
from policies.bounds import Bound
from policies.outlook import Outlook
from policies.policy import Policy
from policies.reading import FULL_DUTY, Action, Decision, Reading
from policies.strict import build

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
    "supply.lost": "mains went away",
    "schedule.quiet": "quiet hours",
    "memory.pressure": "memory is short, or tasks wait for it",
    "predict.energy": "most samples per joule",
    "predict.delta-t": "the same among what is predicted to stay cool",
    "predict.deadline": "in time for the job's deadline",
    "predict.charge": "most samples per charge, which will not last for the job",
    "predict.progress": "how far the job is: deeper layers frozen cost less now",
    "dvfs.frozen": "more layers frozen than the mark: a lower clock serves",
}
"""Every rule that may bind a Decision. `run`, `unlimited` and `plan` stand for no rule."""


@dataclass(frozen=True, slots=True)
class GovernorState:
    """What the governor remembers: plain numbers and flags, so `dataclasses.asdict` gives JSON."""

    thermal: thermal.ThermalState = field(default_factory=thermal.ThermalState)
    battery: battery.BatteryState = field(default_factory=battery.BatteryState)
    predictive: predictive.PredictiveState = field(default_factory=predictive.PredictiveState)
    memory: memory.MemoryState = field(default_factory=memory.MemoryState)


def load_state(table: Mapping[str, object]) -> GovernorState:
    """The state that `dataclasses.asdict` wrote.

    Raises:
        policies.strict.TableError: not such a table.
    """
    state = build(GovernorState, table)
    predictive.refuse_unsound(state.predictive)
    return state


def decide(policy: Policy, state: GovernorState, reading: Reading, outlook: Outlook) -> tuple[GovernorState, Decision]:
    """Judge one reading.

    Args:
        policy: thresholds.
        state: what the previous call returned, or `GovernorState()`.
        reading: the board now.
        outlook: the job; the clock follows the deeper of the depth it planned and of the depth the rules ask for.

    Returns:
        The next state and the Decision that holds until the next reading. The same inputs give the same outputs.
    """
    heat = thermal.judge(policy.thermal, state.thermal, reading)
    supply = battery.judge(policy.battery, state.battery, reading)
    room = memory.judge(policy.memory, state.memory, reading)
    bounds = [*battery.bounds(policy.battery, supply), *schedule.bounds(policy.schedule, outlook)]
    bounds += memory.bounds(room)
    bounds += _progress(policy, outlook)
    # Before the heat's own bounds, of which the choice must know nothing: it would be another one when it is hotter.
    freed = [dataclasses.replace(bound, ratio=1.0) if bound.rule == battery.THRIFT else bound for bound in bounds]
    foresight, predicted = predictive.choose(policy, state.predictive, reading, outlook, freed)
    bounds = [*thermal.bounds(policy.thermal, heat), *(bounds if predicted is None else freed)]
    bounds += _frozen(policy, outlook, bounds) if predicted is None else [predicted]
    decision = _combine(bounds, reading, reverify=heat.suspect)
    foresight = predictive.learn(foresight, reading, outlook, decision.duty)
    if decision.action < Action.PAUSE:  # this Decision carries the order to verify: training goes on with it
        heat = dataclasses.replace(heat, suspect=False)
    return GovernorState(heat, supply, foresight, room), decision


def _progress(policy: Policy, outlook: Outlook) -> list[Bound]:
    bound = progress.least_depth(policy.predictive, outlook) if policy.predictive.enabled else None
    return [] if bound is None else [bound]


def _frozen(policy: Policy, outlook: Outlook, bounds: list[Bound]) -> list[Bound]:
    depth = max([outlook.plan_depth_percent, *(bound.depth for bound in bounds)])
    ratio = dvfs.ratio_for_depth(policy.dvfs, depth)
    return [Bound("dvfs.frozen", Action.RUN, ratio)] if ratio < 1.0 else []


def _combine(bounds: list[Bound], reading: Reading, *, reverify: bool) -> Decision:
    # Equal bounds keep the order above, thermal first: max and min return the first of equals.
    none = Bound("", Action.RUN)
    bound = max(bounds, key=lambda x: (x.action, -x.duty, -x.ratio), default=none)
    clock = min(bounds, key=lambda x: x.ratio, default=none)
    deep = max(bounds, key=lambda x: x.depth, default=none)
    lasting = max((x.depth for x in bounds if not x.depth_until_samples), default=0)
    small = min(bounds, key=lambda x: x.micro_batch_share, default=none)
    rule = bound.rule if bound.action > Action.RUN else "run"
    return Decision(
        action=bound.action,
        rule=rule,
        frequency_cap_hz=dvfs.cap_hz(reading.operating_points, clock.ratio),
        frequency_rule=clock.rule if clock.ratio < 1.0 and reading.operating_points else "unlimited",
        duty=min((x.duty for x in bounds), default=FULL_DUTY),
        least_depth_percent=deep.depth,
        depth_rule=deep.rule if deep.depth > 0 else "plan",
        depth_until_samples=deep.depth_until_samples if deep.depth > lasting else 0,
        depth_after_percent=lasting,
        micro_batch_share=small.micro_batch_share,
        batch_rule=small.rule if small.micro_batch_share < 1.0 else "plan",
        cooling_level=math.ceil(max((x.cooling for x in bounds), default=0.0) * reading.cooling_max),
        reverify=reverify,
        notes=tuple(x.rule for x in bounds if x.rule != rule),
    )
