"""Stores of either kind, for the tests that hold both databases to one standard."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.fleet.store import Store, open_store
from tests.simulators.postgres import Postgres, empty_database, find_postgres

BOTH = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    if find_postgres() is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:  # a short path: it holds a socket
        server = Postgres(Path(folder))
        server.start()
        yield server
        server.kill()


@pytest.fixture(params=BOTH)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "deep" / "fleet.sqlite")
    server = request.getfixturevalue("postgres")
    return empty_database(server)


@pytest.fixture
def opened(place: str) -> Iterator[Store]:
    made = open_store(place)
    yield made
    made.close()
