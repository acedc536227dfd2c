"""The page in a real browser, with the shipped weights and every other host blocked.

Without Chromium, Chrome or Edge, these tests are skipped. With PAGE_PICTURES=folder in the
environment, pictures of the page are left in that folder.
"""

import os
import re
from pathlib import Path

import pytest
from app_server import running_app, running_browser
from playwright.sync_api import Page, expect

expect.set_options(timeout=60_000)

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    with running_app(tmp_path_factory.mktemp("app")) as server:
        yield server


@pytest.fixture
def open_page(server, browser):
    """Return a function that opens the page in a browser window of its own."""
    contexts = []

    def open_page(size="desktop", theme="light") -> Page:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=theme,
            has_touch=size == "phone",
        )
        contexts.append(context)
        page = context.new_page()
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.set_default_timeout(60_000)
        page.goto(server.url)
        expect(page.locator("#starters button")).to_have_count(4, timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()


def picture(page: Page, name: str) -> None:
    if folder := os.environ.get("PAGE_PICTURES"):
        page.wait_for_timeout(400)  # let the page's animations end
        page.screenshot(path=Path(folder) / f"{name}.png")


def text_of(message) -> str:
    return message.locator('[role="article"]').first.text_content()


def set_slider(page: Page, name: str, key: str, presses: int = 1) -> None:
    thumb = page.locator(f"#{name} [role=slider]")
    for _ in range(presses):
        thumb.press(key)


def open_settings(page: Page) -> None:
    if not page.locator("#confirm-sidebar").is_visible():
        page.locator("#chat-settings-header-button, #chat-settings-open-modal").first.click()
    expect(page.locator("#confirm-sidebar")).to_be_visible()


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip), ("true", pytest.fail)])
def test_without_a_browser(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    nowhere = [{"executable_path": "/nowhere/chromium"}]
    with pytest.raises(outcome.Exception, match="apt-get install"), running_browser(nowhere):
        pass


@pytest.mark.parametrize(
    ("size", "theme"),
    [
        ("desktop", "light"),
        ("phone", "dark"),
        pytest.param("desktop", "dark", marks=pytest.mark.long),
        pytest.param("phone", "light", marks=pytest.mark.long),
    ],
)
def test_a_visit(server, open_page, size, theme):
    page = open_page(size, theme)
    expect(page.locator("#welcome-screen")).to_contain_text("It does not answer")
    expect(page.locator("#chat-input")).to_have_attribute("placeholder", re.compile("^Type the b"))
    assert ("dark" in page.locator("html").get_attribute("class")) == (theme == "dark")
    picture(page, f"start-{size}-{theme}")
    page.locator("#starters button").first.click()
    answer = page.locator(".ai-message").last
    expect(answer.locator(".look-facts")).to_contain_text("120 tokens")
    expect(page.locator('[data-step-type="user_message"]')).to_have_text(
        "Everyone knew who the Babbingtons were."
    )
    assert len(text_of(answer)) > 200

    answer.locator(".look-probs").click()
    tokens = answer.get_by_role("group", name="The tokens of the text").get_by_role("button")
    expect(tokens).to_have_count(120)
    tokens.nth(5).click()
    details = answer.locator(".look-details")
    expect(details).to_contain_text(re.compile(r"had (\d|<).* %, rank \d+; after the settings"))
    expect(details.locator("tbody tr")).to_have_count(5)
    before = details.inner_text()
    page.keyboard.press("ArrowRight")  # by keyboard, too
    expect(tokens.nth(6)).to_be_focused()
    expect(details).not_to_have_text(before)
    picture(page, f"probs-{size}-{theme}")

    answer.locator(".look-copied").click()
    runs = answer.get_by_role("group", name="The text, with its copied runs").get_by_role("button")
    expect(answer).to_contain_text(re.compile(r"\d+ % of the tokens stand in the story"))
    runs.first.focus()
    expect(answer.locator(".look-details")).to_contain_text(
        re.compile(r"\d+ tokens, from paragraph \d+ of the story")
    )
    picture(page, f"copied-{size}-{theme}")

    answer.get_by_role("button", name="Next token").click()
    chart = page.locator("img.inline-image")
    expect(chart).to_be_visible()
    expect(page.locator(".ai-message").last).to_contain_text(
        re.compile("after your prompt, at three temperatures:\\s*Everyone knew who the Babb")
    )
    page.wait_for_function("document.querySelector('img.inline-image').naturalWidth > 500")
    chart.scroll_into_view_if_needed()
    picture(page, f"next-token-{size}-{theme}")
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0, "the page scrolls sideways"
    assert page.errors == []


def test_streaming_stop_continue_again_and_edit(server, open_page):
    page = open_page()
    open_settings(page)
    set_slider(page, "max_new_tokens", "End")
    page.locator("#seed").fill("11")
    picture(page, "settings-desktop-light")
    page.locator("#confirm-sidebar").click()
    page.locator("#chat-input").fill("The old clock")
    page.locator("#chat-submit").click()
    answer = page.locator(".ai-message").first
    seen = 0
    for _ in range(3):  # it grows while it is generated
        page.wait_for_function(
            "length => (document.querySelector('.ai-message [role=article]')?.textContent ?? '')"
            ".length > length",
            arg=seen,
        )
        seen = len(text_of(answer))
    page.locator("#stop-button").click()
    expect(answer.locator(".look-facts")).to_contain_text("stopped")
    expect(answer.locator(".look-facts")).to_contain_text("seed 11")
    expect(page.locator(".ai-message")).to_have_count(1)
    stopped_at = server.tokens()
    assert stopped_at < 500

    open_settings(page)
    set_slider(page, "max_new_tokens", "Home")
    set_slider(page, "max_new_tokens", "ArrowRight", 4)
    page.locator("#confirm-sidebar").click()
    answer.get_by_role("button", name="Continue").click()
    facts = page.locator(".look-facts")
    expect(facts).to_have_count(2)
    expect(facts.last).to_contain_text("5 tokens")
    assert server.tokens() == stopped_at + 5  # the stopped one did not go on
    answer.get_by_role("button", name="Again").click()
    expect(facts).to_have_count(3)

    prompt = page.locator('[data-step-type="user_message"]')
    prompt.hover()
    prompt.locator(".edit-message").click()
    page.locator("#edit-chat-input").fill("On Thursday there was")
    page.locator(".confirm-edit").click()
    expect(prompt).to_have_text("On Thursday there was")
    expect(facts).to_have_count(1)
    assert page.errors == []


def test_the_page_asks_no_other_host(server, browser):
    context = browser.new_context()
    asked = []
    # A host that never answers holds up a page for longer than one that cannot be reached.
    context.route(
        lambda url: not url.startswith(server.url), lambda route: asked.append(route.request.url)
    )
    page = context.new_page()
    page.goto(server.url, wait_until="commit")
    expect(page.locator("#starters button")).to_have_count(4, timeout=60_000)
    assert asked == []
    context.close()
