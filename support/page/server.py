"""What Chainlit needs to be safe and steady: limits, headers, threads, clean-up, messages.

Written for Chainlit 2.12. app.py calls `protect` while Chainlit reads it: soon after, Chainlit
builds its server. With `chainlit run -w`, all of the project is read again after each change; what
was wrapped or made at first is then used on.
"""

import asyncio
import gc
import os
import re
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import uvicorn
from chainlit import server
from chainlit.chat_context import chat_context, chat_contexts
from chainlit.config import APP_ROOT, FILES_DIRECTORY
from chainlit.logger import logger
from chainlit.message import ErrorMessage
from chainlit.server import app, sio
from chainlit.session import WebsocketSession, ws_sessions_id
from chainlit.socket import change_settings, connect, message
from chainlit.user_session import user_sessions
from socketio.exceptions import ConnectionRefusedError
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

MAX_BYTES = 3 * 10**6  # of what the page sends at once: a long novel
MAX_PROMPT = 50_000  # characters that are kept: more than the model's context can have
# Where the page sends something. Chainlit also takes files, new elements and more, which it would
# write to the disk, here where nothing of that is used.
SENDS_TO = ("/login", "/logout", "/set-session-cookie", "/project/action", "/ws/socket.io/")

state = app.state  # outlives a reading of app.py again
reloading = app.middleware_stack is not None  # the server has been built

# 1. Threads ---------------------------------------------------------------------------------


def _set_workers(count: int) -> None:
    torch.get_num_threads()  # the first use in a thread sets it to the usual number
    torch.set_num_threads(count)


if not reloading:
    # On Linux, PyTorch's threads wait for work wide awake, but only as long as a single thread of
    # Python has any. If a second one had some, too, each token would take 1.4 times as long. So the
    # background executor computes alone, and what is large, like a long story to encode, is not
    # left to the main thread. (A part of the setting is everybody's: the second line sets it back.)
    state.background, state.inference = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    workers = torch.get_num_threads()
    state.background.submit(_set_workers, 1).result()
    state.inference.submit(_set_workers, workers).result()

inference_executor: ThreadPoolExecutor = state.inference  # all the work of the model
background_executor: ThreadPoolExecutor = state.background  # what else takes long


async def run_in(executor: ThreadPoolExecutor, function: Callable, *args: Any) -> Any:
    """Return `function(*args)`, run by the executor's thread when its turn comes."""
    return await asyncio.get_running_loop().run_in_executor(executor, function, *args)


# 2. Limits ----------------------------------------------------------------------------------


def protect(root: Path, settings: Collection[str]) -> None:
    """Check where the app was started, and limit what may come in.

    `root` is the folder of app.py, `settings` the names of its settings. Raises SystemExit, with
    the way out, where Chainlit reads another folder's settings or cannot write its files.
    """
    # Chainlit has read its settings before app.py, and from the folder that it was started in.
    # Anywhere else the page would have other settings, and nothing to look inside a text with.
    if not Path(APP_ROOT).samefile(root):
        raise SystemExit(
            f"{APP_ROOT} is not the folder of this app. Start it there:\n\n"
            f'    cd "{root}"\n    chainlit run app.py\n'
        )
    if not os.access(FILES_DIRECTORY, os.W_OK):
        raise SystemExit(
            f"{FILES_DIRECTORY} cannot be written: copy the project to a folder of yours"
        )
    sio.on("connect", _connect)
    sio.on("client_message", _cropping(message))
    sio.on("edit_message", _ignore)  # the page has no pencil
    sio.on("chat_settings_change", _only_known(settings, change_settings))
    if not reloading:
        uvicorn.Config = _limiting(uvicorn.Config)  # type: ignore[misc, assignment]
        sio.eio.max_http_buffer_size = MAX_BYTES  # of messages that come by POST
        app.middleware("http")(_guard)
        server.get_html_template = _without_others(server.get_html_template)


def _limiting(make_config: Callable[..., uvicorn.Config]) -> Callable[..., uvicorn.Config]:
    # A compressed message would be unpacked at once, however long it becomes, while all wait.
    limits = {"ws_max_size": MAX_BYTES, "ws_per_message_deflate": False}
    return lambda *args, **kwargs: make_config(*args, **kwargs | limits)


def comes_from_here(origin: str | None, host: str | None) -> bool:
    """Return whether a browser sends this from the app's own page.

    Browsers name the origin of the page that sends, and the host that they ask. Another site's page
    has another origin. Programs that are no browsers name none, and are let in: they can say what
    they like anyway.
    """
    return origin is None or origin.partition("://")[2].lower() == (host or "").lower() != ""


