"""The web page: a person types a prompt, and the model continues it.

    chainlit run app.py

Settings, generation, what a click does. The page itself keeps the texts and shows them (`public/`);
the app gets token ids and sends tokens. One thread, `inference_executor`, does all the work of the
model, one token at a time: people take turns token by token, the page never freezes, and Stop costs
at most one token more. `background_executor` does what else takes long.
"""

import asyncio
import math
import re
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import chainlit as cl
import tiktoken
import torch

from gpt import GPT_CONFIG_124M, GPTModel
from support import inside, server
from support.data import read_text
from support.server import background_executor, inference_executor, run_in, safely, state
from utils import TokenInfo, load_model, stream_tokens, text_to_token_ids

ROOT = Path(__file__).parent
STORY = ROOT / "dataset" / "story.txt"
WEIGHTS = ROOT / "pretrain-story-model.pth"
CONFIG = GPT_CONFIG_124M
CONTEXT = CONFIG["context_length"]
SEND_EVERY = 0.04  # seconds: tokens are sent in groups
MAX_SHOWN = 1000  # tokens of a prompt: of a longer one, only the end comes back to the page
MAX_IDS = 20_000  # of a text that the page sends

# 1. Settings --------------------------------------------------------------------------------


class Limit(NamedTuple):
    lowest: float
    highest: float
    usual: float


LIMITS = {  # as in public/page/settings.js
    "temperature": Limit(0, 5, 1),
    "top_k": Limit(0, 200, 50),
    "top_p": Limit(0.05, 1, 1),
    "max_new_tokens": Limit(1, 500, 120),
}

server.protect(ROOT, (*LIMITS, "seed"))


class Settings(NamedTuple):
    temperature: float
    top_k: int | None
    top_p: float | None
    max_new_tokens: int
    seed: int


def read_number(raw: dict[str, Any], name: str) -> float:
    """Return a setting, moved into its limits; its usual value if it is not a number."""
    limit = LIMITS[name]
    try:
        value = float(raw[name])
    except (KeyError, TypeError, ValueError, OverflowError):
        return limit.usual
    return limit.usual if math.isnan(value) else min(max(value, limit.lowest), limit.highest)


def read_settings(new_seed: bool = False) -> Settings:
    """Return valid settings from what the page has sent, whatever that is."""
    raw = cl.user_session.get("chat_settings") or {}
    temperature, top_k, top_p, max_new_tokens = (read_number(raw, name) for name in LIMITS)
    seed = str(raw.get("seed")).strip()
    if new_seed or not re.fullmatch("[0-9]{1,30}", seed):
        seed = str(secrets.randbelow(2**32))
    seed_in_range = int(seed) % 2**63  # of PyTorch's generators
    limits = round(top_k) or None, top_p if top_p < 1 else None
    return Settings(temperature, *limits, round(max_new_tokens), seed_in_range)


# 2. Generation ------------------------------------------------------------------------------

tokenizer = tiktoken.get_encoding("gpt2")


def load() -> GPTModel:
    """Return the trained model, loaded once. Raises OSError or ValueError if it cannot be."""
    if state.model is None:
        state.model = load_model(WEIGHTS, CONFIG).eval()
    return state.model


state.model = None  # `chainlit run -w` reads this file again: one model in memory at a time
story_text = read_text(STORY)
story_ids = (
    background_executor.submit(text_to_token_ids, story_text, tokenizer).result()[0].tolist()
)
# Before anybody comes: it takes a second or more. `find_model` says what goes wrong.
inference_executor.submit(load).exception()
server.freeze_memory()


@dataclass
class Continuation:
    """What the model generates after a text, and how far it has come."""

    run: str  # the page's name for it
    settings: Settings
    context: list[int]  # token ids
    tokens: list[dict[str, Any]] = field(default_factory=list)  # generated so far
    sent: int = 0  # how many of them the page has got
    seconds: float = 0.0  # a coarse clock may see none pass
    stopped: bool = False  # by the person, or because another request has come
    finished: bool = False
    share: float = 0.0  # of the tokens, copied from the story


@dataclass
class Request:
    """What one person has asked for last: mostly one continuation."""

    continuations: list[Continuation] = field(default_factory=list)
    stopped: bool = False
    left: bool = False  # the person is not at the page
    task: asyncio.Task | None = None  # asyncio itself does not keep its tasks alive


def token_stream(model: GPTModel, continuation: Continuation) -> Callable[[], Awaitable[Any]]:
    """Return a function that gives the next `TokenInfo` each time, and None at the end."""
    settings = continuation.settings
    tokens = stream_tokens(
        model, tokenizer, torch.tensor([continuation.context]), settings.max_new_tokens, CONTEXT,
        settings.temperature, settings.top_k, top_p=settings.top_p,
        generator=torch.Generator().manual_seed(settings.seed),
    )  # fmt: skip
    return partial(run_in, inference_executor, next, tokens, None)


