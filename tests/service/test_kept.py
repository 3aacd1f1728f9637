"""What another version kept in the journal, or nobody did, is passed over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.asked import Asked
from service.journal import Journal
from service.kept import recall_names, recall_records, recall_table

pytestmark = pytest.mark.once


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.open(tmp_path / "journal.sqlite", 0.0).journal
    yield journal
    journal.close()


@pytest.mark.parametrize("kept", ["", "{", "null", "1", '"x"', "[" * 5000, "1" * 5000, "[[1]]", '{"a": "b"}'])
def test_whatever_is_kept_something_is_read(journal: Journal, kept: str) -> None:
    journal.remember("x", kept)
    assert recall_table(journal, "x") == ({"a": "b"} if kept.startswith('{"a') else {})
    assert recall_names(journal, "x") == set()
    assert recall_records(journal, "x", Asked) == []


def test_names_are_texts(journal: Journal) -> None:
    journal.remember("x", '["a", 1, ["b"]]')
    assert recall_names(journal, "x") == {"a"}


@pytest.mark.parametrize("kept", ['[{"digest": "d", "later": 1}]', '{"digest": "d"}'])
def test_records_are_one_or_a_list_and_what_a_later_version_added_is_passed_over(journal: Journal, kept: str) -> None:
    journal.remember("x", kept)
    assert recall_records(journal, "x", Asked) == [Asked("d")]
