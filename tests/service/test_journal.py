from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.errors import BoardError
from service import journal as module
from service.commands import new_id
from service.job import STAGE_EVENTS, Event, Standing, State, advance
from service.journal import Journal, Verdict
from service.journal_file import MIN_READER

NOW = 1_772_366_400.0
ROOT = Path(__file__).parents[2]


def an_id(number: int) -> str:
    return new_id(int(NOW * 1000) + number, lambda n: b"\0" * n)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    made, aside = Journal.open(path, NOW)
    assert aside is None
    yield made
    made.close()


def reopened(path: Path) -> Journal:
    made, aside = Journal.open(path, NOW)
    assert aside is None
    return made


def test_a_job_is_kept_as_written(journal: Journal, path: Path) -> None:
    job = journal.add_job(an_id(1), "d1", "fine-tune", {"model": "m", "epochs": 2}, NOW)
    assert (job.standing, job.version, job.status_published) == (Standing(), 1, False)
    standing = advance(job.standing, Event.ACCEPT)
    changed = journal.update(job.id, NOW + 1, standing=standing, plan={"depth": 75}, result={"a": None}, energy_j=2.5)
    assert changed.version == 2
    journal.close()
    again = reopened(path)
    assert again.job(job.id) == changed
    assert (changed.plan, changed.result, changed.energy_j) == ({"depth": 75}, {"a": None}, 2.5)
    assert (changed.created, changed.updated) == (NOW, NOW + 1)
    assert again.job("absent") is None
    again.close()


def test_what_is_not_given_stays(journal: Journal) -> None:
    journal.add_job(an_id(1), "d", "fine-tune", {}, NOW)
    journal.update(an_id(1), NOW, plan={"depth": 50})
    later = journal.update(an_id(1), NOW, standing=Standing(State.FAILED, 2, "x", "why"))
    assert later.plan == {"depth": 50}
    assert later.standing == Standing(State.FAILED, 2, "x", "why")


def test_a_refused_change_changes_nothing(journal: Journal) -> None:
    with pytest.raises(KeyError):
        journal.update(an_id(9), NOW)
    first = journal.add_job(an_id(1), "d", "fine-tune", {}, NOW)
    with pytest.raises(ValueError, match="already"):
        journal.add_job(an_id(1), "other", "fine-tune", {}, NOW)
    assert journal.job(an_id(1)) == first
    assert journal.judge(an_id(1), "d") is Verdict.REPEAT
    with pytest.raises(ValueError, match="JSON"):
        journal.update(an_id(1), NOW, result={"loss": float("nan")})
    assert journal.job(an_id(1)) == first


def test_the_status_message_has_the_fields_of_the_contract(journal: Journal) -> None:
    job = journal.add_job(an_id(1), "d", "fine-tune", {}, NOW)
    job = journal.update(job.id, NOW, standing=Standing(State.TRAINING, 2, "thermal", "slowed"))
    assert job.status(ts=NOW, clock="synchronised", progress=0.5, eta_s=12.0) == {
        "id": an_id(1),
        "status": "running",
        "step": "training",
        "version": 2,
        "attempt": 2,
        "reason_code": "thermal",
        "reason": "slowed",
        "progress": 0.5,
        "eta_s": 12.0,
        "until": None,
        "ts": NOW,
        "clock": "synchronised",
        "energy_j": None,
        "result": None,
    }


def test_only_the_confirmed_version_counts_as_published(journal: Journal) -> None:
    job = journal.add_job(an_id(1), "d", "fine-tune", {}, NOW)
    newer = journal.update(job.id, NOW, standing=Standing(State.ACCEPTED))
    journal.mark_published(job.id, job.version)
    assert [item.id for item in journal.unpublished()] == [job.id]
    journal.mark_published(job.id, newer.version)
    assert journal.unpublished() == []
    journal.forget_published()
    assert [item.id for item in journal.unpublished()] == [job.id]


def test_a_broker_that_lost_all_is_told_of_open_jobs_and_the_last_that_ended(journal: Journal) -> None:
    ended = module.ENDED_AGAIN + 3
    for number in range(ended + 2):
        open_ones = {0: State.DEFERRED, 1: State.TRAINING}
        journal.add_job(an_id(number), "d", "fine-tune", {}, NOW)
        journal.update(an_id(number), NOW + number, standing=Standing(open_ones.get(number, State.FAILED)))
        journal.mark_published(an_id(number), 2)
    assert journal.unpublished() == []
    journal.forget_published()
    expected = [an_id(0), an_id(1), *(an_id(number) for number in range(5, ended + 2))]
    assert [job.id for job in journal.unpublished()] == expected


