"""Which release starts next: the laws of the machine, whatever happens in whatever order."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from policies.strict import TableError
from policies.trial import (
    MAX_STARTS,
    PAUSES_S,
    WINDOW_S,
    TrialError,
    begin,
    committed,
    damaged,
    emptied,
    failed,
    healthy,
    leaving,
    opened,
    ready,
    staged,
    stopped,
)
from policies.trial_standing import (
    INSTALLED,
    MAX_REFUSED,
    MAX_TRIES,
    Content,
    Moment,
    Refused,
    Stage,
    Standing,
    Trial,
    standing_of,
    table_of,
)

AT = Moment("boot-1", 100.0)
HERE = "0.1.0"


def later(seconds: float, boot: str = "boot-1") -> Moment:
    return Moment(boot, 100.0 + seconds)


def on_trial(standing: Standing | None = None, digest: str = "d2") -> Standing:
    """A release is staged, and the one before has left for it."""
    standing = standing or begin(Standing(), AT, HERE)[0]
    trial = Trial(standing.free_slot, f"0.2.0+{digest}", digest, "command-1")
    return leaving(staged(standing, trial), AT, {})


def settled(digest: str = "d2", standing: Standing | None = None) -> Standing:
    """That release runs for good."""
    begun = begin(on_trial(standing, digest), AT, HERE)[0]
    return committed(ready(begun, later(1.0)), {})


def test_a_good_release_stays_and_the_one_before_is_what_it_falls_back_to() -> None:
    standing, launch = begin(on_trial(), later(1.0), HERE)
    assert (launch.place, launch.ready_s) == ("a", Trial("a", "", "").ready_s)
    done = committed(ready(standing, later(3.5)), {"link": True})
    assert (done.active, done.previous, done.trial) == ("a", INSTALLED, None)
    assert done.last is not None
    assert (done.last.status, done.last.result) == ("succeeded", {**done.last.result, "downtime_s": 3.5, "link": True})
    assert begin(done, later(9), HERE)[1].place == "a"
    after = settled("d3", done)
    assert (after.active, after.previous) == ("b", "a")


def test_what_is_only_staged_does_not_start() -> None:
    standing = staged(Standing(), Trial("a", "2", "d"))
    assert begin(standing, AT, HERE)[1].place == INSTALLED


def test_a_release_that_is_never_ready_is_left_after_two_starts_and_the_one_before_runs_without_a_pause() -> None:
    standing = on_trial()
    for _ in range(2):
        standing, launch = begin(standing, AT, HERE)
        assert launch.place == "a"
    standing, launch = begin(standing, AT, HERE)
    assert (launch.place, launch.pause_s, standing.trial) == (INSTALLED, 0.0, None)
    assert standing.last is not None
    assert (standing.last.status, standing.last.code) == ("rolled_back", "start-failed")
    with pytest.raises(TrialError) as refused:
        staged(standing, Trial("b", "2", "d2"))
    assert refused.value.code == "release-refused"


def test_a_release_that_ends_again_and_again_after_it_was_ready_has_crashed() -> None:
    standing = on_trial()
    for _ in range(MAX_TRIES):
        standing = ready(begin(standing, AT, HERE)[0], AT)
    standing, launch = begin(standing, AT, HERE)
    assert launch.place == INSTALLED
    assert standing.last is not None
    assert standing.last.code == "crashed"


def test_power_cuts_are_not_starts_that_failed_but_there_is_an_end_to_them() -> None:
    standing, places = on_trial(), []
    for number in range(MAX_TRIES + 1):
        standing, launch = begin(standing, later(0, f"boot-{number}"), HERE)
        places.append(launch.place)
    assert places == ["a"] * MAX_TRIES + [INSTALLED]


def test_a_stop_in_the_trial_counts_for_nothing() -> None:
    standing = on_trial()
    for _ in range(5 * MAX_TRIES):
        standing, launch = begin(standing, AT, HERE)
        assert launch.place == "a"
        standing = stopped(ready(standing, AT))
    assert standing.trial is not None


def test_the_downtime_is_of_the_first_start_in_the_same_boot_alone() -> None:
    first = ready(begin(on_trial(), later(1), HERE)[0], later(2))
    assert first.trial is not None
    assert first.trial.downtime_s == 2.0
    other = ready(begin(on_trial(), later(1, "boot-2"), HERE)[0], later(2, "boot-2"))
    assert other.trial is not None
    assert other.trial.downtime_s is None


def looped(standing: Standing, at: Moment = AT) -> tuple[Standing, str]:
    """It is started until something else is."""
    first = standing.active
    for number in range(MAX_STARTS + 1):
        standing, launch = begin(standing, replace(at, at_s=at.at_s + number), HERE)
        if launch.place != first or launch.safe_mode:
            return standing, launch.place
    raise AssertionError("it is started for ever")


def test_a_restart_loop_falls_back_once_and_then_into_safe_mode_and_never_ends() -> None:
    standing, place = looped(settled("d3", settled()))
    assert (place, standing.safe_mode, standing.fell) == ("a", "", True)
    assert standing.is_refused("d3")
    standing, place = looped(standing, later(100))
    assert (place, standing.safe_mode) == (INSTALLED, "restart-loop")
    pauses = []
    for number in range(20):
        standing, launch = begin(standing, later(200 + number), HERE)
        assert (launch.place, launch.safe_mode) == (INSTALLED, "restart-loop")
        pauses.append(launch.pause_s)
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSES_S[-1]


def test_where_the_one_before_is_bad_too_the_installed_one_runs_in_safe_mode() -> None:
    standing = failed(begin(on_trial(settled()), AT, HERE)[0], "trial-heat", "hot")
    assert standing.active == "a"
    standing, place = looped(standing)
    assert (place, standing.safe_mode) == (INSTALLED, "restart-loop")
    assert standing.last is not None
    assert (standing.last.code, standing.last.command_id) == ("trial-heat", "command-1"), (
        "the command is still answered"
    )
    assert standing.left is not None
    assert standing.left.code == "restart-loop"
    assert opened(standing).safe_mode == ""


def test_a_healthy_run_between_crashes_is_no_loop_nor_are_power_cuts_or_starts_of_long_ago() -> None:
    standing = settled()
    for number in range(3 * MAX_STARTS):
        standing = healthy(begin(standing, later(number), HERE)[0])
        assert standing.active == "a"
    for number in range(3 * MAX_STARTS):
        standing, launch = begin(standing, later(0, f"boot-{number}"), HERE)
        assert (launch.place, launch.pause_s) == ("a", 0.0)
    for number in range(3 * MAX_STARTS):
        standing, launch = begin(standing, later(number * WINDOW_S / 2), HERE)
        assert launch.place == "a"


def test_another_release_leads_out_of_safe_mode() -> None:
    standing = replace(begin(Standing(), AT, HERE)[0], safe_mode="restart-loop")
    assert settled("d4", standing).safe_mode == ""


def test_a_damaged_slot_is_left_for_the_one_before_or_the_installed() -> None:
    both = settled("d3", settled())
    assert damaged(both, "b", "rot").active == "a"
    assert damaged(damaged(both, "b", "rot"), "a", "rot").active == INSTALLED
    assert damaged(both, "a", "rot").active == "b"
    trial = damaged(begin(on_trial(), AT, HERE)[0], "a", "rot")
    assert trial.last is not None
    assert (trial.trial, trial.last.code) == (None, "slot-damaged")


def test_what_somebody_installed_on_the_board_itself_starts() -> None:
    standing, launch = begin(settled(), AT, "0.3.0")
    assert (launch.place, standing.previous) == (INSTALLED, "a")
    standing, launch = begin(on_trial(), AT, "0.3.0")
    assert launch.place == INSTALLED
    assert standing.last is not None
    assert standing.last.code == "superseded"
    assert not standing.is_refused("d2"), "it did nothing wrong"


def test_the_active_slot_and_the_one_on_trial_are_never_emptied() -> None:
    standing = settled()
    with pytest.raises(TrialError) as active:
        emptied(standing, "a")
    with pytest.raises(TrialError) as trial:
        emptied(on_trial(standing), "b")
    assert (active.value.code, trial.value.code) == ("slot-in-use", "trial-under-way")
    assert standing.free_slot == "b"
    assert on_trial(standing).free_slot == ""


def test_the_list_of_refused_releases_is_bounded() -> None:
    standing = Standing()
    for number in range(MAX_REFUSED + 5):
        standing = failed(begin(on_trial(standing, f"d{number}"), AT, HERE)[0], "trial-gate", "no")
    assert len(standing.refused) == MAX_REFUSED
    assert standing.is_refused(f"d{MAX_REFUSED + 4}")


# --- the table -------------------------------------------------------------------------------------------------------


def test_keys_of_a_later_release_are_kept_at_the_top_and_passed_over_below() -> None:
    table = json.loads(json.dumps(table_of(on_trial(settled()))))
    table["mood"], table["trial"]["mood"], table["last"]["mood"] = {"x": 1}, 2, 3
    read = standing_of(table)
    assert read.trial == on_trial(settled()).trial
    assert table_of(read)["mood"] == {"x": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {"active": "c"},
        {"active": "b"},
        {"previous": "b"},
        {"trial": {"slot": "a", "version": "1", "digest": "d"}},
        {"trial": {"slot": "b", "version": "1", "digest": "d"}},
        {"refused": [{}] * (MAX_REFUSED + 1)},
        {"starts": [{"boot": "x", "at_s": "soon"}]},
        {"contents": []},
        {"fell": "yes"},
    ],
)
def test_a_table_that_contradicts_itself_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(TableError):
        standing_of({**table_of(settled()), **changes})


class Board(RuleBasedStateMachine):
    """A board on which releases are staged, start, end, rot and are looked at, in any order, with any power cuts."""

    @initialize()
    def installs(self) -> None:
        self.standing, self.now, self.boot, self.count = Standing(), 0.0, 0, 0
        self.place, self.rollbacks, self.failures = INSTALLED, 0, set[str]()

    def kept(self, standing: Standing) -> None:
        """What is on the disk is all that lasts."""
        before = self.standing
        self.standing = standing_of(json.loads(json.dumps(table_of(standing), allow_nan=False)))
        assert self.standing == standing
        if standing.last != before.last and standing.last and standing.last.status == "rolled_back":
            self.rollbacks += 1
            assert before.trial is not None, "each trial is rolled back once"
            assert standing.trial is None

    @rule(fails=st.booleans())
    def is_staged(self, *, fails: bool) -> None:
        self.count += not fails
        slot = self.standing.free_slot
        trial = Trial(slot or "a", "v", f"d{self.count}", window_s=60.0)
        if self.standing.trial or self.standing.is_refused(trial.digest):
            with pytest.raises(TrialError):
                staged(self.standing, trial)
        else:
            self.kept(staged(self.standing, trial))

    @precondition(lambda self: self.standing.trial and self.standing.trial.stage == Stage.STAGED)
    @rule()
    def leaves(self) -> None:
        self.kept(leaving(self.standing, Moment(f"b{self.boot}", self.now), {}))

    @rule(seconds=st.sampled_from([0.0, 1.0, 100.0, 4000.0]), cut=st.booleans(), rots=st.sampled_from(["", "a", "b"]))
    def starts(self, *, seconds: float, cut: bool, rots: str) -> None:
        self.now, self.boot = (0.0, self.boot + 1) if cut else (self.now + seconds, self.boot)
        for _ in range(3):
            after, launch = begin(self.standing, Moment(f"b{self.boot}", self.now), HERE)
            if launch.place != rots or launch.place == INSTALLED:
                break
            self.kept(after)
            self.kept(damaged(self.standing, launch.place, "rot"))
        else:
            raise AssertionError("nothing to start")
        self.place = launch.place
        assert launch.place == INSTALLED or launch.place in after.contents
        if launch.place != INSTALLED and launch.ready_s is not None:
            assert not self.standing.is_refused(after.contents[launch.place].digest), "it failed before"
        if launch.safe_mode:
            assert launch.place == INSTALLED
        self.kept(after)

    @precondition(lambda self: self.standing.trial and self.standing.trial.stage == Stage.STARTED)
    @rule()
    def is_ready(self) -> None:
        self.kept(ready(self.standing, Moment(f"b{self.boot}", self.now)))

    @precondition(lambda self: self.standing.trial and self.standing.trial.stage == Stage.READY)
    @rule(well=st.booleans())
    def is_judged(self, *, well: bool) -> None:
        self.kept(committed(self.standing, {}) if well else failed(self.standing, "trial-heat", "hot"))

    @rule()
    def runs_on(self) -> None:
        self.kept(healthy(self.standing))

    @rule()
    def is_stopped(self) -> None:
        self.kept(stopped(self.standing))

    @invariant()
    def holds_together(self) -> None:
        standing = self.standing
        for place in (standing.active, standing.previous):
            assert place == INSTALLED or place in standing.contents
        assert standing.trial is None or standing.trial.slot != standing.active
        assert not standing.safe_mode or standing.active == INSTALLED or standing.trial


Board.TestCase.settings = settings(derandomize=True, deadline=None, max_examples=25, stateful_step_count=40)
TestBoard = Board.TestCase


def test_a_refused_release_says_why() -> None:
    assert (
        Refused("d", "v", "crashed")
        in failed(
            replace(begin(on_trial(), AT, HERE)[0], contents={"a": Content("v", "d")}, trial=Trial("a", "v", "d")),
            "crashed",
            "",
        ).refused
    )
