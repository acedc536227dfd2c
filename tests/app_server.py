"""Test helpers: run the page's server in a copy of the project, and use it as a browser does."""

import asyncio
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import socketio
from conftest import ROOT
from packaging.requirements import Requirement
from playwright.sync_api import Browser, Error, sync_playwright

WEIGHTS = "pretrain-story-model.pth"
# On a busy machine, PyTorch threads that wait for each other take ten times as long.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

NAMES = ("chromium-headless-shell", "chromium", "google-chrome", "microsoft-edge")
BROWSERS = [  # how to start one: Playwright's own, one in the PATH, one in its default folder
    {},
    *({"executable_path": path} for name in NAMES if (path := shutil.which(name))),
    {"channel": "chrome"},
    {"channel": "msedge"},
]
INSTALL = "`apt-get install chromium-headless-shell` (Debian) or `playwright install chromium`"
NO_BROWSER = f"no browser found: run {INSTALL}"

REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
(CHAINLIT,) = (Requirement(line) for line in REQUIREMENTS if line.startswith("chainlit"))


@dataclass
class Server:
    """The app, running in `folder` and answering at `url`."""

    folder: Path
    url: str
    process: subprocess.Popen

    @property
    def log(self) -> str:
        return log_of(self.folder).read_text()

    def tokens(self) -> int:
        """Return the number of tokens generated since the start."""
        count = self.folder / "count"
        return int(count.read_text()) if count.exists() else 0

    def kept(self) -> dict[str, Any]:
        """Return what the app has in memory: people, elements, settings, and objects by type.

        Also the workers of its executors, and the loop's delays since the last call: counted.py.
        """
        kept, deadline = self.folder / "kept", time.monotonic() + 60
        kept.unlink(missing_ok=True)
        (self.folder / "asked").touch()
        while not kept.exists():
            assert time.monotonic() < deadline, "the app's event loop is blocked"
            time.sleep(0.02)
        return json.loads(kept.read_text())

    def memory(self) -> float:
        """Return the memory of the process in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1000

    def call(
        self, method: str, target: str, body: Any = None, **headers: str
    ) -> http.client.HTTPResponse:
        """Return the answer to a request for exactly this target, with its body in `content`."""
        with closing(http.client.HTTPConnection(self.url.removeprefix("http://"))) as connection:
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            answer.content = answer.read()
            return answer

    def post(self, path: str, payload: Any, **headers: str) -> tuple[int, Any]:
        """Return the status and the JSON of the answer to a POST request."""
        headers = {"Content-Type": "application/json", **headers}
        answer = self.call("POST", path, json.dumps(payload), **headers)
        return answer.status, json.loads(answer.content) if answer.status < 400 else None


def copy_app(
    folder: Path, weights: Path | None = ROOT / WEIGHTS, more: str = "", story: str | None = None
) -> None:
    """Copy the app into `folder`, with `more` Python at the end of app.py and another `story`."""
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
    shutil.copy(ROOT / "tests" / "counted.py", folder)
    if weights:
        (folder / WEIGHTS).symlink_to(weights)


def need_chainlit() -> None:
    """Skip the test if Chainlit has no release for this Python."""
    if CHAINLIT.marker and not CHAINLIT.marker.evaluate():
        pytest.skip(f"the page needs another Python: {CHAINLIT}")


def log_of(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.log"


@contextmanager
def serving(
    folder: Path,
    script: str = "counted.py",
    prefix: Sequence[str] = (),
    options: Sequence[str] = (),
    port: int = 0,
    **environment: str,
) -> Iterator[Server]:
    """Run the app in `folder`, on a free port by default, and stop it at the end.

    `prefix` is a command that runs it, such as ("env", "-u", "HOME"); `options` are Chainlit's.
    """
    need_chainlit()
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "chainlit", "run", script, "-h", "--port", str(port), *options]
    environment = {**os.environ, **ONE_THREAD, **environment}
    with log_of(folder).open("w") as log:
        process = subprocess.Popen(
            [*prefix, *command], cwd=folder, env=environment, stdout=log, stderr=log
        )
        try:
            server = Server(folder, url, process)
            wait_for(server)
            yield server
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


def wait_for(server: Server) -> None:
    """Return when the app answers; fail if it ends or does not answer for three minutes."""
    deadline = time.monotonic() + 180
    while True:
        try:
            assert json.loads(server.call("GET", "/health").content) == {"status": "ok"}
            return
        except OSError:
            assert server.process.poll() is None, f"the app has ended:\n{server.log}"
            assert time.monotonic() < deadline, "the app does not answer"
            time.sleep(0.1)


@contextmanager
def running_browser(ways: Sequence[dict[str, Any]] = BROWSERS) -> Iterator[Browser]:
    """Start Chromium, Chrome or Edge, for which *.test is this machine and others do not exist.

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


class Person:
    """A client of the page, over Socket.IO. `async with Person(server) as person: ...`"""

    def __init__(self, server: Server, cookie: str = "", **headers: str) -> None:
        self.server, self.headers = server, {"Cookie": cookie, **headers}
        self.session = str(uuid.uuid4())
        self.events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    async def _receive(self, event: str, data: Any = None) -> None:
        await self.events.put((event, data))

    async def connect(self) -> None:
        """Open the page, or reconnect to it."""
        as_browsers = {"max_msg_size": 0, "compress": 15}  # compression, and messages of any size
        self.client = socketio.AsyncClient(reconnection=False, websocket_extra_options=as_browsers)
        self.client.on("*", self._receive)
        auth = {"sessionId": self.session, "clientType": "webapp"}
        await self.client.connect(
            self.server.url, self.headers, auth=auth, transports=["websocket"],
            socketio_path="/ws/socket.io", wait_timeout=60,  # the default is a second
        )  # fmt: skip
        await self.client.emit("connection_successful")

    async def __aenter__(self) -> "Person":
        await self.connect()
        while (await self.expect("element"))[1]["name"] != "Settings":  # the last one
            pass
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
        """Change settings, and wait until the app has stored them."""
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
        """Press a button; return the status and the JSON of the answer."""
        request = {"sessionId": self.session, "action": {"name": name, "payload": payload}}
        async with aiohttp.request(
            "POST", self.server.url + "/project/action", json=request
        ) as answer:
            return answer.status, await answer.json() if answer.ok else None

    async def generate(self, ids: list[int], run: str = "run", **payload: Any) -> "Shown":
        """Continue these ids, as the button Continue does."""
        acting = asyncio.create_task(self.act("generate", ids=ids, runs=[{"run": run}], **payload))
        shown = await self.continuation()
        assert (await acting)[0] == 200
        return shown

    async def continuation(self, run: str | None = None) -> "Shown":
        """Wait for a finished continuation, or for the one with this name."""
        while True:
            event, data = await self.expect("prompt", "finished", "problem")
            if event == "prompt":
                self.prompt = [token["id"] for token in data["tokens"]]
            elif event == "finished" and run in (None, data["run"]):
                return Shown(**data)
            elif event == "problem":
                raise AssertionError(data)

    async def error(self) -> str:
        """Wait for an error message; return its text."""
        return (await self.expect("problem"))[1]


class Shown(NamedTuple):
    """A finished continuation, as the app sends it."""

    run: str
    tokens: list[dict[str, Any]]
    facts: list[str]
    settings: dict[str, Any]

    @property
    def text(self) -> str:
        return "".join(token["text"] for token in self.tokens)

    @property
    def ids(self) -> list[int]:
        return [token["id"] for token in self.tokens]