def test_what_a_job_waits_for_goes_with_its_standing(journal: Journal) -> None:
    journal.add_job(an_id(1), "d", "fine-tune", {}, NOW)
    until: dict[str, object] = {"what": "charge", "below": None, "above": 0.15, "ts": None}
    waiting = journal.update(an_id(1), NOW, standing=Standing(State.DEFERRED), until=until, worked_s=2.5)
    assert (waiting.until, waiting.worked_s) == (until, 2.5)
    assert journal.update(an_id(1), NOW, energy_j=1.0).until == until
    gone = journal.update(an_id(1), NOW, standing=Standing(State.PULLING))
    assert (gone.until, gone.worked_s) == (None, 2.5)


def test_a_journal_of_the_first_schema_is_taken_over_whole(path: Path) -> None:
    """The file was written by the release before schema 2: an ended job, one at work, one deferred, one received."""
    path.parent.mkdir()
    path.write_bytes((ROOT / "tests" / "vectors" / "journal-1.sqlite").read_bytes())
    peeked = Journal.peek(path)
    assert [job.until for job in peeked.jobs()] == [None] * 4
    peeked.close()
    made = reopened(path)
    first, second, third, fourth = reversed(made.jobs())
    assert (first.standing.state, first.result, first.energy_j) == (State.SUCCEEDED, {"slot": "a"}, 12.5)
    assert second.standing == Standing(State.TRAINING, 2, "worker-killed", "again")
    assert third.standing.reason_code == "thermal.delta-t-pause"
    assert (fourth.standing, fourth.spec) == (Standing(), {"model": "m", "epochs": 2, "data": "/srv/d"})
    assert {job.worked_s for job in made.jobs()} == {0.0}
    assert made.judge(first.id, first.digest) is Verdict.REPEAT
    assert (made.recall("held"), made.next_session()) == (f'["{third.id}"]', 2)
    changed = made.update(third.id, NOW, standing=third.standing, until={"what": "clock"}, worked_s=1.5)
    made.close()
    again = reopened(path)
    assert again.job(third.id) == changed
    again.close()


def test_open_and_interrupted_jobs(journal: Journal) -> None:
    for number, state in enumerate(State):
        journal.add_job(an_id(number), "d", "fine-tune", {}, NOW)
        journal.update(an_id(number), NOW, standing=Standing(state))
    assert {job.standing.state for job in journal.interrupted()} == {*STAGE_EVENTS, State.PAUSED}
    waiting = {State.RECEIVED, State.ACCEPTED, State.DEFERRED}
    assert {job.standing.state for job in journal.unfinished()} == waiting | {*STAGE_EVENTS, State.PAUSED}
    assert [job.id for job in journal.jobs(2)] == [an_id(len(State) - 1), an_id(len(State) - 2)]


def test_the_ledger_tells_repeat_from_replay(journal: Journal) -> None:
    assert journal.judge(an_id(1), "d1") is Verdict.NEW
    journal.record(an_id(1), "d1", "expired")
    assert journal.judge(an_id(1), "d1") is Verdict.REPEAT
    assert journal.judge(an_id(1), "d2") is Verdict.REPLAY
    assert journal.outcome(an_id(1)) == "expired"
    journal.record(an_id(1), "d1", "done")
    assert journal.outcome(an_id(1)) == "done"
    assert journal.outcome(an_id(2)) is None


def test_ids_that_were_dropped_stay_dead(journal: Journal, path: Path) -> None:
    with journal._writing() as db:  # filling through `record` would sync ten thousand times
        rows = [(an_id(number), "d", "x") for number in range(10, 10 + module.LEDGER_KEPT)]
        db.executemany("INSERT INTO ledger VALUES (?, ?, ?)", rows)
    journal.record(an_id(10**6), "d", "x")
    assert journal.judge(an_id(10), "d") is Verdict.REPLAY  # dropped
    assert journal.judge(an_id(5), "d") is Verdict.REPLAY  # never seen, but older than what was dropped
    assert journal.judge(an_id(11), "d") is Verdict.REPEAT  # the oldest kept
    assert journal.judge(an_id(10**5), "d") is Verdict.NEW  # out of order
    journal.record(an_id(6), "d", "x")  # goes at once, and must not lower the mark
    journal.close()
    again = reopened(path)
    assert again.judge(an_id(10), "d") is Verdict.REPLAY
    again.close()


def test_only_finished_and_published_jobs_are_dropped(journal: Journal) -> None:
    rows = [("SUCCEEDED", 1), ("SUCCEEDED", 0), ("TRAINING", 1)]
    with journal._writing() as db:
        insert = "INSERT INTO jobs VALUES (?, 'd', 't', '{}', ?, 1, 1, NULL, '', '', NULL, NULL, 0, 0, ?, NULL, 0)"
        db.executemany(insert, [(an_id(n), *row) for n, row in enumerate(rows)])
        db.executemany(insert, [(an_id(n), "FAILED", 1) for n in range(10, 9 + module.JOBS_KEPT)])
    journal.add_job(an_id(10**6), "d", "t", {}, NOW)
    kept = {job.id for job in journal.jobs(10**6)}
    assert an_id(0) not in kept
    assert {an_id(1), an_id(2), an_id(10), an_id(10**6)} <= kept


