"""Test helpers: open the page in a real browser, with every other host blocked, and use it.

`running_browser` and `page_opener` are the functions of fixtures.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

expect.set_options(timeout=60_000)

NAMES = ("chromium-headless-shell", "chromium", "google-chrome", "microsoft-edge")
# How to start one: Playwright's own, one in the PATH, one in its default folder.
BROWSERS = [{}, *({"executable_path": path} for path in map(shutil.which, NAMES) if path)]
BROWSERS += [{"channel": "chrome"}, {"channel": "msedge"}]
NO_BROWSER = "no browser: apt-get install chromium-headless-shell, or playwright install chromium"
SIZES = {"laptop": (1366, 650), "wide": (1920, 1080), "phone": (390, 844), "zoomed": (683, 325)}
PROMPT = "Everyone knew who the Babbingtons were."


def running_browser(ways: Sequence[dict[str, Any]] = BROWSERS) -> Iterator[Browser]:
    """Yield Chromium, Chrome or Edge, for which *.test is this machine and others do not exist.

    Without a browser, the test is skipped; with CI in the environment, it fails.
    """
    rules = "MAP *.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with sync_playwright() as playwright:
        for way in ways:
            with suppress(Error):
                arguments = ["--no-sandbox", f"--host-resolver-rules={rules}"]
                browser = playwright.chromium.launch(**way, args=arguments)
                break
        else:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(NO_BROWSER)
        yield browser
        browser.close()


def page_opener(browser, request) -> Iterator[Callable[..., Page]]:
    """Yield a function that opens the page in a new browser window.

    At the end, no page may scroll sideways, have had an error, or have requested another host.
    """
    pages = []

    def open_page(
        size="laptop", theme="light", link="", server=None, wait="#starters button", script=""
    ) -> Page:
        server = server or request.getfixturevalue("server")
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=theme,
            has_touch=size == "phone", permissions=["clipboard-read", "clipboard-write"],
        )  # fmt: skip
        page = context.new_page()
        pages.append(page)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda m: m.type == "error" and page.errors.append(m.text))
        context.route(
            lambda url: url.startswith("http") and not url.startswith(server.url),
            lambda route: page.errors.append(route.request.url),  # and never answer
        )
        page.set_default_timeout(60_000)
        page.add_init_script(script)
        page.goto(server.url + link, wait_until="commit")
        expect(page.locator(wait).first).to_be_visible()
        return page

    yield open_page
    wide = "document.documentElement.scrollWidth - window.innerWidth"
    pages = [page for page in pages if not page.is_closed()]
    assert max((page.evaluate(wide) for page in pages), default=0) <= 0
    for number, page in enumerate(pages):
        if folder := os.environ.get("PAGE_PICTURES"):
            page.screenshot(path=Path(folder) / f"{request.node.name}-{number}.png")
        page.context.close()
    assert [page.errors for page in pages if page.errors] == []


def click(page: Page, *selectors: str) -> None:
    for selector in selectors:
        page.locator(selector).first.click()


def settle(page: Page, **settings) -> None:
    """Change settings as the page's controls do, once the page has started."""
    page.wait_for_function("page.state?.settings")
    page.evaluate("settings => page.change(settings)", settings)


def generate(page: Page, prompt: str = PROMPT, **settings) -> None:
    """Type a prompt, and wait for its continuation."""
    settle(page, **settings)
    page.locator("#chat-input").fill(prompt)
    click(page, "#chat-submit")
    finished(page)


def finished(page: Page) -> None:
    expect(page.locator(".facts")).to_contain_text("per second")
    expect(page.locator("#continue")).to_be_visible()
