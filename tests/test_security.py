"""Security: text stays text, only public files are served, and other sites' pages are refused.

One app without a password and one with that of support/README.md, both with the shipped weights.
"""

import asyncio
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.parse
from contextlib import suppress
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import aiohttp
import jwt
import pytest
from app_server import Person, awaited, copy_app, need_chainlit, serving
from browser import click, generate, page_opener, running_browser
from conftest import ROOT
from playwright.sync_api import Locator, expect
from socketio.exceptions import ConnectionError

from utils import token_label

browser = pytest.fixture(running_browser, scope="module")
open_page = pytest.fixture(page_opener)

# Characters that change the direction of the following text: overrides, isolates without an end, a
# mark. And characters of no width, one of which combines with the letter before it.
TRICKS = "\u202d\u2066\u200f\u2069\u2067\u202e\u200b\u2060z\u0301"
HOSTILE = """# *Clock* <b>bold</b> <script>document.title = "taken"</script>
<img src=x onerror="document.title = 'taken'"> ![](http://a.example/x.png)
    four spaces  and   three, a_b_c ~~d~~, `code`, [a](javascript:alert(1)), www.example.com
1. :Name &amp; \\* | a | b |

\ttab, caf\u00e9 \U0001f570 <b>the</b>"""

# The app appends the kind of each inspection to a file.
STORY = f"The old clock had stopped again. <i>{TRICKS}</i><img src=x>{TRICKS} Nobody knew why."
MORE = """
def noted(what, view):
    def look(*args):
        with (ROOT / "inspections").open("a") as inspections:
            print(what, file=inspections)
        return view(*args)
    return look

VIEWS |= {what: noted(what, view) for what, view in VIEWS.items()}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = copy_app(tmp_path_factory.mktemp("app"), story=STORY, more=MORE)
    (folder / ".env").write_text("UNUSED='a secret of the file .env'\n")
    with serving(folder, ALLOWED_HOSTS="b.test, Story.test") as server:
        yield server


def inspections(server) -> list[str]:
    file = server.folder / "inspections"
    return file.read_text().split() if file.exists() else []


# 1. The page --------------------------------------------------------------------------------

# The characters of an element as a person reads them: line by line, from left to right.
AS_READ = """element => {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT), found = [];
  for (let node; (node = walker.nextNode()); )
    for (let i = 0; i < node.length; i++) {
      const range = document.createRange();
      range.setStart(node, i);
      range.setEnd(node, i + 1);
      const { left, bottom, width } = range.getBoundingClientRect();
      if (width) found.push({ character: node.data[i], left, line: Math.round(bottom / 8) });
    }
  return found.sort((a, b) => a.line - b.line || a.left - b.left).map((c) => c.character).join('');
}"""


def as_read(element: Locator) -> str:
    return element.evaluate(AS_READ)


@pytest.fixture
def page(open_page, server):
    """The page at a host name that ALLOWED_HOSTS has."""
    return open_page(server=replace(server, url=server.url.replace("127.0.0.1", "story.test")))


def test_text_stays_text_and_does_not_reorder_its_surroundings(server, page):
    title = page.title()
    prompt = f"{HOSTILE} {TRICKS} o'clock. The old clock had stopped again."
    said = TRICKS + HOSTILE + TRICKS  # fits into 90 tokens of four characters: see app_server.py
    (server.folder / "say").write_text(said)
    generate(page, prompt, temperature=0, max_new_tokens=90)
    text, facts = page.locator("#text"), page.locator(".facts")
    assert text.text_content() == prompt + said
    assert re.fullmatch(r"\d+ tokens · [\d.]+ per second · .*", as_read(facts))

    page.locator("#view").select_option("probs")
    expect(page.locator("#prompt-loss")).to_be_visible()
    assert text.text_content() == prompt + said  # the markers of line ends are no text
    gave = page.locator("#gave")
    for token in (0, 1, 2):
        page.locator("#text .token:not(.prompt)").nth(token).click()
        expect(gave).to_contain_text("gave it")
        # The last space of a line is invisible.
        assert "".join(as_read(gave).split()) == "".join(gave.text_content().split())
    quote = page.locator("#tab-panel .quote")
    assert quote.text_content().endswith(said[8:12])

    click(page, "#tab-story", ".from-story")
    story, place = page.locator("#story-text"), page.locator("#tab-panel .legend")
    expect(place).to_contain_text("tokens, from paragraph")
    assert re.fullmatch(r"\d+ tokens, from paragraph \d+ of the story\.", as_read(place))
    expect(story).to_contain_text(f"<i>{TRICKS}</i><img src=x>")
    expect(story.locator("mark.current").first).to_be_visible()
    assert story.locator("img, script, i").count() == 0
    page.locator("#tab-next").click()
    bars = page.locator("#tab-panel")
    expect(bars.locator("tr")).to_have_count(12)
    assert as_read(bars.locator("thead th").first) == "Could come next"
    for element in (text, bars):
        assert element.locator("img, script, i, a:visible, .loading-cursor").count() == 0
    assert page.title() == title


def test_labels_of_tokens_have_no_special_characters(tokenizer):
    for token_id in range(tokenizer.n_vocab):
        label = token_label(token_id, tokenizer)
        assert not re.search("[\x00-\x1f\u200b-\u200f\u2028-\u202e\u2060-\u206f]", label)


HOLD_AN_ARROW_KEY = """async () => {
  for (let i = 0; i < 60; i++) {
    const event = new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true, repeat: true });
    document.activeElement.dispatchEvent(event);
    await new Promise((resume) => setTimeout(resume));
  }
}"""


def test_a_held_arrow_key_asks_for_few_inspections(server, page):
    generate(page, "clock " * 70, max_new_tokens=1)
    before = len(inspections(server))
    page.locator("#text .token").first.click()
    page.evaluate(HOLD_AN_ARROW_KEY)
    expect(page.locator("#text [aria-pressed=true]")).to_have_attribute("data-index", "60")
    expect(page.locator("#tab-panel tbody tr").first).to_be_visible()
    assert len(inspections(server)) - before <= 60  # of 120: two kinds for each token


@awaited
async def test_inspections_of_one_person_delay_nobody_else(server):
    async with Person(server) as busy, Person(server) as other:
        texts = [[464] * 200 + [number] for number in range(60)]
        looks = [busy.act("look", what="attention", ids=ids) for ids in texts]
        looks.insert(30, other.act("look", what="attention", ids=[464]))
        before, asking = len(inspections(server)), asyncio.gather(*looks)
        await other.send("The old clock")
        await other.expect("tokens")
        answers = [answer["response"] for _, answer in await asking]
    assert answers[30]
    answered = len(answers) - answers.count(None)
    assert 2 <= answered == len(inspections(server)) - before <= 20


# 2. Files -----------------------------------------------------------------------------------

found = importlib.util.find_spec("chainlit")  # None if it has no release for this Python
CHAINLIT = Path(found.origin if found else "").parent
OPEN_FOLDERS = {  # folders whose files anybody can fetch
    "/public/": "public",
    "/assets/": CHAINLIT / "frontend" / "dist" / "assets",
    "/copilot/": CHAINLIT / "copilot" / "dist",
}
ROUTES = ("/", "/avatars/", "/favicon/", "/logo/", "/logo?theme=", "/project/", "/project/file/")
CLOSED = ("app.py", "gpt.py", "support/page/server.py", "counted.py", ".env",
          ".chainlit/config.toml", "chainlit.md", "dataset/story.txt",
          "pretrain-story-model.pth")  # fmt: skip


def spellings(path: str) -> set[str]:
    """Return ways to write a path in a request."""
    quoted = urllib.parse.quote(path, safe="").replace(".", "%2E")
    replaced = (("../", "..%2f"), ("../", "....//"), ("../", "..;/"), ("/", "\\"), ("/", "%5C"))
    written = {path.replace(*pair) for pair in replaced}
    written |= {urllib.parse.quote(path), quoted, quoted.replace("%", "%25")}
    return written | {path + "%00.css"}


def targets(server, file: Path) -> set[str]:
    """Return requests that a careless server would answer with the file."""
    found = {f"http://127.0.0.1{file}", f"file://{file}", f"/project/settings?language={file}"}
    for route, folder in (OPEN_FOLDERS | dict.fromkeys(ROUTES, ".")).items():
        name = os.path.relpath(file, server.folder / folder)
        for path in (name, str(file), f"/{file}", f"../{name}", f"../../{name}"):
            found |= {route + spelling for spelling in spellings(path)}
    return found


def test_files_outside_public_cannot_be_fetched(server):
    style = (server.folder / "public" / "style.css").read_bytes()
    assert server.call("GET", "/public/style.css").content == style
    assert server.call("GET", "/public/../public%2Fstyle.css").content == style  # ".." works
    files = [server.folder / name for name in CLOSED]
    files += [Path("/etc/passwd"), CHAINLIT / "server.py"]
    starts = [file.read_bytes()[:60] for file in files]
    for file in files:
        for target in targets(server, file):
            content = server.call("GET", target).content
            assert not any(start in content for start in starts), target


@pytest.mark.parametrize(
    "session", ["..", ".", "", "/nowhere", "../public", "../.files", "a/../..", 5, None]
)
@awaited
async def test_a_session_cannot_have_the_name_of_a_folder(server, session):
    with pytest.raises(ConnectionError):
        await visit(server, session=session)


@awaited
async def test_the_app_writes_no_file_of_a_person(server):
    async with Person(server) as person:
        await person.write(max_new_tokens=1)
        assert not list((server.folder / ".files").glob("*/*"))


@awaited
async def test_the_server_takes_no_long_message_and_by_the_readme_no_compressed_one(server, locked):
    for app, compressed in ((server, True), (locked, False)):
        async with aiohttp.ClientSession() as web:
            socket = await web.ws_connect(app.url + SOCKET + "websocket", compress=15)
            with suppress(OSError):  # the app hangs up before it has read all
                await socket.send_bytes(os.urandom(50 * 10**6))
            while not socket.closed:
                await socket.receive()
            assert bool(socket.compress) == compressed


# 3. The password ----------------------------------------------------------------------------

README = (ROOT / "support" / "README.md").read_text(encoding="utf-8")
(SNIPPET,) = re.findall(r"```python\n(import hmac.*?)```", README, re.DOTALL)
(ENV,) = re.findall(r"```sh\n(APP_PASSWORD.*?)```", README, re.DOTALL)
SECRET = "s" * 64


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    folder = copy_app(tmp_path_factory.mktemp("locked"), more=f"\n{SNIPPET}")
    secrets = {"APP_PASSWORD": "seven minutes", "CHAINLIT_AUTH_SECRET": SECRET}
    (folder / ".env").write_text(ENV)  # other values of these two have priority
    with serving(folder, **secrets) as server:
        yield server


def log_in(server, name: str, password: str = "seven minutes") -> tuple[int, str]:
    """Return the status and the cookie of an answer to a login."""
    form = urllib.parse.urlencode({"username": name, "password": password})
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = server.call("POST", "/login", form, **kind)
    return answer.status, (answer.headers["Set-Cookie"] or "").split(";")[0]


async def visit(server, cookie: str = "", **session: str | None) -> None:
    person = Person(server, cookie)
    person.session = session.get("session", person.session)
    await person.connect()
    await person.client.disconnect()


@awaited
async def test_the_password_lets_in(locked):
    with pytest.raises(ConnectionError):
        await visit(locked)
    assert log_in(locked, "sam", "eight minutes") == (401, "")
    status, cookie = log_in(locked, "sam")
    assert status == 200
    await visit(locked, cookie)
    assert locked.call("GET", "/project/settings", Cookie=cookie).status == 200


FOR_EVERYBODY = {  # the page itself, which shows the login, and what it needs
    ("get", "/{full_path}"), ("head", "/"), ("get", "/health"),
    ("get", "/public/{filename}"), ("get", "/assets/{filename}"), ("get", "/copilot/{filename}"),
    ("get", "/favicon"), ("get", "/logo"), ("get", "/avatars/{avatar_id}"),
    ("get", "/project/translations"), ("get", "/auth/config"), ("post", "/login"),
    # removes the caller's own cookie; sets a cookie that the caller has chosen
    ("post", "/logout"), ("post", "/set-session-cookie"),
    # 400: no such login is configured
    ("get", "/auth/oauth/{provider_id}"), ("get", "/auth/oauth/{provider_id}/callback"),
}  # fmt: skip


def test_no_call_works_without_the_password(locked):
    paths = json.loads(locked.call("GET", "/openapi.json").content)["paths"]
    calls = {(method, path) for path, methods in paths.items() for method in methods}
    assert calls > FOR_EVERYBODY
    for method, path in calls - FOR_EVERYBODY:
        target = re.sub("{.*?}", "x", path) + "?session_id=x"
        answer = locked.call(method.upper(), target, "{}", **JSON)
        assert answer.status in (401, 403), (method, path)


def token(secret: str | None = SECRET, seconds: int = 600, algorithm: str = "HS256") -> str:
    user = {"identifier": "sam", "display_name": None, "metadata": {}}
    return jwt.encode({**user, "exp": int(time.time()) + seconds}, secret, algorithm)


@awaited
async def test_a_token_has_to_be_real(locked):
    real = token()
    head, claims, signature = real.split(".")
    assert locked.call("GET", "/user", Cookie=f"access_token={real}").status == 200
    await visit(locked, f"access_token={real}")
    forgeries = [
        "", "x", token("t" * 64), token(seconds=-600), token(None, algorithm="none"),
        token(algorithm="HS512"), f"{head}.{claims}.",
        f"{head}.{token(seconds=700).split('.')[1]}.{signature}",
    ]  # fmt: skip
    calls = [("GET", "/user"), ("GET", "/project/settings"), ("POST", "/auth/jwt")]
    for forged in forgeries:
        for header in ({"Cookie": f"access_token={forged}"}, {"Authorization": f"Bearer {forged}"}):
            for method, path in calls:
                assert locked.call(method, path, **header).status in (401, 403), forged
        with pytest.raises(ConnectionError):
            await visit(locked, f"access_token={forged}")


@awaited
async def test_a_session_is_for_one_person(locked):
    (_, sam), (_, alex) = log_in(locked, "sam"), log_in(locked, "alex")
    async with Person(locked, sam) as person:
        with pytest.raises(ConnectionError):
            await visit(locked, alex, session=person.session)
        for cookie, status in ((sam, 200), (alex, 401), ("", 401)):
            person.headers["Cookie"] = cookie
            assert (await person.act("story"))[0] == status


# 4. Other sites -----------------------------------------------------------------------------

SOCKET = "/ws/socket.io/?EIO=4&transport="
UPGRADE = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
           "Sec-WebSocket-Key": "MDAwMDAwMDAwMDAwMDAwMA=="}  # fmt: skip
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
LONG = FORM | {"Content-Length": str(10**12)}
CHUNKED = {"Transfer-Encoding": "chunked"}
REQUESTS = [  # the last: the status of the answer to a caller that is let in
    ("GET", "/", None, {}, 200),
    ("GET", "/public/style.css", None, {}, 200),
    ("GET", "/public/nothing", None, {}, 404),
    ("GET", "/project/settings", None, {}, 200),
    ("GET", SOCKET + "polling&j=0", None, {}, 403),
    ("GET", SOCKET + "websocket", None, UPGRADE, 101),
    ("POST", "/logout", b"{}", JSON, 200),
    ("POST", "/project/action", b'{"sessionId": "x", "action": {}}', JSON, 500),
    # Chainlit would store these on disk.
    ("POST", "/project/file?session_id=x", b"--x--", FORM, 403),
    ("PUT", "/project/element", b"{}", JSON, 403),
    ("DELETE", "/project/element", b"{}", JSON, 403),
    # Bodies that may be too long are never sent, so a server that waited for one would not answer.
    ("POST", "/project/action", None, LONG, 403),
    ("POST", "/login", None, LONG, 403),
    ("POST", "/project/action", None, CHUNKED, 403),
    ("POST", "/project/action", None, CHUNKED | {"Content-Length": "5"}, 403),
]
HERE = [
    ("127.0.0.1:8080", "http://127.0.0.1:8080"), ("10.0.0.7", None), ("[::1]:8000", None),
    ("[::1]:8000", "http://[::1]:8000"), ("localhost:8000", "http://localhost:8000"),
    ("story.test", "http://story.test"), ("story.test", "https://story.test"),
    ("story.test", "http://story.test:80"), ("STORY.test:80", "http://story.test"),
    ("story.test:443", "https://story.test"), ("b.test:8080", "https://b.test:8080"),
]  # fmt: skip
ELSEWHERE = [
    *(("127.0.0.1:8080", origin) for origin in ("http://127.0.0.1", "http://127.0.0.1:8081",
      "http://a.example", "http://localhost:8080", "http://127.0.0.1:8080.a.example", "null", "",
      "ftp://127.0.0.1:8080", "http://[", "127.0.0.1:8080")),
    ("story.test:8080", "http://story.test"), ("story.test:80", "https://story.test"),
    *((host, origin) for host in ("a.example", "story.test.a.example", "127.0.0.1.a.example", "[",
      "story.test:x", "") for origin in (None, f"http://{host}")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "origin", "allowed"), [(*h, True) for h in HERE] + [(*e, False) for e in ELSEWHERE]
)
def test_which_requests_are_allowed(server, host, origin, allowed):
    """By host and origin, path and body; every answer restricts the browser."""
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    for method, target, body, more, status in REQUESTS:
        answer = server.call(method, target, body, **headers, **more)
        assert answer.status == (status if allowed else 403), (method, target, more)
        if answer.status != 101:
            assert answer.headers["X-Content-Type-Options"] == "nosniff", target
            policy = answer.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'self' ") and "frame-ancestors 'none'" in policy


def test_a_refusal_is_logged_once_and_names_the_remedy(locked):
    headers = [{"Host": "none.example:8000"}, {"Origin": "http://story.test"}]
    for more in 3 * headers + [{"Host": f"{i}.example"} for i in range(200)]:
        assert locked.call("GET", "/", **more).status == 403
    refusals = [line for line in locked.log.read_text().splitlines() if "Refused" in line]
    (host,) = (line for line in refusals if "'none.example:8000'" in line)
    (origin,) = (line for line in refusals if "'http://story.test'" in line)
    assert "ALLOWED_HOSTS" in host and "proxy_set_header Host $http_host;" in origin
    assert len(refusals) <= 100  # a program could think of new names without end


ATTACKS = (ROOT / "tests" / "attacks.js").read_text().rstrip(";\n")


@pytest.fixture(scope="module")
def other_port():
    """A web server that is not the app."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as site:
        threading.Thread(target=site.serve_forever).start()
        yield site.server_port
        site.shutdown()


