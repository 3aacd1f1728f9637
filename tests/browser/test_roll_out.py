"""Roll-outs in a browser: the wizard, live progress, stop, and pages that anybody can use."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from service.fleet.state import FleetState
from tests.simulators.visitor import DESK, PHONE, Stage, Visitor

Visit = Callable[..., Visitor]
WAIT_S = 30.0
EVIL = "<img src=x onerror=alert(1)>"


def next_step(page: Page, step: str) -> None:
    page.locator("main button.button-main").click()
    page.wait_for_url(f"**/{step}")


def to_review(page: Page, names: str, kind: str, **typed: str) -> None:
    page.locator("#names").fill(names)
    next_step(page, "command")
    page.locator("#type").select_option(kind)
    page.locator("#kinds button").click()
    page.wait_for_url(f"**type={kind}*")
    page.locator("main form[method=post] button.button-main").click()
    page.wait_for_url("**/waves")
    for name, text in typed.items():
        if name == "canary":
            page.locator(f"input[name=canary][value={text}]").check()
        else:
            page.locator(f"#{name}").fill(text)
    next_step(page, "review")


def begin(page: Page, why: str) -> str:
    page.locator("#why").fill(why)
    page.locator("#begin").click()
    page.wait_for_url(re.compile(r"/roll-outs/[0-9a-f-]{36}$"))
    return page.url.rpartition("/")[2]


def test_the_wizard_leads_to_a_roll_out_that_is_followed_live(visit: Visit) -> None:
    visitor = visit("operator")
    page = visitor.go("/fleet?q=pump")
    for name in ("pump-1", "pump-2", "pump-3"):
        page.locator(f"input[name=boards][value={name}]").check()
    page.locator("#roll-out-picked").click()
    page.wait_for_url("**/roll-outs/new?*")
    assert page.locator("#names").input_value().split() == ["pump-1", "pump-2", "pump-3"]
    to_review(page, "pump-1 pump-2 pump-3 press-1", "scrub", canary="count", canary_count="2", stop_at="60")
    expect(page.locator(".course")).to_contain_text("First the canaries, 2")
    chosen = begin(page, "spring cleaning")
    expect(page.locator("#sums")).to_contain_text("Ended: 4, of which did not succeed: 1.")
    expect(page.locator("#fresh .badge").first).to_contain_text("done")
    expect(page.locator("#announce")).to_contain_text("Boards: 4.")
    expect(page.locator("#fresh-boards tbody tr")).to_have_count(4)
    page.locator("#outcome").select_option("bad")
    page.locator(".filter button").click()
    expect(page.locator("#fresh-boards tbody tr")).to_have_count(1)
    expect(page.locator("#fresh-boards")).to_contain_text("press-1")
    with page.expect_download() as caught:
        page.locator("a[href*='outcomes.csv']").click()
    assert caught.value.suggested_filename == f"roll-out-{chosen}.csv"
    page.goto(f"{visitor.url}/roll-outs")
    expect(page.locator("tbody tr").first).to_contain_text("spring cleaning")


def test_stop_ends_the_sending_and_says_who_and_why(visit: Visit, stage: Stage) -> None:
    visitor = visit("owner")
    page = visitor.go("/roll-outs/new")
    to_review(page, "oven-1 pump-5 pump-6", "qualify", canary="none", parallel="1")
    chosen = begin(page, "before summer")
    expect(page.locator("#fresh-boards tbody tr", has_text="oven-1")).to_contain_text("running")
    page.locator("a[href$='/stop']").click()
    page.locator("#why").fill(f"too hot {EVIL}")
    page.locator("#do").click()
    page.wait_for_url(f"**/{chosen}")
    expect(page.locator("#fresh")).to_contain_text(f"Stopped by owner: too hot {EVIL}")
    assert page.locator("img[src=x]").count() == 0
    with FleetState(stage.console.fleet) as state:
        assert [command.outcome for command in state.commands(chosen)] == ["open", "waiting", "waiting"]
    page.locator("a[href$='/abort']").click()
    page.locator("#why").fill("not today")
    page.locator("#do").click()
    expect(page.locator("#fresh-boards tbody tr", has_text="oven-1")).to_contain_text("canceled")
    expect(page.locator("#fresh .badge").first).to_contain_text("aborted")


def test_it_goes_on_after_the_console_was_killed(visit: Visit, stage: Stage) -> None:
    visitor = visit("owner")
    page = visitor.go("/roll-outs/new")
    to_review(page, "pump-1 pump-2 never-1", "scrub", canary="none")
    chosen = begin(page, "a long one")
    expect(page.locator("#sums")).to_contain_text("Ended: 2,")
    stage.console.kill()
    expect(page.locator("#connection")).to_have_attribute("data-state", "lost")
    stage.console.start()
    expect(page.locator("#connection")).to_have_attribute("data-state", "connected", timeout=60_000)
    visitor.faults[:] = [fault for fault in visitor.faults if "net::ERR_" not in fault]  # nobody was there, as asked
    expect(page.locator("#fresh-actions a")).to_have_count(2)
    expect(page.locator("#fresh")).not_to_contain_text("Nobody runs it")
    end, log = time.monotonic() + WAIT_S, stage.folder / "log"
    with FleetState(stage.console.fleet) as state:
        sent = {f"{command.board} {command.id}" for command in state.commands(chosen) if command.outcome != "waiting"}
        while state.commands(chosen)[2].outcome != "open":
            assert time.monotonic() < end
            time.sleep(0.1)
    assert [log.read_text().splitlines().count(line) for line in sorted(sent)] == [0, 1, 1]
    page.goto(f"{visitor.url}/roll-outs/{chosen}/abort")
    page.locator("#why").fill("enough")
    page.locator("#do").click()
    expect(page.locator("#fresh .badge").first).to_contain_text("aborted")


@pytest.mark.parametrize(("dark", "size"), [(False, DESK), (True, PHONE)])
def test_pages_pass_axe_and_fit_a_phone(visit: Visit, dark: bool, size: tuple[int, int]) -> None:
    visitor = visit("owner", dark=dark, size=size)
    page = visitor.go("/roll-outs/new")
    seen = {"boards": (visitor.violations(), visitor.overflow())}
    page.locator("#names").fill("pump-1 pump-2 never-2")
    next_step(page, "command")
    seen["command"] = (visitor.violations(), visitor.overflow())
    page.locator("#type").select_option("set-policy")
    page.locator("#kinds button").click()
    seen["policy"] = (visitor.violations(), visitor.overflow())
    page.locator("input[type=checkbox][name='arg.reset']").check()
    next_step(page, "waves")
    seen["waves"] = (visitor.violations(), visitor.overflow())
    page.locator("#parallel").fill("none")
    page.locator("main button.button-main").click()
    expect(page.locator("#parallel-error")).to_be_visible()
    seen["faults"] = (visitor.violations(), visitor.overflow())
    page.locator("#parallel").fill("1")
    next_step(page, "review")
    seen["review"] = (visitor.violations(), visitor.overflow())
    chosen = begin(page, "axe looks at it")
    expect(page.locator("#sums")).to_contain_text("Boards: 3.")
    seen["one"] = (visitor.violations(), visitor.overflow())
    for name, path in {
        "list": "/roll-outs",
        "act": f"/roll-outs/{chosen}/resume",
        "groups": "/groups",
    }.items():
        visitor.go(path)
        seen[name] = (visitor.violations(), visitor.overflow())
    page.locator("#name").fill("hall")
    page.locator("#boards").fill("pump-1 never-2")
    page.locator("main button.button-main").click()
    page.wait_for_url("**/groups/hall")
    seen["group"] = (visitor.violations(), visitor.overflow())
    assert {name: found for name, found in seen.items() if found[0] or found[1] > 0} == {}


def test_the_words_are_vietnamese_where_that_is_asked_for(visit: Visit) -> None:
    visitor = visit("owner", locale="vi-VN")
    page = visitor.go("/roll-outs/new")
    expect(page.locator("h1")).to_have_text("Triển khai mới")
    to_review(page, "pump-7", "scrub")
    expect(page.locator("#begin")).to_contain_text("Ký và gửi tới 1 bo mạch")
    assert not visitor.violations()


def test_without_scripts_all_of_it_works(visit: Visit) -> None:
    visitor = visit("owner", java_script_enabled=False)
    page = visitor.go("/roll-outs/new")
    to_review(page, "pump-8", "scrub")
    begin(page, "no scripts")
    for _ in range(60):
        if "Ended: 1," in page.locator("#sums").inner_text():
            break
        time.sleep(0.25)
        page.reload()
    expect(page.locator("#sums")).to_contain_text("Ended: 1, of which did not succeed: 0.")


def test_a_step_that_is_wrong_begins_at_the_field(visit: Visit) -> None:
    page = visit("owner", size=PHONE, locale="vi-VN").go("/roll-outs/new")
    page.locator("main form button.button-main").click()
    expect(page.locator("#names")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#names")).to_be_focused()


def test_a_command_is_chosen_on_a_phone(visit: Visit) -> None:
    page = visit("owner", size=PHONE, locale="vi-VN").go("/roll-outs/new?boards=pump-1")
    next_step(page, "command")
    box = page.locator("#type").bounding_box()
    assert box is not None
    assert box["width"] > PHONE[0] * 0.7  # the name of a command is not cut off
