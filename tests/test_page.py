"""The page in a real browser, with the shipped weights and every other host blocked.

Without Chromium, Chrome or Edge, these tests are skipped. With PAGE_PICTURES=folder in the
environment, pictures of the page are left in that folder.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from app_server import copy_app, running_app, running_browser, serving
from conftest import ROOT
from playwright._impl._driver import compute_driver_executable
from playwright.sync_api import Page, expect

from support.page.settings import LIMITS
from utils import next_token_probs

expect.set_options(timeout=60_000)

SIZES = {"laptop": (1366, 650), "phone": (390, 844), "zoomed": (683, 325)}  # 200 % on the laptop
PROMPT = "Everyone knew who the Babbingtons were."


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

    def open_page(size="laptop", theme="light", link="") -> Page:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=theme,
            has_touch=size == "phone",
            accept_downloads=True,
        )
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda m: m.type == "error" and page.errors.append(m.text))
        page.set_default_timeout(60_000)
        page.goto(server.url + link)
        expect(page.locator("#starters button").first).to_be_visible(timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()


def picture(page: Page, name: str) -> None:
    if folder := os.environ.get("PAGE_PICTURES"):
        page.wait_for_timeout(400)  # let the page's animations end
        page.screenshot(path=Path(folder) / f"{name}.png")


def settle(page: Page, **settings) -> None:
    """Change settings as the elements do."""
    page.evaluate("settings => page.change(settings)", settings)


def generate(page: Page, prompt: str = PROMPT, **settings) -> None:
    """Type a prompt, and wait for its continuation."""
    settle(page, **settings)
    page.locator("#chat-input").fill(prompt)
    page.locator("#chat-submit").click()
    finished(page)


def finished(page: Page) -> None:
    expect(page.locator(".facts")).to_contain_text("per second")
    expect(page.locator("#continue")).to_be_enabled()


def text_of(page: Page) -> str:
    return page.evaluate("page.text()")


def box(page: Page, selector: str) -> dict:
    return page.locator(selector).first.evaluate(
        "e => { const { left, top, right, bottom } = e.getBoundingClientRect();"
        " return { left, top, right, bottom }; }"
    )


def no_sideways(page: Page) -> None:
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0, "the page scrolls sideways"


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip), ("true", pytest.fail)])
def test_without_a_browser(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    nowhere = [{"executable_path": "/nowhere/chromium"}]
    with pytest.raises(outcome.Exception, match="apt-get install"), running_browser(nowhere):
        pass


BOTH = pytest.mark.parametrize("size", ["laptop", "phone"])


@pytest.mark.parametrize(
    ("size", "theme"),
    [
        ("laptop", "light"),
        ("phone", "dark"),
        pytest.param("laptop", "dark", marks=pytest.mark.long),
        pytest.param("phone", "light", marks=pytest.mark.long),
    ],
)
def test_a_visit(server, open_page, size, theme):
    page = open_page(size, theme)
    expect(page.locator(".start")).to_contain_text("It does not answer")
    expect(page.locator("#chat-input")).to_have_attribute("placeholder", re.compile("^Type the b"))
    expect(page.locator("#readme-button")).to_have_text("Help")
    assert ("dark" in page.locator("html").get_attribute("class")) == (theme == "dark")
    assert page.locator("#starters button").all_text_contents()[0] == PROMPT
    picture(page, f"start-{size}-{theme}")
    page.locator("#starters button").first.click()
    finished(page)
    assert text_of(page).startswith(PROMPT) and len(text_of(page)) > 200
    picture(page, f"plain-{size}-{theme}")

    page.locator("#view-probs").click()
    expect(page.locator("#prompt-loss")).to_contain_text(re.compile(r"\d\.\d\d nats per token"))
    tokens = page.locator("#text .token")
    tokens.nth(40).click()
    details = page.locator("#token-details")
    expect(details).to_contain_text(re.compile(r"had (\d|<|>).* %, rank \d+; after the settings"))
    expect(details.locator("tbody tr")).to_have_count(8)
    before = details.inner_text()
    page.keyboard.press("ArrowRight")  # by keyboard, too
    expect(tokens.nth(41)).to_be_focused()
    expect(details).not_to_have_text(before)
    picture(page, f"probs-{size}-{theme}")
    page.keyboard.press("Escape")
    expect(details).to_have_count(0)
    tokens.nth(3).click()  # a token of the prompt
    expect(details).to_contain_text(re.compile(r"had (\d|<|>).* %, rank \d+"))
    page.keyboard.press("Escape")

    page.locator("#view-copied").click()
    expect(page.locator(".legend")).to_contain_text("of the tokens stand in the story")
    page.locator(".from-story").first.click()
    expect(details).to_contain_text(re.compile(r"\d+ tokens, from paragraph \d+ of the story"))
    picture(page, f"copied-{size}-{theme}")
    page.keyboard.press("Escape")

    page.locator("#view-attention").click()
    tokens.nth(20).click()
    page.keyboard.press("Escape")
    shaded = "document.querySelectorAll('#text .token[style*=background]').length"
    page.wait_for_function(f"{shaded} === 21")
    mean = tokens.nth(0).get_attribute("style")
    page.get_by_label("layer").select_option("3")
    expect(tokens.nth(0)).not_to_have_attribute("style", mean)
    picture(page, f"attention-{size}-{theme}")
    no_sideways(page)
    names = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea')].filter("
        "  (e) => e.checkVisibility() && !e.ariaLabel && !e.textContent.trim()"
        "    && !e.labels?.length && !e.title && !e.querySelector('.sr-only'))"
        ".map((e) => e.outerHTML)"
    )
    assert names == [], "controls without a name"
    assert page.errors == []


# 1. The faults of the page before this one ---------------------------------------------------


@BOTH
def test_the_text_stands_on_the_page_once(open_page, size):
    page = open_page(size)
    generate(page, temperature=0, max_new_tokens=60)
    for view in ("plain", "probs", "copied"):
        page.locator(f"#view-{view}").click()
        shown = page.evaluate(
            "document.body.innerText.replaceAll('↵', '').replaceAll(/\\s+/g, ' ')"
        )
        assert shown.count(PROMPT) == 1
        rest = " ".join(text_of(page)[len(PROMPT) :].split())[:40]
        assert shown.count(rest) == 1


@pytest.mark.parametrize("size", SIZES)
def test_the_popover_is_beside_its_token_and_in_view(open_page, size):
    page = open_page(size)
    generate(page, temperature=0, max_new_tokens=500)
    tokens = page.locator("#text .token")
    count = tokens.count()
    assert count > 500
    for index in (1, 9, 60, 200, 350, count - 30, count - 1):
        tokens.nth(index).click()
        expect(page.locator("#token-details tbody tr")).to_have_count(8)
        page.evaluate("new Promise((seen) => requestAnimationFrame(() => setTimeout(seen)))")
        token, details = box(page, f"[data-index='{index}']"), box(page, "#token-details")
        assert details["top"] >= token["bottom"] or details["bottom"] <= token["top"]
        width, height = SIZES[size]
        assert details["left"] >= 0 and details["right"] <= width
        assert details["top"] >= 0 and details["bottom"] <= height
        page.keyboard.press("Escape")
    picture(page, f"popover-{size}")
    no_sideways(page)


@BOTH
def test_a_click_brings_the_bars_into_view(open_page, size):
    page = open_page(size)
    generate(page, temperature=1, max_new_tokens=300)
    page.locator("#text .token").first.scroll_into_view_if_needed()
    page.locator("#next-token").click()
    first = page.locator("#bars tr").first
    expect(first).to_be_visible()
    below = box(page, "#settings-line")["top"]
    page.wait_for_function(
        "below => { const bar = document.querySelector('#bars tr:nth-child(3)')"
        ".getBoundingClientRect(); return bar.top > 0 && bar.bottom < below; }",
        arg=below,
    )
    picture(page, f"bars-{size}")
    # The bars move at once, and what moves them is in force.
    before = page.locator("#bars .number").all_text_contents()
    slider = page.get_by_label("Temperature", exact=True).first
    slider.press("ArrowRight")
    page.wait_for_function("page.state.settings.temperature === 1.1")
    assert page.locator("#bars .number").all_text_contents() != before
    no_sideways(page)


@BOTH
def test_moved_settings_are_in_force_and_reset_resets(open_page, size):
    page = open_page(size)
    usual = page.locator("#settings-button").text_content()
    beside = box(page, "#chat-input")["top"] - box(page, "#settings-line")["bottom"]
    assert 0 < beside < 50  # though the page is not full
    page.locator("#settings-button").click()
    page.get_by_label("Tokens, slider").press("Home")
    for _ in range(4):
        page.get_by_label("Tokens, slider").press("ArrowRight")
    page.locator("#set-temperature").fill("0.3")
    page.locator("#set-seed").fill("eleven")
    expect(page.locator("#seed-note")).to_contain_text("not used")
    page.locator("#reset").click()
    expect(page.locator("#set-seed")).to_have_value("")
    page.locator("#set-temperature").fill("0.25")
    assert page.evaluate("page.state.settings.temperature") == 0.25
    page.locator("#set-max_new_tokens").fill("5")
    page.locator("#set-temperature").fill("0.3")
    page.locator("#set-seed").fill("11")
    expect(page.locator("#seed-note")).to_have_text("")
    picture(page, f"settings-{size}")
    page.locator("#chat-input").fill("The old clock")
    page.locator("#chat-submit").click()
    finished(page)
    for fact in ("5 tokens", "temperature 0.3", "seed 11"):
        expect(page.locator(".facts")).to_contain_text(fact)
    page.locator("#preset-greedy").click()
    for name in ("top_k", "top_p", "seed"):  # they would have no effect
        expect(page.locator(f"#set-{name}")).to_have_count(0)
    page.locator("#again").click()
    expect(page.locator(".facts")).to_contain_text("temperature 0")
    page.locator("#reset").click()
    assert page.locator("#settings-button").text_content()[:-1] == usual[:-1]
    assert page.evaluate("page.state.settings") == page.evaluate("page.USUAL")
    assert page.errors == []


@BOTH
def test_a_reload_brings_everything_back(open_page, size):
    page = open_page(size)
    generate(page, temperature=0, max_new_tokens=20, seed="3")
    page.locator("#again").click()
    finished(page)
    text = text_of(page)
    page.reload()
    expect(page.locator(".ways")).to_contain_text("2/2")
    assert text_of(page) == text
    assert page.evaluate("page.state.settings.seed") == "3"
    expect(page.locator("#continue")).to_be_enabled()
    page.wait_for_function("page.state.connected")
    page.locator("#continue").click()
    page.wait_for_function("length => page.text().length > length", arg=len(text))
    for junk in ("{", "5", '{"documents": [5, {"root": {"tokens": [1]}}], "settings": "x"}'):
        page.evaluate(
            "junk => addEventListener('pagehide', () => localStorage.setItem('story-page', junk))",
            junk,
        )
        page.reload()
        expect(page.locator("#starters button")).to_have_count(4)
    assert page.errors == []


# 2. What else can be done --------------------------------------------------------------------


def test_streaming_stop_continue_again_and_back(server, open_page):
    page = open_page()
    settle(page, temperature=5, top_k=0, max_new_tokens=500, seed="11")
    before, seen = server.tokens(), 0
    page.locator("#chat-input").fill("The old clock")
    page.locator("#chat-submit").click()
    for _ in range(3):  # it grows while it is generated
        page.wait_for_function(
            "n => document.querySelectorAll('#text .token').length > n", arg=seen
        )
        seen = len(text_of(page))
    page.locator("#stop-button").click()
    expect(page.locator(".facts")).to_contain_text("stopped")
    expect(page.locator(".facts")).to_contain_text("seed 11")
    stopped_at = server.tokens()
    assert stopped_at - before < 500

    settle(page, max_new_tokens=5)
    text = text_of(page)
    page.locator("#continue").click()
    expect(page.locator(".facts")).to_have_text(re.compile("^5 tokens"))
    assert server.tokens() == stopped_at + 5  # the stopped one did not go on
    longer = text_of(page)
    assert longer.startswith(text) and len(longer) > len(text)
    page.locator("#again").click()
    expect(page.locator(".ways")).to_contain_text("2/2")
    finished(page)
    assert text_of(page).startswith(text)
    page.get_by_label("The way before").click()
    expect(page.locator(".ways")).to_contain_text("1/2")
    assert text_of(page) == longer
    assert page.errors == []


@BOTH
def test_another_token_can_be_chosen(open_page, size):
    page = open_page(size)
    generate(page, temperature=0, max_new_tokens=20)
    before = text_of(page)
    page.locator("#text .token").nth(15).click()
    other = page.locator("#token-details .alternative").nth(1)
    label = other.text_content()
    other.click()
    expect(page.locator(".ways")).to_contain_text("2/2")
    finished(page)
    chosen = page.evaluate("page.tokensOf(page.document())[15].label")
    assert chosen == label and text_of(page) != before
    assert page.evaluate("page.tokensOf(page.document()).length") == 15 + 1 + 20
    picture(page, f"chosen-{size}")
    page.get_by_label("The next way").click()
    assert text_of(page) == before


def test_again_keeps_a_chosen_token_and_a_reload_keeps_that(open_page):
    page = open_page()
    generate(page, max_new_tokens=10)
    page.locator("#text .token").nth(12).click()
    other = page.locator("#token-details .alternative:enabled").nth(0)
    label = other.text_content()
    other.click()
    finished(page)
    for way in ("2/2", "3/3", "4/4"):
        expect(page.locator(".ways")).to_contain_text(way)
        assert page.evaluate("page.tokensOf(page.document())[12].label") == label
        if way == "3/3":
            page.reload()
            page.wait_for_function("page.state.connected")
        page.locator("#again").click()
        finished(page)


def test_a_token_of_the_prompt_can_be_chosen(open_page):
    page = open_page()
    generate(page, temperature=0, max_new_tokens=10)
    count = page.locator("#text .prompt").count()
    page.locator("#text .token").nth(3).click()
    page.locator("#token-details .alternative:enabled").nth(0).click()
    finished(page)
    assert page.locator("#text .prompt").count() == 4  # three, and the chosen one
    assert page.evaluate("page.promptOf(page.document()).length") == 4
    page.get_by_label("The next way").click()
    assert page.locator("#text .prompt").count() == count
    assert PROMPT in page.evaluate(
        "new URLSearchParams(new URL(page.link()).hash.slice(1)).get('prompt')"
    )


def test_a_token_of_the_prompt_that_is_no_likely_one_has_a_number(open_page):
    page = open_page()
    generate(page, "Everyone zebra", max_new_tokens=1)
    page.locator("#text .token").nth(1).click()
    expect(page.locator("#token-details")).to_contain_text(re.compile(r"had < 0.1 %, rank \d{3,}"))


def test_a_failure_leaves_the_buttons_alive(server, open_page):
    page = open_page()
    generate(page, max_new_tokens=5)
    failures = {
        "no answer": lambda route: route.abort(),
        "an action that raised": lambda route: route.fulfill(json={"success": True}),
    }
    for failure in failures.values():
        page.route("**/project/action", failure)
        page.locator("#continue").click()
        expect(page.locator("#continue")).to_be_enabled()
        page.unroute("**/project/action")
    page.locator("#continue").click()
    page.wait_for_function("page.tokensOf(page.document()).filter((t) => t.seen).length === 10")


def test_after_a_restart_of_the_app_the_page_is_there_once(browser, tmp_path):
    copy_app(tmp_path)
    page = browser.new_page()
    with serving(tmp_path) as server:
        page.goto(server.url)
        expect(page.locator("#starters button").first).to_be_visible(timeout=60_000)
        generate(page, max_new_tokens=5)
        server.process.kill()
        page.wait_for_function("!page.socket.connected")
    with serving(tmp_path, port=int(server.url.rsplit(":")[-1])):
        page.wait_for_function("page.socket.connected", timeout=60_000)
        page.locator("#continue").click()
        page.wait_for_function("page.tokensOf(page.document()).filter((t) => t.seen).length >= 10")
        for part in ("#text", ".toolbar", "#settings-line"):
            expect(page.locator(part)).to_have_count(1)
        page.close()


def test_two_tabs_keep_each_others_texts(open_page):
    page = open_page()
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator("#starters button").first).to_be_visible()
    page.evaluate(
        "for (let i = 0; i < 20; i++)"  # as many as are kept
        " page.onPrompt({ run: `run ${i}`, tokens: [{ id: 1, text: 'a', label: 'a' }], before: 0 })"
    )
    generate(other, "On Thursday there was fog.", max_new_tokens=5)
    other.wait_for_function("localStorage.getItem('story-page').includes('per second')")
    page.evaluate("page.onEnd(); dispatchEvent(new Event('pagehide'))")  # it stores its own again
    other.reload()
    other.locator("#new").click()
    expect(other.locator("#earlier button")).to_have_count(20)
    expect(other.locator("#earlier")).to_contain_text("On Thursday there was fog.")


def test_drafts_comparison_and_story(open_page):
    page = open_page()
    generate(page, temperature=0, max_new_tokens=40)
    expect(page.locator(".facts")).to_contain_text(re.compile(r"\d+ from drafts"))
    page.locator("#view-drafts").click()
    expect(page.locator("#text .from-draft").first).to_be_visible()
    page.locator("#compare-button").click()
    columns = page.locator("#compare .columns > div")
    expect(columns).to_have_count(3)
    for i in range(3):
        expect(columns.nth(i).locator(".share")).to_contain_text("copied from the story")
    expect(columns.first.locator(".share")).to_contain_text("100 %")
    picture(page, "compare")
    page.locator("#view-copied").click()
    page.locator(".from-story").first.click()
    page.get_by_text("Show it in the story").click()
    mark = page.locator("#story-text mark")
    expect(mark).to_be_in_viewport()
    assert mark.text_content() == text_of(page)[: len(mark.text_content())]
    picture(page, "story")
    assert page.errors == []


@BOTH
def test_the_story_is_beside_the_text_or_over_it(open_page, size):
    page = open_page(size)
    generate(page, max_new_tokens=1)
    page.locator("#story").click()
    panel = page.get_by_role("dialog", name="The story")
    expect(panel).to_contain_text(PROMPT)
    if size == "laptop":
        assert box(page, ".document")["right"] <= box(page, "#story-panel")["left"]
        assert box(page, "#chat-submit")["right"] <= box(page, "#story-panel")["left"]
    no_sideways(page)
    picture(page, f"story-{size}")
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    expect(page.locator("#story")).to_be_focused()
    page.locator("#story").click()
    page.get_by_role("button", name="Close the story").click()
    expect(panel).to_be_hidden()
    assert page.errors == []


def test_copy_save_and_a_link(server, open_page):
    page = open_page()
    generate(page, "The old clock", temperature=0.7, max_new_tokens=10)
    text = text_of(page)
    settle(page, temperature=1.1)  # the link holds what the text was made with, and its seed
    page.locator("#copy").click()
    expect(page.locator("#copy")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == text
    with page.expect_download() as download:
        page.locator("#save").click()
    assert Path(download.value.path()).read_text(encoding="utf-8") == text
    page.locator("#link").click()
    expect(page.locator("#link")).to_have_text("Link copied")
    link = page.evaluate("navigator.clipboard.readText()")
    other = open_page("phone", link=link.removeprefix(server.url))
    other.get_by_role("button", name="The old clock").click()
    finished(other)
    assert text_of(other) == text
    page.locator("#new").click()
    expect(page.locator("#earlier button")).to_have_count(1)


def test_what_the_model_does_not_read_is_grey_and_a_long_prompt_is_folded(open_page):
    page = open_page("phone")
    generate(page, "The clock stood still. " * 80, temperature=0, max_new_tokens=10)
    assert page.locator("#text .token").count() < 200
    page.locator("#unfold").click()
    count = page.locator("#text .token").count()
    assert count > 400
    expect(page.locator("#text .token.unread")).to_have_count(count - 256)
    picture(page, "folded")


# 3. The page's arithmetic --------------------------------------------------------------------


def test_the_modules_by_themselves():
    node, _ = compute_driver_executable()  # Playwright brings its own
    tests = ROOT / "tests" / "page_modules.mjs"
    run = subprocess.run([node, "--test", tests], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_the_page_has_the_apps_settings_and_probabilities(open_page):
    page = open_page()
    limits, usual = page.evaluate("[page.LIMITS, page.USUAL]")
    assert {
        name: (limit["min"], limit["max"], usual[name]) for name, limit in limits.items()
    } == LIMITS
    torch.manual_seed(0)
    logits = torch.randn(1, 2000) * 3
    values = (logits - logits.max()).sort(descending=True).values[0].tolist()
    told = {"top": values[:200], "rest": [[1, value] for value in values[200:]]}
    for temperature, top_k, top_p in ((1, 0, 1), (0.3, 50, 1), (2, 0, 0.8), (0, 0, 1), (1, 7, 0.5)):
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        told_page = [told, settings]
        answer = page.evaluate(
            "([told, settings]) => page.nextTokenProbs(told, settings)", told_page
        )
        probs = next_token_probs(logits, temperature, top_k or None, top_p)
        expected = probs.sort(descending=True).values[0]
        assert answer["probs"] == pytest.approx(expected[:200].tolist(), abs=2e-3)
        assert answer["others"] == pytest.approx(float(expected[200:].sum()), abs=2e-3)


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
