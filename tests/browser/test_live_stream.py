"""The stream of a page that nobody sees, and of a session that has ended."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.simulators.visitor import Visitor

HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
LONG_MS = 30_000
PLACES = 4  # as live_places.js


def state(page: Page, expected: str) -> None:
    expect(page.locator("#connection")).to_have_attribute("data-state", expected)


def told(pages: list[Page]) -> list[str | None]:
    return [page.locator("#connection").get_attribute("data-state") for page in pages]


def shared(pages: list[Page]) -> None:
    """Waits until all places for streams are taken, and no more."""
    for _ in range(80):
        if told(pages).count("connected") == PLACES:
            break
        pages[-1].wait_for_timeout(250)
    assert told(pages).count("connected") == PLACES


def hide(page: Page) -> None:
    page.evaluate(HIDE, True)
    page.clock.run_for(LONG_MS)
    state(page, "paused")


def opened(visitor: Visitor, path: str) -> tuple[Page, list[str]]:
    """A page whose clock is ours, and the streams that it asks for."""
    asked: list[str] = []
    visitor.page.on("request", lambda request: asked.append(request.url) if "/live?" in request.url else None)
    visitor.page.clock.install()
    with visitor.page.expect_request("**/live?*"):
        page = visitor.go(path)
    state(page, "connected")
    return page, asked


def test_a_page_that_nobody_sees_gives_its_stream_up_and_goes_on_when_it_is_seen(visit: Callable[..., Visitor]) -> None:
    page, asked = opened(visit(), "/device/pump-1")  # its stream is the same one; a list's follows the boards in it
    page.wait_for_timeout(2_000)  # the first word with a number, from which it goes on
    hide(page)
    before = len(asked)
    page.clock.run_for(4 * LONG_MS)
    assert len(asked) == before  # it does not ask again
    page.evaluate(HIDE, False)
    state(page, "connected")
    assert "after=" in asked[-1]


def test_a_look_at_another_page_ends_no_stream(visit: Callable[..., Visitor]) -> None:
    page, asked = opened(visit(), "/device/pump-1")
    before = len(asked)
    page.evaluate(HIDE, True)
    page.clock.run_for(5_000)
    page.evaluate(HIDE, False)
    page.clock.run_for(LONG_MS)
    state(page, "connected")
    assert len(asked) == before


def test_two_parts_of_a_page_that_ask_for_the_same_share_a_stream(visit: Callable[..., Visitor]) -> None:
    page, asked = opened(visit(), "/fleet")
    before = len(asked)
    told = page.evaluate("""async () => {
      const { connect } = await import("/static/live.js");
      const heard = [];
      const one = connect({ board: "pump-2" }, { conn: (data) => heard.push(["one", data.board]) });
      const other = connect("board=pump-2", { conn: (data) => heard.push(["other", data.board]) });
      for (let turn = 0; turn < 200 && heard.length < 2; turn += 1) await fetch("/healthz");
      one.close();
      other.close();
      return heard;
    }""")
    assert told == [["one", "pump-2"], ["other", "pump-2"]]
    assert len(asked) == before + 1
    state(page, "connected")


def test_an_ended_session_is_said_and_nothing_is_tried_any_more(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    page, asked = opened(visitor, "/device/pump-3")  # the list would lead to the login by itself
    hide(page)
    visitor.context.clear_cookies()
    page.evaluate(HIDE, False)
    state(page, "ended")
    expect(page.locator("#connection")).to_contain_text("log in")
    before = len(asked)
    page.clock.run_for(4 * LONG_MS)
    assert len(asked) == before


def test_more_windows_than_a_browser_has_connections_all_show_their_page(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.page.close()
    pages = [visitor.context.new_page() for _ in range(7)]
    for page in pages:
        page.goto(f"{visitor.url}/device/pump-1")  # six streams held open would leave the seventh nothing to load with
    shared(pages)
    assert set(told(pages)) == {"connected", "crowded"}
    pages[0].evaluate(HIDE, True)
    paused = expect(pages[0].locator("#connection"))
    paused.to_have_attribute("data-state", "paused", timeout=LONG_MS)  # another wants its place
    shared(pages)
    for page in pages:
        page.close()


def test_a_page_that_is_asked_for_anew_after_its_session_ended_leads_to_the_login(
    visit: Callable[..., Visitor],
) -> None:
    visitor = visit()
    page, _ = opened(visitor, "/roll-outs")
    visitor.context.clear_cookies()
    page.clock.run_for(LONG_MS)
    state(page, "ended")
    page.locator("#connection").get_by_role("link").click()
    page.wait_for_url("**/login?next=%2Froll-outs")
