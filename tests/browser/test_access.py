"""Login, session and key as a browser sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Stage, Visitor
from tests.simulators.console import PASSWORD


class _Elsewhere(BaseHTTPRequestHandler):
    """Another site: a link to the console, and a form that posts to it by itself once it is clicked."""

    def __init__(self, target: str, *given: object) -> None:
        self._target = target
        super().__init__(*given)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        page = (
            f'<!doctype html><title>elsewhere</title><a href="{self._target}/audit?who=owner&amp;copy=1">look</a>'
            f'<form method="post" action="{self._target}/account/language"><input name="language" value="vi">'
            "<button>win</button></form>"
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_given: object) -> None:
        """Quiet."""


@pytest.fixture
def elsewhere(stage: Stage) -> Iterator[str]:
    """On `localhost`: for a browser another site than 127.0.0.1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Elsewhere, stage.console.url))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://localhost:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_link_on_another_site_finds_who_is_logged_in(visit: Callable[..., Visitor], elsewhere: str) -> None:
    page = visit("owner").page
    page.goto(elsewhere)
    page.get_by_text("look").click()
    page.wait_for_url("**/audit?who=owner&copy=1")
    expect(page.locator("h1")).to_have_text("Audit trail")


def test_a_form_on_another_site_changes_nothing(visit: Callable[..., Visitor], elsewhere: str) -> None:
    visitor = visit("owner")
    visitor.page.goto(elsewhere)
    visitor.page.get_by_text("win").click()
    visitor.page.wait_for_url("**/login?expired=1")  # its cookie did not come along
    assert visitor.go("/account").locator("html").get_attribute("lang") == "en"


def test_scripts_see_no_session(visit: Callable[..., Visitor]) -> None:
    page = visit("owner").go("/account")
    assert "session" not in page.evaluate("document.cookie")


def test_who_logs_out_is_out_in_every_tab(visit: Callable[..., Visitor]) -> None:
    visitor = visit("viewer")
    beside = visitor.context.new_page()
    beside.goto(f"{visitor.url}/account")
    visitor.go("/account").locator("#account-menu summary").click()
    visitor.page.locator("form[action='/logout'] button").click()
    visitor.page.wait_for_url("**/login")
    beside.reload()
    beside.wait_for_url("**/login?next=**")


def test_a_login_by_keyboard_leads_where_one_wanted_to_go(visit: Callable[..., Visitor]) -> None:
    page = visit("").go("/audit?who=owner")
    page.wait_for_url("**/login?next=**")
    expect(page.locator("#name")).to_be_focused()
    page.keyboard.type("operator")
    page.keyboard.press("Tab")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/audit?who=owner")