@pytest.mark.parametrize("host", ["127.0.0.1", "a.test"])
def test_another_sites_page_cannot_use_the_app(browser, server, locked, other_port, host):
    for app in (server, locked):
        page = browser.new_page()
        # The person has logged in. For cookies, another port is the same site.
        page.context.add_cookies([{"name": "access_token", "value": token(), "url": app.url}])
        page.goto(f"http://{host}:{other_port}/")
        for attack in ("script", "websocket", "image"):
            assert page.evaluate(ATTACKS, [app.url, attack]) == "refused"
        page.set_content(f"<iframe src={app.url}></iframe>")
        frame = page.wait_for_selector("iframe").content_frame()
        frame.wait_for_load_state()
        assert frame.url.startswith("chrome-error:")


def test_the_page_connects_to_no_other_host(server):
    page = server.call("GET", "/").content.decode()  # a policy does not stop `preconnect`
    assert "<link" in page and not re.search("<link[^>]*https?://", page)


def test_a_link_on_another_site_opens_the_page(browser, server, other_port):
    page = browser.new_page()
    page.goto(f"http://a.test:{other_port}/")
    page.evaluate("app => { location = app }", server.url)
    expect(page.locator("#starters button").first).to_be_visible()


# 5. Packages --------------------------------------------------------------------------------

