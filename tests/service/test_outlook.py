from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cost import cost_table
from agent.evaluate import HIGHER_IS_BETTER as SCORES_THAT_RISE
from agent.features_prefix import prefix_macs as prefix_macs_of_plan
from agent.messages import Progress
from agent.plan import make_plan, plan_table
from agent.spec import FineTuneSpec, spec_table
from policies.outlook import DepthCost, Outlook
from policies.policy import Policy
from policies.reading import OperatingPoint, Reading
from service.journal import JobRecord, Journal
from service.outlook import ABSURDLY_LATE_S, HIGHER_IS_BETTER, Outlooks
from service.sample_costs import (
    COSTS,
    LEAST_CLOCKED,
    LEAST_STEPS,
    MODELS_KEPT,
    RECENT_STEPS,
    Cost,
    clock_share,
    depth_costs,
    prefix_macs,
    step_macs,
)
from service.statuses import Clock, minute_of_day
from tests.simulators.small_models import mobile_block_net

LADDER = [{"percent": p, "step_macs": m} for p, m in ((0, 900), (25, 700), (50, 500), (75, 400), (100, 310))]
PLAN: dict[str, object] = {
    "engine": "graph", "depth_percent": 25, "batch": 16, "steps": 10, "micro_batch": 8, "ladder": LADDER,
    "step_macs": 700,
}  # fmt: skip
TOP = Reading(0.0, frequency_hz=2_000, operating_points=(OperatingPoint(1_000, 0.7), OperatingPoint(2_000, 0.9)))
HALF = replace(TOP, frequency_hz=1_000)
NOW = 1_800_000_000.0


class Hours:
    """Clocks that are set by hand."""

    def __init__(self) -> None:
        self.wall, self.mono, self.known = NOW, 500.0, True
        self.clock = Clock(lambda: self.wall, lambda: self.mono, lambda: self.known)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "journal.sqlite", 0.0).journal
    yield opened
    opened.close()


def job(
    journal: Journal, number: int = 1, *, created: float = NOW, plan: dict[str, object] | None = None, **spec: object
) -> JobRecord:
    record = journal.add_job(f"job-{number}", "", "fine-tune", {"epochs": 4, **spec}, created)
    return journal.update(record.id, created, plan={"plan": plan or PLAN, "model": "abc"})


def step(number: int, ms: float, depth: int = 25, **more: object) -> Progress:
    told = Progress(0, 4, number, 10, number * 16, 0.5, None, 3, depth, ms, 1)
    return replace(told, **more)  # type: ignore[arg-type]


def outlooks(journal: Journal, hours: Hours | None = None) -> Outlooks:
    return Outlooks(journal, (hours or Hours()).clock)


# --- costs ------------------------------------------------------------------------------------------------------------


def test_a_measured_depth_costs_its_median_at_the_top_clock_and_the_others_by_their_arithmetic(
    journal: Journal,
) -> None:
    ahead = outlooks(journal)
    ahead.begin(job(journal))
    assert ahead.outlook().costs == (), "nothing is known before the first step"
    for number, ms in enumerate((1800.0, 320.0, 320.0, 320.0, 310.0), 1):
        ahead.follow(step(number, ms), HALF)
    at = {cost.depth_percent: cost for cost in ahead.outlook().costs}
    assert sorted(at) == [25, 50, 75, 100], "a job never trains shallower than planned"
    assert at[25] == DepthCost(25, pytest.approx(0.010), measured=True, micro_batch=8)
    assert at[50] == DepthCost(50, pytest.approx(0.010 * 500 / 700), measured=False, micro_batch=8)


