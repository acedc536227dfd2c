"""What nobody may do: run code in a page, reach or leave files, come in without the password.

One app without a password and one with that of support/README.md, both with the shipped weights.
"""

import asyncio
import http.client
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
import uuid
from pathlib import Path

import aiohttp
import jwt
import pytest
from app_server import Person, running_app, running_browser
from conftest import ROOT
from playwright.sync_api import Locator, expect
from socketio.exceptions import ConnectionError

from utils import token_label

expect.set_options(timeout=60_000)

# Signs that turn the direction of all that follows: overrides, isolates that do not end, a mark;
# and signs of no width, one of which sits on the letter before it.
TRICKS = "\u202d\u2066\u200f\u2069\u2067\u202e\u200b\u2060z\u0301"
HOSTILE = """# *Clock* <b>bold</b> <script>document.title = "taken"</script>
<img src=x onerror="document.title = 'taken'"> ![](http://a.example/x.png)
    four spaces  and   three, a_b_c ~~d~~, `code`, [a](javascript:alert(1)), www.example.com
1. :Name &amp; \\* | a | b |

\ttab, caf\u00e9 \U0001f570 <b>the</b>"""

# The app continues, whatever the prompt, its story's first sentence. The story here is the
# usual one, interrupted after every seven words, so that many runs are copied from it.
WORDS = re.findall(r"\s*\S+", (ROOT / "dataset" / "story.txt").read_text(encoding="utf-8"))
PASSAGES = ("".join(WORDS[i : i + 7]) for i in range(6, 160, 7))
STORY = f"<i>{TRICKS}</i><img src=x>{TRICKS}".join(PASSAGES)
MORE = """
add = Batch.add

def add_first_sentence(batch, idx, *args, **kwargs):
    prompt = text_to_token_ids("Everyone knew who the Babbingtons were.", tokenizer)
    return add(batch, prompt, *args, **kwargs)

Batch.add = add_first_sentence
from support.page.settings import LIMITS

LIMITS["temperature"] = LIMITS["temperature"]._replace(default=0)
LIMITS["max_new_tokens"] = LIMITS["max_new_tokens"]._replace(default=90)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    (folder / ".env").write_text("UNUSED='a secret of the file .env'\n")
    with running_app(folder, story=STORY, more=MORE) as server:
        yield server


def call(server, method, target, body=None, **headers) -> tuple[int, bytes]:
    """Return the status and the body of the answer to a request for exactly this target."""
    connection = http.client.HTTPConnection("127.0.0.1", server.url.rsplit(":")[-1], timeout=60)
    try:
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


# 1. The page --------------------------------------------------------------------------------

# What somebody reads who reads an element's signs on the screen line by line, from left to right.
AS_READ = """element => {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT), signs = [];
  for (let node; (node = walker.nextNode()); )
    for (let i = 0; i < node.length; i++) {
      const range = document.createRange();
      range.setStart(node, i);
      range.setEnd(node, i + 1);
      const { left, bottom, width } = range.getBoundingClientRect();
      if (width) signs.push({ sign: node.data[i], left, line: Math.round(bottom / 8) });
    }
  return signs.sort((a, b) => a.line - b.line || a.left - b.left).map((s) => s.sign).join('');
}"""


def as_read(element: Locator) -> str:
    return element.evaluate(AS_READ)


@pytest.fixture
def browser():
    with running_browser() as browser:
        yield browser


@pytest.fixture
def page(browser, server):
    page = browser.new_page()
    page.errors, page.asked = [], []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.route(
        lambda url: not url.startswith(server.url),
        lambda route: (page.asked.append(route.request.url), route.abort()),
    )
    page.set_default_timeout(60_000)
    page.goto(server.url)
    expect(page.locator("#starters button")).to_have_count(4)
    return page


def send(page, prompt: str) -> None:
    page.locator("#chat-input").fill(prompt)
    page.locator("#chat-submit").click()
    expect(page.locator(".facts")).to_contain_text("per second")


def test_text_stays_text_and_turns_nothing_beside_it(server, page):
    title = page.title()
    prompt = f"{HOSTILE} {TRICKS} o'clock"
    said = TRICKS + HOSTILE + TRICKS  # shorter than 90 tokens of four signs: see app_server.py
    (server.folder / "say").write_text(said)
    page.evaluate("page.change({ temperature: 0, max_new_tokens: 90 })")
    send(page, prompt)
    text, facts = page.locator("#text"), page.locator(".facts")
    page.locator("#unfold").click()
    assert text.text_content() == prompt + said
    assert re.fullmatch(r"\d+ tokens · [\d.]+ per second · .*", as_read(facts))

    page.locator("#view-probs").click()
    expect(page.locator("#prompt-loss")).to_be_visible()
    assert re.sub("[\u21b5\u25af]", "", text.text_content()) == prompt + said  # signs for line ends
    details = page.locator("#token-details [aria-live]")
    for token in (0, 1, 2):
        page.locator("#text .token:not(.prompt)").nth(token).click()
        expect(details).to_contain_text("gave it")
        # Where a line ends, its last space is not to be seen.
        assert "".join(as_read(details).split()) == "".join(details.text_content().split())
        page.keyboard.press("Escape")

    page.locator("#view-copied").click()
    # Some have no width here: no mouse would find them.
    page.locator(".from-story").first.evaluate("token => page.pick(Number(token.dataset.index))")
    quote = page.locator("#token-details .quote")
    assert "<i>" in quote.text_content()  # that is, something of the story
    beside = page.locator("#token-details .from > div").first
    assert re.fullmatch(r"\d+ tokens, from paragraph \d+ of the story:", as_read(beside))
    page.locator("#token-details").get_by_text("Show it in the story").click()
    story = page.locator("#story-text")
    expect(story).to_contain_text("<img src=x>")
    page.keyboard.press("Escape")
    page.locator("#next-token").click()
    bars = page.locator("#bars")
    expect(bars.locator("tr")).to_have_count(11)
    assert as_read(bars.locator("h2")) == "What could come after"
    for element in (text, quote, story, bars):
        assert element.locator("img, script, i, a:visible, .loading-cursor").count() == 0
    assert (page.title(), page.errors, page.asked) == (title, [], [])


def test_labels_of_tokens_turn_nothing(tokenizer):
    for token_id in range(tokenizer.n_vocab):
        label = token_label(token_id, tokenizer)
        assert not re.search("[\x00-\x1f\u200b-\u200f\u2028-\u202e\u2060-\u206f]", label)


# 2. Files -----------------------------------------------------------------------------------

found = importlib.util.find_spec("chainlit")  # None where it has no release for this Python
CHAINLIT = Path(found.origin if found else "").parent
OPEN_FOLDERS = {  # what stands in these is sent to anybody
    "/public/": "public",
    "/assets/": CHAINLIT / "frontend" / "dist" / "assets",
    "/copilot/": CHAINLIT / "copilot" / "dist",
}
OTHERS = ("/", "/avatars/", "/favicon/", "/logo/", "/logo?theme=", "/project/", "/project/file/")
CLOSED = ("app.py", "gpt.py", "support/page/server.py", "counted.py", ".env",
          ".chainlit/config.toml", "chainlit.md", "dataset/story.txt",
          "pretrain-story-model.pth")  # fmt: skip


def spellings(path: str) -> set[str]:
    """Return ways to write a path in a request."""
    once = urllib.parse.quote(path, safe="").replace(".", "%2E")
    return {
        urllib.parse.quote(path),
        once,
        once.replace("%", "%25"),
        path.replace("../", "..%2f"),
        path.replace("../", "....//"),
        path.replace("/", "\\"),
        path.replace("/", "%5C"),
        path.replace("../", "..;/"),
        path + "%00.css",
    }


def targets(server, file: Path) -> set[str]:
    """Return requests that could be answered with a file, if paths were not looked at well."""
    found = set()
    for route, folder in OPEN_FOLDERS.items():
        way = os.path.relpath(file, server.folder / folder)
        found |= {route + s for p in (way, str(file), "/" + str(file)) for s in spellings(p)}
    name = os.path.relpath(file, server.folder)
    for route in OTHERS:
        ways = (name, str(file), f"../{name}", f"../../{name}", f"public/../{name}")
        found |= {route + s for way in ways for s in spellings(way)}
    return found | {
        f"http://127.0.0.1{file}",
        f"file://{file}",
        f"/project/settings?language={file}",
    }


def test_files_outside_public_cannot_be_fetched(server):
    style = (server.folder / "public" / "style.css").read_bytes()
    assert call(server, "GET", "/public/style.css") == (200, style)
    assert call(server, "GET", "/public/../public%2Fstyle.css") == (200, style)  # ".." is followed
    files = [server.folder / name for name in CLOSED]
    files += [Path("/etc/passwd"), CHAINLIT / "server.py"]
    starts = [file.read_bytes()[:60] for file in files]
    for file in files:
        for target in targets(server, file):
            _, body = call(server, "GET", target)
            assert not any(start in body for start in starts), target


def test_the_app_writes_no_file_of_a_person(server):
    async def scene():
        async with Person(server) as person:
            await person.set(max_new_tokens=1)
            await person.send("The old clock")
            await person.continuation()
            return list((server.folder / ".files").glob("*/*"))

    assert asyncio.run(scene()) == []


def paths_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    "session", ["..", ".", "", "/nowhere", "../public", "../.files", "a/../..", 5, None]
)
def test_a_session_cannot_be_named_like_a_folder(server, session):
    async def scene():
        person = Person(server)
        person.session = session
        try:
            await person.connect()
        except ConnectionError:
            return "refused"
        await person.client.disconnect()

    assert asyncio.run(scene()) == "refused"


UPLOAD = b"""--x\r
Content-Disposition: form-data; name="file"; filename="clock.txt"\r
Content-Type: text/plain\r
\r
tick\r
--x--\r
"""


def test_nothing_is_uploaded(server):
    async def scene():
        async with Person(server) as person:
            before = paths_below(server.folder)
            session = f"?session_id={person.session}"
            form = {"Content-Type": "multipart/form-data; boundary=x"}
            status, _ = call(server, "POST", "/project/file" + session, UPLOAD, **form)
            assert status == 403
            element = {"type": "custom", "id": "x", "name": "Text", "display": "inline"}
            element |= {"props": {"facts": ["tick"]}}
            request = json.dumps({"sessionId": person.session, "element": element})
            json_type = {"Content-Type": "application/json"}
            for method in ("PUT", "DELETE"):
                assert call(server, method, "/project/element", request, **json_type)[0] == 403
            assert paths_below(server.folder) == before

    asyncio.run(scene())


@pytest.mark.parametrize("path", ["/project/file?session_id=x", "/project/action", "/login"])
def test_what_is_too_long_is_refused_unread(server, path):
    # Nothing of this terabyte is sent: whoever waited for it would not answer.
    form = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(10**12)}
    assert call(server, "POST", path, None, **form)[0] == 403


@pytest.mark.parametrize("length", [{}, {"Content-Length": "5"}])
def test_what_does_not_say_how_long_it_is_is_refused_unread(server, length):
    chunked = {"Transfer-Encoding": "chunked", **length}  # then a length of 5 means nothing
    assert call(server, "POST", "/project/action", None, **chunked)[0] == 403


def test_the_server_takes_neither_long_nor_compressed_messages(server):
    async def scene():
        address = server.url + "/ws/socket.io/?EIO=4&transport=websocket"
        async with (
            aiohttp.ClientSession() as web,
            web.ws_connect(address, compress=15) as socket,
        ):
            compressed = socket.compress
            await socket.receive()
            await socket.send_bytes(bytes(3 * 10**6 + 1))
            return compressed, await socket.receive()

    compressed, end = asyncio.run(scene())
    assert not compressed  # the client would have liked to
    assert (end.type, end.data) == (aiohttp.WSMsgType.CLOSE, 1009)  # "message too big"


# 3. The password ----------------------------------------------------------------------------

(SNIPPET,) = re.findall(
    r"```python\n(import hmac.*?)```",
    (ROOT / "support" / "README.md").read_text(encoding="utf-8"),
    re.DOTALL,
)
SECRET = "s" * 64
LIST_ROUTES = """
def all_routes(routes):
    for route in routes:
        if hasattr(route, "path"):
            yield route.path, sorted(getattr(route, "methods", None) or ["mounted"])
        else:
            yield from all_routes(route.original_router.routes)

