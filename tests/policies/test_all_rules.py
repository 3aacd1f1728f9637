"""What holds for every rule, every policy, every board: the strictest wins, and what binds is named."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from policies import battery, dvfs, memory, schedule, thermal
from policies.governor import RULES, GovernorState, decide
from policies.outlook import DepthCost, Outlook
from policies.policy import DEPTH_LADDER, Policy, parse_policy
from policies.reading import Action, Decision, OperatingPoint, Reading

TABLES = (
    tuple(OperatingPoint(mhz * 1_000_000, 0.8) for mhz in range(600, 1801, 100)),
    tuple(OperatingPoint(mhz * 1_000_000, 0.8) for mhz in range(1500, 2401, 100)),
    (OperatingPoint(1_000_000_000, 0.8),),
    (),
)
UNTIMED = settings(deadline=None)  # a busy machine is no failure
LIMITS = st.floats(0.05, 1.0, allow_subnormal=False)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Policies that are accepted, with every ratio, duty and depth drawn."""
    base = Policy()
    ratios, duties, depths = (sorted(draw(st.tuples(s, s))) for s in (LIMITS, LIMITS, st.sampled_from(DEPTH_LADDER)))
    slow = replace(
        base.thermal.slow, frequency_ratio=ratios[1], duty=duties[1], least_depth_percent=depths[0], cooling_share=0.3
    )
    hot = replace(base.thermal.hot, frequency_ratio=ratios[0], duty=duties[0], least_depth_percent=depths[1])
    action = draw(st.sampled_from(["slow", "pause"]))
    return replace(
        base,
        thermal=replace(
            base.thermal, slow=slow, hot=hot, hysteresis_kelvin=draw(st.floats(0.5, 20, allow_subnormal=False))
        ),
        battery=replace(
            base.battery,
            **{
                item.name: draw(LIMITS)
                for item in dataclasses.fields(base.battery)
                if item.name.endswith(("frequency_ratio", "duty"))
            },
        ),
        dvfs=replace(base.dvfs, frozen_frequency_ratio=draw(LIMITS), frozen_over_percent=draw(st.integers(0, 100))),
        schedule=replace(base.schedule, quiet="22:00-07:00", quiet_action=action, quiet_frequency_ratio=draw(LIMITS)),
        predictive=replace(base.predictive, enabled=draw(st.booleans())),
    )


READINGS = st.builds(
    Reading,
    mono_s=st.floats(0, 1e6, allow_subnormal=False),
    temperature_celsius=st.none() | st.floats(-20, 130, allow_subnormal=False),
    ambient_celsius=st.none() | st.floats(-20, 60, allow_subnormal=False),
    operating_points=st.sampled_from(TABLES),
    charge=st.none() | st.floats(0, 1, allow_subnormal=False),
    on_mains=st.sampled_from([None, True, False]),
    undervoltage=st.booleans(),
    throttled=st.booleans(),
    cooling_max=st.integers(0, 10),
    power_watts=st.none() | st.floats(0, 50, allow_subnormal=False),
    power_is_modelled=st.booleans(),
    utilisation=st.none() | st.floats(0, 1, allow_subnormal=False),
    memory_available_bytes=st.none() | st.integers(0, 1 << 30),
    pressure=st.lists(st.tuples(st.just("memory"), st.floats(0, 1, allow_subnormal=False)), max_size=1).map(tuple),
)
COSTS = st.sampled_from([(), tuple(DepthCost(depth, 0.1 - depth / 2000) for depth in DEPTH_LADDER)])
OUTLOOKS = st.builds(
    Outlook,
    plan_depth_percent=st.sampled_from(DEPTH_LADDER),
    costs=COSTS,
    samples_left=st.none() | st.integers(0, 100_000),
    deadline_mono_s=st.none() | st.floats(0, 1e6, allow_subnormal=False),
    minute_of_day=st.none() | st.integers(0, 1439),
)


def run(policy: Policy, readings: list[Reading], outlook: Outlook) -> GovernorState:
    state = GovernorState()
    for reading in readings:
        state, _ = decide(policy, state, reading, outlook)
    return state


def faster(one: Decision, other: Decision) -> bool:
    """Whether `one` lets any lever go further than `other`."""
    return (
        one.action < other.action
        or one.duty > other.duty
        or (one.frequency_cap_hz or 0) > (other.frequency_cap_hz or 0)
        or one.least_depth_percent < other.least_depth_percent
        or one.cooling_level < other.cooling_level
        or one.micro_batch_share > other.micro_batch_share
    )