def test_a_second_measured_depth_is_what_its_neighbours_are_reckoned_from(journal: Journal) -> None:
    ahead = outlooks(journal)
    ahead.begin(job(journal))
    ahead.follow(step(1, 160.0), TOP)
    ahead.follow(step(2, 16.0, depth=75), TOP)
    at = {cost.depth_percent: (cost.sample_s, cost.measured) for cost in ahead.outlook().costs}
    assert at[75] == (pytest.approx(0.001), True)
    assert at[100] == (pytest.approx(0.001 * 310 / 400), False)
    assert ahead.costs_told() == [
        {"depth_percent": 25, "sample_s": pytest.approx(0.010), "clocked_share": 1.0, "micro_batch": 0},
        {"depth_percent": 75, "sample_s": pytest.approx(0.001), "clocked_share": 1.0, "micro_batch": 0},
    ]


def test_each_micro_batch_has_a_cost_of_its_own_and_the_present_one_counts(journal: Journal) -> None:
    ahead = outlooks(journal)
    ahead.begin(job(journal))
    for number, (ms, micro) in enumerate([(160.0, 8)] * 4 + [(200.0, 4)] * 2, 1):
        ahead.follow(step(number, ms, micro_batch=micro), TOP)
    (first, second, *_) = ahead.outlook().costs
    assert first == DepthCost(25, pytest.approx(0.0125), measured=True, micro_batch=4)
    assert second == DepthCost(50, pytest.approx(0.0125 * 500 / 700), measured=False, micro_batch=4)
    assert [(row["micro_batch"], row["sample_s"]) for row in ahead.costs_told()] == [
        (4, pytest.approx(0.0125)), (8, pytest.approx(0.010)),
    ]  # fmt: skip
    ahead.follow(step(7, 160.0, micro_batch=8), TOP)
    assert ahead.outlook().costs[0].sample_s == pytest.approx(0.010)
    ahead.follow(step(8, 200.0, micro_batch=4), TOP)
    ahead.end()
    ahead.begin(job(journal, 2))
    assert ahead.outlook().costs[0] == DepthCost(25, pytest.approx(0.010), measured=True, micro_batch=8)


@pytest.mark.parametrize("micro", [3, 32, -8], ids=["no divisor", "more than the batch", "negative"])
def test_a_micro_batch_that_cannot_be_is_not_believed(journal: Journal, micro: int) -> None:
    ahead = outlooks(journal)
    ahead.begin(job(journal))
    ahead.follow(step(1, 160.0, micro_batch=micro), TOP)
    assert ahead.outlook().costs[0].micro_batch == 8, "as the plan says"


def test_only_recent_steps_count(journal: Journal) -> None:
    ahead = outlooks(journal)
    ahead.begin(job(journal))
    for number in range(40):
        ahead.follow(step(1 + number % 9, 1600.0 if number < 40 - RECENT_STEPS else 16.0), TOP)
    assert ahead.outlook().costs[0].sample_s == pytest.approx(0.001)


def test_steps_that_fill_the_feature_cache_count_until_others_use_it(journal: Journal) -> None:
    ahead = outlooks(journal)
    ahead.begin(job(journal))
    for number in range(1, 8):
        ahead.follow(step(number, 1600.0), TOP)
    assert ahead.outlook().costs[0].sample_s == pytest.approx(0.1)
    ahead.follow(step(8, 160.0, reused=15), TOP)  # one of 16 samples was not there
    assert ahead.outlook().costs[0].sample_s == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("ms_at_half", "share", "sample_s"),
    [(320.0, 1.0, 0.010), (280.0, 0.75, 0.010), (240.0, 0.5, 0.010), (160.0, LEAST_CLOCKED, 0.010), (500.0, 1.0, 0.01)],
    ids=["all computes", "a quarter waits", "half waits", "noise: no slower", "noise: too slow"],
)
def test_two_clocks_tell_what_waits_for_the_memory(
    journal: Journal, ms_at_half: float, share: float, sample_s: float
) -> None:
    ahead = outlooks(journal)
    ahead.begin(job(journal))
    for number in range(LEAST_STEPS):
        ahead.follow(step(number + 1, 160.0), TOP)
    for number in range(LEAST_STEPS):
        assert ahead.outlook().costs[0].clocked_share == 1.0, "one clock says nothing of it"
        ahead.follow(step(number + 1, ms_at_half), HALF)
    found = ahead.outlook().costs
    assert found[0].clocked_share == pytest.approx(share)
    assert found[0].sample_s == pytest.approx(sample_s)
    assert {cost.clocked_share for cost in found} == {found[0].clocked_share}, "the neighbours are taken to be alike"


