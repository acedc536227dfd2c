"""For the tests: the page's server, running in a copy of the project, and people who use it."""

import asyncio
import html
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import socketio
from conftest import ROOT
from packaging.requirements import Requirement
from playwright.sync_api import Browser, Error, sync_playwright

WEIGHTS = "pretrain-story-model.pth"
ELEMENTS = ("Connection", "Start", "Toolbar", "Text", "Token", "Bars", "Compare", "Settings")

# On a busy machine, threads of PyTorch that wait for each other take ten times as long.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

BROWSERS = [  # ways to start one: Playwright's own, one in the PATH, one where it usually is
    {},
    *({"executable_path": path} for name in ("chromium", "google-chrome", "microsoft-edge")
      if (path := shutil.which(name))),
    {"channel": "chrome"},
    {"channel": "msedge"},
]  # fmt: skip
NO_BROWSER = (
    "no browser was found: get one with `apt-get install chromium` or `playwright install chromium`"
)

REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
(CHAINLIT,) = (Requirement(line) for line in REQUIREMENTS if line.startswith("chainlit"))

# The app itself. It leaves the number of generated tokens in the file "count", and in "kept" of how
# many people, messages and elements it remembers something, and the settings that it keeps. It
# shows the text of the file "say" in place of the model's, if there is one.
COUNTED = """
import app
import json
from pathlib import Path

from chainlit.chat_context import chat_contexts
from chainlit.user_session import user_sessions
from support.page.batch import Slot

count, take, say = 0, Slot.take, Path("say")

def counted(sequence, *args):
    global count
    tokens = take(sequence, *args)
    if say.exists():
        text, done = say.read_text(), getattr(sequence, "said", 0)
        sequence.said = done + len(tokens)
        tokens = [t._replace(text=text[4 * i : 4 * i + 4]) for i, t in enumerate(tokens, done)]
    count += len(tokens)
    Path("count").write_text(str(count))
    messages = [message for kept in chat_contexts.values() for message in kept]
    elements = sum(len(getattr(message, "elements", [])) for message in messages)
    people = len(chat_contexts.keys() | user_sessions.keys())
    settings = [dict(session.get("chat_settings") or {}) for session in user_sessions.values()]
    kept = {"people": people, "messages": len(messages), "elements": elements}
    Path("kept").write_text(json.dumps(kept | {"settings": settings}))
    return tokens

Slot.take = counted
"""


class Server:
    """The app, running in `folder` and answering at `url`."""

    def __init__(self, folder: Path, url: str, process: subprocess.Popen) -> None:
        self.folder, self.url, self.process = folder, url, process

    def tokens(self) -> int:
        """Return how many tokens have been generated since the start."""
        count = self.folder / "count"
        return int(count.read_text()) if count.exists() else 0

    def kept(self) -> dict[str, Any]:
        """Return what the app remembered when it last generated a token, see COUNTED."""
        return json.loads((self.folder / "kept").read_text())

    def memory(self) -> float:
        """Return the memory of the process, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1000

    def post(self, path: str, payload: Any, **headers: str) -> tuple[int, Any]:
        """Return the status of a POST request, and what the answer says."""
        headers = {"Content-Type": "application/json", **headers}
        request = urllib.request.Request(self.url + path, json.dumps(payload).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, None


def copy_app(
    folder: Path, weights: Path | None = ROOT / WEIGHTS, more: str = "", story: str | None = None
) -> None:
    """Copy the app into `folder`.

    `more` is Python to put at the end of app.py; `story` stands in for the story.
    """
    for name in ("app.py", "gpt.py", "utils.py", "chainlit.md", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("dataset", "public", "support", "tiktoken_ext"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    if story:
        (folder / "dataset" / "story.txt").write_text(story, encoding="utf-8")
    with (folder / "app.py").open("a") as app:
        app.write(more)
    (folder / ".chainlit").mkdir()
    shutil.copy(ROOT / ".chainlit" / "config.toml", folder / ".chainlit")
    (folder / "counted.py").write_text(COUNTED)
    if weights:
        (folder / WEIGHTS).symlink_to(weights)


def need_chainlit() -> None:
    """Skip the test if Chainlit has no release for this Python."""
    if CHAINLIT.marker and not CHAINLIT.marker.evaluate():
        pytest.skip(f"the page needs another Python: {CHAINLIT}")


@contextmanager
def serving(
    folder: Path,
    script: str = "counted.py",
    prefix: Sequence[str] = (),
    options: Sequence[str] = (),
    port: int = 0,
    **environment: str,
) -> Iterator[Server]:
    """Start the app as people do, in `folder`, and stop it at the end.

    `prefix` is a command that runs it, such as ("env", "-u", "HOME"); `options` are Chainlit's.
    Without a `port`, it has a free one.
    """
    need_chainlit()
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "chainlit", "run", script, "-h", "--port", str(port), *options]
    environment = {**os.environ, **ONE_THREAD, **environment}
    log_path = folder.parent / f"{folder.name}.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [*prefix, *command], cwd=folder, env=environment, stdout=log, stderr=log
        )
        try:
            wait_for(url, process, log_path)
            yield Server(folder, url, process)
        finally:
            process.terminate()
            process.wait(timeout=20)


@contextmanager
def running_app(
    folder: Path,
    weights: Path | None = ROOT / WEIGHTS,
    more: str = "",
    story: str | None = None,
    **environment: str,
) -> Iterator[Server]:
    """Copy the app into `folder`, as `copy_app` does, run it there, and stop it at the end."""
    copy_app(folder, weights, more, story)
    with serving(folder, **environment) as server:
        yield server


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    """Return when the app answers; fail if it ends or does not answer within a minute."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url + "/health", timeout=5) as response:
                assert json.load(response) == {"status": "ok"}
                return
        except OSError:
            assert process.poll() is None, f"the app has ended:\n{log.read_text()}"
            assert time.monotonic() < deadline, "the app does not answer"
            time.sleep(0.1)


