"""Test helpers: run the page's server in a copy of the project, and use it as a browser does."""

import asyncio
import functools
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import socketio
from conftest import ROOT
from packaging.requirements import Requirement

WEIGHTS = "pretrain-story-model.pth"
PROMPT = "On Thursday there was fog."
# On a busy machine, PyTorch threads that wait for each other take ten times as long.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
(CHAINLIT,) = (Requirement(line) for line in REQUIREMENTS if line.startswith("chainlit"))


@dataclass
class Server:
    """The app, running in `folder` and answering at `url`."""

    folder: Path
    url: str
    process: subprocess.Popen
    log: Path

    def wait(self) -> None:
        """Return when the app answers; fail if it ends or does not answer for three minutes."""
        deadline = time.monotonic() + 180
        while True:
            try:
                assert json.loads(self.call("GET", "/health").content) == {"status": "ok"}
                return
            except OSError:
                assert self.process.poll() is None, f"the app has ended:\n{self.log.read_text()}"
                assert time.monotonic() < deadline, "the app does not answer"
                time.sleep(0.1)

    def tokens(self) -> int:
        """Return the number of tokens generated since the start."""
        count = self.folder / "count"
        return int(count.read_text()) if count.exists() else 0

    def kept(self) -> dict[str, Any]:
        """Return what the app has in memory: people's settings, and objects by type.

        Also the loop's delays since the last call: counted.py.
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
        host = self.url.removeprefix("http://")
        with closing(http.client.HTTPConnection(host, timeout=60)) as connection:
            connection.request(method, target, body, headers)
            answer = connection.getresponse()
            answer.content = answer.read()
            return answer


def copy_app(
    folder: Path, weights: Path | None = ROOT / WEIGHTS, more: str = "", story: str | None = None
) -> Path:
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
    return folder


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
    with folder.with_name(f"{folder.name}.log").open("w") as log:
        process = subprocess.Popen(
            [*prefix, *command], cwd=folder, env=environment, stdout=log, stderr=log
        )
        try:
            server = Server(folder, url, process, Path(log.name))
            server.wait()
            yield server
        finally:
            process.terminate()
            process.wait(timeout=20)


def awaited(function: Callable[..., Coroutine]) -> Callable[..., Any]:
    """Run an asynchronous test or fixture in another thread: this one may have a browser's loop."""

    @functools.wraps(function)
    def run(**fixtures: Any) -> Any:
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(asyncio.run, function(**fixtures)).result()

    return run


class Person:
    """A client of the page, over Socket.IO. `async with Person(server) as person: ...`"""

    def __init__(self, server: Server, cookie: str = "", **headers: str) -> None:
        self.server, self.headers = server, {"Cookie": cookie, **headers}
        self.session = str(uuid.uuid4())
        self.events: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.settings: dict[str, Any] = {}
        self.message_id = ""

    async def connect(self) -> None:
        """Open the page, or reconnect to it."""
        as_browsers = {"max_msg_size": 0, "compress": 15}  # compression, and messages of any size
        self.client = socketio.AsyncClient(reconnection=False, websocket_extra_options=as_browsers)
        self.client.on("*", lambda event, data=None: self.events.put_nowait((event, data)))
        self.client.on("prompt", self.begin)
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

    async def begin(self, prompt: dict[str, Any]) -> None:
        """Continue the last prompt that was sent."""
        self.events.put_nowait(("prompt", prompt))
        if prompt["id"] == self.message_id:
            ids = [token["id"] for token in prompt["tokens"]]
            await self.act("generate", ids=ids, runs=[{"run": self.message_id}])

    async def set(self, **settings: Any) -> None:
        """Change settings."""
        self.settings |= settings

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
        payload = {"settings": self.settings, **payload}
        request = {"sessionId": self.session, "action": {"name": name, "payload": payload}}
        url = self.server.url + "/project/action"
        async with aiohttp.request("POST", url, json=request, headers=self.headers) as answer:
            return answer.status, await answer.json() if answer.ok else None

    async def write(self, prompt: str = PROMPT, **settings: Any) -> "Shown":
        """Return the continuation of a prompt with these settings."""
        await self.set(**settings)
        await self.send(prompt)
        return await self.continuation(self.message_id)

    async def generate(self, ids: list[int]) -> "Shown":
        """Continue these ids, as the button Continue does."""
        run = str(uuid.uuid4())
        assert (await self.act("generate", ids=ids, runs=[{"run": run}]))[0] == 200
        return await self.continuation(run)

    async def see(self, tokens: int, run: str | None = None) -> None:
        """Wait for this many tokens, or a few more, of any continuation or of the one named."""
        while tokens > 0:
            _, data = await self.expect("tokens")
            tokens -= len(data["tokens"]) if run in (None, data["run"]) else 0

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


class Shown(NamedTuple):
    """A finished continuation, as the app sends it."""

    run: str
    tokens: list[dict[str, Any]]
    facts: list[str]

    @property
    def text(self) -> str:
        return "".join(token["text"] for token in self.tokens)

    @property
    def ids(self) -> list[int]:
        return [token["id"] for token in self.tokens]
