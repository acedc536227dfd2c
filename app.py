"""The web app: a person types an opening, and the model goes on with the story.

    chainlit run app.py

From top to bottom: settings, writing token by token, looking inside, and the events of the page.

One thread (`model_thread`) does all the work of the model, one token at a time. So people take
turns token by token, the page never freezes, and a text that is stopped costs at most one token
more. What else takes long has another thread (`side_thread`).
"""

import asyncio
import gc
import io
import math
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import chainlit as cl
import tiktoken
import torch
import uvicorn
from chainlit.chat_context import chat_contexts
from chainlit.config import APP_ROOT, FILES_DIRECTORY, config
from chainlit.input_widget import Slider, TextInput
from chainlit.logger import logger
from chainlit.server import app, sio
from chainlit.session import ws_sessions_id
from chainlit.socket import connect as chainlit_connect
from chainlit.socket import edit_message as chainlit_edit_message
from chainlit.socket import message as chainlit_message
from chainlit.user_session import user_sessions
from socketio.exceptions import ConnectionRefusedError
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

from gpt import GPT_CONFIG_124M, GPTModel
from utils import (
    TokenChoice,
    copied_share,
    copied_spans,
    load_model,
    plot_temperature,
    read_text,
    story_place,
    stream,
    stream_choices,
    text_to_token_ids,
)

ROOT = Path(__file__).parent
STORY = ROOT / "dataset" / "story.txt"
WEIGHTS = ROOT / "pretrain-story-model.pth"
CONFIG = GPT_CONFIG_124M
CONTEXT = CONFIG["context_length"]
MAX_BYTES = 3 * 10**6  # of what the page sends at once: a long novel
MAX_OPENING = 50_000  # characters that are kept: more than the model's context can have
MAX_TEXTS = 50  # that a person can come back to with the buttons below them

# Chainlit has read its settings before this file, and from the folder that it was started in.
# Anywhere else the page would have other settings, and nothing to look inside a text with.
if not Path(APP_ROOT).samefile(ROOT):
    raise SystemExit(
        f"{APP_ROOT} is not the folder of this app. Start it there:\n\n"
        f'    cd "{ROOT}"\n    chainlit run app.py\n'
    )
if not os.access(FILES_DIRECTORY, os.W_OK):
    raise SystemExit(f"{FILES_DIRECTORY} cannot be written: copy the project to a folder of yours")

model_thread, side_thread = ThreadPoolExecutor(1), ThreadPoolExecutor(1)


def set_workers(count: int) -> None:
    """Set how many threads PyTorch uses for what the calling thread computes."""
    torch.get_num_threads()  # the first use in a thread sets it to the usual number
    torch.set_num_threads(count)


# On Linux, PyTorch's threads wait for work wide awake, but only as long as a single thread of
# Python has any. If a second one had some, too, each token would take 1.4 times as long. So
# `side_thread` computes alone, and what is large, like a long story to encode, is not left to the
# main thread. (A part of the setting is everybody's; `model_thread` sets that back.)
workers = torch.get_num_threads()
wait([side_thread.submit(set_workers, 1)])
wait([model_thread.submit(set_workers, workers)])

tokenizer = tiktoken.get_encoding("gpt2")
story_ids = side_thread.submit(text_to_token_ids, read_text(STORY), tokenizer).result()[0].tolist()

chainlits_config = uvicorn.Config


def server_config(*args: Any, **kwargs: Any) -> uvicorn.Config:
    """Return Chainlit's settings of the server, with messages of at most MAX_BYTES, uncompressed.

    A compressed one is unpacked at once, however long it becomes, while everybody waits.
    """
    limits = {"ws_max_size": MAX_BYTES, "ws_per_message_deflate": False}
    return chainlits_config(*args, **kwargs | limits)


uvicorn.Config = server_config
sio.eio.max_http_buffer_size = MAX_BYTES  # of messages that come by POST


# Where the page sends something. Chainlit also takes files, new elements and more, which it would
# write to the disk, here where nothing of that is used.
SENDS_TO = ("/login", "/logout", "/set-session-cookie", "/project/action", "/ws/socket.io/")


