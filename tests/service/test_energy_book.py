from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.energy import Energy, EnergyMeter, Spent
from service.energy_book import JOBS_KEPT, NAME, EnergyBook
from service.journal import JobRecord, Journal


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "journal.sqlite", 0.0).journal
    yield opened
    opened.close()


def record(journal: Journal, number: int, energy_j: float | None = None) -> JobRecord:
    journal.add_job(f"job-{number}", "", "fine-tune", {}, 0.0)
    return journal.update(f"job-{number}", 0.0, energy_j=energy_j)


def spent() -> Energy:
    meter = EnergyMeter()
    for second, state in ((0.0, "training"), (1.0, "paused"), (2.0, "paused")):
        meter.add(second, 3.0, modelled=False, source="hwmon", state=state)
    meter.count(5e9)
    return meter.energy


def test_what_a_job_spent_is_there_after_a_restart_until_the_job_ends(journal: Journal) -> None:
    job, energy = record(journal, 1, 3.0), spent()
    EnergyBook(journal).keep(job.id, energy)
    book = EnergyBook(journal)
    assert book.load(job) == energy
    book.forget(job.id)
    assert "job-1" not in journal.recall(NAME)


def test_a_new_job_spent_nothing(journal: Journal) -> None:
    assert EnergyBook(journal).load(record(journal, 1)) == Energy()


def test_joules_of_a_journal_of_before_are_not_called_measured(journal: Journal) -> None:
    found = EnergyBook(journal).load(record(journal, 1, 42.0))
    assert (found.spent("training"), found.sources, found.modelled) == (Spent(42.0, 0.0), {"unknown": 42.0}, True)


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"job-1": 5}', '{"job-1": {"gap_s": -1}}', '{"job-1": {"x": 1}}'])
def test_a_broken_book_is_no_book(journal: Journal, text: str) -> None:
    journal.remember(NAME, text)
    book, job = EnergyBook(journal), record(journal, 1)
    assert book.load(job) == Energy()
    book.keep(job.id, spent())
    assert book.load(job) == spent()


def test_only_some_jobs_are_kept_the_newest(journal: Journal) -> None:
    book = EnergyBook(journal)
    jobs = [record(journal, number) for number in range(JOBS_KEPT + 2)]
    for job in jobs:
        book.keep(job.id, spent())
    assert [book.load(job) == spent() for job in jobs] == [False, False] + [True] * JOBS_KEPT
