"""The pictures of docs/console.md: the pages of `temperd console --demo`, light and dark: make console-pictures."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.browser.test_roll_out import begin, to_review
from tests.simulators.console import PASSWORD
from tests.simulators.visitor import CHROMIUM, DESK, PHONE

START_S = 120.0
LEARN_S = 150.0  # until a heat wave has come and gone
BUSY, WAITING, DONE = "greenhouse-pi4", "workshop-pi5", "gate-orin"
HIGH, LONG = (1280, 1500), ("device", "job", "compare")  # pages whose charts are the point
COLOURS = 256  # of a picture of a page
SETTLE_MS = 2_500
PAGES = {
    "fleet": "/fleet",
    "device": f"/device/{BUSY}?span=900",
    "act": f"/device/{BUSY}/act/fine-tune",
    "policy": f"/device/{WAITING}/policy",
    "roll-outs": "/roll-outs",
    "roll-out-new": f"/roll-outs/new?boards={BUSY},{WAITING},{DONE}",
    "compare-policies": "/compare/policies",
    "figures": "/figures",
    "audit": "/audit",
    "users": "/users",
}


def link_of(log: Path, demo: subprocess.Popen[bytes]) -> str:
    """The one-time link that the demo printed."""
    end = time.monotonic() + START_S
    while not (found := re.search(r"http://\S+/set-up\?token=\S+", log.read_text("utf-8"))):
        assert demo.poll() is None, log.read_text("utf-8")
        assert time.monotonic() < end, log.read_text("utf-8")
        time.sleep(0.2)
    return found.group()


def take(page: Page, path: Path, size: tuple[int, int] = DESK) -> None:
    """A picture of few colours: pages are flat, and a clone is carried by everybody."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.wait_for_timeout(SETTLE_MS)
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLOURS).save(path, optimize=True)
    sys.stdout.write(f"{path} {path.stat().st_size}\n")


def set_up(browser: Browser, link: str) -> tuple[str, object]:
    """Make the owner; the console's address and the session."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(link)
    page.locator("input[name=name]").fill("linh")
    for field in page.locator("input[type=password]").all():
        field.fill(PASSWORD)
    page.locator("main button[type=submit]").click()
    page.wait_for_url(re.compile(r"/(login|fleet)"))
    if "/login" in page.url:
        page.locator("input[name=name]").fill("linh")
        page.locator("input[name=password]").fill(PASSWORD)
        page.locator("main button[type=submit]").click()
        page.wait_for_url("**/fleet*")
    kept = context.storage_state()
    context.close()
    return link.partition("/set-up")[0], kept


def pages_of(page: Page, url: str) -> dict[str, str]:
    """All pages, and those whose address is found on others."""
    page.goto(f"{url}/device/{DONE}")
    jobs = page.locator("a[href*='/jobs/']")
    job = jobs.first.get_attribute("href") or ""
    page.goto(f"{url}/device/{BUSY}")
    other = page.locator("a[href*='/jobs/']").first.get_attribute("href") or ""
    both = f"/compare?a={DONE}:{job.rpartition('/')[2]}&b={BUSY}:{other.rpartition('/')[2]}"
    return {**PAGES, "job": job, "compare": both, "roll-out": f"/roll-outs/{roll_out(page, url)}"}


def roll_out(page: Page, url: str) -> str:
    """Check the stored files of all three, one canary first; the id of that roll-out."""
    page.goto(f"{url}/roll-outs/new?boards={BUSY},{WAITING},{DONE}")
    to_review(page, f"{BUSY} {WAITING} {DONE}", "scrub", canary="count", canary_count="1")
    return begin(page, "before the summer")


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    parser.add_argument("--learn", type=float, default=LEARN_S, help="seconds before the first picture")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "demo.log")
        words = [sys.executable, "-m", "service.cli", "console", "--demo", "--out", f"{folder}/demo"]
        with log.open("wb") as stream:
            demo = subprocess.Popen(words, stdout=stream, stderr=stream)
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
                url, kept = set_up(browser, link_of(log, demo))
                time.sleep(options.learn)
                _take_all(browser, url, kept, options.out)
        finally:
            demo.terminate()
            demo.wait(timeout=60)


def _take_all(browser: Browser, url: str, kept: object, out: Path) -> None:
    pages: dict[str, str] = {}
    for theme in ("light", "dark"):
        context = _context(browser, kept, theme, DESK)
        page = context.new_page()
        pages = pages or pages_of(page, url)
        for name, path in pages.items():
            page.goto(url + path)
            take(page, out / f"console-{name}-{theme}.png", HIGH if name in LONG else DESK)
        context.close()
    context = _context(browser, kept, "dark", PHONE)
    page = context.new_page()
    for name in ("fleet", "device"):
        page.goto(url + pages[name])
        take(page, out / f"console-{name}-phone.png", PHONE)
    context.close()
    context = browser.new_context(viewport={"width": DESK[0], "height": DESK[1]}, locale="vi-VN")
    page = context.new_page()
    page.goto(f"{url}/login")
    take(page, out / "console-login-vietnamese.png")
    context.close()


def _context(browser: Browser, kept: object, theme: str, size: tuple[int, int]) -> BrowserContext:
    return browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme="dark" if theme == "dark" else "light",
        locale="en-GB",
        storage_state=kept,
    )


if __name__ == "__main__":
    main()
