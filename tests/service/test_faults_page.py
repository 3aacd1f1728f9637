"""docs/faults.md and the tests keep in step: faults name tests that there are, and no test of a fault is left out."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
NAMED = re.compile(r"`(test_\w+)`")
DEFINED = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)


def defined(pattern: str) -> set[str]:
    """Names of the tests in files that match."""
    return {name for path in (ROOT / "tests").rglob(pattern) for name in DEFINED.findall(path.read_text("utf-8"))}


def test_every_fault_names_tests_that_there_are() -> None:
    faults = [row for row in ROWS if row[0] != "Fault"]
    assert faults
    assert [row[0] for row in faults if len(row) != 4 or not (NAMED.search(row[3]) or row[3] == "the same")] == []
    assert set(NAMED.findall(PAGE)) - defined("test_*.py") == set()


def test_every_test_of_a_fault_is_on_the_page() -> None:
    ours = defined("test_faults_*.py") - defined("test_faults_page.py")
    assert len(ours) > 20
    assert ours - set(NAMED.findall(PAGE)) == set()