def as_shown(token: TokenInfo, seen: int) -> dict[str, Any]:
    """Return a token for the page; `seen` is how many tokens the model had read before it."""
    return {
        "id": token.token_id, "text": token.text, "label": token.label, "rank": token.rank,
        "logprob": round(token.logprob, 4), "prob": round(token.sampling_prob, 4), "seen": seen,
    }  # fmt: skip


async def generate(request: Request, model: GPTModel, continuation: Continuation) -> None:
    """Let the model continue a text; send its tokens, a few at a time, and at last all of them."""
    request.continuations.append(continuation)
    next_token = token_stream(model, continuation)
    seen = min(len(continuation.context), CONTEXT)
    start = sent_at = time.perf_counter()
    while not request.stopped and (token := await next_token()):
        continuation.tokens.append(as_shown(token, seen))
        seen = seen + 1 if seen < CONTEXT else CONTEXT // 2  # see `stream`
        if (now := time.perf_counter()) - sent_at >= SEND_EVERY or len(continuation.tokens) == 1:
            await send_new(continuation)
            sent_at = now
    continuation.seconds = time.perf_counter() - start
    continuation.stopped = request.stopped
    ids = [token["id"] for token in continuation.tokens]
    continuation.share = await run_in(background_executor, inside.copied_share, ids, story_ids)
    continuation.finished = True
    if not request.left:
        await show(continuation)


async def send_new(continuation: Continuation) -> None:
    tokens = continuation.tokens[continuation.sent :]
    continuation.sent = len(continuation.tokens)
    await emit("tokens", run=continuation.run, tokens=tokens)


async def show(continuation: Continuation) -> None:
    """Send all of a continuation: somebody who was away has missed a part."""
    await emit("finished", run=continuation.run, tokens=continuation.tokens,
               facts=facts(continuation), share=continuation.share)  # fmt: skip


async def emit(event: str, **data: Any) -> None:
    await cl.context.emitter.emit(event, data)


def facts(continuation: Continuation) -> list[str]:
    """Return the line below a continuation: its length and speed, and how to make it again."""
    settings, length = continuation.settings, len(continuation.tokens)
    random = settings.temperature > 0
    lines = [
        "1 token" if length == 1 else f"{length} tokens",
        continuation.seconds and f"{length / continuation.seconds:.1f} per second",
        random and f"seed {settings.seed}",
        f"temperature {settings.temperature:g}",
        random and settings.top_k and f"top-k {settings.top_k}",
        random and settings.top_p and f"top-p {settings.top_p:g}",
        f"{continuation.share:.0%} copied from the story",
        len(continuation.context) > CONTEXT and f"read the last {CONTEXT} tokens before it",
        continuation.stopped and "stopped",
    ]
    return [line for line in lines if line]


def stop_generation(left: bool = False) -> None:
    """Stop what is being generated for this person; note whether the person has left."""
    if request := cl.user_session.get("request"):
        request.left = request.left or left
        request.stopped = True


# 3. What a click does -----------------------------------------------------------------------

STARTERS = [
    "Everyone knew who the Babbingtons were.",
    "There was one person in Quillhaven who could mend anything,",
    "On Thursday there was fog.",
    "The old clock",
]
ELEMENTS = ("Connection", "Start", "Toolbar", "Text", "Token", "Bars", "Compare", "Settings")

TRAIN = "jupyter nbconvert --to notebook --execute --inplace pretrain.ipynb"


async def start(work: Callable[..., Awaitable[None]], *args: Any) -> None:
    """Await `work(request, *args)` with a new request and the Stop button on the page.

    Stop also cancels Chainlit's own task; the shield lets the continuation end in order.
    """
    stop_generation()  # one request at a time for each person
    left = not cl.context.session.chat_started  # see `on_chat_end`
    request = Request(stopped=left, left=left)
    cl.user_session.set("request", request)
    request.task = asyncio.create_task(safely(work(request, *args)))
    await cl.context.emitter.task_start()
    try:
        await asyncio.shield(request.task)
    finally:
        if cl.user_session.get("request") is request:
            await cl.context.emitter.task_end()


async def find_model() -> GPTModel | None:
    """Return the model; if there is none, say what is wrong and which command makes it."""
    try:
        return state.model or await run_in(inference_executor, load)
    except (OSError, ValueError) as error:
        remedy = f"This command makes the weights, in ten minutes:\n\n```\n{TRAIN}\n```"
        await cl.ErrorMessage(f"{server.as_markdown(str(error))}\n\n{remedy}").send()
        return None


