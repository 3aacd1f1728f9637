"""For all tests: properties are not timed, and those that touch no runtime are marked: CI tries them once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

HERE = Path(__file__).parent
FOLDERS = ("policies", "agent/board", "console", "service", "soak", "vectors")
BESIDE_THE_RUNTIME = ("bench", "logs", "outlook", "runner")
"""Tests of the service that start a worker, or time one."""
ARTIFACTS = ("agent_slots", "card", "download", "durable", "keys", "parity", "sealed", "strict_json", "vectors", "web")

WHICHEVER_RUNTIME = (
    *("agent_update", "delta_slots", "faults_job", "keys", "memory", "models"),
    *("policy", "queue", "secrets"),
)
"""End-to-end tests of what the daemon does around a job: CI runs them beside one runtime, at full speed."""
LONG = ("lasting", "refusals", "scrub")
"""End-to-end tests of minutes whose subject is not the runtime: CI runs them with one."""
SLOW = ("bit_flips", "kill_matrix", "poison")
"""End-to-end tests that have a target of their own, `make slow-test`: CI has no room for them."""
AGENT_WHICHEVER = ("features", "footprint", "store", "worker")
"""Tests of the agent that start a runtime and look at files and processes."""


@pytest.fixture(autouse=True)
def _logs_as_found() -> Iterator[None]:
    """A verb sets the program's log up on a stream that ends with its test."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _stays_where_it_was() -> Iterator[None]:
    """A test that leaves the process in a folder of its own breaks another one, much later, once that is gone."""
    here = Path.cwd()
    yield
    assert Path.cwd() == here


def _touches_no_runtime(path: Path) -> bool:
    if not path.is_relative_to(HERE):
        return False
    where, name = path.parent.relative_to(HERE).as_posix(), path.stem.removeprefix("test_")
    if where == "agent":
        return name.startswith(ARTIFACTS)
    return where in FOLDERS and not (where == "service" and name.startswith(BESIDE_THE_RUNTIME))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them; those with a browser come last, as its loop runs on this thread from then on."""
    items.sort(key=lambda item: item.path.is_relative_to(HERE / "browser"))
    for item in items:
        if _touches_no_runtime(item.path):
            item.add_marker(pytest.mark.once)
        elif item.path.parent == HERE / "e2e":
            name = item.path.stem.removeprefix("test_")
            marks = {"whichever": WHICHEVER_RUNTIME, "long": LONG, "slow": SLOW}
            for mark in (mark for mark, names in marks.items() if name in names):
                item.add_marker(getattr(pytest.mark, mark))
        elif item.path.parent == HERE / "agent" and item.path.stem.removeprefix("test_") in AGENT_WHICHEVER:
            item.add_marker(pytest.mark.whichever)
