"""Charts, changes, births and histories out of both databases; what is drawn is the same with digests and without."""

from __future__ import annotations

import json
import math
import random
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agent.errors import BoardError, SpecError
from service.fleet import store_draw, store_sqlite_sql
from service.fleet.store import DeviceRow, Filter, Sample, Status, Store, open_store
from service.fleet.store_chart import MAX_BUCKETS, MAX_CHANGES, MAX_CHART_S, MAX_METRICS, Chart
from service.fleet.store_digest import SLOT_MS
from service.fleet.store_history import MAX_HISTORY
from service.fleet.store_postgres_read import CONDENSING
from tests.service.test_store import DAY, ID, NOW, batch, sample, trimmed

START = NOW - NOW % 900  # of a quarter
METRICS = {"board": ["temperature_celsius", "pressure.cpu", "throttled", "never"], "training": ["loss"]}
TEXTS = ["action", "rule", "health.power", "throttled", "never"]


def condensed(opened: Store, now: float = NOW + 30 * DAY) -> int:
    done = 0
    while some := opened.condense(now):
        done += some
    return done


def execute(place: str, text: str) -> list[Any]:
    """A statement beside the store, as its database takes it."""
    if "://" in place:
        with psycopg.connect(place, autocommit=True) as connection:
            found = connection.execute(text)
            return found.fetchall() if found.description else []
    database = sqlite3.connect(place, isolation_level=None)
    try:
        return database.execute(text).fetchall()
    finally:
        database.close()


def told(number: int, chance: random.Random) -> dict[str, Any]:
    """A message of `board` with much that is no number, some of it hostile."""
    heat = chance.choice(
        [round(chance.uniform(-20, 95), 3)] * 6 + [None, "hot", True, 10**400, -(10**30), [1], {"x": 1}]
    )
    return {
        "temperature_celsius": heat,
        "pressure": {"cpu": round(chance.random(), 4)} if number % 70 else "none",
        "throttled": chance.choice([False] * 97 + [True, None, 0]),
        "action": "RUN" if number // 200 % 3 else "SLOW",
        "rule": chance.choice(["run"] * 96 + ["hot", "<b>\u202e", None, 3, "x" * 300]),
        "health": {"power": "ok" if number // 300 % 2 else "missing"},
        "a.b": 5,
        "": 1,
    }


def fill(opened: Store, seconds: int = 3600, seed: int = 8) -> list[Sample]:
    """An hour of a board at a message a second with holes, out of order, and its training beside it."""
    chance = random.Random(seed)
    facts = []
    for second in range(seconds):
        if 1000 < second < 1400 or chance.random() < 0.05:
            continue
        ts = START + second + chance.choice([0.0, 0.25, 0.5])
        facts.append(sample(2 * second, ts=ts, **told(second, chance)))
        if second < 2000 and second % 3 == 0:
            facts.append(sample(2 * second + 1, ts=ts, group="training", loss=chance.random()))
    chance.shuffle(facts)
    for at in range(0, len(facts), 500):
        opened.write(batch(*facts[at : at + 500]), START + seconds)
    return facts


def value_of(fact: Sample, metric: str) -> float | None:
    found: Any = json.loads(fact.values)
    for key in metric.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, int | float) or abs(found) > 1.7e308:
        return None
    return float(found)


