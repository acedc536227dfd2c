"""The page in a real browser, with every other host blocked.

Skipped without Chromium, Chrome or Edge. PAGE_PICTURES=folder stores a screenshot after each test.
"""

import math
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiktoken
import torch
from app_server import WEIGHTS, copy_app, serving
from axe_playwright_python.sync_playwright import Axe
from browser import PROMPT, SIZES, click, finished, generate, page_opener, running_browser, settle
from conftest import ROOT
from playwright._impl._driver import compute_driver_executable
from playwright.sync_api import Locator, Page, expect

from gpt import GPT_CONFIG_124M, GPTModel
from support.inspection.attention import attention_weights
from support.model.weights import save_weights
from support.page.views import scores
from utils import load_model, next_token_probs

browser = pytest.fixture(running_browser, scope="module")
open_page = pytest.fixture(page_opener)
LAPTOP = pytest.param("laptop", marks=pytest.mark.long)
BOTH = pytest.mark.parametrize("page", [LAPTOP, "phone"], indirect=True)
RTL = "\u202e\u05e9\u05dc\u05d5\u05dd \U0001f570\ufe0f <b>"  # an override, an emoji, HTML


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(copy_app(tmp_path_factory.mktemp("app"))) as server:
        yield server


@pytest.fixture
def page(open_page, request):
    return open_page(getattr(request, "param", "laptop"))


def again(page: Page, selector: str = "#again") -> None:
    click(page, selector)
    finished(page)


def text_of(page: Page) -> str:
    return page.evaluate("page.text()")


def open_tab(page: Page, name: str) -> None:
    if not page.locator("#panel").is_visible():  # on a narrow screen
        click(page, "#look-inside")
    click(page, f"#tab-{name}")


def choose_another(page: Page, index: int) -> str:
    """Replace a token by the most probable other one, and wait for the text; return its label."""
    page.locator("#text .token").nth(index).click()
    expect(page.locator("tr.own")).to_be_visible()
    other = ".alternative[aria-disabled=false]"
    label = page.locator(other).first.text_content()
    again(page, other)
    return label


def accessible(page: Page) -> None:
    """Check the page as it is now with axe, and that no value is missing in its words."""
    assert not re.search(r"\b(NaN|undefined|null)\b", page.locator("body").inner_text())
    found = Axe().run(page).response["violations"]
    assert not [(v["id"], [node["html"][:200] for node in v["nodes"]]) for v in found]


def box(page: Page, selector: str) -> SimpleNamespace:
    sides = page.locator(selector).first.evaluate("e => e.getBoundingClientRect().toJSON()")
    return SimpleNamespace(**sides)


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip), ("true", pytest.fail)])
def test_without_a_browser(monkeypatch, ci, outcome):
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome.Exception, match="apt-get install"):
        next(running_browser([{"executable_path": "/nowhere/chromium"}]))


# 1. What every visitor does -----------------------------------------------------------------


@pytest.mark.parametrize(("size", "theme"), [("laptop", "light"), ("phone", "dark")])
def test_a_visit(open_page, size, theme):
    """Every state of the page, each checked with axe."""
    page = open_page(size, theme)
    assert ("dark" in page.locator("html").get_attribute("class")) == (theme == "dark")
    expect(page.locator("#chat-input")).to_have_attribute("placeholder", re.compile("^Type the b"))
    accessible(page)
    click(page, "#readme-button")
    expect(page.get_by_role("heading", name="Help")).to_be_visible()
    accessible(page)
    page.keyboard.press("Escape")
    click(page, "#card-write")
    finished(page)
    text = text_of(page)
    assert text.startswith(PROMPT) and len(text) > 200
    expect(page.locator(".hint")).to_have_count(1)
    accessible(page)

    tokens, panel = page.locator("#text .token"), page.locator("#tab-panel")
    for view in ("copied", "plain", "probs"):
        page.locator("#view").select_option(view)
        assert "".join(tokens.all_text_contents()) == text
    expect(page.locator("#prompt-loss")).to_contain_text(re.compile(r"\d\.\d\d nats per token"))
    tokens.nth(20).click()
    expect(page.locator(".hint")).to_have_count(0)  # it has served
    gave = r"gave it [<>]?[\d.]+% \((first choice|choice number \d+)\); with your settings"
    expect(panel).to_contain_text(re.compile(gave))
    expect(panel.locator("tbody tr")).to_have_count(11)
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(21)).to_be_focused()
    top = "document.activeElement.getClientRects()[0].top"
    before = page.evaluate(top)
    page.keyboard.press("ArrowDown")
    assert page.evaluate(top) > before
    page.keyboard.press("ArrowUp")
    assert page.evaluate(top) == pytest.approx(before, abs=1)
    accessible(page)

    open_tab(page, "story")
    expect(page.locator("#legend")).to_contain_text("of this text is copied from the story")
    click(page, ".from-story")
    expect(panel).to_contain_text(re.compile(r"\d+ tokens, from paragraph \d+ of the story"))
    expect(panel.locator("mark.current").first).to_be_in_viewport()
    accessible(page)

    open_tab(page, "attention")
    tokens.nth(20).click()
    expect(panel).to_contain_text(re.compile(r"Layer \d+, head \d+: .* attends to .* [\d.]+%"))
    page.wait_for_function("document.querySelectorAll('#text [style*=background]').length === 21")
    for side in ("offsetLeft", "offsetTop"):  # a grid of layers and heads
        places = f"all => new Set(all.map((e) => e.{side})).size"
        assert page.locator(".thumbnail").evaluate_all(places) == 12
    styles = tokens.evaluate_all("all => all.map((e) => e.style.background)")
    page.locator(".thumbnail:checked").press("ArrowLeft")
    assert tokens.evaluate_all("all => all.map((e) => e.style.background)") != styles
    accessible(page)

    open_tab(page, "layers")
    expect(panel.locator("tbody tr")).to_have_count(13)
    accessible(page)

    open_tab(page, "next")
    expect(panel.locator("tbody tr")).to_have_count(11)
    before = panel.locator("td:last-child").all_text_contents()
    panel.get_by_label("Temperature, slider").press("End")
    page.wait_for_function("page.state.settings.temperature === 5")  # also for the next text
    expect(panel.locator("td:last-child")).not_to_have_text(before)
    accessible(page)
    page.keyboard.press("Escape")
    assert page.locator("#panel").is_visible() == (size == "laptop")
    for menu in ("#share", "#settings-button"):
        click(page, menu)
        accessible(page)


