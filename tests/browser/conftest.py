"""Fixtures of the browser tests: the machine's own Chromium, a real broker, boards, and `temperd console` as a process.

A page that logs an error, breaks the content security policy or throws fails its test.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from agent.keys import create_console_key
from tests.simulators.answering_boards import answering_boards
from tests.simulators.console import PASSWORD, ConsoleProcess
from tests.simulators.fleet import World, world
from tests.simulators.mosquitto import Mosquitto, find_mosquitto

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PHONE, DESK = (360, 740), (1280, 800)
WAIT_MS = 15_000  # for what a busy machine shows late
ANSWERING = (*(f"pump-{number}" for number in range(1, 9)), "press-1=failed", "press-2=refuse", "oven-1=slow")
EXPECTED = ("the server responded with a status of 4",)
"""What Chromium itself logs of an answer that a test asked for."""


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


@dataclass(slots=True)
class Visitor:
    """A person with a browser.

    Attributes:
        page: what they look at.
        faults: what the browser complained about.
    """

    page: Page
    context: BrowserContext
    url: str
    faults: list[str]

    def go(self, path: str) -> Page:
        """Open a page of the console."""
        self.page.goto(f"{self.url}{path}")
        return self.page

    def login(self, name: str = "owner", password: str = PASSWORD) -> Page:
        """By the form."""
        page = self.go("/login")
        page.locator("input[name=name]").fill(name)
        page.locator("input[name=password]").fill(password)
        page.locator("main button[type=submit]").click()
        page.wait_for_url("**/fleet*")
        return page

    def violations(self) -> list[str]:
        """What axe-core finds wrong with the page, by its rules for WCAG 2.2 AA and its best practices."""
        found = Axe().run(self.page).response["violations"]
        return [f"{one['id']}: {one['help']}: {[node['target'] for node in one['nodes']][:5]}" for one in found]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


@contextmanager
def visiting(
    browser: Browser, url: str, *, dark: bool = False, size: tuple[int, int] = DESK, locale: str = "en-GB", **more: Any
) -> Iterator[Visitor]:
    """A visitor; leaves with an assertion that the browser complained about nothing."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if dark else "light",
        locale=locale,
        timezone_id="Asia/Ho_Chi_Minh",
        reduced_motion="reduce",
        **more,
    )
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    visitor = Visitor(page, context, url, [])

    def hear(message: ConsoleMessage) -> None:
        if message.type == "error" and not any(part in message.text for part in EXPECTED):
            visitor.faults.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: visitor.faults.append(str(error)))
    try:
        yield visitor
    finally:
        context.close()
    assert not visitor.faults


@dataclass(slots=True)
class Stage:
    """A broker, boards that answer, and a console that they trust."""

    folder: Path
    broker: Mosquitto
    console: ConsoleProcess
    trusted: Path


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
        visitor = visiting(chromium, stage.console.url, **settings)
        found: Visitor = visitor.__enter__()
        made.append(visitor)
        if user:
            found.login(user)
        return found

    yield arrive
    for visitor in reversed(made):
        visitor.__exit__(None, None, None)


@dataclass(slots=True)
class Real:
    """A real daemon on an emulated board, and a console that it trusts."""

    world: World
    console: ConsoleProcess


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
