"""The page of a board in a browser: its charts over a day, live values, marks, jobs, and all of it without scripts."""

from __future__ import annotations

import csv
import io
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.console import device_stage as past
from tests.simulators.stranger import Stranger
from tests.simulators.visitor import PHONE, Stage, Visitor

BOARD, JOB, SOON_MS = "kiln-1", past.JOB, 2_000
DAY_S, TRIES = 86_400, 5
LATE_MS = 30_000
Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def day(stage: Stage) -> float:
    """A board that told of itself each second for a day; when that day ended."""
    now = time.time()
    store = Path(stage.console.store)
    past.write_past(store, seconds=DAY_S, board=BOARD, now=now, training_every=5, gap=(40_000, 43_000))
    past.write_statuses(store, *past.job_story(now - 1500), board=BOARD)
    return now


@pytest.fixture
def stranger(stage: Stage) -> Iterator[Stranger]:
    made = Stranger(stage.broker.port)
    yield made
    made.close()


def drawn(page: Page, count: int = 1) -> None:
    """Wait until charts were drawn so often."""
    page.wait_for_function("count => performance.getEntriesByName('chart').length >= count", arg=count, timeout=LATE_MS)


def chart_times(page: Page) -> list[float]:
    """Milliseconds from each request for a chart until it was drawn."""
    return list(page.evaluate("performance.getEntriesByName('chart').map(entry => entry.duration)"))


def plots(page: Page) -> Any:
    return page.locator("#charts-place figure:visible")


@pytest.mark.usefixtures("day")
def test_a_day_of_seconds_is_drawn_whole_and_told_in_words(visit: Visit) -> None:
    page = visit().go(f"/device/{BOARD}?span={DAY_S}")
    drawn(page)
    expect(plots(page)).to_have_count(8)
    summary = page.locator("figure[data-panel=temperature] .chart-summary")
    expect(summary).to_contain_text("die: least")
    heats = [past.reading(at)[0]["temperature_celsius"] for at in range(DAY_S) if not 40_000 <= at < 43_000]
    expect(summary).to_contain_text(f"greatest {max(heats):.1f}")  # of 85,000 messages none is lost between pixels
    expect(summary).to_contain_text(f"least {min(heats):.1f}")


@pytest.mark.usefixtures("day")
def test_how_long_a_day_takes_to_be_drawn_is_measured(
    visit: Visit, record_property: Callable[[str, object], None]
) -> None:
    page = visit().go(f"/device/{BOARD}?span={DAY_S}")
    for number in range(TRIES):
        drawn(page, number + 1)
        page.locator(f'[data-span="{DAY_S}"]').click()
    drawn(page, TRIES + 1)
    times = chart_times(page)
    record_property("chart_ms", times)
    print(f"a day of seconds: {[round(one) for one in times]} ms, median {statistics.median(times):.0f}")  # noqa: T201
    assert len(times) >= TRIES


@pytest.mark.usefixtures("day")
def test_spans_are_chosen_moved_and_kept_in_the_address(visit: Visit) -> None:
    page = visit().go(f"/device/{BOARD}")
    drawn(page)
    page.locator('[data-span="900"]').click()
    drawn(page, 2)
    expect(page.locator('[data-span="900"]')).to_have_attribute("aria-pressed", "true")
    assert "span=900" in page.url
    page.locator('[data-move="earlier"]').click()
    drawn(page, 3)
    assert "since=" in page.url
    expect(page.locator("#span-live")).to_be_hidden()
    page.go_back()
    drawn(page, 4)
    expect(page.locator("#span-live")).to_be_visible()
    page.locator('[data-move="out"]').click()
    drawn(page, 5)
    page.locator('[data-move="reset"]').click()
    drawn(page, 6)
    expect(page.locator('[data-span="3600"]')).to_have_attribute("aria-pressed", "true")


@pytest.mark.usefixtures("day")
def test_dragging_asks_for_finer_numbers(visit: Visit) -> None:
    page = visit().go(f"/device/{BOARD}?span={DAY_S}")
    drawn(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    box = page.locator("figure[data-panel=temperature] .u-over").bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, middle, steps=4)
    page.mouse.up()
    drawn(page, 2)
    assert any("/chart?since=" in url for url in asked)
    assert "since=" in page.url