@BOTH
def test_guess_the_next_word(page):
    settle(page, temperature=0)
    page.locator("#card-guess").press("Enter")
    expect(page.locator("#stop, #continue")).to_be_focused()  # not the body
    click(page, ".options button", "#reveal")
    expect(page.locator("#tab-panel")).to_be_focused()
    finished(page)
    assert page.evaluate("page.state.documents.length") == 1
    score = page.locator("#score")
    expect(score).to_have_text(re.compile(r"The model gave .* bits\. It wrote \w+"))
    expect(page.locator("#tab-panel tbody tr")).to_have_count(11)
    expect(page.locator(".gap")).to_have_text(page.evaluate("page.wordAt(page.pause())"))
    accessible(page)
    hidden = page.evaluate("page.textOf(page.document(), page.pause())")
    shown = "".join(page.locator("#text .token").all_text_contents())
    assert shown + hidden == text_of(page) and len(hidden) > 50
    click(page, "#next-guess")
    expect(page.locator("#tab-panel")).to_be_focused()
    word = page.evaluate("page.wordAt(page.pause())")  # at temperature 0, it is certain of it
    page.locator("#guess").fill(word)
    accessible(page)
    page.keyboard.press("Enter")
    expect(score).to_contain_text(re.compile(rf"{word} (>?\d\d|100)%: a surprise of 0"))
    open_tab(page, "word")
    assert "".join(page.locator("#text .token").all_text_contents()) == text_of(page)


def bar(page: Page, word: str) -> Locator:
    return page.locator("#revealed tbody tr", has=page.get_by_text(word, exact=True))


def test_a_class_guesses_the_next_word_together(server, open_page):
    """A teacher, and learners who change a guess, come late, reload and write any words."""
    teacher = open_page()
    click(teacher, "#card-guess", "#ask-class")
    asked = teacher.locator("#asked")
    address = asked.locator(".address").text_content()
    expect(asked).to_contain_text("Only this computer can open that address")
    learner = open_page("phone", "dark", link=address.removeprefix(server.url), wait="#class")
    before = teacher.evaluate("page.tokensOf(page.document()).slice(0, page.pause())")
    question = "".join(token["text"] for token in before)
    expect(learner.locator("#class-text")).to_have_text(question + " ? ")
    accessible(learner)
    option = learner.locator(".options button").first.text_content()
    click(learner, ".options button")
    learner.context.set_offline(True)
    learner.evaluate("page.socket.io.engine.close()")
    expect(learner.locator("#reveal")).to_have_attribute("aria-disabled", "true")
    learner.context.set_offline(False)
    expect(learner.locator("#reveal")).to_have_attribute("aria-disabled", "false")
    learner.errors.clear()
    click(learner, "#reveal")
    expect(asked).to_contain_text("1 guess")
    learner.locator("#guess").fill(RTL)
    learner.keyboard.press("Enter")  # a changed guess is one guess
    learner.wait_for_function("mine => page.state.classroom.mine === mine", arg=RTL)
    expect(learner.locator("#reveal")).to_have_text("Change my guess")
    accessible(teacher)
    learner.reload()
    expect(learner.locator("#guess")).to_have_value(RTL)
    teacher.reload()
    expect(asked).to_contain_text("1 guess")
    assert teacher.locator("#revealed").count() == learner.locator("#revealed").count() == 0
    assert teacher.locator("#next-guess").count() == 0  # the guesses would be lost
    click(teacher, "#reveal-class")
    for page in (teacher, learner):
        expect(bar(page, RTL)).to_have_text(f"{RTL}1<0.1%")
        expect(bar(page, option)).to_contain_text(f"{option}0")
        expect(page.locator("#revealed .own")).to_have_count(1)
        accessible(page)
    wrote = teacher.evaluate("page.wordAt(page.pause())")
    expect(learner.locator("#class-text")).to_have_text(f"{question} {wrote} ")
    expect(teacher.locator(".gap")).to_have_text(f" {wrote} ")

    late = open_page()
    late.locator("#join-class input").fill(address[-5:])
    click(late, "#join-class button")
    expect(late.locator("#class")).to_be_visible()
    assert late.locator("#revealed").count() == 0  # the guess comes first
    late.locator("#guess").fill(option)
    click(late, "#reveal")
    for page in (late, teacher):
        expect(bar(page, option)).to_contain_text(f"{option}1")
    expect(late.locator("#class")).to_be_focused()  # not the body

    click(teacher, "#next-guess")  # the next question, at the same address
    teacher.locator("#ask-class").dblclick()
    expect(asked).to_contain_text("0 guesses")
    for page in (learner, late):
        expect(page.locator("#reveal")).to_have_text("Send my guess")
        expect(page.locator("#guess")).to_have_value("")
    click(late, "#leave-class")
    expect(late.locator("#starters button")).to_have_count(4)
    settle(teacher, temperature=5, top_k=0)
    click(teacher, "#again")  # another word is there now
    expect(asked).to_contain_text("still guessing the word after")
    click(teacher, "#reveal-class")
    expect(teacher.locator("#revealed")).to_be_visible()
    assert teacher.evaluate("page.state.classroom.bars.every(({ prob }) => prob > 0)")
    expect(teacher.locator("#ask-class")).to_be_visible()
    damaged = open_page(link="/?class=x", wait="#leave-class")
    expect(damaged.locator("h1")).to_have_text("No such class")
    accessible(damaged)
    damaged.goto(server.url)
    expect(damaged.locator("#join-class")).to_be_visible()


