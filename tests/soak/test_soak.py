"""What the soak is made of: its plan, its judge, its slope."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.simulators.wiretap import Heard
from tests.soak.judge import command_faults, downtime, telemetry_gaps
from tests.soak.keeper import Life
from tests.soak.plan import A_DAY, ENDS_THE_DAEMON, HOUR_S, QUIET_SHARE, Kind, day
from tests.soak.watch import slope


@given(seed=st.integers(0, 1 << 32), hours=st.floats(1.0, 72.0, allow_subnormal=False))
def test_a_day_is_its_seed_and_two_troubles_of_a_kind_never_overlap(seed: int, hours: float) -> None:
    events = day(seed, hours)
    assert events == day(seed, hours)
    assert [event.at_s for event in events] == sorted(event.at_s for event in events)
    assert {event.kind for event in events} == set(Kind)
    for kind in Kind:
        mine = [event for event in events if event.kind is kind]
        for before, after in itertools.pairwise(mine):
            assert before.at_s + before.lasts_s <= after.at_s
        end = hours * HOUR_S * (1 - QUIET_SHARE if kind in ENDS_THE_DAEMON else 1)
        assert all(event.at_s >= 0 and event.at_s + event.lasts_s <= end for event in mine)


def test_a_whole_day_has_the_numbers_that_are_written_down() -> None:
    assert Counter(event.kind for event in day(7, 24)) == {kind: times for kind, (times, _) in A_DAY.items()}


def told(name: str, status: str, code: str = "") -> Heard:
    body = json.dumps({"status": status, "reason_code": code}).encode()
    return Heard(f"temper/v1/default/board-1/cmd/scrub/{name}/sts", body, 1, True, None)


@pytest.mark.parametrize(
    ("heard", "fault"),
    [
        ([told("a", "running"), told("a", "succeeded"), told("a", "succeeded")], None),
        ([told("a", "running")], "scrub a ended never"),
        ([told("a", "failed", "x"), told("a", "succeeded")], "scrub a ended ['failed x', 'succeeded']"),
    ],
)
def test_a_command_has_one_end(heard: list[Heard], fault: str | None) -> None:
    faults, _ends = command_faults({"a": "scrub"}, heard)
    assert faults == ([fault] if fault else [])


def test_a_gap_in_the_numbers_is_excused_by_an_end_alone(tmp_path: Path) -> None:
    path = tmp_path / "fleet.sqlite"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE telemetry (seq INTEGER, ts INTEGER)")
    rows = [(1, 0), (2, 10_000), (4, 20_000), (5, 30_000), (4096, 60_000)]
    database.executemany("INSERT INTO telemetry VALUES (?, ?)", rows)
    database.commit()
    database.close()
    stored, gaps = telemetry_gaps(path, [45_000.0])
    assert stored == 5
    assert [(gap.numbers, gap.torn) for gap in gaps] == [(1, False), (4090, True)]


def test_downtime_runs_from_the_last_sign_to_the_next_readiness() -> None:
    lives = [Life(0.0, 1.0, 10.0, 10.2, "update"), Life(10.2, 12.0, 50.0, 50.0, "killed"), Life(51.0)]
    assert downtime(lives) == {"update": [2.0]}


def test_one_jump_does_not_move_the_slope() -> None:
    flat = [(float(x), 100.0 + (50.0 if x == 30 else 0.0)) for x in range(60)]
    assert slope(flat)[0] == 0.0
    assert slope([(float(x), 3.0 * x) for x in range(10)]) == (3.0, 3.0, 3.0)
    assert slope([(0.0, 1.0)]) is None