def test_short_batches_and_tellings_without_a_step_say_nothing_of_costs(journal: Journal) -> None:
    ahead = outlooks(journal)
    ahead.begin(job(journal))
    ahead.follow(step(10, 5.0), TOP)
    ahead.follow(step(3, 0.0, event="paused"), TOP)
    assert ahead.outlook().costs == ()
    ahead.begin(job(journal, 2, plan=PLAN | {"steps": 1}))
    ahead.follow(step(1, 160.0, steps=1), TOP)
    assert ahead.outlook().costs[0].measured, "the only batch of an epoch is a whole one"


def test_costs_are_known_to_the_next_job_with_the_same_model_and_settings(journal: Journal) -> None:
    ahead = outlooks(journal)
    ahead.begin(job(journal))
    ahead.follow(step(1, 160.0), TOP)
    ahead.end()
    later = outlooks(journal)
    later.begin(job(journal, 2))
    assert later.outlook().costs[0] == DepthCost(25, pytest.approx(0.010), measured=True, micro_batch=8)
    later.begin(job(journal, 3, image_size=224))
    assert later.outlook().costs == ()


def test_remembered_costs_are_bounded_and_the_oldest_go(journal: Journal) -> None:
    ahead = outlooks(journal)
    for number in range(MODELS_KEPT + 3):
        ahead.begin(job(journal, number, image_size=number))
        ahead.follow(step(1, 160.0), TOP)
        ahead.end()
    kept = json.loads(journal.recall(COSTS))
    assert len(kept) == MODELS_KEPT
    ahead.begin(job(journal, 900, image_size=2))
    assert ahead.outlook().costs == ()
    ahead.begin(job(journal, 901, image_size=3))
    assert ahead.outlook().costs != ()


@pytest.mark.parametrize(
    "text", ["[]", "{", "7", '{"a": 5}', '{"a": {"x": 1}}', '{"a": {"25": "long"}}', "null", '{"a": {"25": [1]}}']
)
def test_remembered_costs_that_are_none_are_forgotten(journal: Journal, text: str) -> None:
    journal.remember(COSTS, text)
    ahead = outlooks(journal)
    ahead.begin(job(journal))
    assert ahead.outlook().costs == ()


def test_an_absurd_remembered_cost_is_left_out(journal: Journal) -> None:
    ahead = outlooks(journal)
    ahead.begin(job(journal))
    ahead.follow(step(1, 160.0), TOP)
    ahead.end()
    (key,) = json.loads(journal.recall(COSTS))
    journal.remember(
        COSTS, json.dumps({key: {"25": [-1.0, 1.0], "50": [1e9, 1.0], "75": [0.5, 0.9, 4], "100": [0.1, 7.0]}})
    )
    ahead.begin(job(journal, 2))
    assert [(c.depth_percent, c.measured) for c in ahead.outlook().costs] == [
        (25, False), (50, False), (75, True), (100, False),
    ]  # fmt: skip


rates = st.floats(1e-6, 10.0, allow_subnormal=False)


@settings(derandomize=True, deadline=None)
@given(
    st.dictionaries(st.integers(0, 100), st.integers(0, 10**12), max_size=8),
    st.integers(0, 100),
    st.dictionaries(st.integers(0, 100), rates, max_size=8),
)
def test_costs_are_positive_in_order_and_keep_what_was_measured(
    macs: dict[int, int], least: int, seconds: dict[int, float]
) -> None:
    measured = {depth: Cost(sample_s, 0.75) for depth, sample_s in seconds.items()}
    costs = depth_costs(macs, least, measured, 4)
    depths = [cost.depth_percent for cost in costs]
    assert depths == sorted(set(depths))
    assert all(cost.sample_s > 0 and cost.depth_percent >= least for cost in costs)
    for cost in costs:
        assert cost.measured == (cost.depth_percent in measured)
        if cost.measured:
            assert (cost.sample_s, cost.clocked_share) == measured[cost.depth_percent][:2]
    if not set(macs) & set(measured):
        assert costs == ()