@contextmanager
def running_browser(ways: Sequence[dict[str, Any]] = BROWSERS) -> Iterator[Browser]:
    """Start Chromium, Chrome or Edge, with every other host blocked, and close it at the end.

    Without one, the test is skipped; with CI in the environment, it fails.
    """
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright:
        for way in ways:
            with suppress(Error):
                browser = playwright.chromium.launch(**way, args=arguments)
                break
        else:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(NO_BROWSER)
        yield browser
        browser.close()


class Person:
    """Somebody at the page, over socket.io. `async with Person(server) as person: ...`"""

    def __init__(self, server: Server, cookie: str = "", **headers: str) -> None:
        self.server, self.headers = server, {"Cookie": cookie, **headers}
        self.transports = ["polling", "websocket"]  # first this, then that
        self.session = str(uuid.uuid4())
        self.events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    async def _receive(self, event: str, data: Any = None) -> None:
        await self.events.put((event, data))

    async def connect(self) -> None:
        """Open the page; or come back to it."""
        as_browsers = {"max_msg_size": 0, "compress": 15}  # they take and send messages compressed
        self.client = socketio.AsyncClient(reconnection=False, websocket_extra_options=as_browsers)
        self.client.on("*", self._receive)
        auth = {"sessionId": self.session, "clientType": "webapp"}
        await self.client.connect(
            self.server.url,
            self.headers,
            auth=auth,
            transports=self.transports,
            socketio_path="/ws/socket.io",
            wait_timeout=60,  # usually a second, which is short on a busy machine
        )
        await self.client.emit("connection_successful")

    async def __aenter__(self) -> "Person":
        await self.connect()
        for _ in ELEMENTS:
            await self.expect("element")
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.client.disconnect()

    async def expect(self, *names: str) -> tuple[str, Any]:
        """Return the next event of one of these names, with its data."""
        while True:
            event, data = await asyncio.wait_for(self.events.get(), timeout=120)
            if event in names:
                return event, data

    async def set(self, **settings: Any) -> None:
        """Change settings, as the page does; wait until the app knows them."""
        await self.client.call("chat_settings_change", settings)

    async def send(self, prompt: Any, **fields: Any) -> None:
        """Send a prompt, with other fields beside it."""
        self.message_id = str(uuid.uuid4())
        message = {
            "id": self.message_id, "createdAt": "2026-01-01T00:00:00Z", "output": prompt,
            "name": "User", "type": "user_message", **fields,
        }  # fmt: skip
        await self.client.emit("client_message", {"message": message, "fileReferences": []})

    async def act(self, name: str, **payload: Any) -> tuple[int, Any]:
        """Do what a button does; return the answer's status and what it says, at the end."""
        request = {"sessionId": self.session, "action": {"name": name, "payload": payload}}
        return await asyncio.to_thread(self.server.post, "/project/action", request)

    async def generate(self, ids: list[int], run: str = "run", **payload: Any) -> "Shown":
        """Let the model continue these ids, as Continue does."""
        acting = asyncio.create_task(self.act("generate", ids=ids, runs=[{"run": run}], **payload))
        shown = await self.continuation()
        assert (await acting)[0] == 200
        return shown

    async def continuation(self, run: str | None = None) -> "Shown":
        """Wait for a continuation to be finished; for this one, if it is named."""
        while True:
            event, data = await self.expect("prompt", "finished", "new_message")
            if event == "prompt":
                self.prompt = [token["id"] for token in data["tokens"]]
            elif event == "finished" and run in (None, data["run"]):
                return Shown(**data)
            elif event == "new_message" and data["type"] == "assistant_message":
                assert not data["isError"], data["output"]

    async def error(self) -> str:
        """Wait for an error message; return its text."""
        while True:
            _, data = await self.expect("new_message")
            if data["isError"]:
                return as_shown(data["output"])


class Shown(NamedTuple):
    """A finished continuation, as the app sends it."""

    run: str
    tokens: list[dict[str, Any]]
    facts: list[str]
    share: float
    settings: dict[str, Any]

    @property
    def text(self) -> str:
        return "".join(token["text"] for token in self.tokens)

    @property
    def ids(self) -> list[int]:
        return [token["id"] for token in self.tokens]


def as_shown(markdown: str) -> str:
    """Return what the page shows for the Markdown of `as_markdown`, see tests/test_security.py."""
    return html.unescape(markdown.replace("[](#)", ""))