def _without_others(make_page: Callable[[str], str]) -> Callable[[str], str]:
    """Return Chainlit's maker of the page, without what the page would load from elsewhere."""
    link = re.compile(r"<link\b[^>]*https://cdn[^>]*>")
    return lambda root_path: link.sub("", make_page(root_path))


async def _guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Refuse, unread, what the page never sends; let the browser load nothing from elsewhere."""
    length = request.headers.get("content-length", "")
    in_pieces = "transfer-encoding" in request.headers  # then it may be longer than it says
    short = length.isdecimal() and int(length) <= MAX_BYTES and not in_pieces
    only_asks = request.method in ("GET", "HEAD", "OPTIONS")
    own = comes_from_here(request.headers.get("origin"), request.headers.get("host"))
    if own and (only_asks or (short and request.url.path.endswith(SENDS_TO))):
        response = await call_next(request)
    else:
        response = Response("The page does not send this.", status_code=403)
    policy = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
    response.headers["Content-Security-Policy"] = policy
    return response


async def _connect(sid: str, environ: dict[str, Any], auth: Any) -> bool:
    """Let in only who has a session id like the page's, a UUID.

    The person chooses it, and Chainlit makes a folder of that name, which it deletes in the end:
    with "../public", say, it would be another one. To who is back, `on_chat_start` is called again,
    also if the app has not noticed that they were away.
    """
    session_id = auth.get("sessionId") if isinstance(auth, dict) else None
    if not re.fullmatch("[0-9a-f-]{36}", str(session_id)):
        raise ConnectionRefusedError("no session id")
    if not comes_from_here(environ.get("HTTP_ORIGIN"), environ.get("HTTP_HOST")):
        raise ConnectionRefusedError("another site's page")
    accepted = await connect(sid, environ, auth)
    if (session := WebsocketSession.get(sid)) and session.restored:
        session.chat_started = False
    return accepted


Handler = Callable[[str, Any], Awaitable[None]]


async def _ignore(sid: str, payload: Any = None) -> None:
    """Do nothing."""


def _cropping(handler: Handler) -> Handler:
    """Return Chainlit's handler of a prompt, which then gets only the end of a long one.

    Else Chainlit would keep all of it in memory, and send it back to the page. Of the fields beside
    it, only texts are needed; a prompt that is none counts as empty.
    """

    async def crop(sid: str, payload: Any) -> None:
        with suppress(AttributeError, KeyError, TypeError):  # junk is for Chainlit to refuse
            fields = payload["message"].items()
            texts = {key: text[-MAX_PROMPT:] for key, text in fields if isinstance(text, str)}
            payload = {"message": {"output": ""} | texts}
        await handler(sid, payload)

    return crop


def _only_known(names: Collection[str], handler: Handler) -> Handler:
    """Return Chainlit's handler of settings, which keeps what it gets, with short known ones."""

    async def choose(sid: str, settings: Any = None) -> None:
        if isinstance(settings, dict):
            known = {name: settings[name] for name in names if name in settings}
            await handler(sid, {n: v for n, v in known.items() if len(str(v)) <= 100})

    return choose


# 3. Clean-up --------------------------------------------------------------------------------


def freeze_memory() -> None:
    """Keep what is in memory now out of Python's search for garbage, once everything is loaded.

    It would take a quarter of a second now and then.
    """
    if not reloading:
        gc.collect()
        gc.freeze()


def forget_who_left() -> None:
    """Let go of what Chainlit keeps in memory of people whose session has ended."""
    for kept in (chat_contexts, user_sessions):
        for session_id in kept.keys() - ws_sessions_id.keys():
            del kept[session_id]


# 4. Messages --------------------------------------------------------------------------------


def as_markdown(text: str) -> str:
    """Return Markdown that shows `text` exactly: every sign as a numeric character reference.

    An empty link, which shows nothing, stands where the page would otherwise trim the spaces
    around a line end, make links of addresses, or see its own sign for the cursor, a zero-width
    space. (Control characters have no reference.)
    """

    def by_number(match: re.Match) -> str:
        sign = "" if match[0] == "\u200b" else f"&#{ord(match[0])};"
        if match[0] in "\r\n":
            return f"[](#){sign}[](#)"
        return f"[](#){sign}" if match[0] in ".:@\u200b" else sign

    return re.sub(r"[^\w\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|_", by_number, text)


async def safely(work: Awaitable[None]) -> None:
    """Await `work`; if it fails, log why, and tell the person."""
    try:
        await work
    except Exception:
        logger.exception("a continuation failed")
        await ErrorMessage("Something went wrong here. Your next text may work.").send()


async def remove_stop_message() -> None:
    """Remove what Chainlit says when somebody presses Stop."""
    for sent in chat_context.get():
        if sent.content == "Task manually stopped.":
            await sent.remove()
