"""Chainlit hardening: threads, limits, allowed hosts and origins, headers.

`chainlit run app.py` always serves Chainlit's own FastAPI app. An app of our own that mounts
Chainlit (`mount_chainlit`) would need another command. So app.py calls `protect` instead.
With `chainlit run -w`, Chainlit executes all of the project again after each change. The middleware
and the executors of the first execution stay in use.

Undocumented names of Chainlit 2.12 used here (a test reports those that are missing):
    chainlit.server:app.state
    chainlit.server:get_html_template
    chainlit.server:sio.eio.max_http_buffer_size
    chainlit.server:sio.on
    chainlit.session:WebsocketSession.chat_started
    chainlit.session:WebsocketSession.get_by_id
    chainlit.session:WebsocketSession.restored
    chainlit.socket:change_settings
    chainlit.socket:edit_message
    chainlit.socket:stop
    chainlit.socket:connect
"""

import asyncio
import gc
import ipaddress
import logging
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from chainlit import server
from chainlit.config import config
from chainlit.server import app, sio
from chainlit.session import WebsocketSession
from chainlit.socket import connect
from socketio.exceptions import ConnectionRefusedError
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BYTES = 3 * 10**6  # of one message or request body: a long novel
MAX_PROMPT = 50_000  # characters, far more than the model reads
# The page's only POST requests. Chainlit also accepts files and elements, and stores them on disk.
POST_PATHS = ("/login", "/logout", "/set-session-cookie", "/project/action")
HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:;"
    " frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
DEFAULT_PORTS = {"http": 80, "https": 443}

logger = logging.getLogger(__name__)
state = app.state  # survives a reload of app.py
reloading = hasattr(state, "inference")

# 1. Threads ---------------------------------------------------------------------------------


def _set_workers(count: int) -> None:
    torch.get_num_threads()  # the first call in a thread sets its default
    torch.set_num_threads(count)


if not reloading:
    # OpenMP workers spin while idle, but only while a single Python thread uses them. With a second
    # such thread, each token takes 1.4 times as long. So the background thread computes alone, and
    # the main thread computes nothing large, such as the tokens of a long story.
    state.background, state.inference = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    workers = torch.get_num_threads()
    state.background.submit(_set_workers, 1).result()
    # `set_num_threads` also changes a process-wide value; the second call restores it.
    state.inference.submit(_set_workers, workers).result()

inference_executor: ThreadPoolExecutor = state.inference  # everything that runs the model
background_executor: ThreadPoolExecutor = state.background  # all other slow work


async def run_in(executor: ThreadPoolExecutor, function: Callable, *args: Any) -> Any:
    """Return `function(*args)`, computed by the executor's thread."""
    return await asyncio.get_running_loop().run_in_executor(executor, function, *args)


# 2. Limits ----------------------------------------------------------------------------------


def protect(root: Path) -> None:
    """Check the app's folder `root`, and restrict requests and sessions.

    Raises SystemExit, with the remedy, if Chainlit uses another folder or cannot write its files.
    """
    # Chainlit has already read its settings, from CHAINLIT_APP_ROOT or the working directory. In
    # another folder the page would have other settings and none of its elements.
    if not Path(config.root).samefile(root):
        unset = "unset CHAINLIT_APP_ROOT; " if "CHAINLIT_APP_ROOT" in os.environ else ""
        raise SystemExit(
            f"Chainlit uses {config.root}, which is not the folder of this app. Start it with:\n\n"
            f'    {unset}cd "{root}"\n    chainlit run app.py\n'
        )
    files = Path(config.root, ".files")
    if not os.access(files, os.W_OK):
        raise SystemExit(f"{files} is not writable. Copy the project to a folder of your own.")

    sio.on("connect", _connect)
    # Chainlit would store what these send. Stop is an action of app.py.
    for unused in ("stop", "edit_message", "chat_settings_change"):
        sio.on(unused, lambda *_: None)
    sio.eio.max_http_buffer_size = MAX_BYTES  # of each message on a WebSocket
    if not reloading:
        # For `preconnect`, browsers ignore the policy in HEADERS. Chainlit has no setting for it.
        page, link = server.get_html_template, re.compile(r"<link\b[^>]*https://[^>]*>")
        server.get_html_template = lambda root_path: link.sub("", page(root_path))
        app.add_middleware(Guard)
        # Starlette handles uncaught exceptions outside all middleware, so without HEADERS.
        app.add_exception_handler(Exception, lambda *_: PlainTextResponse("", 500, HEADERS))