def test_a_board_that_never_has_a_broker_does_not_fill_its_disk_with_jobs(journal: Journal) -> None:
    with journal._writing() as db:
        insert = "INSERT INTO jobs VALUES (?, 'd', 't', '{}', ?, 1, 1, NULL, '', '', NULL, NULL, 0, 0, 0, NULL, 0)"
        db.executemany(insert, [(an_id(n), "TRAINING" if n == 0 else "FAILED") for n in range(module.UNTOLD_KEPT + 2)])
    journal.add_job(an_id(10**6), "d", "t", {}, NOW)
    kept = {job.id for job in journal.jobs(10**6)}
    assert len(kept) == module.UNTOLD_KEPT + 1
    assert an_id(0) in kept, "it has not ended"
    assert not {an_id(1), an_id(2)} & kept


def test_sessions_rise_over_restarts(journal: Journal, path: Path) -> None:
    assert [journal.next_session(), journal.next_session()] == [1, 2]
    journal.close()
    again = reopened(path)
    assert again.next_session() == 3
    again.close()


def test_the_file_is_private(journal: Journal, path: Path) -> None:
    journal.next_session()
    assert {part.stat().st_mode & 0o777 for part in path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("damage", [b"", b"not a database at all" * 500, None])
def test_a_broken_journal_is_put_aside_and_reported(path: Path, damage: bytes | None) -> None:
    first, _ = Journal.open(path, NOW)
    for number in range(50):
        first.add_job(an_id(number), "d", "fine-tune", {"x": "y" * 500}, NOW)
    first.next_session()
    first.close()
    content = path.read_bytes()
    if damage is None:  # pages of nonsense in the middle
        path.write_bytes(content[:4096] + b"\x5a" * 20_000 + content[24_096:])
    else:
        path.write_bytes(damage)
    second, aside = Journal.open(path, NOW + 60)
    if damage == b"":  # an empty file is what a new board has
        assert aside is None
        assert second.next_session() == 1
    else:
        assert aside == path.with_name("journal.db.corrupt-1")
        assert aside.exists()
        assert second.judge(an_id(1), "d") is Verdict.REPLAY  # it may have run before
        assert second.judge(an_id(61_000), "d") is Verdict.NEW
        assert second.next_session() > NOW
    assert second.jobs() == []
    second.close()


def test_a_second_quarantine_keeps_the_first(path: Path) -> None:
    path.parent.mkdir()
    for number in (1, 2):
        path.write_bytes(b"rubbish" * 1000)
        made, aside = Journal.open(path, NOW)
        made.close()
        assert aside == path.with_name(f"journal.db.corrupt-{number}")
    assert path.with_name("journal.db.corrupt-1").read_bytes() == b"rubbish" * 1000


LATER = (  # what a release with another schema may have added
    "ALTER TABLE jobs ADD COLUMN mood TEXT NOT NULL DEFAULT 'good'; ALTER TABLE ledger ADD COLUMN by TEXT;"
    "ALTER TABLE counters ADD COLUMN note TEXT; ALTER TABLE marks ADD COLUMN note TEXT;"
    "CREATE TABLE moods (name TEXT PRIMARY KEY) STRICT; PRAGMA user_version = 3;"
)


def test_after_a_rollback_the_release_before_goes_on_with_the_journal_of_the_later_one(path: Path) -> None:
    journal = reopened(path)
    journal.record(an_id(1), "d1", "succeeded")
    journal._db.executescript(LATER)
    journal._db.execute("INSERT INTO counters (name, value) VALUES (?, 2)", (MIN_READER,))
    journal._db.execute("UPDATE jobs SET mood = 'bad'")
    journal.record(an_id(2), "d2", "succeeded")
    journal.close()
    before = reopened(path)
    assert [before.judge(an_id(number), f"d{number}") for number in (1, 2, 3)] == ["repeat", "repeat", "new"]
    job = before.add_job(an_id(3), "d3", "fine-tune", {"model": "m"}, NOW)
    before.update(job.id, NOW, standing=Standing(State.ACCEPTED))
    before.remember("held", "{}")
    assert before.next_session() > 0
    assert before._db.execute("PRAGMA user_version").fetchone()[0] == 3, "the later release finds its own file again"
    assert before._db.execute("SELECT mood FROM jobs").fetchone()[0] == "good"
    before.close()
    assert Journal.peek(path).job(job.id) is not None


def test_a_journal_that_says_nothing_of_earlier_readers_is_for_its_own_release_alone(path: Path) -> None:
    journal = reopened(path)
    journal._db.executescript(LATER)
    journal.close()
    with pytest.raises(BoardError, match="newer"):
        Journal.open(path, NOW)


def test_a_newer_journal_is_left_alone(journal: Journal, path: Path) -> None:
    journal._db.execute("PRAGMA user_version = 99")
    journal.close()
    before = path.read_bytes()
    with pytest.raises(BoardError, match="newer"):
        Journal.open(path, NOW)
    assert path.read_bytes() == before


def test_a_full_disk_is_named_and_loses_nothing(journal: Journal) -> None:
    job = journal.add_job(an_id(1), "d", "fine-tune", {}, NOW)
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(BoardError) as caught:
        journal.update(job.id, NOW, result={"x": "y" * 100_000})
    assert caught.value.code == "no-space"
    assert journal.job(job.id) == job
    journal._db.execute("PRAGMA max_page_count = 1000000")
    assert journal.update(job.id, NOW, result={"x": "y" * 100_000}).version == 2


def test_a_place_that_cannot_be_written_is_a_board_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BoardError) as caught:
        Journal.open(tmp_path / "file" / "journal.db", NOW)
    assert caught.value.code == "disk"
    with pytest.raises(BoardError):
        Journal.peek(tmp_path / "absent.db")