@pytest.mark.parametrize("size", SIZES)
def test_the_panel_covers_neither_the_token_nor_the_toolbar(open_page, size):
    page, narrow = open_page(size), size in ("phone", "zoomed")
    generate(page, temperature=0, max_new_tokens=500)
    tokens = page.locator("#text .token")
    count = tokens.count()
    assert count > 500
    expect(page.locator(".hinted")).to_be_in_viewport()
    assert box(page, ".hinted").top >= box(page, ".toolbar").bottom
    page.emulate_media(media="print")
    expect(page.locator("#settings-line")).to_be_hidden()
    whole = page.locator("#text").evaluate("e => e.offsetHeight")
    assert page.evaluate("document.documentElement.scrollHeight") > whole
    page.emulate_media(media="screen")
    for index in (1, 9, 60, 200, 350, count - 30, count - 1):
        tokens.nth(index).click()
        expect(page.locator("#tab-panel tbody tr")).to_have_count(11)
        page.evaluate("new Promise((seen) => requestAnimationFrame(() => setTimeout(seen)))")
        token, panel = box(page, f"[data-index='{index}']"), box(page, "#panel")
        toolbar = box(page, ".toolbar")
        if not narrow:
            assert token.right <= box(page, ".document").right <= panel.left
        assert 0 <= toolbar.top < toolbar.bottom <= token.top
        assert token.bottom <= (panel.top if narrow else SIZES[size][1])
        assert panel.bottom <= SIZES[size][1]
        page.keyboard.press("Escape")
        if narrow:
            expect(page.locator("#panel")).to_be_hidden()
            expect(tokens.nth(index)).to_be_focused()
    click(page, "#edit")  # the text is edited at its end
    expect(page.locator("#continue")).to_have_text("Continue from here")
    assert 0 < box(page, "#continue").top < box(page, "#edited").bottom < SIZES[size][1]
    if size == "phone":
        click(page, "#edit", "#new")
        targets = "button, a, select, input:not([type=radio])"
        heights = "all => all.filter((e) => e.checkVisibility()).map((e) => e.offsetHeight)"
        assert min(page.locator(targets).evaluate_all(heights)) >= 40
        page.locator(".starter").first.dblclick()  # begins one text
        finished(page)
        again(page)
        expect(page.locator(".versions")).to_contain_text("2/2")
        click(page, "#look-inside", "#tab-next", "#share")
        assert min(page.locator(targets).evaluate_all(heights)) >= 40
        cut = "all => all.filter((e) => e.scrollWidth > e.clientWidth).length"
        assert page.locator(".tabs button").evaluate_all(cut) == 0
        page.keyboard.press("Escape")  # closes only the menu
        expect(page.locator("#sharing")).to_be_hidden()
        expect(page.locator("#panel")).to_be_visible()


def test_the_panel_follows_the_pointer(page):
    generate(page, max_new_tokens=20)
    tokens, gave = page.locator("#text .token"), page.locator("#gave .label")
    labels = page.evaluate("page.tokensOf(page.document()).map((token) => token.label)")
    for pinned in (False, True):
        tokens.nth(12).hover()
        expect(gave).to_have_text(labels[12])
        page.mouse.move(600, 10)  # out of the text
        expect(gave).to_have_text(labels[5 if pinned else 12])
        tokens.nth(5).click()


@BOTH
def test_changed_settings_apply_and_reset_resets(page):
    default = page.locator("#settings-button").text_content()
    assert default.startswith("Settings: temperature 1, top-k 50, 120 tokens")
    beside = box(page, "#chat-input").top - box(page, "#settings-line").bottom
    assert 0 < beside < 50  # also on a page that is not full
    click(page, "#settings-button")
    page.get_by_label("Tokens, slider").press("Home")
    page.get_by_label("Tokens, slider").press("ArrowRight")
    expect(page.locator("#set-max_new_tokens")).to_have_value("2")
    for unusable in ("eleven", "-1", "9" * 19):
        page.locator("#set-seed").fill(unusable)
        expect(page.locator("#seed-note")).to_contain_text("Using a random seed")
    accessible(page)
    click(page, "#reset")
    expect(page.locator("#set-seed")).to_have_value("")
    page.locator("#set-max_new_tokens").fill("5")
    page.locator("#set-temperature").fill("0,7")
    page.locator("#set-seed").fill("9" * 18)
    expect(page.locator("#seed-note")).to_have_text("")
    generate(page, "The old clock")
    for fact in ("5 tokens", "temperature 0.7", "seed " + "9" * 18):
        expect(page.locator(".facts")).to_contain_text(fact)
    click(page, "#settings-button")
    page.get_by_role("button", name="Most likely").click()
    expect(page.locator("#set-top_k, #set-top_p, #set-seed")).to_have_count(0)  # without effect
    click(page, "#again")
    expect(page.locator(".facts")).to_contain_text(re.compile(r"temperature 0(?!\.)"))
    click(page, "#settings-button", "#reset")
    assert page.locator("#settings-button").text_content() == default
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    expect(page.locator("#settings-button")).to_be_focused()


def test_a_reload_brings_everything_back(page):
    generate(page, temperature=0, max_new_tokens=20, seed="3")
    again(page)
    text = text_of(page)
    page.reload()
    expect(page.locator(".versions")).to_contain_text("2/2")
    assert text_of(page) == text
    assert page.evaluate("page.state.settings.seed") == "3"
    page.wait_for_function("page.socket?.connected")
    click(page, "#continue")
    page.wait_for_function("length => page.text().length > length", arg=len(text))
    finished(page)
    page.evaluate(
        "const tokens = Array(70_000).fill({ id: 1, text: 'a', label: 'a' });"  # too many to store
        "page.set({ documents: [page.newDocument('long', tokens), ...page.state.documents] })"
    )
    page.reload()
    expect(page.locator(".versions")).to_contain_text("2/2")
    for junk in ("{", '{"documents": [5, {"root": {"tokens": [1]}}], "settings": "x"}'):
        page.evaluate(
            "junk => addEventListener('pagehide', () => localStorage.setItem('story-page', junk))",
            junk,
        )
        page.reload()
        expect(page.locator("#starters button")).to_have_count(4)


