"""What raises an alarm and what clears it; nothing flaps."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.battery import BatteryState
from policies.battery import bounds as battery_bounds
from policies.governor import RULES, GovernorState, decide
from policies.outlook import Outlook
from policies.policy import Policy
from policies.reading import Decision, Health, Reading
from service.alarms import FRESH_S, AlarmState, body, judge
from service.alarms_kinds import FAILURES, KINDS, LEAST_FREE_BYTES, Facts, Severity

WELL = Facts()
NOW = 1_800_000_000.0
PAGE = Path(__file__).parents[2] / "docs" / "alarms.md"


def decided(*rules: str) -> Facts:
    return Facts(decision=Decision(rule=rules[0], notes=rules[1:]))


def health(name: str, value: Health) -> Facts:
    return Facts(reading=Reading(0.0, health=(("power", Health.OK), (name, value))))


CAUSES: dict[str, list[Facts]] = {
    "overheated": [decided("thermal.delta-t-pause"), decided("schedule.quiet", "thermal.absolute-pause")],
    "critical-temperature": [decided("thermal.critical")],
    "temperature-lost": [health("temperature", h) for h in (Health.MISSING, Health.FROZEN, Health.IMPOSSIBLE)],
    "battery-low": [decided("battery.pause"), decided("run", "battery.low")],
    "battery-unknown": [decided("battery.unknown")],
    "undervoltage": [Facts(reading=Reading(0.0, undervoltage=True))],
    "throttled": [decided("supply.throttled")],
    "lever-refused": [health("frequency-cap", Health.REFUSED)],
    "lever-overridden": [health("cooling", Health.OVERRIDDEN)],
    "memory-faults": [Facts(memory_faults=3, new_memory_faults=1)],
    "store-damaged": [Facts(unrepairable=1)],
    "model-unusable": [Facts(unusable=("sealed-tag", "ab" * 32))],
    "agent-rolled-back": [Facts(rolled_back=("trial-heat", "0.2.0"))],
    "safe-mode": [Facts(safe_mode=("restart-loop", "0.1.0"))],
    "disk-full": [Facts(disk_refusal="no-space"), Facts(free_bytes=LEAST_FREE_BYTES - 1)],
    "disk-failing": [Facts(disk_refusal="disk")],
    "clock-unsynchronised": [Facts(clock_synchronised=False)],
    "journal-quarantined": [Facts(quarantined=("journal.sqlite.corrupt-1",))],
    "taken-over": [Facts(takeovers=1, new_takeovers=1)],
    "jobs-failing": [Facts(failed_jobs=FAILURES, last_failure="gate")],
    "repository-expired": [Facts(failed_jobs=1, last_failure="metadata-expired")],
    "policy-invalid": [Facts(policy_complaint="no such key")],
}
PAIRS = [(kind, facts) for kind, several in CAUSES.items() for facts in several]


def after(looks: Iterable[tuple[float, Facts]], state: AlarmState | None = None) -> AlarmState:
    state = state or AlarmState()
    for mono_s, facts in looks:
        state = judge(state, facts, mono_s, NOW + mono_s)
    return state


def lasting(facts: Facts, first: float, seconds: float) -> list[tuple[float, Facts]]:
    return [(first + second, facts) for second in range(int(seconds) + 1)]


def test_every_kind_has_a_cause_here_and_a_line_in_the_page() -> None:
    assert CAUSES.keys() == KINDS.keys()
    rows = [line.split("|")[1:-1] for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    told = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows}
    assert told.keys() == KINDS.keys()
    for kind in KINDS.values():
        severity, _raised, cleared, keys = told[kind.type]
        assert severity == kind.severity
        assert [key.strip(" `") for key in keys.split(",") if key] == list(kind.keys)
        held = {0.0: "", 10.0: "10 s", 60.0: "a minute", 300.0: "5 minutes", 3600.0: "an hour", 86400.0: "a day"}
        assert held[kind.clear_after_s] in cleared


@pytest.mark.parametrize(("kind", "facts"), PAIRS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_cause_raises_its_own_alarm_alone_after_its_hold_and_clears_it_after_the_other(
    kind: str, facts: Facts
) -> None:
    about = KINDS[kind]
    early = after(lasting(facts, 0.0, about.raise_after_s - 1)) if about.raise_after_s else AlarmState()
    assert kind not in early.raised
    state = after(lasting(facts, 0.0, about.raise_after_s))
    assert kind in state.raised
    if kind != "repository-expired":
        assert set(state.raised) == {kind}
    assert tuple(state.raised[kind].evidence) == about.keys
    assert state.raised[kind].since == NOW, "when the cause came, not when it was believed"
    gone = about.raise_after_s + about.clear_after_s
    if about.clear_after_s:
        assert kind in after([(gone - 0.5, WELL)], state).raised
    assert kind not in after([(gone - 0.5, WELL), (gone, WELL)], state).raised


@pytest.mark.parametrize(("kind", "facts"), PAIRS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_message_is_json_and_names_what_it_knows(kind: str, facts: Facts) -> None:
    state = after(lasting(facts, 0.0, KINDS[kind].raise_after_s))
    told = json.loads(json.dumps(body(kind, state.raised[kind], NOW + 5, "synchronised"), allow_nan=False))
    assert told["type"] == kind
    assert told["severity"] in tuple(Severity)
    assert (told["since"], told["ts"], told["clock"]) == (NOW, NOW + 5, "synchronised")
    assert told["reason"]
    assert len(json.dumps(told)) < 4096


def test_the_rules_that_alarms_wait_for_are_rules_of_the_governor() -> None:
    named = {rule for several in CAUSES.values() for facts in several for rule in facts.rules}
    assert named - {"run"} <= RULES.keys()


def test_a_hot_board_is_told_by_the_real_governor() -> None:
    policy = Policy()
    hot = Reading(0.0, temperature_celsius=policy.thermal.pause.absolute_celsius + 1, ambient_celsius=25.0)
    _, decision = decide(policy, GovernorState(), hot, Outlook())
    state = judge(AlarmState(), Facts(reading=hot, decision=decision), 0.0, NOW)
    assert state.raised["overheated"].evidence["temperature_celsius"] == hot.temperature_celsius
    low = [bound.rule for bound in battery_bounds(policy.battery, BatteryState(low=True))]
    assert "battery-low" in after(lasting(decided(*low), 0.0, 10)).raised


def test_numbers_that_move_tell_nothing_new_and_names_that_change_do() -> None:
    first = replace(decided("thermal.delta-t-pause"), reading=Reading(0.0, temperature_celsius=70.0))
    warmer = replace(first, reading=Reading(0.0, temperature_celsius=71.0))
    raised = after([(0.0, first)])
    assert after([(1.0, warmer)], raised).raised == raised.raised
    other = replace(warmer, decision=Decision(rule="thermal.absolute-pause"))
    assert after([(FRESH_S - 1, other)], raised).raised == raised.raised, "not again and again"
    changed = after([(FRESH_S, other)], raised).raised["overheated"]
    assert changed.evidence["temperature_celsius"] == 71.0
    assert changed.since == raised.raised["overheated"].since


def test_what_is_no_number_is_told_as_unknown() -> None:
    ill = replace(decided("thermal.critical"), reading=Reading(0.0, temperature_celsius=float("nan")))
    assert after([(0.0, ill)]).raised["critical-temperature"].evidence["temperature_celsius"] is None


def test_after_a_start_an_alarm_stays_until_its_cause_has_been_away_for_its_hold_again() -> None:
    raised = after([(0.0, decided("thermal.critical"))]).raised
    restarted = AlarmState(raised)
    state = after([(5000.0, WELL)], restarted)
    assert state.raised == raised, "the first look after a start proves nothing"
    assert after(lasting(WELL, 5001.0, 59), state).raised == {}


LOOKS = st.lists(
    st.tuples(st.floats(0.1, 90.0, allow_subnormal=False), st.lists(st.sampled_from(sorted(CAUSES)), max_size=3)),
    max_size=60,
)


def merged(kinds: list[str]) -> Facts:
    """Facts with the causes of several kinds at once."""
    rules: list[str] = ["run"]
    healths: list[tuple[str, Health]] = []
    facts = Facts()
    for kind in kinds:
        cause = CAUSES[kind][0]
        rules += [rule for rule in cause.rules if rule != "run"]
        healths += [pair for pair in cause.reading.health if pair[1] is not Health.OK]
        fields = {
            name: getattr(cause, name)
            for name in Facts.__dataclass_fields__
            if name not in ("reading", "decision") and getattr(cause, name) != getattr(WELL, name)
        }
        facts = replace(facts, **fields)
        if cause.reading.undervoltage:
            facts = replace(facts, reading=replace(facts.reading, undervoltage=True))
    reading = replace(facts.reading, health=tuple(healths))
    return replace(facts, reading=reading, decision=Decision(rule=rules[0], notes=tuple(rules[1:])))


@given(LOOKS, st.lists(st.integers(0, 60), max_size=3))
def test_no_alarm_flaps_and_since_stands_still_over_restarts_too(
    looks: list[tuple[float, list[str]]], restarts: list[int]
) -> None:
    state, mono_s = AlarmState(), 0.0
    there_since: dict[str, float] = {}
    last_there: dict[str, float] = {}
    for number, (span, kinds) in enumerate(looks):
        mono_s += span
        if number in restarts:
            state, there_since, last_there = AlarmState(state.raised), {}, dict.fromkeys(state.raised, mono_s)
        facts = merged(kinds)
        before, state = state, judge(state, facts, mono_s, NOW + mono_s)
        for kind, about in KINDS.items():
            was, now = before.raised.get(kind), state.raised.get(kind)
            if about.cause(facts) is not None:
                lasted = mono_s - there_since.setdefault(kind, mono_s)
                last_there[kind] = mono_s
                assert (now is not None) == (was is not None or lasted >= about.raise_after_s)
            else:
                there_since.pop(kind, None)
                away = mono_s - last_there.get(kind, mono_s)
                assert (now is not None) == (was is not None and away < about.clear_after_s)
            assert was is None or now is None or was.since == now.since
    state = judge(state, WELL, mono_s + 1.0, NOW)
    state = judge(state, WELL, mono_s + 1.0 + 86400.0, NOW)
    assert state.raised == {}, "every alarm ends when its cause does"
