from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from tests.simulators.stranger import Stranger
from tests.simulators.visitor import Stage, Visitor

SOON_MS = 2_000
LATER_MS = 30_000


@pytest.fixture
def stranger(stage: Stage) -> Iterator[Stranger]:
    made = Stranger(stage.broker.port)
    yield made
    made.close()


def reading(temperature: float, seq: int) -> dict[str, object]:
    now = time.time()
    values = {"temperature_celsius": temperature, "action": "RUN", "rule": "run"}
    return {"seq": seq, "boot_id": "a-boot", "ts": now, "mono_ms": 1, "dropped_total": 0, "values": values}


def test_a_message_is_on_the_fleet_page_within_two_seconds(visit: Callable[..., Visitor], stranger: Stranger) -> None:
    page = visit().go("/fleet")
    row = page.locator("tr", has=page.get_by_role("link", name="pump-3", exact=True))
    expect(row).to_be_visible()
    expect(page.locator("#connection")).to_have_attribute("data-state", "connected")
    for seq, degrees in enumerate((61.3, 47.9), 2):
        stranger.say("pump-3/m/board", reading(degrees, seq), retain=False)
        expect(row).to_contain_text(f"{degrees}", timeout=SOON_MS)


def test_a_message_is_on_the_boards_page_within_two_seconds(visit: Callable[..., Visitor], stranger: Stranger) -> None:
    page = visit().go("/device/pump-4")
    expect(page.locator("#connection")).to_have_attribute("data-state", "connected")
    stranger.say("pump-4/m/board", reading(63.7, 2), retain=False)
    expect(page.locator("main")).to_contain_text("63.7", timeout=SOON_MS)


def test_a_lost_console_is_said_and_what_was_missed_comes_afterwards(
    visit: Callable[..., Visitor], stage: Stage, stranger: Stranger
) -> None:
    visitor = visit()
    page = visitor.go("/fleet")
    connection = page.locator("#connection")
    expect(connection).to_have_attribute("data-state", "connected")
    stage.console.kill()
    expect(connection).not_to_have_attribute("data-state", "connected", timeout=LATER_MS)
    stage.console.start()
    expect(connection).to_have_attribute("data-state", "connected", timeout=LATER_MS)
    row = page.locator("tr", has=page.get_by_role("link", name="pump-5", exact=True))
    for seq in range(3, 60):  # a console that has just started asks the broker for one thing after the other
        stranger.say("pump-5/m/board", reading(59.4, seq), retain=False)
        page.wait_for_timeout(500)
        if "59.4" in (row.text_content() or ""):
            break
    expect(row).to_contain_text("59.4")
    visitor.faults.clear()  # the browser says that it could not reach the console, which is true


def test_a_lost_broker_is_said_and_the_fleet_stays(visit: Callable[..., Visitor], stage: Stage) -> None:
    page = visit().go("/fleet")
    expect(page.locator("#connection")).to_have_attribute("data-state", "connected")
    stage.broker.kill()
    try:
        expect(page.locator("#connection")).to_have_attribute("data-state", "no-broker", timeout=LATER_MS)
        page.reload()
        expect(page.get_by_role("link", name="pump-1", exact=True)).to_be_visible()
    finally:
        stage.broker.start()
    expect(page.locator("#connection")).to_have_attribute("data-state", "connected", timeout=LATER_MS)