# 2. Every other action ----------------------------------------------------------------------


def test_streaming_stop_continue_again_and_back(page):
    settle(page, temperature=5, top_k=0, max_new_tokens=500, seed="11")
    seen = 0
    page.evaluate(
        "void page.subscribe(() => { const idle = page.state.running === null;"
        " page.was_busy ||= !idle; page.was_idle ||= page.was_busy && idle; })"
    )
    page.locator("#chat-input").fill("The old clock")
    click(page, "#chat-submit")
    for _ in range(3):  # the text grows while it is generated
        page.wait_for_function("seen => page.document() && page.text().length > seen", arg=seen)
        seen = len(text_of(page))
    assert not page.evaluate("page.was_idle")
    click(page, "#stop")
    expect(page.locator(".facts")).to_contain_text("stopped")
    expect(page.locator(".facts")).to_contain_text("seed 11")

    settle(page, max_new_tokens=5)
    text = text_of(page)
    click(page, "#continue")
    # The line of the stopped text may begin with the same number.
    expect(page.locator(".facts")).to_have_text(re.compile("^5 tokens(?!.*stopped)"))
    expect(page.locator("#continue")).to_be_focused()
    longer = text_of(page)
    assert longer.startswith(text) and len(longer) > len(text)
    again(page)
    expect(page.locator(".versions")).to_contain_text("2/2")
    assert text_of(page).startswith(text) and text_of(page) != longer  # another seed
    page.get_by_label("Previous version").click()
    expect(page.locator(".versions")).to_contain_text("1/2")
    assert text_of(page) == longer
    page.evaluate("page.onTokens({ run: 'x', tokens: [], people: 12 })")
    expect(page.locator("#settings-line")).to_contain_text("12 people are writing")


@BOTH
def test_another_token_can_be_chosen(page):
    generate(page, temperature=0, max_new_tokens=20)
    before, count = text_of(page), page.locator("#text .prompt").count()
    label = choose_another(page, 15)
    for version in ("2/2", "3/3", "4/4"):  # Try again and a reload keep the token
        expect(page.locator(".versions")).to_contain_text(version)
        labels = page.evaluate("page.tokensOf(page.document()).map((token) => token.label)")
        assert labels[15] == label and len(labels) == 15 + 1 + 20
        if version == "3/3":
            page.reload()
            page.wait_for_function("page.socket?.connected")
        again(page)
    page.get_by_label("Next version").click()
    assert text_of(page) == before

    choose_another(page, 3)  # in the prompt
    assert page.locator("#text .prompt").count() == 4  # three, and the chosen one
    page.get_by_label("Next version").first.click()
    assert page.locator("#text .prompt").count() == count


def test_changing_one_word_editing_and_undo(page):
    settle(page, temperature=1.5, seed="1", max_new_tokens=30)
    click(page, "#card-change")
    expect(page.locator("tr.own, tr:has-text('all others')").first).to_be_visible()  # of the hint
    finished(page)
    first = text_of(page)
    click(page, "#edit")
    accessible(page)
    for losing in ("#new", ".alternative"):  # what would lose the edit
        expect(page.locator(losing).first).to_have_attribute("aria-disabled", "true")
    page.keyboard.press("Escape")
    expect(page.locator("#edit")).to_be_focused()
    click(page, "#edit")
    page.locator("#edited").fill("")
    click(page, "#continue")
    expect(page.locator(".toolbar .problem")).to_contain_text("before the cursor")
    page.locator("#share").press("Escape")  # wherever the focus is
    expect(page.locator("#edited, .toolbar .problem")).to_have_count(0)
    page.locator("#text .token").nth(1).press("x")  # typing into the text
    expect(page.locator("#edited")).to_have_value(re.compile("^Everyone knewx who"))
    page.keyboard.type("able a")
    click(page, "#continue")
    expect(page.locator(".versions")).to_contain_text("2/2")
    finished(page)
    assert text_of(page).startswith("Everyone knewxable a")
    assert page.locator("#text .prompt").all_text_contents()[0] == "Everyone"
    page.locator("#text .token").first.press("ControlOrMeta+z")
    assert text_of(page) == first
    page.locator("#text .token").nth(1).dblclick()
    assert page.evaluate("getSelection().toString()").strip() == "knew"


def test_unlikely_prompt_tokens_have_a_rank_and_buttons_survive_failures(page):
    generate(page, "Everyone zebra", max_new_tokens=5)
    page.locator("#text .token").nth(1).click()
    unlikely = re.compile(r"<0.1% \(choice number \d{3,}\)")
    expect(page.locator("#gave")).to_contain_text(unlikely)
    for failure in (  # no answer; an action that raised an error
        lambda route: route.abort(),
        lambda route: route.fulfill(json={"success": True}),
    ):
        page.route("**/project/action", failure)
        again(page, "#continue")
        page.unroute("**/project/action")
    page.errors.clear()
    click(page, "#continue")
    page.wait_for_function("page.tokensOf(page.document()).filter((t) => t.seen).length === 10")


def write_long(page: Page, then: str = "0") -> None:
    """Begin a text of 150 tokens; when some are there, run `then` before there are more."""
    settle(page, temperature=5, top_k=0, max_new_tokens=150)
    page.locator("#chat-input").fill("The old clock")
    click(page, "#chat-submit")
    page.wait_for_function(f"{SOME} && ({then}, true)")


