"""Each page as people come to it: by its looks, its width, its language, and by axe-core's rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.simulators.visitor import DESK, PHONE, Visitor

PAGES = (
    *(
        "/fleet",
        "/device/pump-1",
        "/device/pump-1/act/fine-tune",
        "/device/pump-1/act/qualify",
        "/device/pump-1/policy",
    ),
    *("/roll-outs", "/roll-outs/new?boards=pump-1,pump-2", "/compare", "/compare/policies", "/figures", "/audit"),
    *("/users", "/account", "/key", "/groups", "/nowhere"),
)


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize(("dark", "size"), [(False, DESK), (True, PHONE)])
def test_axe_finds_nothing_and_nothing_is_cut_off(
    visit: Callable[..., Visitor], path: str, dark: bool, size: tuple[int, int]
) -> None:
    visitor = visit(dark=dark, size=size)
    page = visitor.go(path)
    expect(page.locator("h1")).to_have_count(1)
    assert visitor.violations() == []
    assert visitor.overflow() <= 0


def test_figures_are_cards_on_a_phone(visit: Callable[..., Visitor]) -> None:
    page = visit(size=PHONE).go("/figures")
    for wide in (page.locator("caption").first, page.locator("td").first):
        box = wide.bounding_box()
        assert box is not None
        assert box["width"] > PHONE[0] * 0.8
    assert page.evaluate(
        "[...document.querySelectorAll('.table-wrap')].every(box => box.scrollWidth <= box.clientWidth)"
    )


def test_only_a_page_with_a_stream_says_that_it_is_live(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    expect(visitor.go("/audit").locator("#connection")).to_have_text("Broker connected")
    expect(visitor.go("/fleet").locator("#connection")).to_have_text("Live")


def test_buttons_that_copy_say_what(visit: Callable[..., Visitor]) -> None:
    page = visit().go("/device/pump-1")
    names = [button.get_attribute("aria-label") for button in page.locator("button[data-copy]").all()]
    assert all(name and len(name) > len("Copy ") for name in names)
    assert len(names) >= 2


STEPS = ("/device/pump-2", "/device/pump-2/act", "/device/pump-2/report", "/roll-outs/new", "/device/nobody")


@pytest.mark.parametrize("path", ["/fleet", *STEPS, *PAGES[3:]])
def test_longer_words_fit_a_phone(visit: Callable[..., Visitor], path: str) -> None:
    visitor = visit(locale="vi-VN", size=PHONE)
    page = visitor.go(path)
    expect(page.locator("html")).to_have_attribute("lang", "vi")
    assert visitor.overflow() <= 0
    if path in STEPS:
        assert visitor.violations() == []


@pytest.mark.parametrize("path", ["/login", "/set-up?token=wrong"])
def test_axe_finds_nothing_before_somebody_has_logged_in(visit: Callable[..., Visitor], path: str) -> None:
    visitor = visit("", size=PHONE)
    visitor.go(path)
    assert visitor.violations() == []
    assert visitor.overflow() <= 0


def test_pages_speak_vietnamese(visit: Callable[..., Visitor]) -> None:
    visitor = visit("", locale="vi-VN")
    page = visitor.go("/login")
    expect(page.locator("html")).to_have_attribute("lang", "vi")
    expect(page.locator("main button[type=submit]")).to_have_text("Đăng nhập")


def test_the_keyboard_alone_is_enough(visit: Callable[..., Visitor]) -> None:
    visitor = visit("")
    page = visitor.go("/login")
    page.locator("input[name=name]").focus()
    page.keyboard.type("operator")
    page.keyboard.press("Tab")
    page.keyboard.type("a long and quiet river")
    page.keyboard.press("Enter")
    page.wait_for_url("**/fleet*")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the skip link
    page.keyboard.press("/")
    page.keyboard.type("pump-7")
    link = page.get_by_role("link", name="pump-7", exact=True)
    expect(page.get_by_role("link", name="pump-1", exact=True)).to_have_count(0)
    for _ in range(30):
        if link.evaluate("element => element === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/device/pump-7")