async def continue_prompt(request: Request, prompt: str) -> None:
    if not prompt:
        await cl.ErrorMessage("Type the beginning of a text first: a word is enough.").send()
    elif model := await find_model():
        ids = (await run_in(background_executor, text_to_token_ids, prompt, tokenizer))[0].tolist()
        shown = await run_in(background_executor, inside.plain_tokens, ids[-MAX_SHOWN:], tokenizer)
        run = str(uuid.uuid4())
        await emit("prompt", run=run, tokens=shown, before=len(ids) - len(shown))
        # One more than the model reads, so that a cropped prompt can be told from a full one.
        await generate(request, model, Continuation(run, read_settings(), ids[-CONTEXT - 1 :]))


def read_ids(payload: dict[str, Any]) -> list[int]:
    """Return the token ids of a text that the page sends, not more than are read of it."""
    ids = payload.get("ids")
    if not isinstance(ids, list) or not 1 <= len(ids) <= MAX_IDS:
        raise ValueError("no token ids")
    if not all(type(i) is int and 0 <= i < CONFIG["vocab_size"] for i in ids):
        raise ValueError("unknown token ids")
    return ids


def read_run(payload: dict[str, Any]) -> str:
    return str(payload.get("run"))[:100]


async def continue_text(request: Request, ids: list[int], run: str, new_seed: bool) -> None:
    if model := await find_model():
        settings = read_settings(new_seed)
        await generate(request, model, Continuation(run, settings, ids[-CONTEXT - 1 :]))


async def compare(request: Request, ids: list[int], runs: list[tuple[str, float]]) -> None:
    """Continue one text several times, each at a temperature of its own."""
    if model := await find_model():
        settings = read_settings()
        await asyncio.gather(*(
            generate(request, model, Continuation(
                run, settings._replace(temperature=temperature), ids[-CONTEXT - 1 :]))
            for run, temperature in runs
        ))  # fmt: skip


def look(what: str, model: GPTModel, ids: list[int]) -> Any:
    """Return what the page shows of a text, see support/inside.py."""
    read = ids[-CONTEXT:]
    if what == "next":
        return inside.next_token(model, tokenizer, read)
    return inside.scores(model, read) if what == "scores" else inside.attention(model, read)


@cl.action_callback("look")
async def on_look(action: cl.Action) -> Any:
    what, ids = action.payload.get("what"), read_ids(action.payload)
    if what == "copied":
        return await run_in(background_executor, inside.copied, ids[-5000:], story_ids, tokenizer)
    if what in ("next", "scores", "attention") and (model := await find_model()):
        return await run_in(inference_executor, look, what, model, ids)
    return None


@cl.action_callback("generate")
async def on_generate(action: cl.Action) -> None:
    payload = action.payload
    new_seed = payload.get("new_seed") is True
    await start(continue_text, read_ids(payload), read_run(payload), new_seed)


@cl.action_callback("compare")
async def on_compare(action: cl.Action) -> None:
    runs = [(read_run(run), read_number(run, "temperature")) for run in action.payload["runs"][:3]]
    await start(compare, read_ids(action.payload), runs)


@cl.action_callback("story")
async def on_story(action: cl.Action) -> None:
    """Open the story at the side of the page."""
    await cl.ElementSidebar.set_title("The story")
    await cl.ElementSidebar.set_elements([element("Story", {"text": story_text})], key="story")


def element(name: str, props: dict[str, Any] | None = None) -> Any:
    """Return one of public/elements/. With a url, Chainlit writes no file for it."""
    made: Any = cl.CustomElement(name=name, props=props or {}, url=f"/public/elements/{name}.jsx")
    return made


@cl.on_chat_start
async def on_chat_start() -> None:
    """Show the page, or what is wrong; to somebody who is back, what was generated last."""
    server.forget_who_left()
    if not getattr(cl.context.session, "restored", False):
        props = {"Start": {"starters": STARTERS}}
        page = cl.Message("", elements=[element(name, props.get(name)) for name in ELEMENTS])
        await page.send()
        await find_model()
    elif request := cl.user_session.get("request"):
        request.left = False
        for continuation in request.continuations:
            if continuation.finished:
                await show(continuation)


@cl.on_message
async def on_message(message: cl.Message) -> None:
    cl.chat_context.clear()  # Chainlit would keep all prompts in memory
    await start(continue_prompt, message.content)


@cl.on_stop
async def on_stop() -> None:
    stop_generation()
    await server.remove_stop_message()  # the line below the text says it


@cl.on_chat_end
async def on_chat_end() -> None:
    """Stop generating for somebody who has left, perhaps only for a moment."""
    stop_generation(left=True)
    cl.context.session.chat_started = False  # tells `start` that they have left