SERVER = (ROOT / "support" / "page" / "server.py").read_text(encoding="utf-8")
MISSING = """
import inspect, pkgutil, sys
import chainlit.session
sessions = inspect.getsource(chainlit.session)
for name in sys.argv[1:]:
    attribute = name.rpartition(".")[2]
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        if "Session." not in name or f"self.{attribute}" not in sessions:
            print(name)
"""


def test_chainlit_has_the_undocumented_names_that_the_server_uses(tmp_path):
    need_chainlit()
    listed = re.findall(r"^    (chainlit\.\S+)$", SERVER, re.MULTILINE)
    for module, names in re.findall(r"^from (chainlit\.\w+) import (.*)", SERVER, re.MULTILINE):
        for name in set(names.split(", ")) - {"config"}:
            assert any(f"{entry}.".startswith(f"{module}:{name}.") for entry in listed), name
    found = subprocess.run(
        [sys.executable, "-c", MISSING, *listed],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not found.stdout, (
        f"support/page/server.py uses names that Chainlit no longer has: {found.stdout}"
    )


@pytest.mark.parametrize("folder", [".", "tests", "benchmarks"])
def test_versions_are_exact(folder):
    lines = (ROOT / folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r'[a-z0-9-]+==\d+(\.\d+)+(; python_version < "3\.\d+")?', line)
