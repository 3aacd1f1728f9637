"""Fixtures of the browser tests: the machine's own Chromium, a real broker, boards, and `temperd console` as a process.

A page that logs an error, breaks the content security policy or throws fails its test.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from agent.keys import create_console_key
from tests.simulators.answering_boards import answering_boards
from tests.simulators.console import ConsoleProcess
from tests.simulators.fleet import world
from tests.simulators.mosquitto import Mosquitto, find_mosquitto
from tests.simulators.visitor import CHROMIUM, Real, Stage, Visitor, visiting

ANSWERING = (*(f"pump-{number}" for number in range(1, 9)), "press-1=failed", "press-2=refuse", "oven-1=slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder needs a browser."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session", autouse=True)
def _needed() -> None:
    if find_mosquitto() is None or CHROMIUM is None:
        pytest.skip("needs mosquitto and chromium")


@pytest.fixture(scope="session")
def chromium(_needed: None) -> Iterator[Browser]:
    """Headless; one for all tests."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def apart() -> Iterator[Callable[..., Any]]:
    """Calls a function on another thread: playwright's loop stands in the way of asyncio.run on this one."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda function, *given, **named: pool.submit(function, *given, **named).result(timeout=120)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, _needed: None) -> Iterator[Stage]:
    """For the tests of one file: they share its boards."""
    folder = tmp_path_factory.mktemp("stage")
    broker = Mosquitto(folder)
    broker.start()
    trusted = folder / "trusted"
    trusted.mkdir(mode=0o755)
    public = create_console_key(folder / "console-key", "alice")
    shutil.copy(public, trusted)
    console = ConsoleProcess(folder / "console", broker.port, key=folder / "console-key" / "alice.key")
    console.add_users()
    console.start()
    try:
        with answering_boards(broker.port, trusted, folder / "log", *ANSWERING):
            yield Stage(folder, broker, console, trusted)
    finally:
        console.kill()
        broker.stop()


@pytest.fixture
def visit(chromium: Browser, stage: Stage) -> Iterator[Callable[..., Visitor]]:
    """Makes visitors of the stage's console: `visit("owner")` is logged in, `visit("")` is not."""
    made: list[Any] = []

    def arrive(user: str = "owner", **settings: Any) -> Visitor:
        kept = stage.sessions.get(user)  # a login costs what it should, and a name has only so many in a minute
        visitor = visiting(chromium, stage.console.url, **({"storage_state": kept} if kept else {}), **settings)
        found: Visitor = visitor.__enter__()
        made.append(visitor)
        if user and not kept:
            found.login(user)
            stage.sessions[user] = found.context.storage_state()
        return found

    yield arrive
    for visitor in reversed(made):
        visitor.__exit__(None, None, None)


@pytest.fixture
def real(tmp_path: Path, _needed: None) -> Iterator[Real]:
    """Broker, repository, daemon, console: each a process."""
    with world(tmp_path) as made:
        console = ConsoleProcess(tmp_path / "browser-console", made.broker.port, key=tmp_path / "console" / "alice.key")
        console.add_users()
        console.start()
        try:
            yield Real(made, console)
        finally:
            console.kill()