def test_a_step_that_leaves_parameters_out_costs_what_the_plan_says() -> None:
    assert step_macs(PLAN | {"step_macs": 650})[25] == 650
    assert step_macs(PLAN | {"step_macs": 0})[25] == 700
    assert step_macs({}) == {}


def test_the_frozen_part_costs_what_the_cache_reckons_with() -> None:
    costs = cost_table(mobile_block_net())
    plan = make_plan(
        FineTuneSpec("m", "d", depth="50"), Policy(), costs, None,
        engine="graph", classes=("a", "b"), head="keep", samples=32, data_sha256="",
    )  # fmt: skip
    table = json.loads(json.dumps(plan_table(plan)))
    for rung in plan.ladder:
        assert prefix_macs(table, rung.percent) == prefix_macs_of_plan(plan, rung.frozen_layers)
    assert prefix_macs(table, 0) == 0
    assert prefix_macs({}, 50) == 0
    assert plan.model_bytes == costs.weight_bytes()


@pytest.mark.parametrize(
    ("reading", "share"),
    [
        (TOP, 1.0),
        (HALF, 0.5),
        (replace(TOP, frequency_hz=4_000), 1.0),
        (replace(TOP, frequency_hz=None), 1.0),
        (replace(TOP, operating_points=()), 1.0),
    ],
)
def test_the_clocks_share_is_one_where_it_is_not_known(reading: Reading, share: float) -> None:
    assert clock_share(reading) == share


# --- the rest of the job ----------------------------------------------------------------------------------------------


def test_samples_left_count_down_to_nothing(journal: Journal) -> None:
    ahead = outlooks(journal)
    record = job(journal)
    ahead.begin(replace(record, plan=None))
    assert ahead.outlook().samples_left is None
    ahead.planned(record)
    assert ahead.outlook().samples_left == 4 * 10 * 16
    ahead.follow(step(3, 10.0), TOP)
    assert (ahead.outlook().samples_left, ahead.outlook().samples_done) == ((40 - 3) * 16, 48)
    ahead.follow(step(0, 0.0, epoch=4, event="epoch"), TOP)
    assert ahead.outlook().samples_left == 0
    ahead.end()
    assert ahead.outlook().samples_left is None


def test_a_job_that_goes_on_is_at_no_beginning(journal: Journal) -> None:
    """Else a depth that belongs to the beginning of a job would be asked for in its middle."""
    ahead = outlooks(journal)
    record = job(journal)
    ahead.begin(record)
    ahead.planned(record)  # with a smaller micro-batch
    assert (ahead.outlook().samples_left, ahead.outlook().samples_done) == (None, 0)
    ahead.follow(step(3, 10.0, epoch=2, samples=368), TOP)
    assert (ahead.outlook().samples_left, ahead.outlook().samples_done) == ((40 - 23) * 16, 368)


@pytest.mark.parametrize(("metric", "told"), [("accuracy", 0.75), ("auc", 0.75), ("mae", -0.75)])
def test_a_larger_score_is_always_the_better_one(journal: Journal, metric: str, told: float) -> None:
    ahead = outlooks(journal)
    ahead.begin(job(journal))
    ahead.follow(step(1, 9.0, loss=0.25), TOP)
    ahead.follow(step(0, 0.0, epoch=1, event="epoch", score=0.75, metric=metric, loss=0.1), TOP)
    assert (ahead.outlook().score, ahead.outlook().loss) == (told, 0.25)


def test_the_scores_that_rise_are_those_of_the_judge() -> None:
    assert set(HIGHER_IS_BETTER) == SCORES_THAT_RISE


