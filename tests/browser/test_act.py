"""Commands from a page, in a browser: forms, one question, a real daemon that obeys and one that refuses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.simulators.fleet import DEVICE
from tests.simulators.visitor import DESK, PHONE, Real, Stage, Visitor, visiting

LONG_MS = 60_000  # of a daemon on a busy machine
FORMS = ("/act", "/act/fine-tune", "/act/cancel", "/act/rollback", "/act/update-system", "/act/scrub", "/policy")
WHY = "asked for by the shift"


def done(stage: Stage, board: str) -> list[str]:
    """Ids of the commands that a board carried out."""
    log = stage.folder / "log"
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [command_id for name, command_id in lines if name == board]


def fill_fine_tune(visitor: Visitor, board: str) -> None:
    page = visitor.go(f"/device/{board}/act/fine-tune")
    page.get_by_role("textbox", name="Model", exact=True).fill("colours")
    page.get_by_role("textbox", name="Data on the board", exact=True).fill("/srv/parts")
    page.get_by_label("Why", exact=True).fill(WHY)


def test_a_form_is_sent_once_however_often_its_button_is_pressed(visit: Callable[..., Visitor], stage: Stage) -> None:
    visitor = visit("operator")
    fill_fine_tune(visitor, "pump-1")
    visitor.page.get_by_role("button", name="Sign and send").dblclick()
    visitor.page.wait_for_url("**/device/pump-1/jobs/*")
    command_id = visitor.page.url.rpartition("/")[2]
    expect(visitor.page.locator("main")).to_contain_text("succeeded", timeout=LONG_MS)
    assert done(stage, "pump-1") == [command_id]


def test_what_is_wrong_is_found_with_the_keyboard_alone(visit: Callable[..., Visitor], stage: Stage) -> None:
    page = visit("operator").go("/device/pump-2/act/fine-tune")
    page.get_by_role("textbox", name="Model", exact=True).focus()
    page.keyboard.type("colours")
    page.evaluate("document.querySelector('details.more').open = true")
    page.get_by_role("textbox", name="Seed", exact=True).fill("soon")
    page.get_by_role("textbox", name="Model", exact=True).focus()
    page.keyboard.press("Enter")
    summary = page.locator("#errors")
    expect(summary).to_be_focused()
    expect(summary).to_contain_text("Data on the board: This is needed.")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="Data on the board", exact=True)).to_be_focused()
    expect(page.get_by_role("textbox", name="Seed", exact=True)).to_have_value("soon")
    expect(page.get_by_role("textbox", name="Seed", exact=True)).to_have_attribute("aria-invalid", "true")
    assert done(stage, "pump-2") == []


def test_a_command_that_matters_is_asked_once(visit: Callable[..., Visitor], stage: Stage) -> None:
    page = visit().go("/device/pump-3/act/rollback")
    expect(page.get_by_label("Active model")).to_be_checked()
    page.get_by_role("textbox", name="Back to", exact=True).fill("base")
    page.get_by_label("Why", exact=True).fill(WHY)
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Go back to a model on pump-3?")
    expect(page.locator("pre")).to_contain_text('"to": "base"')
    assert done(stage, "pump-3") == []
    page.get_by_role("button", name="Change").click()
    expect(page.get_by_role("textbox", name="Back to", exact=True)).to_have_value("base")
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("button", name="Sign and send").dblclick()
    page.wait_for_url("**/device/pump-3/jobs/*")
    expect(page.locator("main")).to_contain_text("succeeded", timeout=LONG_MS)
    assert done(stage, "pump-3") == [page.url.rpartition("/")[2]]


def test_a_policy_is_judged_while_it_is_written_and_compared_before_it_is_sent(visit: Callable[..., Visitor]) -> None:
    page = visit().go("/device/pump-4/policy?from=ship:default")
    area = page.get_by_label("Text, in TOML")
    text = area.input_value()
    area.fill(text.replace("duty = 0.75", "duty = 75", 1))
    live = page.locator("#live-check")
    expect(live).to_contain_text("thermal.slow.duty")
    live.get_by_role("button").first.click()
    chosen = page.evaluate("(area => area.value.slice(area.selectionStart, area.selectionEnd))(document.activeElement)")
    assert chosen.startswith("duty = 75")
    area.fill(text.replace("duty = 0.75", "duty = 0.6", 1))
    expect(live).to_contain_text("The text is a policy.")
    page.get_by_label("Why", exact=True).fill(WHY)
    page.get_by_role("button", name="Check and show the difference").click()
    row = page.get_by_role("row").filter(has_text="thermal.slow.duty")
    expect(row).to_contain_text("0.75")
    expect(row).to_contain_text("0.6")
    expect(page.locator(".line-in")).to_contain_text("duty = 0.6")
    page.get_by_role("button", name="Sign and send").click()
    page.wait_for_url("**/device/pump-4/jobs/*")


def test_a_text_that_is_written_when_the_session_ends_is_not_lost(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    page = visitor.go("/device/pump-4/policy?from=ship:default")
    visitor.context.clear_cookies()
    page.get_by_label("Text, in TOML").fill('name = "mine"')
    expect(page.locator("#live-check")).to_contain_text("The session has ended")
    expect(page.get_by_label("Text, in TOML")).to_have_value('name = "mine"')


def test_what_a_role_may_not_send_is_refused(visit: Callable[..., Visitor], stage: Stage) -> None:
    for role in ("viewer", "operator"):
        visitor = visit(role)
        answer = visitor.page.goto(f"{visitor.url}/device/pump-5/act/rollback")
        assert answer is not None
        assert answer.status == 403
    sent = visitor.page.evaluate(
        """async () => (await fetch("/device/pump-5/act/scrub", {method: "POST", headers: {"X-CSRF": "forged"},
            body: new URLSearchParams({token: "a".repeat(20), csrf: "forged"})})).status"""
    )
    assert sent == 403
    assert done(stage, "pump-5") == []


@pytest.mark.parametrize(("dark", "size"), [(False, DESK), (True, PHONE)])
def test_forms_are_for_everybody(visit: Callable[..., Visitor], dark: bool, size: tuple[int, int]) -> None:
    visitor = visit("owner", dark=dark, size=size)
    for path in FORMS:
        page = visitor.go(f"/device/pump-6{path}")
        if page.locator("details.more").count():
            page.evaluate("document.querySelector('details.more').open = true")
        assert (path, visitor.violations(), visitor.overflow()) == (path, [], 0)
    page.get_by_label("Why", exact=True).fill(WHY)
    page.get_by_role("button", name="Check and show the difference").click()
    page.get_by_role("button", name="Sign and send").wait_for()
    assert (visitor.violations(), visitor.overflow()) == ([], 0)


def test_forms_work_without_scripts(visit: Callable[..., Visitor]) -> None:
    visitor = visit("owner", java_script_enabled=False)
    page = visitor.go("/device/pump-7/policy")
    page.get_by_label("Reset: what commands set is taken back").check()
    page.get_by_label("Why", exact=True).fill(WHY)
    page.get_by_role("button", name="Check and show the difference").click()
    page.get_by_role("button", name="Sign and send").click()
    page.wait_for_url("**/device/pump-7/jobs/*")
    assert visitor.page.url.rpartition("/")[2]


def wait_in_force(page: Page, url: str, name: str) -> None:
    """A board tells of its policy with its next birth, some moments after the status of the command."""
    end = time.monotonic() + LONG_MS / 1000
    while True:
        page.goto(url)  # the name stands in the list of texts, too: only the card tells what is in force
        head = page.get_by_role("heading", name="In force")
        card = head.locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' card ')][1]")
        if name in card.inner_text():
            return
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_real_daemon_obeys_refuses_and_says_so(chromium: Browser, real: Real) -> None:
    with visiting(chromium, real.console.url) as visitor:
        page: Any = visitor.login()
        page.goto(f"{visitor.url}/device/{DEVICE}/act/scrub")
        page.get_by_role("button", name="Sign and send").click()
        page.wait_for_url(f"**/device/{DEVICE}/jobs/*")
        expect(page.locator("main")).to_contain_text("succeeded", timeout=LONG_MS)
        for text, told in (
            ('name = "summer"\n[thermal.slow]\nduty = 0.6\n', "succeeded"),
            ('name = "mild"\n[gate]\nclass_drop = 0.9\n', "milder"),
        ):
            page.goto(f"{visitor.url}/device/{DEVICE}/policy")
            page.get_by_label("Text, in TOML").fill(text)
            page.get_by_label("Why", exact=True).fill(WHY)
            page.get_by_role("button", name="Check and show the difference").click()
            page.get_by_role("button", name="Sign and send").click()
            page.wait_for_url(f"**/device/{DEVICE}/jobs/*")
            expect(page.locator("main")).to_contain_text(told, timeout=LONG_MS)
            wait_in_force(page, f"{visitor.url}/device/{DEVICE}/policy", "summer")
        expect(page.locator("main")).to_contain_text("milder")