SOME = "page.document() && page.idsOf(page.document()).length > 20"
ALL = "page.tokensOf(page.document()).filter(page.isGenerated).length === 150"
LOSE = "page.socket.io.reconnection(false), page.socket.io.engine.close()"  # for good


def test_killed_in_the_middle_and_started_again_the_app_goes_on(open_page, tmp_path):
    copy_app(tmp_path)
    with serving(tmp_path) as server:
        page = open_page("phone", server=server)
        write_long(page)
        click(page, "#look-inside")
        server.process.kill()
        lost = page.locator("#offline")
        expect(lost).to_contain_text("Connection lost. Trying again …")
        assert lost.evaluate(  # the sheet does not cover it
            "e => { const { x, y } = e.getBoundingClientRect();"
            " return document.elementFromPoint(x + 9, y + 9) === e }"
        )
        accessible(page)
    with serving(tmp_path, port=int(server.url.rsplit(":")[-1])):
        page.wait_for_function(ALL)
        page.errors.clear()
        for part in ("#text", ".toolbar", "#settings-line", "#panel"):
            expect(page.locator(part)).to_have_count(1)
        page.evaluate("page.change({ max_new_tokens: 5 }); page.goOn()")
        page.wait_for_function(ALL.replace("150", "155"))
        assert page.errors == []
        page.close()  # before the server ends, which the page would report


def test_a_text_goes_on_after_lost_connections(page):
    page.evaluate("""() => { // two, and meanwhile other settings
      const lengths = [30, 60];
      page.subscribe(() => {
        if (!page.state.running || !(page.idsOf(page.document()).length >= lengths[0])) return;
        lengths.shift();
        page.change({ max_new_tokens: 5, temperature: 0 });
        setTimeout(() => page.socket.io.engine.close());
      });
    }""")
    write_long(page)
    page.wait_for_function(ALL)
    expect(page.locator(".facts").last).to_contain_text("temperature 5")
    expect(page.locator("#offline")).to_have_count(0)
    expect(page.locator("#continue")).to_be_visible()
    page.evaluate("""() => { // a request fails just before the socket closes
      const { fetch } = window;
      window.fetch = () => ((window.fetch = fetch), Promise.reject(new TypeError('lost')));
      page.change({ max_new_tokens: 150 });
      page.goOn();
      setTimeout(() => page.socket.io.engine.close());
    }""")
    page.wait_for_function(ALL.replace("150", "300"))
    page.errors.clear()


def test_a_prompt_and_stop_at_the_moment_of_a_loss(page):
    settle(page, max_new_tokens=500)
    page.locator("#chat-input").fill(PROMPT)
    close = "setTimeout(() => page.socket.io.engine.close())"
    page.evaluate(f"document.getElementById('chat-submit').click(); {close}")
    back = "page.socket.once('ready', () => (page.back = true))"
    page.wait_for_function(f"{SOME} && (page.stop(), {back}, {close}, true)")
    page.wait_for_function("page.back")
    expect(page.locator(".facts")).to_contain_text("stopped")
    expect(page.locator("#continue")).to_have_text("Continue")
    assert page.evaluate("page.pieces(page.document()).length") == 2  # the prompt and one
    page.errors.clear()


def test_another_text_during_a_loss(page):
    write_long(page, LOSE)
    lost = page.locator("#offline")
    expect(lost).to_contain_text("Your text will continue")
    click(page, "#new")
    expect(lost).not_to_contain_text("will continue")
    expect(page.locator(".card").first).to_be_disabled()  # each click would begin a text later
    page.evaluate("void page.socket.io.reconnection(true).connect()")
    expect(page.locator(".card").first).to_be_enabled()
    page.wait_for_function("page.state.documents[0].root.children[0].facts.length")
    assert not [error for error in page.errors if "undefined" in error]
    click(page, "#earlier .starter", "#edit")
    page.evaluate(f"void ({LOSE})")
    expect(lost).to_have_count(1)
    click(page, "#edit")  # Cancel
    expect(page.locator("#edited")).to_have_count(0)


def test_the_focus_is_never_nowhere(page):
    settle(page, max_new_tokens=20)
    page.locator("#chat-input").fill(PROMPT)
    page.keyboard.press("Enter")  # hides the input
    finished(page)
    expect(page.locator("#continue")).to_be_focused()
    page.locator("#text .token").last.click()
    settle(page, max_new_tokens=2)
    again(page)
    expect(page.locator("#text .token[tabindex='0']")).to_have_count(1)  # of fewer tokens
    page.on("dialog", lambda dialog: dialog.accept())
    click(page, "#new")
    generate(page)
    click(page, "#new")
    expect(page.locator("#chat-input")).to_be_focused()
    for place in ("#earlier", ".start"):  # after one of two texts, and after the last
        page.get_by_label(re.compile("^Delete")).first.press("Enter")
        expect(page.locator(place)).to_be_focused()


def test_two_tabs_and_the_list_of_texts(page):
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator("#starters button").first).to_be_visible()
    page.evaluate(
        "const ids = [...Array(20).keys()];"  # as many as are stored
        "const text = (i) => page.newDocument(`${i}`, [{ id: 1, text: 'a', label: 'a' }]);"
        "page.set({ documents: ids.map(text), shown: '0' })"
    )
    generate(other, "On Thursday there was fog.", max_new_tokens=5)
    other.wait_for_function("localStorage.getItem('story-page')?.includes('per second')")
    page.evaluate("page.set({}); dispatchEvent(new Event('pagehide'))")  # stores its own again
    other.reload()
    click(other, "#new")
    expect(other.locator("#chat-input")).to_be_focused()
    expect(other.locator("#earlier li")).to_have_count(20)
    accessible(other)
    other.once("dialog", lambda dialog: dialog.accept("My text"))
    other.get_by_label("Rename “On Thursday").click()
    expect(other.locator("#earlier")).to_contain_text("My text")
    other.on("dialog", lambda dialog: dialog.accept())
    other.get_by_label("Delete “My text”").click()
    expect(other.locator("#earlier li")).to_have_count(19)
    click(other, "#clear")
    expect(other.locator("#earlier")).to_have_count(0)
    other.wait_for_function("JSON.parse(localStorage['story-page']).documents.length === 0")
    page.evaluate("page.set({}); dispatchEvent(new Event('pagehide'))")
    other.reload()  # the first tab does not bring them back
    expect(other.locator("#starters button")).to_have_count(4)
    expect(other.locator("#earlier")).to_have_count(0)