import json
from chainlit.server import app
(ROOT / "routes").write_text(json.dumps(list(all_routes(app.routes))))
"""


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    secrets = {"APP_PASSWORD": "seven minutes", "CHAINLIT_AUTH_SECRET": SECRET}
    folder = tmp_path_factory.mktemp("locked")
    with running_app(folder, more=f"\n{SNIPPET}\n{LIST_ROUTES}", **secrets) as server:
        yield server


def log_in(server, name: str, password: str = "seven minutes") -> tuple[int, str]:
    """Return the status and the cookie of an answer to a login."""
    connection = http.client.HTTPConnection("127.0.0.1", server.url.rsplit(":")[-1], timeout=60)
    form = urllib.parse.urlencode({"username": name, "password": password})
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/login", form, kind)
    answer = connection.getresponse()
    cookie = (answer.headers["Set-Cookie"] or "").split(";")[0]
    connection.close()
    return answer.status, cookie


async def visit(server, cookie: str = "", session: str = "") -> None:
    person = Person(server, cookie)
    person.session = session or person.session
    await person.connect()
    await person.client.disconnect()


def test_the_password_lets_in(locked):
    with pytest.raises(ConnectionError):
        asyncio.run(visit(locked))
    assert log_in(locked, "sam", "eight minutes") == (401, "")
    status, cookie = log_in(locked, "sam")
    assert status == 200
    asyncio.run(visit(locked, cookie))
    assert call(locked, "GET", "/project/settings", Cookie=cookie)[0] == 200


FOR_EVERYBODY = {  # the page itself, before somebody has logged in, and what is needed for it
    ("GET", "/{full_path:path}"), ("HEAD", "/"), ("GET", "/health"),
    ("GET", "/public/{filename:path}"), ("GET", "/assets/{filename:path}"),
    ("GET", "/copilot/{filename:path}"),
    ("GET", "/favicon"), ("GET", "/logo"), ("GET", "/avatars/{avatar_id:str}"),
    ("GET", "/project/translations"), ("GET", "/auth/config"), ("POST", "/login"),
    # removes the caller's own cookie; gives the caller a cookie of the caller's own words
    ("POST", "/logout"), ("POST", "/set-session-cookie"),
    # 400: nobody logs in this way
    ("GET", "/auth/oauth/{provider_id}"), ("GET", "/auth/oauth/{provider_id}/callback"),
    # the list of Chainlit's routes, which is public anyway
    *((method, path) for method in ("GET", "HEAD")
      for path in ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc")),
    ("mounted", "/ws/socket.io"),  # see the other tests
}  # fmt: skip


def test_no_call_works_without_the_password(locked):
    routes = json.loads((locked.folder / "routes").read_text())
    calls = {(method, path) for path, methods in routes for method in methods}
    assert calls > FOR_EVERYBODY
    for method, path in calls - FOR_EVERYBODY:
        target = re.sub("{.*?}", "x", path) + "?session_id=x"
        status, _ = call(locked, method, target, "{}", **{"Content-Type": "application/json"})
        assert status in (401, 403), (method, path)


def token(secret: str | None = SECRET, seconds: int = 600, algorithm: str = "HS256") -> str:
    user = {"identifier": "sam", "display_name": None, "metadata": {}}
    return jwt.encode({**user, "exp": int(time.time()) + seconds}, secret, algorithm)


def test_a_token_has_to_be_real(locked):
    real = token()
    head, claims, signature = real.split(".")
    assert call(locked, "GET", "/user", Cookie=f"access_token={real}")[0] == 200
    asyncio.run(visit(locked, f"access_token={real}"))
    for forged in (
        "",
        "x",
        token("t" * 64),
        token(seconds=-600),
        token(None, algorithm="none"),
        token(algorithm="HS512"),
        f"{head}.{claims}.",
        f"{head}.{token(seconds=700).split('.')[1]}.{signature}",
    ):
        for header in ({"Cookie": f"access_token={forged}"}, {"Authorization": f"Bearer {forged}"}):
            for path in ("/user", "/project/settings"):
                assert call(locked, "GET", path, **header)[0] == 401, forged
        assert call(locked, "POST", "/auth/jwt", Authorization=f"Bearer {forged}")[0] in (401, 403)
        with pytest.raises(ConnectionError):
            asyncio.run(visit(locked, f"access_token={forged}"))


def test_a_session_is_for_one_person(locked):
    (_, sam), (_, alex) = log_in(locked, "sam"), log_in(locked, "alex")

    async def scene():
        async with Person(locked, sam) as person:
            with pytest.raises(ConnectionError):
                await visit(locked, alex, person.session)
            request = {"sessionId": person.session, "action": {"name": "story", "payload": {}}}
            return [
                locked.post("/project/action", request, Cookie=cookie)[0]
                for cookie in (sam, alex, "")
            ]

    assert asyncio.run(scene()) == [200, 401, 401]


# 4. Another site's page ---------------------------------------------------------------------

OTHER_ORIGINS = ("http://a.example", "null", "http://127.0.0.1:1", "http://127.0.0.1", "")


@pytest.mark.parametrize("host", [None, "story.example"])  # asked directly; behind a proxy
def test_only_the_apps_own_page_may_use_it(server, host):
    own = host or server.url.partition("://")[2]
    headers = {"Host": host} if host else {}

    async def visit_from(origin):
        person = Person(server, Origin=origin, **headers)
        person.transports = ["websocket"]  # which browsers let any page open
        await person.connect()
        status = (await person.act("story"))[0]
        await person.client.disconnect()
        return status

    payload = {"sessionId": str(uuid.uuid4()), "action": {"name": "story", "payload": {}}}
    for origin in (f"http://{own}", f"https://{own}"):
        assert asyncio.run(visit_from(origin)) == 200
        headers_now = {**headers, "Origin": origin}
        assert server.post("/project/action", payload, **headers_now)[0] != 403
        assert call(server, "GET", "/project/settings", **headers_now)[0] == 200
    for origin in (*OTHER_ORIGINS, f"http://{own}.a.example"):
        with pytest.raises(ConnectionError):
            asyncio.run(visit_from(origin))
        headers_now = {**headers, "Origin": origin}
        assert server.post("/project/action", payload, **headers_now)[0] == 403
        assert call(server, "GET", "/project/settings", **headers_now)[0] == 403
        polling = "/ws/socket.io/?EIO=4&transport=polling"
        assert call(server, "GET", polling, **headers_now)[0] == 403
        assert call(server, "POST", polling, b"x", **headers_now)[0] == 403


# 5. Packages --------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [".", "tests", "benchmarks"])
def test_versions_are_exact(folder):
    lines = (ROOT / folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r'[a-z0-9-]+==\d+(\.\d+)+(; python_version < "3\.\d+")?', line)


CLEAN = {"name": "clock", "version": "1.0", "vulns": []}
BAD = {**CLEAN, "vulns": [{"id": "PYSEC-1"}]}
SKIPPED = {"name": "clock", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("report", "code", "words"),
    [
        ([CLEAN], 0, "clean"),
        ([CLEAN, BAD], 1, "VULNERABLE: clock 1.0: PYSEC-1"),
        ([BAD, SKIPPED], 1, "VULNERABLE: clock 1.0: PYSEC-1"),
        ([CLEAN, SKIPPED], 2, "NOT AUDITED: 1 package"),
        ([], 2, "NOT AUDITED"),
        (None, 2, "NOT AUDITED: pip-audit could not run: no network"),
    ],
)
def test_the_audit_says_whether_it_could_look(tmp_path, report, code, words):
    ends = "import sys; sys.exit('no network')"
    says = f"print({json.dumps(json.dumps({'dependencies': report}))})"
    (tmp_path / "pip_audit.py").write_text(ends if report is None else says)
    run = subprocess.run(
        [sys.executable, ROOT / "tests" / "audit.py"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == code, run.stderr
    assert run.stdout.startswith(words)