def test_peeking_sees_what_the_daemon_wrote_and_cannot_write(journal: Journal, path: Path) -> None:
    job = journal.add_job(an_id(1), "d", "fine-tune", {}, NOW)
    view = Journal.peek(path)
    assert view.jobs() == [job]
    with pytest.raises(BoardError):
        view.next_session()
    view.close()


WRITER = """
import sys
from pathlib import Path
from service.job import Standing, State
from service.journal import Journal
journal, aside = Journal.open(Path(sys.argv[1]), 0.0)
job = sys.argv[2]
if journal.job(job) is None:
    journal.add_job(job, "d", "fine-tune", {}, 0.0)
while True:
    version = journal.job(job).version + 1
    state = State.TRAINING if version % 2 else State.PAUSED
    journal.update(job, float(version), standing=Standing(state, version), result={"v": version, "x": "y" * 3000})
    print(version, flush=True)
"""


def test_kill_9_in_the_middle_of_writing_loses_no_commit(path: Path) -> None:
    written = 1
    for lines in (1, 7, 40):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), an_id(1)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(lines):
            written = int(writer.stdout.readline())
        writer.kill()
        rest = writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        written = int(rest[-1]) if rest else written
        journal = reopened(path)
        job = journal.job(an_id(1))
        assert job is not None
        assert job.version in (written, written + 1)  # the last commit may not have been told
        assert job.result is not None
        assert job.result["v"] == job.standing.attempt == job.updated == job.version  # whole changes only
        journal.close()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["a", "b"])), max_size=12))
def test_an_id_runs_at_most_once(tmp_path_factory: pytest.TempPathFactory, arrivals: list[tuple[int, str]]) -> None:
    journal, _ = Journal.open(tmp_path_factory.mktemp("j") / "journal.db", NOW)
    ran: dict[int, str] = {}
    for number, digest in arrivals:
        verdict = journal.judge(an_id(number), digest)
        expected = Verdict.NEW if number not in ran else Verdict.REPEAT if ran[number] == digest else Verdict.REPLAY
        assert verdict is expected
        if verdict is Verdict.NEW:
            journal.add_job(an_id(number), digest, "fine-tune", {}, NOW)
            ran[number] = digest
    assert len(journal.jobs()) == len(ran)
    journal.close()


def test_a_journal_made_after_a_quarantine_closes(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"rubbish" * 1000)
    made, aside = Journal.open(path, NOW)
    made.close()
    assert aside is not None
    with pytest.raises(BoardError):
        made.jobs()
    assert sqlite3.sqlite_version_info >= (3, 37)  # STRICT tables


def test_questions_that_found_nothing_are_asked_again_after_each_write(journal: Journal) -> None:
    asked: list[str] = []
    journal._db.set_trace_callback(lambda text: asked.append(text) if text.startswith("SELECT * FROM jobs") else None)
    for _ in range(3):
        assert (journal.unfinished(), journal.unpublished()) == ([], [])
    assert len(asked) == 2
    job = journal.add_job(an_id(1), "d", "fine-tune", {}, NOW)
    assert journal.unfinished() == journal.unpublished() == [job]
    journal.mark_published(job.id, 1)
    assert journal.unpublished() == []
    changed = journal.update(job.id, NOW, plan={})
    assert journal.unpublished() == [changed]


def test_who_is_not_alone_looks_each_time(journal: Journal, path: Path) -> None:
    beside = Journal.peek(path)
    assert beside.unfinished() == []
    job = journal.add_job(an_id(1), "d", "fine-tune", {}, NOW)
    assert beside.unfinished() == [job]
    beside.close()