@UNTIMED
@given(policies(), st.lists(READINGS, max_size=5), READINGS, OUTLOOKS)
def test_no_decision_is_above_any_bound_of_any_rule(
    policy: Policy, before: list[Reading], reading: Reading, outlook: Outlook
) -> None:
    state, decision = decide(policy, run(policy, before, outlook), reading, outlook)
    asked = [
        *thermal.bounds(policy.thermal, state.thermal),
        *battery.bounds(policy.battery, state.battery),
        *schedule.bounds(policy.schedule, outlook),
        *memory.bounds(state.memory),
    ]
    for bound in asked:
        assert decision.action >= bound.action
        assert decision.duty <= bound.duty
        assert decision.least_depth_percent >= bound.depth
        assert decision.micro_batch_share <= bound.micro_batch_share
        assert decision.cooling_level >= bound.cooling * reading.cooling_max
        assert bound.rule in {decision.rule, *decision.notes}
        assert (decision.frequency_cap_hz or 0) <= (dvfs.cap_hz(reading.operating_points, bound.ratio) or 0)
    assert (decision.frequency_cap_hz is None) == (not reading.operating_points)
    assert decision.cooling_level <= reading.cooling_max


@UNTIMED
@given(policies(), st.lists(READINGS, max_size=5), READINGS, OUTLOOKS)
def test_every_decision_names_a_rule_that_there_is(
    policy: Policy, before: list[Reading], reading: Reading, outlook: Outlook
) -> None:
    _, decision = decide(policy, run(policy, before, outlook), reading, outlook)
    known = set(RULES)
    assert decision.rule in known | {"run"}
    assert decision.frequency_rule in known | {"unlimited"}
    assert decision.depth_rule in known | {"plan"}
    assert set(decision.notes) <= known
    assert (decision.action is Action.RUN) == (decision.rule == "run")
    assert (decision.duty == 0.0) == (decision.action >= Action.PAUSE)


def under_fixed_rules(
    policy: Policy, before: list[Reading], outlook: Outlook, readings: list[Reading]
) -> list[Decision]:
    """What is decided of each of `readings`, from the state that those before it left."""
    fixed = replace(policy, predictive=replace(policy.predictive, enabled=False))
    state = run(fixed, before, outlook)
    return [decide(fixed, state, reading, outlook)[1] for reading in readings]


@UNTIMED
@given(
    policies(),
    st.lists(READINGS, max_size=5),
    READINGS,
    OUTLOOKS,
    st.tuples(*[st.floats(-20, 130, allow_subnormal=False)] * 2),
)
def test_under_the_fixed_rules_hotter_is_never_faster(
    policy: Policy, before: list[Reading], reading: Reading, outlook: Outlook, pair: tuple[float, float]
) -> None:
    readings = [replace(reading, temperature_celsius=t) for t in sorted(pair)]
    cool, hot = under_fixed_rules(policy, before, outlook, readings)
    assert not faster(hot, cool)


@UNTIMED
@given(
    policies(),
    st.lists(READINGS, max_size=5),
    READINGS,
    OUTLOOKS,
    st.tuples(*[st.floats(0, 1, allow_subnormal=False)] * 2),
)
def test_under_the_fixed_rules_a_lower_charge_is_never_faster(
    policy: Policy, before: list[Reading], reading: Reading, outlook: Outlook, pair: tuple[float, float]
) -> None:
    empty, full = under_fixed_rules(policy, before, outlook, [replace(reading, charge=c) for c in sorted(pair)])
    assert not faster(empty, full)


@UNTIMED
@given(policies(), policies(), st.lists(READINGS, max_size=5), READINGS, OUTLOOKS)
def test_a_policy_that_changes_under_way_binds_with_the_next_reading(
    old: Policy, new: Policy, before: list[Reading], reading: Reading, outlook: Outlook
) -> None:
    state, decision = decide(new, run(old, before, outlook), reading, outlook)
    for bound in thermal.bounds(new.thermal, state.thermal):
        assert decision.action >= bound.action
        assert decision.duty <= bound.duty
    celsius = reading.temperature_celsius
    if celsius is not None and celsius > new.thermal.pause.absolute_celsius:
        assert decision.action >= Action.PAUSE


def test_a_stricter_policy_binds_at_once_and_a_milder_one_lets_go_at_its_own_trips() -> None:
    strict = parse_policy("[thermal.slow]\nabsolute_celsius = 50.0\n[thermal]\nrise_lookahead_s = 0.0")
    reading = Reading(0.0, 52.0, 30.0, operating_points=TABLES[0])
    state, easy = decide(Policy(), GovernorState(), reading, Outlook())
    state, bound = decide(strict, state, replace(reading, mono_s=1.0), Outlook())
    assert (easy.rule, bound.rule) == ("run", "thermal.absolute-slow")
    _, again = decide(Policy(), state, replace(reading, mono_s=2.0), Outlook())
    assert again.rule == "run"