@pytest.mark.usefixtures("day")
def test_charts_are_read_by_keyboard_and_as_tables(visit: Visit) -> None:
    page = visit().go(f"/device/{BOARD}?span=900")
    drawn(page)
    page.locator("figure[data-panel=temperature] .chart-plot").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#announce")).to_contain_text("die")
    table = page.locator("figure[data-panel=temperature] details")
    table.locator("summary").click()
    expect(table.locator("tbody tr").nth(100)).to_be_attached()


@pytest.mark.usefixtures("day")
def test_decisions_are_marks_and_rows_with_their_rules(visit: Visit) -> None:
    page = visit().go(f"/device/{BOARD}?span=3600")
    drawn(page)
    rows = page.locator("#marks-rows tr")
    expect(rows.filter(has_text="ΔT above the pause trip").first).to_be_visible()
    expect(rows.filter(has_text="alarm raised").first).to_contain_text("overheated")
    rows.first.locator("button").click()
    expect(rows.first).to_have_class("is-chosen")


def test_what_a_board_says_is_shown_and_drawn_at_once(visit: Visit, stranger: Stranger) -> None:
    page = visit().go("/device/pump-4?span=900")
    expect(page.locator("#connection")).to_have_attribute("data-state", "connected")
    for seq, degrees in enumerate((58.2, 41.5), 2):
        values = {"temperature_celsius": degrees, "action": "PAUSE", "rule": "thermal.delta-t-pause", "duty": 0.5}
        body = {"seq": seq, "boot_id": "b4", "ts": time.time(), "mono_ms": 1, "dropped_total": 0, "values": values}
        stranger.say("pump-4/m/board", body, retain=False)
        tile = page.locator('[data-metric="board.temperature_celsius"]')
        expect(tile).to_contain_text(f"{degrees:.1f}", timeout=SOON_MS)
    expect(page.locator('[data-word="rule"]')).to_contain_text("ΔT above the pause trip", timeout=LATE_MS)
    alarm = {"type": "overheated", "severity": "warning", "since": time.time(), "ts": time.time(), "reason": "hot"}
    stranger.say("pump-4/a/overheated", alarm)
    rows = page.locator("#marks-rows tr")
    expect(rows.filter(has_text="overheated")).to_have_count(1, timeout=LATE_MS)
    values = {"temperature_celsius": 40.0, "action": "RUN", "rule": "run"}
    body = {"seq": 9, "boot_id": "b4", "ts": time.time(), "mono_ms": 1, "dropped_total": 0, "values": values}
    stranger.say("pump-4/m/board", body, retain=False)
    expect(rows.filter(has_text="no rule").first).to_be_visible(timeout=LATE_MS)


@pytest.mark.usefixtures("day")
def test_a_job_has_its_charts_stages_and_files(visit: Visit) -> None:
    visitor = visit()
    page = visitor.go(f"/device/{BOARD}/jobs/{JOB}")
    drawn(page)
    expect(page.locator("#stages li").filter(has_text="paused")).to_have_count(1)
    expect(page.locator(".timeline li")).to_have_count(11)
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text("utf-8"))))
    assert len(rows) > 800
    assert {"training", "paused"} <= {row["stage"] for row in rows}
    with page.expect_download() as download:
        page.get_by_role("link", name="SVG").click()
    assert "<svg" in Path(download.value.path()).read_text("utf-8")


@pytest.mark.usefixtures("day")
@pytest.mark.parametrize("path", [f"/device/{BOARD}", f"/device/{BOARD}/jobs/{JOB}", f"/device/{BOARD}/table"])
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_and_a_phone_is_wide_enough(visit: Visit, path: str, dark: bool) -> None:
    visitor = visit(dark=dark)
    page = visitor.go(path)
    if "table" not in path:
        drawn(page)
    assert visitor.violations() == []
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    page.wait_for_timeout(300)
    assert visitor.overflow() <= 0