async def guard(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """Refuse, unread, what the page never sends.

    Tell the browser to load nothing from other hosts: the page must work without a network.
    """
    length = request.headers.get("content-length", "")
    in_pieces = "transfer-encoding" in request.headers  # then it may be longer than it says
    short = length.isdecimal() and int(length) <= MAX_BYTES and not in_pieces
    only_asks = request.method in ("GET", "HEAD", "OPTIONS")
    if only_asks or (short and request.url.path.endswith(SENDS_TO)):
        response = await call_next(request)
    else:
        response = Response("The page does not send this.", status_code=403)
    policy = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
    response.headers["Content-Security-Policy"] = policy
    return response


if app.middleware_stack is None:  # not when `chainlit run -w` reads this file again
    app.middleware("http")(guard)


@sio.on("connect")
async def connect(sid: str, environ: dict[str, Any], auth: Any) -> bool:
    """Let in only who has a session id like the page's, a UUID.

    The person chooses it, and Chainlit makes a folder of that name, which it deletes in the end:
    with "../public", say, it would be another one.
    """
    session_id = auth.get("sessionId") if isinstance(auth, dict) else None
    if not re.fullmatch("[0-9a-f-]{36}", str(session_id)):
        raise ConnectionRefusedError("no session id")
    return await chainlit_connect(sid, environ, auth)


def cropping(handler: Callable[[str, Any], Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Return Chainlit's handler of an opening, which then gets only the end of a long one.

    Else Chainlit would keep all of it in memory, and send it back to the page. Of the fields beside
    it, only texts are needed; an opening that is none counts as empty.
    """

    async def crop(sid: str, payload: Any) -> None:
        with suppress(AttributeError, KeyError, TypeError):  # junk is for Chainlit to refuse
            fields = payload["message"].items()
            texts = {key: text[-MAX_OPENING:] for key, text in fields if isinstance(text, str)}
            payload = {"message": {"output": ""} | texts}
        await handler(sid, payload)

    return crop


sio.on("client_message", cropping(chainlit_message))
sio.on("edit_message", cropping(chainlit_edit_message))


@cache  # one model in memory; an error is not kept, so the next call tries again
def load() -> GPTModel:
    """Return the trained model. Raises OSError or ValueError if it cannot be loaded."""
    return load_model(WEIGHTS, CONFIG)


async def run_in(thread: ThreadPoolExecutor, function: Callable, *args: Any) -> Any:
    """Return `function(*args)`, run by `thread` when its turn comes."""
    return await asyncio.get_running_loop().run_in_executor(thread, function, *args)


# Before anybody comes: it takes a second or more, and the model has to be there below. (What goes
# wrong is told by `find_model`, which tries again.)
wait([model_thread.submit(load)])
# What is there now stays. Else Python would look through all of it for garbage now and then, which
# takes a quarter of a second.
gc.collect()
gc.freeze()

# 1. Settings --------------------------------------------------------------------------------

# name: label, usual value, lowest, highest, step, explanation
SLIDERS = {
    "temperature": ("Temperature", 0.8, 0, 5, 0.1,
                    "0: always the likeliest token. 1: the model's own odds. 5: nearly even odds."),
    "top_k": ("Top-k", 50, 0, 200, 1, "Draw from the k likeliest tokens. 0: from all."),
    "top_p": ("Top-p", 1, 0.05, 1, 0.05,
              "Draw from the fewest tokens that have this probability together. 1: from all."),
    "max_new_tokens": ("Tokens", 120, 1, 500, 1,
                       "How many to write. A token is about four letters."),
}  # fmt: skip


class Settings(NamedTuple):
    """How to write."""

    temperature: float
    top_k: int | None
    top_p: float | None
    max_new_tokens: int
    seed: int


def read_number(raw: dict[str, Any], name: str) -> float:
    """Return a slider's value, moved into its limits; its usual one if it is not a number."""
    _, usual, low, high, *_ = SLIDERS[name]
    try:
        value = float(raw[name])
    except (KeyError, TypeError, ValueError, OverflowError):
        return usual
    return usual if math.isnan(value) else min(max(value, low), high)


def read_settings(new_seed: bool = False) -> Settings:
    """Return valid settings from what the page has sent, whatever that is."""
    raw = cl.user_session.get("chat_settings")
    top_k, top_p = round(read_number(raw, "top_k")), read_number(raw, "top_p")
    seed = str(raw.get("seed")).strip()
    if new_seed or not re.fullmatch("[0-9]{1,30}", seed):
        seed = secrets.randbelow(2**32)
    return Settings(
        temperature=read_number(raw, "temperature"),
        top_k=top_k or None,
        top_p=top_p if top_p < 1 else None,
        max_new_tokens=round(read_number(raw, "max_new_tokens")),
        seed=int(seed) % 2**63,  # in the range of PyTorch's generators
    )


async def send_settings() -> None:
    """Show the settings on the page, each with a line of explanation."""
    sliders = [
        Slider(id=name, label=label, initial=usual, min=low, max=high, step=step, description=text)
        for name, (label, usual, low, high, step, text) in SLIDERS.items()
    ]
    text = """A whole number: the same opening, settings and seed give the same text.
        Anything else: a new seed each time."""
    seed = TextInput(id="seed", label="Seed", placeholder="a new one each time", description=text)
    await cl.ChatSettings([*sliders, seed]).send()


# 2. Writing ---------------------------------------------------------------------------------


@dataclass
class Text:
    """A text in the making."""

    opening: list[int] = field(default_factory=list)  # token ids of the person's own words
    prompt: list[int] = field(default_factory=list)  # after Continue, also of what was written
    choices: list[TokenChoice] = field(default_factory=list)  # what the model has written
    settings: Settings | None = None
    message: cl.Message | None = None  # the one on the page
    seconds: float = 0.0
    inside: dict[str, Any] = field(default_factory=dict)
    stopped: bool = False  # by the person, or because a new text has begun
    left: bool = False  # the person is not at the page
    written: bool = False  # to the end, or to where it was stopped
    task: asyncio.Task | None = None  # asyncio itself does not keep its tasks alive


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


async def write(text: Text, model: GPTModel) -> None:
    """Let the model go on from a text's prompt, in a message of its own."""
    text.message = await cl.Message("").send()
    settings = text.settings
    choices = stream_choices(
        model, tokenizer, torch.tensor([text.prompt]), settings.max_new_tokens, CONTEXT,
        settings.temperature, settings.top_k, top_p=settings.top_p,
        generator=torch.Generator().manual_seed(settings.seed),
    )  # fmt: skip
    start = time.perf_counter()
    while not text.stopped and (choice := await run_in(model_thread, next, choices, None)):
        text.choices.append(choice)
        await text.message.stream_token(as_markdown(choice.text))
    text.seconds = time.perf_counter() - start
    text.inside = await run_in(side_thread, inside, text.choices)
    text.written = True
    if not text.left:
        await finish(text)


async def finish(text: Text) -> None:
    """Show the facts, the inside and the buttons below a text, and remember it for them."""
    message = text.message
    props = {"facts": facts(text), **text.inside}
    message.elements = [cl.CustomElement(name="LookInside", props=props)]
    message.actions = [
        cl.Action(name=name, label=label, tooltip=tooltip, payload={"text": message.id})
        for name, label, tooltip in ACTIONS
    ]
    make_files_directory()
    await message.update()
    message.elements = []  # they are sent; Chainlit keeps messages, so they would fill the memory
    texts = cl.user_session.get("texts") or {}
    texts[message.id] = (text.opening, text.prompt, [choice.token_id for choice in text.choices])
    cl.user_session.set("texts", dict(list(texts.items())[-MAX_TEXTS:]))


def stop_writing(left: bool = False) -> None:
    """Stop the text that is being written for this person, if there is one."""
    if (text := cl.user_session.get("text")) and not text.written:
        text.stopped, text.left = True, left


# 3. Looking inside --------------------------------------------------------------------------


def facts(text: Text) -> list[str]:
    """Return what stands below a text: how long it is, how fast it came, how to make it again."""
    settings, length = text.settings, len(text.choices)
    lines = ["1 token" if length == 1 else f"{length} tokens"]
    lines.append(f"{length / text.seconds:.1f} per second")
    lines += [f"seed {settings.seed}", f"temperature {settings.temperature:g}"]
    if settings.top_k:
        lines.append(f"top-k {settings.top_k}")
    if settings.top_p:
        lines.append(f"top-p {settings.top_p:g}")
    if len(text.prompt) > CONTEXT:
        what = "opening" if text.prompt == text.opening else "text before"
        lines.append(f"{what} cropped to its last {CONTEXT} tokens")
    if text.prompt != text.opening:
        lines.append("a continuation")
    if text.stopped:
        lines.append("stopped")
    return lines


def inside(choices: list[TokenChoice]) -> dict[str, Any]:
    """Return what the element LookInside shows: each token's odds, and the copied runs."""
    spans = copied_spans([choice.token_id for choice in choices], story_ids)
    places = [story_place(span, story_ids, tokenizer) for span in spans]
    return {
        "tokens": [choice._asdict() for choice in choices],
        "runs": [
            span._asdict() | place._asdict() for span, place in zip(spans, places, strict=True)
        ],
        "share": copied_share(spans, len(choices)),
    }


def next_token_chart(logits: torch.Tensor) -> bytes:
    """Return a picture (PNG) of the likeliest next tokens, at three temperatures."""
    png = io.BytesIO()
    plot_temperature(logits, tokenizer).savefig(png, format="png", dpi=120)
    return png.getvalue()


# 4. The page --------------------------------------------------------------------------------

WELCOME = """This small model has read one short story and nothing else. \
It does not answer: it goes on with what you type, as the story might."""

STARTERS = {
    "The story's first sentence": "Everyone knew who the Babbingtons were.",
    "From the middle: the smithy": "There was one person in Quillhaven who could mend anything,",
    "From the middle: the fog": "On Thursday there was fog.",
    "Not in the story": "The old clock",
}

ACTIONS = [  # name, label, tooltip
    ("continue", "Continue", "Go on from the end of this text"),
    ("again", "Again", "Write another text from the same start, with a new seed"),
    ("next_token", "Next token", "What could come first after your opening?"),
]

TRAIN_COMMAND = "jupyter nbconvert --to notebook --execute --inplace pretrain.ipynb"


UNKNOWN = "This text is no longer known here: send its opening again."


async def safely(work: Awaitable[None]) -> None:
    """Await `work`; if it fails, log why, and tell the person."""
    try:
        await work
    except Exception:
        logger.exception("a text failed")
        await cl.ErrorMessage("Something went wrong here. Your next text may work.").send()


async def start_text(work: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Await `work(text, *args)` with a new text and the Stop button on the page.

    From the first moment on, there is a `text` that can be stopped. Chainlit's Stop button also
    cancels its own task; the shield lets the text end in order, with its facts and buttons.
    """
    stop_writing()  # one text at a time for each person
    left = not cl.context.session.chat_started  # see `on_chat_end`
    text = Text(stopped=left, left=left)
    cl.user_session.set("text", text)
    text.task = asyncio.create_task(safely(work(text, *args)))
    await cl.context.emitter.task_start()
    try:
        await asyncio.shield(text.task)
    finally:
        await cl.context.emitter.task_end()


async def find_model() -> GPTModel | None:
    """Return the model; if there is none, say what is wrong and which command mends it."""
    try:
        return await run_in(side_thread, load)
    except (OSError, ValueError) as error:
        mend = f"This command makes the weights, in about ten minutes:\n\n```\n{TRAIN_COMMAND}\n```"
        await cl.ErrorMessage(f"{as_markdown(str(error))}\n\n{mend}").send()


async def go_on(text: Text, message: cl.Message) -> None:
    """Go on with an opening."""
    if not message.content:
        await cl.ErrorMessage("Type the beginning of a text first: a word is enough.").send()
    elif model := await find_model():
        ids = await run_in(side_thread, text_to_token_ids, message.content, tokenizer)
        # One more than the model reads, so that a cropped opening can be told from a full one.
        text.opening = text.prompt = ids[0, -CONTEXT - 1 :].tolist()
        text.settings = read_settings()
        await write(text, model)


async def go_on_below(text: Text, action: cl.Action) -> None:
    """Continue the text below which a button was pressed, or write another in its place."""
    if (known := await find_text(action)) and (model := await find_model()):
        text.opening, text.prompt, written = known
        if action.name == "continue":
            text.prompt = (text.prompt + written)[-CONTEXT - 1 :]
        text.settings = read_settings(new_seed=action.name == "again")
        await write(text, model)


async def find_text(action: cl.Action) -> tuple[list[int], list[int], list[int]] | None:
    """Return (opening, prompt, written) of the text below which a button was pressed."""
    text = (cl.user_session.get("texts") or {}).get(str(action.payload.get("text")))
    if text is None:
        await cl.ErrorMessage(UNKNOWN).send()
    return text


async def show_next_token(action: cl.Action) -> None:
    """Show what could come first after the opening of a text."""
    if (known := await find_text(action)) and (model := await find_model()):
        steps = stream(model, torch.tensor([known[0]]), 1, CONTEXT)
        _, logits = await run_in(model_thread, next, steps)
        picture = await run_in(side_thread, next_token_chart, logits[0])
        what = "What could come first after your opening, at three temperatures"
        end = as_markdown(tokenizer.decode(known[0])[-60:])
        image = cl.Image(content=picture, name=what, size="large")
        make_files_directory()
        await cl.Message(f"{what}:\n\n> {end}", elements=[image]).send()


def make_files_directory() -> None:
    """Make the folder that Chainlit writes elements to: another app that ended here removed it."""
    FILES_DIRECTORY.mkdir(exist_ok=True)


def forget_who_left() -> None:
    """Let go of what Chainlit keeps in memory of people whose session has ended."""
    for kept in (chat_contexts, user_sessions):
        for session_id in kept.keys() - ws_sessions_id.keys():
            del kept[session_id]


@cl.set_chat_profiles
async def chat_profiles() -> list[cl.ChatProfile]:
    """Return what the page shows before the first text."""
    starters = [cl.Starter(label=label, message=text) for label, text in STARTERS.items()]
    icon = "/public/clock.svg"
    return [
        cl.ChatProfile(
            name="Story", markdown_description=WELCOME, icon=icon, starters=starters, default=True
        )
    ]


@cl.on_chat_start
async def on_chat_start() -> None:
    """Show the settings, or what is wrong; to somebody who is back, the text that broke off."""
    forget_who_left()
    if not cl.context.session.restored:
        await send_settings()
        await find_model()
    elif (text := cl.user_session.get("text")) and text.left:
        text.left = False
        if text.written:
            await finish(text)


@cl.on_message
async def on_message(message: cl.Message) -> None:
    """Go on with an opening, new or edited."""
    await start_text(go_on, message)


go_on_with_known = config.code.on_message


async def on_message_or_none(message: cl.Message | None) -> None:
    """Answer also when an old opening was edited after the app was started anew.

    Chainlit has no message then, and what it makes of `on_message` would fail without a word.
    """
    await (go_on_with_known(message) if message else cl.ErrorMessage(UNKNOWN).send())


config.code.on_message = on_message_or_none


@cl.action_callback("continue")
@cl.action_callback("again")
async def on_continue_or_again(action: cl.Action) -> None:
    """Go on from the end of a text, or once more from its start."""
    await start_text(go_on_below, action)


@cl.action_callback("next_token")
async def on_next_token(action: cl.Action) -> None:
    """Show what could come first after the opening of a text."""
    await safely(show_next_token(action))


@cl.on_stop
async def on_stop() -> None:
    """Stop writing, also where Chainlit does not: after an edit and after the buttons."""
    stop_writing()
    for message in cl.chat_context.get():  # the line below the text says it
        if message.content == "Task manually stopped.":
            await message.remove()


@cl.on_chat_end
async def on_chat_end() -> None:
    """Stop writing for somebody who has left, perhaps only for a moment."""
    stop_writing(left=True)
    cl.context.session.chat_started = False  # so that `on_chat_start` is called on their return