def test_without_a_job_only_the_hour_is_known(journal: Journal) -> None:
    hours = Hours()
    ahead = outlooks(journal, hours)
    assert ahead.outlook() == Outlook(minute_of_day=minute_of_day(hours.wall))
    hours.known = False
    assert ahead.outlook() == Outlook()


def test_minutes_are_those_of_the_boards_own_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC-02:30")  # POSIX: west of Greenwich is positive
    time.tzset()
    try:
        assert minute_of_day(22.5 * 3600) == 60
        assert minute_of_day(0.0) == 150
    finally:
        monkeypatch.undo()
        time.tzset()


# --- deadlines --------------------------------------------------------------------------------------------------------


def test_a_deadline_counts_from_the_acceptance_and_stays_where_it_is(journal: Journal) -> None:
    hours = Hours()
    ahead = outlooks(journal, hours)
    hours.wall += 100.0
    ahead.begin(job(journal, deadline_s=600.0))
    assert ahead.outlook().deadline_mono_s == hours.mono + 500.0
    hours.mono, hours.wall = 900.0, NOW - 5000.0
    assert ahead.outlook().deadline_mono_s == 1000.0, "a clock that is set later moves nothing"


def test_a_deadline_survives_a_restart_of_the_board(journal: Journal) -> None:
    hours = Hours()
    record = job(journal, deadline_s=600.0)
    hours.wall, hours.mono = NOW + 400.0, 7.0
    again = outlooks(journal, hours)
    again.begin(record)
    assert again.outlook().deadline_mono_s == 7.0 + 200.0
    hours.mono = 250.0
    assert again.deadline_told(record) == {"deadline_s": 600.0, "left_s": -43.0, "met": False}


def test_a_board_that_learns_the_time_after_its_start_finds_the_deadline_then(journal: Journal) -> None:
    hours = Hours()
    record = job(journal, deadline_s=600.0)
    hours.wall = NOW + 10.0  # its clock stood still while it had no power
    again = outlooks(journal, hours)
    again.begin(record)
    assert again.outlook().deadline_mono_s == hours.mono + 590.0
    hours.wall = NOW + 500.0
    assert again.outlook().deadline_mono_s == hours.mono + 100.0
    hours.wall = NOW - 500.0
    assert again.outlook().deadline_mono_s == hours.mono + 100.0, "never further away"


def test_a_clock_that_is_set_after_the_acceptance_takes_no_time_from_the_job(journal: Journal) -> None:
    hours = Hours()
    record = job(journal, deadline_s=600.0)
    ahead = outlooks(journal, hours)
    ahead.accepted(record)
    hours.mono, hours.wall = hours.mono + 30.0, NOW + 5000.0
    assert ahead.deadline_told(record) == {"deadline_s": 600.0, "left_s": 570.0, "met": True}


@pytest.mark.parametrize(
    ("created", "wall", "known", "left"),
    [
        (NOW, NOW + 5.0, False, 600.0),
        (NOW, NOW - 1e6, True, 600.0),
        (20.0, NOW, True, 600.0),
        (NOW - 700.0, NOW, True, -100.0),
        (NOW - 600.0 - ABSURDLY_LATE_S, NOW, True, -ABSURDLY_LATE_S),
    ],
    ids=["clock not set", "clock set back", "accepted before the clock was set", "past", "a month past"],
)
def test_a_wrong_clock_never_gives_more_than_the_whole_deadline(
    journal: Journal, created: float, wall: float, left: float, *, known: bool
) -> None:
    hours = Hours()
    hours.wall, hours.known = wall, known
    record = job(journal, created=created, deadline_s=600.0)
    assert outlooks(journal, hours).deadline_mono_s(record) == hours.mono + left


def test_most_jobs_have_no_deadline(journal: Journal) -> None:
    record = job(journal)
    assert outlooks(journal).deadline_mono_s(record) is None
    assert outlooks(journal).deadline_told(record) is None
    asked = spec_table(FineTuneSpec("m", "d"))
    assert outlooks(journal).deadline_mono_s(replace(record, spec=asked)) is None
