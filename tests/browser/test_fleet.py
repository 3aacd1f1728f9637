"""The fleet page in a real browser: live rows, filters by keyboard, selection, both themes, a phone, hostile boards."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from paho.mqtt import publish
from playwright.sync_api import Page, expect

from service.console.formats import figure, span
from service.console.texts import catalog
from service.fleet.plain import plain
from tests.simulators.visitor import DESK, PHONE, WAIT_MS, Stage, Visitor

ROOT = "temper/v1/default"
JOB = "0192f0c1-0000-7000-8000-0000000000{:02}"
HOSTILE = '<img src=x onerror="window.owned=1"><script>window.owned=1</script>\u202e'
SAME = """async () => {
  const rows = await import("/static/fleet_rows.js");
  const answer = await (await fetch("/api/fleet" + location.search)).json();
  const said = (cell) => cell.innerHTML.replace(/>\\s+/g, ">").replace(/\\s+</g, "<").replace(/\\s+/g, " ").trim();
  const found = [];
  for (const row of answer.rows) {
    const fresh = rows.makeRow(row.name);
    rows.fillRow(fresh, row);
    const shown = document.querySelector(`tr[data-board="${row.name}"]`);
    for (const [at, cell] of [...shown.children].entries()) {
      if (said(cell) !== said(fresh.children[at])) found.push([said(cell), said(fresh.children[at])]);
    }
  }
  return [answer.rows.length, found];
}"""
Visit = Callable[..., Visitor]
expect.set_options(timeout=WAIT_MS)


def tell(stage: Stage, topic: str, body: object, *, retain: bool = True) -> None:
    publish.single(
        f"{ROOT}/{topic}", json.dumps(body), qos=1, retain=retain, hostname="127.0.0.1", port=stage.broker.port
    )


def readings(stage: Stage, board: str, **values: Any) -> None:
    body = {"seq": 1, "boot_id": "x", "ts": time.time(), "mono_ms": 1, "dropped_total": 0, "values": values}
    tell(stage, f"{board}/m/board", body, retain=False)


def status(stage: Stage, board: str, number: int, **body: Any) -> None:
    usual = {"id": JOB.format(number), "version": 5, "ts": time.time(), "step": "", "reason_code": "", "reason": ""}
    tell(stage, f"{board}/cmd/fine-tune/{JOB.format(number)}/sts", usual | body)


@pytest.fixture(scope="module")
def painted(stage: Stage) -> Stage:
    """Boards in each state, one of them hostile."""
    heat = {"temperature_celsius": 78.4, "delta_t_celsius": 51.2, "action": "PAUSE", "rule": "thermal.delta-t-pause"}
    readings(stage, "pump-1", **heat, charge=0.41, power_watts=6.25, power_is_modelled=True)
    waits = {"what": "temperature_celsius", "below": 68.0, "above": None, "ts": None}
    status(
        stage,
        "pump-1",
        1,
        status="paused",
        step="training",
        progress=0.4,
        reason_code="thermal.delta-t-pause",
        until=waits,
    )
    tell(stage, "pump-1/a/overheated", {"type": "overheated", "severity": "warning", "since": time.time()})
    readings(stage, "pump-2", temperature_celsius=55.0, power_watts=4.0, action="RUN", rule="run")
    status(stage, "pump-2", 2, status="running", step="training", progress=0.625, eta_s=754.0)
    until = {"what": "charge", "below": None, "above": 0.35, "ts": None}
    status(stage, "pump-3", 3, status="deferred", reason_code="battery.pause", until=until)
    later = {"what": "time", "below": None, "above": None, "ts": time.time() + 7200}
    status(stage, "pump-4", 4, status="deferred", reason_code="window", until=later)
    status(stage, "pump-5", 5, status="failed", reason_code="gate-running", ts=time.time() - 7200)
    status(stage, "pump-6", 6, status="succeeded", ts=time.time() - 7200)
    tell(stage, "stranger/conn", {"online": True, "session": 1, "connection": 1, "ts": time.time()})
    about = {
        "schema": 1,
        "agent": HOSTILE,
        "board": {"profile": HOSTILE},
        "active_model": {"name": HOSTILE, "version": HOSTILE},
    }
    tell(stage, "stranger/birth", about)
    readings(stage, "stranger", temperature_celsius=61.0, rule=HOSTILE, action=HOSTILE)
    status(stage, "stranger", 7, status=HOSTILE, step=HOSTILE, reason_code=HOSTILE, until={"what": HOSTILE})
    tell(stage, f"stranger/a/{'<b>x</b>'.replace('/', '')}", {"type": HOSTILE, "severity": HOSTILE})
    return stage


def fleet(visitor: Visitor, query: str = "") -> Page:
    """The page, once the painted boards are there."""
    page = visitor.go(f"/fleet{query}")
    expect(page.locator("#connection")).to_have_attribute("data-state", "connected")
    return page


def row(page: Page, board: str) -> Any:
    return page.locator(f'tr[data-board="{board}"]')


def test_a_message_of_a_board_is_on_the_page_without_a_reload(painted: Stage, visit: Visit) -> None:
    page = fleet(visit("viewer"))
    expect(row(page, "pump-7")).to_be_visible()
    readings(
        painted, "pump-7", temperature_celsius=66.6, delta_t_celsius=33.3, action="SLOW", rule="thermal.delta-t-slow"
    )
    expect(row(page, "pump-7").locator(".c-heat")).to_contain_text("66.6")
    expect(row(page, "pump-7").locator(".c-rule")).to_contain_text("ΔT above the slow trip")
    status(painted, "pump-7", 20, status="running", step="evaluating", progress=0.875, version=3)
    expect(row(page, "pump-7").locator(".c-job")).to_contain_text("evaluating")
    expect(row(page, "pump-7").locator("progress")).to_have_attribute("value", "0.875")
    expect(row(page, "pump-7").locator(".badge-training")).to_be_visible()


@pytest.mark.usefixtures("painted")
def test_scripts_write_rows_as_the_server_does(visit: Visit) -> None:
    page = fleet(visit("owner"))
    expect(row(page, "pump-1").locator(".badge-hot")).to_be_visible()
    count, wrong = page.evaluate(SAME)
    assert count > 8
    assert wrong == []


NUMBERS = (
    0,
    0.15,
    0.25,
    0.5,
    2.5,
    -2.5,
    12.5,
    1.005,
    1e-7,
    -0.04,
    71.26,
    0.05,
    1234567.891,
    -98765.4321,
    999999999999999,
    1e15,
    1.5e300,
    -2e20,
    41.95,
)
SPANS = (0, 0.9, 59.9, 60, 3725, 86405, 90000, 1e9, -1)
ODD = (
    *(
        "plain",
        "\x00\x1b[2J",
        "a\u202eb",
        "line\nline\r\u2028\u2029",
        "\u00a0\u3000 x",
        "\U0001f600",
        "\ue000\ufdd0",
        "",
    ),
    *("tiếng Việt", "x" * 300, "\u200b\u200d\ufeff\u00ad", "\t"),
)


@pytest.mark.parametrize(("locale", "language"), [("en-GB", "en"), ("vi-VN", "vi")])
def test_scripts_write_numbers_times_and_odd_texts_as_the_server_does(visit: Visit, locale: str, language: str) -> None:
    page = visit("", locale=locale).go("/login")
    figures, spans, texts = page.evaluate(
        """async ([numbers, spans, odd]) => {
          const base = await import("/static/base.js");
          const figures = numbers.map((one) => [0, 1, 2].map((digits) => base.figure(one, digits)));
          return [figures, spans.map(base.duration), odd.map((one) => base.plain(one))];
        }""",
        [NUMBERS, SPANS, ODD],
    )
    assert figures == [[figure(one, digits, language) for digits in (0, 1, 2)] for one in NUMBERS]
    units = {unit: catalog(language)[f"base.script.span.{unit}"] for unit in ("d", "h", "min", "s")}
    assert spans == [" ".join(f"{count}\u00a0{units[unit]}" for count, unit in span(one)) for one in SPANS]
    assert texts == [plain(one) for one in ODD]


@pytest.mark.usefixtures("painted")
@pytest.mark.parametrize("locale", ["en-GB", "vi-VN"])
def test_what_waits_says_for_what(visit: Visit, locale: str) -> None:
    page = fleet(visit("viewer", locale=locale))
    words = {"en-GB": ("die below 68.0 °C", "charge above 35 %"), "vi-VN": ("chip dưới 68,0 °C", "pin trên 35 %")}
    expect(row(page, "pump-1").locator(".c-rule")).to_contain_text(words[locale][0])
    expect(row(page, "pump-3").locator(".c-rule")).to_contain_text(words[locale][1])
    assert page.locator("html").get_attribute("lang") == locale[:2]


@pytest.mark.usefixtures("painted")
def test_filters_sort_and_back_by_keyboard(visit: Visit) -> None:
    page = fleet(visit("viewer"))
    page.keyboard.press("/")
    page.keyboard.type("PUMP")
    expect(page.locator("#result")).to_contain_text("8 of 12 boards")
    expect(page).to_have_url(re.compile(r"/fleet\?q=PUMP$"))
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "pump-2"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.id") == "q"
    page.locator('[data-tile="deferred"]').press("Enter")
    expect(page.locator("#result")).to_contain_text("2 of 12 boards")
    expect(page.locator('[data-tile="deferred"]')).to_have_attribute("aria-current", "true")
    page.locator('[data-sort="name"]').press("Enter")
    expect(page.locator("thead .c-board")).to_have_attribute("aria-sort", "descending")
    expect(page.locator("#boards tr").first).to_have_attribute("data-board", "pump-4")
    page.go_back()
    page.go_back()
    expect(page.locator("#result")).to_contain_text("8 of 12 boards")
    expect(page.locator("#q")).to_have_value("PUMP")
    page.locator("#clear").click()
    expect(page.locator("#result")).to_have_text("12 boards")
    page.locator("#q").fill("nothing like it")
    expect(page.locator("#none-fit")).to_be_visible()
    expect(page.locator("#list")).to_be_hidden()
    page.reload()
    expect(page.locator("#q")).to_have_value("nothing like it")
    page.locator("#none-fit a").click()
    expect(page.locator("#result")).to_have_text("12 boards")


@pytest.mark.usefixtures("painted")
def test_enter_on_a_row_opens_the_board(visit: Visit) -> None:
    page = fleet(visit("viewer"), "?q=pump-8")
    page.keyboard.press("/")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url("**/device/pump-8")


@pytest.mark.usefixtures("painted")
def test_boards_that_were_picked_go_into_a_roll_out(visit: Visit) -> None:
    page = fleet(visit("operator"), "?rows=25")
    expect(page.locator("#roll-out-picked")).to_be_hidden()
    boxes = page.locator("input[name=boards]")
    boxes.nth(1).click()
    boxes.nth(3).click(modifiers=["Shift"])
    expect(page.locator("#picked")).to_have_text("3 selected")
    page.locator("#q").fill("oven")
    expect(page.locator("#result")).to_contain_text("1 of 12")
    expect(page.locator("#picked")).to_have_text("3 selected")  # kept, though they are not shown
    page.locator("#pick-all").check()
    expect(page.locator("#picked")).to_have_text("4 selected")
    page.locator("#unpick").click()
    page.locator("#q").fill("")
    expect(page.locator("#result")).to_have_text("12 boards")
    row(page, "pump-2").locator("input").press("Space")
    row(page, "pump-5").locator("input").press("Space")
    page.locator("#roll-out-picked").click()
    page.wait_for_url("**/roll-outs/new?boards=pump-2%2Cpump-5")


@pytest.mark.usefixtures("painted")
def test_all_that_fit_a_filter_go_into_a_roll_out(visit: Visit) -> None:
    page = fleet(visit("operator"))
    page.locator("#q").fill("pump")
    expect(page.locator("#roll-out-filter")).to_contain_text("8")
    page.locator("#roll-out-filter").click()
    page.wait_for_url("**/roll-outs/new?filter=q%3Dpump")


def test_rows_keep_their_places_under_the_pointer(painted: Stage, visit: Visit) -> None:
    for number, celsius in ((1, 78.4), (7, 66.6), (8, 51.0)):
        readings(painted, f"pump-{number}", temperature_celsius=celsius)
    page = fleet(visit("viewer"), "?sort=temperature&order=desc&q=pump")
    first = page.locator("#boards tr").first
    expect(first).to_have_attribute("data-board", "pump-1")
    row(page, "pump-2").hover()
    readings(painted, "pump-8", temperature_celsius=93.0)
    expect(page.locator("#renew")).to_be_visible(timeout=30_000)
    expect(first).to_have_attribute("data-board", "pump-1")
    expect(row(page, "pump-8").locator(".c-heat")).to_contain_text("93.0")
    page.locator("#renew").click()
    expect(first).to_have_attribute("data-board", "pump-8")
    expect(page.locator("#renew")).to_be_hidden()


def test_a_hostile_board_is_text(painted: Stage, visit: Visit) -> None:
    page = fleet(visit("owner"))
    expect(row(page, "stranger").locator(".c-model")).to_contain_text("<img src=x")
    readings(painted, "stranger", temperature_celsius=62.5, rule=HOSTILE, action=HOSTILE)
    expect(row(page, "stranger").locator(".c-heat")).to_contain_text("62.5")
    assert page.evaluate("window.owned") is None
    assert row(page, "stranger").locator("img, script").count() == 0
    assert "\u202e" not in page.locator("#boards").inner_text()


@pytest.mark.usefixtures("painted")
def test_a_lost_connection_is_said_and_found_again(visit: Visit) -> None:
    visitor = visit("viewer")
    page = fleet(visitor)
    visitor.context.set_offline(True)
    page.evaluate("window.dispatchEvent(new Event('pagehide'))")  # cuts the stream as a sleeping computer would
    expect(page.locator("#connection")).not_to_have_attribute("data-state", "connected")
    visitor.context.set_offline(False)
    page.reload()
    expect(page.locator("#connection")).to_have_attribute("data-state", "connected")
    visitor.faults.clear()  # Chromium logs requests that found no network


@pytest.mark.usefixtures("painted")
def test_without_scripts_the_page_filters_sorts_and_chooses(visit: Visit) -> None:
    visitor = visit("operator", java_script_enabled=False)
    page = visitor.go("/fleet")
    page.locator("#q").fill("pump")
    page.locator("#filters button").click()
    expect(page.locator("#boards tr")).to_have_count(8)
    page.locator("thead .c-board a").first.click()
    expect(page.locator("thead .c-board")).to_have_attribute("aria-sort", "descending")
    page.locator('[data-tile="deferred"]').click()
    expect(page.locator("#boards tr")).to_have_count(2)
    page.locator("input[name=boards]").first.check()
    page.locator("#roll-out-picked").click()
    expect(page).to_have_url(re.compile(r"/roll-outs/new\?boards=pump-4$"))


@pytest.mark.usefixtures("painted")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_everybody_can_read_it(visit: Visit, dark: bool, size: tuple[int, int]) -> None:
    visitor = visit("owner", dark=dark, size=size)
    page = fleet(visitor)
    expect(row(page, "pump-1").locator(".badge-hot")).to_be_visible()
    assert visitor.violations() == []
    assert visitor.overflow() <= 0
    dashes = page.locator("#boards td > .unknown:only-child")
    assert dashes.count() > 0
    expect(dashes.first).to_be_visible(visible=size == DESK)  # a card of a phone has no room for what is not known
    page.locator("#account-menu summary").click()
    assert visitor.violations() == []
    assert visitor.overflow() <= 0


@pytest.mark.usefixtures("painted")
def test_colours_are_chosen_and_kept(visit: Visit) -> None:
    page = fleet(visit("viewer"))
    summary = page.locator("#account-menu summary")
    summary.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.getAttribute('href')") == "/account"
    dark = page.locator('[data-theme-choice="dark"]')
    dark.press("Enter")
    expect(dark).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    expect(page.locator(".menu-body")).to_be_hidden()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"


def test_a_broker_that_goes_is_said_and_its_return_too(painted: Stage, visit: Visit) -> None:
    """The last of the file: what the broker kept is gone with it."""
    page = fleet(visit("viewer"))
    expect(page.locator("#no-broker")).to_be_hidden()
    painted.broker.stop()
    expect(page.locator("#connection")).to_have_attribute("data-state", "no-broker")
    expect(page.locator("#no-broker")).to_be_visible()
    assert row(page, "pump-1").count() == 1  # what was heard stays
    painted.broker.start()
    expect(page.locator("#connection")).to_have_attribute("data-state", "connected", timeout=90_000)
    expect(page.locator("#no-broker")).to_be_hidden()