def test_without_storage_the_page_works_and_says_so(open_page):
    page = open_page(
        script="""for (const name of ['localStorage', 'sessionStorage'])
      Object.defineProperty(window, name, {
        configurable: true, get() { throw new DOMException('no', 'SecurityError') } })"""
    )
    generate(page, max_new_tokens=5)
    click(page, "#new")
    expect(page.locator("#earlier li")).to_have_count(1)
    expect(page.locator("#not-stored")).to_contain_text("does not store your texts")
    page.locator("#join-class input").fill("x")
    click(page, "#join-class button")
    expect(page.locator("h1")).to_have_text("No such class")


def test_what_is_typed_while_the_page_loads_stays(page):
    page.locator("#chat-input").fill("The old cl")
    page.evaluate("""() => { // as Chainlit does: another element in its place
      const old = document.getElementById('chat-input'), now = old.cloneNode();
      old.replaceWith(now);
    }""")
    expect(page.locator("#chat-input")).to_have_value("The old cl")
    expect(page.locator("#chat-input")).to_be_focused()


def test_without_weights_the_start_says_what_to_do(open_page, tmp_path):
    weights = tmp_path / WEIGHTS
    with serving(copy_app(tmp_path, weights=None)) as server:
        page = open_page(server=server)
        problem = page.locator(".start .problem")
        for said in ("no weights at", "is damaged"):
            message = re.compile(f"{said}.*python -m support.lesson", re.DOTALL)
            expect(problem).to_contain_text(message)
            assert WEIGHTS in problem.text_content()
            assert box(page, ".start .problem").bottom < SIZES["laptop"][1]
            for button in page.locator(".card, .starter").all():
                expect(button).to_be_disabled()
            accessible(page)
            page.evaluate("page.set({ problem: null })")
            page.locator("#chat-input").fill(PROMPT)
            click(page, "#chat-submit")
            expect(problem).to_contain_text(message)
            weights.write_bytes((ROOT / WEIGHTS).read_bytes()[:100_000])
            page.reload()
        weights.unlink()
        weights.symlink_to(ROOT / WEIGHTS)
        page.reload()
        generate(page, max_new_tokens=1)  # without a restart
        page.close()


@BOTH
def test_drafts_and_comparison(page):
    generate(page, temperature=0, max_new_tokens=40)
    expect(page.locator(".facts")).to_contain_text(re.compile(r"\d+ from drafts"))
    page.locator("#view").select_option("drafts")
    expect(page.locator("#text .from-draft").first).to_be_visible()
    open_tab(page, "compare")
    page.locator("#panel").get_by_label("Temperature, slider").nth(2).press("End")
    click(page, "#run-compare")
    shares = page.locator(".compared .legend")
    expect(shares).to_contain_text(["100% of this text is copied", *["of this text is copied"] * 2])
    accessible(page)
    third = page.locator(".compared .prose").nth(2).text_content()
    page.get_by_role("button", name="Keep this one").nth(2).dblclick()
    expect(page.locator(".versions")).to_contain_text("2/2")
    assert text_of(page) == PROMPT + third
    expect(page.locator(".facts")).to_contain_text("temperature 5")
    expect(page.locator("#view")).to_have_value("plain")  # this text has no drafts
    page.get_by_label("Previous version").click()
    expect(page.locator(".compared .prose")).to_have_count(3)  # the same beginning
    click(page, "#undo")
    expect(page.locator("#undo")).to_have_attribute("aria-disabled", "true")
    expect(page.locator(".versions")).to_have_count(0)
    page.evaluate("page.choose(0, { id: 9360, text: 'Her', label: 'Her' })")  # another beginning
    finished(page)
    expect(page.locator(".compared .prose")).to_have_count(0)


def test_copy_download_and_a_link_to_exactly_this(page, open_page, server):
    generate(page, "The old clock \U0001f570", temperature=2, max_new_tokens=30)
    again(page)
    text = text_of(page)
    click(page, "#share", "#copy")
    expect(page.locator("#copy")).to_have_text("Copied")
    clipboard = "navigator.clipboard.readText()"
    assert page.evaluate(clipboard) == text
    with page.expect_download() as download:
        click(page, "#save")
    assert Path(download.value.path()).read_text(encoding="utf-8") == text
    page.evaluate("getSelection().selectAllChildren(document.getElementById('text'))")
    page.keyboard.press("ControlOrMeta+c")
    copied = page.evaluate(clipboard)  # without versions and the signs for line ends
    assert copied.rstrip() == text.rstrip()
    page.locator("#text .token").nth(6).click()
    open_tab(page, "attention")
    click(page, "#share", "#link")
    expect(page.locator("#link")).to_have_text("Link copied")
    other = open_page(link=page.evaluate(clipboard).removeprefix(server.url), wait="#text")
    expect(other.locator("#tab-attention")).to_have_attribute("aria-selected", "true")
    expect(other.locator("[data-index='6']")).to_have_attribute("aria-pressed", "true")
    assert text_of(other) == text
    other.get_by_label("Previous version").click()
    page.get_by_label("Previous version").click()
    assert text_of(other) == text_of(page) != text
    for junk in ("junk", "eyJyb290IjpbWzk5OTk5OV0sMSxbXSwwXX0"):
        damaged = open_page(link=f"/#text={junk}")
        expect(damaged.locator(".start .problem")).to_contain_text("This link is damaged")
        damaged.errors.clear()  # the server refuses unknown ids


