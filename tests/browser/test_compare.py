"""Comparisons and the reference figures in a real browser: charts are drawn, axe finds nothing, nothing overflows."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from service.console.texts import catalog
from service.fleet.store import open_store
from tests.simulators.stored_jobs import fine_tune, telemetry, write
from tests.simulators.visitor import PHONE, WAIT_MS, Stage, Visitor

ENERGY = {"joules": 100.0, "joules_per_sample": 0.1, "gops_per_watt": 5.0, "modelled": True, "sources": {"model": 100}}
expect.set_options(timeout=WAIT_MS)
EVIL = "<img src=x onerror=alert(1)>\u202e"


@pytest.fixture(scope="module")
def pair(stage: Stage) -> str:
    """Two jobs in the console's store, as the query of the page."""
    now = time.time()
    began = now - 3000
    first, statuses = fine_tune("pump-1", began, 100.0, 1, accuracy_after=0.5, samples=100, energy=ENERGY, task=EVIL)
    second, others = fine_tune("pump-2", began + 600, 80.0, 2, accuracy_after=0.75, samples=100, energy=ENERGY)
    hot = {"temperature_celsius": 71.5, "duty": 0.5, "rule": "thermal.delta-t-slow", "action": "SLOW"}
    cool = {"temperature_celsius": 50.0, "duty": 1.0, "rule": "run", "action": "RUN"}
    learnt = {"loss": 0.5, "depth_percent": 50}
    store = open_store(str(stage.console.store))
    try:
        for status in (*statuses, *others):
            write(store, status, now=now)
        write(
            store,
            *telemetry("pump-1", began, cool, range(60)),
            *telemetry("pump-1", began, hot, range(60, 100)),
            *telemetry("pump-2", began + 600, cool, range(80)),
            *telemetry("pump-2", began + 600, learnt, range(80), group="training"),
            now=now,
        )
    finally:
        store.close()
    return f"a=pump-1%3A{first}&b=pump-2%3A{second}"


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_two_jobs_are_drawn_over_one_time(visit: Callable[..., Visitor], pair: str, dark: bool) -> None:
    visitor = visit("viewer", dark=dark)
    page = visitor.go(f"/compare?{pair}")
    expect(page.locator("#curves figure.chart:visible")).to_have_count(4)  # temperature, duty, depth, loss
    expect(page.locator("#curves canvas").first).to_be_visible()
    expect(page.get_by_text(catalog("en")["compare.verdict.b"]).first).to_be_visible()
    expect(page.locator("#curves")).to_contain_text("A: 50.0 to 71.5 °C")
    expect(page.locator("#curves")).to_contain_text("B: 0.5000 to 0.5000, last 0.5000.")  # a figure without a unit
    assert visitor.violations() == []


def test_what_a_board_calls_its_task_runs_nothing(visit: Callable[..., Visitor], pair: str) -> None:
    page = visit("viewer").go(f"/compare?{pair}")
    expect(page.locator("#words").locator("..")).to_contain_text("<img src=x onerror=alert(1)>?")
    assert page.locator("img[src=x]").count() == 0


def test_jobs_are_chosen_by_keyboard_alone(visit: Callable[..., Visitor], pair: str) -> None:
    assert pair
    page = visit("viewer").go("/compare")
    page.locator("#board").focus()
    page.keyboard.type("pump-1")
    page.keyboard.press("Enter")
    expect(page.locator("#board")).to_have_value("pump-1")
    page.get_by_role("link", name="Take as A: pump-1").first.press("Enter")
    expect(page.locator("#side-a")).to_contain_text("pump-1")
    page.locator("#board").fill("pump-2")
    page.locator("#board").press("Enter")
    page.get_by_role("link", name="Take as B: pump-2").first.press("Enter")
    expect(page.locator("#figures")).to_be_visible()


@pytest.mark.parametrize(
    "path", ["/compare", "/compare?PAIR", "/compare/policies?a=default&b=raspberry-pi-4", "/figures"]
)
@pytest.mark.parametrize("locale", ["en-GB", "vi-VN"])
def test_pages_fit_a_phone_and_pass_axe(visit: Callable[..., Visitor], pair: str, path: str, locale: str) -> None:
    visitor = visit("operator", size=PHONE, locale=locale)
    visitor.go(path.replace("PAIR", pair))
    expect(visitor.page.locator("h1")).to_be_visible()
    assert visitor.overflow() <= 0
    assert visitor.violations() == []


def test_without_scripts_there_is_a_picture(visit: Callable[..., Visitor], pair: str) -> None:
    page = visit("viewer", java_script_enabled=False).go(f"/compare?{pair}")
    assert page.locator("img.picture").evaluate("image => image.naturalWidth") > 0


def test_a_pasted_policy_is_compared(visit: Callable[..., Visitor], pair: str) -> None:
    assert pair
    page = visit("operator").go("/compare/policies")
    page.select_option("#a", "ship:default")
    page.select_option("#b", "text")
    page.fill("#text_b", "[thermal.slow]\nduty = 0.6\n")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#keys").locator("..")).to_contain_text("thermal.slow.duty")
    expect(page.locator("#keys").locator("..")).to_contain_text("-0.15")