def expected(facts: Sequence[Sample], group: str, metric: str, width_ms: int) -> dict[float, tuple[float, ...]]:
    """Low, high and last by bucket, as one would work them out by hand."""
    buckets: dict[int, list[float]] = {}
    for fact in sorted(facts, key=lambda fact: fact.ts_ms):
        value = value_of(fact, metric) if fact.group == group else None
        if value is not None:
            buckets.setdefault(fact.ts_ms // width_ms, []).append(value)
    return {key * width_ms / 1000: (min(seen), max(seen), seen[-1]) for key, seen in buckets.items()}


def drawn(chart: Chart, name: str) -> dict[float, tuple[float | None, ...]]:
    column = chart.columns[name]
    rows = zip(chart.starts, column.lows, column.highs, column.lasts, strict=True)
    return {start: told for start, *told_ in rows if (told := tuple(told_)) != (None, None, None)}


@pytest.mark.parametrize("buckets", [40, 150, 900])
def test_a_chart_has_what_one_works_out_by_hand_with_digests_and_without(opened: Store, buckets: int) -> None:
    facts = fill(opened)
    widths = {40: 120.0, 150: 30.0, 900: 5.0}

    def ask() -> Chart:
        return opened.chart("acme", "pi-1", METRICS, START, START + 3600, buckets)

    chart = ask()
    assert chart.width_s == widths[buckets]
    assert not chart.cut
    for group, metrics in METRICS.items():
        for metric in metrics:
            assert drawn(chart, f"{group}.{metric}") == expected(facts, group, metric, round(chart.width_s * 1000))
    assert condensed(opened) == 7  # four quarters, of three with training
    assert ask() == chart


def test_the_digests_are_really_read(place: str) -> None:
    opened = open_store(place)
    fill(opened)
    before = opened.chart("acme", "pi-1", METRICS, START, START + 3600, 40)
    condensed(opened)
    assert len(execute(place, "SELECT slot FROM digests WHERE grp = 'board'")) == 4
    execute(place, "DELETE FROM telemetry WHERE grp = 'board'")
    assert opened.chart("acme", "pi-1", METRICS, START, START + 3600, 40) == before
    opened.close()


def test_a_span_within_quarters_is_drawn_to_whole_buckets(opened: Store) -> None:
    facts = fill(opened)
    condensed(opened)
    chart = opened.chart("acme", "pi-1", METRICS, START + 431.5, START + 2231.25, 61)
    assert chart.width_s == 30.0
    inside = [fact for fact in facts if 420 <= fact.ts_ms / 1000 - START < 2250]
    assert drawn(chart, "board.temperature_celsius") == expected(inside, "board", "temperature_celsius", 30_000)


@pytest.mark.parametrize("late", [True, False])
def test_what_comes_after_a_digest_is_in_the_chart_at_once(opened: Store, late: bool) -> None:
    facts = fill(opened)
    condensed(opened)
    news = sample(99_999, ts=START + 950.5, temperature_celsius=300.5, rule="late")
    if not late:
        news = news._replace(ts_ms=news.ts_ms + 3600_000)
    opened.write(batch(news), NOW)
    until = START + 7200
    chart = opened.chart("acme", "pi-1", METRICS, START, until, 200)
    assert drawn(chart, "board.temperature_celsius") == expected(
        [*facts, news], "board", "temperature_celsius", round(chart.width_s * 1000)
    )
    rules = [row.values["rule"] for row in opened.changes("acme", "pi-1", "board", ["rule"], START, until).rows]
    assert rules.count("late") == 1
    assert condensed(opened) == 1
    assert opened.chart("acme", "pi-1", METRICS, START, until, 200) == chart


def test_messages_that_come_again_change_nothing(opened: Store) -> None:
    facts = fill(opened)
    chart = opened.chart("acme", "pi-1", METRICS, START, START + 3600, 100)
    condensed(opened)
    opened.write(batch(*facts[:700]), NOW)
    assert opened.chart("acme", "pi-1", METRICS, START, START + 3600, 100) == chart
    condensed(opened)
    assert opened.chart("acme", "pi-1", METRICS, START, START + 3600, 100) == chart


def test_a_board_that_learns_the_time_moves_in_the_chart(opened: Store) -> None:
    undated = [sample(n, ts=100.0 + n)._replace(dated=False) for n in range(400)]
    opened.write(batch(*undated), NOW)
    condensed(opened)
    wanted = {"board": ["temperature_celsius"]}
    assert len(opened.chart("acme", "pi-1", wanted, 0, 900, 30).starts) == 14
    opened.write(batch(*(sample(n, ts=START + n) for n in range(400))), NOW)
    assert opened.chart("acme", "pi-1", wanted, 0, 900, 30).starts == ()
    condensed(opened)
    assert opened.chart("acme", "pi-1", wanted, 0, 900, 30).starts == ()
    assert len(opened.chart("acme", "pi-1", wanted, START, START + 900, 30).starts) == 14


def test_few_messages_are_given_as_they_are(opened: Store) -> None:
    opened.write(batch(sample(1, ts=NOW + 0.5, heat=1.5), sample(2, ts=NOW + 7.125, heat=-2)), NOW)
    opened.write(batch(sample(3, ts=NOW + 7.125, group="training", loss=0.25), sample(4, ts=NOW + 8, heat="x")), NOW)
    chart = opened.chart("acme", "pi-1", {"board": ["heat"], "training": ["loss"]}, NOW, NOW + 9, 10)
    assert (chart.width_s, chart.starts) == (0.0, (NOW + 0.5, NOW + 7.125))
    heat, loss = chart.columns["board.heat"], chart.columns["training.loss"]
    assert heat.lows == heat.highs == heat.lasts == (1.5, -2.0)
    assert loss.lows == loss.highs == loss.lasts == (None, 0.25)
    assert opened.chart("acme", "nobody", {"board": ["heat"]}, NOW, NOW + 9, 10).starts == ()
    assert opened.chart("acme", "pi-1", {"board": ["heat"]}, NOW + 1, NOW + 7.125, 10).starts == ()


def test_no_number_that_is_none_gets_out(opened: Store) -> None:
    hostile = ["1" + "0" * 400, "-1" + "0" * 309, '"NaN"', "null", "[1e9]", '{"a":1}', "1.7976931348623157e308"]
    facts = [sample(n, ts=START + n)._replace(values=f'{{"heat": {hostile[n % 7]}}}') for n in range(600)]
    opened.write(batch(*facts), NOW)
    for _ in range(2):
        for buckets in (20, 2000):
            chart = opened.chart("acme", "pi-1", {"board": ["heat"]}, START, START + 900, buckets)
            column = chart.columns["board.heat"]
            assert chart.starts
            assert all(
                value is not None and math.isfinite(value) for value in column.lows + column.highs + column.lasts
            )
        condensed(opened)


@pytest.mark.parametrize(
    ("wanted", "span", "buckets"),
    [
        ({}, 60, 10),
        ({"board": []}, 60, 10),
        ({"board": ["a"], "training": []}, 60, 10),
        ({"board": ["a\"') --"]}, 60, 10),
        ({"board": [f"m{n}" for n in range(MAX_METRICS + 1)]}, 60, 10),
        ({"board": ["a"]}, 0, 10),
        ({"board": ["a"]}, -5, 10),
        ({"board": ["a"]}, MAX_CHART_S + 1, 10),
        ({"board": ["a"]}, math.nan, 10),
        ({"board": ["a"]}, math.inf, 10),
        ({"board": ["a"]}, 60, 0),
        ({"board": ["a"]}, 60, MAX_BUCKETS + 1),
    ],
)
def test_what_is_no_chart_is_refused(opened: Store, wanted: dict[str, list[str]], span: float, buckets: int) -> None:
    with pytest.raises(SpecError):
        opened.chart("acme", "pi-1", wanted, NOW, NOW + span, buckets)


@pytest.mark.parametrize(("since", "until"), [(-1e6, 60.0), (4_102_444_800.0 - 60, 4_102_444_800.0 + 60), (-1e6, -1e5)])
def test_a_span_may_reach_over_the_ends_of_time(opened: Store, since: float, until: float) -> None:
    opened.write(batch(sample(1, ts=5.0)), NOW)
    chart = opened.chart("acme", "pi-1", {"board": ["temperature_celsius"]}, since, until, 10)
    assert chart.starts == ((5.0,) if until == 60.0 else ())
    opened.changes("acme", "pi-1", "board", ["action"], since, until)


def test_the_longest_span_has_a_width_in_any_number_of_buckets(opened: Store) -> None:
    opened.write(batch(*(sample(n, ts=NOW - 80 * DAY + 86400.0 * n) for n in range(80))), NOW)
    for buckets in (1, 2, 3, 10, 50):
        chart = opened.chart("acme", "pi-1", {"board": ["temperature_celsius"]}, NOW - MAX_CHART_S, NOW, buckets)
        assert len(chart.starts) <= buckets + 1
        assert max(filter(None, chart.columns["board.temperature_celsius"].highs)) == 119.0


def test_more_than_is_read_at_a_time_costs_the_oldest_and_is_said(
    opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_draw, "MAX_ROWS", 100)
    opened.write(batch(*(sample(n, ts=START + n, heat=n, rule=str(n)) for n in range(300))), NOW)
    chart = opened.chart("acme", "pi-1", {"board": ["heat"]}, START, START + 300, 30)
    assert chart.cut
    assert chart.columns["board.heat"].lows[0] == 200.0
    changes = opened.changes("acme", "pi-1", "board", ["rule"], START, START + 300)
    assert changes.cut
    assert [row.values["rule"] for row in changes.rows] == [str(n) for n in range(200, 300)]
    exact = opened.chart("acme", "pi-1", {"board": ["heat"]}, START + 200, START + 300, 30)
    assert not exact.cut


def by_hand(facts: Sequence[Sample], metrics: Sequence[str]) -> list[tuple[float, dict[str, Any]]]:
    rows: list[tuple[float, dict[str, Any]]] = []
    for fact in sorted(facts, key=lambda fact: fact.ts_ms):
        said = {}
        for metric in metrics:
            found: Any = json.loads(fact.values)
            for key in metric.split("."):
                found = found.get(key) if isinstance(found, dict) else None
            said[metric] = found[:128] if isinstance(found, str) else found if isinstance(found, bool) else None
        if not rows or rows[-1][1] != said:
            rows.append((fact.ts_ms / 1000, said))
    return rows


def test_changes_are_the_moments_at_which_a_text_changed_with_digests_and_without(opened: Store) -> None:
    facts = [fact for fact in fill(opened) if fact.group == "board"]
    since, until = START + 77, START + 3500
    rows = by_hand([fact for fact in facts if since <= fact.ts_ms / 1000 < until], TEXTS)
    assert len(rows) > 300
    for _ in range(2):
        changes = opened.changes("acme", "pi-1", "board", TEXTS, since, until)
        assert [tuple(row) for row in changes.rows] == rows
        assert not changes.cut
        few = opened.changes("acme", "pi-1", "board", TEXTS, since, until, 5)
        assert (few.rows, few.cut) == (changes.rows[-5:], True)
        alone = opened.changes("acme", "pi-1", "board", ["action"], since, until)
        assert [tuple(row) for row in alone.rows] == by_hand(
            [fact for fact in facts if since <= fact.ts_ms / 1000 < until], ["action"]
        )
        condensed(opened)


def test_of_two_messages_of_one_time_one_is_told(opened: Store) -> None:
    opened.write(batch(sample(1, rule="a"), sample(2, rule="b"), sample(3, ts=NOW + 1, rule="b")), NOW)
    rows = opened.changes("acme", "pi-1", "board", ["rule"], NOW, NOW + 9).rows
    assert len(rows) in (1, 2)
    assert rows[-1].values == {"rule": "b"}


@pytest.mark.parametrize(
    ("metrics", "limit"), [([], 5), (["a b"], 5), (["a"], 0), (["a"], MAX_CHANGES + 1), (["a"] * 17, 5)]
)
def test_what_is_no_list_of_changes_is_refused(opened: Store, metrics: list[str], limit: int) -> None:
    with pytest.raises(SpecError):
        opened.changes("acme", "pi-1", "board", metrics, NOW, NOW + 1, limit)


def test_a_flood_and_a_trickle_have_no_digests_and_the_same_chart(place: str) -> None:
    opened = open_store(place)
    trickle = [sample(n, ts=START + 60 * n) for n in range(15)]
    many_names = [
        sample(n, device="pi-2", ts=START + n, **{f"m{k}": k for k in range(n % 2 * 100, n % 2 * 100 + 100)})
        for n in range(200)
    ]
    opened.write(batch(*trickle, *many_names), NOW)
    assert condensed(opened) == 2
    assert execute(place, "SELECT slot FROM digests") == []
    assert len(opened.chart("acme", "pi-1", {"board": ["temperature_celsius"]}, START, START + 900, 10).starts) == 8
    assert len(opened.chart("acme", "pi-2", {"board": ["m150"]}, START, START + 900, 30).starts) == 7
    opened.close()


@pytest.mark.parametrize("damage", ["head = '{}'", "head = 'x'", "numbers = ''"])
def test_a_damaged_digest_is_not_believed(place: str, damage: str) -> None:
    opened = open_store(place)
    facts = fill(opened)
    condensed(opened)
    empty = damage.replace("''", "x''" if "://" not in place else "''::bytea")
    execute(place, "UPDATE digests SET " + empty)  # noqa: S608 - constants of this test
    chart = opened.chart("acme", "pi-1", METRICS, START, START + 3600, 40)
    assert drawn(chart, "board.pressure.cpu") == expected(facts, "board", "pressure.cpu", 120_000)
    board = [fact for fact in facts if fact.group == "board"]
    rows = opened.changes("acme", "pi-1", "board", ["action"], START, START + 3600).rows
    assert [tuple(row) for row in rows] == by_hand(board, ["action"])
    opened.close()


def test_digests_go_with_their_messages(place: str) -> None:
    opened = open_store(place)
    for day in (40, 1):
        facts = [sample(1000 * day + n, ts=START - day * DAY + n) for n in range(400)]
        opened.write(batch(*facts), NOW - day * DAY)
    condensed(opened)
    assert len(execute(place, "SELECT slot FROM digests")) == 2
    trimmed(opened, NOW - 30 * DAY)
    assert execute(place, "SELECT slot FROM digests") == [(round((START - DAY) * 1000) // SLOT_MS * SLOT_MS,)]
    trimmed(opened, NOW + 30 * DAY)
    condensed(opened)
    assert opened.count() == 0
    assert execute(place, "SELECT slot FROM digests") == []
    assert execute(place, "SELECT slot FROM unsettled") == []
    opened.close()


def test_a_quarter_rests_before_it_gets_its_digest(opened: Store) -> None:
    opened.write(batch(*(sample(n, ts=START + n) for n in range(400))), NOW)
    assert opened.condense(NOW + 1799) == 0
    assert opened.condense(NOW + 1801) == 1
    assert opened.condense(NOW + 1801) == 0


def status(version: int, word: str = "running", device: str = "pi-1", **more: Any) -> Status:
    body = json.dumps({"id": ID, "status": word, "version": version, "ts": NOW + version, **more})
    return Status("acme", device, ID, "fine-tune", version, word, NOW + version, body)


def test_a_history_has_the_first_status_of_each_version_in_their_order(opened: Store) -> None:
    opened.write(batch(status(2, "queued"), status(1, "accepted"), status(3, step="training", progress=0.0)), NOW)
    opened.write(batch(status(3, step="training", progress=0.5), status(4, device="pi-2")), NOW)
    done = status(5, "succeeded", result={"x": "y" * 5000}, reason_code="done", reason="r" * 900, energy_j=12.5)
    opened.write(batch(done), NOW)
    rows = [json.loads(text) for text in opened.history("acme", "pi-1", ID)]
    assert [row["version"] for row in rows] == [1, 2, 3, 5]
    assert rows[2] == {"version": 3, "status": "running", "ts": NOW + 3, "step": "training", "progress": 0.0}
    assert rows[3]["reason"] == "r" * 500
    assert (rows[3]["reason_code"], rows[3]["energy_j"]) == ("done", 12.5)
    assert "result" not in rows[3]
    assert opened.history("acme", "pi-1", "other") == opened.history("acme", "nobody", ID) == []


def test_a_history_survives_what_a_board_may_write_into_a_status(opened: Store) -> None:
    bodies = ["no JSON", "[]", '{"progress": 1' + "0" * 400 + ', "until": {"a": "' + "x" * 900 + '"}, "step": true}']
    facts = [status(n)._replace(body=body) for n, body in enumerate(bodies)]
    opened.write(batch(*facts), NOW)
    rows = [json.loads(text) for text in opened.history("acme", "pi-1", ID)]
    assert [row["version"] for row in rows] == [0, 1, 2]
    assert rows[2] == {"version": 2, "status": "running", "ts": NOW + 2, "step": True}


def test_a_history_keeps_its_newest_and_goes_with_its_command(opened: Store) -> None:
    opened.write(batch(*(status(n) for n in range(1, MAX_HISTORY + 30))), NOW - 40 * DAY)
    opened.write(batch(status(MAX_HISTORY + 30, "succeeded")), NOW - 40 * DAY)
    versions = [json.loads(text)["version"] for text in opened.history("acme", "pi-1", ID)]
    assert versions == list(range(31, MAX_HISTORY + 31))
    trimmed(opened, NOW - 30 * DAY)
    assert opened.history("acme", "pi-1", ID) == []


def test_a_birth_is_given_whole(opened: Store) -> None:
    from service.fleet.store import Birth  # noqa: PLC0415 - beside its only use

    opened.write(batch(Birth("acme", "pi-1", 4, "0.9", "raspberry-pi-4", "lite0 1.2", '{"schema":1}')), NOW)
    assert opened.birth("acme", "pi-1") == '{"schema":1}'
    assert opened.birth("acme", "pi-2") == opened.birth("other", "pi-1") == ""


def test_a_list_tells_what_the_governor_sees_and_the_newest_command(opened: Store) -> None:
    values = {"delta_t_celsius": 20.5, "charge": 0.5, "power_watts": 4.25, "power_is_modelled": True, "rule": "hot"}
    opened.write(batch(sample(1, **values), sample(1, device="pi-2", power_is_modelled="yes", charge=10**400)), NOW)
    newest = status(3)._replace(id=ID[:-1] + "7", type="scrub")
    opened.write(batch(status(9, "succeeded"), newest), NOW)
    row, other = opened.devices(Filter(), NOW)
    assert (row.delta_t_celsius, row.charge, row.power_watts, row.power_is_modelled) == (20.5, 0.5, 4.25, True)
    assert (row.rule, row.command_id, row.command_type, row.command_status) == ("hot", newest.id, "scrub", "running")
    assert row.command_ts == NOW + 3
    assert other[11:] == DeviceRow(*other[:11])[11:]


@pytest.fixture
def version_1(place: str) -> str:
    """A store as version 1 made it, with telemetry."""
    if "://" in place:
        made = open_store(place)
        made.write(batch(*(sample(n, ts=START + n) for n in range(400))), NOW)
        made.close()
        execute(place, "DROP TABLE history, digests, unsettled")
        execute(place, "UPDATE temperd_schema SET version = 1")
    else:
        Path(place).parent.mkdir(parents=True)
        database = sqlite3.connect(place)
        database.executescript(store_sqlite_sql.SCHEMA + "PRAGMA user_version = 1;")
        database.execute("INSERT INTO devices (id, tenant, name) VALUES (1, 'acme', 'pi-1')")
        rows = [(f'{{"temperature_celsius":{40.0 + n}}}', int(START * 1000) + n * 1000, n) for n in range(400)]
        database.executemany("INSERT INTO telemetry VALUES (NULL, 1, 'board', ?2, 1, ?3, 1, 0, ?1, 1)", rows)
        database.commit()
        database.close()
    return place


def test_a_store_of_version_1_goes_on_in_place(version_1: str) -> None:
    opened = open_store(version_1)
    chart = opened.chart("acme", "pi-1", {"board": ["temperature_celsius"]}, START, START + 900, 30)
    assert max(filter(None, chart.columns["board.temperature_celsius"].highs)) == 439.0
    opened.write(batch(status(1), sample(1000, ts=START + 500.5, temperature_celsius=999.0)), NOW)
    assert len(opened.history("acme", "pi-1", ID)) == 1
    assert condensed(opened) == 1
    chart = opened.chart("acme", "pi-1", {"board": ["temperature_celsius"]}, START, START + 900, 30)
    assert max(filter(None, chart.columns["board.temperature_celsius"].highs)) == 999.0
    opened.close()
    open_store(version_1).close()


def test_an_upgrade_that_fails_leaves_version_1(version_1: str) -> None:
    execute(version_1, "CREATE TABLE unsettled (x INTEGER)")  # in the way
    with pytest.raises(BoardError):
        open_store(version_1)
    names = "SELECT tablename FROM pg_tables" if "://" in version_1 else "SELECT name FROM sqlite_schema"
    assert not {("history",), ("digests",)} & set(execute(version_1, names))
    execute(version_1, "DROP TABLE unsettled")
    opened = open_store(version_1)
    assert opened.count() == 400
    opened.close()


def test_no_digest_is_made_while_a_message_is_under_way(place: str) -> None:
    if "://" not in place:
        pytest.skip("in SQLite one writes at a time")
    opened = open_store(place)
    opened.write(batch(*(sample(n, ts=START + n) for n in range(400))), NOW)
    done: list[int] = []
    with psycopg.connect(place) as writer:
        writer.execute("SELECT pg_advisory_xact_lock_shared(%s)", (CONDENSING,))
        thread = threading.Thread(target=lambda: done.append(opened.condense(NOW + DAY)))
        thread.start()
        thread.join(0.3)
        assert not done
        writer.commit()
        thread.join(30)
    assert done == [1]
    opened.close()