def test_a_double_click_or_a_held_key_acts_once(page):
    generate(page, max_new_tokens=5)
    again(page, "#continue")
    text = text_of(page)
    page.locator("#edit").dblclick()
    expect(page.locator("#edited")).to_be_visible()  # not "Try again", in its place by now
    page.locator("#edit").dblclick()
    expect(page.locator("#edited")).to_have_count(0)
    assert text_of(page) == text  # not Undo
    page.locator("#undo").dblclick()
    assert text_of(page) != text
    page.locator("#share").dblclick()
    expect(page.locator("#sharing")).to_be_visible()  # not closed again
    page.keyboard.press("Escape")
    settle(page, max_new_tokens=150)
    page.locator("#continue").focus()
    page.keyboard.down("Enter")
    expect(page.locator("#stop, #continue")).to_be_focused()
    page.keyboard.down("Enter")  # held: not Stop
    page.keyboard.up("Enter")
    finished(page)
    expect(page.locator(".facts")).to_have_text(re.compile("^150 tokens(?!.*stopped)"))


def test_comparing_stops_offline(page):
    generate(page, max_new_tokens=5)
    open_tab(page, "compare")
    settle(page, max_new_tokens=500)
    click(page, "#run-compare")
    page.wait_for_function("page.state.compared?.[2].tokens.length")
    page.context.set_offline(True)
    page.evaluate("page.socket.io.engine.close()")
    expect(page.locator("#offline")).not_to_contain_text("will continue")
    for button in page.locator("#panel button.primary, .compared button").all():
        expect(button).to_have_attribute("aria-disabled", "true")
        button.click(force=True)
    assert page.evaluate("page.state.compared[2].tokens.length")
    assert page.locator(".versions").count() == 0
    page.context.set_offline(False)
    expect(page.locator("#offline")).to_have_count(0)
    late = "page.onTokens({ run: page.state.compared[2].run, tokens: [] })"
    assert page.evaluate(f"({late}, page.state.running)") is None  # nothing would end it
    page.errors.clear()


def test_guess_follows_a_changed_text(page):
    settle(page, seed="3", max_new_tokens=30)
    click(page, "#card-guess", ".options button", "#reveal")
    expect(page.locator("#score")).to_be_visible()
    finished(page)
    settle(page, temperature=5, top_k=0, max_new_tokens=2)
    open_tab(page, "word")
    open_tab(page, "guess")
    expect(page.locator("#score")).to_contain_text("The model gave")  # not asked again
    again(page)
    expect(page.locator("#tab-panel")).to_have_text(re.compile("^No more words|The text stops"))
    expect(page.locator("#score")).to_have_count(0)
    click(page, "#undo")
    expect(page.locator(".gap")).to_have_text(" ? ")
    assert page.evaluate("/^ \\p{L}/u.test(page.tokensOf(page.document())[page.pause()].text)")


def test_two_tabs_with_the_same_text(page):
    generate(page, max_new_tokens=5)
    page.wait_for_function("localStorage['story-page']?.includes('per second')")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator("#undo")).to_be_visible()
    again(other, "#continue")
    text = text_of(other)
    page.wait_for_function("text => page.text() === text", arg=text)
    again(page, "#continue")
    assert text_of(page).startswith(text)
    other.wait_for_function("text => page.text() === text", arg=text_of(page))


def test_an_override_of_the_direction_ends_with_its_text(page):
    generate(page, f"abc {RTL} said", max_new_tokens=5)
    page.locator("#text .token").last.click()
    assert box(page, ".quote b").left >= box(page, ".quote bdi").right - 1
    again(page)
    assert box(page, ".versions").left >= box(page, "#text > span").right - 1
    asked = {"teaching": False, "number": 1, "text": f"abc {RTL}", "options": [], "guesses": 0}
    page.evaluate("classroom => page.set({ shown: null, classroom })", asked)
    assert box(page, ".gap").left >= box(page, "#class-text bdi").right - 1


# 3. Other models and stories ----------------------------------------------------------------

CLOCK = "\U0001f570\ufe0f"
STORY = f"""{CLOCK} The old clock \U0001f389 had all stopped {CLOCK} again, and nobody knew why.

鐘停了,沒有人知道為什麼。 \U0001f389 On Thursday there was fog {CLOCK} in the lane."""


@pytest.fixture(scope="module", params=[64, pytest.param(512, marks=pytest.mark.long)])
def other_app(request, browser, tmp_path_factory):
    """Return an app with a tiny model, a padded vocabulary and other limits."""
    config = {"vocab_size": 50304, "context_length": request.param, "emb_dim": 64, "n_layers": 3,
              "n_heads": 4}  # fmt: skip
    torch.manual_seed(0)
    model = GPTModel(GPT_CONFIG_124M | config)
    with torch.no_grad():
        model.out_head.weight *= 20  # tokens differ in probability
        model.final_norm.shift.fill_(1)
        model.out_head.weight[50257:] = 15 / 64  # the padding is among the most probable
        for block in model.trf_blocks:
            block.att.W_query.weight *= 50  # tokens differ in attention
            block.att.W_key.weight *= 50
    folder = tmp_path_factory.mktemp("other")
    weights, story = folder.with_suffix(".pth"), folder.with_suffix(".txt")
    save_weights(model, weights)
    story.write_text(STORY, encoding="utf-8")
    copy_app(folder, None, 'LIMITS["max_new_tokens"] |= {"max": 30, "default": 25}\n')
    with serving(folder, APP_WEIGHTS=str(weights), APP_STORY=str(story)) as server:
        server.model = load_model(weights, dtype=torch.int8)
        server.config = server.model.cfg
        yield server


