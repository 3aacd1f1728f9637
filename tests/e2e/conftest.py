"""Fixtures of the end-to-end tests; all are skipped, by name, where mosquitto is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulators.fleet import World, world
from tests.simulators.mosquitto import find_mosquitto


@pytest.fixture(autouse=True)
def _broker() -> None:
    if find_mosquitto() is None:
        pytest.skip("needs mosquitto")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[World]:
    """A running world of its own."""
    with world(tmp_path) as made:
        yield made


@pytest.fixture
def resting(tmp_path: Path) -> Iterator[World]:
    """A world whose daemon was not started yet."""
    with world(tmp_path, started=False) as made:
        yield made
