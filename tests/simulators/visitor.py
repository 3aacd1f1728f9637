"""People with a browser: the machine's own Chromium, and what it complains about."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

from tests.simulators.console import PASSWORD, ConsoleProcess
from tests.simulators.fleet import World
from tests.simulators.mosquitto import Mosquitto

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PHONE, DESK = (360, 740), (1280, 800)
WAIT_MS = 15_000  # for what a busy machine shows late
EXPECTED = ("the server responded with a status of 4",)
"""What Chromium itself logs of an answer that a test asked for."""


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
    assert not visitor.faults, visitor.faults


@dataclass(slots=True)
class Stage:
    """A broker, boards that answer, and a console that they trust."""

    folder: Path
    broker: Mosquitto
    console: ConsoleProcess
    trusted: Path
    sessions: dict[str, Any] = field(default_factory=dict)
    """Of users who have logged in: their cookies."""


@dataclass(slots=True)
class Real:
    """A real daemon on an emulated board, and a console that it trusts."""

    world: World
    console: ConsoleProcess