def numbers(page: Page, pattern: str, start: int, end: int) -> list[float]:
    """Return the number that `pattern` finds in each token's accessible name, or nan."""
    names = page.locator("#text .token").evaluate_all("all => all.map((e) => e.ariaLabel)")
    found = [re.search(pattern, name) for name in names[start:end]]
    return [float(m[1].replace("<0.1", "0")) if m else math.nan for m in found]


def test_the_page_follows_the_apps_context_and_limits(other_app, open_page):
    page, context = open_page(server=other_app), other_app.config["context_length"]
    starters = page.locator("#starters button").all_text_contents()
    assert starters and all(starter in " ".join(STORY.split()) for starter in starters)
    click(page, "#settings-button")
    expect(page.locator("#settings-button")).to_contain_text("25 tokens")
    page.locator("#set-max_new_tokens").fill("99")
    page.locator("#set-max_new_tokens").blur()
    expect(page.locator("#set-max_new_tokens")).to_have_value("30")
    prompt = " ".join(f"The clock struck {i} and" for i in range(930))  # 20,500 characters
    generate(page, prompt, temperature=0, max_new_tokens=20)
    legend = page.locator("#legend")
    expect(legend).to_contain_text("Grey: too far back for the model to read")
    expect(legend).to_contain_text("beginning was cut off")
    assert prompt.endswith(
        page.evaluate("page.textOf({ root: { ...page.document().root, children: [] } })")
    )
    ids = page.evaluate("page.idsOf(page.document())")
    end = len(ids) - 20
    assert end > 512
    expect(page.locator("#text .token.unread")).to_have_count(len(ids) - context)

    open_tab(page, "guess")  # what the model reads before the gap is not grey
    stop = page.evaluate("page.pause() ?? page.promptOf(page.document()).length")
    expect(page.locator("#text .token.unread")).to_have_count(stop - context)
    assert box(page, ".gap").top >= box(page, ".toolbar").bottom
    expect(page.locator(".gap")).to_be_in_viewport()
    open_tab(page, "word")
    page.locator("#view").select_option("probs")
    expect(page.locator("#prompt-loss")).to_be_visible()
    accessible(page)
    read = ids[end - context : end]
    ranks = [token["rank"] for token in scores(other_app.model, read)["tokens"]]
    shown = numbers(page, r"rank (\d+)", end - context + 1, end)
    assert shown == pytest.approx(ranks, rel=0.1, abs=3)

    page.locator("#text .token").nth(end - 1).click()
    open_tab(page, "attention")
    heads = other_app.config["n_layers"] * other_app.config["n_heads"]
    expect(page.locator(".thumbnail")).to_have_count(heads)
    click(page, "text=Average")
    weights = attention_weights(other_app.model, torch.tensor([read]))[:, :, -1].mean((0, 1))
    page.wait_for_function("document.querySelector('#text [aria-label*=attention]')")
    shown = numbers(page, r"attention (<?[\d.]+)%", end - context, end)
    assert shown == pytest.approx((100 * weights).tolist(), abs=0.6)
    accessible(page)

    open_tab(page, "word")
    for index in (end, end + 10, end + 19):  # at temperature 0
        page.locator("#text .token").nth(index).click()
        expect(page.locator("#gave")).to_contain_text("first choice")
        expect(page.locator("#tab-panel tbody tr").first).to_have_class("own")


def test_a_story_may_have_any_characters(other_app, open_page):
    page = open_page(server=other_app)
    middle, end = " old clock \U0001f389 had all stopped \U0001f570\ufe0f again", STORY[-30:]
    # Each emoji is several tokens. Others, which share some of these, count as copied.
    partial = "\U0001f489 had all stopped \U0001f571"
    copied = {middle: middle, end: end, partial: "\U0001f389 had all stopped \U0001f570"}
    for typed, passage in copied.items():
        generate(page, typed, max_new_tokens=1)
        click(page, "#tab-story", ".from-story")
        mark = page.locator("#story-text mark")
        expect(mark.first).to_be_in_viewport()
        assert passage in page.locator("#story-text").text_content() == STORY
        assert "".join(mark.all_text_contents()) == passage
        click(page, "#new")
    generate(page, STORY, max_new_tokens=1)
    labels = page.evaluate("page.promptOf(page.document()).map((token) => token.label)")
    tokens = tiktoken.get_encoding("gpt2").encode(STORY)
    assert len(set(labels)) == len(set(tokens))
    assert page.evaluate("page.textOf(page.document())").startswith(STORY)


# 4. The page's arithmetic -------------------------------------------------------------------


def test_the_modules_in_node():
    node, _ = compute_driver_executable()  # Playwright's own
    tests = ROOT / "tests" / "page_modules.mjs"
    run = subprocess.run([node, "--test", tests], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_the_page_computes_the_probabilities_of_utils(other_app, open_page, tokenizer):
    page, ids = open_page(server=other_app), tokenizer.encode(PROMPT)
    page.wait_for_function("page.socket?.connected")
    following = page.evaluate("ids => page.request('look', { what: 'next', ids })", ids)
    with torch.no_grad():
        logits = other_app.model(torch.tensor([ids]))[:, -1]
    top = logits[0, [token["id"] for token in following["top"]]] - logits.max()
    assert [token["logit"] for token in following["top"]] == pytest.approx(top.tolist(), abs=1e-4)
    for temperature, top_k, top_p in ((1, 0, 1), (0.3, 50, 1), (2, 0, 0.8), (0, 0, 1), (1, 7, 0.5)):
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        answer = page.evaluate("given => page.nextTokenProbs(...given)", [following, settings])
        probs = next_token_probs(logits, temperature, top_k or None, top_p)
        expected = probs.sort(descending=True).values[0]
        assert answer["probs"] == pytest.approx(expected[:200].tolist(), abs=2e-3)
        assert answer["others"] == pytest.approx(float(expected[200:].sum()), abs=1e-2)  # in groups