@pytest.mark.usefixtures("day")
def test_colours_follow_the_choice_of_the_viewer(visit: Visit) -> None:
    page = visit().go(f"/device/{BOARD}")
    drawn(page)
    page.locator("#account-menu summary").click()
    page.locator('[data-theme-choice="dark"]').click()
    expect(plots(page)).to_have_count(8)
    expect(page.locator("#charts-place canvas").first).to_be_visible()


@pytest.mark.usefixtures("day")
def test_without_scripts_numbers_stand_in_a_table(visit: Visit) -> None:
    page = visit(java_script_enabled=False).go(f"/device/{BOARD}")
    expect(page.locator("#telemetry")).to_contain_text("temperature_celsius")
    page.get_by_role("link", name="The same numbers as a table").click()
    expect(page.locator("h1")).to_have_text("Numbers of the charts")
    expect(page.locator("tbody tr").nth(30)).to_be_attached()


def test_a_report_is_asked_for_and_its_status_comes_back(visit: Visit) -> None:
    page = visit("operator").go("/device/pump-5/report")
    page.get_by_role("button", name="Ask for a report").click()
    expect(page.locator("#report")).to_contain_text("succeeded", timeout=LATE_MS)


ARITHMETIC = """async () => {
  const m = await import("/static/charts_numbers.js");
  const shown = (values) => values.map((value) => (value === undefined ? "over" : value));
  const data = { ts: [1, 2], metrics: { "board.duty": { min: [1, 1], max: [1, 1], last: [1, 1] } } };
  const late = m.append(data, 1.5, "board", { duty: 9 });
  const next = m.append(data, 3, "board", { duty: 0.5, "__proto__": 4, heat: 5 });
  const none = m.append(data, 4, "board", { duty: NaN });
  m.forget(data, 2);
  return {
    near: shown(m.bridged([0, 1, 2, 3], [1, null, null, 2], 10, 5)),
    far: shown(m.bridged([0, 1, 2, 9], [null, 1, null, 2], 1, 5)),
    ends: shown(m.bridged([0, 1], [null, null], 1, 5)),
    held: shown(m.bridged([0, 1, 9, 10], [1, null, null, 4], 1, 99, m.stretchesOf([0, 1, 9, 10], [[1, 2, 3, 4]], 5))),
    opened: m.opened([0, 1, 100], [[5, 6, 7]], 50),
    extent: [m.extent({ min: [1, null], max: [3, null], last: [2, null] }), m.extent({ min: [], max: [], last: [] })],
    nearest: [m.nearest([0, 1, 2], [5, null, null], 2, 2), m.nearest([0, 1, 9], [5, null, null], 2, 2)],
    reach: [m.reach({ digits: 0, low: 0, high: 100 }, 5, 6), m.reach({ digits: 1 }, null, null)],
    clock: [m.clock(5), m.clock(3725), m.clock(-60)],
    live: [late, next, none, data],
  };
}"""


def test_gaps_stay_gaps_and_late_words_change_nothing(visit: Visit) -> None:
    page = visit("").go("/login")
    found = page.evaluate(ARITHMETIC)
    assert found["near"] == [10, "over", "over", 20]
    assert found["far"] == [None, 1, None, 2]
    assert found["ends"] == [None, None]
    assert found["held"] == [1, None, None, 4]
    assert found["opened"] == [[0, 1, 50.5, 100], [[5, 6, None, 7]]]
    assert found["extent"] == [[1, 3, 2], None]
    assert found["nearest"] == [0, None]
    assert found["reach"][0] == [0, 100]
    assert found["reach"][1][0] < found["reach"][1][1]
    assert found["clock"] == ["0:05", "1:02:05", "-1:00"]
    late, following, none, data = found["live"]
    assert (late, following, none) == (False, True, True)
    assert data["ts"] == [2, 3, 4]
    assert data["metrics"]["board.duty"]["last"] == [1, 0.5, None]


def test_charts_have_names_before_their_numbers_came(visit: Visit) -> None:
    visitor = visit()
    visitor.page.route("**/api/device/*/chart*", lambda _: None)  # never answered
    page = visitor.go(f"/device/{BOARD}")
    plots = page.locator(".chart-plot")
    expect(plots.first).to_be_attached()
    assert all(plot.get_attribute("aria-label") for plot in plots.all())
