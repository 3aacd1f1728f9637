"""One test-suite for both databases. PostgreSQL is a real one; where there is none, its half is skipped by name."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from itertools import permutations
from pathlib import Path
from typing import Any

import psycopg
import pytest

from agent.errors import BoardError, NetworkError, SpecError
from service.fleet import store, store_sqlite
from service.fleet.store import Alarm, Batch, Birth, Fact, Filter, Presence, Sample, Status, Store, open_store
from tests.simulators.postgres import Postgres, empty_database, find_postgres

NOW = 1_790_000_000.0
DAY = 86400.0
ID = "01990000-0000-7000-8000-000000000001"


def batch(*facts: Fact) -> Batch:
    made = Batch()
    for fact in facts:
        made.add(fact)
    return made


def sample(seq: int = 1, *, device: str = "pi-1", group: str = "board", ts: float = NOW, **values: object) -> Sample:
    text = json.dumps(values or {"temperature_celsius": 40.0 + seq, "action": "RUN"}, separators=(",", ":"))
    return Sample("acme", device, group, "boot-1", seq, int(ts * 1000), seq * 10, text)


def presence(online: bool, session: int, connection: int, ts: float = NOW) -> Presence:
    return Presence("acme", "pi-1", online, session, connection, ts)


def only(opened: Store, **wanted: Any) -> list[str]:
    return [row.name for row in opened.devices(Filter(**wanted), NOW)]


def test_a_message_that_comes_again_is_kept_once(opened: Store) -> None:
    assert opened.write(batch(sample(1), sample(2), sample(1)), NOW).samples == 2
    again = opened.write(batch(sample(2), sample(3)), NOW + 5)
    assert (again.samples, again.duplicates) == (1, 1)
    assert opened.count() == 3


@pytest.mark.parametrize("after", [0.0, 60.0])
def test_a_message_of_a_board_that_did_not_know_the_time_is_kept_once_with_its_right_time(
    opened: Store, after: float
) -> None:
    undated = sample(7, ts=12.5)._replace(dated=False)
    assert opened.write(batch(undated, sample(8)), NOW).samples == 2
    assert opened.write(batch(undated), NOW).samples == 0
    opened.write(batch(sample(7, ts=NOW - 30)), NOW + after)
    opened.write(batch(sample(7, ts=NOW - 30.002)), NOW + after)  # dated anew before it was sent again
    assert opened.count() == 2
    points = opened.series("acme", "pi-1", "board", "temperature_celsius", 0, NOW + 1)
    assert points == [(NOW - 30, 47.0), (NOW, 48.0)]


def test_all_of_a_batch_or_nothing(opened: Store) -> None:
    broken = sample(2)._replace(seq=1 << 70)  # no database holds it
    with pytest.raises((BoardError, NetworkError, OverflowError)):
        opened.write(batch(presence(True, 1, 1), sample(1), broken), NOW)
    assert opened.count() == 0
    assert only(opened) == []
    assert opened.write(batch(sample(1)), NOW).samples == 1


def test_what_was_written_is_there_for_another_reader_at_once_and_after_a_restart(place: str) -> None:
    writer, reader = open_store(place), open_store(place)
    writer.write(batch(sample(1)), NOW)
    assert reader.count() == 1
    writer.close()
    reader.close()
    later = open_store(place)
    assert later.write(batch(sample(1)), NOW).duplicates == 1
    later.close()


def test_a_series_has_one_metric_of_one_device_in_its_order_and_span(opened: Store) -> None:
    facts = [sample(n, ts=NOW + n, pressure={"cpu": n / 8}, on_mains=n % 2 == 0, rule="run") for n in (3, 1, 2, 4)]
    others = [sample(9, device="pi-2", ts=NOW + 2), sample(9, group="energy", ts=NOW + 2)]
    opened.write(batch(*facts, *others), NOW)
    read = opened.series
    assert read("acme", "pi-1", "board", "pressure.cpu", NOW + 1, NOW + 4) == [
        (NOW + 1, 0.125),
        (NOW + 2, 0.25),
        (NOW + 3, 0.375),
    ]
    assert [value for _, value in read("acme", "pi-1", "board", "on_mains", NOW, NOW + 9)] == [False, True, False, True]
    assert read("acme", "pi-1", "board", "rule", NOW, NOW + 9, 1) == [(NOW + 1, "run")]
    assert read("acme", "pi-1", "board", "never", NOW, NOW + 2) == [(NOW + 1, None)]
    assert read("acme", "nobody", "board", "rule", NOW, NOW + 9) == []


@pytest.mark.parametrize("name", ["", "a..b", 'a"', "a'; drop table", "a.b.c.d.e", "$", "x" * 65])
def test_no_metric_is_asked_for_by_what_is_no_name(opened: Store, name: str) -> None:
    with pytest.raises(SpecError, match="no metric"):
        opened.series("acme", "pi-1", "board", name, 0, NOW)


def test_the_latest_of_each_group_but_not_of_a_clock_that_runs_years_ahead(opened: Store) -> None:
    ahead = sample(8, ts=NOW + 3650 * DAY)
    opened.write(batch(sample(1), sample(2, ts=NOW + 1), ahead, sample(3, group="link", ts=0.0, connected=True)), NOW)
    found = opened.latest("acme", "pi-1", NOW)
    assert found["board"][0] == NOW + 1
    assert json.loads(found["board"][1]) == {"temperature_celsius": 42.0, "action": "RUN"}
    assert found["link"] == (0.0, '{"connected":true}')
    assert opened.devices(Filter(), NOW)[0].temperature_celsius == 42.0
    assert opened.count() == 4


def test_the_presence_with_the_higher_numbers_is_true_in_whatever_order_they_come(place: str) -> None:
    told = [presence(True, 3, 1), presence(False, 3, 1), presence(True, 3, 2), presence(False, 2, 9)]
    opened = open_store(place)
    for number, order in enumerate(permutations(told)):
        device = f"d{number}"
        for fact in order:
            opened.write(batch(fact._replace(device=device)), NOW)
    rows = opened.devices(Filter(), NOW)
    opened.close()
    assert len(rows) == 24
    assert all(row.online for row in rows)


def test_a_board_whose_journal_began_anew_is_believed_when_it_says_that_it_is_here(opened: Store) -> None:
    opened.write(batch(presence(False, 50, 2, NOW)), NOW)
    opened.write(batch(presence(True, 1, 1, NOW - 5)), NOW)
    assert only(opened, online=True) == []  # a message of long ago, late
    opened.write(batch(presence(True, 1, 1, NOW + 5)), NOW)
    assert only(opened, online=True) == ["pi-1"]


def test_a_status_is_replaced_by_a_higher_version_or_by_later_progress(opened: Store) -> None:
    def status(version: int, word: str, later_s: float = 0.0) -> Status:
        body = json.dumps([word, later_s])
        return Status("acme", "pi-1", ID, "scrub", version, word, NOW + later_s, body)

    opened.write(batch(status(2, "running"), status(2, "running", 60.0)), NOW)
    opened.write(batch(status(2, "running", 30.0)), NOW)  # by a consumer that is slower
    assert opened.statuses("acme", "pi-1") == ['["running", 60.0]']
    opened.write(batch(status(5, "succeeded"), status(3, "paused")), NOW)
    opened.write(
        batch(status(4, "running"), status(5, "succeeded", 90.0)), NOW
    )  # told again, perhaps without its result
    assert opened.statuses("acme", "pi-1") == ['["succeeded", 0.0]']


def test_alarms_are_raised_and_cleared_also_within_one_batch(opened: Store) -> None:
    def alarm(kind: str, body: str) -> Alarm:
        return Alarm("acme", "pi-1", kind, "warning" if body else "", NOW, body)

    opened.write(batch(alarm("overheated", '{"a": 1}'), alarm("disk-full", '{"b": 1}'), alarm("disk-full", "")), NOW)
    assert opened.alarms("acme", "pi-1") == ['{"a": 1}']
    assert only(opened, alarmed=True) == ["pi-1"]
    opened.write(batch(alarm("overheated", '{"a": 2}')), NOW)
    assert opened.alarms("acme", "pi-1") == ['{"a": 2}']
    opened.write(batch(alarm("overheated", "")), NOW)
    assert only(opened, alarmed=True) == []
    assert only(opened, alarmed=False) == ["pi-1"]


def test_alarms_of_which_nobody_spoke_again_are_forgotten(opened: Store) -> None:
    hot, full = (Alarm("acme", "pi-1", kind, "warning", NOW, f'{{"{kind}": 1}}') for kind in ("hot", "full"))
    opened.write(batch(hot, full, hot._replace(tenant="other")), NOW)
    opened.write(batch(full), NOW + 60)
    assert opened.forget_alarms("acme", NOW + 30) == 1
    assert opened.alarms("acme", "pi-1") == ['{"full": 1}']
    assert len(opened.alarms("other", "pi-1")) == 1  # another consumer reads that tenant's
    assert opened.forget_alarms("", NOW + 30) == 1


def test_who_has_read_all_is_noted(place: str) -> None:
    opened = open_store(place)
    opened.note_read("one", whole=True)
    opened.note_read("one", whole=True)
    opened.note_read("two", whole=True)
    opened.note_read("two", whole=False)
    opened.close()
    again = open_store(place)
    assert [again.has_read(name) for name in ("one", "two", "three")] == [True, False, False]
    again.close()


def test_a_list_has_filters_and_pages(opened: Store) -> None:
    names = [f"pi-{n}" for n in range(5)] + ["jetson-1"]
    opened.write(batch(*(sample(1, device=name) for name in names)), NOW)
    opened.write(batch(Birth("acme", "pi-3", 4, "0.9", "raspberry-pi-4", "lite0 1.2", "{}")), NOW)
    assert only(opened) == ["jetson-1", *names[:5]]
    assert only(opened, prefix="pi-", limit=2) == ["pi-0", "pi-1"]
    assert only(opened, prefix="pi-", limit=2, after=("acme", "pi-1")) == ["pi-2", "pi-3"]
    assert only(opened, tenant="other") == []
    row = opened.devices(Filter(prefix="pi-3"), NOW)[0]
    assert (row.agent, row.board, row.model, row.alarms, row.since) == ("0.9", "raspberry-pi-4", "lite0 1.2", 0, None)
    assert (row.telemetry_ts, row.temperature_celsius, row.action) == (NOW, 41.0, "RUN")


def test_a_list_tells_no_telemetry_of_last_week_but_the_device_does(opened: Store) -> None:
    opened.write(batch(sample(1, ts=NOW - 7 * DAY)), NOW)
    assert opened.devices(Filter(), NOW)[0].telemetry_ts is None
    assert opened.latest("acme", "pi-1", NOW)["board"][0] == NOW - 7 * DAY


@pytest.mark.parametrize("told", ["1" + "0" * 400, "true", '"hot"', "[1]", "null"])
def test_a_list_survives_a_temperature_that_is_none(opened: Store, told: str) -> None:
    opened.write(batch(sample(1)._replace(values=f'{{"temperature_celsius": {told}}}')), NOW)
    assert [row.temperature_celsius for row in opened.devices(Filter(), NOW)] in ([None], [1.0])


def test_names_that_a_broker_invents_have_an_end(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (store_sqlite, __import__("service.fleet.store_postgres", fromlist=["x"])):
        monkeypatch.setattr(module, "MAX_DEVICES", 3)
    opened = open_store(place)
    written = opened.write(batch(*(sample(1, device=f"d{n}") for n in range(5))), NOW)
    assert (written.samples, written.strangers) == (3, 2)
    assert opened.write(batch(sample(2, device="d0"), sample(2, device="d4")), NOW).strangers == 1
    opened.close()


def trimmed(opened: Store, before: float, most_bytes: int = 1 << 50) -> None:
    while opened.trim(before, most_bytes):
        pass


def test_what_is_too_old_is_forgotten_and_what_is_not_stays(opened: Store) -> None:
    opened.write(batch(sample(1, ts=NOW - 40 * DAY), sample(2, ts=0.0)), NOW - 40 * DAY)
    done = Status("acme", "pi-1", ID, "scrub", 3, "succeeded", NOW - 40 * DAY, "{}")
    running = done._replace(id=ID[:-1] + "2", status="running")
    opened.write(batch(done, running), NOW - 40 * DAY)
    opened.write(batch(sample(3), done._replace(id=ID[:-1] + "3", ts=12.5)), NOW)  # by a board that knows no time
    trimmed(opened, NOW - 90 * DAY)
    assert opened.count() == 3
    assert len(opened.statuses("acme", "pi-1")) == 3
    trimmed(opened, NOW - 30 * DAY)
    assert opened.count() == 1
    assert opened.latest("acme", "pi-1", NOW)["board"][0] == NOW
    assert len(opened.statuses("acme", "pi-1")) == 2


def test_a_store_that_is_too_large_forgets_its_oldest(opened: Store) -> None:
    for day in range(6):
        at = NOW - (5 - day) * DAY
        opened.write(batch(*(sample(1000 * day + n, ts=at + n / 8, pad=f"{n}" * 400) for n in range(1000))), at)
    most = opened.used_bytes() - (200 << 10)
    trimmed(opened, 0.0, most)
    assert opened.used_bytes() <= most
    assert 2000 <= opened.count() < 6000
    assert opened.latest("acme", "pi-1", NOW + 999)["board"][0] == NOW + 999 / 8


def test_a_store_of_a_newer_version_is_left_alone(place: str) -> None:
    open_store(place).close()
    if "://" in place:
        with psycopg.connect(place, autocommit=True) as connection:
            connection.execute("UPDATE temperd_schema SET version = 99")
    else:
        database = sqlite3.connect(place)
        database.execute("PRAGMA user_version = 99")
        database.close()
    with pytest.raises(BoardError, match="newer"):
        open_store(place)


@pytest.mark.parametrize("wrong", ["", "mysql://user:secret@host/x", "http://x"])
def test_what_is_no_place_for_a_store_is_said_without_its_password(wrong: str) -> None:
    with pytest.raises(SpecError) as caught:
        open_store(wrong)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, and longer than its header of sixteen bytes" * 100)
    with pytest.raises(BoardError, match="cannot be used"):
        open_store(str(path))
    assert path.read_text().startswith("not a database")


def test_a_disk_that_is_full_is_said_and_the_batch_can_be_written_later(tmp_path: Path) -> None:
    opened = store_sqlite.SqliteStore(tmp_path / "a.sqlite")
    opened._database.execute("PRAGMA max_page_count = 40")
    facts = batch(*(sample(n, pad="x" * 500) for n in range(1000)))
    with pytest.raises(BoardError) as caught:
        opened.write(facts, NOW)
    assert caught.value.code == "no-space"
    opened._database.execute("PRAGMA max_page_count = 4000")
    assert opened.write(facts, NOW).samples == 1000
    opened.close()


def test_a_database_that_goes_and_comes_again_takes_the_batch_then() -> None:
    if find_postgres() is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        server = Postgres(Path(folder))
        server.start()
        opened = open_store(server.url)
        opened.write(batch(sample(1)), NOW)
        server.kill()
        with pytest.raises(NetworkError):
            opened.write(batch(sample(2)), NOW)
        server.start()
        assert opened.write(batch(sample(1), sample(2)), NOW).duplicates == 1
        opened.close()
        server.kill()


def test_a_day_that_a_fast_clock_wrote_before_gets_its_partition_all_the_same(postgres: Postgres) -> None:
    opened = open_store(empty_database(postgres))
    opened.write(batch(sample(1, ts=NOW + 5 * DAY)), NOW)  # ahead: with the times that no clock gives
    assert opened.write(batch(sample(2, ts=NOW + 5 * DAY + 1)), NOW + 5 * DAY).samples == 1
    assert opened.write(batch(sample(1, ts=NOW + 5 * DAY)), NOW + 5 * DAY).duplicates == 1
    trimmed(opened, NOW + 30 * DAY)
    assert opened.count() == 0
    opened.close()


def test_boot_ids_become_numbers_that_a_database_holds() -> None:
    numbers = {store.boot_number(f"boot-{n}") for n in range(1000)}
    assert len(numbers) == 1000
    assert all(0 <= number < 1 << 63 for number in numbers)