async def _connect(sid: str, environ: dict[str, Any], auth: Any) -> bool:
    """Accept a client whose session id looks like the page's own, a UUID.

    The client chooses the id. Chainlit names a folder after it and later deletes that folder, so
    "../public" would delete another one. `on_chat_start` is called again for a client that
    reconnects, even if the server has not noticed the disconnection.
    """
    session_id = str(auth.get("sessionId")) if isinstance(auth, dict) else ""
    if not re.fullmatch("[0-9a-f-]{36}", session_id):
        raise ConnectionRefusedError("no session id")
    session = WebsocketSession.get_by_id(session_id)
    accepted = await connect(sid, environ, auth)
    if session:
        session.chat_started = False
    return accepted


class Guard:
    """ASGI middleware: refuse what the app's own page never sends, and add `HEADERS`."""

    def __init__(self, app: ASGIApp):
        self.app = app
        names = os.environ.get("ALLOWED_HOSTS", "").lower().replace(",", " ").split()
        self.hosts = {"localhost", *names}
        self.logged: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"].endswith("http.response.start"):
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "lifespan" and (reason := self.refusal(scope)):
            if reason not in self.logged and len(self.logged) < 100:  # each once, up to 100
                self.logged.add(reason)
                logger.warning(reason)
            await PlainTextResponse(reason, 403)(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)

    def refusal(self, scope: Scope) -> str | None:
        """Return why to refuse a request or a WebSocket, and how to allow it; None to accept it."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.is_allowed(host):  # against DNS rebinding
            return (
                f"Refused the host {host!r:.200}. If this is a name of your server, add it to the"
                " environment variable ALLOWED_HOSTS (separated by commas) and restart."
            )
        if origin is not None and not same_origin(origin, host):
            return (
                f"Refused a request from {origin!r:.200} to {host!r:.200}. If this is your proxy,"
                " let it forward the Host header; nginx: proxy_set_header Host $http_host;"
            )
        # Without an Origin: a script or an image of another site, or a link to the page.
        other_site = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if other_site and headers.get("sec-fetch-mode") != "navigate":
            return "Refused a request from another site's page."
        return None if scope["type"] == "websocket" else _http_refusal(scope, headers)

    def is_allowed(self, host: str) -> bool:
        """Return whether a Host header names an IP address or an allowed host."""
        name, _ = _address(f"http://{host}")
        try:
            return name in self.hosts or bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def _http_refusal(scope: Scope, headers: Headers) -> str | None:
    # Polling and JSONP would admit other sites' pages, because scripts load without an Origin.
    if "/ws/socket.io" in scope["path"]:
        return "Refused a request without WebSocket: the page uses only WebSockets."
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return None
    length = headers.get("content-length", "")
    exact = length.isdecimal() and "transfer-encoding" not in headers  # chunks exceed any length
    if exact and int(length) <= MAX_BYTES and scope["path"].endswith(POST_PATHS):
        return None
    return "Refused a request that the page never sends."


def same_origin(origin: str, host: str) -> bool:
    """Return whether an Origin and a Host header agree, default ports included."""
    scheme = origin.partition("://")[0]
    return scheme in DEFAULT_PORTS and _address(origin) == _address(f"{scheme}://{host}")


def _address(url: str) -> tuple[str, int]:
    """Return a URL's host ("" if there is none) and its port, by default the scheme's."""
    try:
        parts = urlsplit(url)
        return parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
    except ValueError:  # not a host, such as "[::1" or "host:port"
        return "", 0


def freeze_memory() -> None:
    """Exclude all objects loaded so far from garbage collection, which would take 0.25 s."""
    if not reloading:
        gc.collect()
        gc.freeze()
